"""Packages that are compositions of others: pinned by digest at publish, equal to the inline stack, protected from deletion."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import serving
from starlette.testclient import TestClient
from tiny import FUSIONS, KINDS, OTHERS, SPEC, adapter, classifier, package, save_backbone

from adapter_store.manifest import Head, Manifest

TEXT = "t3 t14 t15 t9 t2"
NAMES = ("houlsby", "pfeiffer", "gated", "lora", "ia3", "prefix", "bare", "fusion")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(save_backbone(tmp_path / "backbone"), tmp_path / "store") as client:
        for seed, name in enumerate(("houlsby", "pfeiffer", "gated")):
            publish(client, name, adapter(KINDS[name], classifier("yes", "no"), seed))
        yield client


def publish(client: TestClient, name: str, data: bytes) -> dict[str, Any]:
    answer = client.put(f"/v1/adapters/{name}", content=data)
    assert answer.status_code == 201, answer.text
    published: dict[str, Any] = answer.json()
    return published


def pin(client: TestClient, name: str) -> str:
    return f"{name}@{client.get(f'/v1/adapters/{name}').json()['versions'][-1]['digest']}"


def composed(client: TestClient, composition: str, head: Head | None = None, **fields: Any) -> bytes:
    return package(Manifest(backbone=SPEC, composition=composition, head=head, **fields), seed=7)


def fusion_of(client: TestClient, *members: str, head: Head | None = None) -> bytes:
    """A fusion of published adapters."""
    composition = f"fuse[self]({', '.join(pin(client, member) for member in members)})"
    return composed(client, composition, head, methods={"fusion": FUSIONS["dynamic"]})


def logits(client: TestClient, model: str) -> Any:
    answer = client.post("/v1/predict", json={"model": model, "inputs": TEXT, "output": "logits"})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["output"]["data"]


def hidden(client: TestClient, model: str) -> Any:
    answer = client.post("/v1/predict", json={"model": model, "inputs": TEXT, "output": "hidden"})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["output"]["data"]


def test_a_published_stack_equals_the_inline_one(client: TestClient) -> None:
    stack = f"stack({pin(client, 'houlsby')}, {pin(client, 'gated')})"
    publish(client, "team/both", composed(client, stack, classifier("a", "b", "c")))
    assert hidden(client, "team/both") == hidden(client, "stack(houlsby, gated)")
    assert hidden(client, "team/both") != hidden(client, "stack(gated, houlsby)")
    assert len(logits(client, "team/both")) == 3
    assert logits(client, "team/both#gated") == logits(client, "stack(houlsby, gated)")


def test_self_is_the_packages_own_adapter(client: TestClient) -> None:
    own = composed(client, f"stack({pin(client, 'houlsby')}, self)", methods={"bottleneck": KINDS["pfeiffer"]})
    publish(client, "own", own)
    alone = package(Manifest(backbone=SPEC, methods={"bottleneck": KINDS["pfeiffer"]}), seed=7)
    publish(client, "alone", alone)
    assert hidden(client, "own") == hidden(client, "stack(houlsby, alone)")


def test_a_composition_keeps_its_members_when_a_name_moves_on(client: TestClient) -> None:
    publish(client, "fixed", composed(client, f"stack({pin(client, 'houlsby')}, {pin(client, 'gated')})", classifier("a", "b")))
    before = hidden(client, "fixed")
    publish(client, "houlsby", adapter(KINDS["houlsby"], classifier("yes", "no"), seed=99))
    assert hidden(client, "fixed") == before
    assert hidden(client, "stack(houlsby, gated)") != before


def test_what_a_composition_needs_cannot_be_deleted(client: TestClient) -> None:
    publish(client, "user", composed(client, f"stack({pin(client, 'houlsby')}, {pin(client, 'gated')})", classifier("a", "b")))
    refused = client.delete("/v1/adapters/houlsby")
    assert refused.status_code == 409
    assert "user@1" in refused.json()["error"]["message"]
    assert client.delete("/v1/adapters/user").status_code == 200
    assert client.delete("/v1/adapters/houlsby").status_code == 200


@pytest.mark.parametrize(
    ("composition", "word"),
    [
        ("average({houlsby}, average({gated}))", "average"),
        ("fuse[{houlsby}]({pfeiffer}, {gated})", "no fusion weights"),
        ("fuse[{fusion}]({pfeiffer}, {houlsby})", "houlsby@1"),
        ("fuse[{fusion}]({pfeiffer}, {lora})", "lora"),
        ("fuse[{fusion}](average({pfeiffer}), {gated})", "stacks of adapters"),
        ("average({lora}, {ia3})", "(IA)^3"),
        ("average({prefix}, {gated})", "prefixes"),
        ("average({pfeiffer}, {bare})", "head only"),
    ],
)
def test_compositions_that_are_not_defined_are_refused(client: TestClient, composition: str, word: str) -> None:
    """At publish, and as a model string."""
    for name in ("lora", "ia3", "prefix"):
        publish(client, name, package(Manifest(backbone=SPEC, methods=OTHERS[name]), seed=1))
    publish(client, "bare", package(Manifest(backbone=SPEC, head=classifier("a", "b")), seed=1))
    publish(client, "fusion", fusion_of(client, "pfeiffer", "gated"))
    pinned = composition.format_map({name: pin(client, name) for name in NAMES})
    refused = client.put("/v1/adapters/later", content=composed(client, pinned))
    assert refused.status_code == 422, refused.text
    assert word in refused.json()["error"]["message"]
    assert client.get("/v1/adapters/later").status_code == 404
    inline = client.post("/v1/predict", json={"model": composition.format_map({name: name for name in NAMES}), "inputs": TEXT})
    assert inline.status_code == 422
    assert word in inline.json()["error"]["message"]


def test_a_published_fusion_equals_the_inline_one(client: TestClient) -> None:
    publish(client, "both", fusion_of(client, "pfeiffer", "gated", head=classifier("a", "b", "c")))
    assert hidden(client, "both") == hidden(client, "fuse[both](pfeiffer, gated)")
    assert len(logits(client, "both")) == 3
    publish(client, "pfeiffer", adapter(KINDS["pfeiffer"], classifier("yes", "no"), seed=99))
    assert hidden(client, "both") != hidden(client, "fuse[both](pfeiffer, gated)"), "members are pinned"


def test_attention_sums_to_one_and_names_the_members(client: TestClient) -> None:
    publish(client, "both", fusion_of(client, "pfeiffer", "gated", head=classifier("a", "b", "c")))
    body = {"model": "stack(houlsby, both)", "inputs": [TEXT, "t5 t6"], "parameters": {"explain": True}}
    for result, tokens in zip(client.post("/v1/predict", json=body).json()["results"], (5, 2), strict=True):
        assert [(entry["layer"], entry["site"]) for entry in result["attention"]] == [(layer, "output") for layer in range(3)]
        for entry in result["attention"]:
            assert entry["members"] == ["pfeiffer@1", "gated@1"]
            assert entry["weights"]["shape"] == [tokens, 2]
            np.testing.assert_allclose(np.sum(entry["weights"]["data"], axis=1), 1.0, atol=1e-5)
    refused = client.post("/v1/predict", json={"model": "houlsby", "inputs": TEXT, "parameters": {"explain": True}})
    assert refused.status_code == 400


def test_an_average_is_the_weighted_mean_of_its_members(client: TestClient) -> None:
    """Weights are normalised, and all of the weight on one member is that member."""
    assert hidden(client, "average(pfeiffer:2, gated:6)") == hidden(client, "average(pfeiffer:0.25, gated:0.75)")
    np.testing.assert_allclose(hidden(client, "average(pfeiffer:1, gated:0)"), hidden(client, "pfeiffer"), atol=1e-5)
    assert hidden(client, "average(pfeiffer, gated)") != hidden(client, "average(pfeiffer:0.3, gated:0.7)")


def test_a_parallel_answers_once_for_each_channel(client: TestClient) -> None:
    body = {"model": "stack(gated, parallel(houlsby, pfeiffer))", "inputs": [TEXT, "t7"], "output": "logits"}
    results = client.post("/v1/predict", json=body).json()["results"]
    assert [result["model"] for result in results] == ["stack(gated@1, houlsby@1)", "stack(gated@1, pfeiffer@1)"] * 2
    alone = [
        client.post("/v1/predict", json=body | {"model": model}).json()["results"]
        for model in ("stack(gated, houlsby)", "stack(gated, pfeiffer)")
    ]
    np.testing.assert_allclose(results[0]["output"]["data"], alone[0][0]["output"]["data"], atol=1e-5)
    np.testing.assert_allclose(results[3]["output"]["data"], alone[1][1]["output"]["data"], atol=1e-5)
    publish(client, "every", composed(client, f"parallel({pin(client, 'houlsby')}, {pin(client, 'pfeiffer')})"))
    assert len(client.post("/v1/predict", json={"model": "every", "inputs": TEXT}).json()["results"]) == 2
    assert client.post("/models/every", json={"inputs": TEXT}).status_code == 400


def test_a_fan_out_equals_single_calls(client: TestClient) -> None:
    """Rows of one text share layers until their adapters differ; their answers are those of the rows alone."""
    for number in range(3):
        dropped = package(
            Manifest(backbone=SPEC, methods={"bottleneck": KINDS["pfeiffer"].model_copy(update={"leave_out": (0, 1)})}), seed=number
        )
        publish(client, f"upper-{number}", dropped)
    models = ["base", "houlsby", "houlsby#gated", "upper-0", "upper-1", "upper-2#gated", "stack(upper-0, upper-1)", "pfeiffer"]
    together = client.post("/v1/predict", json={"model": models, "inputs": [TEXT, "t3 t14", TEXT], "output": "hidden"}).json()["results"]
    for place, result in enumerate(together):
        text = (TEXT, "t3 t14", TEXT)[place // len(models)]
        alone = client.post("/v1/predict", json={"model": models[place % len(models)], "inputs": text, "output": "hidden"}).json()[
            "results"
        ]
        np.testing.assert_allclose(result["output"]["data"], alone[0]["output"]["data"], atol=1e-5)


def test_members_that_are_not_there_are_refused(client: TestClient) -> None:
    data = composed(client, f"stack(ghost@sha256:{'0' * 64}, {pin(client, 'gated')})", classifier("a", "b"))
    refused = client.put("/v1/adapters/haunted", content=data)
    assert refused.status_code == 404
    assert "ghost" in refused.json()["error"]["message"]

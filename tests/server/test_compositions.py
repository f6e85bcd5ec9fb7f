"""Packages that are compositions of others: pinned by digest at publish, equal to the inline stack, protected from deletion."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import serving
from starlette.testclient import TestClient
from tiny import KINDS, SPEC, adapter, classifier, package, save_backbone

from adapter_store.manifest import Head, Manifest

TEXT = "t3 t14 t15 t9 t2"


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


@pytest.mark.parametrize("word", ["average", "parallel"])
def test_compositions_that_are_not_served_are_refused_at_publish(client: TestClient, word: str) -> None:
    data = composed(client, f"{word}({pin(client, 'houlsby')}, {pin(client, 'gated')})", classifier("a", "b"))
    refused = client.put("/v1/adapters/later", content=data)
    assert refused.status_code == 422
    assert word in refused.json()["error"]["message"]
    assert client.get("/v1/adapters/later").status_code == 404


def test_members_that_are_not_there_are_refused(client: TestClient) -> None:
    data = composed(client, f"stack(ghost@sha256:{'0' * 64}, {pin(client, 'gated')})", classifier("a", "b"))
    refused = client.put("/v1/adapters/haunted", content=data)
    assert refused.status_code == 404
    assert "ghost" in refused.json()["error"]["message"]

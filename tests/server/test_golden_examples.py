"""Golden examples over HTTP: a package answers as its manifest says before it is published, or it is not published."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from harness import error, folder_form, predict, put
from starlette.testclient import TestClient

from adapter_store.golden import Example
from adapter_store.manifest import Head, Manifest
from server.residency import Cold

TEXTS = ["t1 t2", "t3"]


def package(*examples: dict[str, Any], head: Head | None = None) -> bytes:
    """A tiny package with golden examples; its weights are the same whatever they are."""
    golden = tuple(Example.model_validate(example) for example in examples)
    head = tiny.classifier("ham", "spam") if head is None else head
    return tiny.package(Manifest(methods={"bottleneck": tiny.KINDS["pfeiffer"]}, head=head, backbone=tiny.SPEC, examples=golden), 5)


@pytest.fixture(scope="module")
def answers(client: TestClient) -> dict[str, Any]:
    """What the package answers to the two texts, by kind of output."""
    put(client, "golden-plain", package())
    decoded = predict(client, model="golden-plain", inputs=TEXTS)
    logits = predict(client, model="golden-plain", inputs=TEXTS, output="logits")
    embedding = predict(client, model="golden-plain", inputs=TEXTS, output="embedding")
    return {
        "decoded": [result["output"] for result in decoded],
        "logits": [result["output"]["data"] for result in logits],
        "embedding": [result["output"] for result in embedding],
    }


def test_examples_that_hold(client: TestClient, answers: dict[str, Any]) -> None:
    top = answers["decoded"][0][0]["label"]
    examples = [
        {"inputs": TEXTS[0], "expected": answers["decoded"][0]},
        {"inputs": TEXTS[0], "parameters": {"top_k": 1}, "expected": [{"label": top}]},
        {"inputs": TEXTS, "output": "logits", "expected": answers["logits"], "tolerance": 1e-4},
        {"inputs": {"text": TEXTS[1]}, "output": "embedding", "expected": answers["embedding"][1]},
    ]
    published = put(client, "golden", package(*examples), alias="prod")
    assert published["aliases"] == {"latest": 1, "prod": 1}
    assert len(client.get("/v1/adapters/golden").json()["manifest"]["examples"]) == 4
    assert predict(client, model="golden@prod", inputs=TEXTS)[1]["output"][0]["label"] == answers["decoded"][1][0]["label"]


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize(
    ("example", "word"),
    [
        ({"inputs": "t1 t2", "expected": [{"label": "eggs"}, {}]}, "expected[0].label is 'eggs'"),
        ({"inputs": "t1 t2", "expected": [{"score": 7.0}, {}]}, "expected[0].score is 7"),
        ({"inputs": "t1 t2", "expected": []}, "a list of 0"),
        ({"inputs": ["t1", "t2"], "expected": [[{}, {}]]}, "a list of 1"),
        ({"inputs": "t1", "output": "logits", "expected": [0.0, 0.0]}, "more than 0.001 away"),
        ({"inputs": {"question": "a", "context": "b"}, "expected": {}}, "cannot be answered"),
        ({"inputs": "t1 " * 4000, "expected": []}, "cannot be answered"),
        ({"inputs": "t1", "parameters": {"top_k": -1}, "expected": []}, "parameters that are not valid"),
        ({"inputs": {"words": "t1"}, "expected": []}, "is not valid"),
        ({"inputs": 7, "expected": []}, "is not valid"),
        ({"inputs": [], "expected": []}, "no inputs"),
    ],
)
def test_examples_that_do_not_hold(empty: TestClient, example: dict[str, Any], word: str) -> None:
    """Nothing is published, no alias moves, and nothing of the package stays on the device."""
    holds = {"inputs": "t1 t2", "expected": [{}, {}]}
    answer = empty.put("/v1/adapters/golden", content=package(holds, example), params={"alias": "prod"})
    fault = error(answer, 422, "golden_example_failed" if "valid" not in word and "no inputs" not in word else "invalid_package")
    assert word in fault["message"]
    assert "golden example 1" in fault["message"]
    assert empty.app.state.services.residency.digests == frozenset()


@pytest.mark.usefixtures("_nothing_left")
def test_examples_that_found_no_room_in_time(empty: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is too busy to try a package says so; the package is not at fault."""

    async def cold(wanted: set[str], *terms: Any) -> None:
        raise Cold(tuple(wanted), 7)

    with monkeypatch.context() as patched:
        patched.setattr(empty.app.state.services.residency, "acquire", cold)
        answer = empty.put("/v1/adapters/golden", content=package({"inputs": "t1 t2", "expected": [{}, {}]}))
    error(answer, 503, "model_cold")
    assert answer.headers["retry-after"] == "7"


def test_examples_of_a_folder(client: TestClient, answers: dict[str, Any], golden: Path, tmp_path: Path) -> None:
    """An examples.json beside an adapter's files."""
    folder = golden / "bert_batchsplit_cls" / "safetensors" / "adapters" / "sst"
    form = [part for part in folder_form(folder) if not part[1][0].endswith("examples.json")]
    for content, word in (
        ({"inputs": "t1", "expected": []}, "not a list of golden examples"),
        ([{"inputs": "t1", "expected": [], "more": 1}], "not a list of golden examples"),
        ("[", "not sound JSON"),
    ):
        data = content if isinstance(content, str) else json.dumps(content)
        refused = client.put("/v1/adapters/golden-folder", files=[*form, ("files", ("examples.json", data.encode()))])
        assert word in error(refused, 422, "invalid_package")["message"]
    error(client.get("/v1/adapters/golden-folder"), 404, "model_not_found")

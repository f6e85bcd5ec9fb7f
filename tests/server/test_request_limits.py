"""What one inference request may be: characters, rows, numbers; each over its limit with one sentence, whatever the convention."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from harness import error, put, serving
from starlette.testclient import TestClient

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Prefix
from server import inference


@pytest.fixture(scope="module")
def small(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(backbone, tmp_path_factory.mktemp("store"), max_input_chars=100, max_request_chars=250, max_rows=8) as client:
        put(client, "spam", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b"), 1))
        put(client, "choose", tiny.adapter(tiny.KINDS["pfeiffer"], Head(type="multiple_choice"), 2))
        put(client, "asks", tiny.adapter(tiny.KINDS["pfeiffer"], Head(type="question_answering", bias=True), 3))
        yield client


LONG, FAIR = "t1 " * 34, "t1 " * 30


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/predict", {"model": "spam", "inputs": LONG}, "input_too_long"),
        ("/v1/predict", {"model": "spam", "inputs": LONG, "parameters": {"truncate": True}}, "input_too_long"),
        ("/v1/predict", {"model": "spam", "inputs": {"text": FAIR, "text_pair": FAIR}}, "input_too_long"),
        ("/v1/predict", {"model": "asks", "inputs": {"question": "t1", "context": LONG}}, "input_too_long"),
        ("/v1/predict", {"model": "choose", "inputs": {"text": FAIR, "choices": ["t1", "t2"]}}, "input_too_long"),
        ("/v1/predict", {"model": "spam", "inputs": [FAIR + f"t{i}" for i in range(3)]}, "too_many_characters"),
        ("/v1/predict", {"model": ["asks"] * 3, "inputs": {"question": "t1", "context": FAIR}}, "too_many_characters"),
        ("/v1/predict", {"requests": [{"model": "spam", "inputs": FAIR + f"t{i}"} for i in range(3)]}, "too_many_characters"),
        ("/v1/embeddings", {"model": "spam", "input": LONG}, "input_too_long"),
        ("/v1/embeddings", {"model": "spam", "input": [FAIR + f"t{i}" for i in range(3)]}, "too_many_characters"),
    ],
)
def test_characters(small: TestClient, path: str, body: dict[str, Any], code: str) -> None:
    fault = error(small.post(path, json=body), 422, code)
    assert "limit is" in fault["message"]


def test_a_text_that_many_models_read_counts_once(small: TestClient) -> None:
    answer = small.post("/v1/predict", json={"model": ["spam"] * 8, "inputs": FAIR})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (Head(type="tagging", labels=tuple(map(str, range(64)))), {"inputs": ["t1 t2 t3"] * 8}),
        (Head(type="classification", labels=tuple(map(str, range(64)))), {"inputs": ["t1"] * 8}),
        (None, {"inputs": ["t1 t2 t3"] * 8, "output": "hidden"}),
        (
            Head(type="dependency_parsing", labels=tuple(map(str, range(16)))),
            {"inputs": {"input_ids": [1, 2, 3, 4, 5, 6], "word_starts": [1, 2, 3, 4, 5]}},
        ),
    ],
)
def test_numbers_that_are_read(client: TestClient, monkeypatch: pytest.MonkeyPatch, head: Head | None, body: dict[str, Any]) -> None:
    """Labels, words and tokens multiply: what a request would read is counted before it runs."""
    put(client, "wide", tiny.adapter(tiny.KINDS["pfeiffer"], head, 9))
    request = {"model": "wide", "output": "logits"} | body
    answer = client.post("/v1/predict", json=request)
    assert answer.status_code == 200, answer.text
    monkeypatch.setattr(inference, "MAX_VALUES", 300)
    error(client.post("/v1/predict", json=request), 422, "too_many_values")
    client.delete("/v1/adapters/wide")


def test_a_prefix_that_leaves_no_room(client: TestClient) -> None:
    prefix = Prefix(prefix_length=client.app.state.services.publisher.max_tokens, flat=True, shift_positions=True)
    data = tiny.package(Manifest(methods={"prefix": prefix}, head=tiny.classifier("a", "b"), backbone=tiny.SPEC), 1)
    fault = error(client.put("/v1/adapters/greedy", content=data), 422, "unsupported_method")
    assert "leaves none for an input" in fault["message"]

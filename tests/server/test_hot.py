"""Routes of predictions answer the same with and without the framework around them: status, headers and bytes, errors too."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from harness import put
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from adapter_store.manifest import Head
from server.app import create_app
from server.settings import Settings

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def both(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, TestClient]]:
    """The app with hot routes and its slow twin, with the same models."""
    apps = []
    for hot in (True, False):
        store = tmp_path_factory.mktemp("store")
        apps.append(create_app(Settings(backbone=str(backbone), store=str(store), threads=1, device="cpu", max_rows=4), hot=hot))
    with TestClient(apps[0], raise_server_exceptions=False) as fast, TestClient(apps[1], raise_server_exceptions=False) as slow:
        for client in (fast, slow):
            put(client, "spam", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("ham", "spam"), 1), alias="prod")
            put(client, "ner", tiny.adapter(tiny.KINDS["houlsby"], Head(type="tagging", labels=("O", "B-X")), 2))
            put(client, "acme/mood", tiny.adapter(tiny.KINDS["parallel"], tiny.classifier("glad", "sad"), 3))
        yield fast, slow


# Values of times and ids differ from request to request.
VARYING = re.compile(rb'"(tokenization|queue|inference|total)_ms":[0-9.]+')
VARYING_HEADERS = {"x-request-id", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"}


def shown(client: TestClient, path: str, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """An answer without what varies."""
    answer = client.post(path, content=content, headers=headers)
    body = VARYING.sub(b"", answer.content)
    kept = {name: "" if name in VARYING_HEADERS else value for name, value in answer.headers.items()}
    if body != answer.content:
        del kept["content-length"]  # a time has as many digits as it has
    return answer.status_code, kept, body


def same(both: tuple[TestClient, TestClient], path: str, content: bytes, headers: dict[str, str] = JSON) -> tuple[int, bytes]:
    fast, slow = (shown(client, path, content, headers) for client in both)
    assert fast == slow
    return fast[0], fast[2]


ANSWERS: tuple[tuple[str, Any], ...] = (
    ("/v1/predict", {"model": "spam", "inputs": "t1 t2"}),
    ("/v1/predict", {"model": "spam", "inputs": {"text": "t1", "text_pair": "t2 t3"}, "parameters": {"top_k": 1}}),
    ("/v1/predict", {"model": ["spam", "ner"], "inputs": ["t1 t2", "t3"]}),
    ("/v1/predict", {"model": "spam@prod", "inputs": [5, 6, 7], "output": "logits"}),
    ("/v1/predict", {"requests": [{"model": "base", "inputs": "t1", "output": "hidden"}, {"model": "nobody", "inputs": "t1"}]}),
    ("/v1/predict", {"model": "ner", "inputs": "t1 " * 20}),
    ("/v1/predict", {"model": "ner", "inputs": "t1 " * 400, "parameters": {"truncate": True}}),
    ("/v1/predict", {"model": "spam", "inputs": "t1", "parameters": {"top_k": 10**30}}),
    ("/v1/embeddings", {"model": "base", "input": ["t1", "t2 t3"]}),
    ("/v1/embeddings", {"model": "spam", "input": "t1", "encoding_format": "base64", "dimensions": 3}),
    ("/models/spam", {"inputs": "t1"}),
    ("/models/acme/mood", {"inputs": ["t1", "t2"], "parameters": {"function_to_apply": "none"}}),
    ("/models/base", {"inputs": "t1", "normalize": False}),
    ("/models/base", {"inputs": {"source_sentence": "t1", "sentences": ["t2", "t1"]}}),
)

FAULTS: tuple[tuple[str, Any], ...] = (
    ("/v1/predict", {}),
    ("/v1/predict", []),
    ("/v1/predict", None),
    ("/v1/predict", "spam"),
    ("/v1/predict", {"model": "spam"}),
    ("/v1/predict", {"model": "spam", "inputs": "t1", "requests": []}),
    ("/v1/predict", {"model": "spam", "inputs": []}),
    ("/v1/predict", {"model": 5, "inputs": "t1"}),
    ("/v1/predict", {"model": "spam", "inputs": "t1", "other": 1}),
    ("/v1/predict", {"model": "spam", "inputs": "t1", "parameters": {"top_k": 0}}),
    ("/v1/predict", {"model": "spam", "inputs": [2**64]}),
    ("/v1/predict", {"model": "spam", "inputs": {"text": "t1", "nonsense": 1}}),
    ("/v1/predict", {"model": "nobody", "inputs": "t1"}),
    ("/v1/predict", {"model": "spam", "inputs": "t1 " * 400}),
    ("/v1/predict", {"model": "spam", "inputs": ["t1"] * 5}),
    ("/v1/predict", {"requests": [{"model": "spam", "inputs": "t1"}, {"model": "spam", "inputs": "t1", "output": "x"}]}),
    ("/v1/predict", {str(number): 0 for number in range(100)}),
    ("/v1/embeddings", {"model": "base"}),
    ("/v1/embeddings", {"model": "base", "input": []}),
    ("/v1/embeddings", {"model": "base", "input": [["t1"]]}),
    ("/v1/embeddings", {"model": "base", "input": "t1", "dimensions": 10_000}),
    ("/models/spam", {}),
    ("/models/spam", {"inputs": []}),
    ("/models/nobody", {"inputs": "t1"}),
    ("/models/spam", {"inputs": {"source_sentence": "t1", "sentences": ["t2"]}}),
    ("/models/spam", {"inputs": "t1", "parameters": {"adapter_id": "nobody"}}),
)

BODIES: tuple[tuple[bytes, dict[str, str]], ...] = (
    (b"", JSON),
    (b"", {}),
    (b"{", JSON),
    (b'{"model": "spam", "inputs": "t1",}', JSON),
    (b'{"model": "spam" "inputs": "t1"}', JSON),
    (b'{"model": "spam", "inputs": "t1"} x', JSON),
    (b'{"model": "spam", "inputs": "t1", "parameters": {"top_k": NaN}}', JSON),
    (b'{"model": "spam", "inputs": [1, Infinity]}', JSON),
    (b'{"model": "spam", "inputs": [1, 123456789012345678901234567890]}', JSON),
    (b'{"model": "spam", "inputs": [1, 1.0000000000000000000000001]}', JSON),
    (b'{"model": "spam", "inputs": "t1\n"}', JSON),
    (b'{"model": "nobody", "model": "spam", "inputs": "t1"}', JSON),
    (b'\xef\xbb\xbf{"model": "spam", "inputs": "t1"}', JSON),
    (b'{"model": "spam", "inputs": "\xff"}', JSON),
    ('{"model": "spam", "inputs": "t1"}'.encode("utf-16"), JSON),
    (b"[" * 100_000, JSON),
    (b'{"model": "spam", "inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", JSON),
    (b'{"model": "spam", "inputs": "t1"}', {}),
    (b'{"model": "spam", "inputs": "t1"}', {"content-type": ""}),
    (b'{"model": "spam", "inputs": "t1"}', {"content-type": "text/plain"}),
    (b'{"model": "spam", "inputs": "t1"}', {"content-type": "application/x-www-form-urlencoded"}),
    (b'{"model": "spam", "inputs": "t1"}', {"content-type": "application/json; charset=utf-8"}),
    (b'{"model": "spam", "inputs": "t1"}', {"content-type": "Application/JSON"}),
    (b'{"model": "spam", "inputs": "t1"}', {"content-type": "application/vnd.turret+json"}),
    (b'{"model": "spam", "inputs": "t1"}', JSON | {"x-turret-cold": "never"}),
    (b'{"model": "spam", "inputs": "t1"}', JSON | {"x-turret-timeout-ms": "soon"}),
    (b'{"model": "spam", "inputs": "t1"}', JSON | {"x-request-id": "mine"}),
)


@pytest.mark.parametrize(("path", "body"), ANSWERS)
def test_answers(both: tuple[TestClient, TestClient], path: str, body: Any) -> None:
    assert same(both, path, json.dumps(body).encode())[0] == 200


@pytest.mark.parametrize(("path", "body"), FAULTS)
def test_faults(both: tuple[TestClient, TestClient], path: str, body: Any) -> None:
    status, answer = same(both, path, json.dumps(body).encode())
    assert status in (400, 404, 422), answer


@pytest.mark.parametrize(("content", "headers"), BODIES)
def test_bodies(both: tuple[TestClient, TestClient], content: bytes, headers: dict[str, str]) -> None:
    for path in ("/v1/predict", "/v1/embeddings", "/models/spam"):
        assert same(both, path, content, headers)[0] in (200, 400, 422)


def test_half_a_surrogate_pair_is_no_text(client: TestClient) -> None:
    for path, field in (("/v1/predict", "inputs"), ("/v1/embeddings", "input"), ("/models/spam", "inputs")):
        content = b'{"model": "spam", "%s": "\\ud800 t1"}' % field.encode()
        answer = client.post(path, content=content, headers=JSON)
        assert answer.status_code == 400
        assert "half of a surrogate pair" in answer.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["spam", "t1 t2", "logits", "mean"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "text_pair", "question", "top_k"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(["model", "inputs", "input", "parameters", "output", "requests", "dimensions", "normalize", "x"])


@given(
    body=VALUES | st.dictionaries(FIELDS, VALUES, max_size=4),
    sound=st.booleans(),
    path=st.sampled_from(["/v1/predict", "/v1/embeddings", "/models/spam"]),
)
@settings(max_examples=150, deadline=None)
def test_any_body(both: tuple[TestClient, TestClient], body: Any, sound: bool, path: str) -> None:
    if sound and isinstance(body, dict):
        body = {"model": "spam", "input" if "embeddings" in path else "inputs": "t1 t2"} | body
    same(both, path, json.dumps(body).encode())

"""Hugging Face's and OpenAI's conventions over the real app: shapes, names, envelopes."""

import base64
from typing import Any

import numpy as np
import pytest
from harness import MAX_ROWS, error, predict
from starlette.testclient import TestClient

TEXT = "t3 t14 t15 t9"
HIDDEN = 32


def call(client: TestClient, model: str, **body: Any) -> Any:
    answer = client.post(f"/models/{model}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# Hugging Face


def test_classification_is_nested(client: TestClient) -> None:
    (labels,) = call(client, "spam", inputs=TEXT, parameters={"top_k": 2})
    assert [set(entry) for entry in labels] == [{"label", "score"}] * 2
    assert labels == predict(client, model="spam", inputs=TEXT, parameters={"top_k": 2})[0]["output"]
    assert len(call(client, "spam", inputs=[TEXT, "t1"])) == 2
    assert len(call(client, "acme/mood", inputs={"text": "t1", "text_pair": "t2"})[0]) == 2
    assert call(client, "score", inputs=TEXT)[0][0].keys() == {"label", "score"}


def test_token_classification_is_flat_for_one_text(client: TestClient) -> None:
    parameters = {"aggregation_strategy": "none", "ignore_labels": []}
    entities = call(client, "ner", inputs=TEXT, parameters=parameters)
    assert [set(entity) for entity in entities] == [{"entity", "score", "index", "word", "start", "end"}] * 4
    batch = call(client, "ner", inputs=[TEXT, "t1"], parameters=parameters)
    assert [len(row) for row in batch] == [4, 1]
    grouped = call(client, "ner", inputs=TEXT, parameters={"ignore_labels": []})
    assert all(set(entity) == {"entity_group", "score", "word", "start", "end"} for entity in grouped)


def test_feature_extraction(client: TestClient) -> None:
    (one,) = call(client, "vectors", inputs=TEXT)
    assert len(one) == HIDDEN
    two = call(client, "base", inputs=[TEXT, "t1"])
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1, atol=1e-5)
    raw = call(client, "base", inputs=TEXT, normalize=False)
    assert np.linalg.norm(raw) > 1.5
    assert call(client, "lang", inputs="t1 " * 50, truncate=True) == call(client, "lang", inputs="t1 " * 40)


def test_adapter_id_takes_the_models_place(client: TestClient) -> None:
    answer = client.post("/models/base", json={"inputs": TEXT, "parameters": {"adapter_id": "spam@prod"}})
    assert answer.headers["x-turret-model"] == "spam@1"
    assert answer.json() == call(client, "spam@1", inputs=TEXT)


def test_compositions_and_slashes_in_the_path(client: TestClient) -> None:
    for model, shown in (("stack(lang, spam)", "stack(lang@1, spam@2)"), ("acme/mood", "acme/mood@1"), ("acme%2Fmood", "acme/mood@1")):
        answer = client.post(f"/models/{model}", json={"inputs": TEXT})
        assert answer.headers["x-turret-model"] == shown


def test_what_a_model_is(client: TestClient) -> None:
    info = client.get("/models/spam").json()
    assert info == {
        "model_id": "spam@2",
        "digest": client.get("/v1/adapters/spam").json()["versions"][1]["digest"],
        "pipeline_tag": "text-classification",
        "labels": ["ham", "spam", "odd"],
    }
    assert client.get("/models/base").json()["pipeline_tag"] == "feature-extraction"
    assert client.get("/models/acme/mood/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("model", "body", "status", "code"),
    [
        ("nobody", {"inputs": TEXT}, 404, "model_not_found"),
        ("Spam!", {"inputs": TEXT}, 400, "invalid_model"),
        ("spam", {}, 422, "invalid_request"),
        ("spam", {"inputs": []}, 422, "empty_input"),
        ("spam", {"inputs": ["t1"] * (MAX_ROWS + 1)}, 422, "too_many_rows"),
        ("spam", {"inputs": ["t1", ""]}, 422, "empty_input"),
        ("spam", {"inputs": "t1 " * 41}, 422, "input_too_long"),
        ("spam", {"inputs": TEXT, "parameters": {"topk": 1}}, 422, "invalid_request"),
    ],
)
def test_its_errors_are_a_bare_sentence(client: TestClient, model: str, body: dict[str, Any], status: int, code: str) -> None:
    answer = client.post(f"/models/{model}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error", "error_type"}
    assert answer.json()["error_type"] == code
    assert isinstance(answer.json()["error"], str)


def test_health_of_an_unknown_model(client: TestClient) -> None:
    for path in ("/models/nobody", "/models/nobody/health"):
        assert client.get(path).status_code == 404


# OpenAI


def embed(client: TestClient, **body: Any) -> list[Any]:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "list"
    assert [entry["index"] for entry in answer.json()["data"]] == list(range(len(answer.json()["data"])))
    return [entry["embedding"] for entry in answer.json()["data"]]


def test_float_and_base64_are_the_same_numbers(client: TestClient) -> None:
    inputs = [TEXT, "t1 t2"]
    floats = embed(client, model="lang", input=inputs)
    packed = embed(client, model="lang", input=inputs, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(vector), dtype="<f4") for vector in packed]
    np.testing.assert_array_equal(np.array(floats, dtype="<f4"), decoded)
    np.testing.assert_allclose(np.linalg.norm(floats, axis=1), 1, atol=1e-5)


def test_an_embeddings_answer(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", json={"model": "lang", "input": [TEXT, "t1"], "user": "me"}).json()
    assert answer["model"] == "lang@1"
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert set(answer["data"][0]) == {"object", "index", "embedding"}


def test_token_ids(client: TestClient) -> None:
    (words,) = embed(client, model="base", input=TEXT)
    np.testing.assert_allclose(embed(client, model="base", input=[3, 14, 15, 9]), [words], atol=1e-6)
    np.testing.assert_allclose(embed(client, model="base", input=[[3, 14, 15, 9], [1]])[0], words, atol=1e-6)


def test_dimensions_cut_and_scale_again(client: TestClient) -> None:
    (whole,) = embed(client, model="base", input=TEXT)
    (short,) = embed(client, model="base", input=TEXT, dimensions=8)
    np.testing.assert_allclose(short, np.array(whole[:8]) / np.linalg.norm(whole[:8]), atol=1e-6)
    (raw,) = embed(client, model="base", input=TEXT, normalize=False)
    np.testing.assert_allclose(embed(client, model="base", input=TEXT, normalize=False, dimensions=8)[0], raw[:8], atol=1e-6)
    assert embed(client, model="base", input=TEXT, dimensions=HIDDEN) == [whole]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nobody", "input": TEXT}, 404, "model_not_found"),
        ({"model": "base", "input": []}, 422, "empty_input"),
        ({"model": "base", "input": ""}, 422, "empty_input"),
        ({"model": "base", "input": [[]]}, 422, "empty_input"),
        ({"model": "base", "input": [99]}, 422, "invalid_token"),
        ({"model": "base", "input": TEXT, "dimensions": HIDDEN + 1}, 422, "too_many_dimensions"),
        ({"model": "base", "input": TEXT, "dimensions": 0}, 422, "invalid_request"),
        ({"model": "base", "input": TEXT, "encoding_format": "hex"}, 422, "invalid_request"),
        ({"model": "base", "input": ["t1"] * (MAX_ROWS + 1)}, 422, "too_many_rows"),
        ({"model": "base", "input": "t1 " * 41}, 422, "input_too_long"),
        ({"model": "base"}, 422, "invalid_request"),
    ],
)
def test_a_fault_of_embeddings(client: TestClient, body: dict[str, Any], status: int, code: str) -> None:
    error(client.post("/v1/embeddings", json=body), status, code)


def test_models_have_the_backbone_as_parent(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert all(set(entry) == {"id", "object", "created", "owned_by", "root", "parent"} for entry in listed["data"])
    by_id = {entry["id"]: entry for entry in listed["data"]}
    assert (by_id["base"]["parent"], by_id["base"]["root"]) == (None, "tiny-bert")
    assert (by_id["acme/mood"]["parent"], by_id["spam"]["root"]) == ("base", "spam@2")
    assert all(abs(entry["created"] - by_id["base"]["created"]) < 600 for entry in listed["data"])


@pytest.mark.parametrize(
    ("model", "root"), [("base", "tiny-bert"), ("spam", "spam@2"), ("spam@prod", "spam@1"), ("acme/mood", "acme/mood@1")]
)
def test_one_model(client: TestClient, model: str, root: str) -> None:
    assert client.get(f"/v1/models/{model}").json()["root"] == root


def test_a_composition_is_a_model_too(client: TestClient) -> None:
    assert client.get("/v1/models/stack(lang, spam)").json()["id"] == "stack(lang@1, spam@2)"
    error(client.get("/v1/models/nobody"), 404, "model_not_found")

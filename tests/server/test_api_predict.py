"""POST /v1/predict: its four forms, model strings, outputs, and the error of each fault."""

from typing import Any

import numpy as np
import pytest
from harness import MAX_BODY, MAX_ROWS, array, error, predict
from starlette.testclient import TestClient

TEXT = "t3 t14 t15 t9"
WHERE = "/v1/predict"


def scores(result: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in result["output"]}


# The four forms


def test_one_text(client: TestClient) -> None:
    answer = client.post(WHERE, json={"model": "spam", "inputs": TEXT})
    assert set(answer.json()) == {"results", "timing"}
    assert set(answer.json()["timing"]) == {"tokenization_ms", "queue_ms", "inference_ms", "total_ms"}
    (result,) = answer.json()["results"]
    digest = client.get("/v1/adapters/spam").json()["versions"][1]["digest"]
    assert {key: value for key, value in result.items() if key != "output"} == {
        "model": "spam@2",
        "digest": digest,
        "task": "text-classification",
        "usage": {"input_tokens": 4, "truncated": False},
    }
    assert set(scores(result)) == {"ham", "spam", "odd"}
    assert [entry["score"] for entry in result["output"]] == sorted(scores(result).values(), reverse=True)
    assert sum(scores(result).values()) == pytest.approx(1, abs=1e-6)


def test_a_list_is_a_batch(client: TestClient) -> None:
    texts = [TEXT, "t1", "t5 t6 t7"]
    together = predict(client, model="topic", inputs=texts)
    for text, result in zip(texts, together, strict=True):
        (alone,) = predict(client, model="topic", inputs=text)
        assert scores(alone) == pytest.approx(scores(result), abs=1e-6)
        assert alone["usage"] == result["usage"]


def test_fan_out_answers_all_models_of_each_input(client: TestClient) -> None:
    results = predict(client, model=["spam", "lang", "ner"], inputs=[TEXT, "t1"], output="hidden")
    assert [result["model"] for result in results] == ["spam@2", "lang@1", "ner@1"] * 2
    assert [result["output"]["shape"] for result in results] == [[4, 32]] * 3 + [[1, 32]] * 3


def test_mixed_rows(client: TestClient) -> None:
    requests = [
        {"model": "spam", "inputs": TEXT, "parameters": {"top_k": 1}},
        {"model": "base", "inputs": [3, 14, 15, 9], "output": "hidden"},
        {"model": "nobody", "inputs": TEXT},
        {"model": "ner", "inputs": TEXT, "output": "logits"},
        {"model": "lang", "inputs": TEXT},
        {"model": "spam", "inputs": "t1 " * 41},
        {"model": "acme/mood", "inputs": {"text": "t1 t2", "text_pair": "t3"}},
    ]
    answer = client.post(WHERE, json={"requests": requests})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result.get("error", {}).get("code") for result in results] == [
        None,
        None,
        "model_not_found",
        None,
        "no_head",
        "input_too_long",
        None,
    ]
    assert len(results[0]["output"]) == 1
    assert results[1]["task"] == "feature-extraction"
    assert results[1]["digest"] is None
    assert results[2]["model"] == "nobody"
    assert array(results[3]["output"]).shape == (4, 4)
    assert results[6]["usage"]["input_tokens"] == 3
    assert "x-turret-model" not in answer.headers


def test_in_a_batch_the_error_of_a_row_is_its_own(client: TestClient) -> None:
    results = client.post(WHERE, json={"model": "spam", "inputs": ["t1", "", "t2"]}).json()["results"]
    assert ["error" in result for result in results] == [False, True, False]
    assert results[1]["error"]["code"] == "empty_input"


def test_token_ids_are_the_words(client: TestClient) -> None:
    by_words, by_ids = predict(client, model="spam", inputs=TEXT), predict(client, model="spam", inputs=[[3, 14, 15, 9]])
    assert scores(by_words[0]) == pytest.approx(scores(by_ids[0]), abs=1e-6)


# Outputs and parameters


def test_tagging_has_offsets_of_the_text(client: TestClient) -> None:
    text = "t3  t14 t15"
    (result,) = predict(client, model="ner", inputs=text, parameters={"aggregation_strategy": "none", "ignore_labels": []})
    assert result["task"] == "token-classification"
    assert [(e["word"], e["index"], text[e["start"] : e["end"]]) for e in result["output"]] == [
        ("t3", 0, "t3"),
        ("t14", 1, "t14"),
        ("t15", 2, "t15"),
    ]


def test_regression_is_never_squashed(client: TestClient) -> None:
    (decoded,), (logits,) = predict(client, model="score", inputs=TEXT), predict(client, model="score", inputs=TEXT, output="logits")
    assert decoded["output"] == [{"label": "stars", "score": pytest.approx(array(logits["output"])[0])}]


def test_functions_apply_to_the_same_logits(client: TestClient) -> None:
    logits = array(predict(client, model="topic", inputs=TEXT, output="logits")[0]["output"])
    expected = {"none": logits, "sigmoid": 1 / (1 + np.exp(-logits)), "softmax": np.exp(logits) / np.exp(logits).sum()}
    for function, values in expected.items():
        (result,) = predict(client, model="topic", inputs=TEXT, parameters={"function_to_apply": function})
        assert scores(result) == pytest.approx(dict(zip("ab", values.tolist(), strict=True)), abs=1e-5)
    (result,) = predict(client, model="topic", inputs=TEXT)
    assert scores(result) == pytest.approx(dict(zip("ab", expected["sigmoid"].tolist(), strict=True)), abs=1e-5)


def test_embedding_output_and_embedding_heads(client: TestClient) -> None:
    (hidden,) = predict(client, model="vectors", inputs=TEXT, output="hidden")
    (vector,) = predict(client, model="vectors", inputs=TEXT)
    first = array(hidden["output"])[0]
    np.testing.assert_allclose(vector["output"], first / np.linalg.norm(first), atol=1e-5)
    (mean,) = predict(client, model="lang", inputs=TEXT, output="embedding", parameters={"normalize": False})
    tokens = array(predict(client, model="lang", inputs=TEXT, output="hidden")[0]["output"])
    np.testing.assert_allclose(mean["output"], tokens.mean(axis=0), atol=1e-5)


# Model strings


@pytest.mark.parametrize(
    ("model", "answered"),
    [
        ("spam", "spam@2"),
        ("spam@1", "spam@1"),
        ("spam@prod", "spam@1"),
        ("spam@latest", "spam@2"),
        ("acme/mood", "acme/mood@1"),
        ("stack(lang, spam)", "stack(lang@1, spam@2)"),
        ("stack( lang , stack(topic, spam@prod) )", "stack(lang@1, topic@1, spam@1)"),
        ("lang#spam@1", "lang@1#spam@1"),
        ("base#acme/mood", "base#acme/mood@1"),
        ("stack(spam, lang)#topic", "stack(spam@2, lang@1)#topic@1"),
    ],
)
def test_a_model_string(client: TestClient, model: str, answered: str) -> None:
    answer = client.post(WHERE, json={"model": model, "inputs": TEXT})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["model"] == answered
    assert answer.headers["x-turret-model"] == answered


def test_by_digest(client: TestClient) -> None:
    digest = client.get("/v1/adapters/spam").json()["versions"][0]["digest"]
    answer = client.post(WHERE, json={"model": f"spam@{digest}", "inputs": TEXT})
    assert answer.json()["results"][0]["model"] == "spam@1"
    assert answer.headers["x-turret-digest"] == digest
    error(client.post(WHERE, json={"model": "spam@sha256:" + "0" * 64, "inputs": TEXT}), 404, "model_not_found")


def test_a_stack_is_neither_of_its_members(client: TestClient) -> None:
    models = ["lang#spam", "spam", "stack(lang, spam)", "stack(spam, lang)"]
    outputs = [array(result["output"]) for result in predict(client, model=models, inputs=TEXT, output="logits")]
    assert all(np.abs(one - other).max() > 1e-3 for i, one in enumerate(outputs) for other in outputs[:i])


# Faults


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nobody", "inputs": TEXT}, 404, "model_not_found"),
        ({"model": "spam@9", "inputs": TEXT}, 404, "model_not_found"),
        ({"model": "spam@staging", "inputs": TEXT}, 404, "model_not_found"),
        ({"model": "lang#nobody", "inputs": TEXT}, 404, "model_not_found"),
        ({"model": "Spam!", "inputs": TEXT}, 400, "invalid_model"),
        ({"model": "stack(spam", "inputs": TEXT}, 400, "invalid_model"),
        ({"model": "", "inputs": TEXT}, 400, "invalid_model"),
        ({"model": "fuse[spam](topic, lang)", "inputs": TEXT}, 422, "unsupported_method"),
        ({"model": "stack(lang, fuse[spam](topic, spam))", "inputs": TEXT}, 422, "unsupported_method"),
        ({"model": "lang", "inputs": TEXT}, 400, "no_head"),
        ({"model": "base", "inputs": TEXT}, 400, "no_head"),
        ({"model": "spam#lang", "inputs": TEXT}, 400, "no_head"),
        ({"model": "vectors", "inputs": TEXT, "output": "logits"}, 400, "no_logits"),
        ({"model": "ner", "inputs": [1, 2]}, 400, "no_text"),
        ({"model": "spam", "inputs": ""}, 422, "empty_input"),
        ({"model": "spam", "inputs": [1, 60]}, 422, "invalid_token"),
        ({"model": "spam", "inputs": [-1]}, 422, "invalid_token"),
        ({"model": "spam", "inputs": "t1 " * 41}, 422, "input_too_long"),
        ({"model": "spam", "inputs": [1] * 41}, 422, "input_too_long"),
        ({"model": "spam", "inputs": ["t1"] * (MAX_ROWS + 1)}, 422, "too_many_rows"),
        ({"model": ["spam", "topic"], "inputs": ["t1"] * MAX_ROWS}, 422, "too_many_rows"),
        ({"model": "spam", "inputs": TEXT, "colour": "red"}, 422, "invalid_request"),
        ({"model": "spam", "inputs": TEXT, "parameters": {"top_k": 0}}, 422, "invalid_request"),
        ({"model": "spam", "inputs": TEXT, "parameters": {"topk": 1}}, 422, "invalid_request"),
        ({"model": "spam", "inputs": TEXT, "output": "attention"}, 422, "invalid_request"),
        ({"model": "spam", "inputs": []}, 422, "invalid_request"),
        ({"model": "spam", "inputs": 3}, 422, "invalid_request"),
        ({"model": "spam"}, 422, "invalid_request"),
        ({"requests": []}, 422, "invalid_request"),
        ({"requests": [{"model": "spam"}]}, 422, "invalid_request"),
        ({"model": "spam", "inputs": TEXT, "requests": []}, 422, "invalid_request"),
        ({}, 422, "invalid_request"),
        ([], 422, "invalid_request"),
    ],
)
def test_a_fault(client: TestClient, body: Any, status: int, code: str) -> None:
    error(client.post(WHERE, json=body), status, code)


def test_the_sentence_names_the_field_and_the_limit(client: TestClient) -> None:
    fault = error(client.post(WHERE, json={"model": "spam", "inputs": TEXT, "colour": "red"}), 422, "invalid_request")
    assert fault["param"] == "colour"
    fault = error(client.post(WHERE, json={"model": "spam", "inputs": "t1 " * 50}), 422, "input_too_long")
    assert "50 tokens" in fault["message"]
    assert "the limit is 40" in fault["message"]
    fault = error(client.post(WHERE, json={"model": "spam", "inputs": ["t1"] * (MAX_ROWS + 1)}), 422, "too_many_rows")
    assert f"the limit is {MAX_ROWS}" in fault["message"]


def test_truncated_if_asked_and_said(client: TestClient) -> None:
    parameters = {"truncate": True}
    (long,) = predict(client, model="spam", inputs="t1 " * 50, parameters=parameters)
    assert long["usage"] == {"input_tokens": 40, "truncated": True}
    (exact,) = predict(client, model="spam", inputs="t1 " * 40, parameters=parameters)
    assert exact["usage"] == {"input_tokens": 40, "truncated": False}
    assert scores(long) == pytest.approx(scores(exact), abs=1e-6)
    (ids,) = predict(client, model="spam", inputs=[[1] * 50], parameters=parameters)
    assert ids["usage"] == {"input_tokens": 40, "truncated": True}


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe", b"nonsense", b'{"model": "spam", "inputs": NaN'])
def test_what_is_no_json(client: TestClient, body: bytes) -> None:
    answer = client.post(WHERE, content=body, headers={"content-type": "application/json"})
    if body:
        error(answer, 400, "invalid_json")
    else:
        assert "content-type: application/json" in error(answer, 422, "invalid_request")["message"]


def test_json_that_is_sent_as_something_else(client: TestClient) -> None:
    answer = client.post(WHERE, content=b'{"model": "spam", "inputs": "t1"}', headers={"content-type": "application/x-www-form-urlencoded"})
    assert "content-type: application/json" in error(answer, 422, "invalid_request")["message"]


def test_an_unknown_field_is_named(client: TestClient) -> None:
    fault = error(client.post(WHERE, json={"model": "spam", "input": TEXT}), 422, "invalid_request")
    assert fault["message"] == "input: there is no field of this name"


def test_a_body_that_is_too_large(client: TestClient) -> None:
    fault = error(client.post(WHERE, content=b" " * (MAX_BODY + 1)), 413, "body_too_large")
    assert str(MAX_BODY) in fault["message"]
    chunks = (b" " * 1000 for _ in range(MAX_BODY // 1000 + 1))
    error(client.post(WHERE, content=chunks, headers={"content-type": "application/json"}), 413, "body_too_large")

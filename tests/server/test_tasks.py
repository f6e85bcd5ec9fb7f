"""Tasks beyond labels, through HTTP: question answering over long contexts, choices, fill-mask, parsing, encoder-decoders, similarity."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from backbones import save_backbone
from harness import array, error, predict, put, serving
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck

LABELS = ("a", "b", "c")
HEADS = {
    "squad": Head(type="question_answering"),
    "copa": Head(type="multiple_choice", layers=2, activation="tanh"),
    "mlm": Head(type="masked_lm", layers=2, activation="gelu", norm=True, vocab_size=tiny.VOCABULARY),
    "parse": Head(type="dependency_parsing", labels=LABELS),
    "topic": Head(type="classification", labels=LABELS),
}


def save_tokenizer(folder: Path) -> None:
    """The words t0 to t59, some of which are [CLS] before a text, [SEP] behind it, and [MASK]."""
    words = {f"t{i}": i for i in range(tiny.VOCABULARY)}
    for special, word in (("[CLS]", "t2"), ("[SEP]", "t3"), ("[MASK]", "t7")):
        words[special] = words.pop(word)
    tokenizer = Tokenizer(WordLevel(words, unk_token="t1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", "[MASK]"])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("tasks")
    save_tokenizer(tiny.save_backbone(folder / "backbone"))
    with serving(folder / "backbone", folder / "store", max_rows=40) as client:
        for seed, (name, head) in enumerate(HEADS.items()):
            put(client, name, tiny.adapter(tiny.KINDS["houlsby"], head, seed))
        yield client


def context(count: int) -> str:
    return " ".join(f"t{10 + i % 47}" for i in range(count))


def test_an_answer_points_into_its_context(client: TestClient) -> None:
    inputs = {"question": "t11 t12", "context": context(20)}
    (result,) = predict(client, model="squad", inputs=inputs, parameters={"top_k": 3, "max_answer_len": 4})
    assert result["task"] == "question-answering"
    answers = result["output"]
    assert len(answers) == 3
    assert answers == sorted(answers, key=lambda answer: -answer["score"])
    for answer in answers:
        assert inputs["context"][answer["start"] : answer["end"]] == answer["answer"]
        assert 1 <= len(answer["answer"].split()) <= 4
        assert 0 <= answer["score"] <= 1


def test_the_best_answer_is_the_best_span_of_the_raw_numbers(client: TestClient) -> None:
    """Worked out anew from the logits: softmax over the first token and the context, p(start) p(end), at most max_answer_len tokens."""
    inputs = {"question": "t11 t12", "context": context(15)}
    raw = predict(client, model="squad", inputs=inputs, output="logits")[0]["output"]
    start, end = (array(raw[name])[[0, *range(4, 19)]] for name in ("start", "end"))
    p, q = ((np.exp(x) / np.exp(x).sum())[1:] for x in (start, end))
    best = max((p[i] * q[j], i, j) for i in range(15) for j in range(i, min(15, i + 15)))
    (result,) = predict(client, model="squad", inputs=inputs)
    assert result["output"]["score"] == pytest.approx(best[0], abs=1e-5)
    assert result["output"]["answer"] == " ".join(inputs["context"].split()[best[1] : best[2] + 1])


def test_long_contexts_are_read_in_windows(client: TestClient) -> None:
    """Where windows share no words, the best answer is the best of the windows by themselves; elsewhere equal answers add up."""
    words = context(44).split()
    parameters = {"max_seq_len": 30, "doc_stride": 0}
    (result,) = predict(client, model="squad", inputs={"question": "t11", "context": " ".join(words)}, parameters=parameters)
    room = 30 - 4
    windows = [words[at : at + room] for at in range(0, 44, room)]
    alone = [predict(client, model="squad", inputs={"question": "t11", "context": " ".join(window)})[0] for window in windows]
    assert result["output"]["score"] == pytest.approx(max(one["output"]["score"] for one in alone), abs=1e-5)
    raw = predict(client, model="squad", inputs={"question": "t11", "context": " ".join(words)}, parameters=parameters, output="logits")
    assert [array(window["start"]).shape for window in raw[0]["output"]] == [(len(window) + 4,) for window in windows]
    for window, words_ in zip(raw[0]["output"], windows, strict=True):
        assert [" ".join(words)[a:b] for a, b in filter(None, window["offsets"])] == words_
    assert result["usage"]["input_tokens"] == 44 + 2 * 4
    overlapping = {"max_seq_len": 30, "doc_stride": 10}
    (shared,) = predict(client, model="squad", inputs={"question": "t11", "context": " ".join(words)}, parameters=overlapping)
    assert " ".join(words)[shared["output"]["start"] : shared["output"]["end"]] == shared["output"]["answer"]


def test_an_answer_may_be_impossible(client: TestClient) -> None:
    inputs = {"question": "t11", "context": context(8)}
    parameters = {"top_k": 300, "handle_impossible_answer": True}
    answers = predict(client, model="squad", inputs=inputs, parameters=parameters)[0]["output"]
    assert [answer for answer in answers if answer["answer"] == ""]


def test_the_hub_convention_answers_questions(client: TestClient) -> None:
    inputs = {"question": "t11 t12", "context": context(20)}
    one = client.post("/models/squad", json={"inputs": inputs}).json()
    assert set(one) == {"score", "start", "end", "answer"}
    assert len(client.post("/models/squad", json={"inputs": inputs, "parameters": {"top_k": 2}}).json()) == 2


def test_choices(client: TestClient) -> None:
    inputs = {"text": "t11 t12", "choices": ["t13", "t14 t15", "t16"]}
    (result,) = predict(client, model="copa", inputs=inputs)
    assert sorted(choice["index"] for choice in result["output"]) == [0, 1, 2]
    assert sum(choice["score"] for choice in result["output"]) == pytest.approx(1.0)
    raw = array(predict(client, model="copa", inputs=inputs, output="logits")[0]["output"])
    alone = [
        array(predict(client, model="copa", inputs={"text": "t11 t12", "text_pair": choice}, output="logits")[0]["output"])[0]
        for choice in inputs["choices"]
    ]
    np.testing.assert_allclose(raw, alone, atol=1e-5)
    assert result["output"][0]["label"] == inputs["choices"][int(raw.argmax())]


def test_fill_mask(client: TestClient) -> None:
    (result,) = predict(client, model="mlm", inputs="t11 [MASK] t13", parameters={"top_k": 2})
    best, second = result["output"]
    assert best["score"] >= second["score"]
    assert best["sequence"].split() == ["t11", best["token_str"], "t13"]
    raw = array(predict(client, model="mlm", inputs="t11 [MASK] t13", output="logits")[0]["output"])
    assert raw.shape == (5, tiny.VOCABULARY)
    assert best["token"] == raw[2].argmax()
    several = client.post("/models/mlm", json={"inputs": "[MASK] t11 [MASK]", "parameters": {"targets": ["t20", "t21"]}}).json()
    assert [{answer["token_str"] for answer in one} for one in several] == [{"t20", "t21"}] * 2
    error(client.post("/v1/predict", json={"model": "mlm", "inputs": "t11"}), 422, "no_mask")


def test_dependency_parsing(client: TestClient) -> None:
    (result,) = predict(client, model="parse", inputs="t11 t12 t13")
    assert [word["word"] for word in result["output"]] == ["t11", "t12", "t13"]
    raw = predict(client, model="parse", inputs="t11 t12 t13", output="logits")[0]["output"]
    arcs, relations = array(raw["arcs"]), array(raw["relations"])
    assert (arcs.shape, relations.shape) == ((3, 4), (3, 4, 3))
    for number, word in enumerate(result["output"]):
        assert word["head"] == arcs[number].argmax()
        assert word["relation"] == LABELS[relations[number, word["head"]].argmax()]
    given = predict(client, model="parse", inputs={"input_ids": [2, 11, 12, 13, 3], "word_starts": [1, 2, 4]}, output="logits")
    assert array(given[0]["output"]["arcs"]).shape == (2, 3)
    error(client.post("/v1/predict", json={"model": "parse", "inputs": {"text": "t11", "word_starts": [3, 1]}}), 422, "invalid_words")


def test_similarity(client: TestClient) -> None:
    body = {"inputs": {"source_sentence": "t11 t12", "sentences": ["t11 t12", "t40 t41 t42"]}}
    same, other = client.post("/models/base", json=body).json()
    assert same == pytest.approx(1.0, abs=1e-5)
    assert other < same


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "topic", "inputs": {"question": "t11", "context": "t12"}}, 400, "wrong_task"),
        ({"model": "topic", "inputs": {"choices": ["t11", "t12"]}}, 400, "wrong_task"),
        ({"model": "squad", "inputs": "t11"}, 400, "no_question"),
        ({"model": "copa", "inputs": "t11"}, 400, "no_choices"),
        ({"model": "topic", "inputs": {"text": "t11", "decoder_text": "t12"}}, 400, "no_decoder"),
        ({"model": "topic", "inputs": {"text": "t11", "input_ids": [3]}}, 422, "invalid_request"),
        ({"model": "topic", "inputs": {"text_pair": "t11"}}, 422, "invalid_request"),
        ({"model": "squad", "inputs": {"question": "t11", "context": ""}}, 422, "empty_context"),
        ({"model": "copa", "inputs": {"choices": []}}, 422, "invalid_request"),
        ({"model": "copa", "inputs": {"choices": ["t11"] * 41}}, 422, "too_many_rows"),
        ({"model": "topic", "inputs": "t11", "parameters": {"explain": True}}, 400, "no_fusion"),
        ({"model": "squad", "inputs": {"question": "t11", "context": "t12"}, "output": "hidden"}, 400, "wrong_task"),
        ({"model": "squad", "inputs": {"choices": ["t11", "t12"]}, "output": "logits"}, 400, "wrong_task"),
        ({"model": "squad", "inputs": {"question": "", "context": "t12"}}, 422, "empty_input"),
        ({"model": "squad", "inputs": {"question": "t11", "context": "t12 " * 2000}}, 422, "too_many_rows"),
        ({"model": "squad", "inputs": [{"question": "t11", "context": "t12 " * 400}] * 3}, 422, "too_many_rows"),
        (
            {"model": "squad", "inputs": {"question": "t11", "context": "t12 " * 50}, "parameters": {"doc_stride": 36}},
            422,
            "window_too_small",
        ),
        ({"model": "mlm", "inputs": "[MASK] " * 38, "parameters": {"top_k": None, "targets": ["t20"] * 200}}, 422, "too_many_answers"),
        ({"model": "squad", "inputs": {"question": "t11", "context": "t12"}, "parameters": {"top_k": 1001}}, 422, "too_many_answers"),
        ({"model": "mlm", "inputs": "[MASK]", "parameters": {"targets": [""]}}, 422, "unknown_target"),
        ({"model": "parse", "inputs": [11, 12]}, 400, "no_words"),
        ({"model": "parse", "inputs": {"input_ids": [11, 12], "word_starts": [0, 3]}}, 422, "invalid_words"),
        ({"model": "parallel(topic, nobody)", "inputs": "t11"}, 404, "model_not_found"),
        ({"model": "parallel(topic, topic)#squad", "inputs": "t11"}, 400, "invalid_model"),
        ({"model": ["topic"] * 1000, "inputs": ["t11"] * 1000}, 422, "too_many_rows"),
        ({"model": f"parallel({', '.join(['topic'] * 30)})", "inputs": ["t11", "t12"]}, 422, "too_many_rows"),
    ],
)
def test_a_fault(client: TestClient, body: dict[str, Any], status: int, code: str) -> None:
    error(client.post("/v1/predict", json=body), status, code)


def test_the_task_of_the_adapter_is_named(client: TestClient) -> None:
    body = {"model": "topic", "inputs": {"question": "t11", "context": "t12"}}
    assert "text-classification" in error(client.post("/v1/predict", json=body), 400, "wrong_task")["message"]
    refused = client.post("/models/topic", json={"inputs": {"source_sentence": "t11", "sentences": ["t12"]}})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "wrong_task")
    assert "text-classification" in refused.json()["error"]
    refused = client.post("/models/squad", json={"inputs": "t11"})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "no_question")


def test_in_a_fan_out_each_task_has_its_own_error(client: TestClient) -> None:
    inputs = {"question": "t11", "context": context(60)}
    answered, refused = client.post("/v1/predict", json={"model": ["squad", "topic"], "inputs": inputs}).json()["results"]
    assert answered["output"]["answer"]
    assert refused["error"]["code"] == "wrong_task"


def test_more_numbers_of_a_vocabulary_than_an_answer_may_hold(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.inference.MAX_VALUES", 10 * tiny.VOCABULARY)
    assert predict(client, model="mlm", inputs=[11] * 10, output="logits")
    error(client.post("/v1/predict", json={"model": "mlm", "inputs": [[11] * 5, [11] * 6], "output": "logits"}), 422, "too_many_values")
    masked = "t11 " * 30 + "[MASK]"
    assert predict(client, model="mlm", inputs=masked), "of a mask only its own numbers are read"


def test_a_fault_of_the_decoding_is_its_rows_own(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("server.tasks.words.choose", failing)
    requests = [{"model": "copa", "inputs": {"choices": ["t11", "t12"]}}, {"model": "topic", "inputs": "t11"}]
    failed, answered = client.post("/v1/predict", json={"requests": requests}).json()["results"]
    assert failed["error"]["code"] == "internal_error"
    assert "Zero" not in failed["error"]["message"]
    assert answered["output"]


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("t5")
    save_backbone("t5", folder / "backbone")
    with serving(folder / "backbone", folder / "store") as client:
        spec = Backbone(model_type="t5", hidden_size=24, num_layers=4, decoder_layers=2)
        adapter = {"bottleneck": Bottleneck(reduction_factor=4)}
        heads = {
            "sum": Head(type="seq2seq_lm", layers=0),
            "topic": Head(type="classification", labels=LABELS),
            "copa": Head(type="multiple_choice"),
            "squad": Head(type="question_answering"),
        }
        for name, head in heads.items():
            put(client, name, tiny.package(Manifest(methods=adapter, head=head, backbone=spec), seed=1))
        yield client


def test_an_encoder_decoder(encoder_decoder: TestClient) -> None:
    client = encoder_decoder
    text, decoder = "t11 t12 t13", "t20 t21"
    forced = array(predict(client, model="sum", inputs={"text": text, "decoder_text": decoder}, output="logits")[0]["output"])
    assert forced.shape == (3, 60), "the start token and two words"
    given = {"input_ids": [11, 12, 13], "decoder_input_ids": [0, 20, 21]}
    np.testing.assert_allclose(array(predict(client, model="sum", inputs=given, output="logits")[0]["output"]), forced, atol=1e-5)
    started = {"text": text, "decoder_text": f"t0 {decoder}"}
    np.testing.assert_allclose(array(predict(client, model="sum", inputs=started, output="logits")[0]["output"]), forced, atol=1e-5)
    assert array(predict(client, model="sum", inputs=text, output="logits")[0]["output"]).shape == (1, 60)
    assert array(predict(client, model="sum", inputs=text, output="hidden")[0]["output"]).shape == (3, 24)
    hidden, encoded = (
        array(predict(client, model="sum", inputs=given, output=output)[0]["output"]) for output in ("hidden", "encoder_hidden")
    )
    assert hidden.shape == encoded.shape == (3, 24)
    assert np.abs(hidden - encoded).max() > 1e-2
    error(client.post("/v1/predict", json={"model": "sum", "inputs": text}), 400, "no_generation")


def test_an_encoder_decoder_classifies_at_its_end_token(encoder_decoder: TestClient) -> None:
    (result,) = predict(encoder_decoder, model="topic", inputs=[11, 12, 1])
    assert {answer["label"] for answer in result["output"]} == set(LABELS)
    error(encoder_decoder.post("/v1/predict", json={"model": "topic", "inputs": [11, 12]}), 422, "no_end_token")


def test_prompts_and_shifted_prefixes_take_tokens_of_the_limit(client: TestClient) -> None:
    """The backbone has 40 positions; an adapter that takes 5 of them leaves 35."""
    put(client, "shifted", tiny.package(Manifest(methods=tiny.OTHERS["prefix_shifted"], head=HEADS["topic"], backbone=tiny.SPEC), seed=1))
    assert predict(client, model="shifted", inputs=[11] * 35)
    refused = error(client.post("/v1/predict", json={"model": "shifted", "inputs": [11] * 36}), 422, "input_too_long")
    assert "35" in refused["message"]
    assert predict(client, model="topic", inputs=[11] * 40)
    assert json.loads(json.dumps(predict(client, model="shifted", inputs=[11] * 36, parameters={"truncate": True})[0]["usage"]))[
        "truncated"
    ]


def test_each_row_of_an_encoder_decoder_has_its_own_decoder(encoder_decoder: TestClient) -> None:
    """Choices and windows are read by the decoder too, each behind its own tokens."""
    choices = [[11, 12, 1], [20, 21, 22, 23, 1], [30, 1]]
    together = array(predict(encoder_decoder, model="copa", inputs={"choices": choices}, output="logits")[0]["output"])
    alone = [array(predict(encoder_decoder, model="copa", inputs=choice, output="logits")[0]["output"])[0] for choice in choices]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together) > 1e-3
    inputs = {"question": "t11", "context": "t20 t21 t22 t23 t24 t25 t26 t27 t28 t29 t30 t31"}
    parameters = {"max_seq_len": 8, "doc_stride": 2}
    windows = predict(encoder_decoder, model="squad", inputs=inputs, parameters=parameters, output="logits")[0]["output"]
    assert len(windows) == 2
    first = predict(encoder_decoder, model="squad", inputs=[11, *range(20, 27)], output="logits")[0]["output"]
    np.testing.assert_allclose(array(windows[0]["start"]), array(first["start"]), atol=1e-5)


def test_a_decoder_that_ends_before_the_input_does(encoder_decoder: TestClient) -> None:
    short = {"input_ids": [11, 12, 13, 1], "decoder_input_ids": [0, 11]}
    fault = error(encoder_decoder.post("/v1/predict", json={"model": "topic", "inputs": short}), 422, "decoder_too_short")
    assert "token 4" in fault["message"]
    shifted = {"input_ids": [11, 12, 13, 1], "decoder_input_ids": [0, 11, 12, 13]}
    given, plain = (
        array(predict(encoder_decoder, model="topic", inputs=one, output="logits")[0]["output"]) for one in (shifted, [11, 12, 13, 1])
    )
    np.testing.assert_allclose(given, plain, atol=1e-6)

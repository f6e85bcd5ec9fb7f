"""Question answering against what transformers 4's pipeline made of the same numbers (tests/oracles/question_answering.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import WORDS, tokenizers, word_pieces
from tokenizers import Tokenizer

from server.errors import ApiError
from server.tasks.encode import Encoded, Encoder, WindowRules
from server.tasks.spans import SpanRules, answers

CASES = json.loads((Path(__file__).parents[1] / "oracles" / "question_answering.json").read_text())
TOKENIZERS = tokenizers()
LIMIT = 48


def windows(encoder: Encoder, question: str, context: str, rules: WindowRules) -> list[Encoded]:
    encoded = encoder.windows(question, context, rules)
    assert isinstance(encoded, list), encoded
    return encoded


def rules_of(parameters: dict[str, Any]) -> SpanRules:
    given = (parameters[name] for name in ("top_k", "max_answer_len", "handle_impossible_answer", "align_to_words"))
    return SpanRules(*given)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_answers_are_those_of_transformers_4(number: int) -> None:
    case = CASES[number]
    parameters = case["parameters"]
    encoder = Encoder(TOKENIZERS[case["tokenizer"]], LIMIT)
    cut = WindowRules(parameters.get("max_seq_len", LIMIT), parameters.get("doc_stride"))
    encoded = windows(encoder, case["question"], case["context"], cut)
    assert [window.input_ids.tolist() for window in encoded] == [window["input_ids"] for window in case["windows"]]
    outputs = [{name: np.array(window[name], dtype=np.float32) for name in ("start", "end")} for window in case["windows"]]
    found = answers(encoded, outputs, case["context"], rules_of(parameters))
    assert [answer["score"] for answer in found] == pytest.approx([answer["score"] for answer in case["answers"]], abs=1e-6)
    assert [[answer[key] for key in ("start", "end", "answer")] for answer in found] == [
        [answer[key] for key in ("start", "end", "answer")] for answer in case["answers"]
    ]


def test_the_cases_are_of_all_kinds() -> None:
    assert {case["tokenizer"] for case in CASES} == set(TOKENIZERS)
    assert {len(case["windows"]) > 1 for case in CASES} == {True, False}
    assert any(answer["answer"] == "" for case in CASES for answer in case["answers"])


@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=40),
    asked=st.lists(st.sampled_from(WORDS[:3]), min_size=1, max_size=2),
    limit=st.integers(40, 70),
    stride=st.integers(0, 8),
    kind=st.sampled_from(sorted(TOKENIZERS)),
)
@settings(deadline=None, max_examples=60)
def test_windows_are_the_tokenizers_own_truncation(words: list[str], asked: list[str], limit: int, stride: int, kind: str) -> None:
    question, context = " ".join(asked), " ".join(words)
    cutting = Tokenizer.from_str(TOKENIZERS[kind].to_str())
    cutting.enable_truncation(limit, stride=stride, strategy="only_second")
    first = cutting.encode(question, context)
    ours = windows(Encoder(TOKENIZERS[kind], 512), question, context, WindowRules(limit, stride))
    for window, theirs in zip(ours, (first, *first.overflowing), strict=True):
        assert window.encoding is not None
        assert (window.input_ids.tolist(), window.type_ids.tolist()) == (theirs.ids, theirs.type_ids)
        for name in ("tokens", "offsets", "word_ids", "sequence_ids", "special_tokens_mask"):
            assert getattr(window.encoding, name) == getattr(theirs, name), name


def test_a_long_question_is_cut_and_said() -> None:
    encoder = Encoder(TOKENIZERS["wordpiece"], 512)
    (window,) = windows(encoder, "Anna Berlin York", "Anna", WindowRules(max_question_tokens=2))
    assert window.truncated
    assert window.encoding is not None
    assert window.encoding.tokens == ["[CLS]", "Anna", "Berlin", "[SEP]", "Anna", "[SEP]"]


@pytest.mark.parametrize(
    ("rules", "context", "code"),
    [
        (WindowRules(20, 17), "Anna " * 40, "window_too_small"),
        (WindowRules(4), "Anna " * 40, "window_too_small"),
        (WindowRules(), "", "empty_context"),
        (WindowRules(), "  ", "empty_context"),
        (WindowRules(20, 3, max_windows=3), "Anna " * 60, "too_many_rows"),
        (WindowRules(384, 383), "Anna " * 2000, "window_too_small"),
    ],
)
def test_a_context_that_is_refused(rules: WindowRules, context: str, code: str) -> None:
    fault = Encoder(word_pieces(), 512).windows("York", context, rules)
    assert isinstance(fault, ApiError)
    assert fault.code == code


def test_a_question_needs_words() -> None:
    fault = Encoder(word_pieces(), 512).windows("", "Anna", WindowRules())
    assert isinstance(fault, ApiError)
    assert fault.code == "empty_input"


def test_the_windows_are_counted_before_they_are_made() -> None:
    encoder = Encoder(word_pieces(), 512)
    for words in (17, 18, 31, 60):
        for stride in (0, 3, 15):
            made = len(windows(encoder, "York", "Anna " * words, WindowRules(20, stride)))
            if made > 1:
                assert isinstance(encoder.windows("York", "Anna " * words, WindowRules(20, stride, max_windows=made - 1)), ApiError)
            windows(encoder, "York", "Anna " * words, WindowRules(20, stride, max_windows=made))

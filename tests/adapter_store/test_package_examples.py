"""Golden examples: what a manifest may hold of them, their canonical bytes, and where an answer differs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from samples import MANIFEST, check_sentence, join, split, tensors

from adapter_store.errors import InvalidPackage
from adapter_store.golden import MAX_EXAMPLES, MAX_JSON_CHARACTERS, MAX_JSON_DEPTH, MAX_JSON_VALUES, Example, differences
from adapter_store.manifest import Manifest
from adapter_store.package import TensorData, open_package, read_package, sentence, write_package

SPAM = [{"label": "spam", "score": 0.91}, {"label": "ham", "score": 0.09}]
PUBLISHED = sorted((Path(__file__).parents[2] / "examples/adapters").glob("*.safetensors"))
EXAMPLE = Example(inputs="free cash!!", parameters={"top_k": 2}, expected=SPAM)


def with_examples(*examples: Example) -> Manifest:
    return MANIFEST.model_copy(update={"examples": examples})


# In the manifest


def test_a_package_carries_its_examples() -> None:
    manifest = with_examples(EXAMPLE, Example(inputs=[3, 4], output="logits", expected={"data": [1, 2.5]}, tolerance=0.01))
    read = read_package(write_package(manifest, tensors())).manifest
    assert read == manifest
    assert read.examples[0].tolerance == 1e-3
    assert read.examples[1].output == "logits"


def test_digests_of_packages_without_examples_are_what_they_were() -> None:
    zeros = {name: TensorData("F32", shape, bytes(4 * math.prod(shape))) for name, shape in MANIFEST.tensors().items()}
    digest = read_package(write_package(MANIFEST, zeros)).digest
    assert digest == "sha256:77a31c4078c1c7e098a139433d8ce7162c456ee0e905037fc85a0d878c3476fd"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "examples/adapters").glob("*.safetensors")), ids=lambda path: path.stem
)
def test_published_packages_write_back_to_the_same_bytes(path: Any) -> None:
    package, data = open_package(path), path.read_bytes()
    contents = {name: TensorData(info.dtype, info.shape, data[info.start : info.end]) for name, info in package.tensors.items()}
    assert write_package(package.manifest, contents) == data


def test_what_is_as_it_is_by_default_is_not_written() -> None:
    assert "examples" not in MANIFEST.to_json()
    (written,) = json.loads(with_examples(Example(inputs="a", expected=None)).to_json())["examples"]
    assert written == {"inputs": "a", "expected": None}


numbers = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False, allow_infinity=False))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(json_values, st.dictionaries(st.text(max_size=4), json_values, max_size=3), json_values)
def test_canonical_json_reads_back_to_equal_bytes(inputs: Any, parameters: dict[str, Any], expected: Any) -> None:
    manifest = with_examples(Example(inputs=inputs, parameters=parameters, expected=expected))
    text = manifest.to_json()
    read = Manifest.model_validate(json.loads(text))
    assert read == manifest
    assert read.to_json() == text
    assert differences(expected, read.examples[0].expected, 1e-9) is None


def test_the_order_of_keys_does_not_change_the_bytes() -> None:
    one, two = ({"question": "q", "context": "c"}, {"context": "c", "question": "q"})
    assert with_examples(Example(inputs=one, expected=1)).to_json() == with_examples(Example(inputs=two, expected=1)).to_json()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (nested(MAX_JSON_DEPTH + 1), "nested"),
        ([0] * MAX_JSON_VALUES, "values"),
        ("x" * (MAX_JSON_CHARACTERS + 1), "characters"),
        ({"x" * (MAX_JSON_CHARACTERS + 1): 1}, "characters"),
        (["x" * (1 << 17)] * 3, "characters"),
        (math.nan, "finite"),
        ([math.inf], "finite"),
        (1 << 63, "64 bits"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({1: 2}, "no text"),
        (b"bytes", "bytes"),
        (np.zeros(2), "ndarray"),
    ],
    ids=["depth", "values", "characters", "key", "texts", "nan", "infinity", "wide", "surrogate", "key surrogate", "key", "bytes", "array"],
)
@pytest.mark.parametrize("field", ["inputs", "parameters", "expected"])
def test_unbounded_values_are_refused(field: str, value: Any, words: str) -> None:
    fields = {"inputs": "a", "expected": 1} | {field: {"x": value} if field == "parameters" else value}
    with pytest.raises(ValidationError, match=words) as caught:
        Example.model_validate(fields)
    assert "\n" not in sentence(caught.value)


def test_values_at_the_bounds_are_taken() -> None:
    for value in (nested(MAX_JSON_DEPTH), [0] * (MAX_JSON_VALUES - 1), "x" * MAX_JSON_CHARACTERS, (1 << 63) - 1, -(1 << 63), "😀"):
        assert Example(inputs=value, expected=value).inputs == value


@pytest.mark.parametrize("change", [{"tolerance": 0}, {"tolerance": math.inf}, {"output": "tokens"}, {"parameters": []}, {"more": 1}])
def test_unsound_examples(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate({"inputs": "a", "expected": 1} | change)


def test_more_examples_than_are_allowed() -> None:
    fields = json.loads(MANIFEST.to_json()) | {"examples": [{"inputs": "a", "expected": 1}] * (MAX_EXAMPLES + 1)}
    with pytest.raises(ValidationError, match="examples"):
        Manifest.model_validate(fields)


def test_numbers_that_json_reads_as_infinity_are_refused() -> None:
    header, body = split(write_package(with_examples(Example(inputs="a", expected=1.25)), tensors()))
    header["__metadata__"]["turret"] = header["__metadata__"]["turret"].replace("1.25", "1e999")
    with pytest.raises(InvalidPackage, match="too large"):
        read_package(join(header, body))


# Differences


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (1, 1),
        (1, 1.0005),
        (0.5, np.float32(0.5003)),
        ("a", "a"),
        (None, None),
        (True, True),
        ([], []),
        ([1, [2]], (1, (2.0,))),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], dtype=np.float32)),
        (np.ones(2), [1.0, 1.0]),
        ({}, {"more": 1}),
        ({"a": {"b": [1]}}, {"a": {"b": [1], "c": 2}, "d": 3}),
        (SPAM, [dict(reversed(one.items())) for one in SPAM]),
    ],
)
def test_no_difference(expected: Any, answer: Any) -> None:
    assert differences(expected, answer, 1e-3) is None


@pytest.mark.parametrize(
    ("expected", "answer", "told"),
    [
        (1, 1.0011, "expected is 1 and the answer has 1.0011, more than 0.001 away"),
        (1.0, math.nan, "expected is 1 and the answer has nan, more than 0.001 away"),
        (0, -math.inf, "expected is 0 and the answer has -inf, more than 0.001 away"),
        ("spam", "ham", "expected is 'spam' and the answer has 'ham'"),
        ("1", 1, "expected is '1' and the answer has 1"),
        (True, 1, "expected is true and the answer has 1"),
        (1, True, "expected is 1 and the answer has true"),
        (False, None, "expected is false and the answer has null"),
        (None, 0, "expected is null and the answer has 0"),
        ([], {}, "expected is a list and the answer has an object"),
        ({}, None, "expected is an object and the answer has null"),
        ([1, 2], [1], "expected is a list of 2 and the answer has one of 1"),
        ([1], np.zeros(2), "expected is a list of 1 and the answer has one of 2"),
        ([{"label": "spam"}], [{"label": "ham"}], "expected[0].label is 'spam' and the answer has 'ham'"),
        ({"data": [[0, 1]]}, {"data": np.zeros((1, 2))}, "expected.data[0][1] is 1 and the answer has 0, more than 0.001 away"),
        ({"a": 1}, {}, "expected.a is 1 and the answer has no such key"),
        ({"a b\n": [1]}, {}, "expected['a b\\n'] is a list and the answer has no such key"),
    ],
)
def test_where_an_answer_differs(expected: Any, answer: Any, told: str) -> None:
    assert differences(expected, answer, 1e-3) == told


def test_sentences_stay_short() -> None:
    expected: Any = "x" * 10_000
    answer: Any = "y\n" * 10_000
    for _ in range(MAX_JSON_DEPTH):
        key = "k" * 10_000
        expected, answer = {key: [expected]}, {key: [answer]}
    told = differences(expected, answer, 1e-3)
    assert told is not None
    check_sentence(ValueError(told))
    assert len(told) < 500


@settings(max_examples=200, deadline=None)
@given(json_values, json_values)
def test_any_two_values_compare(one: Any, other: Any) -> None:
    told = differences(one, other, 1e-9)
    assert told is None or "\n" not in told
    assert differences(one, one, 1e-9) is None

"""What an input may be on the wire, and the sentence that each fault of one gets; how texts are cut."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import WORDS, tokenizers, word_pieces
from tokenizers import Tokenizer

from server.errors import ApiError
from server.tasks.encode import INLINE, Encoded, Encoder, Text
from server.tasks.inputs import source, sources
from server.tasks.rows import Source

TOKENIZERS = tokenizers()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", Source("a")),
        ([1, 2], Source(token_ids=(1, 2))),
        ({"text": "a"}, Source("a")),
        ({"text": "a", "text_pair": "b"}, Source("a", "b")),
        ({"input_ids": [1], "word_starts": [0, 1]}, Source(token_ids=(1,), word_starts=(0, 1))),
        ({"text": "a", "decoder_text": "b"}, Source("a", decoder_text="b")),
        ({"input_ids": [1], "decoder_input_ids": [0, 2]}, Source(token_ids=(1,), decoder_ids=(0, 2))),
        ({"question": "a", "context": "b"}, Source(question="a", context="b")),
        ({"text": "a", "choices": ["b", "c"]}, Source("a", choices=("b", "c"))),
        ({"choices": [[1, 2], [3]]}, Source(choices=((1, 2), (3,)))),
    ],
)
def test_an_input(value: Any, expected: Source) -> None:
    assert source(value) == expected
    assert sources([value, value]) == [expected, expected]


@pytest.mark.parametrize(
    ("value", "param", "sentence"),
    [
        (3, "inputs", "'inputs' must be a text, token ids or an object, not a number."),
        (None, "inputs", "'inputs' must be a text, token ids or an object, not null."),
        ([1, "a"], "inputs", "'inputs' must be one input: a list stands for token ids and holds integers only."),
        ([True], "inputs[0]", "'inputs[0]' must be a text, token ids or an object, not a truth value."),
        (["a", {"text": 1}], "inputs[1].text", "'inputs[1].text': Input should be a valid string."),
        ({}, "inputs", "'inputs' needs either 'text' or 'input_ids'."),
        ({"text": "a", "input_ids": [1]}, "inputs", "'inputs' needs either 'text' or 'input_ids'."),
        ({"input_ids": [1], "text_pair": "a"}, "inputs", "'inputs' has a 'text_pair', which goes with a 'text' only."),
        ({"text": "a", "colour": 1}, "inputs.colour", "'inputs' has no field 'colour': it may have text, "),
        ({"input_ids": [1, 1.5]}, "inputs.input_ids[1]", "'inputs.input_ids[1]': Input should be a valid integer."),
        ({"question": "a"}, "inputs.context", "'inputs' needs 'context'."),
        ({"question": "a", "context": "b", "text": "c"}, "inputs.text", "'inputs' has no field 'text': it may have question, context."),
        ({"choices": []}, "inputs", "'inputs' needs at least one choice."),
        ({"choices": "ab"}, "inputs", "'inputs' needs 'choices' that are a list of texts, or of lists of token ids."),
        ({"choices": ["a", [1]]}, "inputs", "'inputs' needs 'choices' that are a list of texts, or of lists of token ids."),
        ({"choices": [[1], []]}, "inputs", "'inputs' needs 'choices' that are a list of texts, or of lists of token ids."),
        ({"text": "a", "choices": [[1]]}, "inputs", "'inputs' has choices as token ids, which stand alone: "),
    ],
)
def test_a_fault_is_one_sentence_about_its_place(value: Any, param: str, sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        sources(value)
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_request", param)
    assert caught.value.message.startswith(sentence)
    assert caught.value.message.endswith(".")


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join), min_size=1, max_size=2),
    limit=st.integers(6, 24),
    kind=st.sampled_from(sorted(TOKENIZERS)),
)
@settings(deadline=None, max_examples=100)
def test_texts_are_cut_as_the_tokenizer_would(texts: list[str], limit: int, kind: str) -> None:
    cutting = Tokenizer.from_str(TOKENIZERS[kind].to_str())
    cutting.enable_truncation(limit)
    theirs = cutting.encode(*texts)
    (ours,) = Encoder(TOKENIZERS[kind], limit).encode([Text(*texts, truncate=True)])
    assert isinstance(ours, Encoded)
    assert ours.encoding is not None
    assert (ours.input_ids.tolist(), ours.type_ids.tolist()) == (theirs.ids, theirs.type_ids)
    for name in ("tokens", "offsets", "word_ids", "sequence_ids"):
        assert getattr(ours.encoding, name) == getattr(theirs, name), name
    assert ours.truncated == (len(TOKENIZERS[kind].encode(*texts).ids) > limit)


@given(
    texts=st.lists(st.tuples(st.text(max_size=30), st.none() | st.text(max_size=30)), min_size=1, max_size=6),
    kind=st.sampled_from(sorted(TOKENIZERS)),
)
@settings(deadline=None, max_examples=100)
def test_short_texts_in_place_are_as_those_in_a_batch(texts: list[tuple[str, str | None]], kind: str) -> None:
    encoder, asked = Encoder(TOKENIZERS[kind], 64), [Text(*pair) for pair in texts]
    assert sum(text.characters for text in asked) <= INLINE
    in_place = encoder.encode(asked)
    in_batch = encoder.encode([*asked, Text("Anna " * INLINE)])[:-1]
    assert [shown(one) for one in in_place] == [shown(one) for one in in_batch]


def shown(encoded: Encoded | ApiError) -> Any:
    """All that an encoded text says."""
    if isinstance(encoded, ApiError):
        return encoded.status, encoded.code, encoded.message
    encoding = encoded.encoding
    assert encoding is not None
    return encoded.input_ids.tolist(), encoded.type_ids.tolist(), encoding.tokens, encoding.offsets, encoding.word_ids, encoded.truncated


def test_cutting_two_long_texts_takes_no_longer_than_reading_them() -> None:
    """The tokenizer's own truncation combines all that it cuts off: 8 s for these."""
    began = time.perf_counter()
    (cut,) = Encoder(word_pieces(), 128).encode([Text("Anna " * 10_000, "York " * 10_000, truncate=True)])
    assert isinstance(cut, Encoded)
    assert len(cut.input_ids) == 128
    assert time.perf_counter() - began < 4


def test_a_limit_that_special_tokens_fill() -> None:
    (fault,) = Encoder(word_pieces(), 2).encode([Text("Anna York", truncate=True)])
    assert isinstance(fault, ApiError)
    assert fault.code == "input_too_long"

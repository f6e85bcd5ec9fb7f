"""Fill-mask against transformers' own FillMaskPipeline; choices and parsing worked out anew."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import WORDS, tokenizers
from transformers import BertConfig, BertForMaskedLM, FillMaskPipeline, PreTrainedTokenizerFast

from adapter_store.manifest import Head
from server.errors import ApiError
from server.tasks.encode import Encoded, Encoder, ModelIds, Text
from server.tasks.words import choose, fill, masks, parse, word_starts

MASKS = {"wordpiece": "[MASK]", "bytes": "<mask>"}
SPECIAL = {
    "wordpiece": {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
    "bytes": {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
PADDING = {"wordpiece": 3, "bytes": 1}
ENCODERS = {name: Encoder(tokenizer, 512, ModelIds(pad_token_id=PADDING[name])) for name, tokenizer in tokenizers().items()}


@pytest.fixture(scope="module")
def pipelines() -> dict[str, FillMaskPipeline]:
    made = {}
    for name, encoder in ENCODERS.items():
        fast = PreTrainedTokenizerFast(tokenizer_object=encoder.tokenizer, **SPECIAL[name])
        config = BertConfig(vocab_size=encoder.vocabulary, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        made[name] = FillMaskPipeline(model=BertForMaskedLM(config), tokenizer=fast, device="cpu")
    return made


def encode(encoder: Encoder, text: str, pair: str | None = None) -> Encoded:
    (encoded,) = encoder.encode([Text(text, pair)])
    assert isinstance(encoded, Encoded)
    return encoded


def lists(found: list[Any]) -> list[list[dict[str, Any]]]:
    """One list or several as several."""
    return found if isinstance(found[0], list) else [found]


def entries(found: list[Any]) -> list[Any]:
    """All but the scores."""
    return [[{**one, "score": None} for one in some] for some in lists(found)]


@given(
    words=st.lists(st.sampled_from([*WORDS[:6], ""]), min_size=1, max_size=6),
    kind=st.sampled_from(sorted(MASKS)),
    top_k=st.integers(1, 6),
    targets=st.one_of(st.none(), st.lists(st.sampled_from(["Anna", "York", "unaffable", "U"]), min_size=1, max_size=4)),
    seed=st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=60)
def test_words_are_those_of_transformers(
    pipelines: dict[str, FillMaskPipeline], words: list[str], kind: str, top_k: int, targets: list[str] | None, seed: int
) -> None:
    encoder, pipeline = ENCODERS[kind], pipelines[kind]
    text = " ".join([word or MASKS[kind] for word in words] + [MASKS[kind]])
    encoded = encode(encoder, text)
    places = masks(encoded.input_ids, encoder.mask_token, encoder.mask_token_id)
    assert isinstance(places, tuple)
    logits = np.random.default_rng(seed).normal(size=(len(encoded.input_ids), encoder.vocabulary)).astype(np.float32)
    ours = fill(encoder, encoded, places, logits[list(places)], top_k, targets)
    given = {"input_ids": torch.tensor(encoded.input_ids)[None], "logits": torch.tensor(logits)[None]}
    chosen = None if targets is None else pipeline.get_target_ids(targets)
    theirs = pipeline.postprocess(given, top_k=top_k, target_ids=chosen)
    assert isinstance(ours, list)
    assert entries(ours) == entries(theirs)
    for some, others in zip(lists(ours), lists(theirs), strict=True):
        assert [one["score"] for one in some] == pytest.approx([one["score"] for one in others], abs=1e-6)


def test_a_target_beyond_the_heads_vocabulary_is_left_out() -> None:
    encoder = ENCODERS["wordpiece"]
    encoded = encode(encoder, "Anna [MASK]")
    last = encoder.tokenizer.id_to_token(encoder.vocabulary - 1)
    assert fill(encoder, encoded, (2,), np.zeros((1, encoder.vocabulary - 1)), 5, [last]) == []
    fault = fill(encoder, encoded, (2,), np.zeros((1, encoder.vocabulary)), 5, [""])
    assert isinstance(fault, ApiError)
    assert fault.code == "unknown_target"


def test_choices_go_by_their_text_or_the_heads_labels() -> None:
    logits = np.array([0.5, 2.0, -1.0])
    plain, labelled = Head(type="multiple_choice"), Head(type="multiple_choice", labels=("x", "y", "z"))
    found = choose(plain, logits, ("a", "b", "c"))
    assert [(one["label"], one["index"]) for one in found] == [("b", 1), ("a", 0), ("c", 2)]
    assert sum(one["score"] for one in found) == pytest.approx(1)
    assert [one["label"] for one in choose(labelled, logits, ("a", "b", "c"))] == ["b", "a", "c"]
    assert [one["label"] for one in choose(labelled, logits, ((1,), (2,), (3,)))] == ["y", "x", "z"]
    assert [one["label"] for one in choose(labelled, logits[:2], ((1,), (2,)))] == ["choice 1", "choice 0"]


def test_words_of_a_text_and_their_characters() -> None:
    text = "unaffable (Anna)  U.S."
    encoded = encode(ENCODERS["wordpiece"], text, "Berlin York")
    assert encoded.encoding is not None
    starts = word_starts(encoded.encoding)
    assert starts == (1, 4, 5, 6, 7, 8, 9, 10, 11), "the pair's words are not parsed"
    arcs, relations = np.zeros((8, 9)), np.zeros((8, 9, 2))
    arcs[0, 2], relations[0, 2, 1] = 3.0, 2.0
    parsed = parse(Head(type="dependency_parsing", labels=("a", "b")), {"arcs": arcs, "relations": relations}, starts, encoded, text)
    assert [word["word"] for word in parsed] == ["unaffable", "(", "Anna", ")", "U", ".", "S", "."]
    assert (parsed[0]["head"], parsed[0]["relation"]) == (2, "b")
    assert parsed[0]["score"] == pytest.approx(np.exp(3) / (np.exp(3) + 8) * np.exp(2) / (np.exp(2) + 1))
    assert (parsed[1]["head"], parsed[1]["relation"]) == (0, "a")


def test_given_words_outside_of_the_text_have_no_characters() -> None:
    encoded = encode(ENCODERS["wordpiece"], "Anna York", "Berlin")
    zeros = {"arcs": np.zeros((3, 4)), "relations": np.zeros((3, 4, 1))}
    parsed = parse(Head(type="dependency_parsing", labels=("a",)), zeros, (1, 3, 4, 5), encoded, "Anna York")
    assert [(word["word"], word["start"]) for word in parsed] == [("Anna York", 0), (None, None), (None, None)]

"""Decoding against its oracles: torch's functions, and transformers' own TokenClassificationPipeline for entities."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from adapter_store.manifest import Head
from server.tasks.decode import Aggregation, classify, raw, sigmoid, softmax, tag
from server.tasks.encode import Encoded, Encoder, Text

STRATEGIES: tuple[Aggregation, ...] = ("none", "simple", "first", "average", "max")
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "E-LOC", "B-A-B", "I-A-B")
WORDS = ["Anna", "Berlin", "unaffable", "York", "Berlinable", "strange", "U.S.", ",", "(Anna)", "  Anna"]
PIECES = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "Anna", "Berlin", "York", "un", "##aff", "##able", "U", "S", ".", ",", "(", ")"]
HEAD = Head(type="tagging", labels=LABELS)


# Numbers


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
@settings(deadline=None)
def test_functions_are_torchs(values: list[float]) -> None:
    logits = np.array(values, dtype=np.float32)
    np.testing.assert_allclose(softmax(logits), torch.softmax(torch.tensor(logits), -1), atol=1e-6)
    np.testing.assert_allclose(sigmoid(logits), torch.sigmoid(torch.tensor(logits)), atol=1e-6)


def test_each_head_has_its_function() -> None:
    logits = np.array([2.0, -1.0, 0.5], dtype=np.float32)
    labels = ("a", "b", "c")
    single = classify(Head(type="classification", labels=labels), logits)
    assert [entry["label"] for entry in single] == ["a", "c", "b"]
    assert sum(entry["score"] for entry in single) == pytest.approx(1)
    multi = {entry["label"]: entry["score"] for entry in classify(Head(type="multilabel_classification", labels=labels), logits)}
    assert multi == pytest.approx({"a": 0.8807971, "b": 0.2689414, "c": 0.6224593})
    assert classify(Head(type="regression", labels=("x",)), np.array([-3.5])) == [{"label": "x", "score": -3.5}]
    assert classify(Head(type="regression", labels=("x",)), np.array([0.0]), "sigmoid") == [{"label": "x", "score": 0.5}]


def test_top_k_and_ties() -> None:
    head = Head(type="classification", labels=("a", "b", "c"))
    assert [entry["label"] for entry in classify(head, np.array([1.0, 1.0, 2.0]), top_k=2)] == ["c", "a"]
    assert len(classify(head, np.zeros(3), top_k=10)) == len(classify(head, np.zeros(3), top_k=None)) == 3


def test_raw_says_its_shape() -> None:
    assert raw(np.zeros((2, 3)))["shape"] == [2, 3]


# Entities


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def pipeline(tokenizer: Tokenizer) -> TokenClassificationPipeline:
    config = BertConfig(
        vocab_size=len(PIECES),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        id2label=dict(enumerate(LABELS)),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    return TokenClassificationPipeline(model=BertForTokenClassification(config), tokenizer=fast, device="cpu")


def encode(tokenizer: Tokenizer, text: str, pair: str | None = None) -> Encoded:
    (encoded,) = Encoder(tokenizer, 512).encode([Text(text, pair)])
    assert isinstance(encoded, Encoded)
    return encoded


def theirs(pipeline: TokenClassificationPipeline, text: str, logits: np.ndarray[Any, Any], strategy: str) -> list[dict[str, Any]]:
    """What transformers makes of the same logits."""
    (inputs,) = pipeline.preprocess(text, is_split_into_words=False)
    outputs = [{**inputs, "logits": torch.tensor(logits)[None], "word_ids": None}]
    return pipeline.postprocess(outputs, AggregationStrategy[strategy.upper()])  # type: ignore[no-any-return]


def logits_for(encoded: Encoded, seed: int, scale: float) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(scale=scale, size=(len(encoded.input_ids), len(LABELS))).astype(np.float32)


@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 3.0]))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_are_those_of_transformers(
    tokenizer: Tokenizer, pipeline: TokenClassificationPipeline, strategy: Aggregation, words: list[str], seed: int, scale: float
) -> None:
    text = " ".join(words)
    encoded = encode(tokenizer, text)
    logits = logits_for(encoded, seed, scale)
    ours, expected = tag(HEAD, logits, text, encoded, strategy), theirs(pipeline, text, logits, strategy)
    key = "entity" if strategy == "none" else "entity_group"
    places = [key, "start", "end"] + (["index"] if strategy == "none" else [])
    assert [[entity[place] for place in places] for entity in ours] == [[entity[place] for place in places] for entity in expected]
    np.testing.assert_allclose([e["score"] for e in ours], [e["score"] for e in expected], atol=1e-6)
    if strategy == "none":
        assert [e["word"] for e in ours if e["word"] != "[UNK]"] == [e["word"] for e in expected if "strange" not in e["word"]]
    else:
        assert all(entity["word"] == text[entity["start"] : entity["end"]] for entity in ours)


def one_hot(*labels: str) -> np.ndarray[Any, Any]:
    """Sure logits for these labels, with special tokens before and after."""
    rows = [LABELS.index(label) for label in ("O", *labels, "O")]
    return np.eye(len(LABELS), dtype=np.float32)[rows] * 20


def test_prefixes(tokenizer: Tokenizer) -> None:
    text = "Anna Berlin Anna York Anna"
    logits = one_hot("B-PER", "I-PER", "B-PER", "I-LOC", "MISC")
    entities = tag(HEAD, logits, text, encode(tokenizer, text))
    assert [(e["entity_group"], e["word"]) for e in entities] == [
        ("PER", "Anna Berlin"),
        ("PER", "Anna"),
        ("LOC", "York"),
        ("MISC", "Anna"),
    ]


def test_a_word_has_one_label_but_for_simple(tokenizer: Tokenizer) -> None:
    text = "unaffable"
    logits = one_hot("B-PER", "I-LOC", "I-LOC")
    encoded = encode(tokenizer, text)
    found = {s: [(e["entity_group"], e["word"]) for e in tag(HEAD, logits, text, encoded, s)] for s in STRATEGIES if s != "none"}
    assert found == {
        "simple": [("PER", "un"), ("LOC", "affable")],
        "first": [("PER", text)],
        "average": [("LOC", text)],
        "max": [("PER", text)],
    }


def test_ignored_labels_and_pairs(tokenizer: Tokenizer) -> None:
    text = "Anna York"
    logits = one_hot("B-PER", "O")
    encoded = encode(tokenizer, text)
    assert [e["entity_group"] for e in tag(HEAD, logits, text, encoded, ignore_labels=())] == ["PER", "O"]
    assert tag(HEAD, logits, text, encoded, ignore_labels=("O", "PER")) == []
    assert tag(HEAD, logits, text, encoded, "none", ignore_labels=("O", "B-PER")) == []
    paired = encode(tokenizer, text, "Berlin")
    sure = np.concatenate([one_hot("B-PER", "O"), one_hot("B-LOC")[1:]])
    assert [e["word"] for e in tag(HEAD, sure, text, paired)] == ["Anna"], "entities point into the first text"

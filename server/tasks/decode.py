"""From raw numbers to answers: labels and entities. numpy in, plain values out."""

from typing import Any, Literal

import numpy as np

from adapter_store.manifest import Head
from server.core import Array
from server.tasks.encode import Encoded

Function = Literal["softmax", "sigmoid", "none"]
Aggregation = Literal["none", "simple", "first", "average", "max"]

DEFAULT_FUNCTION: dict[str, Function] = {"classification": "softmax", "multilabel_classification": "sigmoid", "regression": "none"}


def softmax(logits: Array) -> Array:
    """Along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Array) -> Array:
    """Elementwise, without overflow."""
    result: Array = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return result


def classify(head: Head, logits: Array, function: Function | None = None, top_k: int | None = None) -> list[dict[str, Any]]:
    """logits [labels] as [{"label", "score"}], best first, at most `top_k`. Regression is never squashed unless asked."""
    chosen = function or DEFAULT_FUNCTION[head.type]
    scores = softmax(logits) if chosen == "softmax" else sigmoid(logits) if chosen == "sigmoid" else logits
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": head.labels[i], "score": float(scores[i])} for i in order]


def tag(
    head: Head, logits: Array, text: str, encoded: Encoded, aggregation: Aggregation = "simple", ignore_labels: tuple[str, ...] = ("O",)
) -> list[dict[str, Any]]:
    """logits [tokens, labels] as entities with character offsets of `text`.

    The strategies are those of transformers' TokenClassificationPipeline: none (per token), simple (runs of one entity),
    and first, average, max (one label per word, then runs). Special tokens are left out; of a pair, the second text too.
    """
    tokens = _tokens(logits, text, encoded)
    if aggregation == "none":
        named = [_per_token(head, token) for token in tokens]
        return [entity for entity in named if entity["entity"] not in ignore_labels]
    entities = tokens if aggregation == "simple" else [_word(word, aggregation) for word in _words(tokens)]
    groups = _groups([(head.labels[int(entity["scores"].argmax())], entity) for entity in entities])
    return [group for group in (_group(label, members, text) for label, members in groups) if group["entity_group"] not in ignore_labels]


def _tokens(logits: Array, text: str, encoded: Encoded) -> list[dict[str, Any]]:
    encoding = encoded.encoding
    assert encoding is not None
    # Each attribute of an Encoding builds a whole list, so every one is read once.
    columns = zip(encoding.tokens, encoding.offsets, encoding.word_ids, encoding.sequence_ids, softmax(logits), strict=True)
    return [
        {"scores": scores, "index": i, "token": token, "word_id": word, "start": start, "end": end}
        for i, (token, (start, end), word, sequence, scores) in enumerate(columns)
        if sequence == 0  # special tokens belong to no sequence
    ]


def _per_token(head: Head, token: dict[str, Any]) -> dict[str, Any]:
    best = int(token["scores"].argmax())
    return {
        "entity": head.labels[best],
        "score": float(token["scores"][best]),
        "index": token["index"],
        "word": token["token"],
        "start": token["start"],
        "end": token["end"],
    }


def _words(tokens: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Tokens of one word together: the same pre-tokenizer word, and no gap in the text."""
    words: list[list[dict[str, Any]]] = []
    for token in tokens:
        if words and token["word_id"] is not None and words[-1][-1]["word_id"] == token["word_id"]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(tokens: list[dict[str, Any]], aggregation: Aggregation) -> dict[str, Any]:
    """One word as one token, with the scores that the strategy says."""
    if aggregation == "first":
        scores = tokens[0]["scores"]
    elif aggregation == "max":
        scores = max(tokens, key=lambda token: token["scores"].max())["scores"]
    else:
        scores = np.mean([token["scores"] for token in tokens], axis=0)
    return {"scores": scores, "start": tokens[0]["start"], "end": tokens[-1]["end"]}


def _bio(label: str) -> tuple[str, str]:
    """B-PER as (B, PER); a label without a prefix continues what stands before it, as in transformers."""
    if label[:2] in ("B-", "I-"):
        return label[0], label[2:]
    return "I", label


def _groups(labelled: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Runs of one entity with the label of their first member; a B- tag begins a new one."""
    groups: list[tuple[str, list[dict[str, Any]]]] = []
    for label, entity in labelled:
        prefix, name = _bio(label)
        if groups and prefix != "B" and _bio(groups[-1][0])[1] == name:
            groups[-1][1].append(entity)
        else:
            groups.append((label, [entity]))
    return groups


def _group(label: str, members: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """One entity: what follows the first hyphen of its label, and the mean of its members' own best scores."""
    name = label.split("-", 1)[-1]
    start, end = members[0]["start"], members[-1]["end"]
    score = float(np.mean([float(member["scores"].max()) for member in members]))
    return {"entity_group": name, "score": score, "word": text[start:end], "start": start, "end": end}


def raw(array: Array) -> dict[str, Any]:
    """An array as the wire shows raw numbers; orjson writes numpy itself."""
    return {"shape": list(array.shape), "data": np.ascontiguousarray(array)}

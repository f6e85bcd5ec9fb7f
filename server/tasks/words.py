"""Words of the vocabulary and words of a text: fill-mask, multiple choice, dependency parsing. numpy in, plain values out."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Encoding

from adapter_store.manifest import Head
from server.core import Array, Ints, Outputs
from server.errors import ApiError
from server.tasks.decode import softmax
from server.tasks.encode import Encoded, Encoder


def masks(input_ids: Ints, mask_token: str | None, mask_token_id: int | None) -> tuple[int, ...] | ApiError:
    """Where the mask tokens of an input are."""
    if mask_token_id is None:
        return ApiError(
            400, "no_mask_token", "The backbone's tokenizer has no mask token, so there is nothing to fill: ask for output 'logits'."
        )
    places = tuple(int(place) for place in np.flatnonzero(input_ids == mask_token_id))
    if not places:
        return ApiError(422, "no_mask", f"The input has no {mask_token}: put it where a word is to be found.", "inputs")
    return places


def fill(
    encoder: Encoder, encoded: Encoded, places: Sequence[int], logits: Array, top_k: int | None, targets: Sequence[str] | None
) -> list[Any] | ApiError:
    """logits [masks, V] as the best words of each mask: a list for one mask, a list of lists for several.

    A target that is no word of the vocabulary stands for its first piece, as in transformers.
    """
    chosen: list[int] | None = None
    if targets is not None:
        numbers = {target: encoder.first_token(target) for target in targets}
        unknown = [target for target, number in numbers.items() if number is None]
        if unknown:
            return ApiError(422, "unknown_target", f"The target {unknown[0][:80]!r} is no word of the vocabulary.", "parameters.targets")
        chosen = [number for number in dict.fromkeys(numbers.values()) if number is not None and number < logits.shape[1]]
    lists = []
    for place, scores in zip(places, softmax(logits), strict=True):
        candidates = np.arange(len(scores)) if chosen is None else np.array(chosen, dtype=np.int64)
        order = candidates[np.argsort(-scores[candidates], kind="stable")][:top_k]
        lists.append([_filled(encoder, encoded, place, int(token), float(scores[token]), len(places) == 1) for token in order])
    return lists[0] if len(lists) == 1 else lists


def _filled(encoder: Encoder, encoded: Encoded, place: int, token: int, score: float, alone: bool) -> dict[str, Any]:
    """One word in its place; where there are other masks the special tokens are shown, or the masks would be left out with them."""
    ids = encoded.input_ids.copy()
    ids[place] = token
    if encoder.ids.pad_token_id is not None:
        ids = ids[ids != encoder.ids.pad_token_id]
    return {
        "score": score,
        "token": token,
        "token_str": encoder.tokenizer.decode([token], skip_special_tokens=False),
        "sequence": encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=alone),
    }


def choose(head: Head, logits: Array, choices: Sequence[str | tuple[int, ...]]) -> list[dict[str, Any]]:
    """logits [choices] as the choices by their probability, best first: [{"label", "index", "score"}].

    The label is the choice's text; of token ids the head's label of that place, where it has one for each.
    """
    scores = softmax(logits)
    names = head.labels if len(head.labels) == len(choices) else [f"choice {number}" for number in range(len(choices))]
    labels = [choice if isinstance(choice, str) else name for choice, name in zip(choices, names, strict=True)]
    return [{"label": labels[i], "index": int(i), "score": float(scores[i])} for i in np.argsort(-scores, kind="stable")]


def word_starts(encoding: Encoding) -> tuple[int, ...]:
    """The first token of each word of the first text, and the token behind its last word."""
    starts: list[int] = []
    end, before = 0, None
    for place, (word, sequence) in enumerate(zip(encoding.word_ids, encoding.sequence_ids, strict=True)):
        if word is None or sequence != 0:
            continue
        if word != before:
            starts.append(place)
        before, end = word, place + 1
    return (*starts, end) if starts else ()


def parse(head: Head, output: Outputs, starts: Sequence[int], encoded: Encoded, text: str) -> list[dict[str, Any]]:
    """arcs [words, words + 1] and relations [words, words + 1, R] as each word's likeliest head, and the likeliest relation to it.

    `head` counts words from 1; 0 is the root. score: p(head) p(relation). word, start and end (characters) are of the first text,
    None for words outside of it and for token ids.
    """
    spans = _spans(starts, encoded)
    words = []
    for span, scores, relations in zip(spans, softmax(output["arcs"]), output["relations"], strict=True):
        place = int(scores.argmax())
        relation = softmax(relations[place])
        best = int(relation.argmax())
        word, start, end = (None, None, None) if span is None else (text[span[0] : span[1]], *span)
        score = float(scores[place] * relation[best])
        words.append({"word": word, "start": start, "end": end, "head": place, "relation": head.labels[best], "score": score})
    return words


def _spans(starts: Sequence[int], encoded: Encoded) -> list[tuple[int, int] | None]:
    """Each word's characters in the first text."""
    edges = [(first, behind - 1) for first, behind in pairwise(starts)]
    if encoded.encoding is None:
        return [None] * len(edges)
    offsets, sequences = encoded.encoding.offsets, encoded.encoding.sequence_ids
    return [(offsets[first][0], offsets[last][1]) if sequences[first] == sequences[last] == 0 else None for first, last in edges]


def attention(outputs: Outputs, members: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What each fusion attended to, from "attention.{layer}.{site}.{n}" [tokens, members]."""
    found = []
    for name in sorted((name for name in outputs if name.startswith("attention.")), key=_place):
        _, layer, site, number = name.split(".")
        array = outputs[name]
        found.append({"layer": int(layer), "site": site, "members": list(members[int(number)]), "weights": _raw(array)})
    return found


def _place(name: str) -> tuple[int, int, int]:
    _, layer, site, number = name.split(".")
    return int(layer), ("mh", "cross", "output").index(site), int(number)


def _raw(array: Array) -> dict[str, Any]:
    return {"shape": list(array.shape), "data": np.ascontiguousarray(array)}

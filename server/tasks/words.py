"""Words of the vocabulary and words of a text: fill-mask, multiple choice, dependency parsing. numpy in, plain values out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

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
        chosen = [number for number in dict.fromkeys(numbers.values()) if number is not None]
    lists = []
    for place, scores in zip(places, softmax(logits), strict=True):
        candidates = np.arange(len(scores)) if chosen is None else np.array(chosen)
        order = candidates[np.argsort(-scores[candidates], kind="stable")][:top_k]
        lists.append([_filled(encoder.tokenizer, encoded, place, int(token), float(scores[token])) for token in order])
    return lists[0] if len(lists) == 1 else lists


def _filled(tokenizer: Tokenizer, encoded: Encoded, place: int, token: int, score: float) -> dict[str, Any]:
    ids = encoded.input_ids.copy()
    ids[place] = token
    return {
        "score": score,
        "token": token,
        "token_str": tokenizer.decode([token]),
        "sequence": tokenizer.decode(ids.tolist(), skip_special_tokens=True),
    }


def choose(head: Head, logits: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """logits [choices] as the choices by their probability, best first: [{"label", "index", "score"}]."""
    scores = softmax(logits)
    labels = head.labels if len(head.labels) == len(names) else names
    return [{"label": labels[i], "index": int(i), "score": float(scores[i])} for i in np.argsort(-scores, kind="stable")]


def word_starts(encoded: Encoded) -> tuple[int, ...]:
    """The first token of each word of a text, and the token behind the last word. Special tokens belong to no word."""
    assert encoded.encoding is not None
    starts: list[int] = []
    end, before = 0, None
    for place, (word, sequence) in enumerate(zip(encoded.encoding.word_ids, encoded.encoding.sequence_ids, strict=True)):
        if word is None or sequence is None:
            continue
        if (sequence, word) != before:
            starts.append(place)
        before, end = (sequence, word), place + 1
    return (*starts, end) if starts else ()


def parse(head: Head, output: Outputs, starts: Sequence[int], encoded: Encoded, text: str) -> list[dict[str, Any]]:
    """arcs [words, words + 1] and relations [words, words + 1, R] as each word's head and relation.

    `head` counts words from 1; 0 is the root. start and end are characters of the text, None for token ids.
    """
    arcs, relations = output["arcs"], output["relations"]
    words = []
    for number, scores in enumerate(softmax(arcs)):
        place = int(scores.argmax())
        relation = softmax(relations[number, place])
        best = int(relation.argmax())
        span: tuple[int | None, int | None] = (None, None)
        if encoded.encoding is not None:
            offsets = encoded.encoding.offsets
            span = offsets[starts[number]][0], offsets[starts[number + 1] - 1][1]
        word = text[span[0] : span[1]] if span[0] is not None else None
        score = float(scores[place] * relation[best])
        words.append({"word": word, "start": span[0], "end": span[1], "head": place, "relation": head.labels[best], "score": score})
    return words


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

"""Question answering: from start and end numbers per window to answers that point into the context. numpy in, plain values out.

The rules are those of transformers 4's QuestionAnsweringPipeline (transformers 5 has none): softmax over the context's tokens of each
window, a span's score is p(start) p(end), at most `max_answer_len` tokens, offsets are characters of the context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.core import Array, Outputs
from server.tasks.encode import Encoded


@dataclass(frozen=True, slots=True)
class SpanRules:
    """How answers are chosen. impossible: whether "no answer" (the first token) may win; words: widen an answer to whole words."""

    top_k: int = 1
    max_answer_len: int = 15
    impossible: bool = False
    words: bool = True


def answers(windows: Sequence[Encoded], outputs: Sequence[Outputs], context: str, rules: SpanRules) -> list[dict[str, Any]]:
    """The best spans over all windows, best first, each once: [{"score", "start", "end", "answer"}]."""
    best: dict[tuple[int, int], float] = {}
    null = 1.0
    for window, output in zip(windows, outputs, strict=True):
        found, nothing = _of_window(window, output["start"], output["end"], rules)
        null = min(null, nothing)
        for span, score in found:
            best[span] = max(score, best.get(span, 0.0))
    spans: list[dict[str, Any]] = [{"score": score, "start": a, "end": b, "answer": context[a:b]} for (a, b), score in best.items()]
    if rules.impossible:
        spans.append({"score": null, "start": 0, "end": 0, "answer": ""})
    return sorted(spans, key=lambda span: -span["score"])[: rules.top_k]


def _of_window(window: Encoded, start: Array, end: Array, rules: SpanRules) -> tuple[list[tuple[tuple[int, int], float]], float]:
    """The best spans of one window by their characters, and the score of "no answer"."""
    encoding = window.encoding
    assert encoding is not None
    allowed = np.array([sequence == 1 for sequence in encoding.sequence_ids])
    seen = allowed.copy()
    seen[0] |= rules.impossible
    if not allowed.any():
        return [], 1.0
    p_start, p_end = _masked_softmax(start, seen), _masked_softmax(end, seen)
    nothing = float(p_start[0] * p_end[0]) if rules.impossible else 1.0
    p_start, p_end = np.where(allowed, p_start, 0.0), np.where(allowed, p_end, 0.0)
    scores = np.tril(np.triu(np.outer(p_start, p_end)), rules.max_answer_len - 1)
    count = min(rules.top_k, scores.size)
    order = np.argpartition(-scores.ravel(), count - 1)[:count]
    offsets, words = encoding.offsets, encoding.word_ids
    found = []
    for a, b in (divmod(int(place), scores.shape[1]) for place in order):
        if scores[a, b] > 0:
            first, last = (
                (_word(words, encoding.sequence_ids, a), _word(words, encoding.sequence_ids, b)) if rules.words else ((a, a), (b, b))
            )
            found.append(((offsets[first[0]][0], offsets[last[1]][1]), float(scores[a, b])))
    return found, nothing


def _masked_softmax(logits: Array, seen: Array) -> Array:
    shifted = np.where(seen, np.exp(logits - logits[seen].max()), 0.0)
    result: Array = shifted / shifted.sum()
    return result


def _word(words: Sequence[int | None], sequences: Sequence[int | None], token: int) -> tuple[int, int]:
    """First and last token of a token's word."""
    if words[token] is None:
        return token, token
    first = last = token
    while first > 0 and words[first - 1] == words[token] and sequences[first - 1] == 1:
        first -= 1
    while last + 1 < len(words) and words[last + 1] == words[token] and sequences[last + 1] == 1:
        last += 1
    return first, last

"""Question answering: from start and end numbers per window to answers that point into the context. numpy in, plain values out.

The rules are those of transformers 4's QuestionAnsweringPipeline (transformers 5 has none). In each window a softmax over the
context's tokens and the first one, where models put "no answer"; a span's score is p(start) p(end), at most `max_answer_len` tokens.
Spans that read alike, whatever their case, are one answer whose scores add up. Offsets are characters of the context.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from server.core import Array, Outputs
from server.tasks.encode import Encoded


@dataclass(frozen=True, slots=True)
class SpanRules:
    """How answers are chosen. impossible: whether "no answer" (the first token) may win; words: widen an answer to whole words."""

    top_k: int = 1
    max_answer_len: int = 15
    impossible: bool = False
    words: bool = True

    @property
    def candidates(self) -> int:
        """Spans of one window that are looked at: some fall together when they are widened to words."""
        return 2 * self.top_k + 10 if self.words else self.top_k


def answers(windows: Sequence[Encoded], outputs: Sequence[Outputs], context: str, rules: SpanRules) -> list[dict[str, Any]]:
    """The best answers over all windows, best first, each once: [{"score", "start", "end", "answer"}]."""
    found: dict[str, dict[str, Any]] = {}
    nothing = 1.0
    for window, output in zip(windows, outputs, strict=True):
        p_start, p_end, here = _probabilities(window, output["start"], output["end"])
        nothing = min(nothing, here)
        for (start, end), score in _best(window, p_start, p_end, rules):
            answer = context[start:end]
            same = found.setdefault(answer.lower(), {"score": 0.0, "start": start, "end": end, "answer": answer})
            same["score"] += score
    every = list(found.values())
    if rules.impossible:
        every.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
    return sorted(every, key=lambda answer: -answer["score"])[: rules.top_k]


def _probabilities(window: Encoded, start: Array, end: Array) -> tuple[Array, Array, float]:
    """p(start) and p(end) of each token, 0 outside of the context, and the score of "no answer"."""
    assert window.encoding is not None
    sequences = window.encoding.sequence_ids
    inside = np.array([sequence == 1 for sequence in sequences])
    seen = inside.copy()
    seen[0] = sequences[0] is None  # a special token before the question, which is never empty
    p_start, p_end = _softmax(start, seen), _softmax(end, seen)
    nothing = float(p_start[0] * p_end[0])
    return np.where(inside, p_start, 0.0), np.where(inside, p_end, 0.0), nothing


def _softmax(logits: Array, seen: Array) -> Array:
    powers = np.zeros(len(logits))
    powers[seen] = np.exp(logits[seen].astype(np.float64) - logits[seen].max())
    result: Array = powers / powers.sum()
    return result


def _best(window: Encoded, p_start: Array, p_end: Array, rules: SpanRules) -> Iterator[tuple[tuple[int, int], float]]:
    """The best spans of one window, best first, by their characters."""
    encoding = window.encoding
    assert encoding is not None
    length = min(rules.max_answer_len, len(p_start))
    # scores[a, d] is the span from token a to token a + d
    scores = p_start[:, None] * sliding_window_view(np.pad(p_end, (0, length - 1)), length)
    count = min(rules.candidates, scores.size)
    chosen = np.argpartition(-scores.ravel(), count - 1)[:count]
    offsets = encoding.offsets
    for place in sorted(chosen.tolist(), key=lambda place: (-scores.flat[place], place)):
        first, extent = divmod(place, length)
        last, score = first + extent, float(scores[first, extent])
        if score > 0:
            span = _words(window, first, last) if rules.words else None
            yield span or (offsets[first][0], offsets[last][1]), score


def _words(window: Encoded, first: int, last: int) -> tuple[int, int] | None:
    """The characters of the whole words that two tokens of the context belong to; None where the tokenizer knows no words."""
    encoding = window.encoding
    assert encoding is not None
    words = encoding.token_to_word(first), encoding.token_to_word(last)
    if words[0] is None or words[1] is None:
        return None
    start, end = encoding.word_to_chars(words[0], 1), encoding.word_to_chars(words[1], 1)
    return None if start is None or end is None else (start[0], end[1])


def offsets(window: Encoded) -> list[tuple[int, int] | None]:
    """Each token's characters in the context; None for the question's and special tokens."""
    encoding = window.encoding
    assert encoding is not None
    return [span if sequence == 1 else None for span, sequence in zip(encoding.offsets, encoding.sequence_ids, strict=True)]

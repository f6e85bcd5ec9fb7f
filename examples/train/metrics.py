"""Scores in plain Python, used by the training and by the scoring through HTTP alike. Knows no model and no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

MAIN = {"classification": "accuracy", "tagging": "entity_f1", "regression": "pearson"}


def score(kind: str, gold: Sequence[Any], guess: Sequence[Any]) -> dict[str, float]:
    measured = {"classification": classification, "tagging": tagging, "regression": regression}[kind](gold, guess)
    return {name: round(value, 4) for name, value in measured.items()}


def classification(gold: Sequence[str], guess: Sequence[str]) -> dict[str, float]:
    """Accuracy, macro-F1 over the classes in gold or guess; with an `oos` class its recall and the rest's accuracy."""
    pairs = Counter(zip(gold, guess, strict=True))
    told, said = Counter(gold), Counter(guess)
    f1 = [2 * pairs[c, c] / (told[c] + said[c]) for c in told.keys() | said.keys()]
    right = sum(count for (a, b), count in pairs.items() if a == b)
    result = {"accuracy": right / len(gold), "macro_f1": sum(f1) / len(f1)}
    if "oos" in told:
        caught = pairs["oos", "oos"]
        result["in_scope_accuracy"] = (right - caught) / (len(gold) - told["oos"])
        result["oos_recall"] = caught / told["oos"]
    return result


def tagging(gold: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, float]:
    """Entity-level scores as conlleval counts them: an entity is right if its span and its type are exact."""
    told = {(row, *entity) for row, tags in enumerate(gold) for entity in entities(tags)}
    said = {(row, *entity) for row, tags in enumerate(guess) for entity in entities(tags)}
    right = len(told & said)
    precision = right / len(said) if said else 0.0
    recall = right / len(told) if told else 0.0
    f1 = 2 * right / (len(told) + len(said)) if told or said else 0.0
    tokens = [a == b for one, other in zip(gold, guess, strict=True) for a, b in zip(one, other, strict=True)]
    return {"entity_f1": f1, "precision": precision, "recall": recall, "token_accuracy": sum(tokens) / len(tokens)}


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, one past the last word, type) of a BIO sequence; an I- after another type or O opens an entity."""
    found: list[tuple[int, int, str]] = []
    start, kind = 0, ""
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, current = tag.partition("-")
        if kind and (prefix != "I" or current != kind):
            found.append((start, at, kind))
            kind = ""
        if current and not kind:
            start, kind = at, current
    return found


def regression(gold: Sequence[float], guess: Sequence[float]) -> dict[str, float]:
    error = [abs(a - b) for a, b in zip(gold, guess, strict=True)]
    rmse = math.sqrt(sum(e * e for e in error) / len(error))
    return {"pearson": pearson(gold, guess), "mae": sum(error) / len(error), "rmse": rmse}


def pearson(left: Sequence[float], right: Sequence[float]) -> float:
    """The correlation; 0 where one side is constant and it is undefined."""
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    a, b = [x - mean_left for x in left], [y - mean_right for y in right]
    spread = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / spread if spread > 1e-9 else 0.0


def majority(kind: str, train: Sequence[Any], gold: Sequence[Any]) -> list[Any]:
    """A constant answer: the commonest class of the test split, no entity, or the mean of the training targets."""
    if kind == "classification":
        return [Counter(gold).most_common(1)[0][0]] * len(gold)
    if kind == "regression":
        return [sum(train) / len(train)] * len(gold)
    return [["O"] * len(tags) for tags in gold]

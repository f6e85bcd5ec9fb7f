"""The baseline an adapter must beat: a linear model on the frozen backbone's last hidden states.

The mean over all tokens of a text (over the first sub-word of each word for tagging); strength of the regularisation
chosen on the validation split.
"""

from __future__ import annotations

from typing import Any

import metrics
import numpy as np
import oos
import torch
from data import Corpus
from encoding import Row, batches, collate
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (0.01, 0.1, 1.0)  # C of the logistic regression; of its inverse, times the rows, for ridge


@torch.inference_mode()
def features(model: torch.nn.Module, rows: list[Row], by_word: bool) -> list[np.ndarray]:
    """Per row [1, hidden], or [words, hidden] (zeros for a word without tokens)."""
    model.eval()
    result: list[np.ndarray] = [np.empty(0)] * len(rows)
    for indices in batches(rows, 32, None):
        ids, mask = collate([rows[index] for index in indices])
        hidden = model.base_model(ids, attention_mask=mask).last_hidden_state.numpy()
        for index, states in zip(indices, hidden, strict=True):
            row = rows[index]
            if by_word:
                result[index] = np.stack([states[at] if at >= 0 else np.zeros_like(states[0]) for at in row.first])
            else:
                result[index] = states[: len(row.ids)].mean(0, keepdims=True)
    return result


def answers(
    model: torch.nn.Module,
    train: list[Row],
    validation: list[Row],
    test: list[Row],
    corpus: Corpus,
) -> list[Any]:
    """The probe's guesses for the test split. Takes the active adapter off the model."""
    model.set_active_adapters(None)
    by_word = corpus.kind == "tagging"
    parts = [features(model, rows, by_word) for rows in (train, validation, test)]
    target = [gold for row in train for gold in (row.gold if by_word else [row.gold])]
    best, best_score = None, -np.inf
    for strength in STRENGTHS:
        regression = corpus.kind == "regression"
        linear = Ridge(1.0 / strength) if regression else LogisticRegression(C=strength, max_iter=300)
        fitted = make_pipeline(StandardScaler(), linear).fit(np.concatenate(parts[0]), target)
        guess = [fitted.predict(part).tolist() for part in parts[1]] if by_word else flat(fitted, parts[1])
        reached = metrics.score(corpus.kind, [row.gold for row in validation], guess)[metrics.MAIN[corpus.kind]]
        if reached > best_score:
            best, best_score = fitted, reached
    if oos.LABEL in corpus.labels:
        return with_threshold(best, parts, [row.gold for row in validation])
    return [best.predict(part).tolist() for part in parts[2]] if by_word else flat(best, parts[2])


def with_threshold(fitted: Any, parts: list[list[np.ndarray]], gold: list[str]) -> list[str]:
    """The guesses for the test split with the threshold that the adapter gets too."""
    labels = fitted.classes_.tolist()
    validation, test = (fitted.decision_function(np.concatenate(part)) for part in parts[1:])
    best = oos.shifted(test, labels, oos.best_shift(validation, gold, labels)).argmax(1)
    return [labels[index] for index in best]


def flat(fitted: Any, parts: list[np.ndarray]) -> list[Any]:
    return fitted.predict(np.concatenate(parts)).tolist()

"""Rows as transformers' models take them: padded to the longest, with an attention mask; and their answers, without the padding."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.competitors.workers.protocol import Array, Rows

# Hidden states [B, S, H] of ids [B, S] and mask [B, S], for the tasks of the rows.
Forward = Callable[[Tensor, Tensor, list[int]], Tensor]

CHUNK = 8


def whole(forward: Forward, rows: Rows, output: str) -> list[Array]:
    """All rows in one padded batch, in the order of their tasks: BatchSplit wants rows of a task to stand together."""
    return _in_parts(forward, rows, output, [sorted(range(len(rows.ids)), key=lambda i: rows.tasks[i])])


def chunked(forward: Forward, rows: Rows, output: str) -> list[Array]:
    """Rows sorted by length and run in padded batches of `CHUNK`: less padding than in one batch, more passes."""
    order = sorted(range(len(rows.ids)), key=lambda i: len(rows.ids[i]))
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    return _in_parts(forward, rows, output, [sorted(chunk, key=lambda i: rows.tasks[i]) for chunk in chunks])


def by_task(forward: Forward, rows: Rows, output: str) -> list[Array]:
    """A padded batch for each task; each group is padded to its own longest row."""
    groups: dict[int, list[int]] = {}
    for place, task in enumerate(rows.tasks):
        groups.setdefault(task, []).append(place)
    return _in_parts(forward, rows, output, list(groups.values()))


def _in_parts(forward: Forward, rows: Rows, output: str, parts: list[list[int]]) -> list[Array]:
    answers: dict[int, Array] = {}
    with torch.inference_mode():
        for places in parts:
            answers |= zip(
                places, _padded(forward, Rows([rows.ids[i] for i in places], [rows.tasks[i] for i in places]), output), strict=True
            )
    return [answers[place] for place in range(len(rows.ids))]


def _padded(forward: Forward, rows: Rows, output: str) -> list[Array]:
    longest = max(len(row) for row in rows.ids)
    ids, mask = (np.zeros((len(rows.ids), longest), dtype=np.int64) for _ in range(2))
    for place, row in enumerate(rows.ids):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    real = torch.from_numpy(mask)
    hidden = forward(torch.from_numpy(ids), real, rows.tasks)
    if output == "hidden":
        return [hidden[place, : len(row)].numpy() for place, row in enumerate(rows.ids)]
    weights = real.unsqueeze(-1).to(hidden.dtype)
    return list(((hidden * weights).sum(1) / weights.sum(1)).numpy())

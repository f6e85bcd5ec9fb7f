"""From examples to padded token ids, tokenised exactly as the server does it: the text as it is, [CLS] .. [SEP]."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import Example
from tokenizers import Tokenizer
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One encoded example: token ids with [CLS] and [SEP], and per word the position of its first sub-word or -1."""

    ids: list[int]
    first: list[int]
    gold: Any


def load_tokenizer(backbone: Path) -> Tokenizer:
    """The backbone's tokenizer without the fixed padding and the 128-token limit that its file carries."""
    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, examples: list[Example], max_tokens: int) -> list[Row]:
    tokenizer.enable_truncation(max_tokens)
    rows = []
    for example, encoding in zip(examples, tokenizer.encode_batch([e.text for e in examples]), strict=True):
        first = first_subwords(example.text, encoding.offsets) if isinstance(example.gold, tuple) else []
        rows.append(Row(encoding.ids, first, example.gold))
    return rows


def first_subwords(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Per word of `text` (split at single spaces) the first token that starts inside it; -1 where there is none."""
    starts: dict[int, int] = {}
    for position, (begin, end) in enumerate(offsets):
        if end > begin:
            starts.setdefault(begin, position)
    result, begin = [], 0
    for word in text.split(" "):
        inside = [starts[at] for at in range(begin, begin + len(word)) if at in starts]
        result.append(min(inside, default=-1))
        begin += len(word) + 1
    return result


def batches(rows: list[Row], size: int, rng: random.Random | None) -> Iterator[list[int]]:
    """Indices of rows of like length; in random order, with random neighbours, if `rng` is given."""
    order = list(range(len(rows)))
    if rng:
        rng.shuffle(order)
    order.sort(key=lambda index: len(rows[index].ids))  # stable: ties keep their random order
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    if rng:
        rng.shuffle(groups)
    yield from groups


def collate(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [batch, tokens]."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    return ids, mask

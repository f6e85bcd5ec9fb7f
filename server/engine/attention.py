"""Attention over packed sequences, registered with transformers as `turret_packed`.

q, k, v arrive as [1, heads, T, head_dim] for T tokens of many sequences in a row. Each sequence attends within itself.
On the CPU, neighbours of equal length are one SDPA call on a plain view; `attend_each` is the slow twin, one call per
sequence. Every forward must hand in its `Packing`: stock attention would silently mix neighbours, so its absence is an error.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from server.core import Ints

NAME = "turret_packed"


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the sequences of a batch lie: runs of (first token, number of sequences, their common length)."""

    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, cu_seqlens: Ints) -> "Packing":
        """Runs of neighbouring equal lengths of a batch, from its cu_seqlens [B+1]."""
        lengths = np.diff(cu_seqlens)
        edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
        return cls(tuple((int(cu_seqlens[a]), int(b - a), int(lengths[a])) for a, b in pairwise(edges)))


def attend_packed(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing) -> Tensor:
    """Bidirectional attention within each sequence: [T, heads, head_dim] in and out."""
    outputs = []
    for start, count, length in packing.runs:
        shape = (count, length, *query.shape[1:])
        q, k, v = (t[start : start + count * length].view(shape).transpose(1, 2) for t in (query, key, value))
        attended = scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_each(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing) -> Tensor:
    """The slow twin of `attend_packed`: softmax(q k^T * scaling) v, sequence by sequence."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for start, count, length in packing.runs:
        for begin in range(start, start + count * length, length):
            q, k, v = (t[begin : begin + length].transpose(0, 1) for t in (query, key, value))
            outputs.append((torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def turret_packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, T, head_dim] in, ([1, T, heads, head_dim], no weights) out."""
    if packing is None:
        raise RuntimeError("turret_packed ran without its packing: the backbone was called outside of Backbone.forward")
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return attend_packed(q, k, v, scaling, packing).unsqueeze(0), None


AttentionInterface.register(NAME, turret_packed)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)

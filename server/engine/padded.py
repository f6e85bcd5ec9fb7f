"""Attention of a batch in few calls on a CPU: neighbours of nearly equal length side by side, padded within attention alone.

Sequences whose lengths round up to the same multiple of `STEP` are one SDPA call: their tokens are gathered into [count, length], what lies
behind a sequence's end is masked away, and what was computed there is dropped. Equal lengths need neither and are a view. The products
around attention see no padding. Its slow twin goes sequence by sequence (`attention.attend_each`).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from server.core import Ints

STEP = 16  # tokens


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """`count` neighbours of up to `length` tokens from `start` to `end`, tokens of the batch.

    take [count * length] are the tokens side by side (a sequence's first again behind its end), keep [tokens] where the real ones lie among
    them, mask [count, 1, 1, length] is 0 or -inf; all None where all are of `length`.
    """

    start: int
    end: int
    count: int
    length: int
    take: Tensor | None = None
    keep: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, starts: Ints, lengths: Ints, dtype: torch.dtype) -> "Group":
        """The neighbours that start at `starts` [count]."""
        longest = int(lengths.max())
        start, end = int(starts[0]), int(starts[-1] + lengths[-1])
        if (lengths == longest).all():
            return cls(start, end, len(starts), longest)
        places = np.arange(longest)
        real = places < lengths[:, None]
        take = np.where(real, starts[:, None] + places, starts[:, None]).ravel()
        mask = torch.zeros(len(starts), 1, 1, longest, dtype=dtype)
        mask.masked_fill_(torch.from_numpy(~real)[:, None, None], float("-inf"))
        return cls(start, end, len(starts), longest, torch.from_numpy(take), torch.from_numpy(np.flatnonzero(real)), mask)

    def attend(self, qkv: Tensor) -> Tensor:
        """[tokens, heads * size] of the group for the batch's qkv [T, 3, heads, size]."""
        rows = qkv[self.start : self.end] if self.take is None else qkv.index_select(0, self.take)
        query, key, value = rows.view(self.count, self.length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4).unbind(0)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=self.mask).transpose(1, 2).reshape(len(rows), -1)
        return attended if self.keep is None else attended.index_select(0, self.keep)


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """The groups of a batch, made once for all layers."""

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, cu_seqlens: Ints, dtype: torch.dtype) -> "Padded":
        """From a batch's edges [B+1]."""
        lengths = np.diff(cu_seqlens)
        edges = np.flatnonzero(np.diff(-(-lengths // STEP), prepend=-1, append=-1))
        return cls(tuple(Group.of(cu_seqlens[a:b], lengths[a:b], dtype) for a, b in pairwise(edges)))

    def attend(self, qkv: Tensor) -> Tensor:
        """Attention within each sequence: qkv [T, 3, heads, size] to [T, heads * size]."""
        parts = [group.attend(qkv) for group in self.groups]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

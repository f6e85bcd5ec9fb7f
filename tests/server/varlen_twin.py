"""torch's varlen attention in plain torch, for machines without CUDA: same arguments, same answer."""

from typing import Any

import torch
from torch import Tensor


class Reference:
    """varlen_attn by its documentation: one softmax over all tokens, behind a mask of sequences and windows. Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        **others: Any,
    ) -> Tensor:
        assert not others
        self.calls += 1
        for edges, longest, tokens in ((cu_seq_q, max_q, query), (cu_seq_k, max_k, key)):
            assert edges.dtype == torch.int32
            assert edges.is_contiguous()
            assert int(edges[0]) == 0
            assert int(edges[-1]) == tokens.shape[0]
            assert int(edges.diff().min()) >= 0
            assert int(edges.diff().max()) <= longest
        assert enable_gqa == (query.shape[1] != key.shape[1])
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
        lengths = cu_seq_q.diff()
        sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
        place = torch.arange(len(sequence)) - cu_seq_q[:-1].repeat_interleave(lengths)
        behind = place[:, None] - place[None, :]
        left, right = window_size
        seen = sequence[:, None] == sequence[None, :]
        seen &= (left < 0) | (behind <= left)
        seen &= (right < 0) | (-behind <= right)
        scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * (query.shape[2] ** -0.5 if scale is None else scale)
        attention = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
        return torch.einsum("hqk,khd->qhd", attention, value.float()).to(query.dtype)

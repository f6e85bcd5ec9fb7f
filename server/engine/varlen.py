"""Attention of a whole batch in one call, by sequences' edges: torch's varlen attention (FlashAttention) on CUDA in bfloat16 and float16.

It takes the structure of the batch from cu_seqlens on the device, so rows need no sorting and equal lengths no grouping. What it cannot
do (`covers`; prefixes and cross-attention never come here) goes run by run (`attention.py`), its slow twin.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from server.core import Ints
from server.engine.transfers import on_device

if TYPE_CHECKING:
    from server.engine.attention import Rule

# As torch.nn.attention.varlen.varlen_attn: (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa), with
# query [T, heads, head size], both cu_seq int32 [B+1], and a window of (left, right) neighbours, -1 for all, (-1, 0) for causal.
Attend = Callable[..., Any]

WIDEST_HEAD = 256


@dataclass(frozen=True, slots=True, eq=False)
class Varlen:
    """The edges of a batch's sequences, made once for all layers: cu_seqlens int32 [B+1] on the device; `longest` in tokens."""

    cu_seqlens: Tensor
    longest: int
    function: Attend

    @classmethod
    def of(cls, cu_seqlens: Ints, function: Attend, device: torch.device) -> "Varlen":
        """From a batch's edges on the host."""
        return cls(on_device(cu_seqlens.astype("int32"), device), int((cu_seqlens[1:] - cu_seqlens[:-1]).max()), function)

    @staticmethod
    def covers(rule: "Rule", query: Tensor) -> bool:
        """Whether an attention of these heads by this rule can be done so: no biases, heads of whole 16 bytes."""
        return rule.bias is None and rule.group != "cross" and query.shape[-1] % 8 == 0 and query.shape[-1] <= WIDEST_HEAD

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, rule: "Rule") -> Tensor:
        """[T, heads, head size] in and out."""
        reach = -1 if rule.window is None else rule.window
        attended: Tensor = self.function(
            query,
            key,
            value,
            self.cu_seqlens,
            self.cu_seqlens,
            self.longest,
            self.longest,
            scale=scaling,
            window_size=(reach, 0 if rule.causal else reach),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attended

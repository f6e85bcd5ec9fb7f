"""Prefix tuning (Li and Liang, arXiv 2101.00190): learned keys and values before those of the row, in every attention of a group.

    K' = [P_k; K],   V' = [P_v; V];   gated (UniPELT, 2110.07577): g P_k, g P_v with g = mean over the row's tokens of sigmoid(G x)

A prefix that is stored as an embedding E and an MLP is worked out once: z = W2 f(W1 E + b1) + b2, [P, 2 L, heads, head size],
keys at 2 j and values at 2 j + 1 of the j-th layer that has one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from server.methods.activations import ACTIVATIONS


@dataclass(frozen=True, slots=True, eq=False)
class PrefixWeights:
    """One layer's prefix: key and value [P, K]; gate_weight [1 or 2, H], gate_bias [1 or 2] where it is gated.

    shifts: the row's own tokens count from P on, also where positions are relative.
    """

    key: Tensor
    value: Tensor
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    shifts: bool = False

    @property
    def length(self) -> int:
        return self.key.shape[0]

    def states(self, heads: int, x: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, P, head size]; x [tokens, H] is the row's input to the attention, needed for gates only."""
        key, value = (t.view(self.length, heads, -1).transpose(0, 1) for t in (self.key, self.value))
        if self.gate_weight is None:
            return key, value
        assert x is not None
        gate = torch.sigmoid(linear(x, self.gate_weight, self.gate_bias)).mean(dim=0)
        return key * gate[0], value * gate[-1]


def reparametrised(embedding: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], activation: str, layers: int) -> Tensor:
    """The stored MLP's prefix, [P, 2 layers, K]."""
    inner = ACTIVATIONS[activation](linear(embedding, *first))
    return linear(inner, *second).view(embedding.shape[0], 2 * layers, -1)

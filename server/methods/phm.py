"""Compacter's linears: sums of Kronecker products (Mahabadi et al., arXiv 2106.04647; Zhang et al., 2102.08597).

    y = x H + b,   H = sum_i kron(A_i, W_i)  [in, out],   W_i = L_i R_i

A [n, n, n] is the rule, L [n, in/n, r] and R [n, r, out/n] the factors; a full W [n, in/n, out/n] may take their place. H is laid
out [in, out], not transposed as a torch Linear. The factored form is what is stored, also on the device; `expand` makes H for many
layers at once, and `kronecker` is its slow twin, the definition.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """One Kronecker layer: rule [n, n, n]; left and right factors, or the full W as `right` with `left` None; bias [out] or None."""

    rule: Tensor
    left: Tensor | None
    right: Tensor
    bias: Tensor | None

    @property
    def outputs(self) -> int:
        return self.right.shape[0] * self.right.shape[-1]


def kronecker(layer: Kronecker) -> Tensor:
    """H [in, out] by the definition."""
    blocks = layer.right if layer.left is None else layer.left @ layer.right
    return torch.stack([torch.kron(rule, block) for rule, block in zip(layer.rule, blocks, strict=True)]).sum(0)


def expand(rule: Tensor, left: Tensor | None, right: Tensor, below: int = 0) -> Tensor:
    """H [s, in, out] of s layers at once: rule [s, n, n, n], left [s, n, in/n, r] (or None), right [s, n, r, out/n] (or the full W).

    The sum over i runs inside a product. Which side takes the rule in is chosen by size: with factors, the smaller one.
    `below` rows are left below each H, [s, in + below, out], for the caller to fill.
    """
    s, n, p, q = rule.shape[0], rule.shape[1], right.shape[2] if left is None else left.shape[2], right.shape[3]
    if left is None or p <= q:
        blocks = right if left is None else left @ right
        mixed = rule.reshape(s, n, n * n).transpose(1, 2) @ blocks.reshape(s, n, p * q)
        wide = mixed.new_empty(s, n * p + below, n * q)
        wide[:, : n * p].view(s, n, p, n, q).copy_(mixed.view(s, n, n, p, q).transpose(2, 3))
        return wide
    r = left.shape[3]
    lefts = left.transpose(1, 2).reshape(s, 1, p, n * r)
    ruled = rule.transpose(1, 2).repeat_interleave(r, dim=2).view(s, n, n * r, n, 1) * right.reshape(s, 1, n * r, 1, q)
    wide = (lefts @ ruled.view(s, n, n * r, n * q)).view(s, n * p, n * q)
    return wide if not below else torch.cat((wide, wide.new_empty(s, below, n * q)), dim=1)

"""AdapterFusion (Pfeiffer et al., arXiv 2005.00247): attention over the outputs of N adapters, token by token.

    p = softmax_k( <Q q, K v_k> / T ),   out = sum_k p_k V v_k,   v_k = s_k (U_k f(D_k z + d_k) + b_k)

`fuse` is the library's order of operations. `fold` is exact algebra for the usual case, where q = z and the v_k carry no residual:
with h_k = f(D_k z + d_k), a member's score is (U_k^T K^T Q z + ...) . h_k + const and its value V U_k h_k + V b_k, so keys, queries
and values of size H are never formed: one product of z with [D | G | C], one of [p_k h_k, p] with the folded values. The key's
bias adds the same to every member's score, which a softmax does not see.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from adapter_store.methods import Bottleneck, Fusion
from server.methods.activations import ACTIVATIONS
from server.methods.bottleneck import BottleneckWeights, dense, scale


@dataclass(frozen=True, slots=True, eq=False)
class FusionWeights:
    """The tensors of one fusion at one site: [H, H] each, biases [H]; None where the config has no such part."""

    query_weight: Tensor | None = None
    query_bias: Tensor | None = None
    key_weight: Tensor | None = None
    key_bias: Tensor | None = None
    value_weight: Tensor | None = None


def fuse(config: Fusion, weights: FusionWeights, query: Tensor, ups: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The mixed output [tokens, H] with its residual, and the attention [tokens, N].

    query [tokens, H]; ups [tokens, N, H], the members' raw up-projections; residual [tokens, H].
    """
    values = ups + residual.unsqueeze(1) if config.residual_before else ups
    q = query if weights.query_weight is None else linear(query, weights.query_weight, weights.query_bias)
    keys = values if weights.key_weight is None else linear(values, weights.key_weight, weights.key_bias)
    if weights.value_weight is not None and config.value_before_softmax:
        values = linear(values, weights.value_weight)
    attention = torch.softmax((keys @ q.unsqueeze(-1)).squeeze(-1) / config.temperature, dim=-1)
    out = (attention.unsqueeze(1) @ values).squeeze(1)
    if weights.value_weight is not None and not config.value_before_softmax:
        out = linear(out, weights.value_weight)
    return out if config.residual_before else out + residual, attention


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A fusion and its members at one site as two products.

    inward [H, 2 S + N] and its bias: the members' downs, what their h_k are scored with, and the scores' constants, with S the sum of
    the widths. outward [S, H] and constants [N, H]: the folded values. slices: (first, past the last, activation) of each width.
    """

    inward: Tensor
    inward_bias: Tensor
    outward: Tensor
    constants: Tensor
    members: Tensor
    widths: tuple[int, ...]
    activations: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the folded tensors."""
        tensors = (self.inward, self.inward_bias, self.outward, self.constants, self.members)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def mix(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """[p_k h_k] [tokens, S] and the attention p [tokens, N] for z [tokens, H]."""
        total, count = sum(self.widths), len(self.widths)
        inner = torch.addmm(self.inward_bias, z, self.inward)
        hidden = self._activate(inner[:, :total])
        even = len(set(self.widths)) == 1
        products = hidden * inner[:, total : 2 * total]
        scores = products.view(-1, count, self.widths[0]).sum(-1) if even else products @ self.members.t()
        attention = torch.softmax(scores.add_(inner[:, 2 * total :]), dim=-1)
        if even:
            return (hidden.view(-1, count, self.widths[0]) * attention.unsqueeze(-1)).flatten(1), attention
        return hidden * (attention @ self.members), attention

    def _activate(self, inner: Tensor) -> Tensor:
        if len(set(self.activations)) == 1:
            return ACTIVATIONS[self.activations[0]](inner.contiguous())
        parts = zip(torch.split(inner, list(self.widths), dim=1), self.activations, strict=True)
        return torch.cat([ACTIVATIONS[name](part.contiguous()) for part, name in parts], dim=1)

    def add(self, z: Tensor, out: Tensor) -> Tensor:
        """out [tokens, H] += sum_k p_k V v_k, in place; returns the attention [tokens, N]."""
        mixed, attention = self.mix(z)
        out.addmm_(mixed, self.outward)
        out.addmm_(attention, self.constants)
        return attention


def foldable(config: Fusion, members: Sequence[Bottleneck]) -> bool:
    """Whether query, keys and values are linear in what `fold` folds: the last member's config decides over input and residual."""
    last = members[-1]
    plain = not last.is_parallel and last.residual_before_ln is True and last.original_ln_after
    query_is_input = not (config.query_before_ln and last.original_ln_before)
    return plain and query_is_input and not config.residual_before and not any(member.ln_before for member in members)


def fold(config: Fusion, weights: FusionWeights, members: Sequence[tuple[Bottleneck, BottleneckWeights]]) -> Folded:
    """The fusion and its members at one site, folded in float64."""
    first = dense(members[0][1].up).weight
    hidden, dtype = first.shape[0], first.dtype
    eye = torch.eye(hidden, dtype=torch.float64, device=first.device)
    query = eye if weights.query_weight is None else weights.query_weight.double()
    query_bias = eye.new_zeros(hidden) if weights.query_bias is None else weights.query_bias.double()
    key = eye if weights.key_weight is None else weights.key_weight.double()
    value = eye if weights.value_weight is None else weights.value_weight.double()
    columns: list[list[Tensor]] = [[] for _ in range(8)]
    downs, biases, scored, scored_bias, constants, constant_bias, outward, offsets = columns
    for member, at_site in members:
        down, up = dense(at_site.down), dense(at_site.up)
        factor = scale(member, at_site)
        factor = factor.double().unsqueeze(-1) if isinstance(factor, Tensor) else factor
        u = up.weight.double() * factor
        b = (up.bias.double().unsqueeze(-1) * factor).squeeze(-1)
        keys, offset = key @ u / config.temperature, key @ b / config.temperature
        downs.append(down.weight.double())
        biases.append(down.bias.double())
        scored.append(keys.t() @ query)
        scored_bias.append(keys.t() @ query_bias)
        constants.append((offset @ query).unsqueeze(0))
        constant_bias.append((offset @ query_bias).unsqueeze(0))
        outward.append((value @ u).t())
        offsets.append(value @ b)
    widths = tuple(down.shape[0] for down in downs)
    members_of = torch.repeat_interleave(torch.eye(len(widths)), torch.tensor(widths), dim=1)
    return Folded(
        inward=torch.cat([*downs, *scored, *constants]).t().contiguous().to(dtype),
        inward_bias=torch.cat([*biases, *scored_bias, *constant_bias]).to(dtype),
        outward=torch.cat(outward).to(dtype),
        constants=torch.stack(offsets).to(dtype),
        members=members_of.to(first.device, dtype),
        widths=widths,
        activations=tuple(member.non_linearity for member, _ in members),
    )

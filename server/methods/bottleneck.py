"""Bottleneck adapters: Houlsby et al. (arXiv 1902.00751), Pfeiffer et al. (2005.00247), parallel (He et al., 2110.04366).

At a site, h [tokens, H] is the output of the sub-layer's last dense, x [tokens, H] the residual stream that entered the
sub-layer and LN the backbone's own LayerNorm. With Down: H -> d and Up: d -> H,

    Houlsby    y = LN( Up(f(Down h)) + h + x )
    Pfeiffer   y = LN( Up(f(Down z)) + h + x ),  z = LN(h + x)
    parallel   y = LN( s * Up(f(Down x)) + h + x )

All three are `LN(delta(input) + s)` with s = h + x: the *delta form*, which the engine computes for all rows of a batch at
once (`delta_input`, `server/engine/bank.py`). Every other combination of the library's switches goes through `stack`, which
follows the library's order of operations step by step and is the slow twin of the delta form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from adapter_store.methods import Bottleneck
from server.methods.activations import ACTIVATIONS

Norm = Callable[[Tensor], Tensor]
DeltaInput = Literal["norm", "sublayer", "residual"]

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class BottleneckWeights:
    """The tensors of one adapter at one site, under the names of the shape law. Linear weights are [out, in]."""

    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    scaling: Tensor | None = None
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    ln_before_weight: Tensor | None = None
    ln_before_bias: Tensor | None = None
    ln_after_weight: Tensor | None = None
    ln_after_bias: Tensor | None = None


Acting = tuple[Bottleneck, BottleneckWeights]


def delta_input(config: Bottleneck) -> DeltaInput | None:
    """What the adapter reads in its delta form (LN(h + x), h or x); None if its switches do not allow that form."""
    plain = config.original_ln_after and not (config.ln_before or config.ln_after or config.use_gating)
    if not plain:
        return None
    if config.is_parallel:
        return "residual"
    if config.residual_before_ln is not True:
        return None
    return "norm" if config.original_ln_before else "sublayer"


def stack(adapters: Sequence[Acting], h: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """The output of a site of one row, [tokens, H], where `adapters` act one after the other.

    Gates average over the given tokens, so `h` and `x` must be those of one sequence.
    """
    out = h
    for config, weights in adapters:
        z, residual = _pre(config, out, x, norm)
        out = _single(config, weights, z, residual)
    return _post(adapters[-1][0], out, h, x, norm)


def _pre(config: Bottleneck, h: Tensor, x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """The adapter's input and its residual."""
    if config.is_parallel:
        return x, x
    residual = h
    z = h
    if config.original_ln_before:
        z = h + x
        if config.residual_before_ln == "post_add":
            residual = z
        z = norm(z)
    if config.residual_before_ln is False:
        residual = z
    return z, residual


def _single(config: Bottleneck, weights: BottleneckWeights, z: Tensor, residual: Tensor) -> Tensor:
    """The bottleneck itself with its own norms, gate and residual."""
    out = up_projection(config, weights, z)
    if weights.gate_weight is not None:
        out = out * torch.sigmoid(linear(z, weights.gate_weight, weights.gate_bias)).mean(dim=0)
    if config.is_parallel:
        return _ln_after(weights, out)
    if config.adapter_residual_before_ln:
        return _ln_after(weights, out + residual)
    return _ln_after(weights, out) + residual


def up_projection(config: Bottleneck, weights: BottleneckWeights, z: Tensor) -> Tensor:
    """scaling * Up(f(Down(LN_before(z)))), the adapter's output before gate and residual (AdapterFusion mixes these)."""
    if weights.ln_before_weight is not None:
        z = layer_norm(z, z.shape[-1:], weights.ln_before_weight, weights.ln_before_bias, LAYER_NORM_EPS)
    hidden = ACTIVATIONS[config.non_linearity](linear(z, weights.down_weight, weights.down_bias))
    return linear(hidden, weights.up_weight, weights.up_bias) * scale(config, weights)


def scale(config: Bottleneck, weights: BottleneckWeights) -> Tensor | float:
    """The adapter's scaling: a constant, or a learned tensor [1] or [H]."""
    if isinstance(config.scaling, str):
        assert weights.scaling is not None
        return weights.scaling
    return config.scaling


def _ln_after(weights: BottleneckWeights, out: Tensor) -> Tensor:
    if weights.ln_after_weight is None:
        return out
    return layer_norm(out, out.shape[-1:], weights.ln_after_weight, weights.ln_after_bias, LAYER_NORM_EPS)


def _post(config: Bottleneck, out: Tensor, h: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """The site's end, governed by the last adapter that ran; without `original_ln_after` the output is left as it is."""
    if config.is_parallel:
        out = out + h
    return norm(out + x) if config.original_ln_after else out

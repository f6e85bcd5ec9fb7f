"""Bottleneck adapters: Houlsby et al. (arXiv 1902.00751), Pfeiffer et al. (2005.00247), parallel (He et al., 2110.04366).

At a site, h [tokens, H] is the output of the sub-layer's last dense, x [tokens, H] the residual stream that entered the
sub-layer and LN the backbone's own LayerNorm (none in a pre-norm model). With Down: H -> d and Up: d -> H,

    Houlsby    y = LN( Up(f(Down h)) + h + x )
    Pfeiffer   y = LN( Up(f(Down z)) + h + x ),  z = LN(h + x)
    parallel   y = LN( s * Up(f(Down x)) + h + x )

All three are `LN(delta(input) + h + x)`: the *delta form*, which the engine computes for all rows of a batch at once
(`delta_input`, `server/engine/bank.py`). Every other combination of the library's switches, and every composition, follows the
library's order of operations step by step (`server/methods/composition.py`), which is the slow twin of the delta form.
Compacter is the same with Kronecker layers as Down and Up (`phm.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from adapter_store.methods import Bottleneck
from server.methods.activations import ACTIVATIONS
from server.methods.phm import Kronecker, kronecker

Norm = Callable[[Tensor], Tensor]
DeltaInput = Literal["norm", "sublayer", "residual"]

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A torch Linear: weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]


Projection = Dense | Kronecker


@dataclass(frozen=True, slots=True, eq=False)
class BottleneckWeights:
    """The tensors of one adapter at one site."""

    down: Projection
    up: Projection
    scaling: Tensor | None = None
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None
    ln_before_weight: Tensor | None = None
    ln_before_bias: Tensor | None = None
    ln_after_weight: Tensor | None = None
    ln_after_bias: Tensor | None = None


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


def project(layer: Projection, x: Tensor) -> Tensor:
    """Down or Up on [tokens, in]."""
    if isinstance(layer, Dense):
        return linear(x, layer.weight, layer.bias)
    y = x @ kronecker(layer)
    return y if layer.bias is None else y + layer.bias


def dense(layer: Projection) -> Dense:
    """Down or Up as a torch Linear, which computes the same."""
    if isinstance(layer, Dense):
        return layer
    weight = kronecker(layer).t()
    return Dense(weight, weight.new_zeros(weight.shape[0]) if layer.bias is None else layer.bias)


def up_projection(config: Bottleneck, weights: BottleneckWeights, z: Tensor) -> Tensor:
    """scaling * Up(f(Down(LN_before(z)))), the adapter's output before gate and residual (AdapterFusion mixes these)."""
    if weights.ln_before_weight is not None:
        z = layer_norm(z, z.shape[-1:], weights.ln_before_weight, weights.ln_before_bias, LAYER_NORM_EPS)
    hidden = ACTIVATIONS[config.non_linearity](project(weights.down, z))
    return project(weights.up, hidden) * scale(config, weights)


def scale(config: Bottleneck, weights: BottleneckWeights) -> Tensor | float:
    """The adapter's scaling: a constant, or a learned tensor [1] or [H]."""
    if isinstance(config.scaling, str):
        assert weights.scaling is not None
        return weights.scaling
    return config.scaling


def before(config: Bottleneck, h: Tensor, x: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
    """The adapter's input and its residual. Without a norm (pre-norm models) x is added all the same."""
    if config.is_parallel:
        return x, x
    residual = h
    z = h
    if config.original_ln_before:
        z = h + x
        if norm is not None:
            if config.residual_before_ln == "post_add":
                residual = z
            z = norm(z)
    if config.residual_before_ln is False:
        residual = z
    return z, residual


def single(config: Bottleneck, weights: BottleneckWeights, z: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The bottleneck itself with its own norms, gate and residual, and its raw up-projection. Gates average over the tokens given."""
    up = up_projection(config, weights, z)
    out = up
    if weights.gate_weight is not None:
        out = out * torch.sigmoid(linear(z, weights.gate_weight, weights.gate_bias)).mean(dim=0)
    if config.is_parallel:
        return _ln_after(weights, out), up
    if config.adapter_residual_before_ln:
        return _ln_after(weights, out + residual), up
    return _ln_after(weights, out) + residual, up


def _ln_after(weights: BottleneckWeights, out: Tensor) -> Tensor:
    if weights.ln_after_weight is None:
        return out
    return layer_norm(out, out.shape[-1:], weights.ln_after_weight, weights.ln_after_bias, LAYER_NORM_EPS)

"""Bottleneck adapters and Compacter: config and shape law."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from adapter_store.families import Site
from adapter_store.methods.base import LEAST_DIVISOR, Activation, Backbone, Factor, Frozen, Layers, Shape

MAX_BOTTLENECK = 4096
MAX_PHM_DIM = 256


class Bottleneck(Frozen):
    """The general bottleneck adapter of the `adapters` library: Houlsby (arXiv 1902.00751), Pfeiffer (2005.00247), parallel (2110.04366).

    Field names and defaults are the library's; the defaults are its `seq_bn`. The order of operations is in
    `server/methods/bottleneck.py`. With `phm_layer` it is a Compacter (2106.04647), whose two linears are sums of Kronecker
    products (2102.08597; `server/methods/phm.py`).
    """

    method: Literal["bottleneck"] = "bottleneck"
    mh_adapter: bool = False
    output_adapter: bool = True
    cross_adapter: bool = False
    reduction_factor: float | dict[str, float] = 16.0
    non_linearity: Activation = "relu"
    scaling: Factor | Literal["learned", "channel"] = 1.0
    is_parallel: bool = False
    use_gating: bool = False
    original_ln_before: bool = True
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    residual_before_ln: bool | Literal["post_add"] = True
    adapter_residual_before_ln: bool = False
    leave_out: Layers = ()
    phm_layer: bool = False
    phm_dim: int = Field(default=4, ge=1, le=MAX_PHM_DIM)
    phm_rank: int = Field(default=1, ge=1, le=MAX_BOTTLENECK)
    phm_bias: bool = True
    factorized_phm_W: bool = True  # noqa: N815 the library's spelling
    factorized_phm_rule: bool = False
    shared_phm_rule: bool = True
    shared_W_phm: bool = False  # noqa: N815

    @field_validator("reduction_factor")
    @classmethod
    def _positive(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        factors = value.values() if isinstance(value, dict) else [value]
        if not factors or not all(factor >= LEAST_DIVISOR for factor in factors):
            raise ValueError(f"reduction_factor must be at least {LEAST_DIVISOR}")
        if isinstance(value, dict) and any(not (key == "default" or (key.isdecimal() and len(key) <= 4)) for key in value):
            raise ValueError("reduction_factor maps layer numbers, and 'default', to factors")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Bottleneck":
        if not (self.mh_adapter or self.output_adapter or self.cross_adapter):
            raise ValueError("neither mh_adapter nor output_adapter nor cross_adapter is set, so the adapter would do nothing")
        if self.residual_before_ln == "post_add" and not self.original_ln_before and not self.is_parallel:
            raise ValueError("residual_before_ln 'post_add' needs original_ln_before, else no residual is defined")
        return self

    def sites(self, layer: int, backbone: Backbone) -> tuple[Site, ...]:
        """The sites of a layer at which this adapter acts; cross-attention is in a decoder's layers only."""
        if layer in self.leave_out:
            return ()
        cross = self.cross_adapter and layer >= backbone.encoder_layers
        wanted: tuple[tuple[Site, bool], ...] = (("mh", self.mh_adapter), ("cross", cross), ("output", self.output_adapter))
        return tuple(site for site, acts in wanted if acts)

    def size(self, layer: int, hidden_size: int) -> int:
        """The bottleneck's width at a layer: max(1, floor(hidden_size / reduction_factor))."""
        factor = self.reduction_factor
        if isinstance(factor, dict):
            if str(layer) not in factor and "default" not in factor:
                raise ValueError(f"reduction_factor names neither layer {layer} nor a default")
            factor = factor.get(str(layer), factor.get("default", 0.0))
        size = max(1, int(hidden_size // factor))
        if size > MAX_BOTTLENECK:
            raise ValueError(f"the bottleneck of layer {layer} would be {size} wide; at most {MAX_BOTTLENECK} is allowed")
        return size

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors: worked out before its law is."""
        return sum(len(self.sites(layer, backbone)) for layer in range(backbone.num_layers))

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """Names (without the part) and shapes of all tensors. Linear weights are [out, in], as in torch."""
        hidden = backbone.hidden_size
        shapes: dict[str, Shape] = {}
        for layer in range(backbone.num_layers):
            for site in self.sites(layer, backbone):
                prefix, size = f"layers.{layer}.{site}", self.size(layer, hidden)
                shapes |= self._linear(f"{prefix}.down", "shared.down", hidden, size)
                shapes |= self._linear(f"{prefix}.up", "shared.up", size, hidden)
                if self.scaling in ("learned", "channel"):
                    shapes[f"{prefix}.scaling"] = (1,) if self.scaling == "learned" else (hidden,)
                if self.use_gating:
                    shapes[f"{prefix}.gate.weight"] = (1, hidden)
                    shapes[f"{prefix}.gate.bias"] = (1,)
                for norm in ("ln_before", "ln_after"):
                    if getattr(self, norm):
                        shapes[f"{prefix}.{norm}.weight"] = (hidden,)
                        shapes[f"{prefix}.{norm}.bias"] = (hidden,)
        if self.phm_layer and self.shared_phm_rule and shapes:
            shapes |= self._rule("shared")
        return shapes

    def _linear(self, prefix: str, shared: str, inputs: int, outputs: int) -> dict[str, Shape]:
        if not self.phm_layer:
            return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}
        n = self.phm_dim
        if inputs % n or outputs % n:
            raise ValueError(f"a Kronecker layer of {inputs} inputs and {outputs} outputs is not divisible by phm_dim {n}")
        where = shared if self.shared_W_phm else prefix
        shapes: dict[str, Shape]
        if self.factorized_phm_W:
            shapes = {f"{where}.w_left": (n, inputs // n, self.phm_rank), f"{where}.w_right": (n, self.phm_rank, outputs // n)}
        else:
            shapes = {f"{where}.w": (n, inputs // n, outputs // n)}
        if self.phm_bias:
            shapes[f"{prefix}.bias"] = (outputs,)
        return shapes if self.shared_phm_rule else shapes | self._rule(prefix)

    def _rule(self, prefix: str) -> dict[str, Shape]:
        n = self.phm_dim
        if self.factorized_phm_rule:
            return {f"{prefix}.rule_left": (n, n, 1), f"{prefix}.rule_right": (n, 1, n)}
        return {f"{prefix}.rule": (n, n, n)}

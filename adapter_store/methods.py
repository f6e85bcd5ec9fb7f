"""One config per adapter method, with its shape law: config + backbone dimensions -> the exact names and shapes of its tensors.

The shape law is what a package is validated against and what the engine loads from. Names inside a package:

    {part}.layers.{i}.{site}.{tensor}        part: the key of the method in the manifest, usually the method's name
                                             site: mh (after self-attention) | output (after the feed-forward)
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Shape = tuple[int, ...]
Site = Literal["mh", "output"]

MAX_BOTTLENECK = 4096

# Names of the `adapters` library and of transformers' ACT2FN -> the name that Turret computes.
# Names with learned or random parts are left out.
ACTIVATIONS: dict[str, str] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_accurate": "gelu_accurate",
    "gelu_fast": "gelu_fast",
    "gelu_10": "gelu_10",
    "quick_gelu": "quick_gelu",
    "laplace": "laplace",
    "leakyrelu": "leaky_relu",
    "leaky_relu": "leaky_relu",
    "linear": "linear",
    "mish": "mish",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def activation(name: str) -> str:
    """The canonical name of an activation; raises ValueError for one that is unknown (it is never defaulted)."""
    try:
        return ACTIVATIONS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown activation '{name[:40]}'; known are {', '.join(sorted(ACTIVATIONS))}") from None


class Frozen(BaseModel):
    """Base of what is read from a manifest: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Backbone(Frozen):
    """The frozen model that a package was made for.

    `fingerprint` is the sha256 of its config and weights (`server.engine.backbone.fingerprint`); None means "not known",
    in which case type and dimensions alone are compared.
    """

    model_type: str = Field(min_length=1, max_length=64)
    hidden_size: int = Field(ge=1, le=65536)
    num_layers: int = Field(ge=1, le=1024)
    name: str = Field(default="", max_length=256)
    fingerprint: str | None = Field(default=None, pattern=r"^sha256:[0-9a-f]{64}$")


class Bottleneck(Frozen):
    """The general bottleneck adapter of the `adapters` library: Houlsby (arXiv 1902.00751), Pfeiffer (2005.00247), parallel (2110.04366).

    Field names and defaults are the library's; the defaults are its `seq_bn`. The order of operations is in
    `server/methods/bottleneck.py`.
    """

    method: Literal["bottleneck"] = "bottleneck"
    mh_adapter: bool = False
    output_adapter: bool = True
    reduction_factor: float | dict[str, float] = 16.0
    non_linearity: str = "relu"
    scaling: float | Literal["learned", "channel"] = 1.0
    is_parallel: bool = False
    use_gating: bool = False
    original_ln_before: bool = True
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    residual_before_ln: bool | Literal["post_add"] = True
    adapter_residual_before_ln: bool = False
    leave_out: tuple[int, ...] = ()

    @field_validator("non_linearity")
    @classmethod
    def _known_activation(cls, value: str) -> str:
        return activation(value)

    @field_validator("leave_out")
    @classmethod
    def _sorted_layers(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= layer < 1024 for layer in value):
            raise ValueError("leave_out must hold layer numbers from 0 on")
        return tuple(sorted(set(value)))

    @field_validator("reduction_factor")
    @classmethod
    def _positive(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        factors = value.values() if isinstance(value, dict) else [value]
        if not factors or any(factor <= 0 for factor in factors):
            raise ValueError("reduction_factor must be greater than 0")
        if isinstance(value, dict) and any(not (key == "default" or (key.isdecimal() and len(key) <= 4)) for key in value):
            raise ValueError("reduction_factor maps layer numbers, and 'default', to factors")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Bottleneck":
        if not (self.mh_adapter or self.output_adapter):
            raise ValueError("neither mh_adapter nor output_adapter is set, so the adapter would do nothing")
        if self.residual_before_ln == "post_add" and not self.original_ln_before and not self.is_parallel:
            raise ValueError("residual_before_ln 'post_add' needs original_ln_before, else no residual is defined")
        return self

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of a layer at which this adapter acts."""
        sites: list[Site] = []
        if self.mh_adapter:
            sites.append("mh")
        if self.output_adapter:
            sites.append("output")
        return tuple(sites)

    def layers(self, num_layers: int) -> list[int]:
        """The layers at which this adapter acts: all but `leave_out` (AdapterDrop, arXiv 2010.11918)."""
        return [layer for layer in range(num_layers) if layer not in self.leave_out]

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

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """Names (without the part) and shapes of all tensors. Linear weights are [out, in], as in torch."""
        hidden = backbone.hidden_size
        shapes: dict[str, Shape] = {}
        for layer in self.layers(backbone.num_layers):
            size = self.size(layer, hidden)
            for site in self.sites:
                prefix = f"layers.{layer}.{site}"
                shapes[f"{prefix}.down.weight"] = (size, hidden)
                shapes[f"{prefix}.down.bias"] = (size,)
                shapes[f"{prefix}.up.weight"] = (hidden, size)
                shapes[f"{prefix}.up.bias"] = (hidden,)
                if self.scaling in ("learned", "channel"):
                    shapes[f"{prefix}.scaling"] = (1,) if self.scaling == "learned" else (hidden,)
                if self.use_gating:
                    shapes[f"{prefix}.gate.weight"] = (1, hidden)
                    shapes[f"{prefix}.gate.bias"] = (1,)
                for norm in ("ln_before", "ln_after"):
                    if getattr(self, norm):
                        shapes[f"{prefix}.{norm}.weight"] = (hidden,)
                        shapes[f"{prefix}.{norm}.bias"] = (hidden,)
        return shapes


# One row per method; issue by issue this becomes a discriminated union on `method`.
Method = Annotated[Bottleneck, Field()]

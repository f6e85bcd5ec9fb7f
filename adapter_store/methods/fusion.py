"""AdapterFusion, invertible adapters and tuned layer norms: configs and shape laws."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from adapter_store.families import Site
from adapter_store.methods.base import LEAST_DIVISOR, MAX_FACTOR, Activation, Backbone, Frozen, Layers, Shape
from adapter_store.names import shown


class Fusion(Frozen):
    """AdapterFusion (arXiv 2005.00247): attention over the outputs of the members, which the package's composition names.

    Field names are the library's. `sites` are those at which all members act. temperature: what the scores are divided by.
    """

    method: Literal["fusion"] = "fusion"
    sites: tuple[Site, ...] = Field(default=("output",), min_length=1, fail_fast=True)
    leave_out: Layers = ()
    query: bool = True
    key: bool = True
    value: bool = True
    query_before_ln: bool = False
    value_before_softmax: bool = True
    residual_before: bool = False
    temperature: float = Field(default=1.0, ge=LEAST_DIVISOR, le=MAX_FACTOR)

    @model_validator(mode="after")
    def _distinct(self) -> "Fusion":
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("a site is named twice")
        return self

    def sites_of(self, layer: int, backbone: Backbone) -> tuple[Site, ...]:
        """The sites of a layer that have fusion weights."""
        if layer in self.leave_out:
            return ()
        return tuple(site for site in self.sites if site != "cross" or layer >= backbone.encoder_layers)

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors."""
        return (self.query + self.key + self.value) * sum(len(self.sites_of(layer, backbone)) for layer in range(backbone.num_layers))

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """`layers.{i}.{site}.query` and `.key` with weight [H, H] and bias [H], `.value.weight` [H, H]."""
        hidden = backbone.hidden_size
        shapes: dict[str, Shape] = {}
        for layer in range(backbone.num_layers):
            for site in self.sites_of(layer, backbone):
                for name in ("query", "key"):
                    if getattr(self, name):
                        shapes[f"layers.{layer}.{site}.{name}.weight"] = (hidden, hidden)
                        shapes[f"layers.{layer}.{site}.{name}.bias"] = (hidden,)
                if self.value:
                    shapes[f"layers.{layer}.{site}.value.weight"] = (hidden, hidden)
        return shapes


class Invertible(Frozen):
    """The invertible adapter of MAD-X (arXiv 2005.00052; NICE, 1410.8516) on the embeddings, of size E, split at E // 2.

    y1 = x1 + F(x2), y2 = x2 + G(y1); F and G are two linears with `non_linearity` between them.
    """

    method: Literal["invertible"] = "invertible"
    non_linearity: Activation = "relu"
    reduction_factor: float = Field(default=2.0, ge=LEAST_DIVISOR)

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors."""
        return 8

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """`f.0`, `f.1`, `g.0`, `g.1` with weight [out, in] and bias [out]."""
        first = backbone.embeddings // 2
        second = backbone.embeddings - first
        shapes: dict[str, Shape] = {}
        for name, inputs, outputs in (("f", second, first), ("g", first, second)):
            inner = int(inputs // self.reduction_factor)
            if not 1 <= inner <= 65536:
                raise ValueError(f"the invertible adapter would be {inner} wide inside")
            shapes[f"{name}.0.weight"], shapes[f"{name}.0.bias"] = (inner, inputs), (inner,)
            shapes[f"{name}.1.weight"], shapes[f"{name}.1.bias"] = (outputs, inner), (outputs,)
        return shapes


_NORM = re.compile(r"layers\.(0|[1-9][0-9]{0,3})\.(mh|cross|output)|final\.(encoder|decoder)")


class Norms(Frozen):
    """Layer norms of the backbone that the task has tuned: `modules` are `layers.{i}.{site}` and `final.{encoder|decoder}`.

    T5 only: its norms have a weight [H] and no bias, and the one of a site is what the sub-layer reads.
    """

    method: Literal["norms"] = "norms"
    modules: tuple[str, ...] = Field(min_length=1, max_length=8192, fail_fast=True)

    @field_validator("modules")
    @classmethod
    def _sound_modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for module in value:
            if not _NORM.fullmatch(module):
                raise ValueError(f"{shown(module, 60)} is no layer norm that can be tuned")
        if len(set(value)) != len(value):
            raise ValueError("a layer norm is named twice")
        return value

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors."""
        return len(self.modules)

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """`{module}.weight` [H]."""
        return {f"{module}.weight": (backbone.hidden_size,) for module in self.modules}

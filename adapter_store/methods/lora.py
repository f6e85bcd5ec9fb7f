"""LoRA and (IA)^3 on the backbone's linears: configs and shape laws."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from adapter_store.families import ADDRESS
from adapter_store.methods.base import Backbone, Factor, Frozen, Shape
from adapter_store.names import shown

MAX_RANK = 4096
MAX_MODULES = 16384


def _gate(address: str, inputs: int) -> dict[str, Shape]:
    """A gate has one row; that of a linear which is q, k and v in one has three, one for each third of its outputs."""
    rows = 3 if address.rpartition(".")[2] == "qkv" else 1
    return {f"{address}.gate.weight": (rows, inputs), f"{address}.gate.bias": (rows,)}


def _addresses(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) > MAX_MODULES:
        raise ValueError(f"{len(value)} modules, at most {MAX_MODULES} are allowed")
    for address in value:
        if not ADDRESS.fullmatch(address):
            raise ValueError(f"{shown(address, 60)} is no linear: expected 'layers.0.q', 'pooler' and the like")
    if len(set(value)) != len(value):
        raise ValueError("a module is named twice")
    return value


class LoRA(Frozen):
    """LoRA (arXiv 2106.09685): y = W x + b + scaling * B A x at each of `modules`.

    `ranks` and `scalings` hold what differs from `rank` and `scaling`, by address. With `use_gating` the mean over the row's
    tokens of sigmoid(gate x) takes the place of the scaling, as in the `adapters` library (UniPELT, 2110.07577).
    """

    method: Literal["lora"] = "lora"
    modules: tuple[str, ...] = Field(min_length=1, fail_fast=True)
    rank: int = Field(ge=1, le=MAX_RANK)
    scaling: Factor
    ranks: dict[str, int] = Field(default_factory=dict)
    scalings: dict[str, Factor] = Field(default_factory=dict)
    use_gating: bool = False

    @field_validator("modules")
    @classmethod
    def _sound_modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _addresses(value)

    @model_validator(mode="after")
    def _consistent(self) -> "LoRA":
        modules = set(self.modules)
        for address in (*self.ranks, *self.scalings):
            if address not in modules:
                raise ValueError(f"{shown(address, 60)} has a rank or a scaling of its own, but is none of the modules")
        if any(not 1 <= rank <= MAX_RANK for rank in self.ranks.values()):
            raise ValueError(f"ranks must lie between 1 and {MAX_RANK}")
        return self

    def rank_of(self, address: str) -> int:
        """The rank at one module."""
        return self.ranks.get(address, self.rank)

    def scaling_of(self, address: str) -> float:
        """alpha / r, or alpha / sqrt(r), at one module."""
        return self.scalings.get(address, self.scaling)

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors."""
        return 2 * len(self.modules)

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """`{address}.a` [r, in], `{address}.b` [out, r] and, with gating, `{address}.gate.weight` [1, in], `.bias` [1] (3 for qkv)."""
        shapes: dict[str, Shape] = {}
        for address in self.modules:
            inputs, outputs = backbone.linear(address)
            rank = self.rank_of(address)
            shapes[f"{address}.a"] = (rank, inputs)
            shapes[f"{address}.b"] = (outputs, rank)
            if self.use_gating:
                shapes |= _gate(address, inputs)
        return shapes


class IA3(Frozen):
    """(IA)^3 (arXiv 2205.05638): y = l * (W x + b) at each of `outputs`, y = W (l * x) + b at each of `inputs`.

    The `adapters` library scales outputs only, with `scaling` (its alpha); PEFT scales the inputs of its `feedforward_modules`.
    `use_gating` as in LoRA.
    """

    method: Literal["ia3"] = "ia3"
    outputs: tuple[str, ...] = Field(default=(), fail_fast=True)
    inputs: tuple[str, ...] = Field(default=(), fail_fast=True)
    scaling: Factor = 1.0
    use_gating: bool = False

    @field_validator("outputs", "inputs")
    @classmethod
    def _sound_modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _addresses(value)

    @model_validator(mode="after")
    def _consistent(self) -> "IA3":
        if not (self.outputs or self.inputs):
            raise ValueError("neither outputs nor inputs are named, so the adapter would do nothing")
        if set(self.outputs) & set(self.inputs):
            raise ValueError("a module is scaled at its output and at its input: only one of them is defined")
        if self.use_gating and self.inputs:
            raise ValueError("gates belong to scaled outputs only")
        return self

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors."""
        return len(self.outputs) + len(self.inputs)

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """`{address}.scale`: [out] of an output, [in] of an input; with gating `{address}.gate.weight` [1, in], `.bias` [1] (3 for qkv)."""
        shapes: dict[str, Shape] = {}
        for address in self.outputs:
            inputs, outputs = backbone.linear(address)
            shapes[f"{address}.scale"] = (outputs,)
            if self.use_gating:
                shapes |= _gate(address, inputs)
        return shapes | {f"{address}.scale": (backbone.linear(address)[0],) for address in self.inputs}

"""Prefix tuning and prompt tuning: configs and shape laws."""

from typing import Literal

from pydantic import Field, model_validator

from adapter_store.methods.base import Activation, Backbone, Frozen, Layers, Shape

Group = Literal["self", "encoder", "cross"]
MAX_PREFIX = 4096


class Prefix(Frozen):
    """Prefix tuning (arXiv 2101.00190): learned keys and values before those of the row, always visible.

    groups: the attentions that get one: "self" (of a model with one stack, or of a decoder), "encoder", "cross".
    flat: the keys and values themselves are stored; else an embedding and the MLP that makes them.
    shift_positions: the row's own tokens count from `prefix_length` on (PEFT), else from 0 (`adapters`).
    use_gating: keys and values are scaled by the mean over the row's tokens of sigmoid(gate x); with `shared_gating` by the same one.
    """

    method: Literal["prefix"] = "prefix"
    prefix_length: int = Field(ge=1, le=MAX_PREFIX)
    groups: tuple[Group, ...] = Field(default=("self",), fail_fast=True)
    flat: bool = True
    bottleneck_size: int = Field(default=512, ge=1, le=65536)
    non_linearity: Activation = "tanh"
    shift_positions: bool = False
    use_gating: bool = False
    shared_gating: bool = True
    leave_out: Layers = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Prefix":
        if not self.groups or len(set(self.groups)) != len(self.groups):
            raise ValueError("groups must name each attention that gets a prefix once")
        return self

    def layers(self, group: str, backbone: Backbone) -> list[int]:
        """The layers whose attention of a group gets a prefix, in the order of the tensor."""
        first, last = (0, backbone.num_layers) if not backbone.decoder_layers else (backbone.encoder_layers, backbone.num_layers)
        if group == "encoder":
            first, last = 0, backbone.encoder_layers
        return [layer for layer in range(first, last) if layer not in self.leave_out]

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors."""
        return len(self.groups)

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """Per group, with L its layers and K a key's width: flat `{group}.prefix` [P, 2 L, K], keys at 2 j and values at 2 j + 1.

        Else `{group}.embedding` [P, H], `{group}.mlp.0` H -> bottleneck, `{group}.mlp.1` bottleneck -> 2 L K.
        Gates: `layers.{i}.{group}.gate.weight` [1 or 2, H].
        """
        hidden = backbone.hidden_size
        shapes: dict[str, Shape] = {}
        for group in self.groups:
            if group != "self" and not backbone.decoder_layers:
                raise ValueError(f"the backbone has no attention of the group '{group}'")
            layers = self.layers(group, backbone)
            if not layers:
                raise ValueError(f"leave_out leaves no layer with a prefix of the group '{group}'")
            width = 2 * len(layers) * backbone.key_width(group)
            if self.flat:
                shapes[f"{group}.prefix"] = (self.prefix_length, 2 * len(layers), backbone.key_width(group))
            else:
                shapes[f"{group}.embedding"] = (self.prefix_length, hidden)
                shapes[f"{group}.mlp.0.weight"], shapes[f"{group}.mlp.0.bias"] = (self.bottleneck_size, hidden), (self.bottleneck_size,)
                shapes[f"{group}.mlp.1.weight"], shapes[f"{group}.mlp.1.bias"] = (width, self.bottleneck_size), (width,)
            if self.use_gating:
                outputs = 1 if self.shared_gating else 2
                for layer in layers:
                    shapes[f"layers.{layer}.{group}.gate.weight"] = (outputs, hidden)
                    shapes[f"layers.{layer}.{group}.gate.bias"] = (outputs,)
        return shapes


class Prompt(Frozen):
    """Prompt tuning (arXiv 2104.08691): learned vectors before the row's tokens; heads then read the longer row.

    place: "words" puts them among the word embeddings, so they take positions 0 .. P-1 (PEFT); "embeddings" puts them behind the
    whole embedding layer, and the row's tokens keep their positions (`adapters`). after_first: behind the row's first token.
    """

    method: Literal["prompt"] = "prompt"
    prompt_length: int = Field(ge=1, le=MAX_PREFIX)
    place: Literal["words", "embeddings"]
    after_first: bool = False

    def least(self, backbone: Backbone) -> int:
        """No package of this method has fewer tensors."""
        return 1

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """`embedding` [P, E]."""
        return {"embedding": (self.prompt_length, backbone.embeddings)}

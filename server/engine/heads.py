"""Heads on the device: from the last hidden state of the rows of one head to their raw outputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from adapter_store.manifest import Head
from server.core import Readout
from server.methods.activations import ACTIVATIONS


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """A head's Linear layers, ([out, in], [out] or None) each, in order."""

    head: Head
    layers: tuple[tuple[Tensor, Tensor | None], ...]

    @classmethod
    def of(cls, head: Head, tensors: dict[str, Tensor]) -> "HeadWeights":
        """The head of a package from its tensors, under the names of the shape law."""
        return cls(head, tuple((tensors[f"head.{i}.weight"], tensors.get(f"head.{i}.bias")) for i in range(head.layers)))

    def apply(self, features: Tensor) -> Tensor:
        """Raw logits [n, labels] from features [n, H]: Linear, activation, Linear ..."""
        act = ACTIVATIONS[self.head.activation or "linear"]
        for number, (weight, bias) in enumerate(self.layers):
            features = linear(features if number == 0 else act(features), weight, bias)
        return features


def pooled(pooler: nn.Module, first: Tensor) -> Tensor:
    """The backbone's pooler on first tokens [n, H]; it takes [n, tokens, H] and reads token 0."""
    output: Tensor = pooler(first.unsqueeze(1))
    return output


def embedding(hidden: Tensor, readout: Readout) -> Tensor:
    """One row's tokens [tokens, H] as one vector [H]."""
    vector = hidden[0] if readout.pooling == "cls" else hidden.mean(dim=0)
    return normalize(vector, dim=0) if readout.normalize else vector


def logits(weights: HeadWeights, hidden: Tensor, spans: list[tuple[int, int]], pooler: nn.Module | None) -> list[Tensor]:
    """The raw outputs of all rows of one head: [labels] each, or [tokens, labels] for tagging. `hidden` is [T, H]."""
    if weights.head.type == "tagging":
        tokens = hidden[spans[0][0] : spans[0][1]] if len(spans) == 1 else torch.cat([hidden[a:b] for a, b in spans])
        return list(torch.split(weights.apply(tokens), [b - a for a, b in spans]))
    first = hidden[[a for a, _ in spans]]
    if weights.head.use_pooler:
        assert pooler is not None
        first = pooled(pooler, first)
    return list(weights.apply(first).unbind(0))

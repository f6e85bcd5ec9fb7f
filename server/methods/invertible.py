"""The invertible adapter of MAD-X (Pfeiffer et al., arXiv 2005.00052), a NICE coupling (Dinh et al., 1410.8516) on the embeddings.

    forward  y1 = x1 + F(x2), y2 = x2 + G(y1)          inverse  x2 = y2 - G(y1), x1 = y1 - F(x2)

x1 is the first E // 2 numbers of an embedding. The inverse runs before the decoder of a language-model head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from server.methods.activations import ACTIVATIONS

Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class InvertibleWeights:
    """F and G: two linears each, (weight [out, in], bias [out])."""

    f: tuple[Layer, Layer]
    g: tuple[Layer, Layer]
    activation: str

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, E] to [tokens, E]."""
        x1, x2 = self._split(x)
        y1 = x1 + self._net(self.f, x2)
        return torch.cat((y1, x2 + self._net(self.g, y1)), dim=-1)

    def inverse(self, y: Tensor) -> Tensor:
        """Undoes `forward`."""
        y1, y2 = self._split(y)
        x2 = y2 - self._net(self.g, y1)
        return torch.cat((y1 - self._net(self.f, x2), x2), dim=-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = x.shape[-1] // 2
        return x[..., :half], x[..., half:]

    def _net(self, net: tuple[Layer, Layer], x: Tensor) -> Tensor:
        return linear(ACTIVATIONS[self.activation](linear(x, *net[0])), *net[1])

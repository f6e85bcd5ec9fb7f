"""A post-norm encoder layer (Vaswani et al., arXiv 1706.03762; BERT and its kin) as few flat operations, for all tokens of a batch.

    s = O attention(Q x, K x, V x) + x,  y = LN(s)          Q, K and V are one product; a residual is part of its product
    s = Down GELU(Up y) + y,             z = LN(s)          so is GELU

Which module is what is in the family's row, under canonical names. The slow twin is transformers' own layer with taps on it, which is
also how every layer runs that is not of this shape (`fits`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from adapter_store.families import Layers
from server.engine.attention import Rule, attend_packed
from server.engine.linears import Dense, is_gelu
from server.methods.bottleneck import Norm

if TYPE_CHECKING:
    from server.engine.running import Level, Running, Stage

LINEARS = frozenset({"q", "k", "v", "o", "up", "down"})


@dataclass(frozen=True, slots=True, eq=False)
class PostNormWeights:
    """A layer's frozen parts: its products, its norms, and the activation of its feed-forward, None for GELU."""

    qkv: Dense
    o: Dense
    up: Dense
    down: Dense
    attention_norm: Norm
    output_norm: Norm
    activation: Callable[[Tensor], Tensor] | None


def fits(layers: Layers, linears: dict[str, nn.Module]) -> bool:
    """Whether a family's layers are of this shape: the six linears, and the two sites at their norms."""
    sites = {modules.site: modules for modules in layers.sites}
    known = all(type(linears.get(name)) is nn.Linear for name in LINEARS) and linears.keys() == LINEARS
    return known and sites.keys() == {"mh", "output"} and all(s.norm and not s.swapped for s in sites.values()) and not layers.norms


def take(layer: nn.Module, layers: Layers, linears: dict[str, Any]) -> PostNormWeights:
    """A layer's weights, laid out for its products; the modules give theirs up."""
    norms = {modules.site: layer.get_submodule(modules.norm) for modules in layers.sites}
    assert layers.feed_forward is not None
    activation = layer.get_submodule(layers.feed_forward[1])
    return PostNormWeights(
        Dense(linears["q"], linears["k"], linears["v"]),
        Dense(linears["o"]),
        Dense(linears["up"]),
        Dense(linears["down"]),
        _norm(norms["mh"]),
        _norm(norms["output"]),
        None if is_gelu(activation) else activation,
    )


def _norm(module: nn.Module) -> Norm:
    assert isinstance(module, nn.LayerNorm)
    return partial(_layer_norm, module.normalized_shape, module.weight, module.bias, module.eps)


def _layer_norm(shape: Sequence[int], weight: Tensor, bias: Tensor, eps: float, x: Tensor) -> Tensor:
    return torch.layer_norm(x, shape, weight, bias, eps)


class PostNormLayer:
    """One layer on one stage. Its `forward` takes the place of the module's."""

    def __init__(self, weights: PostNormWeights, number: int, heads: int, stage: "Stage") -> None:
        self._weights, self._heads, self._stage = weights, heads, stage
        self._rule = Rule(number, "self")
        names = ("q", "k", "v", "o", "up", "down", "mh", "output")
        self._q, self._k, self._v, self._o, self._up, self._down, self._mh, self._output = (f"layers.{number}.{name}" for name in names)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """[1, T, H] to [1, T, H]; what else a model hands its layers (masks, caches) is none of a packed batch's."""
        running = self._stage.now()
        level, weights, x = running.level, self._weights, hidden_states[0]
        attended = self._attend(x, running)
        y = self._site(self._mh, self._o, weights.o, attended, x, weights.attention_norm, running)
        z = self._site(self._output, self._down, weights.down, self._feed(y, level), y, weights.output_norm, running)
        return z.unsqueeze(0)

    def _attend(self, x: Tensor, running: "Running") -> Tensor:
        """Attention's output [T, H], before its last dense."""
        product = self._weights.qkv
        qkv = product(x)
        for number, address in enumerate((self._q, self._k, self._v)):
            work = running.level.linears.get(address)
            if work is not None:
                read, part = work.read(x), qkv.chunk(3, dim=1)[number]
                if read is not x:
                    part.copy_(product(read).chunk(3, dim=1)[number])
                work.change(read, part)
        query, key, value = qkv.view(len(x), 3, self._heads, -1).unbind(1)
        return attend_packed(query, key, value, None, running.packing, self._rule, x).reshape(x.shape)

    def _feed(self, y: Tensor, level: "Level") -> Tensor:
        """The feed-forward's inner activations."""
        up, activation, work = self._weights.up, self._weights.activation, level.linears.get(self._up)
        if work is None:
            return up.gelu(y) if activation is None else activation(up(y))
        read = work.read(y)
        return (activation or gelu)(work.change(read, up(read)))

    def _site(self, site: str, linear: str, product: Dense, read: Tensor, x: Tensor, norm: Norm, running: "Running") -> Tensor:
        """The sub-layer's last dense on `read`, what adapters do behind it, and the norm: [T, H]."""
        at_linear, work = running.level.linears.get(linear), running.level.sites.get(site)
        if at_linear is None and (work is None or not work.reads_sublayer):
            h, s = None, product.plus(read, x)
        else:
            read = read if at_linear is None else at_linear.read(read)
            h = product(read)
            if at_linear is not None:
                at_linear.change(read, h)
            s = h + x
        return norm(s) if work is None else work.after_norm(site, h, x, s, norm, running.noted(site))

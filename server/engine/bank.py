"""Banks: adapters of one shape, side by side on the device, ready for the delta form `s += Up(f(Down(z)))`.

A bank holds, for each site of its shape, `[slots, ...]` tensors; one adapter lives in one slot of all of them. The weights lie
as the products need them (Down [H, d], Up [d, H]) with the scaling folded into Up, which is exact algebra. Growing copies the
bank into one of twice the slots, so a slot keeps its number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adapter_store.methods import Bottleneck
from server.methods.activations import ACTIVATIONS
from server.methods.bottleneck import BottleneckWeights, DeltaInput, delta_input, scale

SiteIndex = int
Views = tuple[Tensor, Tensor, Tensor, Tensor]

FIRST_CAPACITY = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent tokens [start, end) of a batch whose adapter lives in `slot`."""

    start: int
    end: int
    slot: int


@dataclass(frozen=True, slots=True)
class BankShape:
    """What adapters must have in common to share a bank: input, activation, hidden size and the width at each site."""

    input: DeltaInput
    activation: str
    hidden_size: int
    widths: tuple[tuple[SiteIndex, int], ...]

    @classmethod
    def of(cls, config: Bottleneck, weights: dict[SiteIndex, BottleneckWeights]) -> "BankShape | None":
        """The shape of an adapter in its delta form; None if its switches do not allow that form."""
        form = delta_input(config)
        if form is None:
            return None
        widths = tuple((site, w.down_weight.shape[0]) for site, w in sorted(weights.items()))
        return cls(form, config.non_linearity, next(iter(weights.values())).down_weight.shape[1], widths)


class Bank:
    """The slots of one shape. Not thread-safe: it belongs to the engine thread."""

    def __init__(self, shape: BankShape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape = shape
        self.sites = frozenset(site for site, _ in shape.widths)
        self._activation = ACTIVATIONS[shape.activation]
        self._device, self._dtype = device, dtype
        self._tensors: dict[SiteIndex, Views] = {}
        self._views: dict[SiteIndex, list[Views]] = {}
        self._free: list[int] = []
        self._grow(FIRST_CAPACITY)

    @property
    def capacity(self) -> int:
        """Number of slots, free or taken."""
        return len(next(iter(self._views.values())))

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot on the device."""
        hidden, size = self.shape.hidden_size, self._dtype.itemsize
        return size * sum(2 * hidden * width + width + hidden for _, width in self.shape.widths)

    def put(self, config: Bottleneck, weights: dict[SiteIndex, BottleneckWeights]) -> int:
        """Copies an adapter into a free slot and returns the slot."""
        if not self._free:
            self._grow(2 * self.capacity)
        slot = self._free.pop()
        for site, w in weights.items():
            down, down_bias, up, up_bias = self._views[site][slot]
            factor = scale(config, w)
            down.copy_(w.down_weight.t())
            down_bias.copy_(w.down_bias)
            up.copy_(w.up_weight.t() * factor)
            up_bias.copy_(w.up_bias * factor)
        return slot

    def free(self, slot: int) -> None:
        """Gives a slot back; its contents stay until it is reused."""
        self._free.append(slot)

    def weights(self, slot: int) -> dict[SiteIndex, BottleneckWeights]:
        """The adapter of a slot as plain weights (views), scaling already folded in: use it with scaling 1.0."""
        return {
            site: BottleneckWeights(down.t(), down_bias, up.t(), up_bias)
            for site, views in self._views.items()
            for down, down_bias, up, up_bias in (views[slot],)
        }

    def add_delta(self, site: SiteIndex, segments: tuple[Segment, ...], z: Tensor, s: Tensor) -> None:
        """s[a:b] += Up(f(Down(z[a:b]))) for each segment, in place; z and s are [T, H]."""
        views, activation = self._views[site], self._activation
        for segment in segments:
            down, down_bias, up, up_bias = views[segment.slot]
            rows = slice(segment.start, segment.end)
            hidden = activation(torch.addmm(down_bias, z[rows], down))
            s[rows].addmm_(hidden, up).add_(up_bias)

    def _grow(self, capacity: int) -> None:
        taken = self.capacity if self._views else 0
        for site, width in self.shape.widths:
            hidden = self.shape.hidden_size
            shapes = ((hidden, width), (width,), (width, hidden), (hidden,))
            new = [torch.empty(capacity, *shape, device=self._device, dtype=self._dtype) for shape in shapes]
            for old, tensor in zip(self._tensors.get(site, ()), new, strict=False):
                tensor[: len(old)].copy_(old)
            self._tensors[site] = (new[0], new[1], new[2], new[3])
            self._views[site] = list(zip(*(tensor.unbind(0) for tensor in new), strict=True))
        self._free.extend(reversed(range(taken, capacity)))


def unscaled(config: Bottleneck) -> Bottleneck:
    """The config that goes with `Bank.weights`, where the scaling is already in Up."""
    return config.model_copy(update={"scaling": 1.0})

"""Banks: adapters of one shape, side by side on the device, ready for the delta form `s += Up(f(Down(z)))`.

A bank holds, for each site of its shape, `[slots, ...]` tensors; one adapter lives in one slot of all of them. Dense weights lie
as the products need them (Down [H, d], Up [d, H]); Kronecker layers stay in their factors, a few KB an adapter, and the dense
form of the slots that a batch needs is made for that batch at each site (`methods/phm.py`). The scaling is folded into Up, which is
exact algebra. Growing copies the bank into one of twice the slots, so a slot keeps its number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adapter_store.methods import Bottleneck
from server.methods.activations import ACTIVATIONS
from server.methods.bottleneck import BottleneckWeights, DeltaInput, Dense, Projection, delta_input, dense, scale
from server.methods.phm import Kronecker, expand

SiteIndex = str
Named = dict[str, Tensor]

FIRST_CAPACITY = 8
GROUPED = 8  # segments of a bank of factors from which two grouped products are faster than a loop


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent tokens [start, end) of a batch whose adapter lives in `slot`."""

    start: int
    end: int
    slot: int


@dataclass(frozen=True, slots=True)
class BankShape:
    """What adapters must have in common to share a bank: input, activation, and the shapes of their tensors at each site."""

    input: DeltaInput
    activation: str
    sites: tuple[tuple[SiteIndex, tuple[tuple[str, tuple[int, ...]], ...]], ...]

    @classmethod
    def of(cls, config: Bottleneck, weights: dict[SiteIndex, BottleneckWeights]) -> "BankShape | None":
        """The shape of an adapter in its delta form; None if its switches do not allow that form."""
        form = delta_input(config)
        if form is None or not weights:
            return None
        laid = {site: _laid_out(config, at_site) for site, at_site in sorted(weights.items())}
        shapes = tuple((site, tuple((name, tuple(t.shape)) for name, t in tensors.items())) for site, tensors in laid.items())
        return cls(form, config.non_linearity, shapes)


class Bank:
    """The slots of one shape. Not thread-safe: it belongs to the engine thread."""

    def __init__(self, shape: BankShape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape = shape
        self.sites = frozenset(site for site, _ in shape.sites)
        self._activation = ACTIVATIONS[shape.activation]
        self._device, self._dtype = device, dtype
        self._tensors: dict[SiteIndex, Named] = {}
        self._views: dict[SiteIndex, list[tuple[Tensor, ...]]] = {}
        self._free: list[int] = []
        self._capacity = 0
        self._grow(FIRST_CAPACITY)

    @property
    def capacity(self) -> int:
        """Number of slots, free or taken."""
        return self._capacity

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot on the device."""
        return self._dtype.itemsize * sum(t[0].numel() for tensors in self._tensors.values() for t in tensors.values())

    def put(self, config: Bottleneck, weights: dict[SiteIndex, BottleneckWeights]) -> int:
        """Copies an adapter into a free slot and returns the slot."""
        if not self._free:
            self._grow(2 * self._capacity)
        slot = self._free.pop()
        for site, at_site in weights.items():
            for name, tensor in _laid_out(config, at_site).items():
                self._tensors[site][name][slot].copy_(tensor)
        return slot

    def free(self, slot: int) -> None:
        """Gives a slot back; its contents stay until it is reused."""
        self._free.append(slot)

    def weights(self, slot: int) -> dict[SiteIndex, BottleneckWeights]:
        """The adapter of a slot as plain weights (views), scaling already folded in: use it with scaling 1.0."""
        return {site: self.at_site(site, slot) for site in self._tensors}

    def at_site(self, site: SiteIndex, slot: int) -> BottleneckWeights:
        """The same, at one site."""
        tensors = {name: tensor[slot] for name, tensor in self._tensors[site].items()}
        return BottleneckWeights(_projection("down", tensors), _projection("up", tensors))

    def add_delta(self, site: SiteIndex, segments: tuple[Segment, ...], z: Tensor, s: Tensor) -> None:
        """s[a:b] += Up(f(Down(z[a:b]))) for each segment, in place; z and s are [T, H]."""
        if site not in self._views and len(segments) >= GROUPED and z.shape[1] % 4 == 0:
            self._add_grouped(site, segments, z, s)
            return
        views, activation = self._views.get(site) or self._expanded(site, segments), self._activation
        for segment in segments:
            down, down_bias, up, up_bias = views[segment.slot]
            rows = slice(segment.start, segment.end)
            hidden = activation(torch.addmm(down_bias, z[rows], down))
            s[rows].addmm_(hidden, up).add_(up_bias)

    def _expanded(self, site: SiteIndex, segments: tuple[Segment, ...]) -> "dict[int, tuple[Tensor, ...]]":
        """(Down, bias, Up, bias) by slot of the adapters of a batch, made dense for it."""
        slots = sorted({segment.slot for segment in segments})
        tensors = self._taken(site, slots)
        down, up = (_expand(name, tensors) for name in ("down", "up"))
        return dict(zip(slots, zip(down, tensors["down.bias"], up, tensors["up.bias"], strict=True), strict=True))

    def _add_grouped(self, site: SiteIndex, segments: tuple[Segment, ...], z: Tensor, s: Tensor) -> None:
        """The same for many segments of a bank of factors, as two grouped products. Up's bias is a row of Up, against a column of ones."""
        tensors = self._taken(site, [segment.slot for segment in segments])
        down = _expand("down", tensors)
        lengths = [segment.end - segment.start for segment in segments]
        width = down.shape[2]
        padded = 4 * (width // 4 + 1)  # grouped products want rows of whole 16 bytes
        wide = torch.nn.functional.pad(down, (0, padded - width))
        tall = _expand("up", tensors, below=padded - width)
        tall[:, width], tall[:, width + 1 :] = tensors["up.bias"], 0.0
        first, last = segments[0].start, segments[-1].end
        whole = last - first == sum(lengths)
        rows = z[first:last] if whole else torch.cat([z[segment.start : segment.end] for segment in segments])
        counts = torch.tensor(lengths, device=z.device)
        ends = counts.cumsum(0).to(torch.int32)
        inner = torch.nn.functional.grouped_mm(rows, wide, offs=ends)
        inner[:, :width] = self._activation(inner[:, :width] + tensors["down.bias"].repeat_interleave(counts, dim=0))
        inner[:, width] = 1.0
        delta = torch.nn.functional.grouped_mm(inner, tall, offs=ends)
        if whole:
            s[first:last] += delta
            return
        for segment, part in zip(segments, torch.split(delta, lengths), strict=True):
            s[segment.start : segment.end] += part

    def _taken(self, site: SiteIndex, slots: list[int]) -> Named:
        """The tensors of some slots at a site."""
        index = torch.tensor(slots, device=self._device)
        return {name: tensor.index_select(0, index) for name, tensor in self._tensors[site].items()}

    def _grow(self, capacity: int) -> None:
        old = self._capacity
        for site, shapes in self.shape.sites:
            grown = {name: torch.empty((capacity, *shape), device=self._device, dtype=self._dtype) for name, shape in shapes}
            for name, tensor in self._tensors.get(site, {}).items():
                grown[name][:old].copy_(tensor)
            self._tensors[site] = grown
            if "down" in grown:
                self._views[site] = list(zip(grown["down"], grown["down.bias"], grown["up"], grown["up.bias"], strict=True))
        self._free += range(capacity - 1, old - 1, -1)
        self._capacity = capacity


def _expand(name: str, tensors: Named, below: int = 0) -> Tensor:
    return expand(tensors[f"{name}.rule"], tensors.get(f"{name}.left"), tensors[f"{name}.right"], below)


def _laid_out(config: Bottleneck, weights: BottleneckWeights) -> Named:
    """An adapter's tensors at one site as a bank keeps them. Factors cannot hold a scaling per channel: then they are made dense."""
    factor = scale(config, weights)
    down, up = weights.down, weights.up
    if isinstance(up, Dense) or (isinstance(factor, Tensor) and factor.numel() > 1):
        down, up = dense(down), dense(up)
        return {
            "down": down.weight.t(),
            "down.bias": down.bias,
            "up": up.weight.t() * factor,
            "up.bias": up.bias * factor,
        }
    assert isinstance(down, Kronecker)
    return _factors("down", down, 1.0) | _factors("up", up, factor)


def _factors(name: str, layer: Kronecker, factor: Tensor | float) -> Named:
    bias = layer.rule.new_zeros(layer.outputs) if layer.bias is None else layer.bias
    tensors = {f"{name}.rule": layer.rule, f"{name}.right": layer.right * factor, f"{name}.bias": bias * factor}
    return tensors if layer.left is None else tensors | {f"{name}.left": layer.left}


def _projection(name: str, tensors: Named) -> Projection:
    if name in tensors:
        return Dense(tensors[name].t(), tensors[f"{name}.bias"])
    return Kronecker(tensors[f"{name}.rule"], tensors.get(f"{name}.left"), tensors[f"{name}.right"], tensors[f"{name}.bias"])


def unscaled(config: Bottleneck) -> Bottleneck:
    """The config of an adapter that comes out of a bank, whose scaling is in its weights."""
    return config.model_copy(update={"scaling": 1.0})

"""Banks: adapters of one shape, side by side on the device, ready for the delta form `s += Up(f(Down(z)))`.

An adapter's tensors at all its sites lie one after the other in one piece of memory, its slot, laid out as the products need them
(Down [H, d], Up [d, H]), the scaling folded into Up, which is exact algebra. Kronecker layers stay in their factors, a few KB an
adapter; the dense form of the slots that a batch needs is made for that batch at each site (`methods/phm.py`). A slot is allocated
and freed by itself, so the device holds what is resident and no more, and nothing is ever copied to make room.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from adapter_store.methods import Bottleneck
from server.engine import grouped
from server.methods.activations import ACTIVATIONS
from server.methods.bottleneck import BottleneckWeights, DeltaInput, Dense, Projection, delta_input, dense, scale
from server.methods.phm import Kronecker, expand

SiteIndex = str
Named = dict[str, Tensor]

ALIGNED = 16  # numbers: every tensor begins at a multiple of them, 64 bytes in float32
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
    def of(cls, config: Bottleneck, weights: Mapping[SiteIndex, BottleneckWeights]) -> "BankShape | None":
        """The shape of an adapter in its delta form; None if its switches do not allow that form."""
        form = delta_input(config)
        if form is None or not weights:
            return None
        laid = {site: _laid_out(config, at_site) for site, at_site in sorted(weights.items())}
        shapes = tuple((site, tuple((name, tuple(t.shape)) for name, t in tensors.items())) for site, tensors in laid.items())
        return cls(form, config.non_linearity, shapes)

    @property
    def numel(self) -> int:
        """Numbers of one slot."""
        return sum(aligned(prod(shape)) for _, shapes in self.sites for _, shape in shapes)

    def parts(self) -> Iterator[tuple[SiteIndex, str, int, tuple[int, ...]]]:
        """Site, name, place in the slot and shape of each tensor."""
        place = 0
        for site, shapes in self.sites:
            for name, shape in shapes:
                yield site, name, place, shape
                place += aligned(prod(shape))

    def lay_out(self, config: Bottleneck, weights: Mapping[SiteIndex, BottleneckWeights], slot: Tensor) -> None:
        """Writes an adapter of this shape into a slot [numel]."""
        laid = {site: _laid_out(config, at_site) for site, at_site in weights.items()}
        for site, name, place, shape in self.parts():
            slot[place : place + prod(shape)].view(shape).copy_(laid[site][name])

    def views(self, slots: Tensor) -> dict[SiteIndex, Named]:
        """The tensors at each site of one slot [numel], or of several [n, numel]."""
        sites: dict[SiteIndex, Named] = {site: {} for site, _ in self.sites}
        for site, name, place, shape in self.parts():
            sites[site][name] = slots[..., place : place + prod(shape)].view(*slots.shape[:-1], *shape)
        return sites


class InSlot(Mapping[SiteIndex, BottleneckWeights]):
    """The adapter of a slot [numel] as plain weights by site, scaling already folded in: use it with scaling 1.0.

    The views of a site are made when it is asked for: a bank needs none of them, and kept they would weigh more than a Compacter does.
    """

    def __init__(self, shape: BankShape, slot: Tensor) -> None:
        self._shape, self._slot = shape, slot

    def __getitem__(self, site: SiteIndex) -> BottleneckWeights:
        parts = ((name, place, shape) for at, name, place, shape in self._shape.parts() if at == site)
        tensors = {name: self._slot[place : place + prod(shape)].view(shape) for name, place, shape in parts}
        if not tensors:
            raise KeyError(site)
        return BottleneckWeights(_projection("down", tensors), _projection("up", tensors))

    def __iter__(self) -> Iterator[SiteIndex]:
        return (site for site, _ in self._shape.sites)

    def __len__(self) -> int:
        return len(self._shape.sites)


class Taken:
    """What a batch has gathered from a bank: the tensors of the slots that it asked for last, by site; where its segments lie."""

    def __init__(self) -> None:
        self.slots: tuple[int, ...] = ()
        self.tensors: dict[SiteIndex, Named] = {}
        self.tiled: tuple[tuple[Segment, ...], grouped.Tiles] | None = None
        self._cut: tuple[tuple[Segment, ...], list[int], list[int | None]] | None = None

    def pieces(self, segments: tuple[Segment, ...], tokens: int) -> tuple[list[int], list[int | None]]:
        """The batch's tokens cut at the edges of rising segments: the sizes of all pieces, and the slot of each, None between segments."""
        if self._cut is None or self._cut[0] != segments:
            sizes: list[int] = []
            slots: list[int | None] = []
            end = 0
            for segment in (*segments, Segment(tokens, tokens, -1)):
                if segment.start > end:
                    sizes.append(segment.start - end)
                    slots.append(None)
                sizes.append(segment.end - segment.start)
                slots.append(segment.slot)
                end = segment.end
            self._cut = segments, sizes[:-1], slots[:-1]
        return self._cut[1], self._cut[2]


class Bank:
    """The slots of one shape. Batches that run at once may read it; slots come and go between batches, on the engine thread.

    kernel: the type of the slots' numbers where many of them are multiplied in one launch (`grouped.py`), None for the loop.
    """

    def __init__(self, shape: BankShape, kernel: torch.dtype | None = None) -> None:
        self.shape = shape
        self._launched = {} if kernel is None else grouped.bottlenecks(shape, kernel)
        self._activation = ACTIVATIONS[shape.activation]
        self._factors = any(name == "down.rule" for name, _ in shape.sites[0][1])
        self._slots: dict[int, Tensor] = {}
        self._views: dict[SiteIndex, dict[int, tuple[Tensor, ...]]] = {site: {} for site, _ in shape.sites}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, laid_out: Tensor) -> int:
        """Takes in an adapter that lies in a piece of memory as `BankShape.lay_out` wrote it; returns its slot, which it keeps."""
        slot = self._free.pop() if self._free else len(self._slots)
        self._slots[slot] = laid_out
        if not self._factors:
            for site, tensors in self.shape.views(laid_out).items():
                self._views[site][slot] = (tensors["down"], tensors["down.bias"], tensors["up"], tensors["up.bias"])
        return slot

    def free(self, slot: int) -> None:
        """Lets go of a slot's memory; its number is used again."""
        del self._slots[slot]
        for views in self._views.values():
            views.pop(slot, None)
        self._free.append(slot)

    def add_delta(self, site: SiteIndex, segments: tuple[Segment, ...], z: Tensor, s: Tensor, taken: Taken) -> None:
        """s[a:b] += Up(f(Down(z[a:b]))) for each segment, in place; z and s are [T, H]. A batch has one `taken` for all its sites."""
        if site in self._launched:
            self._launched[site].add(self._tiles(segments, s.device, taken), z, s)
            return
        if self._factors and len(segments) >= GROUPED and z.shape[1] % 4 == 0:
            self._add_grouped(site, segments, z, s, taken)
            return
        views, activation = self._expanded(site, segments, taken) if self._factors else self._views[site], self._activation
        sizes, slots = taken.pieces(segments, len(z))
        for rows, out, slot in zip(z.split_with_sizes(sizes), s.split_with_sizes(sizes), slots, strict=True):  # one call cuts them all
            if slot is not None:
                down, down_bias, up, up_bias = views[slot]
                out.addmm_(activation(torch.addmm(down_bias, rows, down)), up).add_(up_bias)

    def _tiles(self, segments: tuple[Segment, ...], device: torch.device, taken: Taken) -> grouped.Tiles:
        """The tiles of a batch's segments, which are the same at every site: they are made once."""
        if taken.tiled is None or taken.tiled[0] != segments:
            taken.tiled = segments, self.tiles(segments, device)
        return taken.tiled[1]

    def tiles(self, segments: tuple[Segment, ...], device: torch.device) -> grouped.Tiles:
        """The tiles of segments, with the addresses of their slots."""
        return grouped.Tiles.of([(self._slots[segment.slot].data_ptr(), segment.start, segment.end) for segment in segments], device)

    def launches(self, site: SiteIndex) -> bool:
        """Whether a site's adapters go in one launch."""
        return site in self._launched

    def _expanded(self, site: SiteIndex, segments: tuple[Segment, ...], taken: Taken) -> "dict[int, tuple[Tensor, ...]]":
        """(Down, bias, Up, bias) by slot of the adapters of a batch, made dense for it."""
        slots = sorted({segment.slot for segment in segments})
        tensors = self._take(site, slots, taken)
        down, up = (_expand(name, tensors) for name in ("down", "up"))
        return dict(zip(slots, zip(down, tensors["down.bias"], up, tensors["up.bias"], strict=True), strict=True))

    def _add_grouped(self, site: SiteIndex, segments: tuple[Segment, ...], z: Tensor, s: Tensor, taken: Taken) -> None:
        """The same for many segments of a bank of factors, as two grouped products. Up's bias is a row of Up, against a column of ones."""
        tensors = self._take(site, [segment.slot for segment in segments], taken)
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

    def _take(self, site: SiteIndex, slots: list[int], taken: Taken) -> Named:
        """The tensors of some slots at a site. A batch asks for the same ones at every site: they are gathered once."""
        wanted = tuple(slots)
        if wanted != taken.slots:
            taken.slots, taken.tensors = wanted, self.shape.views(torch.stack([self._slots[slot] for slot in slots]))
        return {name: tensor.contiguous() for name, tensor in taken.tensors[site].items()}


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


def aligned(count: int) -> int:
    """Numbers that a tensor takes in a piece of memory that holds several."""
    return -(-count // ALIGNED) * ALIGNED

"""Low-rank updates of many adapters in one launch: s[a:b] += scale * (f(z[a:b] Down + c) Up + e) for every segment of a batch.

The choice of how adapters of many slots are multiplied is made here and nowhere else. On CUDA it is one Triton kernel
(`triton_kernel.py`) that takes each adapter's address, since a slot is a piece of memory of its own (docs/decisions/0012) and nothing
should be copied to line them up. Banks use it for bottlenecks, linears for LoRA. What it does not cover stays with the plain loop
over segments, its slow twin: activations that Triton has no function for (`ACTIVATIONS`), widths whose blocks would not
fit into registers (`WIDEST`; products that wide are large enough by themselves), Compacter's factors, gated or stacked LoRA.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from server.engine.transfers import on, on_device
from server.methods.lora import LoRAWeights

if TYPE_CHECKING:
    from server.engine.bank import BankShape
    from server.engine.linears import NodeTokens

ACTIVATIONS = frozenset({"gelu", "linear", "relu", "silu", "tanh"})
WIDEST = {torch.float32: 128, torch.bfloat16: 256, torch.float16: 256}  # of Down; by ptxas, without spilling on sm_80 and sm_90
ROWS, INPUTS, OUTPUTS = 32, 64, 64  # of a block: tokens, numbers of z and numbers of s
NARROWEST = 16  # what a tensor core takes
WARPS, STAGES = 4, 2


def available() -> bool:
    """Whether Triton is installed; torch's CUDA builds for Linux bring it."""
    return find_spec("triton") is not None


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """A launch's work, on the device: at most ROWS adjacent tokens each.

    table [n, 3] int64: the address of the adapter's memory, first token, end. scales [n] float32, or None where every scale is 1.
    """

    table: Tensor
    scales: Tensor | None = None

    @classmethod
    def of(cls, pieces: Sequence[tuple[int, int, int]], device: torch.device, scales: Sequence[float] | None = None) -> "Tiles":
        """Tiles of pieces (address, start, end), which must not overlap; an empty piece has none."""
        addresses, starts, ends = np.array(pieces, dtype=np.int64).reshape(-1, 3).T
        counts = -(-(ends - starts) // ROWS)
        piece = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = starts[piece] + place * ROWS
        table = np.stack((addresses[piece], first, np.minimum(first + ROWS, ends[piece])), axis=1)
        factors = None if scales is None else on_device(np.array(scales, dtype=np.float32)[piece], device)
        return cls(on_device(table, device), factors)


@dataclass(frozen=True, slots=True)
class LowRank:
    """Where two products lie in an adapter's memory, in numbers.

    down [inputs, width] and up [width, outputs] as (place, stride, stride); the places of their biases, or None where they have none.
    """

    inputs: int
    width: int
    outputs: int
    down: tuple[int, int, int]
    up: tuple[int, int, int]
    biases: tuple[int, int] | None = None
    activation: str = "linear"

    def covered(self, dtype: torch.dtype) -> bool:
        """Whether the kernel does it."""
        return self.activation in ACTIVATIONS and self.width <= WIDEST.get(dtype, 0)

    def add(self, tiles: Tiles, z: Tensor, s: Tensor) -> None:
        """Adds to s [T, outputs] in place what the tiles' adapters make of z [T, inputs]. z may be s."""
        from server.engine.triton_kernel import add_low_rank  # triton is there on CUDA only

        count = tiles.table.shape[0]
        if not count:
            return
        z = z if z.stride(1) == 1 else z.contiguous()
        if s.stride(1) != 1 or not (z.dtype == s.dtype):
            raise ValueError(f"the kernel adds rows that lie together, of one type: got {z.dtype} to {s.dtype} with strides {s.stride()}")
        with on(z.device):
            add_low_rank[(count,)](
                z, s, tiles.table, s if tiles.scales is None else tiles.scales, z.stride(0), s.stride(0), self.inputs, self.outputs,
                *self.down, *self.up, *(self.biases or (0, 0)),
                width=self.width, activation=self.activation, biased=self.biases is not None, scaled=tiles.scales is not None,
                widened=not z.is_cuda and z.dtype == torch.bfloat16,
                tile_rows=ROWS, tile_width=max(NARROWEST, 1 << (self.width - 1).bit_length()), tile_inputs=INPUTS, tile_outputs=OUTPUTS,
                num_warps=WARPS, num_stages=STAGES,
            )  # fmt: skip


def bottlenecks(shape: "BankShape", dtype: torch.dtype) -> dict[str, LowRank]:
    """The sites of a bank that the kernel does, with where their tensors lie in a slot."""
    places: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}
    for site, name, place, size in shape.parts():
        places.setdefault(site, {})[name] = place, size
    found = {}
    for site, at in places.items():
        if "down" not in at:  # factors
            continue
        (down, (inputs, width)), (up, (_, outputs)) = at["down"], at["up"]
        biases = at["down.bias"][0], at["up.bias"][0]
        layout = LowRank(inputs, width, outputs, (down, width, 1), (up, outputs, 1), biases, shape.activation)
        if layout.covered(dtype):
            found[site] = layout
    return found


@dataclass(frozen=True, slots=True, eq=False)
class LoRAs:
    """LoRAs of one layout at a linear and their tokens."""

    layout: LowRank
    tiles: Tiles

    def add(self, x: Tensor, y: Tensor) -> None:
        """y[a:b] += scaling * B A x[a:b] for each, in place."""
        self.layout.add(self.tiles, x, y)


@dataclass(slots=True, eq=False)
class LoRAGroups:
    """Parts the work at a plan's linears. Adapters trained alike lie alike, so at most linears the same tiles serve again."""

    device: torch.device
    _made: dict[Hashable, Tiles] = field(default_factory=dict)

    def parted(self, works: Iterable["NodeTokens"]) -> tuple[list["NodeTokens"], tuple[LoRAs, ...]]:
        """What goes node by node, and what goes in one launch for each layout."""
        alone: list[NodeTokens] = []
        groups: dict[LowRank, list[tuple[tuple[int, int, int], float]]] = {}
        for work in works:
            layout = _layout(work)
            if layout is None:
                alone.append(work)
                continue
            assert isinstance(work.node, LoRAWeights)
            base, scaling = work.node.a.untyped_storage().data_ptr(), work.node.scaling
            pieces = [(base, span[0], span[1]) for tokens in work.tokens for span in tokens.spans]
            groups.setdefault(layout, []).extend((piece, scaling) for piece in pieces)
        return alone, tuple(LoRAs(layout, self._tiles(tuple(pieces))) for layout, pieces in groups.items())

    def _tiles(self, pieces: tuple[tuple[tuple[int, int, int], float], ...]) -> Tiles:
        if pieces not in self._made:
            self._made[pieces] = Tiles.of([piece for piece, _ in pieces], self.device, [scaling for _, scaling in pieces])
        return self._made[pieces]


def _layout(work: "NodeTokens") -> LowRank | None:
    """Where a LoRA's a [r, in] and b [out, r] lie; None for what the kernel does not do."""
    node = work.node
    if not isinstance(node, LoRAWeights) or node.gate_weight is not None:
        return None
    a, b = node.a, node.b
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr() or not (a.is_contiguous() and b.is_contiguous()):
        return None
    (rank, inputs), outputs = a.shape, b.shape[0]
    layout = LowRank(inputs, rank, outputs, (int(a.storage_offset()), 1, inputs), (int(b.storage_offset()), 1, rank))
    return layout if layout.covered(a.dtype) else None

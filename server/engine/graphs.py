"""CUDA graphs: the forward of a bare or banked batch is captured once per bucket of sizes and then replayed as one launch.

On a GPU a batch of a small backbone takes less time than Python takes to ask for its few hundred kernels. With varlen attention and the
grouped kernel, what tells one batch from another lies in tables on the device: token ids, positions, edges of sequences, tiles with
the adapters' addresses. So a forward on tables of fixed size and place is captured, and a batch that fits is written into them.
Tokens beyond the batch's are sequences of their own, which nobody reads; tiles beyond its own are empty.

What else a batch may have (LoRA, fusions, prefixes, prompts, gates, shared layers, explanations) does not live in tables: then the
batch runs as it does without graphs, which is the slow twin. How to capture is given: `captured` on CUDA; on a CPU `repeated`, which
runs the function again, so that buckets, tables and padding are tested there.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.engine.attention import Packing
from server.engine.bank import Bank, Segment, Taken
from server.engine.grouped import ROWS, Tiles
from server.engine.running import Level, StreamPlan
from server.engine.sites import DeltaWork, SiteWork
from server.engine.transfers import on, on_device
from server.engine.varlen import Attend, Varlen

log = logging.getLogger(__name__)

Forward = Callable[[StreamPlan], Tensor]
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
Work = dict[Bank, tuple[Segment, ...]]

SEEN = 3  # batches of a bucket from which it is captured, which takes a few forwards' time
KEPT = 64  # graphs; each holds the activations of its bucket


def captured(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """On CUDA: what the function launches, as one launch. Its tensors must stay where they are."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are compiled and workspaces made before the capture, which allows neither
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads go on pinning memory
        output = function()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def repeated(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The twin of `captured`: runs the function again."""
    return function


def rounded(count: int, least: int) -> int:
    """The bucket of a count: at most an eighth more, or the next multiple of `least`."""
    step = max(least, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes of a captured forward, in tokens, sequences (padding's included) and tokens of the longest; the banks that act, in order."""

    tokens: int
    sequences: int
    longest: int
    banks: tuple[Bank, ...]

    @classmethod
    def of(cls, tokens: int, lengths: Sequence[int], work: Work) -> "Bucket":
        """The smallest that a batch fits in."""
        room, longest = rounded(tokens, 64), max(32, 1 << (max(lengths) - 1).bit_length())
        padding = -(-(room - tokens) // longest)
        return cls(room, 1 << (len(lengths) + padding - 1).bit_length(), longest, tuple(sorted(work, key=id)))

    @property
    def tiles(self) -> int:
        """The most tiles that a bank can have: a segment is at least a sequence, and its last tile may be short."""
        return self.tokens // ROWS + self.sequences


class Tables:
    """A bucket's tables on the device, and the plan of a forward that reads them."""

    def __init__(self, bucket: Bucket, function: Attend, device: torch.device) -> None:
        self.bucket = bucket
        self.columns = tuple(torch.zeros(bucket.tokens, dtype=torch.int64, device=device) for _ in range(3))
        self.edges = torch.zeros(bucket.sequences + 1, dtype=torch.int32, device=device)
        self.tiles = {bank: torch.zeros(bucket.tiles, 3, dtype=torch.int64, device=device) for bank in bucket.banks}
        sites: dict[str, list[DeltaWork]] = {}
        for bank in bucket.banks:
            taken = Taken()
            taken.tiled = (), Tiles(self.tiles[bank])
            for site, _ in bank.shape.sites:
                sites.setdefault(site, []).append(DeltaWork(bank, (), taken))
        works = {site: SiteWork(tuple(deltas)) for site, deltas in sites.items()}
        packing = Packing((), varlen=Varlen(self.edges, bucket.longest, function))
        ids, positions, types = self.columns
        self.plan = StreamPlan((Level(0, (), packing, works, {}),), ids, positions, types, ((),))

    def write(self, plan: StreamPlan, work: Work) -> None:
        """A batch into the tables, its padding behind it."""
        tokens, device = len(plan.input_ids), self.edges.device
        assert plan.type_ids is not None
        for column, values in zip(self.columns, (plan.input_ids, plan.position_ids, plan.type_ids), strict=True):
            column[:tokens] = values
            column[tokens:] = 0
        edges = np.full(self.bucket.sequences + 1, self.bucket.tokens, dtype=np.int32)  # what is not filled below is empty sequences
        ends = [*(end for _, end in plan.levels[0].spans), *range(tokens + self.bucket.longest, self.bucket.tokens, self.bucket.longest)]
        edges[0], edges[1 : len(ends) + 1] = 0, ends
        self.edges.copy_(on_device(edges, device))
        for bank, segments in work.items():
            made, table = bank.tiles(segments, device), self.tiles[bank]
            table[: len(made.table)] = made.table
            table[len(made.table) :] = 0


class Graphs:
    """The captured forwards of one stream. Belongs to the engine thread."""

    def __init__(self, forward: Forward, capture: Capture) -> None:
        self._forward, self._capture = forward, capture
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._made: OrderedDict[Bucket, tuple[Tables, Callable[[], Tensor]] | None] = OrderedDict()

    def run(self, plan: StreamPlan) -> Tensor | None:
        """The last hidden state [T, H] of a plan, in memory that the next run overwrites; None where the plan must run without a graph."""
        level = plan.levels[0]
        work = _banked(plan)
        if work is None or level.packing.varlen is None:
            return None
        bucket = Bucket.of(len(plan.input_ids), [end - start for start, end in level.spans], work)
        if bucket not in self._made and not self._due(bucket):
            return None
        if bucket not in self._made:
            self._made[bucket] = self._captured(bucket, level.packing.varlen.function, plan, work)
            if len(self._made) > KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(bucket)
        made = self._made[bucket]
        if made is None:
            return None
        tables, replay = made
        tables.write(plan, work)
        with on(plan.input_ids.device):
            return replay()[: len(plan.input_ids)]

    def _due(self, bucket: Bucket) -> bool:
        count = self._seen.pop(bucket, 0) + 1
        self._seen[bucket] = count
        if len(self._seen) > 16 * KEPT:
            self._seen.popitem(last=False)
        return count >= SEEN

    def _captured(self, bucket: Bucket, function: Attend, plan: StreamPlan, work: Work) -> tuple[Tables, Callable[[], Tensor]] | None:
        """None where the model does something that a graph does not allow: it then goes without."""
        tables = Tables(bucket, function, plan.input_ids.device)
        tables.write(plan, work)
        try:
            with on(plan.input_ids.device):
                return tables, self._capture(lambda: self._forward(tables.plan))
        except RuntimeError as error:
            log.warning("batches of %d tokens run without a graph: %s", bucket.tokens, error)
            return None


def _banked(plan: StreamPlan) -> Work | None:
    """The segments of each bank of a batch, which are the same at all of its sites; None where there is work of another kind."""
    level = plan.levels[0]
    if len(plan.levels) > 1 or plan.embeddings is not None or plan.type_ids is None or level.linears or level.norms:
        return None
    work: Work = {}
    acting: dict[Bank, int] = {}
    for site, at_site in level.sites.items():
        if at_site.folded or at_site.nodes:
            return None
        for delta in at_site.deltas:
            if work.setdefault(delta.bank, delta.segments) != delta.segments or not delta.bank.launches(site):
                return None
            acting[delta.bank] = acting.get(delta.bank, 0) + 1
    return work if all(count == len(bank.shape.sites) for bank, count in acting.items()) else None

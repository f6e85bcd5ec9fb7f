"""Programs: what a stack of adapters does at each site, compiled once per stack and then run flat.

A stack of one adapter in its delta form becomes a slot of a bank (`Delta`); everything else follows the library's order of
operations row by row (`Stacked`). `plan` turns the rows of a batch into each site's work.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from adapter_store.methods import Bottleneck
from server.core import Batch
from server.engine.bank import Bank, Segment, SiteIndex
from server.engine.sites import DeltaWork, Plan, SiteWork, StackWork
from server.methods.bottleneck import Acting, BottleneckWeights

Stack = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """One adapter in a slot of a bank."""

    bank: Bank
    slot: int


@dataclass(frozen=True, slots=True)
class Stacked:
    """The adapters that act at each site, first to last."""

    sites: Mapping[SiteIndex, tuple[Acting, ...]]


Program = Delta | Stacked
SiteWeights = dict[SiteIndex, BottleneckWeights]


def stacked(adapters: list[tuple[Bottleneck, SiteWeights]]) -> Stacked:
    """The step-by-step program of adapters that act one after the other; one without a module at a site is skipped there."""
    sites: dict[SiteIndex, list[Acting]] = defaultdict(list)
    for config, weights in adapters:
        for site, at_site in weights.items():
            sites[site].append((config, at_site))
    return Stacked({site: tuple(acting) for site, acting in sites.items()})


def plan(batch: Batch, programs: Mapping[Stack, Program]) -> Plan:
    """Each site's work for a batch; `programs` has one for every stack of the batch but the empty one."""
    segments: dict[int, list[Segment]] = defaultdict(list)
    banks: dict[int, Bank] = {}
    stacks: dict[SiteIndex, list[StackWork]] = defaultdict(list)
    for row, start, end in zip(batch.rows, batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        if not row.route.adapters:
            continue
        program = programs[row.route.adapters]
        if isinstance(program, Delta):
            banks[id(program.bank)] = program.bank
            _extend(segments[id(program.bank)], start, end, program.slot)
        else:
            for site, acting in program.sites.items():
                stacks[site].append(StackWork(start, end, acting))
    deltas: dict[SiteIndex, list[DeltaWork]] = defaultdict(list)
    for key, bank in banks.items():
        work = DeltaWork(bank, tuple(segments[key]))
        for site in bank.sites:
            deltas[site].append(work)
    return {site: SiteWork(tuple(deltas[site]), tuple(stacks[site])) for site in deltas.keys() | stacks.keys()}


def _extend(segments: list[Segment], start: int, end: int, slot: int) -> None:
    """Adds [start, end) of a slot, as part of the last segment where it continues it."""
    if segments and segments[-1].end == start and segments[-1].slot == slot:
        start = segments.pop().start
    segments.append(Segment(start, end, slot))

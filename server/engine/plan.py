"""Plans: the rows of a batch and their programs become each level's work, complete before the forward starts.

Rows that are the same text and have had nothing different act on them are one sequence (`_levels`): a fan-out of one text to
many tasks runs the layers below the first adapter that differs once, and tasks that differ in their heads alone share the whole
pass. A row's answer is the same as alone.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from adapter_store.methods import Prompt
from server.core import Ints
from server.engine.attention import Packing
from server.engine.bank import Bank, Segment, Taken
from server.engine.embeddings import EmbeddingWork
from server.engine.grouped import LoRAGroups
from server.engine.kernels import PLAIN, Kernels
from server.engine.linears import LinearWork, NodeTokens
from server.engine.program import FoldedFusion, Program, Slot
from server.engine.running import Level, Span, StreamPlan
from server.engine.sites import DeltaWork, FoldedWork, NodeWork, SiteWork, Tokens
from server.engine.transfers import on_device
from server.engine.varlen import Varlen
from server.methods import composition, lora
from server.methods.lora import ScaleWeights


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row of one stream: its own tokens, and its program. `key` tells equal inputs; `memory` is a decoder row's encoder span."""

    ids: Ints
    types: Ints
    program: Program
    key: Hashable
    memory: Span | None = None

    @property
    def prompting(self) -> tuple[Prompt, Tensor] | None:
        """The prompt that the row begins with; a decoder's rows have none."""
        return self.program.prompt if self.memory is None else None

    @property
    def prompt(self) -> int:
        """Tokens that a prompt puts into the row."""
        return 0 if self.prompting is None else self.prompting[0].prompt_length

    @property
    def length(self) -> int:
        """Tokens of the row in the stream, prompts included."""
        return len(self.ids) + self.prompt


@dataclass(frozen=True, slots=True)
class Stream:
    """What a plan must know of its stack: its layers [first, last), how positions count, whether rows may share layers, and the kernels."""

    first: int
    last: int
    padding_id: int | None
    shares_layers: bool
    device: torch.device
    kernels: Kernels = PLAIN


def plan(rows: Sequence[Row], stream: Stream) -> StreamPlan:
    """The plan of a stream for the rows of a batch, in the batch's order (sorted by length)."""
    starts, groups = _levels(rows, stream)
    levels: list[Level] = []
    for place, (start, sequences) in enumerate(zip(starts, groups, strict=True)):
        end = starts[place + 1] if place + 1 < len(starts) else stream.last
        firsts = _firsts(sequences)
        parents = [groups[place - 1][row] for row in firsts] if place else []
        levels.append(_level([rows[row] for row in firsts], start, end, stream, levels[-1] if levels else None, parents))
    first_rows = [rows[row] for row in _firsts(groups[0])]
    arrays = [_arrays(row, stream.padding_id) for row in first_rows]
    ids, positions, types = (on_device(np.concatenate(column), stream.device) for column in zip(*arrays, strict=True))
    return StreamPlan(tuple(levels), ids, positions, types, tuple(map(tuple, groups)), _embeddings(first_rows, levels[0].spans))


def _levels(rows: Sequence[Row], stream: Stream) -> tuple[list[int], list[list[int]]]:
    """Where levels start, and at each which sequence a row is. Sequences are numbered in the order of their first rows."""
    numbers = range(stream.first, stream.last)
    keys: list[Hashable] = [(row.key, row.program.signature.get(-1)) for row in rows]
    if len(set(keys)) == len(rows):
        return [stream.first], [list(range(len(rows)))]
    if not stream.shares_layers:
        keys = [(key, *(row.program.signature.get(layer) for layer in numbers)) for key, row in zip(keys, rows, strict=True)]
        return [stream.first], [_numbered(keys)]
    starts, groups = [stream.first], [_numbered(keys)]
    for layer in numbers:
        acting = [row.program.signature.get(layer) for row in rows]
        parted = _numbered(list(zip(groups[-1], acting, strict=True)))
        if max(parted) > max(groups[-1]):
            if layer == stream.first:
                groups[-1] = parted
            else:
                starts.append(layer)
                groups.append(parted)
    return starts, groups


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _firsts(sequences: Sequence[int]) -> list[int]:
    """The first row of each sequence."""
    firsts: dict[int, int] = {}
    for row, sequence in enumerate(sequences):
        firsts.setdefault(sequence, row)
    return list(firsts.values())


def _level(rows: Sequence[Row], start: int, end: int, stream: Stream, before: Level | None, parents: Sequence[int]) -> Level:
    cu_seqlens = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([row.length for row in rows], out=cu_seqlens[1:])
    edges = cu_seqlens.tolist()
    spans = tuple(pairwise(edges))
    programs = _by_program(rows, spans)
    prefixed = any(row.program.prefixes for row in rows)
    packing = Packing.of(cu_seqlens, [row.program.prefixes for row in rows] if prefixed else None)
    memories = None if rows[0].memory is None else _by_program(rows, [row.memory for row in rows if row.memory is not None])
    if memories is not None:
        packing = Packing(packing.runs, tuple(row.memory for row in rows if row.memory is not None))
    elif stream.kernels.varlen is not None and not prefixed:
        packing = Packing(packing.runs, varlen=Varlen.of(cu_seqlens, stream.kernels.varlen, stream.device))
    gather = origin = None
    if before is not None:
        gather = on_device(np.concatenate([np.arange(*before.spans[parent]) for parent in parents]), stream.device)
        origin = gather if before.origin is None else before.origin[gather]
    layers = range(start, end)
    return Level(
        start,
        spans,
        packing,
        _sites(programs, layers, stream.device),
        _linears(programs, memories, layers, stream),
        _norms(programs),
        gather,
        origin,
    )


def _by_program(rows: Sequence[Row], spans: Sequence[Span]) -> list[tuple[Program, list[Span]]]:
    """The spans of each program's rows."""
    by_program: dict[int, tuple[Program, list[Span]]] = {}
    for row, span in zip(rows, spans, strict=True):
        by_program.setdefault(id(row.program), (row.program, []))[1].append(span)
    return list(by_program.values())


def _within(address: str, layers: range) -> bool:
    parts = address.split(".")
    return len(parts) < 3 or int(parts[1]) in layers


def _sites(programs: Sequence[tuple[Program, list[Span]]], layers: range, device: torch.device) -> dict[str, SiteWork]:
    deltas: dict[str, dict[int, tuple[Bank, list[Segment]]]] = defaultdict(dict)
    folded: dict[str, list[FoldedWork]] = defaultdict(list)
    nodes: dict[str, list[NodeWork]] = defaultdict(list)
    for program, spans in programs:
        if not program.sites:
            continue
        pieces = _merged(spans)
        segments: dict[int, list[Segment]] = {}  # by slot; the same ones at every site, so that who compares them is soon done
        whole: Tokens | None = None
        for address, at_site in program.sites.items():
            if not _within(address, layers):
                continue
            if isinstance(at_site, Slot):
                bank = deltas[address].setdefault(id(at_site.bank), (at_site.bank, []))
                if at_site.slot not in segments:
                    segments[at_site.slot] = [Segment(a, b, at_site.slot) for a, b in pieces]
                bank[1].extend(segments[at_site.slot])
                continue
            whole = whole or Tokens.of(spans, device)
            if isinstance(at_site, FoldedFusion):
                folded[address].append(FoldedWork(at_site.folded, at_site.input, whole, at_site.number))
            else:
                each = tuple(Tokens((span,), None) for span in spans) if composition.gated(at_site) else (whole,)
                nodes[address].append(NodeWork(at_site, each))
    works = {}
    taken: dict[int, Taken] = defaultdict(Taken)
    for address in deltas.keys() | folded.keys() | nodes.keys():
        found = deltas.get(address, {}).values()
        banks = tuple(DeltaWork(bank, tuple(sorted(some, key=_start)), taken[id(bank)]) for bank, some in found)
        works[address] = SiteWork(banks, tuple(folded.get(address, ())), tuple(nodes.get(address, ())))
    return works


def _start(segment: Segment) -> int:
    return segment.start


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Spans, neighbours as one."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, end))
    return merged


def _linears(
    programs: Sequence[tuple[Program, list[Span]]], memories: Sequence[tuple[Program, list[Span]]] | None, layers: range, stream: Stream
) -> dict[str, LinearWork]:
    """`memories`: the encoder's tokens of a decoder's rows, which its cross-attention makes keys and values of."""
    works: dict[str, list[NodeTokens]] = defaultdict(list)
    for number, (program, spans) in enumerate(programs):
        for address, node in program.linears.items():
            if not _within(address, layers) or (stream.first and not address.startswith("layers.")):
                continue
            read = spans
            if memories is not None and address.endswith((".cross_k", ".cross_v")):
                read = sorted(set(memories[number][1]))  # rows of one program may share their encoder's tokens
            pieces = read if lora.gated(node) else _merged(read)
            at_input = any(isinstance(part, ScaleWeights) and part.at_input for part in lora.parts(node))
            works[address].append(NodeTokens(node, tuple(Tokens((piece,), None) for piece in pieces), at_input))
    if not stream.kernels.grouped:
        return {address: LinearWork(tuple(nodes)) for address, nodes in works.items()}
    groups = LoRAGroups(stream.device)
    parted = {address: groups.parted(nodes) for address, nodes in works.items()}
    return {address: LinearWork(tuple(alone), launched) for address, (alone, launched) in parted.items()}


def _norms(programs: Sequence[tuple[Program, list[Span]]]) -> dict[str, tuple[tuple[Span, Tensor], ...]]:
    norms: dict[str, list[tuple[Span, Tensor]]] = defaultdict(list)
    for program, spans in programs:
        for name, weight in program.norms.items():
            norms[name].extend((span, weight) for span in _merged(spans))
    return {name: tuple(work) for name, work in norms.items()}


def prompt_place(row: Row) -> tuple[int, int]:
    """Where in its row a prompt lies: [start, end) among the row's tokens in the stream."""
    assert row.prompting is not None
    start = 1 if row.prompting[0].after_first else 0
    return start, start + row.prompt


def own_tokens(row: Row) -> Iterator[tuple[int, int]]:
    """Where the row's own tokens lie in it, without a prompt's."""
    if row.prompting is None:
        yield 0, row.length
        return
    start, end = prompt_place(row)
    if start:
        yield 0, start
    yield end, row.length


def _arrays(row: Row, padding_id: int | None) -> tuple[Ints, Ints, Ints]:
    """Token ids, positions and type ids of a row in the stream, prompts included. padding_id: for RoBERTa's positions."""
    prompt = row.prompting
    if prompt is None:
        return row.ids, _positions(row.ids, padding_id) + row.program.shift, row.types
    start, _ = prompt_place(row)
    ids, types = (np.insert(values, start, np.zeros(row.prompt, dtype=np.int64)) for values in (row.ids, row.types))
    if prompt[0].place == "words":  # the prompt's tokens are counted like words that are no padding
        counted = np.insert(row.ids, start, np.full(row.prompt, (padding_id or 0) + 1))
        return ids, _positions(counted, padding_id) + row.program.shift, types
    return ids, np.insert(_positions(row.ids, padding_id), start, np.zeros(row.prompt, dtype=np.int64)), types


def _positions(ids: Ints, padding_id: int | None) -> Ints:
    """0, 1, 2 ...; RoBERTa's: padding_id + 1, + 2 ... over a row's tokens, a padding token itself stays at padding_id."""
    if padding_id is None:
        return np.arange(len(ids))
    real = (ids != padding_id).astype(np.int64)
    positions: Ints = np.cumsum(real) * real + padding_id
    return positions


def _embeddings(rows: Sequence[Row], spans: Sequence[Span]) -> EmbeddingWork | None:
    words: list[tuple[Span, Tensor]] = []
    prompts: list[tuple[Span, Tensor]] = []
    invertible = []
    for row, (start, _) in zip(rows, spans, strict=True):
        if row.prompting is not None:
            a, b = prompt_place(row)
            place = words if row.prompting[0].place == "words" else prompts
            place.append(((start + a, start + b), row.prompting[1]))
        if row.program.invertible is not None and row.memory is None:
            invertible += [((start + a, start + b), row.program.invertible) for a, b in own_tokens(row)]
    if not (words or prompts or invertible):
        return None
    return EmbeddingWork(tuple(words), tuple(prompts), tuple(invertible))

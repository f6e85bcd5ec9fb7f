"""What a forward carries with it: the plan of its batch, entered for exactly one forward, never global and never nested.

A plan has one or more levels. While several rows are the same text and nothing that differs has acted on them, they are one
sequence; where they part, the next level begins: its sequences are gathered from the level before (`Level.gather`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.engine.attention import Packing
from server.engine.embeddings import EmbeddingWork
from server.engine.linears import LinearWork
from server.engine.sites import SiteWork

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """The work from layer `start` on, until the next level's start. `spans` are its sequences' tokens.

    gather [tokens] picks the level's tokens from those of the level before, origin from those of the first; None for the first level.
    """

    start: int
    spans: tuple[Span, ...]
    packing: Packing
    sites: Mapping[str, SiteWork]
    linears: Mapping[str, LinearWork]
    norms: Mapping[str, tuple[tuple[Span, Tensor], ...]] = field(default_factory=dict)
    gather: Tensor | None = None
    origin: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StreamPlan:
    """One stack of layers: its levels, the tokens of the first one, and which sequence of each level each row of the batch is."""

    levels: tuple[Level, ...]
    input_ids: Tensor
    position_ids: Tensor
    type_ids: Tensor | None
    sequences: tuple[tuple[int, ...], ...]
    embeddings: EmbeddingWork | None = None

    @property
    def spans(self) -> tuple[Span, ...]:
        """The tokens of each row of the batch in the last level."""
        return self.spans_in(len(self.levels) - 1)

    def spans_in(self, level: int) -> tuple[Span, ...]:
        """The tokens of each row of the batch in a level."""
        return tuple(self.levels[level].spans[sequence] for sequence in self.sequences[level])

    def level_of(self, layer: int) -> int:
        """The level that a layer belongs to."""
        return sum(level.start <= layer for level in self.levels) - 1


class Running:
    """The state of one forward of one stream. The taps on the model read `level`, which moves on as the layers do."""

    def __init__(self, plan: StreamPlan, explained: bool = False) -> None:
        self.plan = plan
        self.level = plan.levels[0]
        self.attention_input: Tensor = torch.empty(0)
        self.last: Tensor | None = None
        self.attentions: dict[str, list[tuple[int, tuple[Span, ...], Tensor]]] | None = {} if explained else None
        self._next = {level.start: level for level in plan.levels[1:]}

    @property
    def packing(self) -> Packing:
        """Where the sequences of the present level lie."""
        return self.level.packing

    def noted(self, address: str) -> list[tuple[int, tuple[Span, ...], Tensor]] | None:
        """Where a site notes what its fusions attended to; None where nobody asked."""
        return None if self.attentions is None else self.attentions.setdefault(address, [])

    def enter(self, layer: int) -> Tensor | None:
        """Moves to the level that begins at a layer; returns its gather, or None where none begins."""
        level = self._next.get(layer)
        if level is None:
            return None
        self.level = level
        return level.gather


class Stage:
    """Holds what is running on a backbone. Entering it twice is an error."""

    def __init__(self) -> None:
        self.running: Running | None = None

    @contextmanager
    def entered(self, running: Running) -> Iterator[None]:
        """Sets the state for one forward."""
        if self.running is not None:
            raise RuntimeError("a forward is already running on this backbone")
        self.running = running
        try:
            yield
        finally:
            self.running = None

    def now(self) -> Running:
        """The state of the forward that is running; raises RuntimeError where the model was called by itself."""
        if self.running is None:
            raise RuntimeError("the backbone was called outside of Backbone.forward")
        return self.running

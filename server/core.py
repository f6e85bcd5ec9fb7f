"""The nouns that a request is made of on its way through the server. Plain values: no torch, no HTTP, no IO."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adapter_store.manifest import Head

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

Scope = Literal["predict", "publish", "admin"]
SCOPES: frozenset[Scope] = frozenset({"predict", "publish", "admin"})

# What a request does when a package that it needs is not on the device: wait for it, or be refused with a time to try again.
Cold = Literal["wait", "refuse"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of an API key, what it may do, the patterns of the names that it knows of, and its share of the engine.

    A pattern is a name, a namespace (`acme/*`) or everything (`*`). The scope admin holds the other two.
    """

    name: str = "local"
    scopes: frozenset[Scope] = SCOPES
    patterns: tuple[str, ...] = ("*",)
    weight: float = 1.0

    def may(self, scope: Scope) -> bool:
        """Whether the caller has a scope."""
        return scope in self.scopes or "admin" in self.scopes

    def sees(self, name: str) -> bool:
        """Whether the caller may know of a name."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


LOCAL = Caller()


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is served: for whom, what weighted aliases stick to (None: nothing), what to do when cold, until when.

    deadline: a time of `time.perf_counter()`.
    """

    caller: Caller = LOCAL
    key: str | None = None
    cold: Cold = "wait"
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The most that one request may be: rows, windows and choices counted; characters of one input, and of all together."""

    max_rows: int = 1024
    max_input_chars: int = 1 << 17
    max_request_chars: int = 1 << 22


# Named arrays of one row: what they are is said by `Readout`.
Outputs = Mapping[str, Array]

Output = Literal["logits", "hidden", "encoder_hidden", "embedding"]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class Use:
    """One package's own adapter (all its parts but a fusion), by digest."""

    digest: str


@dataclass(frozen=True, slots=True)
class Stack:
    """Setups one after the other."""

    children: tuple["Setup", ...]


@dataclass(frozen=True, slots=True)
class Average:
    """The weighted mean of the children's outputs; weights sum to 1."""

    children: tuple["Setup", ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fuse:
    """AdapterFusion of the children with the fusion weights of one package, by digest."""

    fusion: str
    children: tuple["Setup", ...]


# A composition resolved: what acts on a row, pinned. Equal setups compute the same.
Setup = Use | Stack | Average | Fuse


def setup_digests(setup: Setup | None) -> Iterator[str]:
    """Every package of a setup, members before their fusion, first to last."""
    match setup:
        case None:
            return
        case Use(digest):
            yield digest
        case Fuse(fusion, children):
            for child in children:
                yield from setup_digests(child)
            yield fusion
        case Stack(children) | Average(children, _):
            for child in children:
                yield from setup_digests(child)


def setup_uses(setup: Setup) -> Iterator[str]:
    """The digests of the packages whose own adapters act, first to last."""
    match setup:
        case Use(digest):
            yield digest
        case Stack(children) | Average(children, _) | Fuse(_, children):
            for child in children:
                yield from setup_uses(child)


def setup_fusions(setup: Setup | None) -> Iterator[Fuse]:
    """The fusions of a setup, in the order in which they act."""
    match setup:
        case Fuse():
            yield setup
        case Stack(children) | Average(children, _):
            for child in children:
                yield from setup_fusions(child)
        case _:
            return


@dataclass(frozen=True, slots=True)
class Route:
    """A model string resolved at admission: the pinned setup that acts (None: the bare backbone) and the head.

    `model` is what the answer says it came from (`spam@4`); `digest` the package that was named (None for a composition or
    the bare backbone). `head_digest` is the package whose head reads it out. `fusion_members` names, for each fusion of the setup in
    the order in which they act, what it fuses. `reserved` are tokens of the backbone's limit that the setup itself takes.
    `digests` are all packages that must be resident for this route.
    """

    model: str
    digest: str | None = None
    setup: Setup | None = None
    head: Head | None = None
    head_digest: str | None = None
    fusion_members: tuple[tuple[str, ...], ...] = ()
    reserved: int = 0
    digests: tuple[str, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        heads = () if self.head_digest is None else (self.head_digest,)
        object.__setattr__(self, "digests", tuple(dict.fromkeys((*setup_digests(self.setup), *heads))))

    @property
    def task(self) -> str | None:
        """The task's name on the wire."""
        return None if self.head is None else self.head.task


@dataclass(frozen=True, slots=True)
class Readout:
    """What is read from a row, as named arrays (`Outputs`).

    logits: the head's raw output: "logits" [labels], [tokens, labels] for tagging, [tokens, vocabulary] for language models (only
    the tokens at `positions` where given), [1] for one choice; "start" and "end" [tokens] for question answering; "arcs"
    [words, words + 1] and "relations" [words, words + 1, labels] for dependency parsing.
    hidden: "hidden" [tokens, H], the last hidden state (of an encoder-decoder: the decoder's where the row has decoder tokens);
    encoder_hidden: "hidden" of the encoder. embedding: "embedding" [H], pooled over the row's tokens and, if `normalize`, of length 1.
    explain: adds what each fusion attended to, "attention.{layer}.{site}.{n}" [tokens, members], n its place in the route's
    `fusion_members`.
    """

    output: Output = "logits"
    pooling: Pooling = "mean"
    normalize: bool = True
    positions: tuple[int, ...] | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """One tokenized input on one route: `input_ids` and `type_ids` are int64 [tokens], `decoder_ids` int64 [decoder tokens].

    word_starts: for dependency parsing, the first token of each word and, last, the token after the last word.
    """

    route: Route
    input_ids: Ints
    type_ids: Ints
    readout: Readout = Readout()
    decoder_ids: Ints | None = None
    word_starts: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the row, a decoder's included."""
        return len(self.input_ids) + (0 if self.decoder_ids is None else len(self.decoder_ids))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences packed without padding: row i owns the tokens cu_seqlens[i] to cu_seqlens[i+1] of `input_ids` [T]."""

    rows: tuple[Sequence, ...]
    input_ids: Ints
    type_ids: Ints
    cu_seqlens: Ints

    @property
    def tokens(self) -> int:
        """Tokens of all rows, a decoder's included."""
        return sum(row.tokens for row in self.rows)


def pack(rows: "list[Sequence] | tuple[Sequence, ...]") -> tuple[Batch, list[int]]:
    """Packs rows by length, then by route, and returns the batch with the place of each given row in it.

    Equal lengths stand together, so that attention is one call per length on plain views; within a length equal
    routes stand together, so that an adapter is one product per run.
    """
    rank = {setup: number for number, setup in enumerate(dict.fromkeys(row.route.setup for row in rows))}
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), rank[rows[i].route.setup]))
    packed = tuple(rows[i] for i in order)
    cu_seqlens = np.zeros(len(packed) + 1, dtype=np.int64)
    np.cumsum([len(row.input_ids) for row in packed], out=cu_seqlens[1:])
    batch = Batch(
        rows=packed,
        input_ids=np.concatenate([row.input_ids for row in packed]),
        type_ids=np.concatenate([row.type_ids for row in packed]),
        cu_seqlens=cu_seqlens,
    )
    places = [0] * len(order)
    for place, index in enumerate(order):
        places[index] = place
    return batch, places

"""The nouns that a request is made of on its way through the server. Plain values: no torch, no HTTP, no IO."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adapter_store.manifest import Head

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

Output = Literal["logits", "hidden", "embedding"]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class Route:
    """A model string resolved at admission: pinned digests, in the order in which they act, and the head.

    `model` is what the answer says it came from (`spam@4`); `digest` the package that was named (None for a composition or
    the bare backbone). `adapters` are the digests of the stack; `head_digest` the package whose head reads it out.
    """

    model: str
    digest: str | None = None
    adapters: tuple[str, ...] = ()
    head: Head | None = None
    head_digest: str | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """Every package that must be resident for this route."""
        heads = () if self.head_digest is None else (self.head_digest,)
        return tuple(dict.fromkeys(self.adapters + heads))

    @property
    def task(self) -> str | None:
        """The task's name on the wire."""
        return None if self.head is None else self.head.task


@dataclass(frozen=True, slots=True)
class Readout:
    """What is read from a row's last hidden state.

    logits: the head's raw output, [labels] or [tokens, labels]; hidden: [tokens, hidden];
    embedding: [hidden], pooled over the row's tokens and, if `normalize`, of length 1.
    """

    output: Output = "logits"
    pooling: Pooling = "mean"
    normalize: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """One tokenized input on one route: `input_ids` and `type_ids` are int64 [tokens]."""

    route: Route
    input_ids: Ints
    type_ids: Ints
    readout: Readout = Readout()

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences packed without padding: row i owns the tokens cu_seqlens[i] to cu_seqlens[i+1] of `input_ids` [T]."""

    rows: tuple[Sequence, ...]
    input_ids: Ints
    type_ids: Ints
    cu_seqlens: Ints

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


def pack(rows: "list[Sequence] | tuple[Sequence, ...]") -> tuple[Batch, list[int]]:
    """Packs rows by length, then by route, and returns the batch with the place of each given row in it.

    Equal lengths stand together, so that attention is one call per length on plain views; within a length equal
    routes stand together, so that an adapter is one product per run.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].tokens, rows[i].route.adapters))
    packed = tuple(rows[i] for i in order)
    cu_seqlens = np.zeros(len(packed) + 1, dtype=np.int64)
    np.cumsum([row.tokens for row in packed], out=cu_seqlens[1:])
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

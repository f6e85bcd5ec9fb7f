"""The room of one tier: the packages that are there or on their way, their bytes, who is used, pinned, idle or spare, and who goes first.

Plain bookkeeping that waits for nobody; `tiers.Tier` says who may have room and when.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(slots=True, eq=False)
class Entry(Generic[V]):
    """A package that is in a tier or on its way. `size` is at most what was asked for, and exact once it is loaded.

    closed: whoever asks for it now waits for its turn. spare: it is kept for better times, and nobody asked for it since.
    """

    digest: str
    size: int
    loaded: asyncio.Future[None]
    value: V | None = None
    users: int = 0
    closed: bool = False
    spare: bool = False

    @property
    def ready(self) -> bool:
        """Whether it is there."""
        return self.loaded.done() and not self.loaded.cancelled() and self.loaded.exception() is None


Held = tuple[Entry[V], ...]


class Room(Generic[V]):
    """Packages by digest, of `bytes` together, which never pass `budget`. `evicted` is told, in the same step, of each that went."""

    def __init__(self, budget: int, evicted: Callable[[Entry[V]], None]) -> None:
        self.budget, self.bytes = budget, 0
        self._evicted = evicted
        self._entries: OrderedDict[str, Entry[V]] = OrderedDict()  # the least recently taken first
        # Ready, unused and unpinned: the spare ones go first, then the others, each in the order of these.
        self._spare: OrderedDict[str, Entry[V]] = OrderedDict()
        self._idle: OrderedDict[str, Entry[V]] = OrderedDict()
        self._idle_bytes = self._spare_bytes = 0
        self._pinned: dict[str, Entry[V]] = {}
        self._closed: dict[str, Entry[V]] = {}

    def __contains__(self, digest: str) -> bool:
        entry = self._entries.get(digest)
        return entry is not None and entry.ready

    def __iter__(self) -> Iterator[str]:
        """The digests of those that are here or on their way."""
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: str) -> Entry[V] | None:
        """A package that is here or on its way."""
        return self._entries.get(digest)

    def open(self, digest: str) -> bool:
        """Whether a package is here and could be taken at once."""
        entry = self._entries.get(digest)
        return entry is not None and entry.ready and not entry.closed

    def pinned(self, digest: str) -> bool:
        """Whether a package is kept until it is unpinned."""
        return digest in self._pinned

    @property
    def limit(self) -> int:
        """Bytes that the unpinned may take."""
        return self.budget - sum(entry.size for entry in self._pinned.values())

    def weight(self, needs: Mapping[str, int]) -> int:
        """Bytes of the unpinned of a set."""
        return sum(size for digest, size in needs.items() if digest not in self._pinned)

    def cool(self, digest: str) -> None:
        """Makes a package that nobody uses spare, and the first to go."""
        entry = self._idle.get(digest)
        if entry is not None:
            entry.spare = True
            self._place(entry)
            self._spare.move_to_end(digest, last=False)

    async def settle(self, digest: str) -> None:
        """Waits for what is on its way."""
        while (entry := self._entries.get(digest)) is not None and not entry.loaded.done():
            await asyncio.wait([entry.loaded])

    def _present(self, needs: Iterable[str]) -> bool:
        """Whether a set is here or on its way, and open."""
        return all((entry := self._entries.get(digest)) is not None and not entry.closed for digest in needs)

    def _room(self, needs: Mapping[str, int]) -> int:
        """Bytes that are free or could be freed at once, but for what is needed itself."""
        own = sum(self._entries[digest].size for digest in needs if digest in self._idle or digest in self._spare)
        return self.budget - self.bytes + self._idle_bytes - own

    def _hold(self, digests: Iterable[str]) -> Held[V]:
        held = tuple(self._entries[digest] for digest in digests)
        for entry in held:
            entry.users += 1
            entry.spare = False
            self._entries.move_to_end(entry.digest)
            self._place(entry)
        return held

    def _place(self, entry: Entry[V]) -> None:
        """Among the idle, the spare or neither, as the entry now is."""
        here = self._entries.get(entry.digest) is entry
        idle = here and entry.ready and not entry.users and entry.digest not in self._pinned
        for spare, among in ((False, self._idle), (True, self._spare)):
            belongs = idle and entry.spare == spare
            if belongs == (among.get(entry.digest) is entry):
                continue
            change = entry.size if belongs else -entry.size
            if belongs:
                among[entry.digest] = entry
            else:
                del among[entry.digest]
            self._idle_bytes += change
            self._spare_bytes += change * spare

    def _going(self) -> Iterator[Entry[V]]:
        """Those that could go now, the first to go first."""
        return chain(self._spare.values(), self._idle.values())

    def _make_room(self, size: int, spared: Iterable[str]) -> None:
        """Evicts of those that could go as many as are needed; that there are enough was seen before."""
        going, lacking = [], size - (self.budget - self.bytes)
        for entry in self._going():
            if lacking <= 0:
                break
            if entry.digest not in spared:
                going.append(entry)
                lacking -= entry.size
        for entry in going:
            self._evict(entry)

    def _enter(self, digest: str, size: int) -> Entry[V]:
        entry: Entry[V] = Entry(digest, size, asyncio.get_running_loop().create_future())
        entry.loaded.add_done_callback(lambda future: future.cancelled() or future.exception())  # heard of, if by nobody
        self._entries[digest] = entry
        self.bytes += size
        return entry

    def _evict(self, entry: Entry[V]) -> None:
        self._take_out(entry)
        self._evicted(entry)

    def _take_out(self, entry: Entry[V]) -> None:
        del self._entries[entry.digest]
        self._closed.pop(entry.digest, None)
        self._pinned.pop(entry.digest, None)
        self._place(entry)
        self.bytes -= entry.size

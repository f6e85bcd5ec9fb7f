"""One tier of packages, in bytes: who uses what, what is on its way, what goes when room is needed, and who waits for it.

Bookkeeping on the event loop, without locks. The budget is never passed: room is taken before a load begins, and a load waits until
there is room. What is used or pinned is never evicted. A set of digests is taken whole or not at all, so nobody who waits for room
holds any. Sets that are here are taken at once; the others wait in order of arrival, and when the first has waited for longer than
`age_cap` the least recently used residents are closed: who wants one of them waits behind, until the first got its room.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic

from server.room import Entry, Held, Room, V


class TooBig(Exception):
    """A set of packages that can never fit in a tier."""


class LoadFailed(Exception):
    """A package that could not be loaded, by digest; the reason is its cause."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"The package {digest[:12]} could not be loaded.")
        self.digest = digest


@dataclass(slots=True, eq=False)
class _Waiter(Generic[V]):
    needs: Mapping[str, int]
    since: float
    granted: asyncio.Future[None]
    held: Held[V] | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """Who wants to know: `loaded(tier, seconds, failed)`, `evicted(tier)`, and `waited(seconds, outcome)` of who found it cold."""

    loaded: Callable[[str, float, bool], None] = field(default=lambda tier, seconds, failed: None)
    evicted: Callable[[str], None] = field(default=lambda tier: None)
    waited: Callable[[float, str], None] = field(default=lambda seconds, outcome: None)


class Tier(Room[V]):
    """A room that packages are brought to. `load` brings one and returns it with its bytes; `evicted` is told of each that went."""

    def __init__(
        self,
        name: str,
        budget: int,
        load: Callable[[str], Awaitable[tuple[V, int]]],
        evicted: Callable[[Entry[V]], None] = lambda entry: None,
        age_cap: float = 0.25,
        watch: Watch | None = None,
    ) -> None:
        watching = watch or Watch()

        def went(entry: Entry[V]) -> None:
            watching.evicted(name)
            evicted(entry)

        super().__init__(budget, went)
        self.name = name
        self._load, self._age_cap, self._watch = load, age_cap, watching
        self._queue: OrderedDict[_Waiter[V], None] = OrderedDict()
        self._wanting: defaultdict[str, dict[_Waiter[V], None]] = defaultdict(dict)
        self._closer: _Waiter[V] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._loads: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._queue)

    def check(self, needs: Mapping[str, int]) -> None:
        """Raises TooBig for what can never fit."""
        if self.weight(needs) > self.limit:
            raise TooBig(
                f"The request needs {self.weight(needs)} bytes of packages at once, and --{self.name}-memory leaves {self.limit} bytes "
                "to what is not pinned: ask for fewer at a time, or unpin some."
            )

    def take(self, digests: Iterable[str]) -> Held[V] | None:
        """Holds a set that is here; None, holding nothing, where it is not."""
        wanted = tuple(digests)
        return self._hold(wanted) if all(self.open(digest) for digest in wanted) else None

    async def acquire(self, needs: Mapping[str, int]) -> Held[V]:
        """Brings a set here and holds it; `needs` are its bytes at most, by digest. Raises TooBig, LoadFailed, holding nothing then."""
        self.check(needs)
        loop = asyncio.get_running_loop()
        waiter: _Waiter[V] = _Waiter(needs, loop.time(), loop.create_future())
        if self._present(needs):
            held = self._hold(needs)
        else:
            held = await self._turn(waiter)
        try:
            pending = [entry.loaded for entry in held if not entry.loaded.done()]
            if pending:
                await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            for entry in held:
                if entry.loaded.done() and not entry.ready:
                    raise LoadFailed(entry.digest) from (None if entry.loaded.cancelled() else entry.loaded.exception())
        except BaseException:
            self.release(held)
            raise
        return held

    def release(self, held: Held[V]) -> None:
        """Ends the use of a set."""
        for entry in held:
            entry.users -= 1
            self._place(entry)
        self._serve()

    def pin(self, held: Held[V]) -> None:
        """Keeps a set that is held until it is unpinned."""
        for entry in held:
            if self._entries.get(entry.digest) is entry:
                self._pinned[entry.digest] = entry
                entry.closed = False
                self._closed.pop(entry.digest, None)
                self._place(entry)
        self._serve()

    def unpin(self, digest: str) -> None:
        """Lets a package go again."""
        entry = self._pinned.pop(digest, None)
        if entry is not None:
            self._place(entry)
            self._serve()

    def spares(self, digest: str, size: int) -> bool:
        """Whether a package is here or would fit in what is free and spare."""
        return digest in self._entries or (not self._queue and size <= self.budget - self.bytes + self._spare_bytes)

    def offer(self, digest: str, value: V, size: int) -> None:
        """Takes in a package that is at hand anyway, as a spare one, where what is free and spare is enough."""
        if digest in self._entries or not self.spares(digest, size):
            return
        self._make_room(size, ())
        entry = self._enter(digest, size)
        entry.value, entry.spare = value, True
        entry.loaded.set_result(None)
        self._place(entry)

    def remove(self, digest: str) -> bool:
        """Evicts a package that nobody uses, pinned or not; whether it is gone."""
        entry = self._entries.get(digest)
        if entry is not None and entry.ready and not entry.users:
            self._evict(entry)
            self._serve()
        return digest not in self._entries

    async def close(self) -> None:
        """Ends what is on its way."""
        if self._alarm is not None:
            self._alarm.cancel()
        for task in self._loads:
            task.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)

    # Who waits

    async def _turn(self, waiter: _Waiter[V]) -> Held[V]:
        """Waits in the queue until the set was taken."""
        self._queue[waiter] = None
        for digest in waiter.needs:
            self._wanting[digest][waiter] = None
        self._serve()
        try:
            await waiter.granted
        except BaseException:
            if waiter.held is not None:
                self.release(waiter.held)
            else:
                self._leave(waiter)
                self._serve()
            raise
        assert waiter.held is not None
        return waiter.held

    def _serve(self) -> None:
        """Gives room to those who wait, in their order, as far as there is any."""
        while self._queue:
            head = next(iter(self._queue))
            if head.granted.done():  # cancelled a moment ago
                self._leave(head)
            elif self.weight(head.needs) > self.limit:  # pins came between
                self._leave(head)
                head.granted.set_exception(TooBig("What is pinned meanwhile leaves no room for the packages of the request: unpin some."))
            elif self._present(head.needs) or self._missing(head) <= self._room(head.needs):
                self._admit(head)
            else:
                self._press(head)
                return

    def _admit(self, waiter: _Waiter[V]) -> None:
        missing = [digest for digest in waiter.needs if digest not in self._entries]
        self._make_room(sum(waiter.needs[digest] for digest in missing), waiter.needs)
        for digest in missing:
            entry = self._enter(digest, waiter.needs[digest])
            task = asyncio.get_running_loop().create_task(self._bring(entry))
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
        waiter.held = self._hold(waiter.needs)
        waiter.granted.set_result(None)
        self._leave(waiter)
        self._tell(missing)

    def _leave(self, waiter: _Waiter[V]) -> None:
        """Out of the queue; what was closed for its sake is open again."""
        self._queue.pop(waiter, None)
        for digest in waiter.needs:
            self._wanting[digest].pop(waiter, None)
            if not self._wanting[digest]:
                del self._wanting[digest]
        if self._closer is waiter:
            reopened, self._closed, self._closer = list(self._closed), {}, None
            for digest in reopened:
                self._entries[digest].closed = False
            self._tell(reopened)

    def _tell(self, digests: Iterable[str]) -> None:
        """Those who wait take at once what has come to be here."""
        for waiter in list(dict.fromkeys(waiter for digest in digests for waiter in self._wanting.get(digest, ()))):
            if not waiter.granted.done() and waiter in self._queue and self._present(waiter.needs):
                self._admit(waiter)

    def _press(self, head: _Waiter[V]) -> None:
        """Closes residents to newcomers once the first has waited for too long; until then, sees to it that it is looked at again."""
        loop = asyncio.get_running_loop()
        if loop.time() < head.since + self._age_cap:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(head.since + self._age_cap, self._serve)
            return
        self._closer = head
        lacking = self._missing(head) - (self.budget - self.bytes) - sum(entry.size for entry in self._closed.values())
        for entry in chain(self._going(), self._entries.values()):
            if lacking <= 0:
                return
            if not (entry.closed or entry.digest in self._pinned or entry.digest in head.needs):
                entry.closed = True
                self._closed[entry.digest] = entry
                lacking -= entry.size

    def _missing(self, waiter: _Waiter[V]) -> int:
        return sum(size for digest, size in waiter.needs.items() if digest not in self._entries)

    async def _bring(self, entry: Entry[V]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            entry.value, size = await self._load(entry.digest)
        except BaseException as error:
            self._take_out(entry)
            self._watch.loaded(self.name, loop.time() - began, True)
            if isinstance(error, asyncio.CancelledError):
                entry.loaded.cancel()
            else:
                entry.loaded.set_exception(error.__cause__ or error if isinstance(error, LoadFailed) else error)
        else:
            self._watch.loaded(self.name, loop.time() - began, False)
            self.bytes += size - entry.size
            entry.size = size
            entry.loaded.set_result(None)
            self._place(entry)
        self._serve()

"""Which packages are on the device: reference counts, single-flight loads, eviction by bytes. Bookkeeping, on the event loop.

A request acquires its digests before its rows are queued and releases them after its answer; a package in use is never
evicted. Packages that nobody uses stay, the least recently used going first when `budget` bytes are passed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Entry:
    size: int
    users: int = 0
    loaded: asyncio.Future[None] | None = None
    drained: asyncio.Event = field(default_factory=asyncio.Event)


class Residency:
    """Residents by digest. `load` puts one on the device and returns its bytes there; `unload` takes it off."""

    def __init__(self, load: Callable[[str], Awaitable[int]], unload: Callable[[str], Awaitable[None]], budget: int) -> None:
        self._load, self._unload, self._budget = load, unload, budget
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.bytes = 0

    def __contains__(self, digest: str) -> bool:
        entry = self._entries.get(digest)
        return entry is not None and entry.loaded is not None and entry.loaded.done()

    def __len__(self) -> int:
        return len(self._entries)

    async def acquire(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Makes packages resident and holds them; returns what to `release`. Raises what loading raised, holding nothing."""
        held: list[str] = []
        try:
            for digest in digests:
                entry = self._entries.get(digest)
                if entry is None:
                    entry = self._entries[digest] = _Entry(0)
                self._entries.move_to_end(digest)
                entry.users += 1
                held.append(digest)
                if entry.loaded is None:
                    entry.loaded = asyncio.ensure_future(self._bring(digest, entry))
                    entry.users += 1  # the load itself, so that what is on its way is neither dropped nor forgotten
                    entry.loaded.add_done_callback(lambda _, digest=digest: self.release([digest]))  # type: ignore[misc]
                if not entry.loaded.done():
                    await asyncio.shield(entry.loaded)
                else:
                    entry.loaded.result()
        except BaseException:
            self.release(held)
            raise
        return tuple(held)

    def release(self, digests: Iterable[str]) -> None:
        """Ends the use of packages."""
        for digest in digests:
            entry = self._entries[digest]
            entry.users -= 1
            failed = entry.loaded is not None and entry.loaded.done() and (entry.loaded.cancelled() or entry.loaded.exception() is not None)
            if entry.users == 0:
                entry.drained.set()
                if failed:
                    del self._entries[digest]

    async def drop(self, digest: str) -> None:
        """Waits until nobody uses a package, then takes it off the device. Nothing happens if it is not there."""
        entry = self._entries.get(digest)
        while entry is not None and entry.users:
            entry.drained.clear()
            await entry.drained.wait()
            entry = self._entries.get(digest)
        if entry is not None:
            await self._evict(digest, entry)

    async def _bring(self, digest: str, entry: _Entry) -> None:
        entry.size = await self._load(digest)
        self.bytes += entry.size
        await self._make_room()

    async def _make_room(self) -> None:
        for digest, entry in list(self._entries.items()):
            if self.bytes <= self._budget:
                return
            if entry.users == 0 and self._entries.get(digest) is entry and digest in self:
                await self._evict(digest, entry)

    async def _evict(self, digest: str, entry: _Entry) -> None:
        if self._entries.get(digest) is entry:
            del self._entries[digest]
            self.bytes -= entry.size
            await self._unload(digest)

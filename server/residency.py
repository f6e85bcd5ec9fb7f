"""Which packages are where: store -> verified disk -> host -> device, a byte budget for host and device. Bookkeeping, on the event loop.

A request takes a lease on its digests when it is admitted, in the same step in which its route is resolved, so that a package that is
deleted meanwhile stays until the request has ended; it brings them to the host while it tokenizes, holds them on the device while its
rows run, and lets go. What it does where they are not on the device is its own choice: wait, or be refused with a time to try again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from math import ceil
from typing import Any, Literal, NamedTuple, Protocol

from server.leases import Lease, Leases
from server.room import Entry, Held
from server.tiers import LoadFailed, Tier, TooBig, Watch

log = logging.getLogger(__name__)

MAX_SIZES = 1 << 16  # packages whose bytes are remembered
MAX_WARMING = 64  # sets on their way to the device for requests that were refused
FIRST_LOAD_SECONDS, MAX_RETRY_SECONDS = 0.5, 60


class Cold(Exception):
    """Packages that are not on the device; `retry_after` is when they should be, in seconds."""

    def __init__(self, digests: tuple[str, ...], retry_after: int) -> None:
        super().__init__(f"The model is being loaded. Try again in {retry_after} s.")
        self.digests, self.retry_after = digests, retry_after


class Moves(Protocol):
    """What moves packages: see `loading.Loader`."""

    async def measure(self, digest: str) -> Any: ...

    async def read(self, digest: str) -> tuple[Any, int]: ...

    async def load(self, digest: str, package: Any) -> int: ...

    def unload(self, digest: str) -> Awaitable[Any]: ...

    async def settled(self) -> None: ...

    async def forget(self, digest: str) -> None: ...

    async def close(self) -> None: ...


class Occupied(NamedTuple):
    """What a tier holds."""

    bytes: int
    packages: int
    budget: int
    waiting: int


class Residency:
    """Packages by digest. `shared`: the device's memory is the host's (a CPU), so what goes from the one may stay in the other."""

    def __init__(
        self,
        loader: Moves,
        host_memory: int,
        device_memory: int,
        shared: bool = False,
        age_cap: float = 0.25,
        load_timeout: float = 30.0,
        watch: Watch | None = None,
    ) -> None:
        self._loader, self._shared, self._load_timeout, self._watch = loader, shared, load_timeout, watch or Watch()
        self._host: Tier[Any] = Tier("host", host_memory, loader.read, age_cap=age_cap, watch=watch)
        self._device: Tier[Any] = Tier("device", device_memory, self._to_device, self._off_device, age_cap, watch)
        self._sizes: dict[str, tuple[int, int]] = {}
        self._leases: dict[str, list[Lease]] = {}
        self._warming: set[frozenset[str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._load_seconds = FIRST_LOAD_SECONDS

    def __contains__(self, digest: str) -> bool:
        return digest in self._device

    def __len__(self) -> int:
        return len(self._device)

    @property
    def bytes(self) -> int:
        """Bytes of packages on the device."""
        return self._device.bytes

    @property
    def digests(self) -> frozenset[str]:
        """Every package that is somewhere here, on its way, or leased."""
        return frozenset((*self._device, *self._host, *self._leases))

    def resident(self, digest: str) -> dict[str, bool]:
        """Where a package is."""
        return {"device": digest in self._device, "host": digest in self._host, "pinned": self._device.pinned(digest)}

    def occupied(self) -> Mapping[str, Occupied]:
        """What each tier holds, by its name."""
        return {tier.name: Occupied(tier.bytes, len(tier), tier.budget, tier.waiting) for tier in (self._host, self._device)}

    # A request

    def hold(self, digests: Iterable[str]) -> Leases:
        """Takes a lease on packages, now; leave the context that this returns to end it."""
        return Leases(self._leases, digests)

    def prefetch(self, digests: Iterable[str]) -> None:
        """Brings packages to the host, holding nothing; who acquires them hears of what goes wrong."""
        missing = [digest for digest in dict.fromkeys(digests) if self._device.get(digest) is None and self._host.get(digest) is None]
        if missing:
            self._begin(self._stage(missing), missing)

    async def acquire(self, digests: Iterable[str], cold: Literal["wait", "refuse"] = "wait") -> Held[Any]:
        """Makes a set resident and holds it; returns what to `release`. Raises Cold, TooBig, LoadFailed, holding nothing then."""
        wanted = tuple(dict.fromkeys(digests))
        held = self._device.take(wanted)
        if held is not None:
            return held
        if cold == "refuse":
            self._watch.waited(0.0, "refused")
            self._warm(wanted)
            raise self._cold(wanted)
        loop = asyncio.get_running_loop()
        began, outcome = loop.time(), "error"
        try:
            async with asyncio.timeout(self._load_timeout):
                held = await self._bring(wanted)
            outcome = "ok"
            self._load_seconds += 0.2 * (loop.time() - began - self._load_seconds)
            return held
        except TimeoutError:
            outcome = "timeout"
            raise self._cold(wanted) from None
        finally:
            self._watch.waited(loop.time() - began, outcome)

    def release(self, held: Held[Any]) -> None:
        """Ends the use of packages."""
        self._device.release(held)

    async def groups(self, sets: Sequence[tuple[str, ...]]) -> tuple[list[list[int]], dict[int, Exception]]:
        """Which of several sets, by number, to acquire together, in turn, so that each group fits on the device; and why others cannot be.

        One group if all of them fit.
        """
        if all(self._device.open(digest) for digests in sets for digest in digests):
            return [list(range(len(sets)))], {}
        faults: dict[int, Exception] = {}
        groups: list[list[int]] = []
        together: dict[str, int] = {}
        taken = 0
        for number, digests in enumerate(sets):
            try:
                needs = await self._needs(digests)
                self._device.check(needs)
            except Exception as error:
                faults[number] = error
                continue
            more = self._device.weight({digest: size for digest, size in needs.items() if digest not in together})
            if not groups or taken + more > self._device.limit:
                groups.append([])
                together, taken, more = {}, 0, self._device.weight(needs)
            together |= needs
            taken += more
            groups[-1].append(number)
        return groups, faults

    # An operator

    async def load(self, digests: Iterable[str], pin: bool = False) -> None:
        """Makes a set resident; `pin` keeps it. Raises what `acquire` raises."""
        wanted = tuple(dict.fromkeys(digests))
        with self.hold(wanted):
            held = await self.acquire(wanted)
            if pin:
                self._device.pin(held)
            self.release(held)

    async def pin(self, digests: Iterable[str]) -> None:
        """Makes a set resident and keeps it until it is unpinned or dropped."""
        await self.load(digests, pin=True)

    def unpin(self, digests: Iterable[str]) -> None:
        """Lets packages go again when their room is needed."""
        for digest in digests:
            self._device.unpin(digest)

    def unload(self, digests: Iterable[str]) -> None:
        """Unpins packages and frees those on the device that nobody uses."""
        for digest in digests:
            self._device.unpin(digest)
            self._device.remove(digest)

    async def drop(self, digest: str) -> bool:
        """Frees a package that was deleted on device, host and disk, once the requests that were admitted before have ended.

        Who was admitted since found the same bytes published again: then they stay, and False is returned.
        """
        before = list(self._leases.get(digest, ()))
        for lease in before:
            lease.dropped = True
        for lease in before:
            await lease.over.wait()
        for tier in (self._device, self._host):
            await tier.settle(digest)
        if digest in self._leases:
            return False
        self._device.remove(digest)
        self._host.remove(digest)
        self._sizes.pop(digest, None)
        await self._loader.settled()
        await self._loader.forget(digest)
        return True

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for tier in (self._device, self._host):
            await tier.close()
        await self._loader.close()

    # Between the tiers

    async def _needs(self, digests: Iterable[str]) -> dict[str, int]:
        """Bytes of packages on the device at most. Raises LoadFailed."""
        return {digest: (await self._measured(digest))[1] for digest in digests}

    async def _measured(self, digest: str) -> tuple[int, int]:
        sizes = self._sizes.get(digest)
        if sizes is None:
            try:
                sizes = await self._loader.measure(digest)
            except Exception as error:
                raise LoadFailed(digest) from error
            if len(self._sizes) >= MAX_SIZES:
                self._sizes.clear()
            self._sizes[digest] = sizes
        return sizes

    async def _bring(self, wanted: tuple[str, ...]) -> Held[Any]:
        needs = await self._needs(wanted)
        self._device.check(needs)
        await self._stage([digest for digest in wanted if self._device.get(digest) is None])
        return await self._device.acquire(needs)

    async def _stage(self, digests: Sequence[str]) -> None:
        """Brings packages to the host, each by itself, holding none. Raises LoadFailed, TooBig."""
        ends = await asyncio.gather(*(self._to_host(digest) for digest in digests), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _to_host(self, digest: str) -> None:
        """In advance, so not in the place of others that were brought in advance: then it is read when it has its room on the device."""
        host, _ = await self._measured(digest)
        try:
            self._host.check({digest: host})
            if self._host.spares(digest, host):
                self._host.release(await self._host.acquire({digest: host}))
        except TooBig as error:
            raise LoadFailed(digest) from error

    async def _to_device(self, digest: str) -> tuple[Any, int]:
        """The load of the device's tier: from the host, where the package is by now."""
        held = await self._host.acquire({digest: (await self._measured(digest))[0]})
        try:
            size = await self._loader.load(digest, held[0].value)
        finally:
            self._host.release(held)
        self._host.cool(digest)
        self._sizes[digest] = held[0].size, size
        return (held[0].value if self._shared else None), size

    def _off_device(self, entry: Entry[Any]) -> None:
        self._loader.unload(entry.digest)
        if self._shared:
            self._host.offer(entry.digest, entry.value, self._sizes.get(entry.digest, (entry.size, 0))[0])

    # Those who are refused

    def _cold(self, wanted: tuple[str, ...]) -> Cold:
        missing = tuple(digest for digest in wanted if not self._device.open(digest))
        seconds = self._load_seconds * (1 + self._device.waiting)
        return Cold(missing or wanted, min(MAX_RETRY_SECONDS, max(1, ceil(seconds))))

    def _warm(self, wanted: tuple[str, ...]) -> None:
        """Brings a set to the device for a request that was refused, so that it finds it there when it comes again."""
        key = frozenset(wanted)
        if key in self._warming or len(self._warming) >= MAX_WARMING:
            return
        self._warming.add(key)

        async def warm() -> None:
            try:
                self.release(await self.acquire(wanted))
            finally:
                self._warming.discard(key)

        self._begin(warm(), wanted)

    def _begin(self, work: Coroutine[Any, Any, None], digests: Iterable[str]) -> None:
        """Does something beside the requests, under a lease of its own."""
        lease = self.hold(digests)

        async def told() -> None:
            try:
                await work
            except Exception as error:
                log.info("packages were not brought in advance: %s", error)

        task = asyncio.get_running_loop().create_task(told())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: lease.end())
        task.add_done_callback(lambda _: work.close())

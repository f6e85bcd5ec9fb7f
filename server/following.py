"""Keeps a server in step with its store: follows the commits of other writers, drains what was deleted, collects what nobody refers to.

Two background tasks on the event loop; what blocks runs on threads of their own, so that a store that hangs holds nobody up.
"""

import asyncio
import logging
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from adapter_store.catalog import Catalog, Entry
from adapter_store.store import Store
from server.residency import Residency
from server.router import Router

log = logging.getLogger(__name__)


class Following:
    """`poll` is how often the log is read, in seconds, `collect` how often blobs are collected; `keep` hears of each name that changed
    with the versions (`spam@3`) that it has now."""

    def __init__(
        self,
        store: Store,
        residency: Residency,
        router: Router,
        keep: Callable[[str, Set[str]], None],
        poll: float,
        collect: float,
    ) -> None:
        self._store, self._residency, self._router, self._keep = store, residency, router, keep
        self._poll, self._collect = poll, collect
        self._catalog = store.catalog
        self._changed: set[str] = set()
        self._draining: dict[str, asyncio.Task[None]] = {}
        # One to read the log and one to collect, which may take minutes.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="turret-following")
        self._tasks: list[asyncio.Task[None]] = []
        self._failing: set[str] = set()

    def start(self) -> None:
        """Starts its tasks, on the running event loop."""
        self._tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._clean())]

    async def stop(self) -> None:
        """Ends its tasks, and the drains that are under way."""
        tasks = [*self._tasks, *self._draining.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def settle(self) -> None:
        """Waits until what is no longer in the catalogue is used by no request and is off the device, the host and the disk cache."""
        self._compare()
        if self._draining:
            await asyncio.wait(list(self._draining.values()))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll)
            await self._attempt("read the log of the store", self._store.refresh)
            self._compare()

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(self._collect)
            await self._attempt("collect blobs", self._store.collect)

    async def _attempt(self, what: str, step: Callable[[], Any]) -> None:
        """A step that blocks, on a thread; a failure is logged when it begins and when it ends, and tried again next time."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, step)
        except Exception as error:
            if what not in self._failing:
                log.error("cannot %s: %s", what, error)
            self._failing.add(what)
        else:
            if what in self._failing:
                log.info("can %s again", what)
            self._failing.discard(what)

    def _compare(self) -> None:
        """Begins to drain what has gone from the catalogue since the last time, and to fetch new versions of what is in use.

        On the event loop at every commit, so it looks at what has changed, not at everything there is.
        """
        before, catalog = self._catalog, self._store.catalog
        if catalog is before:
            return
        self._catalog = catalog
        changed = catalog.changed(before)
        self._tell({now.name for _, now in changed})
        # What is here counts, not only what was seen in the catalogue: a version may have come and gone between two looks.
        seen = {record.digest for was, _ in changed for record in was.versions.values()} | self._residency.digests
        for digest in seen - self._draining.keys():
            if not catalog.holds(digest):
                self._draining[digest] = asyncio.ensure_future(self._drain(digest))
        self._residency.prefetch(self._expected([now for _, now in changed], before))

    def _tell(self, names: set[str]) -> None:
        """Says which versions names have now; once more at the next change, for rows that were under way."""
        for name in names | self._changed:
            entry = self._catalog.find(name)
            self._keep(name, frozenset() if entry is None else {record.reference for record in entry.versions.values()})
        self._changed = names

    async def _drain(self, digest: str) -> None:
        try:
            while not await self._residency.drop(digest):
                if self._store.catalog.holds(digest):  # published again
                    return
            if not self._store.catalog.holds(digest):
                self._router.forget(digest)
        except Exception:
            log.exception("what is left of %s here could not be freed", digest)
        finally:
            del self._draining[digest]

    def _expected(self, changed: list[Entry], before: Catalog) -> list[str]:
        """New digests that are likely to be asked for: the newest versions of names that are on the device."""
        return [
            entry.latest.digest
            for entry in changed
            if entry.versions
            and not before.holds(entry.latest.digest)
            and any(record.digest in self._residency for record in entry.versions.values())
        ]

"""Keeps a server in step with its store: follows the commits of other writers, drains what was deleted, collects what nobody refers to.

One background task on the event loop; what blocks runs on a thread of its own, so that a store that hangs holds nobody up.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from adapter_store.catalog import Catalog
from adapter_store.store import Store
from server.residency import Residency
from server.router import Router

log = logging.getLogger(__name__)


class Following:
    """`poll` is how often the log is read, in seconds, `collect` how often blobs are collected; `keep` hears of the versions
    (`spam@3`) that there are, after each change."""

    def __init__(
        self,
        store: Store,
        residency: Residency,
        router: Router,
        keep: Callable[[Set[str]], None],
        poll: float,
        collect: float,
    ) -> None:
        self._store, self._residency, self._router, self._keep = store, residency, router, keep
        self._poll, self._collect = poll, collect
        self._catalog = store.catalog
        self._digests = _digests(self._catalog)
        self._draining: dict[str, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turret-following")
        self._task: asyncio.Task[None] | None = None
        self._failing: set[str] = set()

    def start(self) -> None:
        """Starts the task, on the running event loop."""
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Ends the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def settle(self) -> None:
        """Waits until what is no longer in the catalogue is used by no request and is off the device, the host and the disk cache."""
        self._compare()
        if self._draining:
            await asyncio.wait(list(self._draining.values()))

    async def _run(self) -> None:
        collected = time.monotonic()
        while True:
            await asyncio.sleep(self._poll)
            await self._attempt("read the log of the store", self._store.refresh)
            self._compare()
            if time.monotonic() - collected >= self._collect:
                await self._attempt("collect blobs", self._store.collect)
                collected = time.monotonic()

    async def _attempt(self, what: str, step: Callable[[], Any]) -> None:
        """A step that blocks, on the thread; a failure is logged when it begins and when it ends, and tried again next time."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, step)
        except Exception as error:
            if what not in self._failing:
                log.error("cannot %s: %s", what, error)
            self._failing.add(what)
        else:
            if what in self._failing:
                log.info("can %s again", what)
            self._failing.discard(what)

    def _compare(self) -> None:
        """Begins to drain what has gone from the catalogue since the last time, and to fetch new versions of what is in use."""
        catalog = self._store.catalog
        if catalog is self._catalog:
            return
        self._keep(_references(catalog))
        before, self._catalog = self._digests, catalog
        self._digests = _digests(catalog)
        # What is here counts, not only what was seen in the catalogue: a version may have come and gone between two looks.
        for digest in (before | self._residency.digests) - self._digests - self._draining.keys():
            self._draining[digest] = asyncio.ensure_future(self._drain(digest))
        self._residency.prefetch(self._expected(self._digests - before))

    async def _drain(self, digest: str) -> None:
        try:
            await self._residency.drop(digest)
            if digest not in self._digests:
                self._router.forget(digest)
        finally:
            del self._draining[digest]

    def _expected(self, new: Set[str]) -> list[str]:
        """Those of some new digests that are likely to be asked for: versions of names that are on the device."""
        if not new:
            return []
        entries = (entry for entry in self._catalog.entries() if any(record.digest in new for record in entry.versions.values()))
        return [
            entry.latest.digest
            for entry in entries
            if entry.latest.digest in new and any(record.digest in self._residency for record in entry.versions.values())
        ]


def _digests(catalog: Catalog) -> frozenset[str]:
    return frozenset(record.digest for entry in catalog.entries() for record in entry.versions.values())


def _references(catalog: Catalog) -> frozenset[str]:
    return frozenset(record.reference for entry in catalog.entries() for record in entry.versions.values())

"""A package's ways between store, host and device: measured and read on worker threads, taken in and let go on the engine's.

Steps for the engine thread that are due together go there in one call, in their order. Knows no torch: the engine is given.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from adapter_store.manifest import Manifest

log = logging.getLogger(__name__)

Step = Callable[[], Any]


class Sizes(NamedTuple):
    """Bytes of a package in each tier, at most."""

    host: int
    device: int


class Takes(Protocol):
    """What an engine does with packages; `read` gives something with `host_bytes` and `nbytes` (on the device)."""

    def measure(self, manifest: Manifest) -> tuple[int, int]: ...

    def read(self, path: Path, manifest: Manifest) -> Any: ...

    def load(self, digest: str, package: Any) -> int: ...

    def unload(self, digest: str) -> None: ...


class Loader:
    """Moves packages. `local` gives a package's verified file for as long as it is entered, `call` runs a step on the engine thread."""

    def __init__(
        self,
        engine: Takes,
        call: Callable[[Step], Awaitable[Any]],
        workers: Executor,
        local: Callable[[str], AbstractContextManager[Path]],
        manifest: Callable[[str], Manifest],
        forget: Callable[[str], Any] = lambda digest: None,
    ) -> None:
        self._engine, self._call, self._workers = engine, call, workers
        self._local, self._manifest, self._forget = local, manifest, forget
        self._steps: list[tuple[Step, asyncio.Future[Any]]] = []
        self._crossing: asyncio.Task[None] | None = None

    async def measure(self, digest: str) -> Sizes:
        """What a package takes, from its manifest."""
        return Sizes(*await self._work(lambda: self._engine.measure(self._manifest(digest))))

    async def read(self, digest: str) -> tuple[Any, int]:
        """A package from its verified file to the host, and its bytes there."""

        def read() -> Any:
            with self._local(digest) as path:
                return self._engine.read(path, self._manifest(digest))

        package = await self._work(read)
        return package, package.host_bytes

    async def load(self, digest: str, package: Any) -> int:
        """A package from the host to the device; its bytes there."""
        nbytes: int = await self._step(lambda: self._engine.load(digest, package))
        return nbytes

    def unload(self, digest: str) -> asyncio.Future[Any]:
        """Takes a package off the device before whatever is asked for next."""
        return self._step(lambda: self._engine.unload(digest))

    async def settled(self) -> None:
        """Waits until the steps that were asked for have been taken, or cannot be any more."""
        await asyncio.wait([self._step(lambda: None)])

    async def forget(self, digest: str) -> None:
        """Drops a package from the disk cache."""
        await self._work(lambda: self._forget(digest))

    async def close(self) -> None:
        """Ends what is on its way to the engine thread."""
        if self._crossing is not None:
            self._crossing.cancel()
            await asyncio.gather(self._crossing, return_exceptions=True)

    async def _work(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    def _step(self, step: Step) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard of, if by nobody
        self._steps.append((step, future))
        if self._crossing is None:
            self._crossing = asyncio.get_running_loop().create_task(self._cross())
        return future

    async def _cross(self) -> None:
        """Takes the steps that have gathered to the engine thread, until there are none."""
        steps: list[tuple[Step, asyncio.Future[Any]]] = []
        try:
            while self._steps:
                steps, self._steps = self._steps, []
                try:
                    outcomes = await self._call(lambda steps=steps: [_outcome(step) for step, _ in steps])  # type: ignore[misc]
                except Exception as error:  # the engine thread is stopping
                    outcomes = [(None, error)] * len(steps)
                for (_, future), (result, fault) in zip(steps, outcomes, strict=True):
                    if future.done():
                        continue
                    if fault is None:
                        future.set_result(result)
                    else:
                        future.set_exception(fault)
        finally:
            self._crossing = None
            for _, future in (*steps, *self._steps):  # closed while they were under way
                future.cancel()


def _outcome(step: Step) -> tuple[Any, Exception | None]:
    try:
        return step(), None
    except Exception as error:
        log.warning("a package could not be moved: %s", error)
        return None, error

"""Both clients with one face, so that a test is written once and runs twice: with Turret, and with AsyncTurret driven from an event
loop in a thread; and a terminal for the command to write to."""

import functools
import inspect
import io
from collections.abc import Callable
from typing import Any

from turret_client import AsyncTurret

Make = Callable[..., Any]


class Waited(list[float]):
    """Waits for nobody, and keeps for how long it should have."""

    def sync(self, seconds: float) -> None:
        self.append(seconds)

    async def later(self, seconds: float) -> None:
        self.append(seconds)


class Driven:
    """An AsyncTurret with the face of a Turret."""

    def __init__(self, portal: Any, client: AsyncTurret) -> None:
        self._portal, self._client = portal, client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def run(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return [item async for item in result] if inspect.isasyncgen(result) else await result

        return lambda *args, **kwargs: self._portal.call(functools.partial(run, *args, **kwargs))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

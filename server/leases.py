"""Leases: who was admitted with a package. A package that is deleted is kept until those end that were taken before."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Lease:
    """Requests admitted with a digest since the last time it was dropped."""

    digest: str
    count: int = 0
    dropped: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Leases:
    """One request's leases, from the moment this is made until `end`, or until the context is left."""

    def __init__(self, held: dict[str, list[Lease]], digests: Iterable[str]) -> None:
        self._held, self._mine = held, []
        for digest in dict.fromkeys(digests):
            taken = held.setdefault(digest, [])
            if not taken or taken[-1].dropped:
                taken.append(Lease(digest))
            taken[-1].count += 1
            self._mine.append(taken[-1])

    def __enter__(self) -> "Leases":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends them, if that was not done yet."""
        mine, self._mine = self._mine, []
        for lease in mine:
            lease.count -= 1
            if not lease.count:
                lease.over.set()
                self._held[lease.digest].remove(lease)
                if not self._held[lease.digest]:
                    del self._held[lease.digest]

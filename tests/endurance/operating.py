"""The people behind the load test: they publish, move aliases, roll back, delete, pin and err, and note what was in force when.

Each operator has names of its own, so that it knows what the catalogue holds of them. What an operation must answer is stated
where it is made; anything else is a fault.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.endurance.fleet import PAIR, Fleet, Part, bad
from tests.endurance.timeline import Timeline

Weights = dict[int, int]
KEPT = 4  # versions of a name, before old ones are deleted


@dataclass(slots=True)
class Held:
    """What the catalogue holds of a name: digests by version, aliases and where they pointed before."""

    versions: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, Weights] = field(default_factory=dict)
    before: dict[str, Weights] = field(default_factory=dict)

    @property
    def free(self) -> list[int]:
        """Old versions that no alias points to or could be rolled back to."""
        used = {version for weights in (*self.aliases.values(), *self.before.values()) for version in weights}
        return [version for version in sorted(self.versions)[:-1] if version not in used]


@dataclass(slots=True)
class Books:
    """What all operators share: the fleet, what was in force when, what was done, and what went wrong."""

    fleet: Fleet
    timeline: Timeline = field(default_factory=Timeline)
    held: dict[str, Held] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)


class Operator:
    """Works on some names over one connection."""

    def __init__(self, books: Books, client: httpx.AsyncClient, names: Sequence[str], random: np.random.Generator) -> None:
        self._books, self._client, self._names, self._random = books, client, names, random
        self._fleet, self._timeline = books.fleet, books.timeline

    async def run(self, seconds: float, pause: float) -> None:
        """Operations drawn from `WORK`, with pauses of `pause` seconds on average, until the time is over."""
        work, weights = zip(*WORK, strict=True)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            step: Work = work[self._random.choice(len(work), p=np.array(weights) / sum(weights))]
            try:
                await step(self)
            except (httpx.HTTPError, AssertionError) as error:
                self._books.faults.append(f"{step.__name__}: {type(error).__name__} {error}")
            await asyncio.sleep(self._random.exponential(pause))

    async def publish(self, name: str, alias: str | None = None) -> int:
        """Publishes a new version and returns its number."""
        package = self._fleet.make(name)
        began = time.perf_counter()
        answer = await self._send("PUT", f"/v1/adapters/{name}", 201, content=package.data, params={"alias": alias} if alias else {})
        version = int(answer["version"])
        held = self._books.held.setdefault(name, Held())
        assert version == max(held.versions, default=0) + 1, f"{name} got version {version} after {sorted(held.versions)}"
        assert answer["digest"] == package.digest
        held.versions[version] = package.digest
        self._note(name, "latest", {version: 1}, began)
        if alias is not None:
            self._point(name, alias, {version: 1}, began)
        self._count("publish", began)
        return version

    async def point(self, name: str, alias: str, weights: Weights) -> None:
        """Moves an alias."""
        body: dict[str, Any] = {"version": next(iter(weights))} if len(weights) == 1 else {"weights": _texts(weights)}
        began = time.perf_counter()
        answer = await self._send("PUT", f"/v1/adapters/{name}/aliases/{alias}", 200, json=body)
        assert answer["aliases"][alias] == (next(iter(weights)) if len(weights) == 1 else _texts(weights)), answer
        self._point(name, alias, weights, began)
        self._count("alias" if len(weights) == 1 else "weighted alias", began)

    # The work

    async def _publish(self) -> None:
        await self.publish(self._name(), "prod" if self._random.random() < 0.5 else None)

    async def _move(self) -> None:
        name = self._name()
        versions = list(self._held(name).versions)
        await self.point(name, "prod", {int(self._random.choice(versions)): 1})

    async def _weigh(self) -> None:
        """A canary that grows, or begins again between the two newest versions."""
        name = self._name()
        held = self._held(name)
        newest = sorted(held.versions)[-2:]
        share = int(self._random.choice([1, 10, 30, 50, 90]))
        weights = {newest[0]: 100 - share, newest[1]: share} if len(newest) == 2 else {newest[0]: 1}
        await self.point(name, "canary", weights)

    async def _roll_back(self) -> None:
        name = next((name for name in self._random.permutation(self._names) if "prod" in self._held(name).before), None)
        if name is None:
            return
        held, began = self._held(name), time.perf_counter()
        await self._send("POST", f"/v1/adapters/{name}/aliases/prod/rollback", 200)
        self._point(name, "prod", held.before["prod"], began)
        self._count("rollback", began)

    async def _several(self) -> None:
        """New versions of both of the pair, if they are this operator's, and both aliases moved in one commit; else a commit of three."""
        if PAIR[0] in self._names:
            versions = {name: await self.publish(name) for name in PAIR}
            generation = max(self._books.generations.values()) + 1
            for name, version in versions.items():
                self._books.generations[self._held(name).versions[version]] = generation
            moves = [(name, "live", version) for name, version in versions.items()]
        else:
            names = [str(name) for name in self._random.choice(self._names, 3, replace=False)]
            moves = [(name, "prod", int(self._random.choice(list(self._held(name).versions)))) for name in names]
        began = time.perf_counter()
        changes = [{"type": "alias", "name": name, "alias": alias, "version": version} for name, alias, version in moves]
        await self._send("POST", "/v1/changes", 200, json={"changes": changes})
        for name, alias, version in moves:
            self._point(name, alias, {version: 1}, began)
        self._count("several at once", began)

    async def _delete(self) -> None:
        name = next((n for n in self._random.permutation(self._names) if len(self._held(n).versions) >= KEPT and self._held(n).free), None)
        if name is None:
            return
        held = self._held(name)
        version, began = held.free[0], time.perf_counter()
        await self._send("DELETE", f"/v1/adapters/{name}/versions/{version}", 200)
        del held.versions[version]
        self._count("delete", began)

    async def _temporary(self) -> None:
        """A whole name comes, answers, and goes."""
        name, package, began = f"temporary-{self._random.integers(1 << 40):x}", self._fleet.make(self._name()), time.perf_counter()
        await self._send("PUT", f"/v1/adapters/{name}", 201, content=package.data)
        answer = await self._send("POST", "/v1/predict", 200, json={"model": name, "inputs": "t", "output": "hidden"})
        assert answer["results"][0]["digest"] == package.digest, answer
        await self._send("DELETE", f"/v1/adapters/{name}", 200)
        await self._send("POST", "/v1/predict", 404, json={"model": name, "inputs": "t"})
        self._count("delete name", began)

    async def _pin(self) -> None:
        name, began = self._name(), time.perf_counter()
        shown = await self._send("POST", f"/v1/adapters/{name}/load", 200, json={"pin": True, "version": "prod"})
        assert shown["resident"]["pinned"], shown
        await asyncio.sleep(0.2)
        await self._send("POST", f"/v1/adapters/{name}/unload", 200, json={})
        self._count("pin and unpin", began)

    async def _err(self) -> None:
        """A bad package is refused and changes nothing; so is deleting what a fusion is made of."""
        began = time.perf_counter()
        which = int(self._random.integers(5))
        data = bad(self._fleet.make(self._name()), which)
        await self._send("PUT", f"/v1/adapters/{self._name()}", (400, 422), content=data)
        member = self._fleet.names("language")[0]
        await self._send("DELETE", f"/v1/adapters/{member}", 409)
        self._count("refused", began)

    # The books

    async def _send(self, method: str, path: str, expected: int | tuple[int, ...], **rest: Any) -> Any:
        answer = await self._client.request(method, path, **rest)
        wanted = (expected,) if isinstance(expected, int) else expected
        assert answer.status_code in wanted, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()

    def _name(self) -> str:
        return str(self._random.choice(self._names))

    def _held(self, name: str) -> Held:
        return self._books.held[name]

    def _point(self, name: str, alias: str, weights: Weights, began: float) -> None:
        held = self._held(name)
        if alias in held.aliases and held.aliases[alias] != weights:
            held.before[alias] = held.aliases[alias]
        held.aliases[alias] = dict(weights)
        self._note(name, alias, weights, began)

    def _note(self, name: str, alias: str, weights: Mapping[int, int], began: float) -> None:
        digests = {self._held(name).versions[version]: weight for version, weight in weights.items()}
        self._timeline.moved(Part(name, alias), digests, began, time.perf_counter())

    def _count(self, what: str, began: float) -> None:
        self._books.done[what] += 1
        self._books.seconds.setdefault(what, []).append(time.perf_counter() - began)


Work = Callable[[Operator], Awaitable[None]]
WORK: tuple[tuple[Work, int], ...] = (
    (Operator._publish, 30),
    (Operator._move, 15),
    (Operator._weigh, 10),
    (Operator._roll_back, 8),
    (Operator._several, 8),
    (Operator._delete, 15),
    (Operator._temporary, 4),
    (Operator._pin, 5),
    (Operator._err, 5),
)


def _texts(weights: Mapping[int, int]) -> dict[str, int]:
    return {str(version): weight for version, weight in weights.items()}

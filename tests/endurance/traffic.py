"""The requests of the load test: mixed tasks, conventions and sizes, sent open loop or closed loop, and kept for the check.

Knows the wire; what the answers should be is `checking.py`'s.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.endurance.fleet import PAIR, Fleet, Part, Target

Random = np.random.Generator
Json = dict[str, Any]
TIMEOUT = httpx.Timeout(60)
LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=256)
KEYS = [f"caller-{number}" for number in range(24)]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request before it is sent: what each of its rows asks, in the order of the answer."""

    convention: str
    path: str
    body: Json
    rows: tuple[tuple[Target, str], ...]
    key: str | None = None


@dataclass(slots=True)
class Exchange:
    """A request and what came back. Times are of `time.perf_counter()`; `scheduled` is when it should have been sent."""

    ask: Ask
    scheduled: float
    sent: float = 0.0
    received: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def latency(self) -> float:
        """Seconds from when it should have been sent to its answer."""
        return self.received - self.scheduled


@dataclass(frozen=True, slots=True)
class Mix:
    """Draws requests: which models, which texts, which convention."""

    fleet: Fleet
    singles: Sequence[Target]
    compositions: Sequence[Target]
    weighted: Sequence[Target]
    texts: Sequence[str]

    def draw(self, random: Random) -> Ask:
        """One request of the mix."""
        shapes, weights = zip(*SHAPES, strict=True)
        shape: Shape = shapes[random.choice(len(shapes), p=np.array(weights) / sum(weights))]
        return shape(self, random)

    def text(self, random: Random) -> str:
        return self.texts[random.integers(len(self.texts))]

    def one(self, random: Random, among: Sequence[Target]) -> Target:
        return among[random.integers(len(among))]


Shape = Callable[[Mix, Random], Ask]


def _single(mix: Mix, random: Random) -> Ask:
    target, text = mix.one(random, mix.singles), mix.text(random)
    body = {"model": target.model, "inputs": text, "output": target.output}
    return Ask("one", "/v1/predict", body, ((target, text),))


def _batch(mix: Mix, random: Random) -> Ask:
    target, some = mix.one(random, mix.singles), [mix.text(random) for _ in range(4)]
    body = {"model": target.model, "inputs": some, "output": target.output}
    return Ask("batch", "/v1/predict", body, tuple((target, text) for text in some))


def _fan_out(mix: Mix, random: Random) -> Ask:
    """The pair, whose aliases move in one commit, and another classifier: one text, three models."""
    pair = [mix.fleet.single(Part(name, "live")) for name in PAIR]
    others = [target for target in mix.singles if target.output == "decoded"]
    targets, text = [*pair, mix.one(random, others)], mix.text(random)
    body = {"model": [target.model for target in targets], "inputs": text}
    return Ask("fan-out", "/v1/predict", body, tuple((target, text) for target in targets))


def _mixed(mix: Mix, random: Random) -> Ask:
    """Rows of different models; two of them ask the same one, which must be the same version."""
    targets = [mix.one(random, mix.singles) for _ in range(3)]
    rows = tuple((target, mix.text(random)) for target in (*targets, targets[0]))
    body = {"requests": [{"model": target.model, "inputs": text, "output": target.output} for target, text in rows]}
    return Ask("mixed", "/v1/predict", body, rows)


def _composed(mix: Mix, random: Random) -> Ask:
    target, text = mix.one(random, mix.compositions), mix.text(random)
    return Ask("composed", "/v1/predict", {"model": target.model, "inputs": text}, ((target, text),))


def _weighted(mix: Mix, random: Random) -> Ask:
    target, some = mix.one(random, mix.weighted), [mix.text(random) for _ in range(2)]
    key = None if random.random() < 0.2 else KEYS[random.integers(len(KEYS))]
    body = {"model": target.model, "inputs": some, "output": target.output}
    return Ask("weighted", "/v1/predict", body, tuple((target, text) for text in some), key)


def _hub(mix: Mix, random: Random) -> Ask:
    target, text = mix.one(random, [target for target in mix.singles if target.output == "decoded"]), mix.text(random)
    return Ask("hub", f"/models/{target.model}", {"inputs": text}, ((target, text),))


def _embedding(mix: Mix, random: Random) -> Ask:
    target = mix.one(random, [target for target in mix.singles if target.output == "embedding"])
    some = [mix.text(random) for _ in range(2)]
    return Ask("embeddings", "/v1/embeddings", {"model": target.model, "input": some}, tuple((target, text) for text in some))


SHAPES: tuple[tuple[Shape, int], ...] = (
    (_single, 40),
    (_batch, 12),
    (_fan_out, 8),
    (_mixed, 10),
    (_composed, 8),
    (_weighted, 10),
    (_hub, 8),
    (_embedding, 4),
)


async def exchange(client: httpx.AsyncClient, ask: Ask, scheduled: float) -> Exchange:
    """Sends a request now. What goes wrong on the way is status 0 with the reason as content."""
    done = Exchange(ask, scheduled, time.perf_counter())
    headers = {"content-type": "application/json"} | ({"x-turret-key": ask.key} if ask.key is not None else {})
    try:
        answer = await client.post(ask.path, content=json.dumps(ask.body).encode(), headers=headers)
        done.status, done.headers, done.content = answer.status_code, dict(answer.headers), answer.content
    except httpx.HTTPError as error:
        done.content = f"{type(error).__name__}: {error}".encode()
    done.received = time.perf_counter()
    return done


async def closed_loop(client: httpx.AsyncClient, mix: Mix, random: Random, concurrency: int, seconds: float) -> list[Exchange]:
    """As many requests as the server answers, `concurrency` at a time."""
    done: list[Exchange] = []
    end = time.perf_counter() + seconds

    async def ask_on() -> None:
        while (now := time.perf_counter()) < end:
            done.append(await exchange(client, mix.draw(random), now))

    await asyncio.gather(*(ask_on() for _ in range(concurrency)))
    return done


async def open_loop(client: httpx.AsyncClient, mix: Mix, random: Random, rate: float, seconds: float) -> list[Exchange]:
    """Poisson arrivals at `rate` a second, on their schedule whether the server keeps up or not."""
    tasks: list[asyncio.Task[Exchange]] = []
    due = began = time.perf_counter()
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(exchange(client, mix.draw(random), due)))
        due += random.exponential(1 / rate)
    return list(await asyncio.gather(*tasks))

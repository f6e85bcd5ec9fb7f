"""make load-test: mixed tasks at 70% of capacity while versions are published, aliases moved, adapters deleted and slots churned.

A real server whose packages need three times the room that the device has. Its capacity is measured first, in a closed loop; then
requests arrive open loop at 70% of it, and their latency counts from when they were due. Afterwards every answer is compared with the
solo answer of the digests that it names.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.serving import Server, running
from server.settings import default_backbone
from tests.endurance.checking import Check
from tests.endurance.fleet import FUSED, PAIR, Fleet, Part, Target, texts
from tests.endurance.operating import Books, Held, Operator
from tests.endurance.solo import Solo
from tests.endurance.traffic import LIMITS, TIMEOUT, Exchange, Mix, closed_loop, open_loop

SHARE = 0.7
TIMES_THE_SLOTS = 3
OPERATORS = 2
GRACE = 2


@dataclass(slots=True)
class Outcome:
    """What the load test found: figures for people, faults that must not be, and what was checked."""

    fleet: Fleet
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    check: Check | None = None
    exchanges: list[Exchange] = field(default_factory=list)


async def stocked(books: Books, client: httpx.AsyncClient, random: np.random.Generator) -> list[Target]:
    """Publishes two versions of every name with aliases `prod`, `canary` and the fixed `split`, a pair, a fusion; returns compositions."""
    fleet = books.fleet
    operator = Operator(books, client, list(fleet.kinds), random)
    for name in fleet.kinds:
        await operator.publish(name, "prod")
        await operator.publish(name)
        await operator.point(name, "canary", {1: 90, 2: 10})
        await operator.point(name, "split", {1: 70, 2: 30})
    for name in PAIR:
        await operator.point(name, "live", {1: 1})
        books.generations |= {books.held[name].versions[1]: 1, books.held[name].versions[2]: 2}
    languages = fleet.names("language")
    members = [(name, books.held[name].versions[1]) for name in (languages * 2)[:2]]
    package = fleet.fusion(members)
    answer = await client.put(f"/v1/adapters/{FUSED}", content=package.data)
    assert answer.status_code == 201, answer.text
    books.held[FUSED] = Held({1: package.digest})
    books.timeline.moved(Part(FUSED), {package.digest: 1}, 0.0, 0.0)
    stacks = [
        fleet.stack(Part(below, "prod"), Part(above, "prod")) for below, above in zip(languages, fleet.names("houlsby"), strict=False)
    ]
    pfeiffers = [Part(name, "prod") for name in fleet.names("pfeiffer")]
    averages = [fleet.average(first, second, 0.7) for first, second in pairwise(pfeiffers)]
    return [*stacks, *averages, fleet.fused([digest for _, digest in members])]


def mix_of(fleet: Fleet, compositions: Sequence[Target], sentences: int) -> Mix:
    """Every name by its `latest`, its `prod` and, with weights, its `canary` and `split`."""
    callable_ = [name for name, manifest in fleet.kinds.items() if manifest.head is not None]
    singles = [fleet.single(Part(name, alias)) for name in callable_ for alias in ("latest", "prod")]
    weighted = [fleet.single(Part(name, alias)) for name in callable_[::4] for alias in ("canary", "split")]
    return Mix(fleet, singles, compositions, weighted, texts(sentences))


async def loaded(
    server: Server, mix: Mix, books: Books, seconds: float, warm_up: float, seed: int
) -> tuple[float, list[Exchange], list[Exchange]]:
    """Requests a second that the server can do, the exchanges by which that was measured, and those of the load at 70% of it."""
    random = np.random.default_rng(seed)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=LIMITS) as client:
        await closed_loop(client, mix, random, 16, warm_up / 3)
        before = await closed_loop(client, mix, random, 16, warm_up)
        capacity = len(before) / (max(one.received for one in before) - before[0].sent)
        shares = [list(mix.fleet.kinds)[number::OPERATORS] for number in range(OPERATORS)]
        operators = [
            Operator(books, client, names, np.random.default_rng([seed, number])) for number, names in enumerate(_with_pair(shares))
        ]
        exchanges, *_ = await asyncio.gather(
            open_loop(client, mix, random, SHARE * capacity, seconds), *(operator.run(seconds, 0.2) for operator in operators)
        )
    return capacity, before, exchanges


def _with_pair(shares: list[list[str]]) -> list[list[str]]:
    """The pair belongs to one operator."""
    plain = [[name for name in share if name not in PAIR] for share in shares]
    return [[*plain[0], *PAIR], *plain[1:]]


async def working_set(server: Server, fleet: Fleet, books: Books, seed: int) -> tuple[list[Target], float]:
    """Stocks the store and asks everything once; returns the compositions and the bytes that all of it takes on the device."""
    random = np.random.default_rng(seed)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=LIMITS) as client:
        compositions = await stocked(books, client, random)
        mix = mix_of(fleet, compositions, 1)
        for target in (*mix.singles, *compositions):
            answer = await client.post("/v1/predict", json={"model": target.model, "inputs": "t"})
            assert answer.status_code == 200, answer.text
    return compositions, server.metric("turret_tier_bytes", "device")


def load_test(folder: Path, seconds: float, warm_up: float, size: float = 1.0, sentences: int = 8, seed: int = 11) -> Outcome:
    """Runs the whole test on the default backbone with files in `folder`."""
    backbone = default_backbone()
    packages: dict[str, Any] = {}
    solo = Solo(backbone, packages)
    fleet = Fleet(solo.backbone, size, packages)
    books = Books(fleet)
    flags = {"backbone": backbone, "store": folder / "store", "threads": 1, "grace": GRACE, "log_level": "warning"}
    with running(folder / "stocking", **flags) as server:
        compositions, needed = asyncio.run(working_set(server, fleet, books, seed))
    mix = mix_of(fleet, compositions, sentences)
    outcome = Outcome(fleet)
    with running(folder / "loaded", **flags, device_memory=int(needed / TIMES_THE_SLOTS)) as server:
        capacity, before, outcome.exchanges = asyncio.run(loaded(server, mix, books, seconds, warm_up, seed))
        outcome.figures = {
            "capacity": round(capacity, 1),
            "rate": round(SHARE * capacity, 1),
            "seconds": seconds,
            "working set bytes": int(needed),
            "device bytes": int(needed / TIMES_THE_SLOTS),
            "on the device at the end": int(server.metric("turret_tier_bytes", "device")),
            "loads": int(server.metric("turret_load_seconds_count", "device")),
            "evictions": int(server.metric("turret_evictions_total", "device")),
        }
        traces = [line for line in server.log.splitlines() if "Traceback" in line or " ERROR " in line]
    outcome.check = Check(solo, books.timeline, books.generations)
    outcome.check.all([*before, *outcome.exchanges])
    outcome.faults = [*books.faults, *outcome.check.faults, *traces]
    outcome.figures |= _figures(outcome, books)
    return outcome


def _figures(outcome: Outcome, books: Books) -> dict[str, Any]:
    check = outcome.check
    assert check is not None
    latencies = np.array([one.latency for one in outcome.exchanges]) * 1000
    percentiles = {f"p{share} ms": round(float(np.percentile(latencies, share)), 1) for share in (50, 90, 99, 100)}
    return {
        "requests": len(outcome.exchanges),
        "rows": check.rows,
        "versions answered": len(check.by_digest),
        "solo answers": len(check.solo),
        "latency": percentiles,
        "farthest from solo": check.farthest,
        "operations": dict(sorted(books.done.items())),
        "operation p50, p99 ms": {
            what: [round(float(np.percentile(some, share)) * 1000, 1) for share in (50, 99)] for what, some in sorted(books.seconds.items())
        },
        "failed requests": sum(one.status != 200 for one in outcome.exchanges),
        "faults": len(outcome.faults),
    }


def main() -> None:
    """Prints the figures as JSON, and the faults; exit code 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warm-up", type=float, default=9)
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turret-load-") as folder:
        outcome = load_test(Path(folder), options.seconds, options.warm_up, options.size, seed=options.seed)
    print(json.dumps(outcome.figures, indent=1))
    for fault in outcome.faults[:20]:
        print(fault, file=sys.stderr)
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()

"""make bench, third part: what a hot swap costs, over HTTP on the loopback, with a server in a process of its own.

Publish to first answer: from the first byte of the upload to the answer of the new version, by itself and beside a light load. Cold load:
the first answer of an adapter that is on the disk alone, and of one that is on the host, beside a warm one of the same text. Throughput
with the working set at 0.5, 1, 2 and 4 times the slots, adapters drawn evenly and by Zipf's law, once where the host holds what the device
does not and once where it comes from the disk (its pages in the system's cache); windows in turn, medians. Memory of 1,000 resident
adapters of two kinds.
"""

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck
from benchmarks.measuring import machine, milliseconds
from benchmarks.serving import Server, running
from benchmarks.workload import package_bytes, sentences, stocked
from server.engine.backbone import load_backbone
from server.settings import default_backbone

RESULTS = Path(__file__).parent / "results" / "swapping.json"
HEAD = Head(type="classification", labels=("a", "b", "c"))
KINDS = {"pfeiffer": Bottleneck(), "compacter": Bottleneck(phm_layer=True, reduction_factor=32, non_linearity="gelu")}
RATIOS = (0.5, 1.0, 2.0, 4.0)
DRAWS = {"even": 0.0, "zipf 1.5": 1.5}
CONCURRENCY = 32
LIGHT = 10.0  # requests a second of the light load
TIMEOUT = httpx.Timeout(60)
FLAGS: dict[str, Any] = {"backbone": default_backbone(), "log_level": "warning"}

Figures = dict[str, Any]


def ask(client: httpx.Client, model: str, text: str) -> float:
    """Seconds until one row is answered."""
    began = time.perf_counter()
    answer = client.post("/v1/predict", json={"model": model, "inputs": text})
    seconds = time.perf_counter() - began
    answer.raise_for_status()
    return seconds


# Publish to first answer


def publish(client: httpx.Client, name: str, data: bytes, text: str) -> tuple[float, float]:
    """Seconds until a new version is published, and until it has answered."""
    began = time.perf_counter()
    published = client.put(f"/v1/adapters/{name}", content=data, params={"alias": "prod"})
    taken = time.perf_counter() - began
    published.raise_for_status()
    ask(client, f"{name}@{published.json()['version']}", text)
    return taken, time.perf_counter() - began


@contextmanager
def light_load(url: str, models: Sequence[str], texts: Sequence[str]) -> Iterator[None]:
    """Requests for warm adapters at a steady rate, in a thread of its own."""
    stop = threading.Event()

    def work() -> None:
        random = np.random.default_rng(1)
        due = time.perf_counter()
        with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
            while not stop.wait(max(0.0, due - time.perf_counter())):
                ask(client, str(random.choice(models)), str(random.choice(texts)))
                due += 1 / LIGHT

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


def publishing(server: Server, spec: Backbone, publishes: int, warm: Sequence[str], texts: Sequence[str]) -> Figures:
    """Publishes by themselves and beside a light load, ten and ten in turn."""
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "beside a light load": []}
    manifest = Manifest(methods={"bottleneck": KINDS["pfeiffer"]}, head=HEAD, backbone=spec)
    packages = (package_bytes(manifest, 10_000 + number) for number in range(2 * publishes + 1))
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        publish(client, "published", next(packages), texts[0])
        while len(times["beside a light load"]) < publishes:
            turn = [next(packages) for _ in range(20)]
            times["alone"] += [publish(client, f"published-{n}", data, texts[n]) for n, data in enumerate(turn[:10])]
            with light_load(server.url, warm, texts):
                times["beside a light load"] += [publish(client, f"published-{n}", data, texts[n]) for n, data in enumerate(turn[10:])]
    return {
        situation: {
            "publishes": len(some),
            "published ms": milliseconds([taken for taken, _ in some]),
            "first answer ms": milliseconds([answered for _, answered in some]),
        }
        for situation, some in times.items()
    }


# Cold loads


def cold(server: Server, names: Sequence[str], text: str) -> Figures:
    """The first answers of adapters that the server has not touched since its start, and of the same from the host, beside warm ones."""
    times: dict[str, list[float]] = {"disk": [], "host": [], "warm": []}
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        for _ in range(3):
            ask(client, names[-1], text)
        for name in names[:-1]:
            times["disk"].append(ask(client, name, text))
            times["warm"].append(ask(client, name, text))
            client.post(f"/v1/adapters/{name}/unload", json={}).raise_for_status()
            where = client.get(f"/v1/adapters/{name}").json()["resident"]
            assert where["host"], where
            assert not where["device"], where
            times["host"].append(ask(client, name, text))
    warm = median(times["warm"])
    return {
        "adapters": len(names) - 1,
        "warm ms": milliseconds(times["warm"]),
        **{f"{tier} ms": milliseconds([seconds - warm for seconds in times[tier]]) for tier in ("disk", "host")},
    }


# Throughput


def chances(adapters: int, exponent: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The chance of each adapter: by its rank to the power of -exponent, the ranks dealt out at random."""
    weights = np.arange(1, adapters + 1, dtype=np.float64) ** -exponent
    return np.random.default_rng(3).permutation(weights / weights.sum())


async def window(url: str, models: Sequence[str], exponent: float, texts: Sequence[str], seconds: float, seed: int) -> float:
    """Requests a second, `CONCURRENCY` at a time, after a quarter of the time to warm up."""
    random = np.random.default_rng(seed)
    drawn = iter(random.choice(models, 100_000, p=chances(len(models), exponent)))
    begun = time.perf_counter()
    done = 0

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal done
        while (now := time.perf_counter()) < begun + 1.25 * seconds:
            body = {"model": str(next(drawn)), "inputs": texts[int(random.integers(len(texts)))]}
            (await client.post("/v1/predict", json=body)).raise_for_status()
            done += now >= begun + 0.25 * seconds

    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        await asyncio.gather(*(work(client) for _ in range(CONCURRENCY)))
    return done / (time.perf_counter() - begun - 0.25 * seconds)


def throughput(server: Server, names: Sequence[str], slots: int, texts: Sequence[str], turns: int, seconds: float) -> Figures:
    """Requests a second of every working set and draw, windows in turn; medians."""
    rates: dict[tuple[str, float], list[float]] = {(draw, ratio): [] for draw in DRAWS for ratio in RATIOS}
    for turn in range(turns):
        for draw, ratio in rates:
            models = names[: round(ratio * slots)]
            rates[draw, ratio].append(asyncio.run(window(server.url, models, DRAWS[draw], texts, seconds, turn)))
    return {draw: {str(ratio): median(rates[draw, ratio]) for ratio in RATIOS} for draw in DRAWS}


# Memory


def memory(folder: Path, store: Path, names: Sequence[str], manifest: Manifest) -> Figures:
    """What all of some adapters take once they are resident: by the server's own count, and by its resident memory."""
    theory = 4 * sum(int(np.prod(shape)) for shape in manifest.tensors().values())
    with running(folder, **FLAGS, store=store) as server, httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        ask(client, names[0], "t")
        before, held = server.memory(), server.metric("turret_tier_bytes", "device")
        for name in names[1:]:
            client.post(f"/v1/adapters/{name}/load", json={}).raise_for_status()
        count = len(names) - 1
        assert server.metric("turret_tier_packages", "device") == len(names)
        return {
            "adapters": count,
            "parameters' bytes each": theory,
            "device bytes each": (server.metric("turret_tier_bytes", "device") - held) / count,
            "resident memory each": (server.memory() - before) / count,
            "server's memory": server.memory(),
        }


def measured(folder: Path, options: argparse.Namespace) -> Figures:
    """All figures, with files in `folder`."""
    spec = load_backbone(default_backbone()).spec
    manifests = {kind: Manifest(methods={"bottleneck": config}, head=HEAD, backbone=spec) for kind, config in KINDS.items()}
    texts = sentences(np.random.default_rng(options.seed), 64)
    names = stocked(folder / "store", "adapter", manifests["pfeiffer"], round(max(RATIOS) * options.slots))
    results: Figures = {}
    with running(folder / "swap", **FLAGS, store=folder / "store") as server:
        results["cold load"] = cold(server, names[: options.cold + 1], texts[0])
        results["publish to first answer"] = publishing(server, spec, options.publishes, names[:8], texts)
    slot = _slot_bytes(folder, names[0])
    device = round(options.slots * slot * 8 / 7) + 1  # an eighth of it is for compiled setups
    tiers = {"on the host": {}, "on the disk": {"host_memory": device}}
    for place, flags in tiers.items():
        with running(folder / place.replace(" ", "-"), **FLAGS, store=folder / "store", device_memory=device, **flags) as server:
            figures = throughput(server, names, options.slots, texts, options.repeats, options.seconds)
            results[f"throughput, the rest {place}"] = figures
    for kind, manifest in manifests.items():
        store = folder / f"store-{kind}"
        results[f"memory, {kind}"] = memory(folder / kind, store, stocked(store, kind, manifest, options.resident + 1), manifest)
    return results


def _slot_bytes(folder: Path, name: str) -> float:
    """The bytes that one adapter takes on the device, by the server's count."""
    with running(folder / "slot", **FLAGS, store=folder / "store") as server, httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        client.post(f"/v1/adapters/{name}/load", json={}).raise_for_status()
        return server.metric("turret_tier_bytes", "device")


def tables(results: Figures) -> Iterator[Table]:
    """The figures for people."""
    shown = Table("", "p50 ms", "p99 ms", title="Publish to first answer, and cold loads beside a warm answer")
    for situation, figures in results["publish to first answer"].items():
        for what in ("published ms", "first answer ms"):
            shown.add_row(f"{what.removesuffix(' ms')}, {situation}", *(f"{figures[what][share]:.1f}" for share in ("p50", "p99")))
    for what in ("warm ms", "disk ms", "host ms"):
        label = {"warm ms": "a warm answer", "disk ms": "more from the disk", "host ms": "more from the host"}[what]
        shown.add_row(label, *(f"{results['cold load'][what][share]:.1f}" for share in ("p50", "p99")))
    yield shown
    shown = Table("working set / slots", *map(str, RATIOS), title="Requests a second (ratio to the first)")
    for title, figures in results.items():
        if title.startswith("throughput"):
            for draw, rates in figures.items():
                cells = (f"{rates[str(ratio)]:.0f} ({rates[str(ratio)] / rates[str(RATIOS[0])]:.2f})" for ratio in RATIOS)
                shown.add_row(f"{draw}, {title.partition(', ')[2]}", *cells)
    yield shown
    columns = ("parameters' bytes each", "device bytes each", "resident memory each", "server's memory")
    shown = Table("resident adapters", *columns, title="Memory")
    for title, figures in results.items():
        if title.startswith("memory"):
            shown.add_row(f"{figures['adapters']:,} {title.partition(', ')[2]}", *(f"{figures[column]:,.0f}" for column in columns))
    yield shown


def main() -> None:
    """Runs the benchmark, prints the tables, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publishes", type=int, default=100)
    parser.add_argument("--cold", type=int, default=100)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--resident", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="turret-bench-") as folder:
        results = measured(Path(folder), options)
    console = Console(width=140)
    for shown in tables(results):
        console.print(shown)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""make bench, the half over HTTP: Turret beside the services that a user would pick instead, on the same texts, in one run.

Eight tasks: Turret with eight LoRA adapters against FastAPI with one full model per task, whose weights have the same LoRA merged in, so
that the logits are equal. Embeddings: Turret with 64 different Pfeiffer adapters in the mix, and bare, against infinity and LitServe on
the bare backbone. Turret against its own engine fed directly, and, with one client, against one bare forward of transformers. Contenders
are started once, loaded in turn, and stopped where they stand (SIGSTOP) while others are; medians. A wrong answer fails the benchmark.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import orjson
from rich.console import Console
from transformers.utils import logging

from adapter_store.manifest import Manifest
from benchmarks import contenders, feeding, load, services_report, traffic
from benchmarks.competitors.worker import Worker
from benchmarks.contenders import Contender
from benchmarks.load import Plan
from benchmarks.processes import cpu_seconds
from benchmarks.traffic import Question
from benchmarks.workload import LENGTHS, stocked
from server.engine.backbone import load_backbone
from server.settings import default_backbone

CONCURRENCIES = (1, 8, 32, 128)
MAIN, MIXED = 32, "log-normal"
SHORT = "16"
FRACTIONS = (0.3, 0.5, 0.7, 0.9)
ROWS = {MIXED: 128, SHORT: 64, "128": 32, "512": 16}
PARITY_ROWS = 64
LONGER = {"128": 1.5, "512": 2.0}  # windows of long texts, of which fewer are answered in a second

Figures = dict[str, Any]
Loads = Mapping[str, Callable[[], Figures]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A service and what it is asked: one row of the results."""

    name: str
    service: Contender
    asked: Mapping[str, Sequence[Question]]


@dataclass(slots=True)
class Ring:
    """All services that run. One is loaded at a time; the others are paused, and what CPU they used all the same is kept."""

    warm_up: float
    services: list[Contender] = field(default_factory=list)
    idle: dict[str, float] = field(default_factory=dict)  # the most CPU seconds a second that one used while another was loaded

    def add(self, service: Contender) -> Contender:
        """Takes a service in, paused."""
        service.pause()
        self.services.append(service)
        return service

    @contextmanager
    def only(self, service: Contender | None) -> Iterator[None]:
        """Only this one runs."""
        others = [one for one in self.services if one is not service]
        used = {one.name: sum(map(cpu_seconds, one.pids)) for one in others}
        if service is not None:
            service.resume()
        try:
            yield
        finally:
            if service is not None:
                service.pause()
            for one in others:
                self.idle[one.name] = max(self.idle.get(one.name, 0.0), sum(map(cpu_seconds, one.pids)) - used[one.name])

    def load(self, entry: Entry, lengths: str, seconds: float, concurrency: int = 0, rate: float = 0.0, seed: int = 0) -> Figures:
        """One load of one service."""
        service = entry.service
        longer = LONGER.get(lengths, 1.0)
        plan = Plan(
            service.requests(entry.asked[lengths]), service.path, concurrency=concurrency, rate=rate, seconds=seconds * longer,
            warm_up=self.warm_up * longer, pids=service.pids, seed=seed,
        )  # fmt: skip
        with self.only(service):
            return asdict(load.apart(plan))


def in_turn(loads: Loads, repeats: int) -> dict[str, Figures]:
    """Each load `repeats` times, A B C A B C ...; medians of every figure, errors added up."""
    runs: dict[str, list[Figures]] = {name: [] for name in loads}
    for _ in range(repeats):
        for name, run in loads.items():
            runs[name].append(run())
    return {name: middle(some) for name, some in runs.items()}


def middle(runs: Sequence[Figures]) -> Figures:
    """The medians of the figures of several runs; counted faults are added up. `spread`: (highest - lowest) / median of the throughput."""
    merged: Figures = {}
    for key, value in runs[0].items():
        if key == "errors":
            merged[key] = {fault: sum(run[key].get(fault, 0) for run in runs) for run in runs for fault in run[key]}
        elif isinstance(value, dict):
            merged[key] = {name: median(run[key][name] for run in runs if name in run[key]) for name in value}
        else:
            merged[key] = median(run[key] for run in runs)
    rates = [run["per_second"] for run in runs]
    return merged | {"runs": len(runs), "spread": (max(rates) - min(rates)) / (median(rates) or 1.0)}


def parity(entry: Entry) -> Figures:
    """How far a service's answers are from the right ones, one text at a time: the greatest difference and the least cosine."""
    off, cosine = 0.0, 1.0
    with httpx.Client(timeout=60) as client:
        for one in entry.asked[MIXED][:PARITY_ROWS]:
            request = entry.service.ask(one)
            head, _, body = request.data.partition(b"\r\n\r\n")
            host, port = request.target
            target = head.split(b" ", 2)[1].decode()
            answer = client.post(f"http://{host}:{port}{target}", content=body, headers={"content-type": "application/json"})
            found: Any = orjson.loads(answer.raise_for_status().content)
            for step in entry.service.path:
                found = found[step]
            a, b = np.asarray(found), np.asarray(one.right)
            off = max(off, float(np.abs(a - b).max()))
            cosine = min(cosine, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
    return {"greatest difference": off, "least cosine": cosine}


# The parts


def eight_tasks(folder: Path, backbone: Path, options: argparse.Namespace) -> Figures:
    """Turret with eight LoRA tasks, against one full model per task: memory, throughput, CPU."""
    spec = load_backbone(str(backbone)).spec
    (folder / "store").mkdir(parents=True)
    traffic.stock_tasks(folder / "store", spec)
    models = traffic.write_full_models(folder / "models", backbone, spec)
    asked = {MIXED: traffic.task_logits(traffic.questions(options.seed, ROWS[MIXED], MIXED, traffic.TASKS), models)}
    starts: dict[str, Callable[[], Contender]] = {
        services_report.TURRET_TASKS: partial(contenders.turret, folder / "turret", folder / "store", backbone, "task"),
        "full models, one process": partial(contenders.full_models, folder / "one", models, apart=False),
        "full models, batched": partial(contenders.full_models, folder / "b", models, False, contenders.FULL_MODELS_BATCHED),
        "full models, a process each": partial(contenders.full_models, folder / "each", models, apart=True),
    }
    equal, memory = {}, {}
    # Each by itself, or the pages of its files and libraries would be shared with the others' and count in part.
    for name, start in starts.items():
        service = start()
        try:
            equal[name] = parity(Entry(name, service, asked))
            memory[name] = service.memory_bytes
        finally:
            service.stop()
    ring = Ring(options.warm_up)
    with ExitStack() as stack:
        entries = []
        for name, start in starts.items():
            service = start()
            stack.callback(service.stop)
            entries.append(Entry(name, ring.add(service), asked))
        loads = {entry.name: _closed(ring, entry, MIXED, MAIN, options.seconds) for entry in entries}
        figures = in_turn(loads, options.repeats)
        weights = sum((model / "model.safetensors").stat().st_size for model in models)
        packages = sum(path.stat().st_size for path in (folder / "store").rglob("*.safetensors"))
        own = (backbone / "model.safetensors").stat().st_size + packages
        settings = {entry.name: dict(entry.service.settings) for entry in entries}
    return {
        "parity": equal, "closed": figures, "memory": memory, "weights": {"full models": weights, "Turret": own}, "settings": settings,
        "idle": ring.idle,
    }  # fmt: skip


def _closed(ring: Ring, entry: Entry, lengths: str, concurrency: int, seconds: float) -> Callable[[], Figures]:
    return lambda: ring.load(entry, lengths, seconds, concurrency=concurrency)


def _open(ring: Ring, entry: Entry, rate: float, seconds: float) -> Callable[[], Figures]:
    return lambda: ring.load(entry, MIXED, seconds, rate=rate)


def embeddings(folder: Path, backbone: Path, options: argparse.Namespace) -> Figures:
    """Turret's embeddings, with 64 adapters and bare, against infinity and LitServe, its own engine, and one bare forward."""
    store = folder / "store"
    spec = load_backbone(str(backbone)).spec
    stocked(store, "adapter", Manifest(methods={"bottleneck": traffic.PFEIFFER}, backbone=spec), traffic.ADAPTERS)
    kinds = LENGTHS if options.full else (MIXED, SHORT)
    drawn = {kind: traffic.questions(options.seed, ROWS[kind], kind, traffic.ADAPTERS) for kind in kinds}
    mixed = {kind: traffic.adapter_vectors(some, store, backbone) for kind, some in drawn.items()}
    plain = {kind: [Question(one.text, one.tokens) for one in some] for kind, some in drawn.items()}
    bare = {kind: traffic.bare_vectors(some, backbone) for kind, some in plain.items()}
    ring = Ring(options.warm_up)
    with ExitStack() as stack:

        def enter(service: Contender) -> Contender:
            stack.callback(service.stop)
            return ring.add(service)

        turret = enter(contenders.turret(folder / "turret", store, backbone, "adapter", name="Turret"))
        infinity = enter(contenders.infinity(folder, traffic.longer_backbone(folder / "backbone", backbone)))
        litserve = enter(contenders.litserve(folder, backbone))
        entries = [
            Entry(services_report.MIXED, turret, mixed), Entry(services_report.BARE, turret, bare),
            Entry("infinity", infinity, bare), Entry("litserve", litserve, bare),
        ]  # fmt: skip
        engine = stack.enter_context(Worker("engine", sys.executable, feeding.MODULE, folder))
        unanswered = [asdict(one) | {"right": None} for one in mixed[MIXED]]
        engine.ask("engine", backbone=str(backbone), store=str(store), asked=unanswered)
        stock = stack.enter_context(Worker("stock", sys.executable, feeding.MODULE, folder))
        stock.ask("model", backbone=str(backbone))
        results: Figures = {"parity": {}, "settings": {one.name: dict(one.settings) for one in ring.services}}
        for entry in entries:
            with ring.only(entry.service):
                results["parity"][entry.name] = parity(entry)

        def fed(size: int) -> Callable[[], Figures]:
            def run() -> Figures:
                with ring.only(None):
                    return dict(engine.ask("feed", size=size, seconds=options.seconds))

            return run

        def forward() -> Figures:
            with ring.only(None):
                return dict(stock.ask("forward", tokens=int(SHORT), seconds=options.seconds))

        turret.resume()
        before = _batches(entries[0])
        turret.pause()
        one = ring.load(entries[0], MIXED, options.seconds, concurrency=MAIN)
        turret.resume()
        size = max(1, round((_batches(entries[0])[1] - before[1]) / (_batches(entries[0])[0] - before[0])))
        turret.pause()
        results["server's rows a batch"] = size
        results["first"] = one
        main = {entry.name: _closed(ring, entry, MIXED, MAIN, options.seconds) for entry in entries}
        main |= {services_report.ENGINE: fed(MAIN), services_report.ENGINE_SMALL: fed(size)}
        results["closed"] = {MIXED: {str(MAIN): in_turn(main, options.repeats)}}
        single = {entry.name: _closed(ring, entry, SHORT, 1, options.seconds) for entry in entries}
        results["single"] = in_turn(single | {services_report.FORWARD: forward}, options.repeats)
        for kind in kinds if options.full else (MIXED,):
            for concurrency in CONCURRENCIES:
                if (kind, concurrency) != (MIXED, MAIN):
                    some = {entry.name: _closed(ring, entry, kind, concurrency, options.seconds) for entry in entries}
                    results["closed"].setdefault(kind, {})[str(concurrency)] = in_turn(some, options.repeats if options.full else 1)
        results["open"] = {}
        for fraction in FRACTIONS if options.full else FRACTIONS[1::2]:
            rates = {entry.name: fraction * results["closed"][MIXED][str(MAIN)][entry.name]["per_second"] for entry in entries}
            some = {
                entry.name: _open(ring, entry, rates[entry.name], 1.5 * options.seconds)
                for entry in entries
                if entry.name != services_report.BARE
            }
            results["open"][str(fraction)] = in_turn(some, options.repeats if options.full else 1)
        results["idle"] = ring.idle
    return results


def _batches(entry: Entry) -> tuple[float, float]:
    """How many batches a Turret server has run, and the rows of all of them."""
    host, port = entry.service.ask(entry.asked[MIXED][0]).target
    lines = httpx.get(f"http://{host}:{port}/metrics", timeout=30).text.splitlines()
    found = dict(line.split(" ")[:2] for line in lines if line.startswith("turret_batch_rows_"))
    return float(found["turret_batch_rows_count"]), float(found["turret_batch_rows_sum"])


def faults(results: Any, where: str = "") -> Iterator[str]:
    """Every counted fault, in a sentence."""
    if isinstance(results, dict):
        for key, value in results.items():
            if key == "errors":
                yield from (f"{where}: {fault}, {count} times" for fault, count in value.items())
            else:
                yield from faults(value, f"{where}, {key}" if where else str(key))


def main() -> None:
    """Runs the benchmark, prints the tables, writes the figures; ends with 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default: the goals, one curve, two rates")
    parser.add_argument("--full", action="store_true", help="every length at every concurrency, more rates and repeats")
    parser.add_argument("--only", choices=["tasks", "embeddings"], help="one part, printed and not written")
    parser.add_argument("--seconds", type=float, default=0.0, help="of one load; 0: 3.5 quick, 5 full")
    parser.add_argument("--repeats", type=int, default=0, help="0: 3")
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    options.seconds = options.seconds or (5.0 if options.full else 3.5)
    options.repeats = options.repeats or 3
    logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # or paused services would stay behind
    backbone = Path(default_backbone())
    results: Figures = {}
    with TemporaryDirectory(prefix="turret-bench-") as folder:
        if options.only != "embeddings":
            results["tasks"] = eight_tasks(Path(folder) / "tasks", backbone, options)
        if options.only != "tasks":
            (Path(folder) / "embeddings").mkdir()
            results["embeddings"] = embeddings(Path(folder) / "embeddings", backbone, options)
    services_report.show(Console(width=170), results)
    if not options.only:
        services_report.write(f"python -m benchmarks.services {'--full' if options.full else '--quick'}", results)
    wrong = list(faults(results))
    if wrong:
        sys.exit("Answers were wrong or missing:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()

"""The engines beside one another, fed directly: `python -m benchmarks.engines [--quick]`.

Every contender runs in a process of its own, Turret too, and in its own environment, on the same token ids and the same weights:
`adapters` and PEFT make them and save them with their own methods, Turret imports the folders. Contenders run in turn, and every
competitor's last hidden states are compared with Turret's, token by token; a difference above `PARITY` ends the benchmark with an error.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import engine_report
from benchmarks.competitors import venvs
from benchmarks.competitors.worker import Worker
from benchmarks.workload import LENGTHS, TASKS, mixed, tasks
from server.settings import default_backbone

ROWS = 32
SIZES = (1, 8, 32, 64)
RESIDENTS = 1000
REDUCTION_FACTOR = 16
RANK = 8
DEVIATION = 0.05
MEMBERS = (3, 8)
MATRIX_TOKENS = 4096
PARITY = 1e-4
BUSY = 0.5  # of the cores: from which load a run warns
ACTS = 1e-2  # what adapters must change at least, or the parity would say nothing about them

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Effort:
    """How often: rounds of fast and of slow contenders, batches drawn, and batches drawn over the residents."""

    rounds: int = 15
    slow_rounds: int = 7
    draws: int = 3
    resident_draws: int = 16


QUICK = Effort(rounds=5, slow_rounds=3, draws=1, resident_draws=8)


@dataclass(frozen=True)
class Lane:
    """A contender of one worker on the batches of a key."""

    worker: Worker
    contender: str
    key: str

    def run(self) -> dict[str, float]:
        """Seconds of one run over its batches: "wall" and "cpu"."""
        return dict(self.worker.ask("run", contender=self.contender, key=self.key))

    def outputs(self, folder: Path) -> Any:
        """Its last hidden states, [tokens, H]."""
        path = folder / "outputs.npy"
        self.worker.ask("outputs", contender=self.contender, key=self.key, path=str(path))
        return np.load(path)


@dataclass
class Bench:
    """The workers that were started, and what was found so far."""

    folder: Path
    effort: Effort
    seed: int
    turret: Worker
    adapters: Worker
    peft: Worker
    about: dict[str, dict[str, Any]]
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    parity: list[dict[str, Any]] = field(default_factory=list)

    def give(self, key: str, rows: int, lengths: str, kind: str, count: int, draws: int, *workers: Worker) -> int:
        """Draws batches and gives them to workers; returns their tokens. The lengths and ids do not depend on the tasks."""
        batches, tokens = [], 0
        for draw in range(draws):
            rng = np.random.default_rng([self.seed, draw])
            counts = mixed(rng, rows, lengths)
            ids = [rng.integers(1000, 30000, n).tolist() for n in counts]
            batches.append({"ids": ids, "tasks": tasks(rng, rows, kind, count)})
            tokens += sum(counts)
        for worker in workers:
            worker.ask("take", key=key, batches=batches)
        return tokens

    def measure(self, title: str, rounds: int, tokens: int, rows: int, draws: int, lanes: Mapping[str, Lane]) -> Figures:
        """Runs the lanes in turn; medians of one batch, in milliseconds.

        A lane that comes after another process's runs once before it is measured: the other has left it cold caches.
        """
        print(f"{title} ...", flush=True)
        last: Worker | None = None
        found: dict[str, list[dict[str, float]]] = {name: [] for name in lanes}
        for lane in lanes.values():
            lane.run()
        for _ in range(rounds):
            for name, lane in lanes.items():
                if lane.worker is not last:
                    lane.run()
                last = lane.worker
                found[name].append(lane.run())
        figures = {
            name: {
                "ms": median(run["wall"] for run in runs) * 1000 / draws,
                "cpu ms": median(run["cpu"] for run in runs) * 1000 / draws,
                "fastest ms": min(run["wall"] for run in runs) * 1000 / draws,
            }
            for name, runs in found.items()
        }
        self.sections[title] = {"rows": rows, "tokens": tokens / draws, "rounds": rounds, "batches": draws, "figures": figures}
        return figures

    def compare(self, what: str, lane: Lane, turret: Lane, bare: Lane | None) -> None:
        """Notes the largest difference of a contender's hidden states from Turret's, and of Turret's from the bare backbone's."""
        theirs, ours = lane.outputs(self.folder), turret.outputs(self.folder)
        acts = None if bare is None else float(np.abs(ours - bare.outputs(self.folder)).max())
        self.parity.append({"contender": what, "difference": float(np.abs(theirs - ours).max()), "from bare": acts})


def competitors(bench: Bench) -> None:
    """32 rows of 32 tasks: Pfeiffer adapters against `adapters`, LoRA against PEFT."""
    effort, turret = bench.effort, bench.turret
    tokens = bench.give("32", ROWS, "log-normal", "distinct", ROWS, effort.draws, turret, bench.adapters, bench.peft)
    for kind, worker, contenders in (
        ("pfeiffer", bench.adapters, ("bare", "bare, chunked", "per task group", "BatchSplit", "BatchSplit, chunked")),
        ("lora", bench.peft, ("bare", "bare, chunked", "adapter_names", "adapter_names, chunked")),
    ):
        ours = {"Turret, bare": Lane(turret, "bare", "32"), f"Turret, 32 {kind}": Lane(turret, kind, "32")}
        theirs = {f"{worker.name}, {name}": Lane(worker, name, "32") for name in contenders}
        bench.measure(f"32 rows of 32 tasks, {kind}", effort.slow_rounds, tokens, ROWS, effort.draws, ours | theirs)
        bare = ours["Turret, bare"]
        for name, lane in theirs.items():
            same, reference = (bare, None) if lane.contender.startswith("bare") else (ours[f"Turret, 32 {kind}"], bare)
            bench.compare(name, lane, same, reference)


def fusions(bench: Bench) -> None:
    """All rows on one fusion of 3, and of 8."""
    effort = bench.effort
    tokens = bench.give("fusion", ROWS, "log-normal", "one", 1, effort.draws, bench.turret, bench.adapters)
    lanes = {"Turret, bare": Lane(bench.turret, "bare", "fusion")}
    for members in MEMBERS:
        for worker in (bench.turret, bench.adapters):
            lanes[f"{worker.name}, fusion of {members}"] = Lane(worker, f"fusion of {members}", "fusion")
    bench.measure("32 rows on one fusion", effort.slow_rounds, tokens, ROWS, effort.draws, lanes)
    for members in MEMBERS:
        theirs, ours = (lanes[f"{worker.name}, fusion of {members}"] for worker in (bench.adapters, bench.turret))
        bench.compare(f"adapters, fusion of {members}", theirs, ours, lanes["Turret, bare"])


def sizes(bench: Bench) -> None:
    """Batches of 1 to 64 rows: padded transformers, bare, one adapter, as many as rows; and the products of their linears alone."""
    turret, rounds = bench.turret, bench.effort.rounds
    for rows in SIZES:
        key = f"{rows} rows"
        tokens = bench.give(key, rows, "log-normal", "distinct", max(SIZES), 1, turret, bench.peft)
        bench.give(f"{key}, one", rows, "log-normal", "one", 1, 1, turret)
        lanes = {
            "transformers, padded": Lane(bench.peft, "bare", key),
            "Turret, bare": Lane(turret, "bare", key),
            "Turret, one adapter": Lane(turret, "pfeiffer", f"{key}, one"),
            "Turret, an adapter per row": Lane(turret, "pfeiffer", key),
        } | {kind: Lane(turret, kind, key) for kind in bench.about["Turret"]["products"]}
        bench.measure(f"a batch of {rows}", rounds, tokens, rows, 1, lanes)
    bench.sections[f"a batch of {max(SIZES)}"]["profile"] = turret.ask("profile", kind="bare", key=f"{max(SIZES)} rows")


def residents(bench: Bench) -> None:
    """1,000 adapters resident, many batches drawn over them, against the same rows on one of them."""
    effort, turret = bench.effort, bench.turret
    size = turret.ask("crowd", kind="resident", count=RESIDENTS, reduction_factor=REDUCTION_FACTOR)
    tokens, lanes = 0, dict[str, Lane]()
    for kind in ("one", "zipf", "uniform"):
        tokens = bench.give(f"residents, {kind}", ROWS, "log-normal", kind, RESIDENTS, effort.resident_draws, turret)
        lanes["one adapter" if kind == "one" else kind] = Lane(turret, "resident", f"residents, {kind}")
    title = f"{RESIDENTS:,} resident adapters"
    bench.measure(title, effort.rounds, tokens, ROWS, effort.resident_draws, lanes)
    bench.sections[title]["bytes"] = size


def matrix(bench: Bench) -> None:
    """Every distribution of lengths and of tasks, against bare."""
    effort, turret = bench.effort, bench.turret
    for lengths in LENGTHS:
        rows = ROWS if lengths == "log-normal" else min(ROWS, MATRIX_TOKENS // int(lengths))
        keys = {kind: f"{lengths} {kind}" for kind in TASKS}
        tokens = max(bench.give(key, rows, lengths, kind, ROWS, effort.draws, turret) for kind, key in keys.items())  # all the same
        lanes = {"bare": Lane(turret, "bare", keys["one"])} | {kind: Lane(turret, "pfeiffer", key) for kind, key in keys.items()}
        bench.measure(f"lengths {lengths}", effort.slow_rounds, tokens, rows, effort.draws, lanes)


PARTS: dict[str, Callable[[Bench], None]] = {
    "sizes": sizes,
    "competitors": competitors,
    "fusions": fusions,
    "residents": residents,
    "matrix": matrix,
}


@contextlib.contextmanager
def started(folder: Path, effort: Effort, seed: int) -> Iterator[Bench]:
    """The workers, with all adapters made and imported; and what each says about itself."""
    interpreters: dict[str, str | Path] = {"Turret": sys.executable, "adapters": venvs.make("adapters"), "PEFT": venvs.make("peft")}
    modules = {name: f"benchmarks.competitors.workers.{name.lower()}" for name in interpreters}
    with contextlib.ExitStack() as stack:
        turret, adapters, peft = (stack.enter_context(Worker(name, path, modules[name], folder)) for name, path in interpreters.items())
        about = {worker.name: worker.ask("load", backbone=default_backbone()) for worker in (turret, adapters, peft)}
        saved = {name: str(folder / name) for name in ("pfeiffer", "lora", *(f"fusion of {members}" for members in MEMBERS))}
        count = max(SIZES)
        shape = {"reduction_factor": REDUCTION_FACTOR, "deviation": DEVIATION, "seed": seed}
        adapters.ask("make", folder=saved["pfeiffer"], tasks=count, **shape)
        peft.ask("make", folder=saved["lora"], tasks=ROWS, rank=RANK, deviation=DEVIATION, seed=seed)
        turret.ask("take_in", kind="pfeiffer", folders=[f"{saved['pfeiffer']}/task{task}" for task in range(count)])
        turret.ask("take_in", kind="lora", folders=[f"{saved['lora']}/task{task}" for task in range(ROWS)])
        for members in MEMBERS:
            kind = f"fusion of {members}"
            names = adapters.ask("fuse", folder=saved[kind], members=members, deviation=DEVIATION, seed=seed)
            turret.ask("take_in_fusion", kind=kind, folder=saved[kind], names=names, members="pfeiffer")
        yield Bench(folder, effort, seed, turret, adapters, peft, about)


def differing(parity: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the parity: contenders that differ, and adapters that do nothing."""
    wrong = [f"{one['contender']} differs from Turret by {one['difference']:.1e}" for one in parity if not one["difference"] < PARITY]
    acts = [one for one in parity if one["from bare"] is not None and not one["from bare"] > ACTS]
    return wrong + [f"the adapters of {one['contender']} change nothing ({one['from bare']:.1e})" for one in acts]


def shown(bench: Bench) -> Iterator[Table]:
    """The figures for people."""
    for title, section in bench.sections.items():
        table = Table("contender", "ms a batch", "CPU ms", "fastest ms", title=f"{title} ({section['tokens']:.0f} tokens)")
        for name, one in section["figures"].items():
            table.add_row(name, *(f"{one[column]:.1f}" for column in ("ms", "cpu ms", "fastest ms")))
        yield table


def main() -> None:
    """Runs the benchmark, prints the tables, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=list(PARTS), nargs="+", help="run only these parts, and write nothing")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort()
    if (load := os.getloadavg()[0]) > BUSY * (os.cpu_count() or 1):
        print(f"The machine is busy (a load of {load:.1f}): these figures will say more about that than about the contenders.", flush=True)
    with TemporaryDirectory(prefix="turret-bench-") as folder, started(Path(folder), effort, options.seed) as bench:
        for part in options.only or PARTS:
            PARTS[part](bench)
    console = Console(width=120)
    for table in shown(bench):
        console.print(table)
    wrong = differing(bench.parity)
    for one in bench.parity:
        console.print(f"parity: {one['contender']}: largest difference from Turret {one['difference']:.1e}")
    if not options.only:
        command = "python -m benchmarks.engines" + " --quick" * options.quick
        path = engine_report.write(command, bench.sections, bench.parity, bench.about)
        console.print(f"written to {path.relative_to(venvs.ROOT)}")
    if wrong:
        sys.exit("NOT THE SAME OUTPUTS: " + "; ".join(wrong))


if __name__ == "__main__":
    main()

"""make bench, second part: what each method costs beside the bare backbone, side by side in one run.

Fusion of 2, 3, 8 and 14 members (folded), all rows on one fusion and each row on its own; Compacter against Pfeiffer with 1 and 64
different adapters; one text fanned out to 2, 4 and 8 tasks whose adapters act in all layers, in the upper half (`leave_out`), or
nowhere (heads only), against one task. Ratios are the reference's time over the contender's: 1 is as fast, above is faster.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from adapter_store.manifest import Head
from adapter_store.methods import Bottleneck, Fusion
from benchmarks.measuring import in_turn, machine
from benchmarks.workload import lengths, random_package, sequences
from server.core import Batch, Fuse, Readout, Route, Sequence, Setup, Use, pack
from server.engine.backbone import load_backbone
from server.engine.engine import Engine
from server.settings import default_backbone

RESULTS = Path(__file__).parent / "results" / "methods.json"
PFEIFFER = Bottleneck()
COMPACTER = Bottleneck(phm_layer=True, reduction_factor=32, non_linearity="gelu")
HEAD = Head(type="classification", layers=2, activation="tanh", labels=("a", "b", "c"))
MEMBERS = (2, 3, 8, 14)
TASKS = (2, 4, 8)

Contenders = dict[str, Callable[[], object]]
Figures = dict[str, float]


def batch(rng_seed: int, tokens: list[int], setups: list[Setup | None]) -> Batch:
    """The same random tokens for every contender of a comparison."""
    return pack(sequences(np.random.default_rng(rng_seed), tokens, setups))[0]


def fusions(engine: Engine, rows: int, seed: int, repeats: int) -> Figures:
    """Bare, one adapter, and fusions of each size, at `rows` mixed rows."""
    tokens = lengths(np.random.default_rng(seed), rows)
    spec = engine.backbone.spec
    for member in range(max(MEMBERS)):
        engine.load(f"member-{member}", random_package(spec, member, bottleneck=PFEIFFER))
    for number in range(rows):
        composition = f"fuse[self](a@sha256:{0:064x}, b@sha256:{1:064x})"
        engine.load(f"fusion-{number}", random_package(spec, 100 + number, composition=composition, fusion=Fusion()))
    one = [Use("member-0")] * rows
    batches = {"bare": batch(seed, tokens, [None] * rows), "one pfeiffer": batch(seed, tokens, list(one))}
    for count in MEMBERS:
        members = tuple(Use(f"member-{member}") for member in range(count))
        batches[f"fusion of {count}"] = batch(seed, tokens, [Fuse("fusion-0", members)] * rows)
    for count in (3, 8):
        members = tuple(Use(f"member-{member}") for member in range(count))
        batches[f"fusion of {count}, one a row"] = batch(seed, tokens, [Fuse(f"fusion-{row}", members) for row in range(rows)])
    return timed(engine, batches, repeats)


def compacters(engine: Engine, rows: int, seed: int, repeats: int) -> Figures:
    """Bare, Pfeiffer and Compacter++, one adapter for all rows and a different one for each."""
    tokens = lengths(np.random.default_rng(seed), rows)
    for number in range(rows):
        engine.load(f"pfeiffer-{number}", random_package(engine.backbone.spec, number, bottleneck=PFEIFFER))
        engine.load(f"compacter-{number}", random_package(engine.backbone.spec, number, bottleneck=COMPACTER))
    batches = {"bare": batch(seed, tokens, [None] * rows)}
    for kind in ("pfeiffer", "compacter"):
        batches[f"1 {kind}"] = batch(seed, tokens, [Use(f"{kind}-0")] * rows)
        batches[f"{rows} {kind}"] = batch(seed, tokens, [Use(f"{kind}-{row}") for row in range(rows)])
    banks = {len(bank.shape.sites[0][1]): 4 * bank.shape.numel for bank in engine._banks.values()}
    figures = timed(engine, batches, repeats)
    return figures | {"pfeiffer bytes": float(banks[4]), "compacter bytes": float(banks[8])}


def fan_outs(engine: Engine, texts: int, seed: int, repeats: int) -> Figures:
    """`texts` texts on one task, and each fanned out to several tasks of three sorts."""
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(1000, 30000, n) for n in lengths(rng, texts)]
    spec = engine.backbone.spec
    lower = tuple(range(spec.num_layers // 2))
    for task in range(max(TASKS)):
        engine.load(f"all-{task}", random_package(spec, task, HEAD, bottleneck=PFEIFFER))
        engine.load(f"upper-{task}", random_package(spec, task, HEAD, bottleneck=Bottleneck(leave_out=lower)))
        engine.load(f"head-{task}", random_package(spec, task, HEAD))

    def rows(kind: str, count: int) -> Batch:
        routes = [
            Route(f"{kind}-{task}", None, None if kind == "head" else Use(f"{kind}-{task}"), HEAD, f"{kind}-{task}")
            for task in range(count)
        ]
        return pack([Sequence(route, ids, np.zeros_like(ids), Readout()) for ids in inputs for route in routes])[0]

    batches = {f"{kind}, {count} tasks": rows(kind, count) for kind in ("all", "upper", "head") for count in (1, *TASKS)}
    return timed(engine, batches, repeats)


def timed(engine: Engine, batches: dict[str, Batch], repeats: int) -> Figures:
    """Median milliseconds of each batch, in turn."""
    contenders: Contenders = {name: (lambda one=one: engine.run(one)) for name, one in batches.items()}
    return {name: seconds * 1000 for name, seconds in in_turn(contenders, repeats).items()}


def table(title: str, figures: Figures, reference: Callable[[str], tuple[str, float]]) -> Table:
    """Each contender against what it is compared with."""
    shown = Table("contender", "ms", "against", "ratio", title=title)
    for name, value in figures.items():
        if name.endswith(" bytes"):
            shown.add_row(name, f"{value:,.0f}", "", "")
            continue
        other, factor = reference(name)
        shown.add_row(name, f"{value:.1f}", other, f"{factor * figures[other] / value:.2f}")
    return shown


def per_text(name: str) -> tuple[str, float]:
    """A fan-out against one task of its sort, per text: 1 is N tasks for the price of one."""
    return f"{name.split(',')[0]}, 1 tasks", 1.0


def main() -> None:
    """Runs the benchmark, prints the tables, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    logging.disable_progress_bar()
    engine = Engine(load_backbone(default_backbone()))
    results = {
        "fusion, 32 rows": fusions(engine, 32, options.seed, options.repeats),
        "compacter, 64 rows": compacters(engine, 64, options.seed, options.repeats),
        "fan-out, 16 texts": fan_outs(engine, 16, options.seed, options.repeats),
    }
    console = Console(width=120)
    for title, figures in results.items():
        console.print(table(title, figures, per_text if title.startswith("fan-out") else lambda name: ("bare", 1.0)))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

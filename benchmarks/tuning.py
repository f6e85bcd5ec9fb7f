"""Which settings of the other services are their best on this machine: `python -m benchmarks.tuning [name ...]`.

Each candidate is started, loaded at concurrency 32 with the mixed lengths, and ended. What was tried is kept in
results/tuning.json; the best by throughput belong into `contenders.py`, whose settings are those of a few trials until then.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import contenders, load, traffic
from benchmarks.contenders import Contender, Settings
from benchmarks.load import Plan
from benchmarks.measuring import machine
from benchmarks.record import RESULTS
from server.engine.backbone import load_backbone
from server.settings import default_backbone

FILE = RESULTS / "tuning.json"
ROWS, CONCURRENCY = 128, 32

CANDIDATES: dict[str, list[Settings]] = {
    "infinity": [
        contenders.INFINITY,
        contenders.INFINITY | {"batch_size": 8},
        contenders.INFINITY | {"batch_size": 64},
        contenders.INFINITY | {"compile": True},
    ],
    "litserve": [
        contenders.LITSERVE,
        contenders.LITSERVE | {"part": 8},
        contenders.LITSERVE | {"part": 32},
        contenders.LITSERVE | {"wait": 0.01},
        contenders.LITSERVE | {"threads": 1, "workers": 2, "batch": 16},
        contenders.LITSERVE | {"fast_queue": True},
        contenders.LITSERVE | {"threads": 1, "workers": 2, "batch": 1},
    ],
    "full models, one process": [
        contenders.FULL_MODELS,
        {"threads": 2, "workers": 1, "batch": 0},
        {"threads": 2, "workers": 1, "batch": 32},
        {"threads": 1, "workers": 2, "batch": 32},
    ],
    "full models, a process each": [contenders.FULL_MODELS_APART, {"threads": 2, "workers": 1, "batch": 0}],
}


def candidates(folder: Path, names: list[str]) -> Iterator[tuple[str, Settings, Callable[[], Contender], list[traffic.Question]]]:
    """Each service and setting, how it is started, and what it is asked."""
    backbone = Path(default_backbone())
    models = traffic.write_full_models(folder / "models", backbone, load_backbone(str(backbone)).spec)
    bare = traffic.bare_vectors(traffic.questions(5, ROWS, "log-normal", None), backbone)
    logits = traffic.task_logits(traffic.questions(5, ROWS, "log-normal", traffic.TASKS), models)
    longer = traffic.longer_backbone(folder / "backbone", backbone)
    for name in names:
        for number, settings in enumerate(CANDIDATES[name]):
            place = folder / f"{name}-{number}"
            match name:
                case "infinity":
                    yield name, settings, partial(contenders.infinity, place, longer, settings), bare
                case "litserve":
                    yield name, settings, partial(contenders.litserve, place, backbone, settings), bare
                case _:
                    apart = name.endswith("each")
                    yield name, settings, partial(contenders.full_models, place, models, apart, settings), logits


def tried(start: Callable[[], Contender], asked: list[traffic.Question], seconds: float) -> dict[str, Any]:
    """What a candidate does; `error` where it does not start."""
    try:
        service = start()
    except contenders.NotStarted as error:
        return {"error": str(error).strip().splitlines()[-1]}
    try:
        plan = Plan(service.requests(asked), service.path, concurrency=CONCURRENCY, seconds=seconds, warm_up=3.0, pids=service.pids)
        result = load.apart(plan)
    finally:
        service.stop()
    return {
        "per_second": result.per_second,
        "p50": result.latency.get("p50", 0.0),
        "server_cpu_per_request": result.server_cpu_per_request,
        "errors": result.errors,
    }


def main() -> None:
    """Tries all candidates of the services that are named, or of all; keeps what was found of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CANDIDATES)}")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    known = json.loads(FILE.read_text())["tried"] if FILE.is_file() else {}
    found: dict[str, list[dict[str, Any]]] = {}
    shown = Table("service", "settings", "requests/s", "p50 ms", "CPU ms/request", "errors")
    with TemporaryDirectory(prefix="turret-bench-") as folder:
        for name, settings, start, asked in candidates(Path(folder), options.names or list(CANDIDATES)):
            one = {"settings": dict(settings), **tried(start, asked, options.seconds)}
            found.setdefault(name, []).append(one)
            figures = [
                f"{one.get(key, 0) * factor:.1f}" for key, factor in (("per_second", 1), ("p50", 1), ("server_cpu_per_request", 1000))
            ]
            shown.add_row(
                name, ", ".join(f"{key} {value}" for key, value in settings.items()), *figures, str(one.get("error") or one["errors"])
            )
    Console(width=170).print(shown)
    FILE.write_text(json.dumps({"machine": machine(), "tried": known | found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

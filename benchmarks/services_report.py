"""What the services' figures come to: goals, tables and plots, as `record` wants them. Measures nothing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.competitors import venvs

MIXED, BARE, ENGINE, ENGINE_SMALL, FORWARD = (
    "Turret, 64 adapters",
    "Turret, bare",
    "engine fed directly",
    "engine, the server's batches",
    "one transformers forward",
)
TURRET_TASKS = "Turret, 8 tasks"
LOAD = "32"
PACKAGES = {"infinity": ("infinity", "infinity-emb"), "litserve": ("litserve", "litserve")}
FULL_MODELS = ("transformers", "transformers")

Figures = Mapping[str, Any]


def goals(results: Figures) -> Iterator[record.Row]:
    """The goals that are decided over HTTP."""
    if "tasks" in results:
        yield from _full_models(results["tasks"])
    if "embeddings" in results:
        figures = results["embeddings"]
        closed, single = figures["closed"]["log-normal"][LOAD], figures["single"]
        size = figures["server's rows a batch"]
        yield record.goal(
            "http", "HTTP closed loop at concurrency 32, against the engine fed directly", 0.90,
            closed[MIXED]["per_second"] / closed[ENGINE]["per_second"],
            detail=f"the engine gets packed batches of 32 rows, as many as can be under way; with batches of {size} rows, the mean of what "
            f"the server forms, the ratio is {closed[MIXED]['per_second'] / closed[ENGINE_SMALL]['per_second']:.2f}. The load generator "
            f"shares the server's cores and takes {closed[MIXED]['client_cpu_per_request'] * 1e6:.0f} us a request",
        )  # fmt: skip
        for name in PACKAGES:
            yield record.goal(
                f"cpu-{name}", f"CPU-seconds per request, against {'LitServe' if name == 'litserve' else name} on the bare backbone", 0.4,
                closed[MIXED]["server_cpu_per_request"] / closed[name]["server_cpu_per_request"], higher_is_better=False,
                detail="at concurrency 32, mixed lengths, Turret with 64 different adapters",
            )  # fmt: skip
        p50 = {name: single[name]["latency"]["p50"] for name in (MIXED, BARE)}
        forward = single[FORWARD]["p50"]
        yield record.goal(
            "p50", "p50 at concurrency 1, 16 tokens, HTTP, against one bare transformers forward", 1.3, p50[MIXED] / forward,
            higher_is_better=False,
            detail=f"{p50[MIXED]:.2f} ms with an adapter and {p50[BARE]:.2f} bare, tokenization and HTTP included, against {forward:.2f} "
            "without either",
        )  # fmt: skip


def _full_models(figures: Figures) -> Iterator[record.Row]:
    """Against the least memory and the highest throughput of the variants."""
    closed, memory = figures["closed"], figures["memory"]
    others = [name for name in memory if name != TURRET_TASKS]
    ratios = {name: memory[TURRET_TASKS] / memory[name] for name in others}
    weights = figures["weights"]["Turret"] / figures["weights"]["full models"]
    yield record.goal(
        "full-models-memory", "against one full model per task, 8 tasks: memory", 1 / 8, max(ratios.values()), higher_is_better=False,
        detail="proportional set size of all processes, against the smallest; "
        + ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
        + f". Weights alone: {weights:.3f}",
    )  # fmt: skip
    times = {name: closed[TURRET_TASKS]["per_second"] / closed[name]["per_second"] for name in others}
    yield record.goal(
        "full-models-throughput", "against one full model per task, 8 tasks: throughput", 3, min(times.values()),
        detail="concurrency 32, against the fastest; " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in times.items()),
    )  # fmt: skip


def tables(results: Figures) -> Iterator[record.Row]:
    """Every load, what it cost, and how equal the answers were."""
    if "tasks" in results:
        figures = results["tasks"]
        note = "Memory is the proportional set size of all processes in MiB, each service by itself, after 64 requests."
        memory = {name: f"{nbytes / 2**20:.0f}" for name, nbytes in figures["memory"].items()}
        title = "Eight tasks, concurrency 32, log-normal lengths"
        yield record.table(
            title, [*_COLUMNS, "memory"], [[*_cells(name, one), memory[name]] for name, one in figures["closed"].items()], note
        )
    if "embeddings" in results:
        figures = results["embeddings"]
        for lengths, some in figures["closed"].items():
            rows = [[concurrency, *_cells(name, one)] for concurrency, of in sorted(some.items(), key=_number) for name, one in of.items()]
            title = f"Embeddings, closed loop, {'log-normal lengths' if lengths == 'log-normal' else f'{lengths} tokens'}"
            yield record.table(title, ["concurrency", *_COLUMNS], rows)
        yield record.table("One client, 16 tokens", _COLUMNS, [_cells(name, one) for name, one in figures["single"].items()])
        rows = [
            [fraction, f"{one['rate']:.0f}", *_cells(name, one), str(round(one["unfinished"])), str(round(one["backlog"]))]
            for fraction, of in figures["open"].items()
            for name, one in of.items()
        ]
        columns = ["share of its capacity", "due a second", *_COLUMNS, "unfinished", "backlog"]
        note = "Latency counts from when a request was due. Capacity is the throughput of a closed loop of 32."
        yield record.table("Embeddings, open loop, log-normal lengths", columns, rows, note)
    rows = [
        [name, f"{one['greatest difference']:.1e}", f"{one['least cosine']:.7f}"]
        for part in results.values()
        for name, one in part["parity"].items()
    ]
    yield record.table(
        "Services' answers against stock transformers and the engine's slow twin", ["", "greatest difference", "least cosine"], rows
    )


_COLUMNS = ["", "requests/s", "p50 ms", "p90 ms", "p99 ms", "server CPU ms/request", "client CPU us/request", "spread"]


def _number(item: tuple[str, Any]) -> float:
    return float(item[0])


def _cells(name: str, one: Figures) -> list[str]:
    """A load's figures; those of a process that is fed without HTTP have no percentiles."""
    spread = f"{one['spread']:.2f}" if one["runs"] > 1 else ""
    if "latency" not in one:
        return [name, f"{one['per_second']:.1f}", f"{one['p50']:.2f}", "", "", f"{one['cpu'] * 1000:.2f}", "", spread]
    latency = [f"{one['latency'][share]:.1f}" if share in one["latency"] else "" for share in ("p50", "p90", "p99")]
    cpu = [f"{one['server_cpu_per_request'] * 1000:.2f}", f"{one['client_cpu_per_request'] * 1e6:.0f}"]
    return [name, f"{one['per_second']:.1f}", *latency, *cpu, spread]


def plots(results: Figures) -> Iterator[record.Row]:
    """Throughput against concurrency, latency against rate, CPU beside one another."""
    if "embeddings" not in results:
        return
    figures = results["embeddings"]
    served = figures["closed"]["log-normal"]
    concurrencies = sorted(served, key=int)
    names = [name for name in served[LOAD] if name not in (ENGINE, ENGINE_SMALL)]
    labels = [int(one) for one in concurrencies]
    rates = {name: [served[one][name]["per_second"] for one in concurrencies] for name in names}
    yield record.plot(
        "services-throughput.png",
        "Embeddings: throughput",
        "lines",
        labels,
        rates,
        "concurrency, closed loop",
        "requests a second",
        log=True,
    )
    cpu = {"": [served[LOAD][name]["server_cpu_per_request"] * 1000 for name in names]}
    yield record.plot("services-cpu.png", "Embeddings: CPU of the server", "bars", names, cpu, "", "CPU ms a request, concurrency 32")
    fractions = list(figures["open"])
    for share in ("p50", "p99"):
        late = {name: [figures["open"][one][name]["latency"][share] for one in fractions] for name in figures["open"][fractions[0]]}
        title = f"Embeddings: {share} at fixed rates, from when a request was due"
        x, y = "share of the service's own capacity", f"{share} ms"
        yield record.plot(f"services-latency-{share}.png", title, "lines", [float(one) for one in fractions], late, x, y)


def settings(results: Figures) -> dict[str, str]:
    """Each service's version and settings, in a sentence."""
    said = {}
    for part in results.values():
        for name, some in part["settings"].items():
            venv, package = PACKAGES.get(name, FULL_MODELS)
            if name.startswith("Turret"):
                version = "this one"
            else:
                pinned = venvs.versions(venv)
                version = (
                    f"{package} {pinned[package] if package in pinned else pinned[package.replace('-', '_')]}, torch {pinned['torch']}"
                )
            said[name] = f"{version}; " + (", ".join(f"{key} {value}" for key, value in some.items()) or "as installed")
    return said


def write(command: str, results: Figures) -> Path:
    """Writes results/services.json."""
    return record.write("services", command, settings(results), list(goals(results)), list(tables(results)), list(plots(results)), results)


def show(console: Console, results: Figures) -> None:
    """The figures for people."""
    for one in tables(results):
        shown = Table(*one["columns"], title=one["title"])
        for row in one["rows"]:
            shown.add_row(*row)
        console.print(shown)
    shown = Table("goal", "", "reached", "detail", title="Goals")
    for one in goals(results):
        shown.add_row(one["what"], f"{one['goal']:.3g}", f"{one['reached']:.3g}", one["detail"])
    console.print(shown)

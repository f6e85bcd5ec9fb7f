"""Writes docs/benchmarks.md, and its plots, from the results of the halves: `python -m benchmarks.report`.

Whatever is not there yet is left out, and the goals that belong to it are shown as not measured. What only a person can say, why a
row falls short, stands in `benchmarks/notes/KEY.md` and is put under the row's name.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NOTES = ROOT / "benchmarks" / "notes"
PAGE = ROOT / "docs" / "benchmarks.md"
HALVES = {"engines": "Engines", "services": "Services over HTTP", "gpu": "On a GPU"}

# The goals in their order, by key: what is shown of one that was not measured.
ORDER = {
    "linears": "linears at 64 mixed rows, against the measured matrix-product rate",
    "adapters-64": "64 different Pfeiffer adapters in one batch, against bare",
    "residents-1000": "1,000 resident adapters, Zipf or uniform, against one adapter",
    "adapters-group": "against `adapters` per task group, 32 rows of 32 tasks: throughput",
    "adapters-batchsplit": "against `adapters` BatchSplit, same",
    "peft": "against PEFT `adapter_names`, LoRA rank 8 on query and value, same",
    "full-models-memory": "against one full model per task, 8 tasks: memory",
    "full-models-throughput": "against one full model per task, 8 tasks: throughput",
    "http": "HTTP closed loop at concurrency 32, against the engine fed directly",
    "cpu-infinity": "CPU-seconds per request, against infinity on the bare backbone",
    "cpu-litserve": "CPU-seconds per request, against LitServe on the bare backbone",
    "p50": "p50 at concurrency 1, 16 tokens, HTTP, against one bare transformers forward",
    "fusion-8": "fusion of 8, against `adapters`' own fusion of 8, same batch",
}

Half = Mapping[str, Any]


def read(folder: Path) -> dict[str, Half]:
    """The halves that were measured, by name, in the order of `HALVES`."""
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in HALVES if (folder / f"{name}.json").is_file()}


def is_met(goal: Half) -> bool:
    """Whether a goal was reached."""
    return bool(goal["reached"] >= goal["goal"] if goal["higher_is_better"] else goal["reached"] <= goal["goal"])


def page(halves: Mapping[str, Half], notes: Path) -> str:
    """The whole page, as Markdown."""
    goals = {goal["key"]: goal for half in halves.values() for goal in half["goals"]}
    parts = ["# Benchmarks", INTRODUCTION, "## Goals", *_goals(goals), *_short(goals, notes), "## How it was measured", *_how(halves)]
    for name, half in halves.items():
        parts += [f"## {HALVES[name]}", *_half(half)]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = (
    "Written by `python -m benchmarks.report` from `benchmarks/results/`; do not edit. `make bench` measures it all anew, quickly, "
    "`make bench-full` with more repeats. Every figure of a table is from one run, with the contenders in turn (A B C A B C ...), and "
    "is a median."
)


def _goals(goals: Mapping[str, Half]) -> Iterator[str]:
    rows = []
    for key in [*ORDER, *(key for key in goals if key not in ORDER)]:
        if key not in goals:
            rows.append([ORDER[key], "", "not measured", ""])
            continue
        one = goals[key]
        limit = f"{_number(one['goal'], one)}{'' if one['higher_is_better'] else ' or less'}"
        rows.append([one["what"], limit, _number(one["reached"], one), "met" if is_met(one) else "**not met**"])
    yield markdown(["", "goal", "reached", ""], rows)
    details = [f"- {goals[key]['what']}: {goals[key]['detail']}" for key in [*ORDER, *goals] if goals.get(key, {}).get("detail")]
    if details:
        yield "\n".join(dict.fromkeys(details))


def _short(goals: Mapping[str, Half], notes: Path) -> Iterator[str]:
    """The rows that fall short, each with what is said about it."""
    missed = [goal for goal in goals.values() if not is_met(goal)]
    if missed:
        yield "## Where it falls short"
    for goal in missed:
        note = notes / f"{goal['key']}.md"
        yield f"### {goal['what'][0].upper()}{goal['what'][1:]}"
        yield note.read_text().strip() if note.is_file() else f"Not explained yet (`benchmarks/notes/{goal['key']}.md`)."


def _how(halves: Mapping[str, Half]) -> Iterator[str]:
    for name, half in halves.items():
        machine = ", ".join(f"{key} {value}" for key, value in half["machine"].items())
        yield f"{HALVES[name]}: `{half['command']}`, on {machine}."
        if half["settings"]:
            yield markdown(["contender", "version and settings"], list(half["settings"].items()))


def _half(half: Half) -> Iterator[str]:
    for table in half["tables"]:
        yield f"### {table['title']}"
        yield markdown(table["columns"], table["rows"])
        if table.get("note"):
            yield table["note"]
    for plot in half["plots"]:
        yield f"![{plot['title']}](img/{plot['file']})"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float, goal: Half) -> str:
    return f"{value:.3g}{goal.get('unit', '')}"


def main() -> None:
    """Writes the page and draws its plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-plots", action="store_true", help="leave the plots as they are")
    options = parser.parse_args()
    halves = read(RESULTS)
    PAGE.write_text(page(halves, NOTES))
    if not options.no_plots:
        from benchmarks.plots import draw

        for half in halves.values():
            for plot in half["plots"]:
                draw(plot, PAGE.parent / "img")


if __name__ == "__main__":
    main()

"""What a half of the benchmark leaves for the report: one JSON file of goals, tables, plots and the raw figures.

`results/NAME.json` holds:

    machine   what it was measured on (measuring.machine())
    command   how to run it again
    settings  {contender: one sentence: version and best settings}
    goals     [{"key", "what", "goal", "reached", "higher_is_better", "unit", "detail"}]; the keys are in `report.ORDER`
    tables    [{"title", "columns": [...], "rows": [[...], ...], "note"}], shown as they are
    plots     [{"file", "title", "kind": "bars" | "lines", "labels": [...], "series": {name: [...]}, "x", "y", "log"}]
    results   the raw figures, in whatever form the half likes
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]


def goal(key: str, what: str, goal: float, reached: float, higher_is_better: bool = True, unit: str = "", detail: str = "") -> Row:
    """One row of the goals' table. `unit` follows the numbers ("x"); `detail` is a sentence about how it came about."""
    numbers = {"goal": goal, "reached": reached, "higher_is_better": higher_is_better}
    return {"key": key, "what": what, **numbers, "unit": unit, "detail": detail}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> Row:
    """A table of the report, its cells formatted already."""
    wrong = [row for row in rows if len(row) != len(columns)]
    if wrong:
        raise ValueError(f"the table '{title}' has {len(columns)} columns, and a row of {len(wrong[0])} cells")
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows], "note": note}


def plot(
    file: str,
    title: str,
    kind: str,
    labels: Sequence[Any],
    series: Mapping[str, Sequence[float]],
    x: str = "",
    y: str = "",
    log: bool = False,
) -> Row:
    """A plot of the report: a value of every series at each label. `log`: a logarithmic y axis (of lines, x too)."""
    if kind not in ("bars", "lines"):
        raise ValueError(f"'{kind}' is no kind of plot: bars, lines")
    values = {name: list(numbers) for name, numbers in series.items()}
    return {"file": file, "title": title, "kind": kind, "labels": list(labels), "series": values, "x": x, "y": y, "log": log}


def write(
    name: str,
    command: str,
    settings: Mapping[str, str],
    goals: Sequence[Row],
    tables: Sequence[Row],
    plots: Sequence[Row],
    results: Mapping[str, Any],
) -> Path:
    """Writes results/NAME.json and returns its path."""
    what = {"machine": machine(), "command": command, "settings": dict(settings), "goals": list(goals)}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(what | {"tables": list(tables), "plots": list(plots), "results": dict(results)}, indent=1) + "\n")
    return path

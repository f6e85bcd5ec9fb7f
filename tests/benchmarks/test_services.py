"""What the services' figures come to, without any service."""

from typing import Any

import numpy as np
import pytest

from benchmarks import services_report as report
from benchmarks.competitors import venvs
from benchmarks.feeding import batches
from benchmarks.services import faults, middle
from benchmarks.traffic import questions
from server.core import Route, Sequence


def loaded(per_second: float, cpu: float = 0.01, p50: float = 5.0, **more: Any) -> dict[str, Any]:
    latency = {"p50": p50, "p90": 2 * p50, "p99": 3 * p50}
    cpus = {"server_cpu_per_request": cpu, "client_cpu_per_request": 5e-5}
    return {"per_second": per_second, "latency": latency, **cpus, "errors": {}, "runs": 3, "spread": 0.1} | more


def fed(per_second: float, p50: float = 4.0) -> dict[str, Any]:
    return {"per_second": per_second, "cpu": 0.005, "p50": p50, "runs": 3, "spread": 0.1}


PARITY = {"greatest difference": 1e-7, "least cosine": 1.0}
OPENED = {"rate": 50.0, "unfinished": 0, "backlog": 0}
SERVED = {report.MIXED: loaded(90, cpu=0.012), report.BARE: loaded(95), "infinity": loaded(30, cpu=0.04), "litserve": loaded(25, cpu=0.048)}
EMBEDDINGS = {
    "parity": {"infinity": PARITY},
    "settings": {"Turret": {}, "infinity": {"batch_size": 32}, "litserve": {"threads": 2}},
    "server's rows a batch": 16,
    "closed": {
        "log-normal": {"1": SERVED, "32": {**SERVED, report.ENGINE: fed(120), report.ENGINE_SMALL: fed(100)}, "8": SERVED},
    },
    "single": {**SERVED, report.FORWARD: fed(250, p50=4.0)},
    "open": {"0.5": {report.MIXED: loaded(45, **OPENED)}, "0.9": {report.MIXED: loaded(80, **OPENED)}},
}
TASKS = {
    "parity": {"full models, one process": PARITY},
    "settings": {report.TURRET_TASKS: {}, "full models, one process": {"threads": 1}},
    "closed": {report.TURRET_TASKS: loaded(90), "full models, one process": loaded(30), "full models, a process each": loaded(20)},
    "memory": {report.TURRET_TASKS: 4 << 28, "full models, one process": 10 << 28, "full models, a process each": 32 << 28},
    "weights": {"Turret": 100, "full models": 800},
}
RESULTS = {"tasks": TASKS, "embeddings": EMBEDDINGS}


def test_goals_are_the_ratios_that_they_name() -> None:
    reached = {goal["key"]: goal["reached"] for goal in report.goals(RESULTS)}
    assert reached == pytest.approx(
        {"full-models-memory": 0.4, "full-models-throughput": 3, "http": 0.75, "cpu-infinity": 0.3, "cpu-litserve": 0.25, "p50": 1.25}
    )


def test_tables_and_plots_hold_every_load() -> None:
    tables = {table["title"]: table for table in report.tables(RESULTS)}
    closed = tables["Embeddings, closed loop, log-normal lengths"]["rows"]
    assert [row[0] for row in closed] == ["1"] * 4 + ["8"] * 4 + ["32"] * 6
    assert len(tables["Embeddings, open loop, log-normal lengths"]["rows"]) == 2
    plots = {plot["file"]: plot for plot in report.plots(RESULTS)}
    assert plots["services-throughput.png"]["labels"] == [1, 8, 32]
    assert plots["services-latency-p99.png"]["series"] == {report.MIXED: [15.0, 15.0]}


def test_settings_name_versions() -> None:
    said = report.settings(RESULTS)
    assert said["infinity"] == "infinity-emb 0.0.78, torch 2.13.0; batch_size 32"
    assert said["Turret"] == "this one; as installed"


@pytest.mark.parametrize("name", ["infinity", "litserve", "transformers"])
def test_the_services_versions_are_complete(name: str) -> None:
    pinned = venvs.versions(name)
    assert pinned["torch"] == "2.13.0"
    assert len(pinned) > 30


def test_medians_and_faults() -> None:
    runs = [loaded(10, errors={"no answer": 1}), loaded(30), loaded(20, errors={"no answer": 2, "status 500": 1})]
    merged = middle(runs)
    assert merged["per_second"] == 20
    assert merged["spread"] == 1
    assert merged["errors"] == {"no answer": 3, "status 500": 1}
    assert list(faults({"closed": {"infinity": merged}})) == [
        "closed, infinity: no answer, 3 times",
        "closed, infinity: status 500, 1 times",
    ]
    assert list(faults(RESULTS)) == []


def test_batches_have_the_rows_or_the_tokens() -> None:
    rows = [Sequence(Route("r"), np.full(n, 5), np.zeros(n, dtype=np.int64)) for n in (3, 4, 5, 6, 7)]
    assert all(len(batch.rows) == 2 for batch in batches(rows, 2, 100))
    assert {row.tokens for batch in batches(rows, 2, 100) for row in batch.rows} == {3, 4, 5, 6, 7}
    assert all(batch.tokens <= 12 for batch in batches(rows, 5, 12))


def test_a_word_is_a_token_and_tasks_are_spread() -> None:
    asked = questions(1, 50, "16", 8)
    assert {len(one.text.split()) + 2 for one in asked} == {one.tokens for one in asked} == {16}
    assert {one.task for one in asked} == set(range(8))
    assert {one.task for one in questions(1, 5, "log-normal", None)} == {None}

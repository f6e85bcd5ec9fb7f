"""The report: goals in the issue's order, what falls short with its note, tables and plots as the halves left them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record, report


def half(*goals: record.Row, **more: Any) -> dict[str, Any]:
    return {
        "machine": {"cpu": "a chip", "cores": 2},
        "command": "python -m benchmarks.engines",
        "settings": {"Turret": "float32 | packed"},
        "goals": list(goals),
        "tables": [],
        "plots": [],
        "results": {},
    } | more


MET = record.goal("adapters-64", "64 against bare", 0.95, 0.962)
MISSED = record.goal("linears", "linears against the matrix rate", 0.85, 0.7123, detail="by the whole forward")
LESS = record.goal("p50", "p50 at 16 tokens", 1.3, 1.42, higher_is_better=False, unit=" times")


def test_goals_stand_in_the_order_of_the_issue_whichever_half_has_them(tmp_path: Path) -> None:
    page = report.page({"engines": half(MET, MISSED), "services": half(LESS)}, tmp_path)
    assert "| linears against the matrix rate | 0.85 | 0.712 | **not met** |" in page
    assert "| 64 against bare | 0.95 | 0.962 | met |" in page
    assert "| p50 at 16 tokens | 1.3 times or less | 1.42 times | **not met** |" in page
    places = [page.index(f"| {what} |") for what in ("linears against the matrix rate", "64 against bare", "p50 at 16 tokens")]
    assert places == sorted(places)
    assert "- linears against the matrix rate: by the whole forward" in page


def test_a_goal_is_met_at_its_border_and_by_its_direction() -> None:
    assert report.is_met(record.goal("k", "w", 2.0, 2.0))
    assert report.is_met(record.goal("k", "w", 2.0, 2.0, higher_is_better=False))
    assert not report.is_met(record.goal("k", "w", 2.0, 1.9))
    assert not report.is_met(record.goal("k", "w", 2.0, 2.1, higher_is_better=False))


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    page = report.page({"engines": half(MET)}, tmp_path)
    assert f"| {report.ORDER['http']} |  | not measured |  |" in page
    assert "falls short" not in page
    assert report.read(tmp_path) == {}


def test_a_goal_that_is_missed_has_its_note(tmp_path: Path) -> None:
    (tmp_path / "linears.md").write_text("GELU takes a fifth.\n")
    page = report.page({"engines": half(MISSED, MET), "services": half(LESS)}, tmp_path)
    assert "### Linears against the matrix rate\n\nGELU takes a fifth.\n\n### P50 at 16 tokens\n\nNot explained yet" in page
    assert "### 64 against bare" not in page


def test_settings_tables_and_plots_are_shown(tmp_path: Path) -> None:
    table = record.table("Batches", ("rows", "ms"), [("1", "8.5")], note="Medians.")
    plot = record.plot("a.png", "Speed", "bars", ["a", "b"], {"rows/s": [1.0, 2.0]})
    page = report.page({"engines": half(tables=[table], plots=[plot])}, tmp_path)
    assert "Engines: `python -m benchmarks.engines`, on cpu a chip, cores 2." in page
    assert "| Turret | float32 \\| packed |" in page
    assert "### Batches\n\n| rows | ms |\n| --- | --- |\n| 1 | 8.5 |\n\nMedians." in page
    assert "![Speed](img/a.png)" in page


def test_halves_are_written_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.write("services", "make bench", {"Turret": "as it is"}, [LESS], [], [], {"raw": 1})
    (tmp_path / "other.json").write_text("{}")
    found = report.read(tmp_path)
    assert list(found) == ["services"]
    assert found["services"]["goals"] == [LESS]
    assert found["services"]["results"] == {"raw": 1}
    assert json.loads((tmp_path / "services.json").read_text())["machine"]["cores"] >= 1


def test_tables_and_plots_that_are_wrong_are_refused() -> None:
    with pytest.raises(ValueError, match="the table 'T' has 2 columns, and a row of 1 cells"):
        record.table("T", ("a", "b"), [("1",)])
    with pytest.raises(ValueError, match="'pie' is no kind of plot"):
        record.plot("p.png", "P", "pie", [], {})

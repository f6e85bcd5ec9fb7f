"""What the engines' figures come to, from figures that are easy to reckon with; and that outputs which differ are told."""

from typing import Any

import pytest

from benchmarks import engine_report
from benchmarks.engines import PARITY, differing
from benchmarks.report import ORDER, is_met, page


def section(rows: int = 32, tokens: float = 1000.0, **milliseconds: float) -> dict[str, Any]:
    figures = {name: {"ms": ms, "cpu ms": 2 * ms, "fastest ms": ms} for name, ms in milliseconds.items()}
    return {"rows": rows, "tokens": tokens, "rounds": 3, "batches": 1, "figures": figures}


def products(ms: float) -> dict[str, float]:
    return {"matrix products, torch.mm": 2 * ms, "matrix products, prepacked": ms}


@pytest.fixture
def sections() -> dict[str, dict[str, Any]]:
    profile = {"linears ms": 90.0, "whole ms": 100.0, "lanes": 2, "operators": [{"name": "aten::mm", "ms": 90.0, "calls": 36.0}]}
    sizes = {"transformers, padded": 600.0, "Turret, bare": 100.0, "Turret, one adapter": 101.0, "Turret, an adapter per row": 104.0}
    splits = {"adapters, bare": 400.0, "adapters, per task group": 900.0, "adapters, BatchSplit": 450.0}
    loras = {"PEFT, adapter_names": 480.0, "PEFT, adapter_names, chunked": 240.0}
    fusions = {f"{who}, fusion of {n}": ms for (who, n), ms in {("Turret", 3): 100.0, ("adapters", 3): 700.0}.items()}
    return {
        "a batch of 64": section(rows=64, tokens=2000.0, **sizes, **products(80.0)) | {"profile": profile},
        engine_report.PFEIFFERS: section(**{"Turret, 32 pfeiffer": 100.0}, **splits, **{"adapters, BatchSplit, chunked": 200.0}),
        engine_report.LORAS: section(**{"Turret, 32 lora": 120.0}, **loras),
        engine_report.FUSIONS: section(**fusions, **{"Turret, fusion of 8": 120.0, "adapters, fusion of 8": 900.0}),
        engine_report.RESIDENTS: section(**{"one adapter": 96.0, "zipf": 100.0, "uniform": 128.0}),
        "lengths 16": section(bare=95.0, uniform=100.0, one=95.0),
    }


def test_goals_are_ratios_of_the_right_two(sections: dict[str, dict[str, Any]]) -> None:
    goals = {goal["key"]: goal for goal in engine_report.goals(sections)}
    assert goals.keys() <= ORDER.keys()
    reached = {key: goal["reached"] for key, goal in goals.items()}
    assert reached == pytest.approx(
        {
            "linears": 0.8,
            "adapters-64": 100 / 104,
            "residents-1000": 0.75,
            "adapters-group": 9.0,
            "adapters-batchsplit": 4.5,
            "peft": 4.0,
            "fusion-8": 7.5,
        }
    )
    assert {key for key, goal in goals.items() if is_met(goal)} == {"adapters-64", "adapters-group", "adapters-batchsplit"}
    assert "it is 0.89 (90% of the forward)" in goals["linears"]["detail"]
    assert goals["adapters-batchsplit"]["detail"].startswith("2.0 times where")


def test_the_report_shows_every_table(sections: dict[str, dict[str, Any]], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {
        name: {"versions": {"torch": "2"}, "threads": 2, "attention": "sdpa", "dtype": "float32", "multiply-adds a token": 10**6}
        for name in ("Turret", "adapters", "PEFT")
    }
    parity = [{"contender": "adapters, BatchSplit", "difference": 3e-6, "from bare": 0.7}]
    monkeypatch.setattr(engine_report.record, "RESULTS", tmp_path)
    written = engine_report.write("make bench", sections, parity, about)
    shown = page({"engines": engine_report.record.json.loads(written.read_text())}, tmp_path)
    assert "| 64 | 2000 | 600.0 ms | 100.0 ms | 101.0 ms | 104.0 ms | 6.00 | 0.96 | 40 | 25 | 50 |" in shown
    assert "| adapters, per task group | 900.0 ms | 36 | 56.25 ms | 9.00 |" in shown
    assert "| 16 | 32 | 95.0 ms | 0.95 | 1.00 |" in shown
    assert "| adapters, BatchSplit | 3.0e-06 | 0.7 |" in shown
    assert "| `aten::mm` | 90.0 ms | 36 |" in shown


def test_outputs_that_differ_are_told_and_so_are_adapters_that_do_nothing() -> None:
    right = {"contender": "a", "difference": PARITY / 2, "from bare": 0.5}
    assert differing([right, {"contender": "bare", "difference": 0.0, "from bare": None}]) == []
    assert differing([right, right | {"contender": "b", "difference": 2e-4}]) == ["b differs from Turret by 2.0e-04"]
    assert differing([right | {"difference": float("nan")}]) == ["a differs from Turret by nan"]
    assert differing([right | {"from bare": 0.0}]) == ["the adapters of a change nothing (0.0e+00)"]

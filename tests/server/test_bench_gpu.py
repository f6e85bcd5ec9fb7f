"""make bench-gpu where there is no GPU: it says so, and its code runs whole on a small backbone."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().err == gpu.NO_GPU + "\n"
    assert not list(tmp_path.iterdir())


def test_quick_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["dtype"] == "bfloat16"
    assert told["machine"]["gpu"] is None
    figures = told["results"]["small"]
    assert figures["contenders"].keys() == {
        "bare", "1 pfeiffer", "8 pfeiffer", "1 lora", "8 lora", "half pfeiffer, half lora", "fusion of 8",
        "bare, graphs", "1 pfeiffer, graphs", "8 pfeiffer, graphs",
    }  # fmt: skip
    assert all(one[figure] > 0 for one in figures["contenders"].values() for figure in one)
    assert figures["contenders"]["bare"]["share of bare"] == 1.0
    assert figures["swaps"].keys() == {"on the device", "on the host", "in its file"}

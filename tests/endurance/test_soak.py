"""What a server holds after 1,000 cycles of publish, serve and delete is what it held after 100."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CYCLES = 1000


@pytest.fixture(scope="module")
def held() -> list[dict[str, float]]:
    """What was held after each hundred cycles, in a process that has done nothing else."""
    command = [sys.executable, "-m", "tests.endurance.soak", "--cycles", str(CYCLES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(
    "what",
    [
        "resident memory",
        "device bytes",
        "host bytes",
        "device packages",
        "host packages",
        "blobs",
        "store bytes without the log",
        "store files without the log",
        "scratch files",
        "open files",
    ],
)
def test_nothing_is_kept(held: list[dict[str, float]], what: str) -> None:
    first, last = held[0][what], held[-1][what]
    assert last <= first * 1.05, f"{what}: {[one[what] for one in held]}"


def test_what_comes_as_it_is_needed_has_an_end(held: list[dict[str, float]]) -> None:
    """Threads of pools and series of metrics come when they are first needed; they do not come with each cycle."""
    assert held[-1]["threads"] - held[0]["threads"] < 20, [one["threads"] for one in held]
    assert held[-1]["metric samples"] - held[0]["metric samples"] < 100, [one["metric samples"] for one in held]
    assert {one["snapshots"] for one in held} <= {1, 2}


def test_the_log_grows_by_its_commits_alone(held: list[dict[str, float]]) -> None:
    """By design the log keeps every commit: a file of some hundred bytes each, and as many in each hundred cycles."""
    assert held[-1]["log files"] <= held[0]["log files"] * CYCLES / 100 * 1.05
    assert held[-1]["log bytes"] / held[-1]["log files"] < 1500


def test_the_cycles_were_real(held: list[dict[str, float]]) -> None:
    assert len(held) == CYCLES // 100
    assert held[0]["device packages"] >= 3
    assert held[0]["blobs"] == 3
    assert held[0]["log files"] >= 250

"""Workers: requests and answers over JSON lines, errors with what was said, timings from within."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.competitors.worker import Worker, WorkerFailed

BATCHES = [{"ids": [[5, 7], [9]], "tasks": [0, 1]}, {"ids": [[1, 2, 3]], "tasks": [2]}]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker("fake", sys.executable, "tests.benchmarks.fake_worker", tmp_path) as running:
        yield running


def test_batches_are_run_and_their_outputs_written_row_by_row(worker: Worker, tmp_path: Path) -> None:
    assert worker.ask("take", key="k", batches=BATCHES) == 6
    for contender, factor in (("once", 1), ("twice", 2)):
        worker.ask("outputs", contender=contender, key="k", path=str(tmp_path / "out.npy"))
        assert np.load(tmp_path / "out.npy")[:, 0].tolist() == [factor * n for n in (5, 7, 9, 1, 2, 3)]
    spent = worker.ask("run", contender="once", key="k")
    assert set(spent) == {"wall", "cpu"}
    assert 0 < spent["wall"] < 5


def test_what_is_printed_does_not_come_between_the_answers(worker: Worker, tmp_path: Path) -> None:
    assert worker.ask("chat", text="hello") == "HELLO"
    assert worker.ask("chat", text="again") == "AGAIN"
    log = (tmp_path / "fake.log").read_text()
    assert "hello" in log
    assert "and past Python" in log


def test_a_request_that_fails_is_told_and_the_next_one_is_answered(worker: Worker) -> None:
    with pytest.raises(WorkerFailed, match=r"'fake' could not run: [\s\S]*KeyError: 'nobody'"):
        worker.ask("run", contender="nobody", key="k")
    assert worker.ask("chat", text="still here") == "STILL HERE"


def test_a_worker_that_ends_is_told_with_the_end_of_its_log(worker: Worker) -> None:
    with pytest.raises(WorkerFailed, match=r"'fake' ended with 3 when it was asked to end:\s+the last words"):
        worker.ask("end", code=3)
    with pytest.raises(WorkerFailed, match="ended with 3"):
        worker.ask("chat", text="anyone?")


def test_closing_ends_the_process(tmp_path: Path) -> None:
    worker = Worker("fake", sys.executable, "tests.benchmarks.fake_worker", tmp_path)
    worker.close()
    assert worker._process.returncode == 0

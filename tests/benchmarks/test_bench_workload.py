"""The workload: lengths and tasks by their distributions, the same for the same seed."""

import numpy as np
import pytest

from benchmarks.workload import LENGTHS, TASKS, ZIPF, mixed, tasks


@pytest.mark.parametrize("kind", TASKS)
def test_tasks_are_the_same_for_the_same_seed(kind: str) -> None:
    first, again, other = (tasks(np.random.default_rng(seed), 40, kind, 64) for seed in (1, 1, 2))
    assert first == again
    assert len(first) == 40
    assert all(0 <= task < 64 for task in first)
    assert (first == other) == (kind == "one")


@pytest.mark.parametrize("kind", LENGTHS)
def test_lengths_are_fixed_or_log_normal(kind: str) -> None:
    drawn = mixed(np.random.default_rng(3), 4000, kind)
    assert drawn == mixed(np.random.default_rng(3), 4000, kind)
    if kind == "log-normal":
        assert min(drawn) >= 4
        assert max(drawn) == 128
        assert 24 <= np.median(drawn) <= 26
        assert np.std(np.log(drawn)) == pytest.approx(0.8, abs=0.05)
    else:
        assert set(drawn) == {int(kind)}


def test_uniform_tasks_are_even() -> None:
    counts = np.bincount(tasks(np.random.default_rng(4), 20000, "uniform", 20), minlength=20)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_zipf_tasks_have_shares_that_fall_as_a_power_of_their_rank() -> None:
    counts = np.bincount(tasks(np.random.default_rng(5), 100000, "zipf", 1000), minlength=1000)
    shares = 1 / np.arange(1, 1001) ** ZIPF
    assert counts[:5] / 100000 == pytest.approx(shares[:5] / shares.sum(), rel=0.05)
    assert counts[0] / counts[3] == pytest.approx(4**1.5, rel=0.1)


def test_distinct_tasks_differ_and_one_is_one() -> None:
    drawn = tasks(np.random.default_rng(6), 32, "distinct", 64)
    assert len(set(drawn)) == 32
    assert tasks(np.random.default_rng(6), 3, "one", 64) == [0, 0, 0]
    with pytest.raises(ValueError, match="33 rows of distinct tasks need as many tasks, not 32"):
        tasks(np.random.default_rng(6), 33, "distinct", 32)
    with pytest.raises(ValueError, match="'even' is not one of uniform, zipf, distinct, one"):
        tasks(np.random.default_rng(6), 1, "even", 32)

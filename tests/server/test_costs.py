"""The cost model by itself: it finds the costs of any machine, never foretells less than nothing, and does not believe one odd batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.costs import Costs

MACHINES = st.tuples(st.floats(1e-4, 0.1), st.floats(1e-7, 1e-3), st.floats(0, 1e-3))


def batches(seed: int, count: int) -> list[tuple[int, int]]:
    """Tokens and rows of batches of all sizes."""
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.uniform(0, np.log(200), count)).astype(int)
    return [(int(n * rng.uniform(4, 60)), int(n)) for n in rows]


def taught(costs: Costs, machine: tuple[float, float, float], seed: int, count: int = 60, noise: float = 0.0) -> None:
    rng = np.random.default_rng(seed + 1)
    for tokens, rows in batches(seed, count):
        costs.observe(tokens, rows, true(machine, tokens, rows) * rng.uniform(1 - noise, 1 + noise))


def true(machine: tuple[float, float, float], tokens: int, rows: int) -> float:
    a, b, c = machine
    return a + b * tokens + c * rows


def errors(costs: Costs, machine: tuple[float, float, float], seed: int = 99) -> list[float]:
    """How far it is off, as a share, for batches that it has not seen."""
    return [abs(costs.seconds(*one) / true(machine, *one) - 1) for one in batches(seed, 50)]


@given(machine=MACHINES, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_it_finds_the_costs_of_any_machine(machine: tuple[float, float, float], seed: int) -> None:
    costs = Costs()
    taught(costs, machine, seed)
    assert max(errors(costs, machine)) < 0.05
    assert costs.seconds(1000, 10, batches=4) >= costs.seconds(1000, 10)


@given(machine=MACHINES, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_noise_is_averaged(machine: tuple[float, float, float], seed: int) -> None:
    costs = Costs()
    taught(costs, machine, seed, 150, noise=0.2)
    assert np.median(errors(costs, machine)) < 0.15
    assert max(errors(costs, machine)) < 0.6


@given(machine=MACHINES, seed=st.integers(0, 1000), odd=st.floats(20, 10_000), where=st.integers(0, 59))
@settings(max_examples=100, deadline=None)
def test_one_odd_batch_changes_nothing(machine: tuple[float, float, float], seed: int, odd: float, where: int) -> None:
    costs, plain = Costs(), Costs()
    taught(plain, machine, seed)
    for number, (tokens, rows) in enumerate(batches(seed, 60)):
        if number == where:
            costs.observe(tokens, rows, true(machine, tokens, rows) * odd)
        costs.observe(tokens, rows, true(machine, tokens, rows))
    assert max(errors(costs, machine)) < 0.05


@given(machine=MACHINES, seed=st.integers(0, 1000), times=st.sampled_from([0.02, 0.1, 0.5, 2.0, 10.0, 50.0]))
@settings(max_examples=60, deadline=None)
def test_a_machine_that_changes_is_followed(machine: tuple[float, float, float], seed: int, times: float) -> None:
    costs = Costs()
    taught(costs, machine, seed)
    a, b, c = machine
    taught(costs, (times * a, times * b, times * c), seed + 7, 200)
    assert max(errors(costs, (times * a, times * b, times * c))) < 0.1


@pytest.mark.parametrize(("tokens", "rows"), [(16, 1), (4096, 100)])
def test_batches_that_are_all_alike(tokens: int, rows: int) -> None:
    """What such a batch takes is known at once, and others are foretold between a share of it and all of it."""
    costs = Costs()
    for _ in range(20):
        costs.observe(tokens, rows, 0.05)
    assert costs.seconds(tokens, rows) == pytest.approx(0.05, rel=0.01)
    assert 0.05 * 0.99 <= costs.seconds(8 * tokens, 8 * rows) <= 0.4 * 1.01
    assert 0.05 / 8 * 0.99 <= costs.seconds(tokens // 8, max(1, rows // 8)) <= 0.05 * 1.01


def test_before_the_first_batch_and_after_an_odd_first() -> None:
    costs = Costs()
    assert 0 < costs.seconds(1000, 10) < 1
    costs.observe(16, 1, 30.0)
    for _ in range(5):
        costs.observe(16, 1, 0.01)
    assert costs.seconds(16, 1) == pytest.approx(0.01, rel=0.01)


@given(observed=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 300), st.floats(0, 100)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_no_costs_are_negative(observed: list[tuple[int, int, float]]) -> None:
    costs = Costs()
    for one in observed:
        costs.observe(*one)
        assert 0 <= costs.seconds(0, 0) <= costs.seconds(10, 1) <= costs.seconds(1000, 1) <= costs.seconds(1000, 50)
        assert np.isfinite(costs.seconds(4096, 300))

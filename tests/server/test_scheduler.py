"""The scheduler by itself: budgets, order, cancelling, backpressure, failing rows, calls and stopping. No model, no HTTP."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core import LOCAL, Array, Batch, Caller, Route, Sequence
from server.scheduler import QueueFull, Scheduler, Stopped, Ticket

BAD = 13


def row(*ids: int) -> Sequence:
    """A row of some token ids on the bare backbone."""
    return Sequence(Route("base"), np.array(ids), np.zeros(len(ids), dtype=np.int64))


class Machine:
    """Stands for the engine: answers a row with its own ids, fails a batch that holds the id 13, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def run(self, batch: Batch) -> list[Array]:
        self.batches.append([one.input_ids.tolist() for one in batch.rows])
        self.entered.set()
        assert self.go.wait(10)
        if BAD in batch.input_ids:
            raise ValueError("thirteen")
        return [one.input_ids for one in batch.rows]


@contextmanager
def running(machine: Machine, batch: int = 100, queue: int = 10_000, caller: int | None = None) -> Iterator[Scheduler]:
    scheduler = Scheduler(machine.run, batch, queue, max_caller_tokens=caller)
    scheduler.start()
    try:
        yield scheduler
    finally:
        machine.go.set()
        scheduler.stop()
        assert not scheduler.alive


async def occupied(machine: Machine, scheduler: Scheduler) -> Ticket:
    """Holds the engine up in a batch of one row, so that what comes next gathers."""
    machine.go.clear()
    machine.entered.clear()
    ticket = scheduler.submit([row(0)])
    await asyncio.to_thread(machine.entered.wait, 10)
    return ticket


def drive(
    body: Callable[[Machine, Scheduler], Awaitable[Any]], batch: int = 100, queue: int = 10_000, caller: int | None = None
) -> Machine:
    machine = Machine()
    with running(machine, batch, queue, caller) as scheduler:
        asyncio.run(asyncio.wait_for(body(machine, scheduler), 20))  # type: ignore[arg-type]
    return machine


async def values(ticket: Ticket) -> list[list[int]]:
    return [array.tolist() for array in await ticket.future]


def test_what_waits_becomes_one_batch_with_answers_in_order() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        first = await occupied(machine, scheduler)
        tickets = [scheduler.submit([row(5, 5, 5), row(1), row(2, 2)]), scheduler.submit([row(3, 3)])]
        assert scheduler.queued_tokens == 8
        machine.go.set()
        assert await values(first) == [[0]]
        assert await values(tickets[0]) == [[5, 5, 5], [1], [2, 2]]
        assert await values(tickets[1]) == [[3, 3]]
        assert scheduler.queued_tokens == 0
        assert tickets[0].queue_seconds > 0
        assert tickets[0].run_seconds > 0

    assert drive(body).batches == [[[0]], [[1], [2, 2], [3, 3], [5, 5, 5]]]


def test_the_token_budget_splits_in_order_of_arrival() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        tickets = [scheduler.submit([row(*[i] * size) for i, size in group]) for group in ([(1, 3), (2, 3)], [(3, 9)], [(4, 1), (5, 2)])]
        machine.go.set()
        await asyncio.gather(*(ticket.future for ticket in tickets))

    batches = drive(body, batch=5).batches
    assert batches[1:] == [[[1] * 3], [[2] * 3], [[3] * 9], [[4], [5, 5]]], "a row over the budget runs alone, nobody is overtaken"


@given(sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=8), budget=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_budget_and_order_of_any_queue(sizes: list[list[int]], budget: int) -> None:
    numbered = iter(range(100, 1000))
    groups = [[row(*[next(numbered)] * size) for size in group] for group in sizes]

    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        tickets = [scheduler.submit(group) for group in groups]
        machine.go.set()
        for group, ticket in zip(groups, tickets, strict=True):
            assert await values(ticket) == [one.input_ids.tolist() for one in group]

    batches = drive(body, batch=budget).batches[1:]
    assert all(sum(map(len, batch)) <= budget or len(batch) == 1 for batch in batches)
    ran = [sorted(ids[0] for ids in batch) for batch in batches]
    assert [number for batch in ran for number in batch] == sorted(number for batch in ran for number in batch)
    for batch, following in pairwise(batches):
        head = min(following, key=lambda ids: ids[0])
        assert sum(map(len, batch)) + len(head) > budget, "a batch is filled as far as the next row allows"


def test_cancelled_rows_are_skipped() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        gone, stays = scheduler.submit([row(1), row(*[2] * 90)]), scheduler.submit([row(3)])
        gone.future.cancel()
        await asyncio.sleep(0)
        machine.go.set()
        assert await values(stays) == [[3]]
        assert scheduler.queued_tokens == 0

    assert drive(body, batch=10).batches == [[[0]], [[3]]]


def test_cancelling_what_runs_breaks_nothing() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        running = await occupied(machine, scheduler)
        running.future.cancel()
        machine.go.set()
        assert await values(scheduler.submit([row(4)])) == [[4]]

    drive(body)


def test_the_queue_refuses_what_is_over_its_budget() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        whole = scheduler.submit([row(*[1] * 15)])
        with pytest.raises(QueueFull) as caught:
            scheduler.submit([row(2), row(3)])
        assert caught.value.retry_after >= 1
        assert "busy" in str(caught.value)
        assert scheduler.queued_tokens == 15, "a refused request leaves nothing in the queue"
        machine.go.set()
        await whole.future
        assert await values(scheduler.submit([row(2)])) == [[2]]
        huge = scheduler.submit([row(*[4] * 20)])
        assert (await values(huge))[0][:1] == [4], "an empty queue takes a request of any size"

    drive(body, queue=16)


def test_a_client_that_leaves_gives_its_part_of_the_queue_back_at_once() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        gone = scheduler.submit([row(1), row(*[2] * 14)])
        gone.future.cancel()
        await asyncio.sleep(0)
        assert scheduler.queued_tokens == 0
        stays = scheduler.submit([row(*[3] * 16)])
        machine.go.set()
        await stays.future
        assert scheduler.queued_tokens == 0

    drive(body, queue=16)


def test_a_reservation_counts_until_it_is_given_back() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        with scheduler.reserve(10) as reservation:
            assert scheduler.queued_tokens == 10
            with pytest.raises(QueueFull):
                scheduler.submit([row(*[1] * 7)])
            part = scheduler.submit([row(1, 2, 3)], LOCAL, reservation)
            assert (scheduler.queued_tokens, reservation.left) == (10, 7)
            with pytest.raises(ValueError, match="8 tokens"):
                scheduler.submit([row(*[1] * 8)], LOCAL, reservation)
        assert scheduler.queued_tokens == 3, "what was submitted stays"
        machine.go.set()
        assert await values(part) == [[1, 2, 3]]
        assert scheduler.queued_tokens == 0

    drive(body, queue=16)


def test_one_caller_has_a_part_of_the_queue() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        one, other = Caller("one"), Caller("other")
        scheduler.submit([row(1, 1, 1)], one)
        with pytest.raises(QueueFull, match="this caller's part"):
            scheduler.submit([row(1, 1, 1, 1, 1, 1)], one)
        large = scheduler.submit([row(*[2] * 12)], other)
        with pytest.raises(QueueFull, match="its queue is full"):
            scheduler.submit([row(1, 1)], one)
        machine.go.set()
        await large.future

    drive(body, queue=16, caller=8)


def test_callers_share_by_weight() -> None:
    """While all have work, tokens go by weight, whatever the rows' lengths and whoever came first."""

    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        tickets = [
            scheduler.submit([row(*[number] * length) for _ in range(120 // length)], Caller(f"{number}", weight=weight))
            for number, length, weight in ((1, 1, 1.0), (2, 3, 2.0), (3, 6, 1.0))
        ]
        machine.go.set()
        await asyncio.gather(*(ticket.future for ticket in tickets))

    served = {1: 0, 2: 0, 3: 0}
    for batch in drive(body, batch=12).batches[1:]:
        for ids in batch:
            served[ids[0]] += len(ids)
        if served[2] < 120:
            assert abs(served[1] - served[2] / 2) <= 12
            assert abs(served[3] - served[2] / 2) <= 12
    assert set(served.values()) == {120}


class Pausing(Machine):
    """Stops in its tenth batch until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.resume = threading.Event(), threading.Event()

    def run(self, batch: Batch) -> list[Array]:
        if len(self.batches) == 9:
            self.reached.set()
            assert self.resume.wait(10)
        return super().run(batch)


def test_who_comes_back_starts_at_the_present() -> None:
    """Neither pays for the time in which the other was away."""
    machine = Pausing()

    async def body(scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        long = scheduler.submit([row(1)] * 30, Caller("long"))
        scheduler.submit([row(2)], Caller("short"))
        machine.go.set()
        await asyncio.to_thread(machine.reached.wait, 10)
        back = scheduler.submit([row(3)] * 5, Caller("short"))
        machine.resume.set()
        await asyncio.gather(long.future, back.future)

    with running(machine, 1) as scheduler:
        asyncio.run(asyncio.wait_for(body(scheduler), 20))
    order = [ids[0] for batch in machine.batches for ids in batch]
    assert order[:4] in ([0, 1, 2, 1], [0, 2, 1, 1])
    assert order[10:20].count(3) == 5, "in turn with the other, not first and not last"
    assert order[10:15].count(3) in (2, 3)


def test_calls_of_one_caller_are_in_order_of_arrival_beside_others() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        tickets = [scheduler.submit([row(number, number)], Caller("ab"[number % 2])) for number in range(20, 40)]
        tickets[3].future.cancel()
        machine.go.set()
        await asyncio.gather(*(ticket.future for ticket in tickets), return_exceptions=True)

    order = [ids[0] for batch in drive(body, batch=4).batches[1:] for ids in batch]
    assert [number for number in order if number % 2] == [number for number in range(20, 40) if number % 2 and number != 23]
    assert [number for number in order if not number % 2] == list(range(20, 40, 2))
    assert all(abs(order.index(number) - order.index(number + 1)) <= 3 for number in range(24, 40, 2))


def test_a_failing_row_fails_alone() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        good, bad, mixed = scheduler.submit([row(1), row(2)]), scheduler.submit([row(BAD)]), scheduler.submit([row(3), row(BAD), row(4)])
        machine.go.set()
        assert await values(good) == [[1], [2]]
        for ticket in (bad, mixed):
            with pytest.raises(ValueError, match="thirteen"):
                await ticket.future
        assert await values(scheduler.submit([row(5)])) == [[5]]

    drive(body)


def test_calls_run_between_batches_and_before_what_waits() -> None:
    order: list[str] = []

    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        waits = scheduler.submit([row(1)])
        call = asyncio.ensure_future(scheduler.call(lambda: order.append(f"after {len(machine.batches)}")))
        failing = asyncio.ensure_future(scheduler.call(lambda: 1 / 0))
        await asyncio.sleep(0.01)
        assert order == []
        machine.go.set()
        await call
        with pytest.raises(ZeroDivisionError):
            await failing
        await waits.future
        assert await scheduler.call(threading.get_ident) != threading.get_ident()

    drive(body)
    assert order == ["after 1"]


def test_stop_ends_what_runs_and_fails_what_waits() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        runs = await occupied(machine, scheduler)
        waits, call = scheduler.submit([row(1), row(2)]), asyncio.ensure_future(scheduler.call(lambda: None))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(asyncio.to_thread(scheduler.stop))
        await asyncio.sleep(0.02)
        with pytest.raises(Stopped):
            scheduler.submit([row(3)])
        with pytest.raises(Stopped):
            await scheduler.call(lambda: None)
        machine.go.set()
        assert await values(runs) == [[0]]
        for future in (waits.future, call):
            with pytest.raises(Stopped):
                await future
        await stopping
        assert not scheduler.alive

    assert drive(body).batches == [[[0]]]


def test_batches_are_reported_and_make_the_estimate() -> None:
    seen: list[tuple[int, float]] = []
    machine = Machine()
    scheduler = Scheduler(machine.run, 100, 16, lambda batch, seconds: seen.append((batch.tokens, seconds)))
    scheduler.start()

    async def body() -> None:
        began = time.perf_counter()
        await scheduler.submit([row(1, 2, 3)]).future
        assert seen[0][0] == 3
        assert 0 < seen[0][1] < time.perf_counter() - began

    asyncio.run(body())
    scheduler.stop()


def test_an_answer_after_the_loop_has_closed_is_dropped() -> None:
    machine = Machine()

    async def body(scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)

    with running(machine) as scheduler:
        asyncio.run(body(scheduler))
        machine.go.set()
        time.sleep(0.05)
        assert scheduler.alive

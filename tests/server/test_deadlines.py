"""Deadlines in the queue: what runs, what does not, what is given back, and that nothing starves. No model, no HTTP."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler import Machine, occupied, row, running, values

from server.core import LOCAL, Batch, Caller, Outputs, Route, Sequence
from server.scheduler import DeadlineExceeded, Scheduler, Ticket
from server.waiting import PATIENCE, Waiting


def drive(body: Callable[[Machine, Scheduler], Awaitable[Any]], batch: int = 100) -> Machine:
    machine = Machine()
    with running(machine, batch) as scheduler:
        asyncio.run(asyncio.wait_for(body(machine, scheduler), 20))  # type: ignore[arg-type]
    return machine


def due(scheduler: Scheduler, seconds: float, *rows: Sequence, caller: Caller = LOCAL) -> Ticket:
    """Submits rows that must be answered in so many seconds."""
    tokens = sum(one.tokens for one in rows)
    with scheduler.reserve(tokens, caller, len(rows), time.perf_counter() + seconds) as reservation:
        return scheduler.submit(rows, caller, reservation)


def test_what_is_too_late_is_not_run_and_gives_its_tokens_back() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        late, stays = due(scheduler, 0.05, row(1, 1), row(2)), due(scheduler, 30, row(3))
        assert scheduler.queued_tokens == 4
        await asyncio.sleep(0.06)
        machine.go.set()
        assert await values(stays) == [[3]]
        with pytest.raises(DeadlineExceeded, match="passed before it was answered"):
            await late.future
        assert scheduler.queued_tokens == 0
        assert await values(scheduler.submit([row(4)])) == [[4]]

    assert drive(body).batches == [[[0]], [[3]], [[4]]]


def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        with pytest.raises(DeadlineExceeded):
            scheduler.reserve(3, LOCAL, 1, time.perf_counter())
        assert scheduler.queued_tokens == 0

    assert drive(body).batches == []


def test_rows_that_were_not_run_are_told_from_those_that_were() -> None:
    async def body(machine: Machine, scheduler: Scheduler) -> None:
        await occupied(machine, scheduler)
        with scheduler.reserve(10, LOCAL, 3, time.perf_counter() + 0.2) as reservation:
            ticket = scheduler.submit([row(1, 1), row(2, 2, 2)], LOCAL, reservation)
            assert reservation.unrun == 10
            machine.entered.clear()
            held = machine.go
            machine.go = type(held)()  # the next batch, of the first row, is held up until the deadline is over
            held.set()
            await asyncio.to_thread(machine.entered.wait, 10)
            await asyncio.sleep(0.25)
            machine.go.set()
            with pytest.raises(DeadlineExceeded):
                await ticket.future
            assert reservation.unrun == 8, "five that were not submitted and the second row"
        assert scheduler.queued_tokens == 0

    assert drive(body, batch=2).batches == [[[0]], [[1, 1]]]


# By the queue itself, on a clock of the test's own


def queue(batch: int = 100, seconds_per_token: float = 0.001, now: float = 0.0) -> Waiting:
    """A queue that has learned what a token costs."""
    waiting = Waiting(batch, 10**9, 10**9)
    for tokens in (10, 20, 40, 80, 100) * 5:
        waiting.observe(tokens, 1, tokens * seconds_per_token, now)
    return waiting


def ask(waiting: Waiting, loop: Any, number: int, tokens: int, now: float, deadline: float = math.inf, name: str = "one") -> Ticket:
    """A request of one row."""
    caller = Caller(name)
    share = waiting.reserve(caller, tokens, 1, deadline, now)
    ids = np.full(tokens, number)
    ticket = Ticket((Sequence(Route("base"), ids, ids),), loop.create_future(), now, tokens, deadline)
    waiting.add(share, ticket)
    return ticket


@pytest.fixture
def loop() -> Any:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def numbers(entries: list[tuple[Ticket, int]]) -> list[int]:
    return [int(ticket.rows[index].input_ids[0]) for ticket, index in entries]


def test_what_cannot_be_in_time_is_refused_with_what_it_would_need(loop: Any) -> None:
    waiting = queue(now=1.9)
    ask(waiting, loop, 1, 500, 0.0)
    with pytest.raises(DeadlineExceeded, match=r"about (5[0-9][0-9]|6[0-4][0-9]) ms"):
        ask(waiting, loop, 2, 50, 1.9, deadline=2.3)
    assert (waiting.tokens, waiting.rows) == (500, 1)
    ask(waiting, loop, 3, 50, 1.9, deadline=2.6)
    ask(waiting, loop, 4, 50, 1.9, deadline=2.1, name="other")  # its share comes before the rest of the first one's
    waiting.begin(100, 1, 1.9)
    with pytest.raises(DeadlineExceeded):
        ask(waiting, loop, 5, 50, 1.9, deadline=2.04, name="third")


def test_an_estimate_that_nothing_confirms_refuses_nobody(loop: Any) -> None:
    """Where all that comes would be refused, one is let run each second, which tells what a batch costs now."""
    waiting = queue(seconds_per_token=1.0)
    with pytest.raises(DeadlineExceeded):
        ask(waiting, loop, 1, 10, 0.5, deadline=1.5)
    ask(waiting, loop, 2, 10, 1.5, deadline=2.5)
    entries, late = waiting.take(1.6)
    assert (numbers(entries), late) == ([2], [])


def test_a_batch_ends_where_it_would_miss_a_deadline_of_its_own(loop: Any) -> None:
    waiting = queue(batch=1000)
    ask(waiting, loop, 1, 50, 0.0, deadline=0.12)
    for number in (2, 3):
        ask(waiting, loop, number, 50, 0.0)
    assert numbers(waiting.take(0.0)[0]) == [1, 2]
    assert numbers(waiting.take(0.0)[0]) == [3]


def test_who_is_pressed_goes_before_those_who_came_a_moment_ago_only(loop: Any) -> None:
    waiting = queue(batch=10, seconds_per_token=1e-6)
    ask(waiting, loop, 1, 10, 0.0)
    ask(waiting, loop, 2, 10, 1.5)
    ask(waiting, loop, 3, 10, 1.6, deadline=2.5)
    ask(waiting, loop, 4, 10, 1.7, deadline=2.2)
    ask(waiting, loop, 5, 10, 1.8, deadline=100.0)
    order = [numbers(waiting.take(1.9)[0]) for _ in range(5)]
    assert order == [[1], [4], [3], [2], [5]], "the first is due after PATIENCE, before the others' deadlines"


ASKS = st.lists(
    st.tuples(
        st.floats(0.0, 0.3),  # seconds since the last one
        st.integers(1, 60),  # tokens
        st.one_of(st.just(math.inf), st.floats(0.001, 3.0)),  # time allowed
        st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=40,
)


@given(asks=ASKS, batch=st.integers(10, 200), error=st.floats(0.5, 2.0))
@settings(max_examples=150, deadline=None)
def test_any_deadlines(asks: list[tuple[float, int, float, str]], batch: int, error: float) -> None:
    """Whatever comes: nothing begins after its deadline, all ends, what was taken is given back, and within a caller nobody is overtaken by
    one that came more than PATIENCE later. The machine may be slower or faster than was learned."""
    loop = asyncio.new_event_loop()
    waiting, now, queued = queue(batch), 0.0, dict[int, Ticket]()
    ran, late, clock = dict[int, float](), set[int](), 0.0
    arrivals = []
    for number, (gap, tokens, allowed, name) in enumerate(asks):
        clock += gap
        arrivals.append((clock, number, tokens, allowed, name))
    pending = list(arrivals)
    while pending or waiting:
        if not waiting:
            now = max(now, pending[0][0])
        while pending and pending[0][0] <= now:
            at, number, tokens, allowed, name = pending.pop(0)
            try:
                queued[number] = ask(waiting, loop, number, tokens, at, at + allowed, name)
            except DeadlineExceeded:
                late.add(number)
        entries, missed = waiting.take(now)
        late |= {number for number, ticket in queued.items() if ticket in missed}
        assert entries or missed or not waiting
        for number in numbers(entries):
            assert now < arrivals[number][0] + arrivals[number][3]
            ran[number] = now
        size = sum(ticket.rows[index].tokens for ticket, index in entries)
        if entries:
            assert size <= batch or len(entries) == 1
            seconds = size * 0.001 * error
            waiting.begin(size, len(entries), now)
            now += seconds
            waiting.observe(size, len(entries), seconds, now)
    assert set(ran) | late == set(range(len(asks)))
    assert not set(ran) & late
    assert (waiting.tokens, waiting.rows) == (0, 0)
    assert not any(arrivals[number][3] == math.inf for number in late)
    for number, began in ran.items():
        at, *_, name = arrivals[number]
        for other, before in ran.items():
            if arrivals[other][4] == name and arrivals[other][0] > at + PATIENCE:
                assert began <= before
    loop.close()


# A device that runs by itself


class Device(Machine):
    """Answers when it is asked for the outputs, as a GPU does; notes what was launched and fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def launch(self, batch: Batch) -> Callable[[], list[Outputs]]:
        number = len([one for one in self.order if one.startswith("launch")])
        self.order.append(f"launch {number}")

        def fetch() -> list[Outputs]:
            self.order.append(f"fetch {number}")
            return super(Device, self).run(batch)  # type: ignore[return-value]

        return fetch


def test_the_next_batch_is_launched_before_the_last_is_fetched() -> None:
    device = Device()
    scheduler = Scheduler(device.launch, 2, 1000)
    scheduler.start()

    async def body() -> None:
        await occupied(device, scheduler)
        tickets = [scheduler.submit([row(number, number)]) for number in (1, 2, 13, 3)]
        call = asyncio.ensure_future(scheduler.call(lambda: device.order.append("call")))
        await asyncio.sleep(0)
        device.go.set()
        await call
        assert await values(tickets[0]) == [[1, 1]]
        assert await values(tickets[1]) == [[2, 2]]
        with pytest.raises(ValueError, match="thirteen"):
            await tickets[2].future
        assert await values(tickets[3]) == [[3, 3]]
        assert await values(scheduler.submit([row(4), row(5)])) == [[4], [5]], "the last one is fetched though nothing follows"

    asyncio.run(asyncio.wait_for(body(), 20))
    scheduler.stop()
    fetched = [step for step in device.order if step.startswith("fetch")]
    assert device.order[:3] == ["launch 0", "fetch 0", "call"]
    assert device.order[3:8] == ["launch 1", "launch 2", "fetch 1", "launch 3", "fetch 2"]
    assert fetched == [f"fetch {number}" for number in range(len(fetched))]

"""Batches by token budget, on the engine's own thread. The event loop submits a request's rows as one `Ticket` and awaits it; the engine
thread takes rows from the queue (`waiting.py` says which are next), runs them as one packed batch, and hands the answers back, all of
a batch in one step of the loop. While a batch runs, the next one gathers; an idle engine takes at once what comes. Rows whose client is
gone are skipped, rows that would miss their deadline are not run. Knows no torch and no HTTP.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

from server.core import LOCAL, Batch, Caller, Outputs, pack
from server.core import Sequence as Row
from server.waiting import DeadlineExceeded, Entry, QueueFull, Share, Ticket, Waiting

__all__ = ["DeadlineExceeded", "QueueFull", "Reservation", "Scheduler", "Stopped", "Ticket"]

log = logging.getLogger(__name__)

# What an engine makes of a batch: the outputs of its rows or, where a device runs by itself, what waits for them.
Launched = list[Outputs] | Callable[[], list[Outputs]]


class Stopped(Exception):
    """The server is shutting down and takes no more work."""


@dataclass(slots=True, eq=False)
class _Running:
    """A batch that was handed to the engine: `places` are its rows' places in it."""

    entries: list[Entry]
    batch: Batch
    places: list[int]
    began: float
    launched: Launched | None
    error: BaseException | None


class Reservation:
    """Tokens of the queue that a request may submit; what it did not is given back when the context is left."""

    def __init__(self, scheduler: "Scheduler", share: Share, tokens: int, deadline: float) -> None:
        self._scheduler, self.share, self.left, self.deadline = scheduler, share, tokens, deadline
        self._tickets: list[Ticket] = []

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *error: object) -> None:
        self._scheduler.give_back(self)

    def submitted(self, ticket: Ticket) -> None:
        """Takes the tokens of a ticket."""
        self.left -= ticket.queued
        self._tickets.append(ticket)

    @property
    def unrun(self) -> int:
        """Tokens that did not run: those that were not submitted, and those that still wait or were dropped."""
        return self.left + sum(ticket.unrun for ticket in self._tickets)


class Scheduler:
    """Owns the engine thread. `run` executes a batch and returns one answer per row, in the batch's order, or what waits for them.

    Where it returns what waits, the next batch is packed, planned and handed over before it is called: a device that runs by itself
    has its next work while the answers are fetched. max_queue_tokens: tokens that may be reserved or waiting, of all callers;
    max_caller_tokens: of one. Who has none may have any number.
    """

    def __init__(
        self,
        run: Callable[[Batch], Launched],
        max_batch_tokens: int,
        max_queue_tokens: int,
        on_batch: Callable[[Batch, float], None] = lambda batch, seconds: None,
        max_caller_tokens: int | None = None,
    ) -> None:
        self._run = run
        self._on_batch = on_batch
        caller_tokens = max_queue_tokens if max_caller_tokens is None else max_caller_tokens
        self._waiting = Waiting(max_batch_tokens, max_queue_tokens, caller_tokens)
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._idle_since = 0.0
        self._thread = threading.Thread(target=self._loop, name="turret-engine", daemon=True)

    def start(self) -> None:
        """Starts the engine thread."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Finishes the batch that runs, fails what waits with Stopped, and joins the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs."""
        return self._thread.is_alive()

    @property
    def queued_tokens(self) -> int:
        """Tokens that are reserved or wait."""
        return self._waiting.tokens

    def reserve(self, tokens: int, caller: Caller = LOCAL, rows: int = 1, deadline: float = math.inf) -> Reservation:
        """Takes a request's tokens of the queue, before its rows can be submitted. `deadline` is a time of `time.perf_counter()`.

        Raises QueueFull, Stopped and, for what cannot be in time, DeadlineExceeded, taking none.
        """
        with self._changed:
            if self._stopping:
                raise Stopped("The server is shutting down.")
            return Reservation(self, self._waiting.reserve(caller, tokens, rows, deadline, time.perf_counter()), tokens, deadline)

    def submit(self, rows: Rows[Row], caller: Caller = LOCAL, reservation: Reservation | None = None) -> Ticket:
        """Queues a request's rows, as part of what was reserved or by themselves; await `ticket.future` for one answer per row.

        The future raises DeadlineExceeded where they were not run in time. Raises Stopped and, without a reservation, QueueFull.
        """
        tokens = sum(row.tokens for row in rows)
        if reservation is None:
            with self.reserve(tokens, caller) as reservation:
                return self.submit(rows, caller, reservation)
        if tokens > reservation.left:
            raise ValueError(f"{tokens} tokens are submitted and {reservation.left} are left of those reserved")
        future = asyncio.get_running_loop().create_future()
        ticket = Ticket(tuple(rows), future, time.perf_counter(), tokens, reservation.deadline)
        ticket.outputs = [None] * len(ticket.rows)
        ticket.pending = len(ticket.rows)
        share = reservation.share
        with self._changed:
            if self._stopping:
                raise Stopped("The server is shutting down.")
            reservation.submitted(ticket)
            self._waiting.add(share, ticket)
            self._changed.notify()
        future.add_done_callback(lambda future: self._abandon(ticket, share) if future.cancelled() else None)
        return ticket

    def give_back(self, reservation: Reservation) -> None:
        """Ends a reservation."""
        if reservation.left:
            with self._changed:
                self._waiting.free(reservation.share, reservation.left)
                reservation.left = 0

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs `function` on the engine thread between two batches, before what waits, and returns its result."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._stopping:
                raise Stopped("The server is shutting down.")
            self._calls.append((function, future))
            self._changed.notify()
        return await future

    def _abandon(self, ticket: Ticket, share: Share) -> None:
        """Gives back what a client that is gone has in the queue."""
        with self._changed:
            self._waiting.drop(share, ticket)

    def _loop(self) -> None:
        running: _Running | None = None
        while True:
            with self._changed:
                while not (running or self._waiting or self._calls or self._stopping):
                    self._changed.wait()
                stopping, calls, entries, late = self._stopping, list(self._calls), list[Entry](), list[Ticket]()
                if calls and not stopping:
                    self._calls.clear()
                elif not stopping:
                    entries, late = self._waiting.take(time.perf_counter())
            if late:
                _settle([(ticket.future, None, DeadlineExceeded()) for ticket in late])
            following = self._begin(entries) if entries else None
            if running is not None:
                self._finish(running)
            if stopping:
                self._fail_all()
                return
            for function, future in calls:
                _settle([(future, *_attempt(function))])
            running = following
            if running is not None and not callable(running.launched):
                self._finish(running)
                running = None

    def _begin(self, entries: list[Entry]) -> _Running:
        """Packs rows and hands them to the engine."""
        began = time.perf_counter()
        for ticket, _ in entries:
            ticket.started = ticket.started or began
        batch, places = pack([ticket.rows[index] for ticket, index in entries])
        with self._changed:
            self._waiting.begin(batch.tokens, len(batch.rows), began)
        return _Running(entries, batch, places, began, *_attempt(lambda: self._run(batch)))

    def _finish(self, running: _Running) -> None:
        """Waits for a batch and hands its answers back. One that failed is run again row by row, so that a faulty row fails alone."""
        outputs, error = running.launched, running.error
        if error is None and callable(outputs):
            outputs, error = _attempt(outputs)
        entries, batch = running.entries, running.batch
        if error is not None and len(entries) > 1:
            log.warning("a batch of %d rows failed (%s); running its rows alone", len(entries), error)
            for entry in entries:
                self._finish(self._begin([entry]))
            return
        now = time.perf_counter()
        if error is None:
            seconds = now - max(running.began, self._idle_since)
            with self._changed:
                self._waiting.observe(batch.tokens, len(batch.rows), seconds, now)
            self._on_batch(batch, seconds)
        self._idle_since = now
        done: list[Ticket] = []
        for (ticket, index), place in zip(entries, running.places, strict=True):
            if error is None:
                assert isinstance(outputs, list)
                ticket.outputs[index] = outputs[place]
            else:
                ticket.error = error
            ticket.pending -= 1
            if ticket.pending == 0:
                ticket.finished = now
                done.append(ticket)
        _settle([(ticket.future, ticket.outputs, ticket.error) for ticket in done])

    def _fail_all(self) -> None:
        stopped = Stopped("The server is shutting down.")
        with self._changed:
            futures = [*(future for _, future in self._calls), *(ticket.future for ticket in self._waiting.tickets())]
        _settle([(future, None, stopped) for future in futures])


def _attempt(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


Settled = tuple[asyncio.Future[Any], Any, BaseException | None]


def _settle(settled: list[Settled]) -> None:
    """Resolves futures of the event loop from the engine thread, all in one step of the loop."""
    if not settled:
        return

    def resolve() -> None:
        for future, result, error in settled:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    try:
        settled[0][0].get_loop().call_soon_threadsafe(resolve)
    except RuntimeError:  # the loop is closed: nobody waits any more
        log.debug("an answer came after the event loop had closed")

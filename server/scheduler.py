"""Batches by token budget, on the engine's own thread, in order of arrival.

The event loop submits a request's rows as one `Ticket` and awaits it; the engine thread takes rows from the front of the
queue until the token budget is reached, runs them as one packed batch, and hands the answers back. While a batch runs, the
next one gathers. Rows of a ticket whose client is gone are skipped. Knows no torch and no HTTP.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

from server.core import Batch, Outputs, Sequence, pack

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """The queue's token budget is spent; `retry_after` is when it should have drained, in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The server is busy: its queue is full. Try again in {retry_after} s.")
        self.retry_after = retry_after


class Stopped(Exception):
    """The server is shutting down and takes no more work."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's rows in the queue, and their answers. Times are `time.perf_counter()` seconds."""

    rows: tuple[Sequence, ...]
    future: asyncio.Future[list[Outputs]]
    submitted: float
    outputs: list[Any] = field(default_factory=list)
    pending: int = 0
    started: float = 0.0
    finished: float = 0.0
    error: BaseException | None = None

    @property
    def queue_seconds(self) -> float:
        return max(0.0, self.started - self.submitted)

    @property
    def run_seconds(self) -> float:
        return max(0.0, self.finished - self.started)


_Entry = tuple[Ticket, int]


class Scheduler:
    """Owns the engine thread. `run` executes a batch and returns one answer per row, in the batch's order."""

    def __init__(
        self,
        run: Callable[[Batch], list[Outputs]],
        max_batch_tokens: int,
        max_queue_tokens: int,
        on_batch: Callable[[Batch, float], None] = lambda batch, seconds: None,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._on_batch = on_batch
        self._waiting: deque[_Entry] = deque()
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._tokens_per_second = 10_000.0
        self.queued_tokens = 0
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

    def submit(self, rows: Rows[Sequence]) -> Ticket:
        """Queues a request's rows; await `ticket.future` for one answer per row. Raises QueueFull, Stopped."""
        ticket = Ticket(tuple(rows), asyncio.get_running_loop().create_future(), time.perf_counter())
        ticket.outputs = [None] * len(ticket.rows)
        ticket.pending = len(ticket.rows)
        tokens = sum(row.tokens for row in ticket.rows)
        with self._changed:
            if self._stopping:
                raise Stopped("The server is shutting down.")
            if self.queued_tokens and self.queued_tokens + tokens > self._max_queue_tokens:
                raise QueueFull(max(1, round(self.queued_tokens / self._tokens_per_second)))
            self.queued_tokens += tokens
            self._waiting.extend((ticket, index) for index in range(len(ticket.rows)))
            self._changed.notify()
        return ticket

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs `function` on the engine thread between two batches, before what waits, and returns its result."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._stopping:
                raise Stopped("The server is shutting down.")
            self._calls.append((function, future))
            self._changed.notify()
        return await future

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._calls or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    self._fail_all()
                    return
                calls = list(self._calls)
                self._calls.clear()
                entries = [] if calls else self._take()
            for function, future in calls:
                _settle(future, *_attempt(function))
            if entries:
                self._execute(entries)

    def _take(self) -> list[_Entry]:
        """Rows from the front of the queue up to the token budget, at least one; skips tickets nobody waits for."""
        entries: list[_Entry] = []
        budget = self._max_batch_tokens
        while self._waiting:
            ticket, index = self._waiting[0]
            tokens = ticket.rows[index].tokens
            if entries and tokens > budget and not ticket.future.cancelled():
                break
            self._waiting.popleft()
            self.queued_tokens -= tokens
            if ticket.future.cancelled():
                continue
            budget -= tokens
            entries.append((ticket, index))
        return entries

    def _execute(self, entries: list[_Entry]) -> None:
        began = time.perf_counter()
        for ticket, _ in entries:
            ticket.started = ticket.started or began
        batch, places = pack([ticket.rows[index] for ticket, index in entries])
        outputs, error = _attempt(lambda: self._run(batch))
        if error is not None and len(entries) > 1:
            log.warning("a batch of %d rows failed (%s); running its rows alone", len(entries), error)
            for entry in entries:
                self._execute([entry])
            return
        seconds = time.perf_counter() - began
        if error is None:
            self._tokens_per_second += 0.2 * (batch.tokens / seconds - self._tokens_per_second)
            self._on_batch(batch, seconds)
        done: list[Ticket] = []
        for (ticket, index), place in zip(entries, places, strict=True):
            if error is None:
                ticket.outputs[index] = outputs[place]
            else:
                ticket.error = error
            ticket.pending -= 1
            if ticket.pending == 0:
                ticket.finished = time.perf_counter()
                done.append(ticket)
        for ticket in done:
            _settle(ticket.future, ticket.outputs, ticket.error)

    def _fail_all(self) -> None:
        stopped = Stopped("The server is shutting down.")
        for _, future in self._calls:
            _settle(future, None, stopped)
        for ticket in {id(ticket): ticket for ticket, _ in self._waiting}.values():
            _settle(ticket.future, None, stopped)


def _attempt(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Resolves a future of the event loop from the engine thread."""

    def resolve() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    try:
        future.get_loop().call_soon_threadsafe(resolve)
    except RuntimeError:  # the loop is closed: nobody waits any more
        log.debug("an answer came after the event loop had closed")

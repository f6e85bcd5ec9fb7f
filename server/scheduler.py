"""Batches by token budget, on the engine's own thread, fair between callers, in order of arrival for each of them.

The event loop submits a request's rows as one `Ticket` and awaits it; the engine thread takes rows from the queue until the token
budget is reached, runs them as one packed batch, and hands the answers back. While a batch runs, the next one gathers. Rows of a
ticket whose client is gone are skipped. Callers share the engine by weight (start-time fair queuing, Goyal et al. 1996): each row
starts in virtual time where its caller's last one ended, its tokens over its caller's weight take that time, and the row that starts
first is next; a caller that comes back starts at the present. Knows no torch and no HTTP.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from server.core import LOCAL, Batch, Caller, Outputs, Sequence, pack

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """The queue's token budget, or the caller's part of it, is spent; `retry_after` is when it should have drained, in seconds."""

    def __init__(self, retry_after: int, what: str = "its queue") -> None:
        super().__init__(f"The server is busy: {what} is full. Try again in {retry_after} s.")
        self.retry_after = retry_after


class Stopped(Exception):
    """The server is shutting down and takes no more work."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's rows in the queue, and their answers. Times are `time.perf_counter()` seconds; `queued` are tokens that wait."""

    rows: tuple[Sequence, ...]
    future: asyncio.Future[list[Outputs]]
    submitted: float
    queued: int = 0
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


@dataclass(slots=True, eq=False)
class _Share:
    """What one caller has in the queue. `tokens` are reserved or waiting; `end` is where its last row ended in virtual time."""

    weight: float
    rows: deque[_Entry] = field(default_factory=deque)
    tokens: int = 0
    end: float = 0.0


class Reservation:
    """Tokens of the queue that a request may submit; what it did not is given back when the context is left."""

    def __init__(self, scheduler: "Scheduler", share: _Share, tokens: int) -> None:
        self._scheduler, self._share, self.left = scheduler, share, tokens

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *error: object) -> None:
        self._scheduler.give_back(self)


class Scheduler:
    """Owns the engine thread. `run` executes a batch and returns one answer per row, in the batch's order.

    max_queue_tokens: tokens that may be reserved or waiting, of all callers; max_caller_tokens: of one. Who has none may have any number.
    """

    def __init__(
        self,
        run: Callable[[Batch], list[Outputs]],
        max_batch_tokens: int,
        max_queue_tokens: int,
        on_batch: Callable[[Batch, float], None] = lambda batch, seconds: None,
        max_caller_tokens: int | None = None,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._on_batch = on_batch
        self._max_caller_tokens = max_queue_tokens if max_caller_tokens is None else max_caller_tokens
        self._shares: dict[str, _Share] = {}
        self._next: list[tuple[float, int, _Share]] = []  # a heap of those with rows, by where their first row starts
        self._numbers = count()
        self._now = 0.0  # virtual time
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

    def reserve(self, tokens: int, caller: Caller = LOCAL) -> Reservation:
        """Takes a request's tokens of the queue, before its rows can be submitted. Raises QueueFull, Stopped, taking none."""
        with self._changed:
            if self._stopping:
                raise Stopped("The server is shutting down.")
            share = self._shares.get(caller.name)
            if self.queued_tokens and self.queued_tokens + tokens > self._max_queue_tokens:
                raise QueueFull(self._retry_after(self.queued_tokens))
            if share is not None and share.tokens and share.tokens + tokens > self._max_caller_tokens:
                raise QueueFull(self._retry_after(self.queued_tokens), "this caller's part of its queue")
            if share is None:
                share = self._shares[caller.name] = _Share(caller.weight)
            share.weight = caller.weight
            share.tokens += tokens
            self.queued_tokens += tokens
            return Reservation(self, share, tokens)

    def submit(self, rows: Rows[Sequence], caller: Caller = LOCAL, reservation: Reservation | None = None) -> Ticket:
        """Queues a request's rows, as part of what was reserved or by themselves; await `ticket.future` for one answer per row.

        Raises Stopped and, without a reservation, QueueFull.
        """
        tokens = sum(row.tokens for row in rows)
        if reservation is None:
            with self.reserve(tokens, caller) as reservation:
                return self.submit(rows, caller, reservation)
        if tokens > reservation.left:
            raise ValueError(f"{tokens} tokens are submitted and {reservation.left} are left of those reserved")
        ticket = Ticket(tuple(rows), asyncio.get_running_loop().create_future(), time.perf_counter(), tokens)
        ticket.outputs = [None] * len(ticket.rows)
        ticket.pending = len(ticket.rows)
        share = reservation._share
        with self._changed:
            if self._stopping:
                raise Stopped("The server is shutting down.")
            reservation.left -= tokens
            if not share.rows:
                heappush(self._next, (max(self._now, share.end), next(self._numbers), share))
            share.rows.extend((ticket, index) for index in range(len(ticket.rows)))
            self._changed.notify()
        ticket.future.add_done_callback(lambda future: self._abandon(ticket, share) if future.cancelled() else None)
        return ticket

    def give_back(self, reservation: Reservation) -> None:
        """Ends a reservation."""
        with self._changed:
            self._free(reservation._share, reservation.left)
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

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._next or self._calls or self._stopping):
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
        """Rows in fair order up to the token budget, at least one; skips tickets nobody waits for."""
        entries: list[_Entry] = []
        budget = self._max_batch_tokens
        while self._next:
            start, _, share = self._next[0]
            ticket, index = share.rows[0]
            tokens = ticket.rows[index].tokens
            gone = ticket.future.cancelled()
            if entries and tokens > budget and not gone:
                break
            heappop(self._next)
            share.rows.popleft()
            if gone:
                self._free(share, ticket.queued)
                ticket.queued = 0
            else:
                self._free(share, tokens)
                ticket.queued -= tokens
                self._now, start = start, start + tokens / share.weight
                share.end = start
                budget -= tokens
                entries.append((ticket, index))
            if share.rows:
                heappush(self._next, (start, next(self._numbers), share))
        return entries

    def _abandon(self, ticket: Ticket, share: _Share) -> None:
        """Gives back what a client that is gone has in the queue; its rows are skipped when their turn comes."""
        with self._changed:
            self._free(share, ticket.queued)
            ticket.queued = 0

    def _free(self, share: _Share, tokens: int) -> None:
        """Gives tokens of the queue back. Once it is empty, nobody owes anything for what was served."""
        share.tokens -= tokens
        self.queued_tokens -= tokens
        if not self.queued_tokens and not self._next:
            self._shares.clear()
            self._now = 0.0

    def _retry_after(self, tokens: int) -> int:
        return max(1, round(tokens / self._tokens_per_second))

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
        for ticket in {id(ticket): ticket for _, _, share in self._next for ticket, _ in share.rows}.values():
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

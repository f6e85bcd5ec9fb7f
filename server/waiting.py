"""Rows that wait for the engine: the queue's budget, whose row is next, and what can no longer be in time. Knows no thread and no engine.

Callers share the engine by weight (start-time fair queuing, Goyal et al. 1996): each row starts in virtual time where its caller's
last one ended, its tokens over its caller's weight take that time, and the row that starts first is next; a caller that comes back
starts at the present. Among one caller's requests the one that is due first is next: a request is due at its deadline, or `PATIENCE`
after it came if that is earlier, so that none is overtaken by what comes later than that (docs/decisions/0014).
"""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from server.core import Caller, Outputs, Sequence
from server.costs import Costs

PATIENCE = 2.0  # seconds
# Seconds for which the cost model is believed after a batch: then a request is let run, so that no estimate refuses for ever.
BELIEVED = 1.0


class QueueFull(Exception):
    """The queue's token budget, or the caller's part of it, is spent; `retry_after` is when it should have drained, in seconds."""

    def __init__(self, retry_after: int, what: str = "its queue") -> None:
        super().__init__(f"The server is busy: {what} is full. Try again in {retry_after} s.")
        self.retry_after = retry_after


class DeadlineExceeded(Exception):
    """A request that is not answered by its deadline. `needed`: the seconds that it would have needed, where it was not even tried."""

    def __init__(self, needed: float | None = None) -> None:
        super().__init__(
            "The request's deadline passed before it was answered: allow it more time."
            if needed is None
            else f"The request cannot be answered by its deadline: with what waits before it, it needs about {math.ceil(needed * 1000)} ms."
        )


@dataclass(slots=True, eq=False)
class Ticket:
    """One request's rows in the queue, and their answers. Times are `time.perf_counter()` seconds; `queued` are tokens that wait.

    next: the first row that was not taken; dropped: the rest will not be.
    """

    rows: tuple[Sequence, ...]
    future: asyncio.Future[list[Outputs]]
    submitted: float
    queued: int = 0
    deadline: float = math.inf
    next: int = 0
    dropped: bool = False
    outputs: list[Any] = field(default_factory=list)
    pending: int = 0
    started: float = 0.0
    finished: float = 0.0
    error: BaseException | None = None

    @property
    def unrun(self) -> int:
        """Tokens of the rows that were not taken."""
        return sum(row.tokens for row in self.rows[self.next :])

    @property
    def due(self) -> float:
        return min(self.deadline, self.submitted + PATIENCE)

    @property
    def queue_seconds(self) -> float:
        return max(0.0, self.started - self.submitted)

    @property
    def run_seconds(self) -> float:
        return max(0.0, self.finished - self.started)


@dataclass(slots=True, eq=False)
class Share:
    """What one caller has in the queue. `tokens` are reserved or waiting; `end` is where its last row ended in virtual time."""

    weight: float
    tickets: list[tuple[float, int, Ticket]] = field(default_factory=list)  # a heap, by when they are due
    tokens: int = 0
    end: float = 0.0


Entry = tuple[Ticket, int]


class Waiting:
    """The queue. Not safe to use from several threads at once. Times are `time.perf_counter()` seconds.

    tokens, rows: what is reserved or waits; `busy` is when the batch that runs should have ended.
    """

    def __init__(self, max_batch_tokens: int, max_tokens: int, max_caller_tokens: int) -> None:
        self.costs = Costs()
        self.tokens = self.rows = 0
        self.busy = 0.0
        self._observed = -math.inf
        self._max_batch_tokens, self._max_tokens, self._max_caller_tokens = max_batch_tokens, max_tokens, max_caller_tokens
        self._shares: dict[str, Share] = {}
        self._next: list[tuple[float, int, Share]] = []  # a heap of those with rows, by where their first row starts
        self._numbers = count()
        self._virtual = 0.0

    def __bool__(self) -> bool:
        """Whether rows wait."""
        return bool(self._next)

    def reserve(self, caller: Caller, tokens: int, rows: int, deadline: float, now: float) -> Share:
        """Takes tokens of the queue. Raises QueueFull and, for what cannot be in time, DeadlineExceeded, taking none."""
        share = self._shares.get(caller.name)
        if self.tokens and self.tokens + tokens > self._max_tokens:
            raise QueueFull(self._retry_after(self.tokens, now))
        if share is not None and share.tokens and share.tokens + tokens > self._max_caller_tokens:
            raise QueueFull(self._retry_after(self._by_then(share, share.tokens), now), "this caller's part of its queue")
        if deadline < math.inf:
            self._admit(share or Share(caller.weight), tokens, rows, deadline, now)
        if share is None:
            share = self._shares[caller.name] = Share(caller.weight)
        share.weight = caller.weight
        share.tokens += tokens
        self.tokens += tokens
        return share

    def add(self, share: Share, ticket: Ticket) -> None:
        """Queues a ticket whose tokens are reserved."""
        if not share.tickets:
            heappush(self._next, (max(self._virtual, share.end), next(self._numbers), share))
        heappush(share.tickets, (ticket.due, next(self._numbers), ticket))
        self.rows += len(ticket.rows)

    def take(self, now: float) -> tuple[list[Entry], list[Ticket]]:
        """The next batch: rows in order up to the token budget, at least one; and the tickets that were dropped as too late.

        Tickets that nobody waits for are dropped too. A batch ends before the row that would make it miss a deadline of its own.
        """
        entries: list[Entry] = []
        late: list[Ticket] = []
        taken, latest = 0, math.inf
        while self._next:
            start, _, share = self._next[0]
            ticket = share.tickets[0][2]
            tokens = ticket.rows[ticket.next].tokens
            gone = ticket.future.cancelled()
            missed = not gone and self._misses(ticket, now)
            if entries and not gone and not missed and not self._fits(taken + tokens, len(entries) + 1, min(latest, ticket.deadline), now):
                break
            heappop(self._next)
            if gone or missed:
                self.drop(share, ticket)
                heappop(share.tickets)
                if missed:
                    late.append(ticket)
            else:
                entries.append((ticket, ticket.next))
                ticket.next += 1
                ticket.queued -= tokens
                if ticket.next == len(ticket.rows):
                    heappop(share.tickets)
                self.rows -= 1
                self._virtual, start = start, start + tokens / share.weight
                share.end = start
                taken, latest = taken + tokens, min(latest, ticket.deadline)
                self.free(share, tokens)
            if share.tickets:
                heappush(self._next, (start, next(self._numbers), share))
        return entries, late

    def drop(self, share: Share, ticket: Ticket) -> None:
        """Gives back what a ticket has in the queue; it is taken out when its turn comes."""
        if not ticket.dropped:
            ticket.dropped = True
            self.rows -= len(ticket.rows) - ticket.next
            self.free(share, ticket.queued)
            ticket.queued = 0

    def free(self, share: Share, tokens: int) -> None:
        """Gives tokens of the queue back. Once it is empty, nobody owes anything for what was served."""
        share.tokens -= tokens
        self.tokens -= tokens
        if not self.tokens and not self._next:
            self._shares.clear()
            self._virtual = 0.0

    def tickets(self) -> Iterable[Ticket]:
        """All that wait."""
        return (ticket for _, _, share in self._next for _, _, ticket in share.tickets)

    def begin(self, tokens: int, rows: int, now: float) -> None:
        """A batch begins to run."""
        self.busy = now + self.costs.seconds(tokens, rows)

    def observe(self, tokens: int, rows: int, seconds: float, now: float) -> None:
        """A batch has run."""
        self.costs.observe(tokens, rows, seconds)
        self._observed, self.busy = now, 0.0

    # What is foretold

    def seconds(self, tokens: int, rows: int) -> float:
        """What so much work takes, in batches as full as they may be."""
        return self.costs.seconds(tokens, rows, max(1, -(-tokens // self._max_batch_tokens)))

    def _admit(self, share: Share, tokens: int, rows: int, deadline: float, now: float) -> None:
        """Raises DeadlineExceeded for what surely cannot be in time."""
        if now >= deadline:
            raise DeadlineExceeded
        if now - self._observed < BELIEVED:
            due = min(deadline, now + PATIENCE)
            work = self._by_then(share, tokens + sum(ticket.queued for at, _, ticket in share.tickets if at <= due))
            among = self.rows * (work - tokens) / max(self.tokens, 1)
            needed = max(0.0, self.busy - now) + self.seconds(work, rows + round(among))
            if now + needed > deadline:
                raise DeadlineExceeded(needed)

    def _by_then(self, share: Share, tokens: int) -> int:
        """Tokens that run until so many of a caller's have: the others' run beside them, by weight, as far as there are any."""
        others = [one for _, _, one in self._next if one is not share]
        weights, waiting = sum(one.weight for one in others), sum(one.tokens for one in others)
        return tokens + min(waiting, round(tokens * weights / share.weight))

    def _misses(self, ticket: Ticket, now: float) -> bool:
        """Whether a ticket's rows that wait cannot be in time, even if they run now."""
        if ticket.deadline == math.inf:
            return False
        needed = self.seconds(ticket.queued, len(ticket.rows) - ticket.next) if now - self._observed < BELIEVED else 0.0
        return now >= ticket.deadline or now + needed > ticket.deadline

    def _fits(self, tokens: int, rows: int, deadline: float, now: float) -> bool:
        """Whether a batch may have so many tokens and rows."""
        return tokens <= self._max_batch_tokens and (deadline == math.inf or now + self.costs.seconds(tokens, rows) <= deadline)

    def _retry_after(self, tokens: int, now: float) -> int:
        """Whole seconds until so much of the queue should have drained, at least 1."""
        rows = round(self.rows * tokens / max(self.tokens, 1))
        return max(1, math.ceil(max(0.0, self.busy - now) + self.seconds(tokens, rows)))

"""The load generator: `python -m benchmarks.load` reads one plan from standard input, loads a server, writes one result.

It is a process of its own, so that its CPU is not counted as the server's, and a light one, as it shares the cores with the server: request
bytes are made before, answers are cut by httptools on a plain asyncio.Protocol over uvloop, and looked into only after the measurement.

Closed loop: `concurrency` requests are under way at any time, each followed at once by the next. Open loop: requests fall due by a
schedule (Poisson or evenly spaced, by seed), whether the ones before are answered or not, and their latency counts from when they were
due, so that a server that stalls is charged with everything that it kept waiting (no coordinated omission). What is due while all
connections are taken waits in a backlog here, with its clock running. What has no answer `grace` seconds after the last was due is
unfinished, and enters the percentiles with the time that it has waited so far.

Every answer is checked: its status, and its numbers against what the plan says is right. Measured are requests that were due (closed:
answered) after the warm-up.
"""

import argparse
import asyncio
import gc
import resource
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections import deque
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import orjson
import uvloop

from benchmarks.processes import cpu_seconds

ROOT = Path(__file__).parents[1]
SHARES = (50, 90, 99)
LONGEST = 8  # times as long as planned, a closed loop is measured until every client had an answer
clock = time.perf_counter  # the loop's own is in whole milliseconds


@dataclass(frozen=True, slots=True)
class Request:
    """One request as bytes, for the server at `target` (host, port), and the numbers that are its right answer (None: any)."""

    data: bytes
    target: tuple[str, int]
    right: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A load. `requests` are sent in turn, over and over. Either `concurrency` (closed) or `rate` a second (open).

    path: where an answer's JSON holds its numbers, keys and places, outermost first; tolerance: how far they may be off. pids: whose
    process trees' CPU is the server's. seconds are measured after `warm_up` seconds; in a closed loop more (up to `LONGEST` times), if
    fewer answers than clients have come by then.
    """

    requests: tuple[Request, ...]
    path: tuple[str | int, ...] = ()
    tolerance: float = 1e-4
    concurrency: int = 0
    rate: float = 0.0
    arrivals: str = "poisson"
    seconds: float = 5.0
    warm_up: float = 1.0
    grace: float = 10.0
    connections: int = 256
    seed: int = 0
    pids: tuple[int, ...] = ()


@dataclass(slots=True)
class Result:
    """What came of a load. Latencies in ms; CPU in seconds of the measured time; `per_second` answers, right ones only."""

    per_second: float
    answered: int
    errors: dict[str, int]
    latency: dict[str, float]
    server_cpu: float
    server_cpu_per_request: float
    client_cpu: float
    client_cpu_per_request: float
    seconds: float
    rate: float = 0.0
    connections: int = 0
    backlog: int = 0  # the most that waited for a connection
    unfinished: int = 0
    late_ms: float = 0.0  # the 99th percentile of how late the generator itself sent what was due and had a connection


def due_times(plan: Plan) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Seconds from the start at which requests fall due, over warm-up and measurement."""
    span = plan.warm_up + plan.seconds
    if plan.arrivals == "even":
        return np.arange(0.0, span, 1 / plan.rate)
    count = int(plan.rate * span + 10 * np.sqrt(plan.rate * span) + 10)
    times = np.cumsum(np.random.default_rng(plan.seed).exponential(1 / plan.rate, count))
    return times[times < span]


@dataclass(slots=True)
class Record:
    """One request that was sent or fell due: which, when it was due (closed: sent), when answered; seconds of `clock`."""

    request: int
    due: float
    done: float = 0.0
    status: int = 0
    body: bytes = b""


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request under way at most."""

    def __init__(self, load: "Load", target: tuple[str, int]) -> None:
        self._load, self.target = load, target
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._record: Record | None = None
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, record: Record, data: bytes) -> None:
        """Sends a request; its answer goes to the load."""
        self._record = record
        assert self._transport is not None
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        record.status = self._parser.get_status_code()
        record.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if self._parser.should_keep_alive():
            self._load.answered(record, self)
        else:
            self.close()
            self._load.answered(record, None)

    def connection_lost(self, error: Exception | None) -> None:
        record, self._record = self._record, None
        self._load.lost(record, self)

    def close(self) -> None:
        """Ends the connection; what is under way on it is lost."""
        if self._transport is not None:
            self._transport.abort()


@dataclass(slots=True)
class Load:
    """A load under way."""

    plan: Plan
    loop: asyncio.AbstractEventLoop
    records: list[Record] = field(default_factory=list)
    stopped: bool = False
    _idle: dict[tuple[str, int], list[Connection]] = field(default_factory=dict)
    _open: int = 0
    _most_open: int = 0
    _under_way: int = 0
    _backlog: deque[Record] = field(default_factory=deque)
    _most_waiting: int = 0
    _late: list[float] = field(default_factory=list)
    _next: int = 0
    _answers: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def due(self, due: float) -> None:
        """A request falls due: sent on a free connection, or on a new one, or kept in the backlog."""
        record = Record(self._next % len(self.plan.requests), due)
        self._next += 1
        self.records.append(record)
        if not self._sent(record):
            self._backlog.append(record)
            self._most_waiting = max(self._most_waiting, len(self._backlog))

    def _sent(self, record: Record) -> bool:
        request = self.plan.requests[record.request]
        idle = self._idle.get(request.target)
        if idle:
            self._under_way += 1
            if self.plan.rate:
                self._late.append(clock() - record.due)
            idle.pop().send(record, request.data)
        elif self._open < self.plan.connections:
            self._under_way += 1
            self._open += 1
            self._most_open = max(self._most_open, self._open)
            task = self.loop.create_task(self._connected(record, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            return False
        return True

    async def _connected(self, record: Record, request: Request) -> None:
        try:
            _, connection = await self.loop.create_connection(lambda: Connection(self, request.target), *request.target)
        except OSError:
            await asyncio.sleep(0.01)  # or a closed loop would spin
            self.lost(record, None)
        else:
            connection.send(record, request.data)

    def answered(self, record: Record, connection: Connection | None) -> None:
        """An answer has come; `connection` is free for the next, if it lives on."""
        record.done = clock()
        self._under_way -= 1
        self._answers += 1
        if connection is not None:
            self._idle.setdefault(connection.target, []).append(connection)
        self._follow(record.done)

    def lost(self, record: Record | None, connection: Connection | None) -> None:
        """A connection has ended, or was refused, with a request on it or without."""
        self._open -= 1
        if connection is not None and connection in self._idle.get(connection.target, ()):
            self._idle[connection.target].remove(connection)
        if record is not None:
            record.done = clock()
            self._under_way -= 1
            self._follow(record.done)

    def _follow(self, now: float) -> None:
        if self.stopped:
            return
        if not self.plan.rate:
            self.due(now)
        while self._backlog and self._sent(self._backlog[0]):
            self._backlog.popleft()

    async def closed(self) -> tuple[float, float]:
        """Runs a closed loop; returns when the measured time began and ended."""
        for _ in range(self.plan.concurrency):
            self.due(clock())
        return await self._measured()

    async def open(self) -> tuple[float, float]:
        """Runs an open loop. Arrivals are a timer each, and never wait for answers."""
        times = due_times(self.plan)
        began = clock()
        arrivals = iter(times + began)

        def arrive(due: float) -> None:
            now = clock()
            while due <= now:
                self.due(due)
                following = next(arrivals, None)
                if following is None:
                    return
                due = float(following)
            self.loop.call_later(due - now, arrive, due)

        first = next(arrivals, None)
        if first is not None:
            self.loop.call_later(float(first) - clock(), arrive, float(first))
        return await self._measured()

    async def _measured(self) -> tuple[float, float]:
        await asyncio.sleep(self.plan.warm_up)
        begun, self._usage, self._answers = clock(), self._used(), 0
        await asyncio.sleep(self.plan.seconds)
        longest = begun + LONGEST * self.plan.seconds
        while not self.plan.rate and self._answers < self.plan.concurrency and clock() < longest:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        ended, self._usage = clock(), [after - before for before, after in zip(self._usage, self._used(), strict=True)]
        until = ended + self.plan.grace
        if not self.plan.rate:
            self.stopped = True
        while (self._under_way or self._backlog) and clock() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self.stopped = True
        return begun, ended

    _usage: list[float] = field(default_factory=list)

    def _used(self) -> list[float]:
        """CPU seconds of the server's tree and of this process."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        return [sum(map(cpu_seconds, self.plan.pids)), own.ru_utime + own.ru_stime]

    def result(self, begun: float, ended: float) -> Result:
        """The figures of the measured time, every answer checked."""
        plan, now = self.plan, clock()
        seconds = ended - begun
        if plan.rate:
            counted = [record for record in self.records if begun <= record.due < ended]
        else:
            counted = [record for record in self.records if begun <= record.done < ended]
        latencies = [((record.done or now) - record.due) * 1000 for record in counted]
        unfinished = sum(not record.done for record in counted)
        errors: dict[str, int] = {}
        for record in self.records:  # those of the warm-up too
            if record.done and (fault := self._fault(record)):
                errors[fault] = errors.get(fault, 0) + 1
        answers = sum(begun <= record.done < ended for record in self.records)
        answered = sum(record.status == 200 for record in counted)
        server, own = self._usage
        return Result(
            per_second=answers / seconds,
            answered=answered,
            errors=errors,
            latency={f"p{share}": float(np.percentile(latencies, share)) for share in SHARES} if latencies else {},
            server_cpu=server,
            server_cpu_per_request=server / max(answers, 1),
            client_cpu=own,
            client_cpu_per_request=own / max(answers, 1),
            seconds=seconds,
            rate=plan.rate,
            connections=self._most_open,
            backlog=self._most_waiting,
            unfinished=unfinished,
            late_ms=float(np.percentile(self._late, 99)) * 1000 if self._late else 0.0,
        )

    def _fault(self, record: Record) -> str | None:
        if record.status != 200:
            return f"status {record.status}" if record.status else "no answer"
        right = self.plan.requests[record.request].right
        if right is None:
            return None
        try:
            found = orjson.loads(record.body)
            for step in self.plan.path:
                found = found[step]
            numbers = np.asarray(found, dtype=np.float64)
        except (ValueError, LookupError, TypeError):
            return "unreadable answer"
        wanted = np.asarray(right)
        if numbers.shape != wanted.shape or not np.abs(numbers - wanted).max() <= self.plan.tolerance:
            return "wrong answer"
        return None


async def run(plan: Plan) -> Result:
    """Loads a server as planned, in this process."""
    load = Load(plan, asyncio.get_running_loop())
    begun, ended = await (load.open() if plan.rate else load.closed())
    return load.result(begun, ended)


def apart(plan: Plan) -> Result:
    """Loads a server as planned, in a process of its own. Raises subprocess.CalledProcessError."""
    asked = asdict(plan) | {
        "requests": [(b64encode(one.data).decode(), one.target, one.right) for one in plan.requests],
    }
    command = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(command, input=orjson.dumps(asked), stdout=subprocess.PIPE, check=True, cwd=ROOT)
    return Result(**orjson.loads(done.stdout))


def planned(text: bytes) -> Plan:
    """A plan as `apart` writes it."""
    asked = orjson.loads(text)
    asked["requests"] = tuple(
        Request(b64decode(data), (host, port), None if right is None else tuple(right)) for data, (host, port), right in asked["requests"]
    )
    return Plan(**asked | {"path": tuple(asked["path"]), "pids": tuple(asked["pids"])})


def post(target: tuple[str, int], path: str, content: object) -> bytes:
    """The bytes of a POST of JSON."""
    body = orjson.dumps(content)
    host, port = target
    head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def main() -> None:
    """Reads a plan, writes a result, both JSON."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    plan = planned(sys.stdin.buffer.read())
    gc.disable()  # a run is short and makes no cycles worth a pause
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(partial(run, plan)())
    sys.stdout.buffer.write(orjson.dumps(asdict(result)))


if __name__ == "__main__":
    main()

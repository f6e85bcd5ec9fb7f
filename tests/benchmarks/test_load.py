"""The load generator, against small servers on the loopback."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks import load
from benchmarks.load import Plan, Request, Result, post
from benchmarks.processes import cpu_seconds, memory_bytes, tree

Target = tuple[str, int]
Reply = Callable[[int], tuple[int, Any]]


class Small:
    """An HTTP server of a few lines: answers POSTs by number, one after the other as they come, on connections that stay open."""

    def __init__(self, reply: Reply, seconds: Callable[[int], float] = lambda number: 0.0, close: bool = False) -> None:
        self.reply, self.seconds, self.close = reply, seconds, close
        self.requests = self.connections = 0
        self.target: Target = ("127.0.0.1", 0)
        self._one = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                number, self.requests = self.requests, self.requests + 1
                async with self._one:
                    await asyncio.sleep(self.seconds(number))
                status, content = self.reply(number)
                body = orjson.dumps(content)
                ending = b"connection: close\r\n" if self.close else b""
                writer.write(b"HTTP/1.1 %d OK\r\n%scontent-length: %d\r\n\r\n%s" % (status, ending, len(body), body))
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> Any:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.target = server.sockets[0].getsockname()[:2]
        try:
            yield self
        finally:
            server.close()


def right(number: int) -> tuple[int, Any]:
    return 200, {"data": [{"numbers": [1.0, 2.0]}]}


def requests(target: Target, answer: tuple[float, ...] | None = (1.0, 2.0)) -> tuple[Request, ...]:
    return tuple(Request(post(target, f"/{number}", {"n": number}), target, answer) for number in range(3))


async def loaded(small: Small, answer: tuple[float, ...] | None = (1.0, 2.0), **plan: Any) -> Result:
    async with small.running():
        settings = {"seconds": 0.4, "warm_up": 0.1, "path": ("data", 0, "numbers")} | plan
        result = await load.run(Plan(requests(small.target, answer), **settings))
        await asyncio.sleep(0.01)
        return result


def test_closed_loop_counts_and_keeps_connections() -> None:
    small = Small(right, seconds=lambda number: 0.002)
    result = asyncio.run(loaded(small, concurrency=4))
    assert result.errors == {}
    assert small.connections == result.connections == 4
    assert 0 < result.answered < small.requests  # the warm-up is not counted
    assert result.per_second == pytest.approx(result.answered / result.seconds)
    assert result.per_second < 1 / 0.002
    # Four clients wait for each other's two milliseconds.
    assert result.latency["p50"] > 7
    assert result.latency["p50"] <= result.latency["p90"] <= result.latency["p99"]


def test_wrong_answers_and_statuses_are_counted() -> None:
    def reply(number: int) -> tuple[int, Any]:
        return [
            right(0),
            (503, {}),
            (200, {"data": [{"numbers": [1.0, 2.1]}]}),
            (200, {"data": []}),
            (200, {"data": [{"numbers": [1.0]}]}),
        ][number % 5]

    small = Small(reply, seconds=lambda number: 0.001)
    result = asyncio.run(loaded(small, concurrency=1))
    assert set(result.errors) == {"status 503", "wrong answer", "unreadable answer"}
    fifth = small.requests / 5
    assert result.errors["status 503"] == pytest.approx(fifth, abs=1)
    assert result.errors["unreadable answer"] == pytest.approx(fifth, abs=1)
    assert result.errors["wrong answer"] == pytest.approx(2 * fifth, abs=2)


def test_not_a_number_is_wrong() -> None:
    small = Small(lambda number: (200, {"data": [{"numbers": [None, 2.0]}]}), seconds=lambda number: 0.001)
    result = asyncio.run(loaded(small, concurrency=1))
    assert sum(result.errors.values()) == small.requests


def test_a_server_that_is_not_there_is_counted() -> None:
    async def run() -> Result:
        small = Small(right)
        async with small.running():
            pass
        return await load.run(Plan(requests(small.target), concurrency=2, seconds=0.2, warm_up=0.0))

    result = asyncio.run(run())
    assert result.answered == 0
    assert result.errors["no answer"] > 2


def test_connections_that_the_server_ends_are_opened_anew() -> None:
    small = Small(right, seconds=lambda number: 0.002, close=True)
    result = asyncio.run(loaded(small, concurrency=2))
    assert result.errors == {}
    assert small.connections == small.requests > 20


def test_arrivals_follow_their_rate_and_seed() -> None:
    plan = Plan((), rate=200, seconds=20, warm_up=5, seed=3)
    times = load.due_times(plan)
    assert len(times) == pytest.approx(200 * 25, rel=0.05)
    assert times[-1] < 25
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as exponential ones have it
    assert np.array_equal(times, load.due_times(plan))
    assert not np.array_equal(times[:10], load.due_times(Plan((), rate=200, seconds=20, warm_up=5, seed=4))[:10])
    assert np.diff(load.due_times(Plan((), rate=100, arrivals="even", seconds=1, warm_up=0))) == pytest.approx(0.01)


def test_an_open_loop_charges_a_stall_with_all_that_it_kept_waiting() -> None:
    """Half a second of standstill in a second and a half: of requests at an even rate, a third fell due during it."""
    small = Small(right, seconds=lambda number: 0.5 if number == 40 else 0.0)
    plan = {"rate": 100.0, "arrivals": "even", "seconds": 1.5, "warm_up": 0.1}
    result = asyncio.run(loaded(small, **plan))
    assert result.errors == {}
    assert result.unfinished == 0
    assert result.answered == pytest.approx(150, abs=2)
    assert result.latency["p99"] > 400
    assert result.latency["p90"] > 250
    assert result.latency["p50"] < 100


def test_a_closed_loop_hides_the_same_stall() -> None:
    """Which is why there is an open loop."""
    small = Small(right, seconds=lambda number: 0.5 if number == 40 else 0.002)
    result = asyncio.run(loaded(small, concurrency=1, seconds=1.5))
    assert result.latency["p99"] < 100


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """What a server of 20 a second leaves of 200 waits in the backlog, is unfinished, and is in the percentiles all the same."""
    small = Small(right, seconds=lambda number: 0.05)
    result = asyncio.run(loaded(small, rate=200.0, arrivals="even", seconds=0.5, warm_up=0.0, grace=0.2, connections=8))
    assert result.connections == 8
    assert result.backlog > 50
    assert result.unfinished > 50
    assert result.answered + result.unfinished == pytest.approx(100, abs=1)
    assert result.latency["p90"] > 400


def test_apart_is_the_same_in_a_process_of_its_own() -> None:
    async def run() -> tuple[Small, Result]:
        small = Small(right, seconds=lambda number: 0.001)
        async with small.running():
            plan = Plan(requests(small.target), ("data", 0, "numbers"), concurrency=2, seconds=0.5, warm_up=0.1, pids=(os.getpid(),))
            return small, await asyncio.to_thread(load.apart, plan)

    small, result = asyncio.run(run())
    assert result.errors == {}
    assert 0 < result.answered < small.requests
    assert result.client_cpu > 0
    assert result.server_cpu > 0


def test_the_cpu_of_a_tree_holds_the_children_living_and_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    child = f"import sys, subprocess, time\nsubprocess.run([sys.executable, '-c', {burn!r}])\nprint(flush=True)\ntime.sleep(60)"
    parent = f"import sys, subprocess\nsubprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            found = tree(process.pid)
            assert len(found) == 2
            assert cpu_seconds(process.pid) >= 0.3
            assert memory_bytes(process.pid) > memory_bytes(found[1]) > 1 << 20
            before = cpu_seconds(process.pid)
            time.sleep(0.1)
            assert cpu_seconds(process.pid) - before < 0.05
        finally:
            for pid in reversed(found):
                os.kill(pid, 9)
    assert cpu_seconds(process.pid) == 0

"""Residency by itself: one load for all who want it, eviction of what nobody uses, and nothing left of what failed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.residency import Residency


class Device:
    """Loads and unloads by name; checks that nothing is loaded twice or unloaded while used."""

    def __init__(self, budget: int) -> None:
        self.there: dict[str, int] = {}
        self.loads: list[str] = []
        self.gate: asyncio.Event | None = None
        self.broken: set[str] = set()
        self.residency = Residency(self.load, self.unload, budget)

    async def load(self, digest: str) -> int:
        self.loads.append(digest)
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        if digest in self.broken:
            raise OSError(f"{digest} is broken")
        assert digest not in self.there
        self.there[digest] = 10 * len(digest)
        return self.there[digest]

    async def unload(self, digest: str) -> None:
        del self.there[digest]
        await asyncio.sleep(0)


def drive(body: Callable[[Device], Awaitable[Any]], budget: int = 1000) -> None:
    async def within_time() -> None:
        await asyncio.wait_for(body(Device(budget)), 20)

    asyncio.run(within_time())


def consistent(device: Device) -> bool:
    return device.residency.bytes == sum(device.there.values()) and len(device.residency) == len(device.there)


def test_one_load_for_all_who_want_it() -> None:
    async def body(device: Device) -> None:
        device.gate = asyncio.Event()
        wanting = [asyncio.ensure_future(device.residency.acquire(["a", "b"])) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert "a" not in device.residency
        device.gate.set()
        assert await asyncio.gather(*wanting) == [("a", "b")] * 5
        assert device.loads == ["a", "b"]
        assert "a" in device.residency
        assert (len(device.residency), device.residency.bytes) == (2, 20)

    drive(body)


def test_the_least_recently_used_goes_first() -> None:
    async def body(device: Device) -> None:
        for digest in "abc":
            device.residency.release(await device.residency.acquire([digest]))
        device.residency.release(await device.residency.acquire(["a"]))
        device.residency.release(await device.residency.acquire(["d"]))
        assert set(device.there) == {"a", "c", "d"}
        device.residency.release(await device.residency.acquire(["ef"]))
        assert set(device.there) == {"d", "ef"}, "bytes are counted, not packages"
        assert consistent(device)

    drive(body, budget=30)


def test_what_is_used_is_never_evicted() -> None:
    async def body(device: Device) -> None:
        held = await device.residency.acquire(["a", "b", "c"])
        assert set(device.there) == set("abc"), "the budget gives way to those in use"
        more = await device.residency.acquire(["d"])
        assert set(device.there) == set("abcd")
        device.residency.release(held)
        device.residency.release(more)
        device.residency.release(await device.residency.acquire(["e"]))
        assert device.residency.bytes <= 20
        assert consistent(device)

    drive(body, budget=20)


def test_a_failed_load_leaves_nothing() -> None:
    async def body(device: Device) -> None:
        device.broken = {"bad"}
        for _ in range(2):
            with pytest.raises(OSError, match="bad is broken"):
                await device.residency.acquire(["good", "bad"])
        assert len(device.residency) == 1
        assert "bad" not in device.residency
        assert device.loads == ["good", "bad", "bad"], "the next request tries again"
        device.broken = set()
        device.residency.release(await device.residency.acquire(["bad"]))
        assert "bad" in device.residency
        await device.residency.drop("good")
        await device.residency.drop("bad")
        assert (len(device.residency), device.residency.bytes) == (0, 0)

    drive(body)


def test_all_who_wait_for_a_failing_load_hear_of_it() -> None:
    async def body(device: Device) -> None:
        device.broken, device.gate = {"bad"}, asyncio.Event()
        wanting = [asyncio.ensure_future(device.residency.acquire(["bad"])) for _ in range(3)]
        await asyncio.sleep(0.01)
        device.gate.set()
        answers = await asyncio.gather(*wanting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [OSError] * 3
        assert len(device.residency) == 0

    drive(body)


def test_a_client_that_leaves_does_not_stop_the_load_for_others() -> None:
    async def body(device: Device) -> None:
        device.gate = asyncio.Event()
        leaving, staying = (asyncio.ensure_future(device.residency.acquire(["a"])) for _ in range(2))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.sleep(0.01)
        device.gate.set()
        device.residency.release(await staying)
        assert device.loads == ["a"]
        await device.residency.drop("a")
        assert consistent(device)

    drive(body)


def test_when_all_leave_the_package_stays_and_can_be_dropped() -> None:
    async def body(device: Device) -> None:
        device.gate = asyncio.Event()
        leaving = asyncio.ensure_future(device.residency.acquire(["a"]))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.sleep(0.01)
        dropping = asyncio.ensure_future(device.residency.drop("a"))
        await asyncio.sleep(0.01)
        device.gate.set()
        await dropping
        await asyncio.sleep(0.01)
        assert consistent(device)
        device.residency.release(await device.residency.acquire(["a"]))
        assert consistent(device)

    drive(body)


def test_when_all_leave_a_failing_load_it_is_tried_again() -> None:
    async def body(device: Device) -> None:
        device.gate, device.broken = asyncio.Event(), {"a"}
        leaving = asyncio.ensure_future(device.residency.acquire(["a"]))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.sleep(0.01)
        device.gate.set()
        await asyncio.sleep(0.01)
        device.broken = set()
        device.residency.release(await device.residency.acquire(["a"]))
        assert consistent(device)

    drive(body)


def test_drop_waits_for_users() -> None:
    async def body(device: Device) -> None:
        held = [await device.residency.acquire(["a"]) for _ in range(2)]
        dropping = asyncio.ensure_future(device.residency.drop("a"))
        for digests in held:
            await asyncio.sleep(0.01)
            assert not dropping.done()
            assert "a" in device.there
            device.residency.release(digests)
        await dropping
        assert device.there == {}
        assert consistent(device)
        await device.residency.drop("never-there")

    drive(body)


@pytest.mark.parametrize("seed", range(10))
def test_any_traffic_ends_consistent(seed: int) -> None:
    """Requests, hang-ups, failing loads and drops at random: what is used is there, and at the end all adds up."""

    async def body(device: Device) -> None:
        chance = random.Random(seed)
        device.broken = {"bad"}

        async def request() -> None:
            wanted = chance.sample(["a", "b", "cc", "ddd", "bad"], chance.randrange(1, 4))
            held = await device.residency.acquire(wanted)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                    assert all(digest in device.there for digest in wanted)
            finally:
                device.residency.release(held)

        tasks: list[asyncio.Future[None]] = []
        for _ in range(150):
            kind = chance.random()
            tasks.append(asyncio.ensure_future(device.residency.drop(chance.choice("ab")) if kind < 0.1 else request()))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if kind > 0.8:
                chance.choice(tasks).cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        unexpected = [end for end in ended if isinstance(end, BaseException) and not isinstance(end, OSError | asyncio.CancelledError)]
        assert unexpected == []
        assert consistent(device)
        held = await device.residency.acquire(["new"])
        assert device.residency.bytes <= 40, "what was over the budget goes with the next load"
        device.residency.release(held)

    drive(body, budget=40)

"""Residency by itself: packages on their way between host and device, leases and drops, pins, and what a cold request is told."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.loading import Loader
from server.residency import Cold, Residency
from server.tiers import LoadFailed, TooBig, Watch

HOST = 2  # a package takes twice its size on the host


class House:
    """The store, the loader's two threads and the device, all on the loop. "a3" takes 6 on the host and 3 on the device."""

    def __init__(self, host: int, device: int, **options: Any) -> None:
        self.disk: set[str] = set()
        self.broken: set[str] = set()
        self.reads: list[str] = []
        self.forgotten: list[str] = []
        self.on_device: dict[str, int] = {}
        self.hops: list[list[str]] = []
        self.read_gate, self.engine_gate = asyncio.Event(), asyncio.Event()
        self.read_gate.set()
        self.engine_gate.set()
        self.steps: list[tuple[str, str, asyncio.Future[Any]]] = []
        self.thread: asyncio.Task[None] | None = None
        self.waits: list[str] = []
        watch = Watch(waited=lambda seconds, outcome: self.waits.append(outcome))
        self.budgets = host, device
        self.residency = Residency(self, host, device, watch=watch, **options)

    async def measure(self, digest: str) -> tuple[int, int]:
        await asyncio.sleep(0)
        return HOST * size(digest), size(digest)

    async def read(self, digest: str) -> tuple[str, int]:
        self.reads.append(digest)
        await self.read_gate.wait()
        await asyncio.sleep(0)
        if digest in self.broken:
            raise OSError(f"{digest} is broken")
        return f"package {digest}", HOST * size(digest)

    async def load(self, digest: str, package: str) -> int:
        assert package == f"package {digest}"
        await self._step("load", digest)
        return size(digest)

    def unload(self, digest: str) -> Awaitable[Any]:
        return self._step("unload", digest)

    async def settled(self) -> None:
        await self._step("settled", "")

    async def forget(self, digest: str) -> None:
        assert digest not in self.on_device, "the device is freed before the disk"
        self.forgotten.append(digest)

    async def close(self) -> None:
        pass

    def _step(self, kind: str, digest: str) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.steps.append((kind, digest, future))
        if self.thread is None:
            self.thread = asyncio.ensure_future(self._engine())
        return future

    async def _engine(self) -> None:
        """One step after the other, in their order."""
        while self.steps:
            await self.engine_gate.wait()
            await asyncio.sleep(0)
            kind, digest, future = self.steps.pop(0)
            if kind == "load":
                assert digest not in self.on_device
                self.on_device[digest] = size(digest)
            elif kind == "unload":
                del self.on_device[digest]
            self.check()
            if not future.done():
                future.set_result(None)
        self.thread = None

    def check(self) -> None:
        assert sum(self.on_device.values()) <= self.budgets[1]
        occupied = self.residency.occupied()
        assert occupied["host"].bytes <= self.budgets[0]
        assert occupied["device"].bytes <= self.budgets[1]

    async def use(self, *digests: str, cold: Any = "wait") -> None:
        held = await self.residency.acquire(digests, cold)
        assert set(digests) <= set(self.on_device)
        self.residency.release(held)


def size(digest: str) -> int:
    return int(digest[1:])


def drive(body: Callable[[House], Awaitable[Any]], host: int = 100, device: int = 10, **options: Any) -> None:
    async def within_time() -> None:
        house = House(host, device, **options)
        await asyncio.wait_for(body(house), 20)
        house.check()
        await house.residency.close()

    asyncio.run(within_time())


def started(work: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(work)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_from_the_disk_to_the_host_to_the_device() -> None:
    async def body(house: House) -> None:
        residency = house.residency
        assert residency.resident("a3") == {"device": False, "host": False, "pinned": False}
        residency.prefetch(["a3"])
        await turns()
        assert residency.resident("a3") == {"device": False, "host": True, "pinned": False}
        await house.use("a3", "b2")
        assert residency.resident("a3") == {"device": True, "host": True, "pinned": False}
        assert (residency.bytes, len(residency), "a3" in residency) == (5, 2, True)
        assert residency.occupied()["host"][:2] == (10, 2)
        assert house.reads == ["a3", "b2"], "what was fetched in advance is not read again"
        residency.prefetch(["a3", "b2"])
        await turns()
        assert house.reads == ["a3", "b2"]

    drive(body)


def test_evicted_from_the_device_it_comes_back_from_the_host() -> None:
    async def body(house: House) -> None:
        for digest in ("a6", "b6", "a6"):
            await house.use(digest)
        assert house.reads == ["a6", "b6"]
        assert house.on_device == {"a6": 6}

    drive(body)


def test_the_host_gives_up_what_the_device_has_first() -> None:
    async def body(house: House) -> None:
        house.residency.prefetch(["w2"])
        await turns()
        await house.use("a3")
        house.residency.prefetch(["b3"])
        await turns()
        assert house.residency.resident("w2")["host"], "it waits for its turn"
        assert house.residency.resident("a3") == {"device": True, "host": False, "pinned": False}

    drive(body, host=10)


def test_memory_that_is_shared_goes_back_to_the_host() -> None:
    async def body(house: House) -> None:
        await house.use("a6")
        house.residency.prefetch(["b4", "c1"])
        await turns()
        assert not house.residency.resident("a6")["host"]
        await house.use("b4")
        await house.use("c1")
        assert house.residency.resident("a6") == {"device": False, "host": True, "pinned": False}
        await house.use("a6")
        assert house.reads == ["a6", "b4", "c1"]

    drive(body, host=14, shared=True)


def test_nothing_is_evicted_for_what_is_still_being_read() -> None:
    async def body(house: House) -> None:
        await house.use("a10")
        house.read_gate.clear()
        cold = started(house.use("b10"))
        await turns()
        assert house.reads == ["a10", "b10"]
        await house.use("a10")
        house.read_gate.set()
        await cold
        assert house.on_device == {"b10": 10}

    drive(body)


def test_a_package_that_is_larger_than_the_host_allows() -> None:
    async def body(house: House) -> None:
        with pytest.raises(LoadFailed) as caught:
            await house.use("a6")
        assert isinstance(caught.value.__cause__, TooBig)
        assert "--host-memory" in str(caught.value.__cause__)
        await house.use("b5", "c5")

    drive(body, host=10)


def test_what_can_never_fit_is_refused_before_it_is_read() -> None:
    async def body(house: House) -> None:
        with pytest.raises(TooBig, match="--device-memory"):
            await house.use("a6", "b6")
        assert house.reads == []

    drive(body)


def test_a_failed_read_says_which() -> None:
    async def body(house: House) -> None:
        house.broken = {"x3"}
        for _ in range(2):
            with pytest.raises(LoadFailed) as caught:
                await house.use("a3", "x3")
            assert caught.value.digest == "x3"
            assert isinstance(caught.value.__cause__, OSError)
        house.residency.prefetch(["x3"])
        await turns()
        house.broken = set()
        await house.use("a3", "x3")

    drive(body)


def test_a_cold_one_may_be_refused_and_finds_it_when_it_comes_again() -> None:
    async def body(house: House) -> None:
        house.read_gate.clear()
        for _ in range(3):
            with pytest.raises(Cold) as caught:
                await house.use("a3", cold="refuse")
            assert (caught.value.digests, caught.value.retry_after) == (("a3",), 1)
            assert "Try again in 1 s." in str(caught.value)
        house.read_gate.set()
        await turns(40)
        await house.use("a3", cold="refuse")
        assert house.reads == ["a3"]
        with pytest.raises(Cold) as caught:
            await house.use("a3", "b3", cold="refuse")
        assert caught.value.digests == ("b3",)
        assert house.waits.count("refused") == 4

    drive(body)


def test_who_waited_for_too_long_is_told_to_come_again() -> None:
    async def body(house: House) -> None:
        busy = await house.residency.acquire(["a10"])
        with pytest.raises(Cold) as caught:
            await house.use("b3")
        assert caught.value.digests == ("b3",)
        assert caught.value.retry_after >= 1
        assert house.waits == ["ok", "timeout"]
        house.residency.release(busy)
        await house.use("b3")

    drive(body, load_timeout=0.05)


def test_pins() -> None:
    async def body(house: House) -> None:
        await house.residency.pin(["a3"])
        assert house.residency.resident("a3") == {"device": True, "host": True, "pinned": True}
        for digest in ("b4", "c7", "d7"):
            await house.use(digest)
        assert set(house.on_device) == {"a3", "d7"}
        with pytest.raises(TooBig):
            await house.residency.pin(["e8"])
        house.residency.unpin(["a3", "never-there"])
        await house.use("e8")
        assert set(house.on_device) == {"e8"}
        await house.residency.load(["a2"])
        assert not house.residency.resident("a2")["pinned"]
        held = await house.residency.acquire(["a2"])
        house.residency.unload(["a2", "e8"])
        await turns()
        assert set(house.on_device) == {"a2"}, "it is used"
        house.residency.release(held)

    drive(body)


def test_a_drop_waits_for_those_admitted_before_and_frees_every_tier() -> None:
    async def body(house: House) -> None:
        lease = house.residency.hold(["a3", "b3"])
        dropping = started(house.residency.drop("a3"))
        await turns()
        held = await house.residency.acquire(["a3"])
        assert not dropping.done(), "it was admitted before, and is loaded for it although it is deleted"
        house.residency.release(held)
        await turns()
        assert not dropping.done()
        assert "a3" in house.on_device
        with lease:
            pass
        await dropping
        assert house.residency.resident("a3") == {"device": False, "host": False, "pinned": False}
        assert (house.on_device, house.forgotten) == ({}, ["a3"])
        await house.residency.drop("b3")
        await house.residency.drop("never-there")
        lease.end()

    drive(body)


def test_a_drop_waits_for_what_is_on_its_way() -> None:
    async def body(house: House) -> None:
        house.read_gate.clear()
        with house.residency.hold(["a3"]):
            asking = started(house.residency.acquire(["a3"]))
            await turns()
            asking.cancel()
            await turns()
        dropping = started(house.residency.drop("a3"))
        await turns()
        assert not dropping.done()
        house.read_gate.set()
        await dropping
        assert not house.residency.resident("a3")["host"]

    drive(body)


def test_a_drop_ends_pins() -> None:
    async def body(house: House) -> None:
        await house.residency.pin(["a10"])
        await house.residency.drop("a10")
        assert house.on_device == {}
        await house.use("b10")

    drive(body)


def test_the_same_bytes_published_again_while_a_drop_waits() -> None:
    """The drop does not wait for who was admitted since, and does not take the package from them."""

    async def body(house: House) -> None:
        before = house.residency.hold(["a3"])
        droppings = [started(house.residency.drop("a3")) for _ in range(2)]
        await turns()
        since = house.residency.hold(["a3"])
        held = await house.residency.acquire(["a3"])
        before.end()
        await asyncio.gather(*droppings)
        assert "a3" in house.on_device
        assert house.forgotten == []
        house.residency.release(held)
        since.end()
        await house.residency.drop("a3")
        assert house.forgotten == ["a3"]

    drive(body)


def test_groups_are_one_where_all_fits() -> None:
    async def body(house: House) -> None:
        groups = house.residency.groups
        assert await groups([("a3",), ("b3", "a3"), (), ("c4",)]) == ([[0, 1, 2, 3]], {})
        found, faults = await groups([("a6",), ("b6",), ("a6", "c3"), ("d11",), ("e1",)])
        assert found == [[0], [1], [2, 4]]
        assert list(faults) == [3]
        assert isinstance(faults[3], TooBig)
        await house.residency.pin(["p4"])
        assert (await groups([("a6",), ("p4", "b5"), ("p4",), ("c1",)]))[0] == [[0], [1, 2, 3]]
        await house.use("a6")
        assert await groups([("a6",), ("p4",)]) == ([[0, 1]], {})

    drive(body)


@pytest.mark.parametrize("seed", range(8))
def test_any_traffic(seed: int) -> None:
    """Requests with leases, drops, pins, refusals and hang-ups at random, on little memory: what is held is there, no budget is passed."""
    chance = random.Random(seed)
    names = [f"{letter}{chance.randrange(1, 4)}" for letter in "abcdefghijkl"]

    async def body(house: House) -> None:
        house.broken = set(names[:1])

        async def request() -> None:
            wanted = chance.sample(names, chance.choice([1, 1, 2, 3]))
            with house.residency.hold(wanted):
                house.residency.prefetch(wanted)
                held = await house.residency.acquire(wanted, chance.choice(["wait", "wait", "refuse"]))
                try:
                    for _ in range(chance.randrange(5)):
                        await asyncio.sleep(0)
                        assert set(wanted) <= set(house.on_device)
                finally:
                    house.residency.release(held)

        tasks: list[asyncio.Future[Any]] = []
        for _ in range(250):
            kind, name = chance.random(), chance.choice(names)
            other = house.residency.drop(name) if kind < 0.1 else house.residency.pin([name]) if kind < 0.15 else None
            tasks.append(started(request() if other is None else other))
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if kind > 0.9:
                chance.choice(tasks).cancel()
            house.residency.unpin([chance.choice(names)])
        while not all(task.done() for task in tasks):
            house.residency.unpin(names)
            await asyncio.sleep(0)
        ends = [task.exception() for task in tasks if not task.cancelled()]
        assert {type(end) for end in ends} <= {type(None), LoadFailed, Cold, TooBig}
        await turns(200)
        for name in names:
            await house.residency.drop(name)
        assert house.on_device == {}
        assert [tier[:2] for tier in house.residency.occupied().values()] == [(0, 0), (0, 0)]
        assert not house.residency._leases

    drive(body, host=14, device=8, age_cap=chance.choice([0.0, 0.001]), shared=seed % 2 == 0)


class Engine:
    """What the loader moves packages with."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def measure(self, manifest: Any) -> tuple[int, int]:
        return 6, len(manifest)

    def read(self, path: Path, manifest: Any) -> Any:
        return Package(path)

    def load(self, digest: str, package: Any) -> int:
        if digest == "bad":
            raise ValueError("bad")
        self.loaded.append(digest)
        return 3

    def unload(self, digest: str) -> None:
        self.loaded.remove(digest)


class Package:
    def __init__(self, path: Path) -> None:
        self.path, self.host_bytes = path, 5


def test_the_loader_takes_steps_that_are_due_together_in_one_call() -> None:
    engine, calls, entered = Engine(), [], []

    @contextmanager
    def local(digest: str) -> Iterator[Path]:
        entered.append(digest)
        yield Path(digest)
        entered.append("left")

    async def body() -> None:
        going = asyncio.Event()

        async def call(step: Callable[[], Any]) -> Any:
            calls.append(len(engine.loaded))
            await going.wait()
            return step()

        manifest: Any = str
        loader = Loader(engine, call, None, local, manifest, entered.append)  # type: ignore[arg-type]
        assert await loader.measure("abc") == (6, 3)
        package, nbytes = await loader.read("abc")
        assert (package.path, nbytes, entered) == (Path("abc"), 5, ["abc", "left"])
        loads = [started(loader.load(digest, package)) for digest in ("a", "b", "bad", "c")]
        await turns()
        gone = loader.unload("a")
        again = started(loader.load("d", package))
        going.set()
        ends = await asyncio.gather(*loads, gone, again, return_exceptions=True)
        assert [str(end) for end in ends] == ["3", "3", "bad", "3", "None", "3"]
        await loader.settled()
        assert engine.loaded == ["b", "c", "d"]
        assert len(calls) == 3, "four loads, then what came meanwhile, then the last"
        await loader.forget("abc")
        assert entered[-1] == "abc"
        await loader.close()

    asyncio.run(asyncio.wait_for(body(), 20))


def test_steps_for_an_engine_that_stops() -> None:
    async def body() -> None:
        async def call(step: Callable[[], Any]) -> Any:
            raise RuntimeError("stopped")

        loader = Loader(Engine(), call, None, None, None)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="stopped"):
            await loader.load("a", None)
        loader.unload("a")
        await loader.settled()

    asyncio.run(asyncio.wait_for(body(), 20))

"""What follows a store, by itself: what drains, what is asked of it while it drains, and what a commit costs the event loop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny

from adapter_store.catalog import Catalog, Entry
from adapter_store.store import Store
from server.following import Following
from server.metrics import Metrics
from server.residency import Residency
from server.router import Router

PACKAGE = tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b"), 1)


class Porter:
    """Moves packages of one byte, at once."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []
        self.fault: Exception | None = None

    async def measure(self, digest: str) -> tuple[int, int]:
        return 1, 1

    async def read(self, digest: str) -> tuple[str, int]:
        return digest, 1

    async def load(self, digest: str, package: str) -> int:
        return 1

    def unload(self, digest: str) -> Awaitable[Any]:
        return asyncio.get_running_loop().create_future()

    async def settled(self) -> None:
        pass

    async def forget(self, digest: str) -> None:
        self.forgotten.append(digest)
        if self.fault is not None:
            raise self.fault

    async def close(self) -> None:
        pass


class House:
    """A store with one name, and what follows it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "package.safetensors"
        self.file.write_bytes(PACKAGE)
        self.store = Store.open("memory://")
        self.porter = Porter()
        self.residency = Residency(self.porter, 10, 10)
        self.kept: list[tuple[str, Set[str]]] = []
        router = Router(self.store, tiny.SPEC)
        self.following = Following(self.store, self.residency, router, lambda *one: self.kept.append(one), 0.01, 0.01)

    def publish(self, name: str = "spam") -> str:
        return self.store.publish(self.file, name).record.digest


def drive(folder: Path, body: Callable[[House], Awaitable[None]]) -> None:
    async def within_time() -> None:
        house = House(folder)
        await asyncio.wait_for(body(house), 20)
        await house.following.stop()
        await house.residency.close()

    asyncio.run(within_time())


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_deleted_published_and_deleted_again_while_it_drains(tmp_path: Path) -> None:
    """The second delete waits for those who were admitted between the two, and frees what they used."""

    async def body(house: House) -> None:
        digest = house.publish()
        first = house.residency.hold([digest])
        house.store.delete("spam")
        deletes = [asyncio.ensure_future(house.following.settle())]
        await turns()
        house.publish()
        second = house.residency.hold([digest])
        house.residency.release(await house.residency.acquire([digest]))
        house.store.delete("spam")
        deletes.append(asyncio.ensure_future(house.following.settle()))
        await turns()
        first.end()
        await turns()
        assert not deletes[1].done()
        assert digest in house.residency
        second.end()
        await asyncio.gather(*deletes)
        assert house.residency.digests == frozenset()
        assert house.porter.forgotten == [digest]

    drive(tmp_path, body)


def test_published_again_while_it_drains(tmp_path: Path) -> None:
    async def body(house: House) -> None:
        digest = house.publish()
        first = house.residency.hold([digest])
        house.store.delete("spam")
        delete = asyncio.ensure_future(house.following.settle())
        await turns()
        house.publish("other")
        with house.residency.hold([digest]):
            house.residency.release(await house.residency.acquire([digest]))
            first.end()
            await delete
        assert digest in house.residency
        await house.following.settle()
        assert digest in house.residency

    drive(tmp_path, body)


def test_a_drain_that_fails_is_told_and_the_next_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(house: House) -> None:
        digest = house.publish()
        await house.following.settle()
        house.porter.fault = OSError("the disk is read-only")
        house.store.delete("spam")
        await house.following.settle()
        house.porter.fault = None
        house.publish()
        await house.following.settle()
        house.store.delete("spam")
        await house.following.settle()
        assert house.porter.forgotten == [digest, digest]

    drive(tmp_path, body)
    assert "could not be freed" in caplog.text


def test_the_log_is_read_while_blobs_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting thousands of keys of an object store takes minutes; a commit of another server is not to wait for them."""
    collecting, read, over = threading.Event(), threading.Event(), threading.Event()

    def collect() -> None:
        collecting.set()
        over.wait(20)

    def refresh() -> bool:
        if collecting.is_set():
            read.set()
        return False

    async def body(house: House) -> None:
        monkeypatch.setattr(house.store, "collect", collect)
        monkeypatch.setattr(house.store, "refresh", refresh)
        house.following.start()
        try:
            assert await asyncio.to_thread(read.wait, 10)
        finally:
            over.set()

    drive(tmp_path, body)


def test_a_commit_costs_what_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,000 names, only those are looked at that changed: there is a commit more often than all of them could be looked at."""

    @contextmanager
    def forbidden() -> Iterator[None]:
        def everything(catalog: Catalog) -> list[Entry]:
            raise AssertionError("all names were looked at")

        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "entries", everything)
            yield

    async def body(house: House) -> None:
        for name in ("spam", "ham"):
            house.publish(name)
        await house.following.settle()
        house.kept.clear()
        house.store.delete("ham")
        with forbidden():
            await house.following.settle()
        assert ("ham", frozenset()) in house.kept
        assert {name for name, _ in house.kept} <= {"ham", "spam"}
        house.kept.clear()
        house.store.set_alias("spam", "prod", 1)
        await house.following.settle()
        assert sorted(house.kept) == [("ham", frozenset()), ("spam", {"spam@1"})], "once more for rows that were under way"
        house.kept.clear()
        house.store.set_alias("spam", "canary", 1)
        await house.following.settle()
        assert house.kept == [("spam", {"spam@1"})]

    drive(tmp_path, body)


def test_rows_are_kept_for_versions_that_are_there() -> None:
    metrics = Metrics()
    for model in ("acme/spam@1", "acme/spam@2", "ham@1", "base"):
        metrics.count_row(model, "ok")
    metrics.keep("acme/spam", {"acme/spam@2"})
    metrics.keep("base", set())
    metrics.keep("unknown", set())
    counted = {model for model in ("acme/spam@1", "acme/spam@2", "ham@1", "base") if _rows(metrics, model)}
    assert counted == {"acme/spam@2", "ham@1", "base"}


def _rows(metrics: Metrics, model: str) -> float | None:
    return metrics.registry.get_sample_value("turret_rows_total", {"model": model, "outcome": "ok"})

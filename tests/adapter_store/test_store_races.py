"""Threads, Store objects and processes on one store: nothing is lost, numbers follow one another, a version that exists has its bytes."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from places import Place
from samples import package_file

from adapter_store.errors import AlreadyExists, NotFound
from adapter_store.names import Reference
from adapter_store.package import open_package
from adapter_store.store import Store
from adapter_store.wishes import AliasWish, DeleteWish, PublishWish


def in_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_threads_on_two_stores_lose_nothing(place: Place, tmp_path: Path) -> None:
    stores = [place.open(snapshot_every=8) for _ in range(2)]
    paths = [package_file(tmp_path, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda i: stores[i % 2].publish(paths[i], f"name{i % 3}", alias="prod"), range(40)))
    for store in stores:
        store.refresh()
    assert stores[0].catalog == stores[1].catalog == place.open().catalog
    assert stores[0].catalog.n == 40
    for name in range(3):
        versions = sorted(result.record.version for i, result in enumerate(published) if i % 3 == name)
        assert versions == list(range(1, len(versions) + 1))


def test_only_one_of_many_is_new(place: Place, tmp_path: Path) -> None:
    stores = [place.open() for _ in range(4)]
    paths = [package_file(tmp_path, seed) for seed in range(4)]

    def publish(i: int) -> int:
        try:
            return stores[i].publish(paths[i], "spam", only_new=True).record.version
        except AlreadyExists:
            return 0

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(publish, range(4))) == [0, 0, 0, 1]
    assert len(place.keys("blobs")) == 1


@pytest.mark.parametrize("kind", ["memory", "folder", "s3"])
def test_deleting_and_publishing_the_same_bytes(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Whatever the interleaving of two publishers and a collector without mercy, a version that exists has its bytes."""
    place = Place(
        kind, {"memory": "memory://", "folder": str(tmp_path / "store")}.get(kind) or request.getfixturevalue("object_store").url()
    )
    stores = [place.open() for _ in range(3)]
    path = package_file(tmp_path)
    digest = open_package(path).digest
    rounds = 6 if kind == "s3" else 25  # SeaweedFS lets those who contend for a key wait for a second
    done = threading.Event()

    def work(i: int) -> None:
        if i == 2:
            while not done.is_set():
                stores[i].collect(grace=0)
                done.wait(0.002)
            return
        for _ in range(rounds):
            stores[i].publish(path, f"name{i}")
            stores[i].forget(digest)
            assert stores[i].read(digest) == path.read_bytes()
            stores[i].delete(f"name{i}")
        stores[i].publish(path, f"name{i}")
        if i == 0:
            done.set()

    in_threads(3, work)
    last = place.open()
    assert last.read(digest) == path.read_bytes()
    last.collect(grace=0)
    assert len(place.keys("blobs")) == 1


def test_readers_never_see_half_of_a_commit(place: Place, tmp_path: Path) -> None:
    """Two names that each commit moves together, seen by a thread of the writer's store and by another store."""
    writer, reader = place.open(), place.open()
    writer.publish_all([(name, open_package(package_file(tmp_path)), package_file(tmp_path)) for name in ("a", "b")])
    seen: set[int] = set()
    done = threading.Event()

    def work(i: int) -> None:
        if i == 0:
            for seed in range(1, 15):
                path = package_file(tmp_path, seed)
                record = writer.publish(path, "staging").record
                writer.change([*(PublishWish(name, Reference("staging", record.digest), "prod") for name in "ab"), DeleteWish("staging")])
            done.set()
            return
        store = writer if i == 1 else reader
        while not done.is_set():
            if store is reader:
                reader.refresh()
            catalog = store.catalog
            a, b = catalog.find("a"), catalog.find("b")
            if a is not None and b is not None:
                assert (list(a.versions), a.aliases) == (list(b.versions), b.aliases)
                seen.add(len(a.versions))

    in_threads(3, work)
    assert len(seen) > 1


def test_concurrent_changes_are_planned_again(place: Place, tmp_path: Path) -> None:
    stores = [place.open() for _ in range(3)]
    stores[0].publish(package_file(tmp_path), "spam")

    def work(i: int) -> None:
        for j in range(5):
            stores[i].change([AliasWish("spam", f"alias-{i}-{j}", 1)], by=f"writer-{i}")

    in_threads(3, work)
    store = place.open()
    assert len(store.show("spam").aliases) == 15
    assert sorted(commit.by for commit in store.history().commits) == ["", *sorted(5 * [f"writer-{i}" for i in range(3)])]


def publish_many(url: str, paths: list[str], name: str) -> None:
    store = Store.open(url, snapshot_every=8)
    for path in paths:
        store.publish(Path(path), name, alias="prod")


def test_processes_lose_nothing(shared_place: Place, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    paths = [str(package_file(tmp_path, seed)) for seed in range(24)]
    processes = [context.Process(target=publish_many, args=(shared_place.url, paths[i::3], "spam")) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = shared_place.open()
    assert store.catalog.n == 24
    assert list(store.show("spam").versions) == list(range(1, 25))
    assert len({record.digest for record in store.show("spam").versions.values()}) == 24
    for record in store.show("spam").versions.values():
        with store.local(record.digest) as path:
            assert open_package(path).digest == record.digest


def test_a_version_that_goes_while_it_is_read(shared_place: Place, tmp_path: Path) -> None:
    """A reader gets the bytes or a sentence that says that they are gone, never half of them."""
    store, reader = shared_place.open(), shared_place.open()
    path = package_file(tmp_path)
    digest = open_package(path).digest
    done = threading.Event()

    def work(i: int) -> None:
        if i == 0:
            for _ in range(15):
                store.publish(path, "spam")
                store.delete("spam")
                store.collect(grace=0)
            done.set()
            return
        while not done.is_set():
            try:
                reader.forget(digest)
                with reader.local(digest) as local:
                    assert local.read_bytes() == path.read_bytes()
            except (NotFound, FileNotFoundError):
                continue

    in_threads(2, work)

"""The store: versions, aliases, deletes, and what is left after races, crashes and damage."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import BACKBONE, MANIFEST, check_sentence, package, package_file

from adapter_store.blobs import Blobs, open_blobs
from adapter_store.catalog import Catalog, Change, Commit, Delete, Publish, SetAlias, Summary
from adapter_store.errors import AlreadyExists, Conflict, InvalidName, InvalidPackage, NotFound, StoreError, WrongBackbone
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.names import Reference, parse_reference
from adapter_store.package import open_package
from adapter_store.store import Store

NO_SUCH = "sha256:" + "0" * 64


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store") if request.param == "folder" else "memory://")


def blobs_of(folder: Path) -> list[Path]:
    return sorted((folder / "blobs" / "sha256").glob("*"))


# Publish and resolve


def test_versions_count_up(store: Store, tmp_path: Path) -> None:
    first = store.publish(package_file(tmp_path, 1), "spam", BACKBONE)
    second = store.publish(package_file(tmp_path, 2), "spam", BACKBONE)
    assert (first.created, second.created) == (True, True)
    assert [first.record.reference, second.record.reference] == ["spam@1", "spam@2"]
    assert store.resolve(Reference("spam")) == second.record
    assert store.resolve(parse_reference("spam@1")) == first.record
    assert store.resolve(parse_reference(f"spam@{first.record.digest}")) == first.record
    assert store.names() == ["spam"]
    assert store.show("spam").latest == second.record


def test_a_record_tells_what_a_listing_needs(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    record = store.publish(path, "acme/spam", BACKBONE).record
    summary = record.summary
    assert (summary.task, summary.head, summary.labels, summary.methods) == ("text-classification", "classification", 2, ("bottleneck",))
    assert (summary.size, summary.model_type, summary.license) == (path.stat().st_size, "bert", "mit")
    assert summary.parameters == open_package(path).parameters
    assert record.created.endswith("Z")


def test_the_bytes_come_back(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    record = store.publish(path, "spam").record
    assert store.read(record.digest) == path.read_bytes() == store.path(record.digest).read_bytes()
    assert store.manifest(record.digest) == MANIFEST
    for call in (store.read, store.path, store.manifest):
        for digest in (NO_SUCH, "../../etc/passwd", "sha256:x", ""):
            with pytest.raises(NotFound):
                call(digest)


def test_the_same_bytes_are_the_same_version(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    first = store.publish(path, "spam", alias="prod")
    n = store.catalog.n
    again = store.publish(path, "spam", alias="prod")
    assert (again.created, again.record) == (False, first.record)
    assert store.catalog.n == n
    store.publish(package_file(tmp_path, 1), "spam", alias="prod")
    moved = store.publish(path, "spam", alias="prod")
    assert (moved.created, moved.record.version) == (False, 1)
    assert store.resolve(parse_reference("spam@prod")).version == 1
    assert store.resolve(parse_reference("spam")).version == 2
    other = store.publish(path, "other")
    assert other.created
    assert other.record.digest == first.record.digest


def test_only_new(store: Store, tmp_path: Path) -> None:
    path = package_file(tmp_path)
    assert store.publish(path, "spam", only_new=True).created
    for again in (path, package_file(tmp_path, 1)):
        with pytest.raises(AlreadyExists, match="spam"):
            store.publish(again, "spam", only_new=True)
    assert len(store.show("spam").versions) == 1


def test_nothing_is_left_of_a_refused_publish(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    path = package_file(tmp_path)
    broken = tmp_path / "broken"
    broken.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidPackage):
        store.publish(broken, "spam")
    with pytest.raises(WrongBackbone):
        store.publish(path, "spam", Backbone(model_type="bert", hidden_size=16, num_layers=2))
    for name in ("base", "../x", "Spam", ""):
        with pytest.raises(InvalidName):
            store.publish(path, name)
    for alias in ("latest", "3", "../x"):
        with pytest.raises(InvalidName):
            store.publish(path, "spam", alias=alias)
    composed = MANIFEST.model_copy(update={"composition": f"stack(other@{NO_SUCH}, self)"})
    with pytest.raises(NotFound, match="other"):
        store.publish(package_file(tmp_path, 3, composed), "spam")
    small = Store(store.blobs, max_size=100)
    with pytest.raises(InvalidPackage, match="at most 100"):
        small.publish(path, "spam")
    assert store.names() == []
    assert blobs_of(tmp_path / "store") == []
    assert store.catalog.n == 0


def test_a_failed_commit_takes_its_blob_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path / "store"))

    def fail(key: str, data: bytes) -> bool:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(store.blobs, "put_if_absent", fail)
    with pytest.raises(StoreError, match="full"):
        store.publish(package_file(tmp_path), "spam")
    assert blobs_of(tmp_path / "store") == []


@pytest.mark.parametrize("model", ["spam", "spam@1", "spam@prod", f"spam@{NO_SUCH}"])
def test_unknown_names(store: Store, model: str) -> None:
    with pytest.raises(NotFound, match="spam"):
        store.resolve(parse_reference(model))
    with pytest.raises(NotFound):
        store.show("spam")


def test_unknown_selectors(store: Store, tmp_path: Path) -> None:
    store.publish(package_file(tmp_path), "spam")
    for selector in ("2", "prod", NO_SUCH):
        with pytest.raises(NotFound, match=f"'{selector}'"):
            store.resolve(Reference("spam", selector))


# Aliases and deletes


def test_aliases_move(store: Store, tmp_path: Path) -> None:
    for seed in (1, 2):
        store.publish(package_file(tmp_path, seed), "spam", alias="prod")
    assert store.resolve(parse_reference("spam@prod")).version == 2
    assert store.set_alias("spam", "prod", 1).version == 1
    assert store.show("spam").aliases == {"prod": 1}
    n = store.catalog.n
    store.set_alias("spam", "prod", 1)
    assert store.catalog.n == n
    for name, alias, version, error in (("spam", "prod", 3, NotFound), ("ham", "prod", 1, NotFound), ("spam", "latest", 1, InvalidName)):
        with pytest.raises(error):
            store.set_alias(name, alias, version)


def test_numbers_are_never_given_twice(store: Store, tmp_path: Path) -> None:
    paths = [package_file(tmp_path, seed) for seed in range(3)]
    store.publish(paths[0], "spam")
    store.publish(paths[1], "spam")
    store.delete("spam", 2)
    assert store.resolve(Reference("spam")).version == 1
    assert store.publish(paths[1], "spam").record.version == 3
    store.delete("spam")
    assert store.names() == []
    assert store.publish(paths[0], "spam").record.version == 4


def test_deleting_frees_bytes_when_nothing_refers_to_them(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    path = package_file(tmp_path)
    digest = store.publish(path, "spam").record.digest
    store.publish(path, "ham")
    assert store.delete("spam", 1) == ()
    assert store.names() == ["ham"]
    assert len(blobs_of(tmp_path / "store")) == 1
    assert store.delete("ham", collect=False) == (digest,)
    assert len(blobs_of(tmp_path / "store")) == 1
    store.collect([digest])
    assert blobs_of(tmp_path / "store") == []
    with pytest.raises(NotFound):
        store.path(digest)


def test_memory_forgets_what_it_materialised(tmp_path: Path) -> None:
    store = Store.open("memory://")
    digest = store.publish(package_file(tmp_path), "spam").record.digest
    path = store.path(digest)
    store.delete("spam")
    assert not path.exists()


def test_what_is_referred_to_stays(store: Store, tmp_path: Path) -> None:
    member = store.publish(package_file(tmp_path, 1), "lang", alias="prod").record
    with pytest.raises(Conflict, match="'prod'"):
        store.delete("lang", 1)
    composed = MANIFEST.model_copy(update={"composition": f"stack({member.pin}, self)"})
    record = store.publish(package_file(tmp_path, 2, composed), "ner").record
    assert record.summary.members == (member.pin,)
    for version in (None, 1):
        with pytest.raises(Conflict):
            store.delete("lang", version)
    with pytest.raises(Conflict, match="ner@1"):
        store.delete("lang")
    store.delete("ner")
    store.delete("lang")
    assert store.names() == []


def test_unknown_deletes(store: Store, tmp_path: Path) -> None:
    store.publish(package_file(tmp_path), "spam")
    for name, version in (("spam", 2), ("ham", None), ("ham", 1)):
        with pytest.raises(NotFound):
            store.delete(name, version)


# Stores


def test_reopening_finds_everything(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    store.publish(package_file(tmp_path, 1), "spam", alias="prod")
    store.publish(package_file(tmp_path, 2), "spam")
    store.delete("spam", 2)
    for url in (str(tmp_path / "store"), f"file://{tmp_path}/store", (tmp_path / "store").as_uri()):
        again = Store.open(url)
        assert again.catalog == store.catalog
        assert again.publish(package_file(tmp_path, 1), "spam").created is False


@pytest.mark.parametrize("folder", ["with space", "with%20percent", "with#hash", "mit ä"])
def test_folders_of_any_name(tmp_path: Path, folder: str) -> None:
    store = Store.open(str(tmp_path / folder))
    record = store.publish(package_file(tmp_path), "spam").record
    assert store.path(record.digest).is_file()
    assert Store.open((tmp_path / folder).as_uri()).names() == ["spam"]


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://b", "az://c", "https://x/y", "ftp://x", "file://host/path", ""])
def test_stores_that_are_not_served(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    check_sentence(caught.value)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be used"):
        Store.open(str(tmp_path / "file"))


class Careless(Blobs):
    """A store that ignores the condition, as `rclone serve s3` does."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        super().put_if_absent(key, data)
        return True


def test_a_store_without_conditions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = open_blobs(str(tmp_path))
    monkeypatch.setattr("adapter_store.store.open_blobs", lambda url: Careless(inner._store, inner.root, url))
    with pytest.raises(StoreError, match="only if it is absent"):
        Store.open("anything")


def test_leftovers_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = Store.open(str(folder))
    path = package_file(tmp_path)
    record = store.publish(path, "spam").record
    (folder / "log" / "000000000002.json#1").write_text("{half a comm")
    (folder / "log" / "notes.txt").write_text("x")
    (folder / "probe").mkdir(exist_ok=True)
    (folder / "probe" / "old").write_text("x")
    half = folder / "blobs" / "sha256" / (record.digest.removeprefix("sha256:") + ".safetensors#1")
    half.write_bytes(b"half")
    other = package_file(tmp_path, 1)
    orphan = folder / "blobs" / "sha256" / (open_package(other).digest.removeprefix("sha256:") + ".safetensors")
    orphan.write_bytes(b"cut off by a crash of some other program")
    again = Store.open(str(folder))
    assert again.names() == ["spam"]
    assert again.publish(other, "ham").record.reference == "ham@1"
    assert orphan.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("text", ["", "{", '{"n": 2}', '{"format": "turret-log/2", "n": 2, "time": "", "changes": []}'])
def test_a_damaged_log_is_reported(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "store"
    Store.open(str(folder)).publish(package_file(tmp_path), "spam")
    (folder / "log" / "000000000002.json").write_text(text)
    with pytest.raises(StoreError, match="commit 2"):
        Store.open(str(folder))


def test_an_impossible_commit_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = Store.open(str(folder))
    store.publish(package_file(tmp_path), "spam")
    (folder / "log" / "000000000002.json").write_text('{"n": 2, "time": "", "changes": [{"type": "delete", "name": "ham"}]}')
    with pytest.raises(StoreError, match="damaged at commit 2"):
        store.refresh()
    assert store.names() == ["spam"]


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_the_verbs_of_blobs(tmp_path: Path, kind: str) -> None:
    blobs = open_blobs(str(tmp_path / "store") if kind == "folder" else "memory://")
    assert blobs.put_if_absent("a/b", b"one") is True
    assert blobs.put_if_absent("a/b", b"two") is False
    assert (blobs.get("a/b"), blobs.size("a/b"), blobs.size("a/c")) == (b"one", 3, None)
    large = tmp_path / "large"
    large.write_bytes(random.Random(0).randbytes(20 << 20))
    blobs.put_file("a/large", large)
    assert blobs.get("a/large") == large.read_bytes()
    assert sorted(blobs.list("a")) == ["a/b", "a/large"]
    assert blobs.move("a/b", "c/d") is True
    assert blobs.move("a/b", "c/d") is False
    blobs.delete("c/d")
    blobs.delete("c/d")
    with pytest.raises(NotFound):
        blobs.get("c/d")
    assert list(blobs.list("c")) == []


def test_failing_storage_is_one_sentence(tmp_path: Path) -> None:
    blobs = open_blobs(str(tmp_path / "store"))
    (tmp_path / "store" / "log").write_text("a file where a folder belongs")
    with pytest.raises(StoreError) as caught:
        blobs.put_if_absent("log/1", b"x")
    assert type(caught.value) is StoreError
    check_sentence(caught.value)


# Several writers


def test_a_reader_sees_what_a_writer_did(tmp_path: Path) -> None:
    writer, reader = Store.open(str(tmp_path / "store")), Store.open(str(tmp_path / "store"))
    assert reader.refresh() is False
    record = writer.publish(package_file(tmp_path), "spam", alias="prod").record
    assert reader.names() == []
    assert reader.refresh() is True
    assert reader.resolve(parse_reference("spam@prod")) == record
    with pytest.raises(AlreadyExists):
        Store(reader.blobs).publish(package_file(tmp_path, 1), "spam", only_new=True)


def test_threads_on_two_stores_lose_nothing(tmp_path: Path) -> None:
    stores = [Store.open(str(tmp_path / "store")) for _ in range(2)]
    paths = [package_file(tmp_path, seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(lambda i: stores[i % 2].publish(paths[i], f"name{i % 3}", alias="prod"), range(40)))
    for store in stores:
        store.refresh()
    assert stores[0].catalog == stores[1].catalog
    assert stores[0].catalog.n == 40
    for name in range(3):
        versions = sorted(result.record.version for i, result in enumerate(published) if i % 3 == name)
        assert versions == list(range(1, len(versions) + 1))


def test_only_one_of_many_is_new(tmp_path: Path) -> None:
    stores = [Store.open(str(tmp_path / "store")) for _ in range(4)]
    paths = [package_file(tmp_path, seed) for seed in range(4)]

    def publish(i: int) -> int:
        try:
            return stores[i].publish(paths[i], "spam", only_new=True).record.version
        except AlreadyExists:
            return 0

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(publish, range(4))) == [0, 0, 0, 1]
    assert len(blobs_of(tmp_path / "store")) == 1


def test_a_publish_just_before_the_bytes_are_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (Store.open(str(tmp_path / "store")) for _ in range(2))
    path = package_file(tmp_path)
    digest = one.publish(path, "spam").record.digest
    move = one.blobs.move

    def late(key: str, target: str) -> bool:
        if key.startswith("blobs/"):
            other.publish(path, "ham")
        return move(key, target)

    monkeypatch.setattr(one.blobs, "move", late)
    one.delete("spam")
    assert other.read(digest) == path.read_bytes()


def test_a_delete_just_before_a_commit_on_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (Store.open(str(tmp_path / "store")) for _ in range(2))
    path = package_file(tmp_path)
    other.publish(path, "spam")
    put = one.blobs.put_if_absent

    def late(key: str, data: bytes) -> bool:
        if other.refresh() or other.names() == ["spam"]:
            other.delete("spam")
        return put(key, data)

    monkeypatch.setattr(one.blobs, "put_if_absent", late)
    digest = one.publish(path, "ham").record.digest
    assert one.names() == ["ham"]
    assert one.read(digest) == path.read_bytes()


def test_deleting_and_publishing_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the interleaving, a version that exists has its bytes."""
    stores = [Store.open(str(tmp_path / "store")) for _ in range(2)]
    path = package_file(tmp_path)
    digest = open_package(path).digest

    def work(i: int) -> None:
        for _ in range(40):
            stores[i].publish(path, f"name{i}")
            assert stores[i].read(digest) == path.read_bytes()
            stores[i].delete(f"name{i}")
        stores[i].publish(path, f"name{i}")

    failures: list[BaseException] = []
    threads = [threading.Thread(target=guarded, args=(work, i, failures)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Store.open(str(tmp_path / "store")).read(digest) == path.read_bytes()
    assert list((tmp_path / "store" / "aside").glob("*")) == []


def guarded(work: Callable[[int], None], i: int, failures: list[BaseException]) -> None:
    try:
        work(i)
    except BaseException as error:
        failures.append(error)


def publish_many(url: str, paths: list[str], name: str) -> None:
    store = Store.open(url)
    for path in paths:
        store.publish(Path(path), name, alias="prod")


def test_processes_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    url = str(tmp_path / "store")
    paths = [str(package_file(tmp_path, seed)) for seed in range(24)]
    processes = [context.Process(target=publish_many, args=(url, paths[i::3], "spam")) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = Store.open(url)
    assert store.catalog.n == 24
    assert list(store.show("spam").versions) == list(range(1, 25))
    assert len({record.digest for record in store.show("spam").versions.values()}) == 24


def publish_and_delete_for_ever(url: str, paths: list[str], ready: Any) -> None:
    store = Store.open(url)
    ready.set()
    while True:
        for i, path in enumerate(paths):
            store.publish(Path(path), f"name{i % 2}", alias="prod")
        for entry in store.entries():
            store.delete(entry.name)


def test_kill_9_leaves_whole_or_absent_operations(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    url = str(tmp_path / "store")
    paths = [str(package_file(tmp_path, seed)) for seed in range(5)]
    rng = random.Random(0)
    for _ in range(4):
        ready = context.Event()
        process = context.Process(target=publish_and_delete_for_ever, args=(url, paths, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(rng.uniform(0.02, 0.2))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        store = Store.open(url)
        for entry in store.entries():
            for record in entry.versions.values():
                assert open_package(store.path(record.digest)).digest == record.digest
        store.publish(Path(paths[0]), "after", alias="prod")


# The catalogue as a state machine

SUMMARY = Summary(size=1, parameters=1)
digests = st.integers(0, 3).map(lambda i: f"sha256:{i:064x}")
spare_names = st.sampled_from(["a", "b"])
changes = st.one_of(
    st.builds(lambda name, digest: ("publish", name, digest), spare_names, digests),
    st.builds(lambda name, version: ("delete", name, version), spare_names, st.one_of(st.none(), st.integers(1, 4))),
    st.builds(lambda name, version: ("alias", name, version), spare_names, st.integers(1, 4)),
)


@settings(deadline=None)
@given(st.lists(changes, max_size=25))
def test_the_catalogue_keeps_its_rules(steps: list[tuple[str, str, Any]]) -> None:
    catalog = Catalog()
    given_out: dict[str, int] = {}
    for kind, name, what in steps:
        change: Change
        if kind == "publish":
            change = Publish(name=name, version=catalog.next_version(name), digest=what, summary=SUMMARY)
        elif kind == "delete":
            change = Delete(name=name, version=what)
        else:
            change = SetAlias(name=name, alias="prod", version=what)
        commit = Commit(n=catalog.n + 1, time="2026-01-01T00:00:00Z", changes=(change,))
        assert Commit.model_validate_json(commit.model_dump_json(exclude_none=True)) == commit
        try:
            after = catalog.after(commit)
        except (Conflict, NotFound):
            continue
        if isinstance(change, Publish):
            assert change.version > given_out.get(name, 0)
            given_out[name] = change.version
        catalog = after
        for entry in catalog.entries():
            assert entry.versions
            assert set(entry.aliases.values()) <= set(entry.versions)
            assert list(entry.versions) == sorted(entry.versions)
            assert len({record.digest for record in entry.versions.values()}) == len(entry.versions)
            assert catalog.resolve(Reference(entry.name)).version == max(entry.versions)


def test_several_changes_are_one_step() -> None:
    publish = Publish(name="a", version=1, digest=NO_SUCH, summary=SUMMARY)
    bad = Commit(n=1, time="", changes=(publish, SetAlias(name="a", alias="prod", version=2)))
    catalog = Catalog()
    with pytest.raises(NotFound):
        catalog.after(bad)
    assert catalog.entries() == []
    with pytest.raises(Conflict, match="follow"):
        catalog.after(Commit(n=3, time="", changes=(publish,)))


def test_a_manifest_without_a_head_is_summarised(store: Store, tmp_path: Path) -> None:
    manifest = Manifest(methods=MANIFEST.methods, backbone=BACKBONE)
    summary = store.publish(package_file(tmp_path, 0, manifest), "spam").record.summary
    assert (summary.task, summary.head, summary.labels) == (None, None, 0)
    assert package(manifest) != package()

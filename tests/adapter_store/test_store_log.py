"""The log and its snapshots: reopening, following, damage, leftovers, what earlier versions wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from places import Place
from samples import MANIFEST, check_sentence, package_file

from adapter_store import log
from adapter_store.blobs import Blobs
from adapter_store.catalog import Catalog
from adapter_store.errors import AlreadyExists, Conflict, StoreError
from adapter_store.log import HISTORY_READS, Log
from adapter_store.names import parse_reference
from adapter_store.package import open_package
from adapter_store.store import Store


def make_history(store: Store, tmp_path: Path) -> None:
    """Sixteen commits of every kind."""
    for seed in range(4):
        store.publish(package_file(tmp_path, seed), "spam", alias="prod", by="alice", signature="acme:c2ln")
    member = store.publish(package_file(tmp_path, 5), "lang").record
    composed = MANIFEST.model_copy(update={"composition": f"stack({member.pin}, self)"})
    store.publish(package_file(tmp_path, 6, composed), "ner")
    store.set_alias("spam", "canary", {1: 90, 2: 10})
    store.rollback("spam", "prod")
    store.set_alias("spam", "old", 1)
    store.drop_alias("spam", "old")
    store.delete("spam", 4)
    store.collect(grace=0)
    store.publish(package_file(tmp_path, 7), "gone")
    store.delete("gone")
    store.publish(package_file(tmp_path, 3), "ham")
    store.delete("ham")


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    keys: list[str] = []
    get = Blobs.get
    monkeypatch.setattr(Blobs, "get", lambda self, key: keys.append(key) or get(self, key))  # type: ignore[func-returns-value]
    return keys


# Reading


def test_reopening_finds_everything(place: Place, tmp_path: Path) -> None:
    store = place.open()
    make_history(store, tmp_path)
    assert store.catalog.n == 16
    again = place.open()
    assert again.catalog == store.catalog
    assert again.publish(package_file(tmp_path, 1), "spam").created is False


def test_a_reader_sees_what_a_writer_did(place: Place, tmp_path: Path) -> None:
    writer, reader = place.open(), place.open()
    assert reader.refresh() is False
    record = writer.publish(package_file(tmp_path), "spam", alias="prod").record
    assert reader.names() == []
    assert reader.refresh() is True
    assert reader.resolve(parse_reference("spam@prod")) == record
    with pytest.raises(AlreadyExists):
        place.open().publish(package_file(tmp_path, 1), "spam", only_new=True)
    make_history(writer, tmp_path)
    assert reader.refresh() is True
    assert reader.catalog == writer.catalog


def test_the_order_of_a_log_that_is_read_ahead(place: Place, tmp_path: Path) -> None:
    writer, reader = place.open(), place.open()
    writer.publish(package_file(tmp_path), "spam")
    for i in range(50):
        writer.set_alias("spam", f"a{i}", 1)
    assert reader.refresh() is True
    assert reader.catalog == writer.catalog


def test_history_reads_a_bounded_part(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapter_store.log.HISTORY_READS", 10)
    store = place.open()
    make_history(store, tmp_path)
    reads = reads_of(monkeypatch)
    page = store.history("lang", limit=3)
    assert (page.commits, page.next_before) == ((), 7)
    assert len(reads) == 10 < HISTORY_READS
    page = store.history("lang", page.next_before, limit=3)
    assert ([commit.n for commit in page.commits], page.next_before) == ([5], None)


# Snapshots


def test_a_snapshot_saves_reading_the_log(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.open(snapshot_every=5)
    make_history(store, tmp_path)
    assert place.keys("snapshots") == ["snapshots/000000000010.json", "snapshots/000000000015.json"]
    reads = reads_of(monkeypatch)
    again = place.open(snapshot_every=5)
    assert [key for key in reads if key.startswith("snapshots/")] == ["snapshots/000000000015.json"]
    assert min(key for key in reads if key.startswith("log/")) == "log/000000000016.json"
    assert again.catalog == store.catalog
    assert again.publish(package_file(tmp_path, 8), "spam").record.version == 5


def test_snapshots_of_several_writers(place: Place, tmp_path: Path) -> None:
    stores = [place.open(snapshot_every=4) for _ in range(2)]
    stores[0].publish(package_file(tmp_path), "spam")
    for i in range(20):
        stores[i % 2].set_alias("spam", f"a{i}", 1)
    snapshots = place.keys("snapshots")
    assert len(snapshots) == 2
    assert snapshots[-1] >= "snapshots/000000000020.json"
    assert place.open().catalog == stores[1].catalog


def test_a_store_of_the_version_before_gets_a_snapshot_when_it_is_opened(place: Place, tmp_path: Path) -> None:
    store = place.open()
    make_history(store, tmp_path)
    assert place.keys("snapshots") == []
    place.open(snapshot_every=5)
    assert place.keys("snapshots") == ["snapshots/000000000016.json"]


@pytest.mark.parametrize("newest", ["cut", "changed", "empty", "not json", "another's"])
@pytest.mark.parametrize("older", ["whole", "cut"])
def test_a_damaged_snapshot_is_passed_over(place: Place, tmp_path: Path, newest: str, older: str) -> None:
    store = place.open(snapshot_every=5)
    make_history(store, tmp_path)
    first, second = place.keys("snapshots")
    data = {key: place.blobs.get(key) for key in (first, second)}
    changed = {
        "cut": data[second][:-20],
        "changed": data[second].replace(b'"version":1', b'"version":9', 1),
        "empty": b"",
        "not json": b"\xff" * 200,
        "another's": data[first],
    }
    assert changed["changed"] != data[second]
    place.overwrite(second, changed[newest])
    if older == "cut":
        place.overwrite(first, data[first][:50])
    assert place.open(snapshot_every=5).catalog == store.catalog


def test_a_snapshot_that_cannot_be_written_stops_nobody(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.open(snapshot_every=2)
    put = store.blobs.put_if_absent

    def put_no_snapshot(key: str, data: bytes) -> bool:
        if key.startswith("snapshots/"):
            raise StoreError("No room.")
        return put(key, data)

    monkeypatch.setattr(store.blobs, "put_if_absent", put_no_snapshot)
    make_history(store, tmp_path)
    assert place.open().catalog == store.catalog


# Damage and leftovers


@pytest.mark.parametrize("text", ["", "{", '{"n": 2}', '{"format": "turret-log/2", "n": 2, "time": "", "changes": []}'])
def test_a_damaged_log_is_reported(place: Place, tmp_path: Path, text: str) -> None:
    store = place.open()
    store.publish(package_file(tmp_path), "spam")
    place.overwrite("log/000000000002.json", text.encode())
    with pytest.raises(StoreError, match="commit 2") as caught:
        place.open()
    check_sentence(caught.value)
    with pytest.raises(StoreError, match="commit 2"):
        store.set_alias("spam", "prod", 1)
    assert store.names() == ["spam"]


@pytest.mark.parametrize(
    "changes",
    [
        [{"type": "delete", "name": "ham"}],
        [{"type": "alias", "name": "spam", "alias": "prod", "weights": {"1": 1, "2": 1}}],
        [{"type": "collect", "digests": ["DIGEST"]}],
    ],
)
def test_an_impossible_commit_is_reported(place: Place, tmp_path: Path, changes: list[dict[str, Any]]) -> None:
    store = place.open()
    digest = store.publish(package_file(tmp_path), "spam").record.digest
    text = json.dumps({"n": 2, "time": "", "changes": changes}).replace("DIGEST", digest)
    place.overwrite("log/000000000002.json", text.encode())
    with pytest.raises(StoreError, match="damaged at commit 2"):
        store.refresh()
    assert store.names() == ["spam"]


def test_an_alias_has_one_kind_of_target(place: Place, tmp_path: Path) -> None:
    store = place.open()
    store.publish(package_file(tmp_path), "spam")
    for target in ({}, {"version": 1, "weights": {"1": 1}}):
        commit = {"n": 2, "time": "", "changes": [{"type": "alias", "name": "spam", "alias": "prod", **target}]}
        place.overwrite("log/000000000002.json", json.dumps(commit).encode())
        with pytest.raises(StoreError, match="cannot read"):
            store.refresh()


def test_a_commit_in_another_ones_place(place: Place, tmp_path: Path) -> None:
    store = place.open()
    store.publish(package_file(tmp_path), "spam")
    place.overwrite("log/000000000002.json", place.blobs.get("log/000000000001.json"))
    with pytest.raises(StoreError, match="commit 1 where commit 2"):
        store.refresh()


def test_leftovers_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    store = Store.open(str(folder))
    path = package_file(tmp_path)
    record = store.publish(path, "spam").record
    (folder / "log" / "000000000002.json#1").write_text("{half a comm")
    (folder / "log" / "notes.txt").write_text("x")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "notes.json").write_text("x")
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
    orphan.write_bytes(b"\0" * len(other.read_bytes()))
    assert again.publish(other, "ham").created is False
    assert again.read(open_package(other).digest) == other.read_bytes()


# What earlier versions wrote


def test_the_log_of_the_version_before_reads_as_it_is(place: Place) -> None:
    """Six commits without `id`, `by` and weights; two deletes that took their blobs with them and left no `Collect`."""
    source = Path(__file__).parent / "store_before_generations"
    for path in sorted(source.rglob("*.*")):
        place.overwrite(str(path.relative_to(source)), path.read_bytes())
    store = place.open()
    assert store.catalog.n == 6
    assert store.names() == ["acme/ham", "spam"]
    entry = store.show("spam")
    assert list(entry.versions) == [2]
    assert entry.aliases["prod"].version == 2
    assert store.read(entry.latest.digest)
    assert store.collect(grace=0) == ()
    with pytest.raises(Conflict, match="version 1"):
        store.rollback("spam", "prod")


def test_a_log_alone_makes_the_catalogue(shared_place: Place, tmp_path: Path) -> None:
    store = shared_place.open(snapshot_every=3)
    make_history(store, tmp_path)
    for key in shared_place.keys("snapshots"):
        shared_place.blobs.delete(key)
    assert Log(shared_place.blobs, 3).follow(Catalog()) == store.catalog


def test_a_copied_folder_is_a_store(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), snapshot_every=5)
    make_history(store, tmp_path)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    copy = Store.open(str(tmp_path / "copy"))
    assert copy.catalog == store.catalog
    for entry in copy.entries():
        for record in entry.versions.values():
            assert open_package(copy.path(record.digest)).digest == record.digest


def test_a_snapshot_is_written_name_by_name_as_its_model_says(tmp_path: Path) -> None:
    store = Store.open("memory://")
    make_history(store, tmp_path)
    for catalog in (Catalog(), store.catalog):
        entries, blobs = catalog.contents()
        state = log._STATE.dump_json(log._State(log._FORMAT, catalog.n, entries, blobs))
        assert log._dump(catalog) == log._prefix(state) + state + b"}"
        assert log._load(log._dump(catalog), catalog.n) == catalog

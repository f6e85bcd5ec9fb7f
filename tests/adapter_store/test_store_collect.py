"""Collection: bytes go when nothing has referred to them for the grace period, and never under a version, whatever the order of events."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import Place
from samples import MANIFEST, package_file

from adapter_store.blobs import Blobs
from adapter_store.catalog import Commit
from adapter_store.changes import Collect
from adapter_store.errors import AlreadyExists, NotFound, StoreError
from adapter_store.package import open_package
from adapter_store.store import Store


def before_commit(store: Store, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Lets others act once, after this store has planned its next commit and before it creates it."""
    append = store._log.append
    waiting = [action]

    def late(commit: Commit) -> bool:
        if waiting:
            waiting.pop()()
        return append(commit)

    monkeypatch.setattr(store._log, "append", late)


def test_bytes_go_when_their_time_is_over(place: Place, tmp_path: Path) -> None:
    store = place.open(grace=3600)
    path = package_file(tmp_path)
    digest = store.publish(path, "spam").record.digest
    store.publish(path, "ham")
    store.delete("spam")
    assert store.collect(grace=0) == ()
    store.delete("ham")
    assert store.collect() == ()
    assert store.read(digest) == path.read_bytes()
    assert store.collect(grace=0) == (digest,)
    assert place.keys("blobs") == []
    store.forget(digest)
    with pytest.raises(NotFound):
        store.path(digest)
    n = store.catalog.n
    assert store.collect(grace=0) == ()
    assert store.catalog.n == n


def test_bytes_come_back_in_the_next_generation(place: Place, tmp_path: Path) -> None:
    store = place.open()
    path = package_file(tmp_path)
    for generation in range(3):
        digest = store.publish(path, "spam").record.digest
        suffix = f".{generation}" if generation else ""
        assert place.keys("blobs") == [f"blobs/sha256/{digest.removeprefix('sha256:')}{suffix}.safetensors"]
        assert store.read(digest) == path.read_bytes()
        store.delete("spam")
        assert store.collect(grace=0) == (digest,)
    assert place.open().catalog == store.catalog


def test_bytes_without_references_are_published_without_sending_them(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.open()
    path = package_file(tmp_path)
    digest = store.publish(path, "spam").record.digest
    store.delete("spam")
    sent: list[str] = []
    monkeypatch.setattr(Blobs, "put_file", lambda self, key, path: sent.append(key))
    monkeypatch.setattr(type(store.blobs), "put_file", lambda self, key, path: sent.append(key))
    store.publish(path, "ham")
    store.publish(path, "eggs")
    assert sent == []
    assert store.collect(grace=0) == ()
    assert store.read(digest) == path.read_bytes()


def test_bytes_that_no_commit_names_are_collected(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a publisher leaves that dies between its blob and its commit, or while it opens the store."""
    monkeypatch.setattr("adapter_store.store._STALLED", -1.0)
    store = place.open()
    path = package_file(tmp_path)
    digest = open_package(path).digest
    place.overwrite(f"blobs/sha256/{digest.removeprefix('sha256:')}.safetensors", path.read_bytes())
    place.overwrite("blobs/sha256/notes.txt", b"not of this store")
    place.overwrite("probe/old", b"1")
    assert store.collect(grace=3600) == ()
    assert store.collect(grace=-1) == (digest,)
    assert place.keys("blobs") == ["blobs/sha256/notes.txt"]
    assert place.keys("probe") == []
    record = store.publish(path, "spam").record
    assert store.read(record.digest) == path.read_bytes()


def test_keys_that_a_collector_left_behind(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that dies between its commit and its deletes."""
    store, other = place.open(), place.open()
    digest = store.publish(package_file(tmp_path), "spam").record.digest
    store.delete("spam")
    with monkeypatch.context() as patch:
        patch.setattr(store.blobs, "delete", lambda key: None)
        assert store.collect(grace=0) == (digest,)
    if place.kind == "memory":  # one Blobs for both
        assert len(place.keys("blobs")) == 1
    n = store.catalog.n
    assert other.collect(grace=3600) == ()
    assert place.keys("blobs") == []
    assert other.catalog.n == n


def test_staged_leftovers_go_after_the_grace_period(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), grace=60)
    store.publish(package_file(tmp_path), "spam")
    leftovers = [tmp_path / "store" / name for name in ("staged/0123", "blobs/sha256/ab.safetensors#1", "log/000000000002.json#1")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    store.collect()
    assert all(leftover.exists() for leftover in leftovers)
    for leftover in leftovers:
        os.utime(leftover, (time.time() - 61,) * 2)
    store.collect()
    assert not any(leftover.exists() for leftover in leftovers)
    assert store.names() == ["spam"]


def test_what_is_held_is_not_collected(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    digest = store.publish(package_file(tmp_path), "spam").record.digest
    with store.local(digest) as path:
        store.delete("spam")
        assert store.collect(grace=0) == ()
        assert open_package(path).digest == digest
    assert store.collect(grace=0) == (digest,)
    assert not path.exists()


# What a publish leaves


def test_a_publish_that_loses_takes_its_blob_back(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = place.open(), place.open()
    winner = other.examine(package_file(tmp_path, 1), "spam")
    before_commit(one, monkeypatch, lambda: other.publish(package_file(tmp_path, 1), "spam"))
    with pytest.raises(AlreadyExists):
        one.publish(package_file(tmp_path, 2), "spam", only_new=True)
    assert place.keys("blobs") == [f"blobs/sha256/{winner.digest.removeprefix('sha256:')}.safetensors"]


def test_a_commit_that_fails_takes_its_blob_back(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.open()

    def fail() -> None:
        raise StoreError("The connection broke.")

    before_commit(store, monkeypatch, fail)
    with pytest.raises(StoreError, match="broke"):
        store.publish(package_file(tmp_path), "spam")
    assert place.keys("blobs") == []
    assert store.names() == []


def test_a_commit_whose_answer_is_lost_has_happened(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.open()
    put = store.blobs.put_if_absent
    answers: list[object] = [StoreError("The connection broke."), False]

    def lossy(key: str, data: bytes) -> bool:
        put(key, data)
        answer = answers.pop(0)
        if isinstance(answer, StoreError):
            raise answer
        return bool(answer)

    monkeypatch.setattr(store.blobs, "put_if_absent", lossy)
    record = store.publish(package_file(tmp_path), "spam", alias="prod").record
    assert store.delete("spam") == (record.digest,)
    assert store.catalog.n == 2
    assert place.open().names() == []


# Races, in the order that is worst


def test_a_publish_just_before_the_bytes_are_collected(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = place.open(), place.open()
    path = package_file(tmp_path)
    digest = one.publish(path, "spam").record.digest
    one.delete("spam")
    before_commit(one, monkeypatch, lambda: other.publish(path, "ham"))
    assert one.collect(grace=0) == ()
    assert other.read(digest) == path.read_bytes()


def test_a_collection_just_before_a_commit_on_the_same_bytes(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = place.open(), place.open()
    path = package_file(tmp_path)
    digest = other.publish(path, "spam").record.digest
    other.delete("spam")
    before_commit(one, monkeypatch, lambda: other.collect(grace=0))
    assert one.publish(path, "ham").record.digest == digest
    assert one.catalog.blob(digest).generation == 1
    assert one.read(digest) == path.read_bytes()
    assert len(place.keys("blobs")) == 1


def test_a_collector_that_slept_after_its_commit(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deletes come after the bytes were published again."""
    one, other = place.open(), place.open()
    path = package_file(tmp_path)
    digest = one.publish(path, "spam").record.digest
    one.delete("spam")
    delete = one.blobs.delete
    waiting = [lambda: other.publish(path, "ham")]

    def late(key: str) -> None:
        if waiting:
            waiting.pop()()
        delete(key)

    monkeypatch.setattr(one.blobs, "delete", late)
    assert one.collect(grace=0) == (digest,)
    assert other.read(digest) == path.read_bytes()
    assert other.catalog.blob(digest).generation == 1


def test_a_member_that_is_deleted_just_before_the_commit(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = place.open(), place.open()
    member = one.publish(package_file(tmp_path, 1), "lang").record
    composed = MANIFEST.model_copy(update={"composition": f"stack({member.pin}, self)"})
    before_commit(one, monkeypatch, lambda: other.delete("lang"))
    with pytest.raises(NotFound, match="lang"):
        one.publish(package_file(tmp_path, 2, composed), "ner")
    assert len(place.keys("blobs")) == 1
    assert one.collect(grace=0) == (member.digest,)


def test_two_collectors_at_once(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = place.open(), place.open()
    digests = [one.publish(package_file(tmp_path, seed), f"name{seed}").record.digest for seed in range(2)]
    for seed in range(2):
        one.delete(f"name{seed}")
    collected: list[tuple[str, ...]] = []
    before_commit(one, monkeypatch, lambda: collected.append(other.collect(grace=0)))
    assert one.collect(grace=0) == ()
    assert set(collected[0]) == set(digests)
    one.refresh()
    collections = [change for commit in one.history().commits for change in commit.changes if isinstance(change, Collect)]
    assert len(collections) == 1


def test_a_reader_that_is_behind_finds_the_bytes(place: Place, tmp_path: Path) -> None:
    one, other = place.open(), place.open()
    path = package_file(tmp_path)
    digest = one.publish(path, "spam").record.digest
    other.refresh()
    one.delete("spam")
    one.collect(grace=0)
    one.publish(path, "spam")
    assert other.catalog.blob(digest).generation == 0
    assert other.read(digest) == path.read_bytes()

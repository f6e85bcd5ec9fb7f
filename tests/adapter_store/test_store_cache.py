"""Local files of packages: verified before they are used, downloaded once, kept while they are held, at most so many bytes."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from places import Place
from samples import check_sentence, package_file

from adapter_store.cache import DiskCache
from adapter_store.errors import Damaged, NotFound, StoreError
from adapter_store.package import open_package


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


class Source:
    """Where a cache gets its bytes from; counts how often. `wrong` gives other bytes so many times first."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {digest_of(data): data for data in contents}
        self.fetched: list[str] = []
        self.wrong = 0

    def fetch(self, digest: str) -> Iterator[bytes]:
        self.fetched.append(digest)
        if digest not in self.contents:
            raise NotFound("There is no such package.")
        data = self.contents[digest]
        if self.wrong:
            self.wrong -= 1
            data = data[:-1]
        for i in range(0, len(data), 7):
            yield data[i : i + 7]


A, B, C = (bytes([letter]) * 100 for letter in b"abc")


def files(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.glob("*.safetensors")}


def read(cache: DiskCache, data: bytes) -> bytes:
    with cache.hold(digest_of(data)) as path:
        return path.read_bytes()


# The cache alone


def test_a_file_is_downloaded_once(tmp_path: Path) -> None:
    source = Source(A)
    cache = DiskCache(tmp_path / "cache", 1000, source.fetch)
    assert [read(cache, A) for _ in range(3)] == [A, A, A]
    assert len(source.fetched) == 1
    assert cache.size == 100


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    source = Source(A, B, C)
    cache = DiskCache(tmp_path, 250, source.fetch)
    for data in (A, B, A, C):
        read(cache, data)
    assert files(tmp_path) == {A, C}
    assert cache.size == 200


def test_what_is_held_stays(tmp_path: Path) -> None:
    source = Source(A, B, C)
    cache = DiskCache(tmp_path, 150, source.fetch)
    with cache.hold(digest_of(A)) as path, cache.hold(digest_of(A)):
        for data in (B, C):
            read(cache, data)
            assert path.read_bytes() == A
        with cache.hold(digest_of(B)):
            assert files(tmp_path) == {A, B}
        assert files(tmp_path) == {A}
    assert files(tmp_path) == {A}
    small = DiskCache(tmp_path / "small", 50, source.fetch)
    assert read(small, A) == A
    assert small.size == 0


def test_forgetting_waits_for_those_who_hold(tmp_path: Path) -> None:
    source = Source(A)
    cache = DiskCache(tmp_path, 1000, source.fetch)
    with cache.hold(digest_of(A)) as path:
        cache.forget(digest_of(A))
        assert path.read_bytes() == A
    assert files(tmp_path) == set()
    assert cache.size == 0
    with cache.hold(digest_of(A)):
        cache.forget(digest_of(A))
        read(cache, A)  # wanted again
    cache.forget(digest_of(B))
    read(cache, A)
    cache.forget(digest_of(A))
    assert files(tmp_path) == set()


def test_bytes_that_are_cut_off_are_fetched_once_more(tmp_path: Path) -> None:
    source = Source(A)
    cache = DiskCache(tmp_path, 1000, source.fetch)
    source.wrong = 1
    assert read(cache, A) == A
    assert len(source.fetched) == 2
    cache.forget(digest_of(A))
    source.wrong = 2
    with pytest.raises(Damaged) as caught:
        read(cache, A)
    check_sentence(caught.value)
    assert list(tmp_path.glob("*.part")) == []
    assert files(tmp_path) == set()
    assert read(cache, A) == A


def test_a_file_that_changed_on_the_disk_is_thrown_away(tmp_path: Path) -> None:
    source = Source(A)
    cache = DiskCache(tmp_path, 1000, source.fetch)
    with cache.hold(digest_of(A)) as path:
        pass
    path.write_bytes(B)
    assert read(cache, A) == A
    path.unlink()
    assert read(cache, A) == A
    assert len(source.fetched) == 3


def test_another_process_takes_over_what_is_whole(tmp_path: Path) -> None:
    source = Source(A, B, C)
    cache = DiskCache(tmp_path, 1000, source.fetch)
    for data in (A, B, C):
        read(cache, data)
    with pytest.raises(StoreError, match="in use by another process") as caught:
        DiskCache(tmp_path, 1000, source.fetch)
    check_sentence(caught.value)
    cache.close()
    (tmp_path / "0123.part").write_bytes(b"half")
    with (tmp_path / f"{digest_of(A).removeprefix('sha256:')}.safetensors").open("r+b") as file:
        file.write(b"damaged")
    source.fetched.clear()
    again = DiskCache(tmp_path, 1000, source.fetch)
    assert again.size == 300
    assert list(tmp_path.glob("*.part")) == []
    assert [read(again, data) for data in (A, B, C)] == [A, B, C]
    assert source.fetched == [digest_of(A)]
    again.close()
    DiskCache(tmp_path, 150, source.fetch)
    assert len(files(tmp_path)) == 1


def test_one_download_for_all_who_ask(tmp_path: Path) -> None:
    started, go = threading.Barrier(8), threading.Event()
    source = Source(A)

    def slow(digest: str) -> Iterator[bytes]:
        go.wait()
        yield from source.fetch(digest)

    cache = DiskCache(tmp_path, 1000, slow)

    def ask() -> bytes:
        started.wait()
        return read(cache, A)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        go.set()
        assert [future.result() for future in asked] == [A] * 8
    assert len(source.fetched) == 1


def test_a_download_that_fails_fails_for_all_and_is_tried_again(tmp_path: Path) -> None:
    source = Source()
    cache = DiskCache(tmp_path, 1000, source.fetch)

    def ask(_: int) -> str:
        try:
            return read(cache, A).decode()
        except NotFound:
            return "not found"

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(8))) == {"not found"}
    source.contents[digest_of(A)] = A
    assert ask(0) == A.decode()


def test_many_threads_on_a_small_cache(tmp_path: Path) -> None:
    contents = [bytes([i]) * 100 for i in range(10)]
    cache = DiskCache(tmp_path, 300, Source(*contents).fetch)

    def work(seed: int) -> None:
        for i in range(60):
            data = contents[(seed * 7 + i * 3) % 10]
            assert read(cache, data) == data
            if i % 11 == 0:
                cache.forget(digest_of(data))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert cache.size == 100 * len(files(tmp_path)) <= 300


def test_a_folder_that_cannot_be_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="disk cache") as caught:
        DiskCache(tmp_path / "file", 100, Source().fetch)
    check_sentence(caught.value)


def test_a_cache_without_a_folder_leaves_none(tmp_path: Path) -> None:
    cache = DiskCache(None, 1000, Source(A).fetch)
    with cache.hold(digest_of(A)) as path:
        assert path.exists()
    cache.close()
    assert not path.parent.exists()


# The cache under a store


def damage(place: Place, digest: str) -> None:
    key = f"blobs/sha256/{digest.removeprefix('sha256:')}.safetensors"
    data = place.blobs.get(key)
    place.overwrite(key, data[:-4] + b"\0\0\1\0")


def test_damaged_bytes_are_never_used(place: Place, tmp_path: Path) -> None:
    store = place.open()
    path = package_file(tmp_path)
    digest = store.publish(path, "spam").record.digest
    damage(place, digest)
    for call in (store.read, store.path, store.manifest):
        with pytest.raises(Damaged) as caught:
            call(digest)
        check_sentence(caught.value)


def test_publishing_again_mends(place: Place, tmp_path: Path) -> None:
    store = place.open()
    path = package_file(tmp_path)
    digest = store.publish(path, "spam").record.digest
    damage(place, digest)
    with pytest.raises(Damaged):
        store.read(digest)
    assert store.publish(path, "spam").created is False
    assert store.read(digest) == path.read_bytes() == place.open().read(digest)


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_held_file_outlives_its_blob(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = Place(kind, "memory://" if kind == "memory" else request.getfixturevalue("object_store").url())
    store = place.open(cache=tmp_path / "cache", cache_bytes=10_000)
    digest = store.publish(package_file(tmp_path), "spam").record.digest
    with store.local(digest) as path:
        store.delete("spam")
        assert store.collect(grace=0) == (digest,)
        store.forget(digest)
        assert open_package(path).digest == digest
    assert not path.exists()
    with pytest.raises(NotFound), store.local(digest):
        pass


def test_a_restart_needs_no_download(place: Place, tmp_path: Path) -> None:
    store = place.open(cache=tmp_path / "cache")
    digest = store.publish(package_file(tmp_path), "spam").record.digest
    assert store.read(digest)
    store.close()
    again = place.open(cache=tmp_path / "cache")
    place.blobs.delete(f"blobs/sha256/{digest.removeprefix('sha256:')}.safetensors")
    if place.kind == "folder":  # which needs no cache
        with pytest.raises(NotFound):
            again.read(digest)
    else:
        assert again.read(digest) == package_file(tmp_path).read_bytes()


def test_a_folder_hashes_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Place("folder", str(tmp_path / "store")).open()
    digest = store.publish(package_file(tmp_path), "spam").record.digest
    assert store.read(digest)

    def fail(*args: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("adapter_store.files.hashlib.file_digest", fail)
    assert store.read(digest)

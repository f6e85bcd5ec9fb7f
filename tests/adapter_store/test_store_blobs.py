"""The verbs of blobs, the places they can be on, and the places that are refused."""

import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import Place
from samples import check_sentence, package_file

from adapter_store.blobs import _IMPATIENT_CLIENT, Folder, open_blobs
from adapter_store.errors import NotFound, StoreError
from adapter_store.store import Store


def test_the_verbs(place: Place, tmp_path: Path) -> None:
    blobs = place.blobs
    assert blobs.put_if_absent("a/b", b"one") is True
    assert blobs.put_if_absent("a/b", b"two") is False
    assert (blobs.get("a/b"), blobs.size("a/b"), blobs.size("a/c")) == (b"one", 3, None)
    large = tmp_path / "large"
    large.write_bytes(random.Random(0).randbytes(20 << 20))
    blobs.put_file("a/large", large)
    assert blobs.get("a/large") == large.read_bytes() == b"".join(blobs.chunks("a/large"))
    items = {item.key: item for item in blobs.list("a")}
    assert sorted(items) == ["a/b", "a/large"]
    assert items["a/large"].size == 20 << 20
    assert abs(items["a/large"].modified - time.time()) < 3600
    blobs.delete("a/b")
    blobs.delete("a/b")
    for call in (blobs.get, lambda key: list(blobs.chunks(key))):
        with pytest.raises(NotFound):
            call("a/b")
    assert list(blobs.list("c")) == []


def test_one_of_many_creates(place: Place) -> None:
    won: list[int] = []
    barrier = threading.Barrier(4)

    def create(i: int) -> None:
        blobs = place.open().blobs
        for key in range(3):
            barrier.wait()
            if blobs.put_if_absent(f"key/{key}", str(i).encode()):
                won.append(key)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(3))


def test_failing_storage_is_one_sentence(tmp_path: Path) -> None:
    blobs = open_blobs(str(tmp_path / "store"))
    (tmp_path / "store" / "log").write_text("a file where a folder belongs")
    (tmp_path / "source").write_text("x")
    for call in (lambda: blobs.put_if_absent("log/1", b"x"), lambda: blobs.put_file("log/1", tmp_path / "source")):
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) is StoreError
        check_sentence(caught.value)
    assert list((tmp_path / "store" / "staged").iterdir()) == []


def test_a_folder_flushes_before_a_key_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = open_blobs(str(tmp_path / "store"))
    there: list[bool] = []
    fsync = os.fsync
    target = tmp_path / "store" / "log" / "1"
    monkeypatch.setattr("adapter_store.blobs.os.fsync", lambda file: (there.append(target.exists()), fsync(file))[1])
    blobs.put_if_absent("log/1", b"x")
    assert there == [False, True]  # the file's bytes, then its name
    target.unlink()
    there.clear()
    (tmp_path / "source").write_text("x")
    blobs.put_file("log/1", tmp_path / "source")
    assert there == [False, True]


# Places


@pytest.mark.parametrize("folder", ["with space", "with%20percent", "with#hash", "mit ä"])
def test_folders_of_any_name(tmp_path: Path, folder: str) -> None:
    store = Store.open(str(tmp_path / folder))
    record = store.publish(package_file(tmp_path), "spam").record
    assert store.path(record.digest).is_file()
    assert Store.open((tmp_path / folder).as_uri()).names() == ["spam"]
    assert Store.open(f"file://localhost{(tmp_path / folder).as_uri().removeprefix('file://')}").names() == ["spam"]


@pytest.mark.parametrize("url", ["https://x/y", "ftp://x", "file://host/path", "", "s3://key:secret@bucket/x", "s3://bucket/x?y=z"])
def test_urls_that_are_no_store(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    check_sentence(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x", "az://container/x", "abfss://container@account.dfs.core.windows.net/x"])
def test_object_stores_are_opened_by_their_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "bm90LWEtc2VjcmV0")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    blobs = open_blobs(url)
    assert blobs.root is None
    assert blobs.url == url


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store.open(str(tmp_path / "file"))


class Careless(Folder):
    """A store that ignores the condition, as `rclone serve s3` does."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        super().put_if_absent(key, data)
        return True


class Refusing(Folder):
    """A store that takes every condition for broken."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return False


@pytest.mark.parametrize("kind", [Careless, Refusing])
def test_a_store_without_conditions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Folder]) -> None:
    monkeypatch.setattr("adapter_store.store.open_blobs", lambda url, impatient=False: kind(tmp_path, url))
    with pytest.raises(StoreError, match="only if it is absent"):
        Store.open("anything")
    assert list(tmp_path.rglob("probe/*")) == []


# Object stores that cannot be reached


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def refused(url: str, monkeypatch: pytest.MonkeyPatch, port: int) -> str:
    for name, value in (
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "y"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    check_sentence(caught.value)
    return str(caught.value)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "s3://bucket/x" in refused("s3://bucket/x", monkeypatch, port)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, silent_port: int) -> None:
    monkeypatch.setitem(_IMPATIENT_CLIENT, "read_timeout", "1s")
    assert "s3://bucket/x" in refused("s3://bucket/x", monkeypatch, silent_port)


def test_wrong_credentials(object_store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError) as caught:
        Store.open("s3://turret/x")
    check_sentence(caught.value)


_THERE_AND_BACK = """
import sys
from pathlib import Path
from adapter_store.blobs import open_blobs

def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

blobs = open_blobs(sys.argv[1])
start = peak()
blobs.put_file("large", Path(sys.argv[2]))
for chunk in blobs.chunks("large"):
    pass
print(peak() - start)
"""


def test_memory_stays_flat_for_large_files(shared_place: Place, tmp_path: Path) -> None:
    """200 MB go there and back through far less memory."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        for seed in range(20):
            file.write(random.Random(seed).randbytes(10 << 20))
    done = subprocess.run([sys.executable, "-c", _THERE_AND_BACK, shared_place.url, str(large)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 10  # KiB
    assert shared_place.blobs.size("large") == 200 << 20
    shared_place.blobs.delete("large")

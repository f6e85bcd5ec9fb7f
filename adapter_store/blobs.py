"""Bytes under keys: put if absent, get, size, list, delete, over obstore. Knows no package and no catalogue.

    ./folder, file:///folder        written through to the disk (fsync) before a key appears
    memory://                       for tests
    s3://bucket/prefix              AWS_ENDPOINT, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ALLOW_HTTP ...
    gs://bucket/prefix              GOOGLE_SERVICE_ACCOUNT, GOOGLE_APPLICATION_CREDENTIALS ...
    az://container/prefix           AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY ...

Credentials and endpoints come from the environment, under the names that obstore reads. All verbs are atomic: a key holds its
whole bytes or does not exist.
"""

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore, from_url

from adapter_store.errors import NotFound, StoreError
from adapter_store.names import shown

# Scheme of an object store -> what the names of its environment variables begin with.
_REMOTE: Mapping[str, str] = {
    "s3": "AWS", "s3a": "AWS", "gs": "GOOGLE", "az": "AZURE", "azure": "AZURE", "abfs": "AZURE", "abfss": "AZURE",
}  # fmt: skip
# Options that obstore reads from the environment only where it is given none.
_FROM_ENVIRONMENT = ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes")
# A stalled connection fails after `read_timeout`; `timeout` bounds a whole transfer, and a package may have a gigabyte.
_CLIENT = {"connect_timeout": "3s", "read_timeout": "20s", "timeout": "1h"}
_RETRY = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
# For the first contact: a store that is not there is to be told in seconds.
_IMPATIENT_CLIENT = {"connect_timeout": "2s", "read_timeout": "5s", "timeout": "8s"}
_IMPATIENT_RETRY = {"max_retries": 2, "retry_timeout": timedelta(seconds=4)}
_PART = 8 << 20
_PARTS_AT_ONCE = 4
_CHUNK = 1 << 20
_STAGED = "staged"
_KNOWN = "a folder (a plain path or file:///path), s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"


@dataclass(frozen=True, slots=True)
class Item:
    """What a listing tells of a key. `modified` is seconds since 1970, by the clock of the storage."""

    key: str
    size: int
    modified: float


class Blobs:
    """The verbs, on one obstore store. `root` is the folder behind it, None where there is none."""

    root: Path | None = None

    def __init__(self, store: Any, url: str) -> None:
        self.url = url
        self._store = store

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes `data` unless `key` exists; False if it does. This is the one primitive that commits rest on.

        Where the connection broke, a repeated attempt may be refused because of the first one: False says that the key exists,
        not who made it.
        """
        with self._reporting("write", key):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def put_file(self, key: str, path: Path) -> None:
        """Writes a file's bytes in pieces, replacing what `key` held. For keys that name their content, where replacing changes nothing."""
        with self._reporting("write", key):
            obstore.put(self._store, key, path, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)

    def get(self, key: str) -> bytes:
        """The bytes under `key`; raises NotFound."""
        with self._reporting("read", key):
            return bytes(obstore.get(self._store, key).bytes())

    def chunks(self, key: str) -> Iterator[bytes]:
        """The bytes under `key` in pieces of a megabyte or more; raises NotFound."""
        with self._reporting("read", key):
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

    def size(self, key: str) -> int | None:
        """The number of bytes under `key`, None if there is no such key."""
        try:
            with self._reporting("read", key):
                return int(obstore.head(self._store, key)["size"])
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[Item]:
        """The keys below a folder-like prefix, in no particular order. What a crash left half-written is not among them."""
        with self._reporting("list", prefix):
            for batch in obstore.list(self._store, prefix):
                for meta in batch:
                    yield Item(str(meta["path"]), int(meta["size"]), meta["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        """Removes `key`; a key that does not exist is no error."""
        try:
            with self._reporting("delete", key):
                obstore.delete(self._store, key)
        except NotFound:
            return

    def local_path(self, key: str) -> Path | None:
        """The file behind `key` in a folder store, whether it exists or not; None in other stores."""
        return None if self.root is None else self.root / key

    def sweep(self, before: float) -> None:
        """Removes what writers that died before that moment (seconds since 1970) left half-written.

        Uploads in parts to an object store that were broken off are not listed there: a lifecycle rule of the bucket removes them.
        """

    @contextmanager
    def _reporting(self, verb: str, key: str) -> Iterator[None]:
        """Failures of the storage as errors of the store, in one sentence."""
        try:
            yield
        except (FileNotFoundError, NotFoundError):
            raise NotFound(f"The store at {self.url} has no {shown(key)}.") from None
        except (BaseError, OSError) as error:
            raise StoreError(f"The store at {self.url} could not {verb} {shown(key)}: {_reason(error)}.") from error


class Folder(Blobs):
    """A folder. Files are staged under names of their own, flushed to the disk and only then linked to their keys, so that not even
    a loss of power leaves a key with half its bytes."""

    root: Path

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(LocalStore(root), url)
        self.root = root

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._reporting("write", key), self._staged(key) as (staged, file):
            file.write(data)
            _flush(file)
            try:
                os.link(staged, self.root / key)
            except FileExistsError:
                return False
            _flush_folder((self.root / key).parent)
            return True

    def put_file(self, key: str, path: Path) -> None:
        with self._reporting("write", key), self._staged(key) as (staged, file):
            with path.open("rb") as source:
                shutil.copyfileobj(source, file, _CHUNK)
            _flush(file)
            staged.replace(self.root / key)
            _flush_folder((self.root / key).parent)

    def sweep(self, before: float) -> None:
        # `key#1` is how obstore stages, and so did versions before this one.
        for pattern in (f"{_STAGED}/*", "blobs/sha256/*#*", "log/*#*", "probe/*#*", "aside/*"):
            for path in self.root.glob(pattern):
                try:
                    if path.stat().st_mtime < before:
                        path.unlink()
                except OSError:  # another sweep was first
                    continue

    @contextmanager
    def _staged(self, key: str) -> Iterator[tuple[Path, Any]]:
        staged = self.root / _STAGED / uuid.uuid4().hex
        for folder in (staged.parent, (self.root / key).parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("xb") as file:
                yield staged, file
        finally:
            staged.unlink(missing_ok=True)


def open_blobs(url: str, impatient: bool = False) -> Blobs:
    """The blobs at a URL. A folder that does not exist is created. Raises StoreError.

    `impatient` asks for time-outs of a few seconds in all, for the first contact with an object store.
    """
    parts = urlsplit(url)
    match parts.scheme if "://" in url else "":
        case "memory":
            return Blobs(MemoryStore(), url)
        case "file" if parts.netloc in ("", "localhost"):
            return _folder(Path(unquote(parts.path)), url)
        case "file":
            raise StoreError(f"{shown(url)} names another machine: use file:///path (three slashes) or a plain path.")
        case "":
            return _folder(Path(url).expanduser(), url)
        case scheme if scheme in _REMOTE:
            return _remote(url, _REMOTE[scheme], impatient)
        case scheme:
            raise StoreError(f"{shown(url)} is not a store: '{scheme}://' is unknown; use {_KNOWN}.")


def probe(blobs: Blobs) -> None:
    """Refuses a store in which creating a key twice succeeds twice: commits would be lost there."""
    key = f"probe/{uuid.uuid4().hex}"
    first = blobs.put_if_absent(key, b"1")
    try:
        second = blobs.put_if_absent(key, b"2")
    finally:
        with suppress(StoreError):
            blobs.delete(key)
    if not first or second:
        raise StoreError(
            f"The store at {blobs.url} does not create a key only if it is absent, so commits could be lost: use another store."
        )


def _folder(path: Path, url: str) -> Blobs:
    if not str(url).strip() or path == Path():
        raise StoreError("The store has no path: name a folder, such as ./turret-store.")
    if path.is_file():
        raise StoreError(f"{shown(str(path))} is a file and a store is a folder: name another path.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        return Folder(path.resolve(strict=True), url)
    except (OSError, BaseError) as error:
        raise StoreError(f"The folder {shown(str(path))} cannot be used as a store: {_reason(error)}.") from error


def _remote(url: str, prefix: str, impatient: bool) -> Blobs:
    options: dict[str, Any] = dict(_IMPATIENT_CLIENT if impatient else _CLIENT)
    for option in _FROM_ENVIRONMENT:
        value = os.environ.get(f"{prefix}_{option.upper()}")
        if value is not None:
            options[option] = value.lower() in ("1", "true", "yes", "on") if option.startswith("allow_") else value
    if urlsplit(url).password is not None or urlsplit(url).query:
        raise StoreError("The store's URL holds more than a bucket and a prefix: credentials belong in the environment.")
    try:
        return Blobs(from_url(url, client_options=options, retry_config=_IMPATIENT_RETRY if impatient else _RETRY), url)
    except (BaseError, ValueError, OSError) as error:
        raise StoreError(f"The store at {url} cannot be opened: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Bytes under keys: put if absent, get, size, list, delete, over obstore. Knows no package and no catalogue.

A folder today; S3, GCS and Azure later through the same verbs. All of them are atomic: a key holds its whole bytes or does not exist.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore

from adapter_store.errors import NotFound, StoreError
from adapter_store.names import shown

_LATER = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "http", "https")


class Blobs:
    """The verbs, on one obstore store. `root` is the folder behind it, None where there is none."""

    def __init__(self, store: Any, root: Path | None, url: str) -> None:
        self.root = root
        self.url = url
        self._store = store

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes `data` unless `key` exists; False if it does. This is the one primitive that commits rest on."""
        with self._reporting("write", key):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def put_file(self, key: str, path: Path) -> None:
        """Writes a file's bytes in pieces, replacing what `key` held. For keys that name their content, where replacing changes nothing."""
        with self._reporting("write", key), path.open("rb") as file:
            obstore.put(self._store, key, file)

    def get(self, key: str) -> bytes:
        """The bytes under `key`; raises NotFound."""
        with self._reporting("read", key):
            return bytes(obstore.get(self._store, key).bytes())

    def size(self, key: str) -> int | None:
        """The number of bytes under `key`, None if there is no such key."""
        try:
            with self._reporting("read", key):
                return int(obstore.head(self._store, key)["size"])
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """The keys below a folder-like prefix, in no particular order. What a crash left half-written is not among them."""
        with self._reporting("list", prefix):
            for batch in obstore.list(self._store, prefix):
                yield from (str(meta["path"]) for meta in batch)

    def delete(self, key: str) -> None:
        """Removes `key`; a key that does not exist is no error."""
        try:
            with self._reporting("delete", key):
                obstore.delete(self._store, key)
        except NotFound:
            return

    def move(self, key: str, target: str) -> bool:
        """Moves the bytes of one key to another, replacing them; False if `key` does not exist."""
        try:
            with self._reporting("move", key):
                obstore.rename(self._store, key, target)
        except NotFound:
            return False
        return True

    def local_path(self, key: str) -> Path | None:
        """The file behind `key` in a folder store, whether it exists or not; None in other stores."""
        return None if self.root is None else self.root / key

    @contextmanager
    def _reporting(self, verb: str, key: str) -> Iterator[None]:
        """Failures of the storage as errors of the store, in one sentence."""
        try:
            yield
        except (FileNotFoundError, NotFoundError):
            raise NotFound(f"The store at {self.url} has no {shown(key)}.") from None
        except (BaseError, OSError) as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise StoreError(f"The store at {self.url} could not {verb} {shown(key)}: {reason[0][:300]}.") from error


def open_blobs(url: str) -> Blobs:
    """A plain path, file:///path or memory://. A folder that does not exist is created. Raises StoreError."""
    parts = urlsplit(url)
    match parts.scheme if "://" in url else "":
        case "memory":
            return Blobs(MemoryStore(), None, url)
        case "file" if parts.netloc in ("", "localhost"):
            return _folder(Path(unquote(parts.path)), url)
        case "file":
            raise StoreError(f"{shown(url)} names another machine: use file:///path (three slashes) or a plain path.")
        case "":
            return _folder(Path(url).expanduser(), url)
        case scheme if scheme in _LATER:
            raise StoreError(f"Stores at {scheme}:// are not supported yet: use a folder (a plain path or file:///path).")
        case scheme:
            raise StoreError(f"{shown(url)} is not a store: '{scheme}://' is unknown; use a folder (a plain path or file:///path).")


def _folder(path: Path, url: str) -> Blobs:
    if not str(url).strip() or path == Path():
        raise StoreError("The store has no path: name a folder, such as ./turret-store.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        root = path.resolve(strict=True)
        return Blobs(LocalStore(root), root, url)
    except (OSError, BaseError) as error:
        raise StoreError(f"The folder {shown(str(path))} cannot be used as a store: {str(error).splitlines()[0][:300]}.") from error

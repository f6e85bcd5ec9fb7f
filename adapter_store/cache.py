"""Verified files of packages on the local disk: downloaded once, hashed while they are written, removed when the budget needs the room.

Knows digests and files; where the bytes come from is given. A file is never used unless its sha256 is its digest, and never removed
while somebody holds it.
"""

import fcntl
import hashlib
import shutil
import tempfile
import threading
import uuid
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from adapter_store.errors import NotFound, StoreError
from adapter_store.files import Verified, damaged
from adapter_store.names import DIGEST, shown


class DiskCache:
    """Files by digest in a folder that no other process uses, at most `limit` bytes of them and those that are held. Safe to use from
    several threads. Without a folder it makes one, which goes with it. `fetch` gives a digest's bytes in pieces."""

    def __init__(self, folder: Path | None, limit: int, fetch: Callable[[str], Iterable[bytes]]) -> None:
        self._limit = limit
        self._fetch = fetch
        self._verified = Verified()
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._total = 0
        self._held: Counter[str] = Counter()
        self._unwanted: set[str] = set()  # forgotten while held
        self._flights: dict[str, Future[Path]] = {}
        self._release: Callable[[], object]
        if folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="turret-cache-"))
            self._release = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = folder
            self._adopt()

    @contextmanager
    def hold(self, digest: str) -> Iterator[Path]:
        """The file of a digest, for as long as it is held. Raises NotFound, Damaged, and StoreError where it cannot be had now."""
        if not DIGEST.fullmatch(digest):
            raise NotFound(f"{shown(digest)} is not a digest ('sha256:' and 64 hex digits).")
        with self._lock:
            self._held[digest] += 1
            self._unwanted.discard(digest)
        try:
            yield self._present(digest)
        finally:
            with self._lock:
                self._held[digest] -= 1
                if not self._held[digest]:
                    del self._held[digest]
                    if digest in self._unwanted:
                        self._remove(digest)
                self._make_room()

    def forget(self, digest: str) -> None:
        """Removes a file: now, or when nobody holds it any more."""
        with self._lock:
            if digest in self._held:
                self._unwanted.add(digest)
            else:
                self._remove(digest)

    def uses_blob(self, digest: str) -> bool:
        """False: files of the cache do not need the blobs that they were downloaded from."""
        return False

    def close(self) -> None:
        """Gives the folder free for another process; one that the cache made is removed. Not to be used after."""
        self._release()

    @property
    def size(self) -> int:
        """The bytes of all files."""
        with self._lock:
            return self._total

    def _present(self, digest: str) -> Path:
        path = self._path(digest)
        with self._lock:
            if digest in self._sizes and self._verified.knows(path, digest):
                self._sizes.move_to_end(digest)
                return path
            flight = self._flights.get(digest)
            if flight is None:
                mine = self._flights[digest] = Future()
        if flight is not None:  # somebody else downloads it: what comes of that is theirs and ours
            return flight.result()
        try:
            self._load(digest, path)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(path)
        finally:
            with self._lock:
                del self._flights[digest]
        return path

    def _load(self, digest: str, path: Path) -> None:
        try:
            whole = path.exists() and self._verified.holds(path, digest)
            # Twice before the store is called damaged: the first bytes may have been cut off on their way.
            if not whole and not self._download(digest, path) and not self._download(digest, path):
                path.unlink(missing_ok=True)
                raise damaged(digest)
            size = path.stat().st_size
        except OSError as error:
            raise StoreError(f"The disk cache {shown(str(self._folder))} cannot keep {digest}: {error}.") from error
        with self._lock:
            self._total += size - self._sizes.get(digest, 0)
            self._sizes[digest] = size
            self._sizes.move_to_end(digest)
            self._make_room()

    def _download(self, digest: str, path: Path) -> bool:
        part = self._folder / f"{uuid.uuid4().hex}.part"
        sha256 = hashlib.sha256()
        try:
            with part.open("xb") as file:
                for chunk in self._fetch(digest):
                    sha256.update(chunk)
                    file.write(chunk)
            if f"sha256:{sha256.hexdigest()}" != digest:
                return False
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._verified.trust(path, digest)
        return True

    def _make_room(self) -> None:
        if self._total <= self._limit:
            return
        for digest in [digest for digest in self._sizes if digest not in self._held]:
            self._remove(digest)
            if self._total <= self._limit:
                return

    def _remove(self, digest: str) -> None:
        self._total -= self._sizes.pop(digest, 0)
        self._unwanted.discard(digest)
        path = self._path(digest)
        path.unlink(missing_ok=True)
        self._verified.forget(path)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.removeprefix('sha256:')}.safetensors"

    def _adopt(self) -> None:
        """Takes over what an earlier process left: whole files are hashed again before they are used, half ones are removed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            owner = (self._folder / "owner.lock").open("w")
            self._release = weakref.finalize(self, owner.close)
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in self._folder.glob("*.part"):
                part.unlink()
            left = [(path.stat().st_mtime, path.stat().st_size, path.stem) for path in self._folder.glob("*.safetensors")]
        except BlockingIOError:
            raise StoreError(f"The disk cache {shown(str(self._folder))} is in use by another process: give each its own.") from None
        except OSError as error:
            raise StoreError(f"The folder {shown(str(self._folder))} cannot be used as a disk cache: {error}.") from error
        self._sizes.update((f"sha256:{stem}", size) for _, size, stem in sorted(left))
        self._total = sum(self._sizes.values())
        self._make_room()

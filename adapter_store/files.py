"""Files of packages that are proven whole before they are used, and those of a folder store, which are used where they are."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapter_store.errors import Damaged, NotFound, StoreError


class Verified:
    """Which files have been found whole: each is hashed once for every time that it is written."""

    def __init__(self) -> None:
        self._whole: dict[Path, tuple[str, int, int, int]] = {}

    def knows(self, path: Path, digest: str) -> bool:
        """Whether the file has been found whole before and was not written since; costs no reading."""
        try:
            return self._whole.get(path) == _mark(path.stat(), digest)
        except OSError:
            return False

    def holds(self, path: Path, digest: str) -> bool:
        """Whether the file's bytes are those of the digest; raises OSError."""
        if self.knows(path, digest):
            return True
        with path.open("rb") as file:
            mark = _mark(os.fstat(file.fileno()), digest)
            whole = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
        if whole:
            self._whole[path] = mark
        return whole

    def trust(self, path: Path, digest: str) -> None:
        """Takes a file for whole that was hashed while it was written."""
        self._whole[path] = _mark(path.stat(), digest)

    def forget(self, path: Path) -> None:
        """Drops what is known of a file that is gone."""
        self._whole.pop(path, None)


class OwnFiles:
    """The files of a folder store, by digest. `locate` gives the path of a digest's blob; raises NotFound."""

    def __init__(self, locate: Callable[[str], Path], verified: Verified) -> None:
        self._locate = locate
        self._verified = verified
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, digest: str) -> Iterator[Path]:
        """The file of a digest, for as long as it is held. Raises NotFound, Damaged, and StoreError where it cannot be read."""
        with self._lock:
            self._held[digest] += 1
        try:
            yield self._whole(digest)
        finally:
            with self._lock:
                self._held[digest] -= 1
                if not self._held[digest]:
                    del self._held[digest]

    def uses_blob(self, digest: str) -> bool:
        """Whether somebody in this process holds the blob's own file."""
        return digest in self._held

    def forget(self, digest: str) -> None:
        """Drops what is known of a blob's file. There are no other files."""
        with suppress(StoreError):
            self._verified.forget(self._locate(digest))

    def close(self) -> None:
        """Nothing, for the same reason."""

    def _whole(self, digest: str) -> Path:
        path = self._locate(digest)
        try:
            if self._verified.holds(path, digest):
                return path
        except FileNotFoundError:  # collected since
            raise NotFound(f"The store holds no package {digest} any more.") from None
        except OSError as error:
            raise StoreError(f"The store cannot read {digest}: {error}.") from error
        raise damaged(digest)


def damaged(digest: str) -> Damaged:
    """What to raise for bytes that are not those of their digest."""
    return Damaged(f"The store's bytes of {digest} are not those that were published: publish the package again.")


def _mark(status: os.stat_result, digest: str) -> tuple[str, int, int, int]:
    return digest, status.st_ino, status.st_size, status.st_mtime_ns

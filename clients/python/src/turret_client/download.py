"""Writing a file so that it is whole or absent: a hidden temporary file beside the target, renamed when it is complete."""

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from turret_client.catalogue import Pulled
from turret_client.errors import DigestMismatch, InvalidArgument

Progress = Callable[[int, int], None]


class AtomicFile:
    """A context in which bytes are written; `commit` puts them at `target` in one step, leaving without it leaves nothing.

    Keeps the sha256 and the size in bytes of what was written. May be entered again, and then begins anew.
    """

    def __init__(self, target: Path) -> None:
        if target.is_dir():
            raise InvalidArgument(f"{target} is a folder: name the file to write.")
        if not target.parent.is_dir():
            raise InvalidArgument(f"There is no folder {target.parent} to write {target.name} into.")
        self.target = target
        self._temporary = target.parent / f".{target.name[:32]}.{secrets.token_hex(8)}.part"

    def __enter__(self) -> Self:
        self.size = 0
        self._hash = hashlib.sha256()
        self._file = self._temporary.open("xb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    @property
    def digest(self) -> str:
        """The digest of the bytes so far, as "sha256:" and hex digits."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes | memoryview) -> None:
        """Appends to the temporary file."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def commit(self) -> None:
        """Makes the written bytes the target's, on disk and in one step; an older file of that name is replaced."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.target)


class Download(AtomicFile):
    """A package on its way to `target`: checked against its digest before it gets its name."""

    def __init__(self, target: Path, progress: Progress | None = None) -> None:
        super().__init__(target)
        self._progress = progress
        self.expected = ""
        self.total = 0

    def start(self, expected: str, total: int) -> None:
        """Says what is to come: its digest, and its length in bytes (0 if unknown)."""
        self.expected, self.total = expected, total
        self._report()

    def write(self, data: bytes | memoryview) -> None:
        """Appends, and reports the progress."""
        super().write(data)
        self._report()

    def finish(self) -> Pulled:
        """Commits what arrived; raises DigestMismatch, leaving nothing, if it is not what was to come."""
        if self.digest != self.expected:
            raise DigestMismatch(
                f"The bytes that arrived ({self.digest}, {self.size} bytes) are not those of {self.expected}: nothing was written."
            )
        self.commit()
        return Pulled(file=self.target, digest=self.digest, size=self.size)

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self.size, self.total)

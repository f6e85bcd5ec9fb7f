"""The audit log: one JSON object a line for each request that changes something, and for each reload of the keys.

Lines are appended whole (O_APPEND, one write each), so that several replicas may share a file; one that was rotated away is opened anew.
"""

import json
import logging
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapter_store.errors import BrokenFile

log = logging.getLogger(__name__)
lines = logging.getLogger("turret.audit")


class Audit:
    """Writes to a file, or without one to the logger `turret.audit`. Raises BrokenFile where the file cannot be opened at the start.

    `lost` counts the lines that could not be written to the file and went to the logger instead.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file: int | None = None
        self._lock = threading.Lock()
        self.lost = 0
        try:
            self._descriptor()
        except OSError as error:
            raise BrokenFile(f"The audit log {path} cannot be written: {error.strerror}.") from error

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Appends one line: the time, the event and the fields. Never raises: what the file does not take goes to the log."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}, default=str)
        try:
            with self._lock:
                if self._append(line.encode() + b"\n"):
                    return
        except OSError as error:
            self.lost += 1
            log.error("The audit log %s cannot be written: %s.", self._path, error.strerror)
        lines.info("%s", line)

    def _append(self, data: bytes) -> bool:
        """Whether there is a file, which has the line now."""
        descriptor = self._descriptor()
        if descriptor is not None and os.write(descriptor, data) != len(data):
            raise OSError(0, "a line was cut off")
        return descriptor is not None

    def close(self) -> None:
        """Closes the file; a later line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _descriptor(self) -> int | None:
        """The open file, the one that bears the name now."""
        if self._path is None:
            return None
        if self._file is not None and not _same(self._file, self._path):
            self.close()
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        return self._file


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False

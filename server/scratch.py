"""Folders for what is on its way: uploads, imports, cached packages. Those of servers that were killed are removed by the next start."""

import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "turret-scratch-"
_LOCK = "lock"
_AN_HOUR = 3600


class Scratch:
    """A folder of this process alone, in `parent` (by default the system's folder for temporary files), until `close`.

    The process holds a lock on a file in it, which the system releases however the process ends: a folder whose lock is free
    is nobody's.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        parent.mkdir(parents=True, exist_ok=True)
        for folder in parent.glob(f"{_PREFIX}*"):
            _remove_if_free(folder)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = _locked(self.folder)

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(folder: Path) -> int | None:
    """The lock file of a folder, locked; None if another process holds it."""
    try:
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _remove_if_free(folder: Path) -> None:
    """Removes a folder whose process is gone."""
    try:
        young = folder.stat().st_mtime > time.time() - _AN_HOUR
    except OSError:  # another start removes it
        return
    if young and not (folder / _LOCK).exists():  # its process is about to lock it
        return
    lock = _locked(folder)
    if lock is None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    log.info("removed %s, left by a process that was killed", folder)

"""What a process and all its children take of the machine, read from /proc (Linux): CPU seconds and memory."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PROC = Path("/proc")
_UTIME, _CSTIME = 11, 15  # places in /proc/<pid>/stat behind the command's name: utime, stime, cutime, cstime
_PPID = 1


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat behind the command's name (which may hold spaces); None where the process has gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            parents.setdefault(int(fields[_PPID]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += parents.get(one, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system seconds of the process and its descendants, those included that have ended and been waited for."""
    fields = (_stat(one) for one in tree(pid))
    return sum(sum(map(int, one[_UTIME : _CSTIME + 1])) for one in fields if one is not None) / _TICKS


def memory_bytes(pid: int) -> int:
    """Proportional set size of the process and its descendants: a page that several processes share counts once among them."""
    total = 0
    for one in tree(pid):
        try:
            lines = (_PROC / str(one) / "smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total

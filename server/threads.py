"""How many threads run, and how they wait: found out from the machine before torch is imported. Imports the standard library only.

More threads than cores is where CPU inference breaks down: at each parallel region's end all wait for the one that has no core, and
libgomp's wait spins, taking cores from those it waits for (docs/decisions/0016 has figures).
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that this process may use: those it may run on, or fewer where a cgroup grants less time. At least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(share) for share in _quotas(root, membership))]))


def _quotas(root: Path, membership: Path) -> list[float]:
    """Cores' worth of time that the process's cgroup and those above it grant, at least one: cgroup v2 and v1."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        lines = []
    found: list[float] = []
    for _, controllers, path in [one for one in lines if len(one) == 3] or [["", "", "/"]]:
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        folder = base / path.lstrip("/")
        for place in (folder, *(above for above in folder.parents if above.is_relative_to(base))):
            quota = _quota(place)
            if quota is not None:
                found.append(max(1.0, quota))
    return found


def _quota(folder: Path) -> float | None:
    """Cores' worth of time that one cgroup grants; None: as much as there is."""
    try:
        if (folder / "cpu.max").exists():
            granted, period = (folder / "cpu.max").read_text().split()
        else:
            granted, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
        return int(granted) / int(period) if granted.strip() not in ("max", "-1") else None
    except (OSError, ValueError):
        return None


def settle(environment: MutableMapping[str, str], count: int) -> None:
    """Sets what the libraries read at their import, where nobody has set it: `count` threads of torch's, and how they wait.

    Tokenizing many texts at once takes a quarter of the cores, on few cores one: the rest is the engine's.
    """
    environment.setdefault("OMP_NUM_THREADS", str(count))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if count < 8:
        environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    else:
        environment.setdefault("RAYON_NUM_THREADS", str(count // 4))

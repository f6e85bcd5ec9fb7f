"""How many cores there are to use, by cgroups of both kinds, and what is set for the libraries."""

import os
from pathlib import Path

import pytest

from server.threads import cores, settle

ALLOWED = len(os.sched_getaffinity(0))


def member(folder: Path, line: str) -> Path:
    (folder / "membership").write_text(line + "\n")
    return folder / "membership"


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [("max 100000", "max 100000", None), ("100000 100000", "max 100000", 1), ("max 100000", "150000 100000", 1), ("20000 100000", "", 1)],
)
def test_version_2(tmp_path: Path, own: str, above: str, expected: int | None) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "cpu.max").write_text(own + "\n")
    if above:
        (tmp_path / "a" / "cpu.max").write_text(above + "\n")
    assert cores(tmp_path, member(tmp_path, "0::/a/b")) == (expected or ALLOWED)


def test_version_1(tmp_path: Path) -> None:
    folder = tmp_path / "cpu" / "docker"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    membership = member(tmp_path, "5:memory:/docker\n4:cpu,cpuacct:/docker")
    for quota, expected in (("-1", ALLOWED), ("100000", 1), ("5000", 1), ("nonsense", ALLOWED)):
        (folder / "cpu.cfs_quota_us").write_text(quota + "\n")
        assert cores(tmp_path, membership) == expected


def test_no_cgroup(tmp_path: Path) -> None:
    assert cores(tmp_path / "none", tmp_path / "none") == ALLOWED
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert cores(tmp_path, tmp_path / "none") == 1, "in a container the own group is often all that is seen"


def test_never_more_than_the_process_may_run_on(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000000 100000\n")
    assert cores(tmp_path, tmp_path / "none") == ALLOWED


def test_what_the_libraries_are_told() -> None:
    environment = {"OMP_WAIT_POLICY": "ACTIVE"}
    settle(environment, 2)
    assert environment == {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    environment = {}
    settle(environment, 16)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "16", "RAYON_NUM_THREADS": "4"}

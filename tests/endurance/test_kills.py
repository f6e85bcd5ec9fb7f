"""The kill test, short: what `make kill-test` does a hundred times."""

from pathlib import Path

import pytest

from tests.endurance.kills import kill_test


@pytest.mark.parametrize(("servers", "seed"), [(1, 17), (2, 18)])
def test_kill_9(tmp_path: Path, servers: int, seed: int) -> None:
    figures, faults = kill_test(tmp_path, kills=4, servers=servers, seed=seed)
    assert faults == []
    assert figures["found"]["kills"] == 4
    assert sum(figures["steps"].values()) > 20
    assert figures["found"]["blobs verified"] > 10
    assert figures["found"]["answers"] > 4

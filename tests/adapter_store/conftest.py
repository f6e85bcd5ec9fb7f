"""Where the golden fixtures are. A suite that cannot see them must fail, not shrink."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of cases that the real libraries wrote: $TURRET_SHARED/golden, or ../shared/golden beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    shared = Path(os.environ.get("TURRET_SHARED", beside))
    if not (shared / "golden").is_dir():
        pytest.fail(f"There is no {shared / 'golden'}: set TURRET_SHARED to the folder that holds golden/.", pytrace=False)
    return shared / "golden"

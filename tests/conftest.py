"""What all tests share: where the golden cases are, and an S3 server. Their absence is a failure, never a skip."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from seaweed import Seaweed, seaweed

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: kernels run on the CPU, in its interpreter

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the golden cases: TURRET_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("TURRET_SHARED", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.fail(f"{folder} holds no golden cases: set TURRET_SHARED to the folder that has 'golden'")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder of cases that the real libraries wrote (shared/reference/adapters.md, section 4)."""
    return shared / "golden"


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A running S3 server; the environment is set so that `Store.open(object_store.url())` reaches it."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server

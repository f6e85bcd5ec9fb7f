"""A store on each kind of place (places.py)."""

from pathlib import Path

import pytest
from places import KINDS, Place, make_place

from adapter_store.store import Store


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return make_place(request.param, tmp_path, request)


@pytest.fixture(params=["folder", "s3"])
def shared_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place that several processes can reach."""
    return make_place(request.param, tmp_path, request)


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()

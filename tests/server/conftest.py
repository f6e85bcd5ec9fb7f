"""Settings come from the tests alone, never from the environment of whoever runs them."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> None:
    for name in [name for name in os.environ if name.startswith("TURRET_") and name != "TURRET_SHARED"]:
        del os.environ[name]

"""One stub server for all tests of the client, reset before each."""

from collections.abc import Iterator

import pytest
from client_stub import Stub, running

PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TURRET_URL", "TURRET_API_KEY", *PROXIES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def _server() -> Iterator[Stub]:
    with running(Stub()) as stub:
        yield stub


@pytest.fixture
def stub(_server: Stub) -> Stub:
    _server.reset()
    return _server

"""What the client's tests share: one stub server, reset before each; both clients of it; and the command."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from client_driver import Driven, Make, Waited
from client_stub import Stub, running
from turret_client import AsyncTurret, Turret
from turret_client.cli import app
from typer.testing import CliRunner, Result

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


@pytest.fixture
def waited() -> Waited:
    return Waited()


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest, stub: Stub, waited: Waited) -> Iterator[Make]:
    """Makes clients of the stub; they are closed in the end."""
    if request.param == "sync":
        clients: list[Turret] = []

        def blocking(url: str = stub.url, **options: Any) -> Turret:
            clients.append(Turret(url, sleep=waited.sync, **options))
            return clients[-1]

        yield blocking
        for client in clients:
            client.close()
        return
    with start_blocking_portal() as portal:
        driven: list[Driven] = []

        def asynchronous(url: str = stub.url, **options: Any) -> Driven:
            driven.append(Driven(portal, AsyncTurret(url, sleep=waited.later, **options)))
            return driven[-1]

        yield asynchronous
        for asynchronous_client in driven:
            asynchronous_client.aclose()


@pytest.fixture
def client(make: Make) -> Any:
    return make()


@pytest.fixture
def turret(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command against the stub."""
    monkeypatch.setenv("TURRET_URL", stub.url)

    def run(*args: object, stdin: str | bytes | None = None, **env: str) -> Result:
        result = CliRunner(env=env).invoke(app, [str(arg) for arg in args], input=stdin, prog_name="turret")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    for name in ("adapter_config.json", "adapter.safetensors", "optimizer.bin"):
        (path / name).write_bytes(name.encode())
    return path

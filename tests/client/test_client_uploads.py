"""Large uploads: what they cost in memory, what a refusal in their middle says, and that none is continued where another began."""

import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from client_driver import Make, Waited
from client_stub import DIGEST, PACKAGE, Stub
from turret_client import AsyncTurret, Overloaded, TooLarge, Turret
from turret_client.results import Answer
from typer.testing import Result

LARGE = 64 << 20  # bytes
ANSWER = {"name": "spam", "version": 1, "digest": DIGEST}


@pytest.fixture
def large(tmp_path: Path) -> Path:
    file = tmp_path / "large.safetensors"
    with file.open("wb") as stream:
        stream.truncate(LARGE)
    return file


@contextmanager
def refusing(status: int, after: int) -> Iterator[tuple[str, list[int]]]:
    """A server that answers each request once `after` bytes of it have come, and hangs up without reading the rest.

    Gives its URL, and a list that gets for each connection how many bytes were read.
    """
    body = json.dumps({"error": {"message": "Not now, thank you.", "code": f"code_{status}"}}).encode()
    head = f"HTTP/1.1 {status} no\r\nconnection: close\r\nretry-after: 3\r\ncontent-length: {len(body)}\r\n\r\n"
    read: list[int] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                count = 0
                while count < after:
                    count += len(connection.recv(65536))
                connection.sendall(head.encode() + body)
                read.append(count)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", read
        listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        thread.join(10)


@pytest.mark.parametrize("after", [1, 5_000_000])
@pytest.mark.parametrize(("status", "kind"), [(413, TooLarge), (429, Overloaded)])
def test_a_refusal_in_the_middle_shows_the_servers_sentence(
    make: Make, large: Path, status: int, kind: type[Exception], after: int
) -> None:
    with refusing(status, after) as (url, read):
        client = make(url, max_retries=0)
        for _ in range(3):
            with pytest.raises(kind, match="Not now, thank you"):
                client.push("spam", large)
    assert len(read) == 3
    assert max(read) < LARGE


def test_a_refusal_in_the_middle_is_tried_again_from_the_start(make: Make, large: Path, waited: Waited) -> None:
    seen: list[int] = []
    with refusing(429, 5_000_000) as (url, read), pytest.raises(Overloaded):
        make(url, max_retries=1).push("spam", large, progress=lambda done, _: seen.append(done))
    assert (len(read), seen.count(0)) == (2, 2)
    assert len(waited) == 1
    assert waited[0] >= 3


def test_the_command_shows_it_too(turret: Any, large: Path) -> None:
    with refusing(413, 5_000_000) as (url, _):
        result: Result = turret("push", "spam", large, "--url", url)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Not now, thank you.\n")


class Counting(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Takes a request's body chunk by chunk and keeps nothing of it but its length."""

    def __init__(self) -> None:
        self.count = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        for chunk in request.stream:
            self.count += len(chunk)
        return httpx.Response(201, json=ANSWER)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for chunk in request.stream:
            self.count += len(chunk)
        return httpx.Response(201, json=ANSWER)


@pytest.mark.parametrize("folder", [False, True])
def test_an_upload_never_lies_in_memory(make: Make, large: Path, folder: bool) -> None:
    (large.parent / "adapter_config.json").write_text("{}")
    transport = Counting()
    client = make("http://nowhere.invalid", transport=transport)
    client.push("spam", large)  # whatever is loaded by the first use
    transport.count = 0
    tracemalloc.start()
    try:
        client.push("spam", large.parent if folder else large)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert transport.count >= LARGE
    assert peak < LARGE / 16


def test_progress_is_told_in_the_event_loop(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(PACKAGE)
    threads: set[threading.Thread] = set()

    async def run() -> Answer:
        async with AsyncTurret(stub.url) as client:
            return await client.push("spam", tmp_path / "p.safetensors", progress=lambda *_: threads.add(threading.current_thread()))

    assert anyio.run(run)
    assert threads == {threading.current_thread()}
    assert stub.asked[0].body == PACKAGE


def test_a_cancelled_push_ends(large: Path) -> None:
    begun, cancelled = threading.Event(), threading.Event()
    counts: list[int] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            count = len(connection.recv(65536))
            begun.set()
            cancelled.wait()
            while chunk := connection.recv(65536):
                count += len(chunk)
            counts.append(count)

    async def run() -> None:
        async with AsyncTurret(f"http://127.0.0.1:{listener.getsockname()[1]}") as client, anyio.create_task_group() as group:
            group.start_soon(client.push, "spam", large)
            await anyio.to_thread.run_sync(begun.wait)
            group.cancel_scope.cancel()
        cancelled.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        anyio.run(run)
        thread.join()
    assert counts[0] < LARGE


def test_a_closed_client_pushes_nothing(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(PACKAGE)
    client = Turret(stub.url)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.push("spam", tmp_path / "p.safetensors")

    async def run() -> None:
        client = AsyncTurret(stub.url)
        await client.push("spam", tmp_path / "p.safetensors")
        await client.aclose()
        await client.push("spam", tmp_path / "p.safetensors")

    with pytest.raises(RuntimeError, match="closed"):
        anyio.run(run)
    assert len(stub.asked) == 1

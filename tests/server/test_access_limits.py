"""Limits on what reaches the app, each with its sentence: heads, bodies that stall, uploads at the same time, connections that dawdle."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
import uvicorn
from harness import error, serving
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.api.middleware import DRAINED, Body
from server.errors import ApiError
from server.protocol import bounded
from server.settings import Settings

PACKAGE = tiny.adapter(tiny.KINDS["pfeiffer"], None)
HEADERS, TARGET = 2048, 512
HEAD, SECONDS = 20_000, 0.5


@pytest.fixture(scope="module")
def tight(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    limits: dict[str, Any] = {"max_header_bytes": HEADERS, "max_headers": 20, "max_target_bytes": TARGET, "max_uploads": 2}
    with serving(backbone, tmp_path_factory.mktemp("store"), body_timeout=0.05, audit_log=None, **limits) as client:
        yield client


# The head of a request


def test_headers_in_bytes(tight: TestClient) -> None:
    fault = error(tight.get("/v1/models", headers={"a": "x" * HEADERS}), 431, "headers_too_large")
    assert fault["message"].endswith(f" bytes and the limit is {HEADERS}.")
    assert tight.get("/v1/models", headers={"a": "x" * (HEADERS // 2)}).status_code == 200
    assert tight.get("/healthz", headers={"a": "x" * HEADERS}).status_code == 431, "public routes too"
    assert tight.get("/models/base", headers={"a": "x" * HEADERS}).json()["error_type"] == "headers_too_large"


def test_headers_in_number(tight: TestClient) -> None:
    fault = error(tight.get("/v1/models", headers={f"a{i}": "x" for i in range(21)}), 431, "headers_too_large")
    assert fault["message"].startswith("The request has ")
    assert fault["message"].endswith(" headers and the limit is 20.")


def test_path_and_query(tight: TestClient) -> None:
    for path in ("/v1/adapters/" + "a" * TARGET, "/v1/adapters?task=" + "a" * TARGET, "/" + "%41" * (TARGET // 2)):
        fault = error(tight.get(path), 414, "path_too_long")
        assert fault["message"].endswith(f" bytes and the limit is {TARGET}.")
    assert tight.get("/v1/adapters/" + "a" * 64).status_code == 404


@given(st.binary(max_size=30).filter(lambda value: not set(value) & set(b"\r\n\0")) | st.integers(0, 10**30).map(lambda n: b"%d" % n))
def test_any_length_is_read(tight: TestClient, length: bytes) -> None:
    """What a server in front lets through as content-length is never a fault of ours."""
    body = Body(None, {b"content-length": length}, 100, 1)  # type: ignore[arg-type]
    assert body.left >= 0


# Uploads at the same time


class Held:
    """An upload that stays under way until it is let go."""

    def __init__(self, client: TestClient, name: str) -> None:
        self.go, self.statuses, self.received = threading.Event(), list[int](), 0
        path = f"/v1/adapters/{name}"
        scope = {"type": "http", "method": "PUT", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
        self.task = client.portal.start_task_soon(client.app, {**scope, "app": client.app}, self.receive, self.send)

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        await asyncio.to_thread(self.go.wait)
        return {"type": "http.request", "body": b"not a package"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])

    def end(self) -> int:
        self.go.set()
        self.task.result(30)
        return self.statuses[0]


def test_uploads_at_the_same_time(backbone: Path, tmp_path: Path) -> None:
    with serving(backbone, tmp_path / "store", max_uploads=2) as client:
        held = [Held(client, "a"), Held(client, "b")]
        try:
            while not all(one.received for one in held):
                threading.Event().wait(0.01)
            refused = Held(client, "c")
            assert refused.end() == 429
            assert refused.received == 0, "an upload that is refused is not read"
            answer = client.put("/v1/adapters/c", content=PACKAGE)
            fault = error(answer, 429, "too_many_uploads")
            assert fault["message"] == "2 uploads are under way, which is the limit: try again soon."
            assert int(answer.headers["retry-after"]) >= 1
            assert client.get("/v1/models").status_code == 200
            assert client.delete("/v1/adapters/c").status_code == 404
        finally:
            statuses = [one.end() for one in held]
        assert statuses == [422, 422]
        assert client.put("/v1/adapters/c", content=PACKAGE).status_code == 201


def test_a_large_upload_that_is_refused_is_not_read(backbone: Path, tmp_path: Path) -> None:
    with serving(backbone, tmp_path / "store", max_upload_bytes=100_000) as client:
        answer = client.put("/v1/adapters/c", content=b"x" * 200_000)
        error(answer, 413, "body_too_large")
        assert answer.headers["connection"] == "close"
        early = client.put("/v1/adapters/BAD", content=b"x" * (DRAINED + 1))
        assert (early.status_code, early.headers["connection"]) == (400, "close")
        assert "connection" not in client.put("/v1/adapters/BAD", content=b"x").headers


# A body that stalls


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/adapters/x"), ("POST", "/v1/predict"), ("PUT", "/v1/adapters/x/aliases/prod")])
def test_a_body_that_stalls(tight: TestClient, method: str, path: str) -> None:
    messages: list[dict[str, Any]] = []
    sent = [{"type": "http.request", "body": b'{"model":', "more_body": True}]

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    tight.portal.call(tight.app, {**scope, "app": tight.app}, receive, send)
    assert messages[0]["status"] == 408
    assert (b"connection", b"close") in messages[0]["headers"]
    assert json.loads(messages[1]["body"])["error"]["message"] == "No byte of the body came for 0.05 s: send it again."
    assert tight.put("/v1/adapters/x", content=PACKAGE).status_code in (200, 201), "its place is free again"


def test_only_a_body_that_is_due_is_waited_for_in_time() -> None:
    """Once it is complete, `receive` waits for the disconnect, however long the answer takes."""

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def asked() -> None:
        body = Body(receive, {b"content-length": b"4"}, 10, 0.001)
        assert body.left == 4
        assert (await body.receive())["body"] == b"ab"
        assert body.left == 2
        await body.receive()
        assert body.left == 0
        assert await body.receive() == {"type": "http.disconnect"}

    messages = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"cd", "more_body": False}]
    asyncio.run(asked())


def test_a_body_longer_than_it_said() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 6, "more_body": True}

    async def asked() -> None:
        body = Body(receive, {}, 10, 1)
        await body.receive()
        with pytest.raises(ApiError, match="larger than the limit of 10 bytes"):
            await body.receive()

    asyncio.run(asked())


# Connections, before there is a request


async def answering(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def listening() -> Iterator[int]:
    """The port of an app behind the protocol of `turret-server`."""
    config = uvicorn.Config(answering, port=0, http=bounded(HEAD, SECONDS), timeout_keep_alive=1, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with listening() as port:
        yield port


def talk(port: int, *parts: bytes | float) -> bytes:
    """Everything that a connection answers until it is closed; numbers are pauses."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(ConnectionError):  # it was closed while there was more to send
            for part in parts:
                if isinstance(part, bytes):
                    connection.sendall(part)
                else:
                    threading.Event().wait(part)
        with suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                heard += data
    return heard


GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


def test_a_head_without_end_is_cut_off(port: int) -> None:
    heard = talk(port, GET + b"a: ", *[b"x" * HEAD] * 40)
    assert heard.startswith(b"HTTP/1.1 431 ")
    head, _, body = heard.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "headers_too_large"
    assert talk(port, GET, *[b"a: b\r\n" * 1000] * 200).startswith(b"HTTP/1.1 431 ")
    assert talk(port, b"GET /", *[b"x" * HEAD] * 40).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_does_not_come_to_its_end(port: int) -> None:
    heard = talk(port, GET)
    assert heard.startswith(b"HTTP/1.1 408 ")
    assert json.loads(heard.partition(b"\r\n\r\n")[2])["error"]["message"] == "The headers were not complete after 0.5 s: send them again."


def test_connections_on_which_nothing_happens_are_closed(port: int) -> None:
    assert talk(port) == b""
    assert talk(port, b"\r\n") == b""
    assert talk(port, GET + b"\r\n", 0.05, b"\r\n").count(b"HTTP/1.1 200") == 1


def test_a_slow_body_and_several_requests_are_left_alone(port: int) -> None:
    slow = talk(port, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab", 2 * SECONDS, b"cd")
    assert slow.startswith(b"HTTP/1.1 200")
    again = talk(port, GET + b"\r\n", 0.1, GET + b"\r\n", 0.1, GET + b"\r\n" + GET + b"\r\n")
    assert again.count(b"HTTP/1.1 200") == 4
    assert talk(port, GET + b"a: " + b"x" * (HEAD // 2) + b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_defaults_leave_room() -> None:
    settings = Settings(backbone="none")
    assert (settings.max_header_bytes, settings.max_uploads, settings.body_timeout) == (32768, 4, 60)


def test_every_setting_of_access_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/access.md").read_text()
    names = [
        name for name in Settings.model_fields if re.search("header|body|upload|target|keep_alive|api_keys|signers|audit|insecure", name)
    ]
    assert len(names) >= 13
    assert [name for name in names if f"--{name.replace('_', '-')}" not in text] == []

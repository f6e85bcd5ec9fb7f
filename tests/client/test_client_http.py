"""Both clients over a real socket: inference, packages, errors and second tries. Each test runs twice (see client_driver.py)."""

import socket
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from client_driver import Make, Waited
from client_stub import DIGEST, PACKAGE, Stub
from turret_client import (
    AsyncTurret,
    Conflict,
    ConnectionFailed,
    DigestMismatch,
    InvalidArgument,
    Label,
    NotFound,
    Overloaded,
    RowFailed,
    ServerError,
    TimedOut,
    TooLarge,
    Turret,
    Unauthorized,
    UnexpectedResponse,
)

# Each operation.


def test_predict(client: Any, stub: Stub) -> None:
    answer = client.predict("spam", "free cash!!", parameters={"top_k": 2})
    assert answer[0].output == [Label(label="spam", score=0.75), Label(label="ham", score=0.25)]
    assert (answer[0].model, answer[0].digest, answer.timing.total_ms) == ("spam@4", DIGEST, 2.5)
    assert stub.asked[0].json == {"model": "spam", "inputs": "free cash!!", "output": "decoded", "parameters": {"top_k": 2}}


def test_predict_fan_out_batch_and_logits(client: Any) -> None:
    assert [row.model for row in client.predict(["spam", "topic"], "text")] == ["spam@4", "topic@4"]
    assert len(client.predict("spam", ["a", "b", "c"])) == 3
    assert client.predict("spam", "a", output="logits")[0].output.shape == [2]


def test_predict_many_answers_around_a_row_that_failed(client: Any) -> None:
    rows = client.predict_many([{"model": "spam", "inputs": "a"}, {"model": "nope", "inputs": "b"}, {"model": "vectors", "inputs": "c"}])
    assert rows[2].output == [0.5, 1]
    assert rows[1].error.code == "gone"
    with pytest.raises(RowFailed):
        _ = rows[1].output


def test_embed(client: Any) -> None:
    answer = client.embed(["a", "b"], "base")
    assert answer.vectors == ([0.0, 0.5], [1.0, 0.5])
    assert answer.prompt_tokens == 7


def test_push_a_file(client: Any, stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "spam.safetensors"
    file.write_bytes(PACKAGE)
    seen: list[tuple[int, int]] = []
    published = client.push("acme/spam", file, alias="prod", progress=lambda done, total: seen.append((done, total)))
    assert (published.name, published.version, published.is_new, published.aliases["prod"]) == ("acme/spam", 3, True, 3)
    asked = stub.asked[0]
    assert (asked.method, asked.path, asked.query, asked.body) == ("PUT", "/v1/adapters/acme/spam", "alias=prod", PACKAGE)
    assert asked.headers["content-type"] == "application/octet-stream"
    assert asked.headers["content-length"] == str(len(PACKAGE))
    assert "transfer-encoding" not in asked.headers
    assert (seen[0], seen[-1]) == ((0, len(PACKAGE)), (len(PACKAGE), len(PACKAGE)))


def test_push_a_folder(client: Any, stub: Stub, tmp_path: Path) -> None:
    files = {"adapter.safetensors": PACKAGE, "adapter_config.json": b"{}", "README.md": "Grüße".encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert client.push("again", tmp_path).is_new is False
    assert stub.uploads == [files]
    assert int(stub.asked[0].headers["content-length"]) == len(stub.asked[0].body)


def test_push_only_if_new(client: Any, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(b"x")
    stub.refuse(409, "The name exists.")
    with pytest.raises(Conflict, match="The name exists"):
        client.push("spam", tmp_path / "p.safetensors", if_none_match=True)
    assert stub.asked[0].headers["if-none-match"] == "*"


def test_what_cannot_be_pushed_is_never_sent(client: Any, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "pytorch_adapter.bin").touch()
    with pytest.raises(InvalidArgument, match="turret convert"):
        client.push("spam", tmp_path)
    with pytest.raises(InvalidArgument, match="name"):
        client.show("../etc")
    assert stub.asked == []


def test_pull(client: Any, stub: Stub, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pulled = client.pull("acme/spam@prod", tmp_path / "p", progress=lambda done, total: seen.append((done, total)))
    assert (pulled.file, pulled.digest, pulled.size) == (tmp_path / "p", DIGEST, len(PACKAGE))
    assert (tmp_path / "p").read_bytes() == PACKAGE
    assert stub.asked[0].path == "/v1/adapters/acme/spam/versions/prod/package"
    assert (seen[0], seen[-1]) == ((0, len(PACKAGE)), (len(PACKAGE), len(PACKAGE)))
    client.pull("spam", str(tmp_path / "q"))
    assert stub.asked[1].path == "/v1/adapters/spam/versions/latest/package"


def test_pull_by_digest(client: Any, stub: Stub, tmp_path: Path) -> None:
    client.pull(f"spam@{DIGEST}", tmp_path / "p")
    assert [asked.path for asked in stub.asked] == ["/v1/adapters/spam", "/v1/adapters/spam/versions/3/package"]
    with pytest.raises(NotFound, match="no version with the digest"):
        client.pull("spam@sha256:" + "9" * 64, tmp_path / "p")
    with pytest.raises(DigestMismatch):  # the server sends version 3's bytes for version 2
        client.pull("spam@sha256:" + "2" * 64, tmp_path / "q")
    assert [file.name for file in tmp_path.iterdir()] == ["p"]


def test_pull_refuses_other_bytes(client: Any, stub: Stub, tmp_path: Path, waited: Waited) -> None:
    stub.etag = '"sha256:' + "0" * 64 + '"'
    with pytest.raises(DigestMismatch):
        client.pull("spam", tmp_path / "p")
    stub.etag = ""
    with pytest.raises(UnexpectedResponse, match="ETag"):
        client.pull("spam", tmp_path / "p")
    with pytest.raises(InvalidArgument, match="is a folder"):
        client.pull("spam", tmp_path)
    assert (list(tmp_path.iterdir()), len(stub.asked), waited) == ([], 2, [])


def test_pull_errors_carry_the_servers_sentence(client: Any, stub: Stub, tmp_path: Path) -> None:
    stub.refuse(404, "No version 9.")
    with pytest.raises(NotFound, match="No version 9") as caught:
        client.pull("spam@9", tmp_path / "p")
    assert caught.value.code == "code_404"
    assert list(tmp_path.iterdir()) == []


def test_list_turns_the_pages(client: Any, stub: Stub) -> None:
    adapters = list(client.list(task="text-classification", namespace="acme", page_size=2))
    assert [adapter.name for adapter in adapters] == [f"acme/a{i}" for i in range(5)]
    assert [asked.query for asked in stub.asked] == [
        "task=text-classification&namespace=acme&limit=2" + cursor for cursor in ("", "&cursor=2", "&cursor=4")
    ]
    assert adapters[0].created.year == 2026


def test_list_never_walks_in_a_circle(client: Any, stub: Stub) -> None:
    stub.loop = True
    with pytest.raises(UnexpectedResponse, match="repeats itself"):
        list(client.list())
    assert len(stub.asked) == 2


def test_show_delete_alias_and_models(client: Any, stub: Stub) -> None:
    details = client.show("acme/spam")
    assert ([version.version for version in details.versions], details.manifest["name"]) == ([3, 2], "made")
    assert client.delete("spam").deleted == [1, 2, 3]
    assert client.delete("acme/spam", 2).deleted == [2]
    assert client.set_alias("spam", "prod", 2).aliases == {"latest": 3, "prod": 2}
    assert [(model.id, model.parent) for model in client.models()] == [("spam", "minilm")]
    with pytest.raises(NotFound) as caught:
        client.show("nope")
    assert (caught.value.status, caught.value.code, caught.value.message) == (404, "not_found", "No adapter 'nope'.")


def test_health(client: Any, stub: Stub, waited: Waited) -> None:
    assert client.health().ready
    stub.answer(200, b"ok")
    stub.refuse(503, "The backbone is loading.")
    health = client.health()
    assert (health.alive, health.ready, health.detail, waited) == (True, False, "The backbone is loading.", [])


# Who asks, and where.


def test_keys_ids_and_agent(make: Make, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    make().models()
    make(api_key="secret\n").models()
    monkeypatch.setenv("TURRET_API_KEY", "from-environment")
    make().models()
    keys = [asked.headers.get("authorization") for asked in stub.asked]
    assert keys == [None, "Bearer secret", "Bearer from-environment"]
    assert stub.asked[0].headers["user-agent"] == "turret-client/0.1.0"
    assert len({asked.headers["x-request-id"] for asked in stub.asked}) == 3
    with pytest.raises(InvalidArgument, match="API key"):
        make(api_key="a\nb")


def test_the_url_comes_from_the_environment_and_may_have_a_path(make: Make, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURRET_URL", stub.url + "/behind/a/proxy/")
    stub.answer(200, b'{"data": []}')
    make(url=None).models()
    assert stub.asked[0].path == "/behind/a/proxy/v1/models"


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://host", "http://", "http://[", "http://host:x", "http://a..b", "http://host?a=b", "turret"]
)
def test_urls_that_are_none(make: Make, url: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a server's URL"):
        make(url)


# Errors and second tries.


def test_retry_after_is_honoured(client: Any, stub: Stub, waited: Waited) -> None:
    stub.refuse(429, "The queue is full.", retry_after="2")
    stub.refuse(503, "Not ready.")
    assert client.predict("spam", "a")[0].model == "spam@4"
    assert len(stub.asked) == 3
    assert len({asked.headers["x-request-id"] for asked in stub.asked}) == 1
    assert stub.asked[0].body == stub.asked[2].body
    assert 2.125 <= waited[0] <= 2.25
    assert 0.25 <= waited[1] <= 0.5


def test_retries_end(make: Make, stub: Stub, waited: Waited) -> None:
    for _ in range(5):
        stub.refuse(429, "The queue is full.", retry_after="999", x_request_id="theirs")
    with pytest.raises(Overloaded, match="The queue is full") as caught:
        make(max_retries=2).predict("spam", "a")
    assert (caught.value.retry_after, caught.value.request_id, len(stub.asked)) == (999.0, "theirs", 3)
    assert waited == [30.0, 30.0]
    with pytest.raises(Overloaded):
        make(max_retries=0).predict("spam", "a")
    assert len(stub.asked) == 4


def test_an_upload_is_repeated_from_its_start(client: Any, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(PACKAGE)
    stub.refuse(503)
    stub.drop()
    seen: list[int] = []
    assert client.push("spam", tmp_path / "p.safetensors", progress=lambda done, _: seen.append(done)).version == 3
    assert [asked.body == PACKAGE for asked in stub.asked] == [True, True, True]
    assert seen.count(0) == 3


def test_dropped_connections(client: Any, stub: Stub, tmp_path: Path, waited: Waited) -> None:
    stub.drop()
    stub.drop(after=b'{"resul')
    assert len(client.predict("spam", "a")) == 1
    assert len(waited) == 2
    stub.drop(after=PACKAGE[:1000])
    assert client.pull("spam", tmp_path / "p").size == len(PACKAGE)
    assert (tmp_path / "p").read_bytes() == PACKAGE


def test_what_may_have_been_done_is_not_done_twice(client: Any, stub: Stub, tmp_path: Path, waited: Waited) -> None:
    (tmp_path / "p.safetensors").write_bytes(b"x")
    stub.drop()
    with pytest.raises(ConnectionFailed, match="broke before the answer") as caught:
        client.delete("spam")
    assert caught.value.sent
    assert caught.value.request_id == stub.asked[0].headers["x-request-id"]
    stub.drop()
    with pytest.raises(ConnectionFailed):
        client.push("spam", tmp_path / "p.safetensors", if_none_match=True)
    assert (len(stub.asked), waited) == (2, [])


def test_a_pull_that_breaks_for_good_leaves_nothing(make: Make, stub: Stub, tmp_path: Path) -> None:
    stub.drop(after=PACKAGE[:1000])
    with pytest.raises(ConnectionFailed):
        make(max_retries=0).pull("spam", tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_slow_server_is_not_asked_twice(make: Make, stub: Stub, waited: Waited) -> None:
    stub.stall(0.5)
    with pytest.raises(TimedOut, match="did not answer within the timeout"):
        make(timeout=0.1).predict("spam", "a")
    assert (len(stub.asked), waited) == (1, [])


def test_nobody_there(make: Make, waited: Waited) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionFailed, match="No server can be reached at") as caught:
        make(f"http://me:secret@127.0.0.1:{port}").delete("spam")
    assert not caught.value.sent
    assert "secret" not in caught.value.message
    assert len(waited) == 3


def test_broken_answers(client: Any, stub: Stub, waited: Waited) -> None:
    for body, headers in ((b"<html>", {}), (b'{"results": [', {}), (b"not gzip", {"content_encoding": "gzip"})):
        stub.answer(200, body, **headers)
        with pytest.raises(UnexpectedResponse) as caught:
            client.predict("spam", "a")
        assert caught.value.request_id
    stub.answer(307, b"", location="http://elsewhere/")
    with pytest.raises(UnexpectedResponse, match="http://elsewhere/"):
        client.predict("spam", "a")
    assert waited == []


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorized), (413, TooLarge), (500, ServerError)])
def test_statuses_are_typed_and_not_repeated(client: Any, stub: Stub, waited: Waited, status: int, kind: type[Exception]) -> None:
    stub.refuse(status, "Because.")
    with pytest.raises(kind, match=r"Because\."):
        client.predict("spam", "a")
    assert waited == []


# What is not shared.


def test_context_managers(stub: Stub) -> None:
    with Turret(stub.url) as client:
        assert client.health().alive
    with pytest.raises(RuntimeError, match="closed"):
        client.models()

    async def run() -> bool:
        async with AsyncTurret(stub.url) as client:
            return (await client.health()).ready

    assert anyio.run(run)


def test_many_tasks_share_one_client(stub: Stub) -> None:
    answers: list[str] = []

    async def run() -> None:
        async with AsyncTurret(stub.url) as client, anyio.create_task_group() as group:

            async def one(name: str) -> None:
                answers.append((await client.predict(name, "a"))[0].model)

            for index in range(20):
                group.start_soon(one, f"m{index}")

    anyio.run(run)
    assert sorted(answers) == sorted(f"m{index}@4" for index in range(20))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1"])
@pytest.mark.parametrize("proxy", [None, "https://proxy.invalid"])
def test_certificates_are_checked_wherever_tls_can_occur(monkeypatch: pytest.MonkeyPatch, url: str, proxy: str | None) -> None:
    given: list[object] = []
    monkeypatch.setattr(httpx, "Client", lambda **options: given.append(options["verify"]))
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
    Turret(url)
    assert given == [url.startswith("https") or proxy is not None]


def test_any_transport_will_do() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"data": [{"id": request.url.host}]}))
    with Turret("http://nowhere.invalid", transport=transport) as client:
        assert client.models()[0].id == "nowhere.invalid"

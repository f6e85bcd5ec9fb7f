"""A stand-in for the server on a real socket: keeps what it is asked, answers as the wire says, and plays errors on demand."""

import asyncio
import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
Play = Callable[[Send], Awaitable[None]]

PACKAGE = b"package " * 40_000
DIGEST = f"sha256:{hashlib.sha256(PACKAGE).hexdigest()}"
CREATED = "2026-11-24T10:00:00Z"

# What commits of a history hold, in turn by their numbers.
HISTORY: list[list[dict[str, Any]]] = [
    [{"type": "alias", "name": "spam", "alias": "prod", "weights": {"4": 10, "3": 90}}],
    [
        {"type": "publish", "name": "spam", "version": 4, "digest": DIGEST, "signature": "acme-release"},
        {"type": "alias", "name": "spam", "alias": "prod", "version": 4},
    ],
    [
        {"type": "unalias", "name": "spam", "alias": "old"},
        {"type": "delete", "name": "spam", "version": 2},
        {"type": "delete", "name": "spam"},
    ],
    [{"type": "collect", "digests": ["sha256:" + "2" * 64, "sha256:" + "3" * 64]}, {"type": "freeze", "name": "spam", "until": "June"}],
]


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stub:
    """The running stand-in: `asked` are its requests so far, `plays` what the next ones get instead of an answer."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    plays: deque[Play] = field(default_factory=deque)
    uploads: list[dict[str, bytes]] = field(default_factory=list)
    etag: str = f'"{DIGEST}"'
    loop: bool = False

    def reset(self) -> None:
        self.asked.clear()
        self.plays.clear()
        self.uploads.clear()
        self.etag, self.loop = f'"{DIGEST}"', False

    def refuse(self, status: int, message: str = "no", **headers: str) -> None:
        """The next request is answered with this status and Turret's envelope."""
        error = {"message": message, "type": "refused", "param": None, "code": f"code_{status}"}
        self.answer(status, json.dumps({"error": error}).encode(), **headers)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """The next request is answered with exactly this."""

        async def play(send: Send) -> None:
            fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body)), *fields]})
            await send({"type": "http.response.body", "body": body})

        self.plays.append(play)

    def drop(self, after: bytes | None = None) -> None:
        """The next connection is closed without an answer, or after the start of one."""

        async def play(send: Send) -> None:
            if after is not None:
                headers = [(b"content-length", b"%d" % len(PACKAGE)), (b"etag", self.etag.encode())]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": after, "more_body": True})
            send.__self__.transport.close()  # type: ignore[attr-defined]  # uvicorn's cycle
            await asyncio.sleep(0.02)

        self.plays.append(play)

    def stall(self, seconds: float) -> None:
        """The next request is answered late."""

        async def play(send: Send) -> None:
            await asyncio.sleep(seconds)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        self.plays.append(play)


def application(stub: Stub) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI app: keeps the request, plays what is to be played, or answers."""
    inner = _routes(stub)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        stub.asked.append(Asked(scope["method"], scope["raw_path"].decode(), scope["query_string"].decode(), headers, body))
        if stub.plays:
            await stub.plays.popleft()(send)
            return

        async def replay() -> Scope:
            return {"type": "http.request", "body": body, "more_body": False}

        await inner(scope, replay, send)

    return app


def _routes(stub: Stub) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/predict")
    async def predict(request: Request) -> dict[str, Any]:
        body = await request.json()
        rows = body.get("requests") or [
            {"model": model, "inputs": text, "output": body.get("output")}
            for text in (body["inputs"] if isinstance(body["inputs"], list) else [body["inputs"]])
            for model in (body["model"] if isinstance(body["model"], list) else [body["model"]])
        ]
        return {"results": [_row(row) for row in rows], "timing": {"tokenization_ms": 0.1, "total_ms": 2.5}}

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> dict[str, Any]:
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [
            {"object": "embedding", "index": i, "embedding": base64.b64encode(struct.pack("<2f", i, 0.5)).decode()}
            for i in reversed(range(len(texts)))
        ]
        return {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}

    @app.put("/v1/adapters/{name:path}/aliases/{alias}")
    async def alias(name: str, alias: str, request: Request) -> dict[str, Any]:
        body = await request.json()
        return {"name": name, "aliases": {"latest": 3, alias: body.get("version") or body["weights"]}}

    @app.delete("/v1/adapters/{name:path}/aliases/{alias}")
    async def unalias(name: str, alias: str) -> dict[str, Any]:
        return {"name": name, "aliases": {"latest": 3}}

    @app.post("/v1/adapters/{name:path}/aliases/{alias}/rollback")
    async def rollback(name: str, alias: str) -> dict[str, Any]:
        return {"name": name, "aliases": {"latest": 3, alias: 1}}

    @app.post("/v1/adapters/{name:path}/load")
    async def load(name: str, request: Request) -> dict[str, Any]:
        resident = {"device": True, "host": True, "pinned": (await request.json())["pin"]}
        return {"name": name, "version": 3, "digest": DIGEST, "resident": resident}

    @app.post("/v1/adapters/{name:path}/unload")
    async def unload(name: str) -> dict[str, Any]:
        return {"name": name, "version": 3, "digest": DIGEST, "resident": {"device": False, "host": True, "pinned": False}}

    @app.post("/v1/changes")
    async def change(request: Request) -> dict[str, Any]:
        made = [_made(change) for change in (await request.json())["changes"]]
        return {"commit": 12, "time": CREATED, "by": "acme-ci", "changes": made}

    @app.get("/v1/changes")
    async def history(before: int = 13, limit: int = 3) -> dict[str, Any]:
        numbers = range(before - 1, max(0, before - 1 - limit), -1)
        commits = [{"commit": n, "time": CREATED, "by": "acme-ci", "changes": HISTORY[n % len(HISTORY)]} for n in numbers]
        return {"commits": commits, "next_before": min(numbers) if min(numbers) > 1 else None}

    @app.put("/v1/adapters/{name:path}")
    async def push(name: str, request: Request, alias: str | None = None) -> JSONResponse:
        if request.headers["content-type"].startswith("multipart/"):
            async with request.form() as form:
                files = [file for key, file in form.multi_items() if key == "files" and not isinstance(file, str)]
                stub.uploads.append({file.filename or "": await file.read() for file in files})
        aliases = {"latest": 3} | ({alias: 3} if alias else {})
        fields = _summary(name) | {"aliases": aliases, "warnings": ["no license\x1b[31m"]}
        return JSONResponse(fields, status_code=200 if name == "again" else 201)

    @app.get("/v1/adapters")
    async def listing(cursor: str = "0", limit: int = 2, task: str | None = None) -> dict[str, Any]:
        names = [f"acme/a{i}" for i in range(5)]
        start = int(cursor)
        following = str(start + limit) if start + limit < len(names) else None
        return {
            "adapters": [_summary(name) | {"task": task} for name in names[start : start + limit]],
            "next_cursor": "0" if stub.loop else following,
        }

    @app.get("/v1/adapters/{name:path}/versions/{version}/package")
    async def package(name: str, version: str) -> Response:
        return Response(PACKAGE, media_type="application/octet-stream", headers={"etag": stub.etag})

    @app.get("/v1/adapters/{name:path}")
    async def show(name: str) -> JSONResponse:
        if name == "nope":
            return JSONResponse({"error": {"message": "No adapter 'nope'.", "code": "not_found"}}, status_code=404)
        manifest = {
            "format": "turret/1",
            "name": "made",
            "methods": {"bottleneck": {"method": "bottleneck", "reduction_factor": 16}},
            "head": {"type": "classification"},
            "backbone": {"model_type": "bert"},
        }
        versions = [
            {"version": 3, "digest": DIGEST, "size": len(PACKAGE), "created": CREATED, "by": "acme-ci", "signature": "acme-release"},
            {"version": 2, "digest": "sha256:" + "2" * 64, "size": 9, "created": CREATED},
        ]
        fields = {"name": name, "aliases": {"latest": 3, "prod": 2}, "versions": versions, "manifest": manifest}
        return JSONResponse(fields | {"resident": {"device": True}, "counts": {"requests": 12}})

    @app.delete("/v1/adapters/{name:path}/versions/{version}")
    async def delete_version(name: str, version: str) -> dict[str, Any]:
        return {"name": name, "deleted": [int(version)]}

    @app.delete("/v1/adapters/{name:path}")
    async def delete(name: str) -> dict[str, Any]:
        return {"name": name, "deleted": [1, 2, 3]}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        row = {"id": "spam", "object": "model", "created": 1, "owned_by": "turret", "root": "spam", "parent": "minilm"}
        return {"object": "list", "data": [row]}

    @app.get("/healthz")
    @app.get("/readyz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _row(row: dict[str, Any]) -> dict[str, Any]:
    model = row["model"]
    if model == "nope" or row["inputs"] == "too long":
        return {
            "model": model,
            "error": {"message": f"Nothing for {row['inputs']!r}.", "type": "not_found", "param": "model", "code": "gone"},
        }
    spam: Any = [{"label": "spam", "score": 0.75}, {"label": "ham", "score": 0.25}]
    entity = {"entity_group": "PER", "score": 0.9, "word": "Ada\tL.", "start": 0, "end": 5}
    output = {"ner": [entity], "ner-empty": [], "vectors": [0.5, 1]}.get(model, spam)
    if row.get("output") == "logits":
        output = {"shape": [2], "data": [1.5, -1.5]}
    usage = {"input_tokens": 9, "truncated": False}
    fields = {"model": f"{model}@4", "digest": DIGEST, "task": "text-classification", "output": output, "usage": usage}
    return fields | ({"digest": None, "digests": [DIGEST, "sha256:" + "2" * 64]} if "(" in model else {})


def _made(change: dict[str, Any]) -> dict[str, Any]:
    """A change that was asked for as its commit has it."""
    if change["type"] == "publish":
        return {"type": "publish", "name": change["name"], "version": 5, "digest": DIGEST}
    return change


def _summary(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "version": 3,
        "digest": DIGEST,
        "task": "text-classification",
        "head": {"type": "classification", "labels": ["ham", "spam"]},
        "methods": ["bottleneck"],
        "size": 1_234_567,
        "parameters": 300_000,
        "created": CREATED,
        "aliases": {"latest": 3, "prod": {"3": 90, "4": 10}},
        "license": "MIT",
    }


@contextmanager
def running(stub: Stub) -> Iterator[Stub]:
    """Serves the stub on a free port of 127.0.0.1 for as long as the context lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(application(stub), log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield stub
        server.should_exit = True
        thread.join(10)


__all__ = ["CREATED", "DIGEST", "PACKAGE", "Asked", "Stub", "running"]

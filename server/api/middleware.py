"""Plain ASGI around every request: its id, its metrics, the limit on its body. (BaseHTTPMiddleware would hide disconnects.)"""

import re
import time
import uuid
from typing import Any

import orjson
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, envelope
from server.metrics import Metrics

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Around:
    """Wraps the app: `limit(method, path)` is the largest body in bytes."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int, max_upload_bytes: int, routes: list[Any]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes
        self._max_body_bytes, self._max_upload_bytes = max_body_bytes, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        limit = self._limit(scope)
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > limit:
                await _refuse(scope, sending, limit)
            else:
                await self._app(scope, _limited(receive, limit), sending)
        finally:
            path = self._template(scope)
            self._metrics.requests.labels(scope["method"], path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.perf_counter() - began)

    def _limit(self, scope: Scope) -> int:
        upload = scope["method"] == "PUT" and scope["path"].startswith("/v1/adapters/") and "/aliases/" not in scope["path"]
        return self._max_upload_bytes if upload else self._max_body_bytes

    def _template(self, scope: Scope) -> str:
        """The route's path with its parameters unfilled, so that names do not become metric labels."""
        route = scope.get("route")
        path = getattr(route, "path", None)
        if path is None:
            path = next((r.path for r in self._routes if hasattr(r, "path") and r.matches(scope)[0] != Match.NONE), "unknown")
        return str(path)


def too_large(limit: int) -> ApiError:
    """The error of a body over the limit."""
    return ApiError(413, "body_too_large", f"The body is larger than the limit of {limit} bytes: send less at a time.")


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive` that raises once more than `limit` bytes of body have come."""
    total = 0

    async def receiving() -> Message:
        nonlocal total
        message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            if total > limit:
                raise too_large(limit)
        return message

    return receiving


async def _refuse(scope: Scope, send: Send, limit: int) -> None:
    error = too_large(limit)
    body = orjson.dumps(envelope(scope["path"], error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

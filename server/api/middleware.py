"""Plain ASGI around every request: its id, its metrics, its limits, who may call, the audit log.

What refuses a request here does so before its body is read, in the envelope of the called convention. (BaseHTTPMiddleware would hide
disconnects.)
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Iterable
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.audit import Audit
from server.api.access import Guard, Rule, state_of
from server.api.hot import Hot
from server.errors import ApiError, as_api_error, envelope
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# Where more than this of a body is due when the answer starts, it is not read: the connection is closed.
DRAINED = 1 << 16
# Seconds after which an upload that found no room may try again; how long the others take cannot be known.
UPLOAD_WAIT = 5


class Around:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, guard: Guard, audit: Audit, hot: Iterable[Hot] = ()) -> None:
        self._app, self._settings, self._metrics, self._guard, self._audit = app, settings, metrics, guard, audit
        self._hot = {("POST", one.path): one for one in hot}
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if given and REQUEST_ID.fullmatch(given) else b"%032x" % random.getrandbits(128)
        rule, parameters = self._guard.match(scope) or (None, {})
        upload = rule is not None and rule.upload
        limit = self._settings.max_upload_bytes if upload else self._settings.max_body_bytes
        body = Body(receive, headers, limit, self._settings.body_timeout)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [] if rule is None else self._guard.headers(scope, rule)
                closing = [(b"connection", b"close")] if body.left > DRAINED or status == 408 else []
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id), *more, *closing]
            await send(message)

        try:
            await self._answer(scope, rule, parameters, body, sending)
        finally:
            path = _template(scope) if rule is None else rule.path
            self._metrics.on_request(scope["method"], path, status, time.perf_counter() - began)
            if rule is not None and rule.changes:
                self._audit.write("request", _line(scope, request_id, status))

    async def _answer(self, scope: Scope, rule: Rule | None, parameters: dict[str, str], body: "Body", send: Send) -> None:
        """Lets the app answer, or refuses."""
        upload = rule is not None and rule.upload
        try:
            self._check_head(scope)
            if rule is not None:
                self._guard.admit(scope, rule, parameters)
            if body.left > body.limit:
                raise too_large(body.limit)
            if upload and self._uploads >= self._settings.max_uploads:
                raise _too_many_uploads(self._settings.max_uploads)
        except Exception as error:
            await _refuse(scope, error, send)
            return
        self._uploads += upload
        try:
            hot = None if rule is None else self._hot.get((rule.method, rule.path))
            if hot is not None:
                await hot(scope, body.receive, send, parameters)
            else:
                await self._app(scope, body.receive, send)
        finally:
            self._uploads -= upload

    def _check_head(self, scope: Scope) -> None:
        """Raises ApiError for headers or a path over the limits."""
        settings = self._settings
        target = len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b""))
        if target > settings.max_target_bytes:
            raise ApiError(414, "path_too_long", f"Path and query have {target} bytes and the limit is {settings.max_target_bytes}.")
        count, size = len(scope["headers"]), sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if count > settings.max_headers:
            raise ApiError(431, "headers_too_large", f"The request has {count} headers and the limit is {settings.max_headers}.")
        if size > settings.max_header_bytes:
            raise ApiError(431, "headers_too_large", f"The headers have {size} bytes and the limit is {settings.max_header_bytes}.")


def too_large(limit: int) -> ApiError:
    """The error of a body over the limit."""
    return ApiError(413, "body_too_large", f"The body is larger than the limit of {limit} bytes: send less at a time.")


def _too_many_uploads(limit: int) -> ApiError:
    return ApiError(429, "too_many_uploads", f"{limit} uploads are under way, which is the limit: try again soon.", retry_after=UPLOAD_WAIT)


class Body:
    """A request's body on its way in: no more than `limit` bytes of it, and none of its pauses longer than `pause` seconds.

    `left` is how much of it is still due, as far as is known; of a chunked body as much as is allowed.
    """

    def __init__(self, receive: Receive, headers: dict[bytes, bytes], limit: int, pause: float) -> None:
        self._receive, self.limit, self._pause = receive, limit, pause
        length = headers.get(b"content-length", b"")
        self.left = limit if b"transfer-encoding" in headers else int(length[:20]) if length.isdigit() else 0
        self._came, self._due = 0, True

    async def receive(self) -> Message:
        """The next message; raises ApiError for a body that is too large or that stalls."""
        if not self._due:
            return await self._receive()
        try:
            async with asyncio.timeout(self._pause):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, "request_timeout", f"No byte of the body came for {self._pause:g} s: send it again.") from None
        if message["type"] == "http.request":
            came = len(message.get("body", b""))
            self._came += came
            self.left = max(self.left - came, 0)
            if self._came > self.limit:
                raise too_large(self.limit)
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self._due, self.left = False, 0
        return message


async def _refuse(scope: Scope, reason: Exception, send: Send) -> None:
    """Answers an error."""
    error = as_api_error(reason)
    if error.status == 500:
        log.error("%s %s failed", scope["method"], scope["path"], exc_info=reason)
    body = orjson.dumps(envelope(scope["path"], error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _template(scope: Scope) -> str:
    """The path of a route that was found but does not answer this method, with its parameters unfilled; names are no metric labels."""
    return str(getattr(scope.get("route"), "path", None) or "unknown")


def _line(scope: Scope, request_id: bytes, status: int) -> dict[str, Any]:
    """What the audit log says of a request."""
    state, client = state_of(scope), scope.get("client")
    line = {
        "caller": None if state.caller is None else state.caller.name,
        "client": client[0] if client else None,
        "request_id": request_id.decode("ascii"),
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
    }
    return line | {key: value for key, value in state.notes.items() if key not in line}

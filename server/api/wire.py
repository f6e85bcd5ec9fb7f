"""What the handlers share: the state of the app, raw orjson answers, and dropping the work of clients that hang up."""

import asyncio
import math
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from fastapi import Request
from starlette.responses import Response

from server.api.access import state_of
from server.core import LOCAL, Cold, Route, Terms
from server.errors import ApiError
from server.inference import Answer, Timing
from server.services import Services

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
MAX_HEADER = 2048  # characters of a model's name in a header
MAX_DIGESTS = 64  # digests of a composition in a header

MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}")
STICKY = re.compile(r"[\x20-\x7e]{1,256}")
COLD: dict[str, Cold] = {"wait": "wait", "refuse": "refuse"}


class Disconnected(Exception):
    """The client hung up before its answer was ready."""


def services(request: Request) -> Services:
    """The app's parts, as `create_app` wired them."""
    wired: Services = request.app.state.services
    return wired


def terms(request: Request) -> Terms:
    """On what terms a request is served: its caller, `x-turret-key` (else the API key's name), `x-turret-cold`, `x-turret-timeout-ms`.

    Raises ApiError.
    """
    state = state_of(request.scope)
    caller = state.caller
    if caller is None:
        raise RuntimeError(f"{request.url.path} is public and has no caller to serve")
    headers, settings = request.headers, services(request).settings
    key = headers.get("x-turret-key")
    if key is not None and not STICKY.fullmatch(key):
        raise ApiError(400, "invalid_header", "The header x-turret-key takes 1 to 256 printable ASCII characters.", "x-turret-key")
    cold = COLD.get(headers.get("x-turret-cold", settings.cold))
    if cold is None:
        raise ApiError(400, "invalid_header", "The header x-turret-cold takes 'wait' or 'refuse'.", "x-turret-cold")
    timeout = settings.request_timeout or math.inf
    asked = headers.get("x-turret-timeout-ms")
    if asked is not None:
        if not MILLISECONDS.fullmatch(asked):
            sentence = "The header x-turret-timeout-ms takes a whole number of milliseconds, from 1 to 999999999."
            raise ApiError(400, "invalid_header", sentence, "x-turret-timeout-ms")
        timeout = min(timeout, int(asked) / 1000)
    return Terms(caller, key or (state.lot if caller is LOCAL else caller.name), cold, state.began + timeout)


def note(request: Request, **fields: Any) -> None:
    """Adds to what the audit log says of this request: name, version, digest, alias, ..."""
    state_of(request.scope).notes.update(fields)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """orjson bytes, numpy arrays included."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, "application/json")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises Disconnected if the client hangs up first. The body must have been read.

    As `asyncio.timeout` does it: the work stays in this task, and one that watches cancels it.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watching = asyncio.create_task(watch())
    others = task.cancelling()
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() <= others:
            raise Disconnected from None
        raise
    finally:
        watching.cancel()


def timing_headers(answers: list[Answer], timing: Timing) -> dict[str, str]:
    """TEI's headers (times in ms) and, where all rows took one route, which it was."""
    headers = {
        "x-compute-tokens": str(sum(answer.tokens for answer in answers)),
        "x-total-time": str(round(timing.total * 1000)),
        "x-tokenization-time": str(round(timing.tokenization * 1000)),
        "x-queue-time": str(round(timing.queue * 1000)),
        "x-inference-time": str(round(timing.inference * 1000)),
    }
    routes = {id(answer.route): answer.route for answer in answers if answer.route is not None}.values()
    route = next(iter(routes), None)
    if route is not None and all(one == route for one in routes):
        headers["x-turret-model"] = route.model[:MAX_HEADER]
        named = route.digests if route.digest is None else (route.digest,)
        if named:
            headers["x-turret-digest"] = ", ".join(named[:MAX_DIGESTS])
    return headers


def count_rows(app: Services, answers: list[Answer]) -> None:
    """Counts the rows of a request by model and outcome, whatever the convention."""
    for answer in answers:
        app.metrics.count_row(_counted_as(answer.route), "error" if answer.error else "ok")


def _counted_as(route: Route | None) -> str:
    """A version or `base`; inline compositions, of which clients can make any number, are one."""
    if route is None:
        return "unknown"
    return "composition" if route.digest is None and route.setup is not None else route.model.partition("#")[0]


def raise_first_error(answers: list[Answer]) -> None:
    """Raises the first row's error: for conventions whose answers have no place for the error of one row."""
    for answer in answers:
        if answer.error is not None:
            raise answer.error

"""Any exception as an answer, in the envelope of the called convention."""

import logging
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from adapter_store.errors import Conflict, fault
from server.api.access import state_of
from server.api.wire import CLIENT_CLOSED_REQUEST, Disconnected, json_response
from server.errors import TABLE, ApiError, as_api_error, envelope

log = logging.getLogger(__name__)

# What the app answers by `answer_error`; anything else is a 500.
KINDS: tuple[type[Exception], ...] = (
    ApiError,
    OSError,
    RequestValidationError,
    HTTPException,
    Disconnected,
    ClientDisconnect,
    *(kind for kind, _, _ in TABLE),
)


async def on_error(request: Request, error: Exception) -> Response:
    """`answer_error` as the framework calls it."""
    return answer_error(request, error)


def answer_error(request: Request, error: Exception) -> Response:
    """Any error as a response."""
    if isinstance(error, Disconnected | ClientDisconnect):
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            shown = not_json(first.get("ctx", {}).get("error", first["msg"]))
        else:
            shown = invalid(first, first["loc"][1:])
    elif isinstance(error.__cause__, ApiError):  # FastAPI wraps what reading the body raised
        shown = error.__cause__
    elif isinstance(error, HTTPException) and error.status_code == 400:  # what FastAPI makes of a body that nothing can read
        shown = unreadable()
    elif isinstance(error, HTTPException):
        shown = ApiError(error.status_code, "not_found" if error.status_code == 404 else "http_error", _http_sentence(request, error))
    else:
        shown = as_api_error(error)
    caller = state_of(request.scope).caller
    if isinstance(error, Conflict) and caller is not None:
        shown.message = error.hidden(caller.sees)
    if shown.status == 500:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    elif shown.status == 507:
        log.error("%s %s failed: a disk is full: %s", request.method, request.url.path, error)
    headers = {} if shown.retry_after is None else {"retry-after": str(shown.retry_after)}
    return json_response(envelope(request.url.path, shown), shown.status, headers)


def not_json(reason: str) -> ApiError:
    """The error of a body that is no JSON."""
    return ApiError(400, "invalid_json", f"The body is not valid JSON: {reason}.")


def unreadable() -> ApiError:
    """The error of a body that nothing can read."""
    return ApiError(400, "invalid_json", "The body cannot be read as JSON: it is nested too deeply or is not UTF-8.")


def no_object() -> ApiError:
    """The error of a body that is no JSON object, or does not say that it is one."""
    return ApiError(422, "invalid_request", "The body must be a JSON object, sent with 'content-type: application/json'.")


def invalid(first: Any, place: tuple[str | int, ...]) -> ApiError:
    """The first fault that pydantic found in a body, at a place in it, as one sentence."""
    if not place and first["type"] in ("missing", "model_attributes_type"):
        return no_object()
    where = ".".join(str(part) for part in place)
    message = fault(first)
    return ApiError(422, "invalid_request", f"{where}: {message}" if where else message, where or None)


def _http_sentence(request: Request, error: HTTPException) -> str:
    if error.status_code == 404:
        return f"There is no {request.method} {request.url.path}: see /docs for the routes."
    if error.status_code == 405:
        return f"{request.url.path} does not answer {request.method}: see /docs for the routes."
    return str(error.detail)

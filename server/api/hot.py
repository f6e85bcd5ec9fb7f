"""The routes that answer predictions, called without the framework around them: a body is read, parsed and validated once.

FastAPI's way to an endpoint (router, dependencies, exit stacks, the exception middleware) takes longer than a whole row of a short
text should. The routes are registered with it all the same, for the documents and as the slow twin: `tests/server/test_hot.py`
holds the answers of both equal, byte for byte.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.message import Message
from typing import Any

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.faults import answer_error, invalid, no_object, not_json, unreadable
from server.api.wire import Disconnected

# Integers that orjson would read as floats.
LONG_NUMBER = re.compile(rb"\d{19}")


@dataclass(frozen=True, slots=True)
class Hot:
    """POST `path`: `endpoint(request, body=..., **parameters of the path)` with the body as a `kind`."""

    path: str
    kind: type[BaseModel]
    endpoint: Callable[..., Awaitable[Response]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send, parameters: dict[str, str]) -> None:
        """Answers a request, errors too."""
        request = Request(scope, receive)
        try:
            value = parsed(await _read(receive), request.headers.get("content-type"))
            response = await self.endpoint(request, body=validated(self.kind, value), **parameters)
        except Exception as error:
            response = answer_error(request, error)
        await response(scope, receive, send)


async def _read(receive: Receive) -> bytes:
    """The whole body. Raises Disconnected."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def parsed(data: bytes, content_type: str | None) -> Any:
    """The JSON value of a body; raises ApiError.

    orjson reads what is plain; what it refuses (NaN, UTF-16) or would round is read, or refused, by the standard library, so that both
    ways accept the same, but for half a surrogate pair, which no tokenizer takes.
    """
    if not data or not _is_json(content_type):
        raise no_object()
    try:
        if not LONG_NUMBER.search(data):
            return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise not_json(error.msg) from error
    except UnicodeEncodeError as error:
        raise not_json("a text holds half of a surrogate pair") from error
    except Exception as error:
        raise unreadable() from error


def validated(kind: type[BaseModel], value: Any) -> BaseModel:
    """The value as its kind; raises ApiError with its first fault."""
    try:
        return kind.model_validate(value, from_attributes=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise invalid(first, first["loc"]) from error


def _is_json(content_type: str | None) -> bool:
    if content_type == "application/json":
        return True
    if not content_type:
        return False
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))

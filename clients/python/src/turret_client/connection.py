"""What `Turret` and `AsyncTurret` share besides the protocol: where the server is, who asks, and httpx's values as the client's."""

import os
import random
import uuid
from collections.abc import Sequence
from os import PathLike
from typing import TypeVar
from urllib.request import getproxies

import httpx

from turret_client.answers import Response
from turret_client.catalogue import AdapterDetails
from turret_client.errors import ConnectionFailed, InvalidArgument, NotFound, TimedOut, TurretError, UnexpectedResponse
from turret_client.protocol import Request
from turret_client.results import ModelInfo
from turret_client.retry import RetryPolicy
from turret_client.upload import Body
from turret_client.version import USER_AGENT

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # seconds
LARGEST_PAGE = 100  # commits
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

Timeout = float | httpx.Timeout | None
File = str | PathLike[str]
Models = list[ModelInfo]  # a client's method is called `list`

T = TypeVar("T")


class Connection:
    """What both clients know: where the server is, who asks, and how patiently."""

    def __init__(self, url: str | None, api_key: str | None, max_retries: int) -> None:
        self.url = _base_url(url or os.environ.get("TURRET_URL") or DEFAULT_URL)
        self._shown_url = str(httpx.URL(self.url).copy_with(userinfo=b""))
        self._headers = {"user-agent": USER_AGENT} | _authorization(api_key or os.environ.get("TURRET_API_KEY"))
        self._policy = RetryPolicy(max_retries=max_retries)
        # Loading the certificates takes 80 ms, so they are loaded only where TLS can occur: an https server, or a proxy before it.
        self._verify = self.url.startswith("https:") or bool(getproxies())

    def _wait(self, error: TurretError, attempt: int, request: Request) -> float | None:
        return self._policy.delay(error, attempt=attempt, idempotent=request.idempotent, dice=random.random())

    def _identified(self, request: Request) -> dict[str, str]:
        """The headers of all tries of a request: one id for all, so that they can be found together in the server's log."""
        return self._headers | {"x-request-id": uuid.uuid4().hex} | dict(request.headers) | _length(request)

    def _broken(self, error: httpx.RequestError, headers: dict[str, str]) -> TurretError:
        """The client's error for a transport's."""
        request_id = headers["x-request-id"]
        sent = not isinstance(error, NEVER_SENT)
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            act = "answer" if sent else "accept the connection"
            return TimedOut(f"The server at {self._shown_url} did not {act} within the timeout.", sent=sent, request_id=request_id)
        if isinstance(error, httpx.ConnectError):
            return ConnectionFailed(f"No server can be reached at {self._shown_url} ({reason}).", sent=False, request_id=request_id)
        if isinstance(error, httpx.TransportError):
            message = f"The connection to {self._shown_url} broke before the answer was complete ({reason})."
            return ConnectionFailed(message, sent=sent, request_id=request_id)
        return UnexpectedResponse(f"The answer of {self._shown_url} cannot be read ({reason}).", request_id=request_id)


class Pages:
    """Walks the pages of a listing by what each says of where the next one starts, up to `limit` entries in all."""

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise InvalidArgument(f"{limit} is not a limit: expected a whole number from 1 on.")
        self.cursor: str | None = None
        self.more = True
        self._left = limit
        self._seen: set[str] = set()

    @property
    def size(self) -> int | None:
        """How many entries the next page needs at most; None where there is no limit."""
        return None if self._left is None else min(self._left, LARGEST_PAGE)

    def turn(self, entries: Sequence[T], following: str | int | None) -> Sequence[T]:
        """The page's entries that are wanted; remembers where the next one starts. Raises UnexpectedResponse for a walk in a circle."""
        self.cursor = None if following is None else str(following)
        if self.cursor in self._seen:
            raise UnexpectedResponse("The server's listing repeats itself: it gave the start of the same page twice.")
        self._seen.add(self.cursor or "")
        if self._left is not None:
            entries = entries[: self._left]
            self._left -= len(entries)
        self.more = bool(self.cursor) and self._left != 0
        return entries


def version_of(details: AdapterDetails, digest: str) -> str:
    """The number of the version with this digest; raises NotFound."""
    for version in details.versions:
        if version.digest == digest:
            return str(version.version)
    raise NotFound(f"'{details.name}' has no version with the digest {digest}.", param="version")


def _base_url(url: str) -> str:
    """`url` without a slash at its end; raises InvalidArgument unless it is an http(s) URL of a server."""
    try:
        parsed = httpx.URL(url)
        parsed.host.encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or "%" in parsed.host or parsed.query or parsed.fragment:
        raise InvalidArgument(f"{url!r} is not a server's URL: expected something like {DEFAULT_URL}.")
    return str(parsed).rstrip("/")


def _authorization(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidArgument("The API key has characters that a header cannot carry: check TURRET_API_KEY or --api-key.")
    return {"authorization": f"Bearer {key}"} if key else {}


def _length(request: Request) -> dict[str, str]:
    """A streamed body's length, so that it is not sent in HTTP chunks and the server can refuse it at once."""
    return {"content-length": str(request.content.size)} if isinstance(request.content, Body) else {}


def content_length(answer: httpx.Response) -> int:
    """The announced length of an answer in bytes; 0 if it is not told."""
    text = answer.headers.get("content-length", "")
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def response_of(answer: httpx.Response, headers: dict[str, str], content: bytes) -> Response:
    """httpx's answer as the protocol's; one without an x-request-id gets the one that was sent."""
    return Response(answer.status_code, {"x-request-id": headers["x-request-id"]} | dict(answer.headers.items()), content)


def query_of(request: Request) -> httpx.QueryParams | None:
    """The query; a parameter with several values is repeated."""
    return httpx.QueryParams({key: value if isinstance(value, str) else list(value) for key, value in request.params.items()}) or None

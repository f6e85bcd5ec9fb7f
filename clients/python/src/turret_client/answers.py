"""How answers are read: a `Response` becomes a typed result, or one of the errors of `errors.py`. No IO."""

import base64
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from turret_client.catalogue import Published
from turret_client.errors import TurretError, UnexpectedResponse, error_class
from turret_client.results import Embeddings, Health, ModelInfo
from turret_client.retry import parse_retry_after

ETAG = re.compile(r'(?:W/)?"(sha256:[0-9a-f]{64})"')
LONGEST_MESSAGE = 2000  # characters of an error's sentence that are kept

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Response:
    """One whole HTTP answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def request_id(self) -> str | None:
        """The x-request-id that the server echoed or gave."""
        return self.headers.get("x-request-id")


def failure(response: Response, now: datetime | None = None) -> TurretError:
    """The error of an answer that is not 2xx, with the server's sentence where it has one."""
    error = _envelope(response.content)
    message = error.get("message") or _status_sentence(response)
    return error_class(response.status, error.get("code"))(
        message[:LONGEST_MESSAGE],
        status=response.status,
        code=error.get("code"),
        type=error.get("type"),
        param=error.get("param"),
        request_id=response.request_id,
        retry_after=parse_retry_after(response.headers.get("retry-after"), now or datetime.now(UTC)),
    )


def _envelope(content: bytes) -> dict[str, str]:
    """The texts of {"error": {"message", "type", "param", "code"}}; also of {"error": str} as other conventions have it."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return {key: str(value) for key, value in error.items() if value is not None} if isinstance(error, dict) else {}


def _status_sentence(response: Response) -> str:
    try:
        phrase = f"{response.status} ({HTTPStatus(response.status).phrase})"
    except ValueError:
        phrase = str(response.status)
    if 300 <= response.status < 400 and "location" in response.headers:
        return f"The server answered {phrase} and points to {response.headers['location']}: use that server's URL."
    return f"The server answered {phrase} without saying why."


def parse(model: type[M], response: Response) -> M:
    """The answer as `model`; raises the status's error, or UnexpectedResponse for a 2xx that is not what the wire promises."""
    if not response.ok:
        raise failure(response)
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise _unexpected(response, f"{where}: {first['msg']}") from None


def _unexpected(response: Response, reason: str) -> UnexpectedResponse:
    return UnexpectedResponse(
        f"The answer is not one of a Turret server ({reason}).", status=response.status, request_id=response.request_id
    )


def parse_published(response: Response) -> Published:
    """A push's answer; its status tells whether the package is new."""
    return parse(Published, response).model_copy(update={"is_new": response.status == HTTPStatus.CREATED})


def parse_ready(response: Response) -> Health:
    """Readiness; a refusal is an answer here."""
    detail = "" if response.ok else str(failure(response))
    return Health(alive=True, ready=response.ok, detail=" ".join(detail.split()))


def package_digest(response: Response) -> str:
    """The digest that a download's ETag promises; raises the status's error, or UnexpectedResponse without a digest."""
    if not response.ok:
        raise failure(response)
    etag = ETAG.fullmatch(response.headers.get("etag", ""))
    if etag is None:
        raise _unexpected(response, "the package comes without its digest as ETag")
    return etag[1]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _ModelList(_Lenient):
    data: list[ModelInfo]


def parse_models(response: Response) -> list[ModelInfo]:
    """The entries of an OpenAI model list."""
    return parse(_ModelList, response).data


class _Vector(_Lenient):
    index: int
    embedding: str | list[float]


class _Tokens(_Lenient):
    prompt_tokens: int = 0


class _EmbeddingList(_Lenient):
    model: str = ""
    data: list[_Vector]
    usage: _Tokens = _Tokens()


def parse_embeddings(response: Response) -> Embeddings:
    """The vectors of an OpenAI embeddings answer, in the order of their inputs."""
    answer = parse(_EmbeddingList, response)
    rows = sorted(answer.data, key=lambda row: row.index)
    try:
        vectors = tuple(_floats(row.embedding) for row in rows)
    except (ValueError, struct.error):
        raise _unexpected(response, "an embedding is not base64 of float32") from None
    return Embeddings(model=answer.model, vectors=vectors, prompt_tokens=answer.usage.prompt_tokens)


def _floats(embedding: str | list[float]) -> list[float]:
    """A vector from the wire: numbers, or base64 of little-endian float32."""
    if not isinstance(embedding, str):
        return embedding
    data = base64.b64decode(embedding, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))

"""What the OpenAPI document says of errors: the two envelopes, and which statuses each group of routes may answer."""

from typing import Any

from pydantic import BaseModel


class Fault(BaseModel):
    """One sentence for people, a stable code for programs."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Turret's and OpenAI's envelope."""

    error: Fault


class HubErrorAnswer(BaseModel):
    """Hugging Face's envelope."""

    error: str
    error_type: str


MEANINGS: dict[int, str] = {
    400: "The request cannot be read, or asks a model for what it is not made for",
    401: "No API key, or a wrong one",
    403: "The API key lacks the scope",
    404: "No such model, version or alias, or none that the API key may know of",
    405: "The path does not answer this method",
    408: "The body did not arrive in time",
    409: "The catalogue's state forbids the change",
    412: "If-None-Match was sent and the name exists",
    413: "The body is larger than the limit",
    414: "The path and query are longer than the limit",
    422: "The request reads well and its content is refused: the sentence says what and why",
    429: "Too much at once: try again after Retry-After seconds",
    431: "The headers are larger than the limit",
    500: "A fault of the server; it is in its log",
    503: "Not ready for this now: try again after Retry-After seconds",
    504: "The request's deadline passed before it could be answered, or would pass: nothing of it runs any more",
    507: "A disk of the server or of its store is full",
}

READING = (400, 401, 403, 404, 405, 414, 422, 431, 500, 503, 507)
CHANGING = (*READING, 408, 409, 412, 413, 429)
ANSWERING = (*READING, 408, 413, 429, 504)

# Headers that every route of predictions reads.
TERMS: list[dict[str, Any]] = [
    {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
    for name, description, schema in (
        (
            "x-turret-timeout-ms",
            "Milliseconds from the request's arrival in which it must be answered; else 504. At most --request-timeout",
            {"type": "integer", "minimum": 1, "maximum": 999999999},
        ),
        (
            "x-turret-key",
            "What weighted aliases are drawn by: the same key stays with the same version",
            {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[ -~]+$"},
        ),
        ("x-turret-cold", "What to do where packages are not on the device: wait, or 503", {"type": "string", "enum": ["wait", "refuse"]}),
    )
]


def documented(statuses: tuple[int, ...], model: type[BaseModel] = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """The `responses` of routes that may answer with these statuses."""
    return {status: {"model": model, "description": MEANINGS[status]} for status in sorted(statuses)}

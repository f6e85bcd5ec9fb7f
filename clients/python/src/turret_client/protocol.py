"""The client without its connection: each operation as a `Call`, the request to send and how to read its answer.

No IO here and no httpx; `Turret` and `AsyncTurret` carry the same calls over a blocking and an asynchronous connection.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, NotRequired, Required, TypedDict, TypeVar
from urllib.parse import quote

from turret_client.answers import Response, parse, parse_embeddings, parse_models, parse_published, parse_ready
from turret_client.errors import InvalidArgument
from turret_client.results import AdapterDetails, AdapterPage, AliasMoved, Deleted, Embeddings, Health, ModelInfo, Predictions, Published
from turret_client.upload import Body

SEGMENT = r"[a-z0-9][a-z0-9._-]{0,63}"
NAME = re.compile(rf"{SEGMENT}(?:/{SEGMENT})?")
SELECTOR = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}|sha256:[0-9a-f]{64}")
ADAPTERS = "/v1/adapters"

Text = str | Mapping[str, str] | Sequence[int]
"""One input: a text, a pair {"text", "text_pair"}, or token ids."""
Inputs = Text | Sequence[Text]
"""One input, or a list of them: a batch."""
EmbedInputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Texts or token ids, one or several."""
Parameters = Mapping[str, Any]
OutputKind = Literal["decoded", "logits", "hidden", "embedding"]


class Row(TypedDict, total=False):
    """One row of a mixed request."""

    model: Required[str]
    inputs: Required[Inputs]
    parameters: NotRequired[Parameters]
    output: NotRequired[OutputKind]


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `path` is percent-encoded and below the server's base URL; header names are lower-case.

    `idempotent` tells that doing it twice does what doing it once does, so that it may be repeated after a broken connection.
    """

    method: str
    path: str
    params: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Body = b""
    idempotent: bool = True


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """An operation: what to send, and what its answer means. `parse` returns the result or raises a TurretError."""

    request: Request
    parse: Callable[[Response], T]


# Operations.


def predict(
    model: str | Sequence[str], inputs: Inputs, parameters: Parameters | None = None, output: OutputKind = "decoded"
) -> Call[Predictions]:
    """One model, or several on the same inputs (fan-out)."""
    names = model if isinstance(model, str) else list(model)
    body = {"model": names, "inputs": inputs, "output": output} | ({"parameters": dict(parameters)} if parameters else {})
    return Call(_post("/v1/predict", body), partial(parse, Predictions))


def predict_many(requests: Sequence[Row]) -> Call[Predictions]:
    """Rows of different models in one request."""
    return Call(_post("/v1/predict", {"requests": list(requests)}), partial(parse, Predictions))


def embed(inputs: EmbedInputs, model: str, dimensions: int | None = None) -> Call[Embeddings]:
    """Vectors of texts or token ids; `dimensions` cuts them to their first so many numbers where the model allows it."""
    body: dict[str, Any] = {"model": model, "input": inputs, "encoding_format": "base64"}
    if dimensions is not None:
        body["dimensions"] = dimensions
    return Call(_post("/v1/embeddings", body), parse_embeddings)


def push(
    name: str, body: Body, alias: str | None = None, if_none_match: bool = False, members: Mapping[str, str] | None = None
) -> Call[Published]:
    """Publishes `body` as the next version of `name`. Repeating it finds the same bytes, unless the name had to be new.

    members: which packages the members of a fusion are, by the names that its folder gives them.
    """
    headers = {"content-type": body.content_type} | ({"if-none-match": "*"} if if_none_match else {})
    params: dict[str, str | Sequence[str]] = {"alias": alias} if alias else {}
    if members:
        params["member"] = [f"{member}={checked_reference(reference)}" for member, reference in members.items()]
    request = Request("PUT", adapter_path(name), params=params, headers=headers, content=body, idempotent=not if_none_match)
    return Call(request, parse_published)


def list_page(
    task: str | None = None, method: str | None = None, namespace: str | None = None, limit: int | None = None, cursor: str | None = None
) -> Call[AdapterPage]:
    """One page of the listing, from `cursor` on."""
    filters = {"task": task, "method": method, "namespace": namespace, "limit": limit, "cursor": cursor}
    params = {key: str(value) for key, value in filters.items() if value is not None}
    return Call(Request("GET", ADAPTERS, params=params), partial(parse, AdapterPage))


def show(name: str) -> Call[AdapterDetails]:
    """Everything about one adapter."""
    return Call(Request("GET", adapter_path(name)), partial(parse, AdapterDetails))


def delete(name: str, version: int | None = None) -> Call[Deleted]:
    """Deletes a version, or the whole name. Not repeated once it may have been done, as it would then be "not found"."""
    path = adapter_path(name) if version is None else version_path(name, version)
    return Call(Request("DELETE", path, idempotent=False), partial(parse, Deleted))


def set_alias(name: str, alias: str, version: int) -> Call[AliasMoved]:
    """Points an alias to a version."""
    path = f"{adapter_path(name)}/aliases/{quote(checked_selector(alias, name), safe='')}"
    return Call(_json_request("PUT", path, {"version": version}), partial(parse, AliasMoved))


def package(name: str, version: int | str) -> Request:
    """The download of one version's bytes, unencoded; `answers.package_digest` reads its headers."""
    return Request("GET", f"{version_path(name, version)}/package", headers={"accept-encoding": "identity"})


def models() -> Call[list[ModelInfo]]:
    """The OpenAI model list."""
    return Call(Request("GET", "/v1/models"), parse_models)


def alive() -> Call[bool]:
    """Whether the process answers."""
    return Call(Request("GET", "/healthz"), lambda response: response.ok)


def ready() -> Call[Health]:
    """Whether the server can serve; a refusal is an answer here, not an error."""
    return Call(Request("GET", "/readyz"), parse_ready)


# Names and paths.


def split_reference(reference: str) -> tuple[str, str | None]:
    """`name@selector` as its two parts, the selector None if absent; raises InvalidArgument unless both are well formed."""
    name, at, selector = reference.partition("@")
    checked_name(name)
    return name, checked_selector(selector, name) if at else None


def checked_reference(reference: str) -> str:
    """`reference` if it is one: a name, maybe with a selector; raises InvalidArgument."""
    split_reference(reference)
    return reference


def checked_name(name: str) -> str:
    """`name` if the wire's grammar allows it; raises InvalidArgument."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:80]!r} is not an adapter's name: use lower-case letters, digits, '.', '_' and '-', optionally namespace/name."
        )
    return name


def checked_selector(selector: int | str, name: str) -> str:
    """A version number, alias or digest as text; raises InvalidArgument if it is none of these."""
    if not SELECTOR.fullmatch(text := str(selector)):
        raise InvalidArgument(f"{text[:80]!r} is neither a version number, an alias nor a digest of '{name}'.")
    return text


def adapter_path(name: str) -> str:
    """The path of an adapter; raises InvalidArgument for a name that could lead elsewhere."""
    return f"{ADAPTERS}/{checked_name(name)}"


def version_path(name: str, version: int | str) -> str:
    """The path of a version, given as number or alias."""
    return f"{adapter_path(name)}/versions/{quote(checked_selector(version, name), safe='')}"


# Requests with a JSON body.


def _post(path: str, body: object) -> Request:
    return _json_request("POST", path, body)


def _json_request(method: str, path: str, body: object) -> Request:
    try:
        content = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"The request cannot be written as JSON: {error}.") from None
    return Request(method, path, headers={"content-type": "application/json"}, content=content)


def _plain(value: object) -> object:
    """Mappings and sequences of other kinds than dict, list and tuple, for JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")

"""The client without its connection: each operation as a `Call`, the request to send and how to read its answer.

No IO here and no httpx; `Turret` and `AsyncTurret` carry the same calls over a blocking and an asynchronous connection.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, NotRequired, Required, TypedDict, TypeVar

from turret_client.answers import Response, parse, parse_embeddings, parse_models, parse_published, parse_ready
from turret_client.catalogue import AdapterDetails, AdapterPage, AliasMoved, Commit, CommitPage, Deleted, Published, Resident
from turret_client.changes import Change, Target, target_fields
from turret_client.errors import InvalidArgument
from turret_client.names import ADAPTERS, adapter_path, alias_path, checked_name, checked_reference, checked_selector, version_path
from turret_client.results import Embeddings, Health, ModelInfo, Predictions
from turret_client.upload import Body

CHANGES = "/v1/changes"

Text = str | Mapping[str, str] | Sequence[int]
"""One input: a text, a pair {"text", "text_pair"}, or token ids."""
Inputs = Text | Sequence[Text]
"""One input, or a list of them: a batch."""
EmbedInputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Texts or token ids, one or several."""
Parameters = Mapping[str, Any]
OutputKind = Literal["decoded", "logits", "hidden", "embedding"]
Cold = Literal["wait", "refuse"]
"""What to do where a model is not on the device yet: wait for it (what a server does unasked), or be refused with ModelCold."""


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
    model: str | Sequence[str],
    inputs: Inputs,
    parameters: Parameters | None = None,
    output: OutputKind = "decoded",
    sticky_key: str | None = None,
    cold: Cold | None = None,
    deadline: float | None = None,
) -> Call[Predictions]:
    """One model, or several on the same inputs (fan-out)."""
    names = model if isinstance(model, str) else list(model)
    body = {"model": names, "inputs": inputs, "output": output} | ({"parameters": dict(parameters)} if parameters else {})
    return Call(_json_request("POST", "/v1/predict", body, _terms(sticky_key, cold, deadline)), partial(parse, Predictions))


def predict_many(
    requests: Sequence[Row], sticky_key: str | None = None, cold: Cold | None = None, deadline: float | None = None
) -> Call[Predictions]:
    """Rows of different models in one request."""
    body = {"requests": list(requests)}
    return Call(_json_request("POST", "/v1/predict", body, _terms(sticky_key, cold, deadline)), partial(parse, Predictions))


def embed(
    inputs: EmbedInputs,
    model: str,
    dimensions: int | None = None,
    sticky_key: str | None = None,
    cold: Cold | None = None,
    deadline: float | None = None,
) -> Call[Embeddings]:
    """Vectors of texts or token ids; `dimensions` cuts them to their first so many numbers where the model allows it."""
    body: dict[str, Any] = {"model": model, "input": inputs, "encoding_format": "base64"}
    if dimensions is not None:
        body["dimensions"] = dimensions
    return Call(_json_request("POST", "/v1/embeddings", body, _terms(sticky_key, cold, deadline)), parse_embeddings)


def push(
    name: str,
    body: Body,
    alias: str | None = None,
    if_none_match: bool = False,
    members: Mapping[str, str] | None = None,
    signature: str | None = None,
) -> Call[Published]:
    """Publishes `body` as the next version of `name`. Repeating it finds the same bytes, unless the name had to be new.

    members: which packages the members of a fusion are, by the names that its folder gives them.
    signature: "SIGNER:BASE64", as `signing.sign_package` makes it.
    """
    optional = {"if-none-match": "*" if if_none_match else None, "x-turret-signature": signature}
    headers = {"content-type": body.content_type} | _headers(optional)
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
    return Call(Request("GET", ADAPTERS, params=_query(filters)), partial(parse, AdapterPage))


def show(name: str) -> Call[AdapterDetails]:
    """Everything about one adapter."""
    return Call(Request("GET", adapter_path(name)), partial(parse, AdapterDetails))


def delete(name: str, version: int | None = None) -> Call[Deleted]:
    """Deletes a version, or the whole name. Not repeated once it may have been done, as it would then be "not found"."""
    path = adapter_path(name) if version is None else version_path(name, version)
    return Call(Request("DELETE", path, idempotent=False), partial(parse, Deleted))


def set_alias(name: str, alias: str, target: Target) -> Call[AliasMoved]:
    """Points an alias to a version, or spreads it over versions by their weights."""
    return Call(_json_request("PUT", alias_path(name, alias), target_fields(target)), partial(parse, AliasMoved))


def drop_alias(name: str, alias: str) -> Call[AliasMoved]:
    """Removes an alias. Not repeated once it may have been done, as it would then be "not found"."""
    return Call(Request("DELETE", alias_path(name, alias), idempotent=False), partial(parse, AliasMoved))


def rollback(name: str, alias: str) -> Call[AliasMoved]:
    """Points an alias back to where it was. Never repeated, as that would point it forward again."""
    return Call(Request("POST", f"{alias_path(name, alias)}/rollback", idempotent=False), partial(parse, AliasMoved))


def change(changes: Sequence[Change | Mapping[str, Any]]) -> Call[Commit]:
    """Several changes as one commit, all or none. Not repeated once they may have been made."""
    body = {"changes": [each if isinstance(each, Mapping) else each.wire() for each in changes]}
    return Call(_json_request("POST", CHANGES, body, idempotent=False), partial(parse, Commit))


def history_page(name: str | None = None, before: str | None = None, limit: int | None = None) -> Call[CommitPage]:
    """One page of the commits, newest first, from before number `before` on; only those that concern `name` where it is given."""
    filters = {"name": None if name is None else checked_name(name), "before": before, "limit": limit}
    return Call(Request("GET", CHANGES, params=_query(filters)), partial(parse, CommitPage))


def load(name: str, selector: str | None = None, pin: bool = False) -> Call[Resident]:
    """Brings a version to the device; pinned, it stays there whatever else is asked for."""
    body = {"pin": pin} | ({} if selector is None else {"version": checked_selector(selector, name)})
    return Call(_json_request("POST", f"{adapter_path(name)}/load", body), partial(parse, Resident))


def unload(name: str) -> Call[Resident]:
    """Frees the device of an adapter, pinned or not; it is loaded again when it is asked for."""
    return Call(_json_request("POST", f"{adapter_path(name)}/unload", {}), partial(parse, Resident))


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


# Bodies, queries and headers.


def _json_request(
    method: str, path: str, body: object, headers: Mapping[str, str | None] | None = None, *, idempotent: bool = True
) -> Request:
    try:
        content = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"The request cannot be written as JSON: {error}.") from None
    fields = {"content-type": "application/json"} | _headers(headers or {})
    return Request(method, path, headers=fields, content=content, idempotent=idempotent)


def _plain(value: object) -> object:
    """Mappings and sequences of other kinds than dict, list and tuple, for JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"a value of type {type(value).__name__} is not JSON")


def _query(filters: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in filters.items() if value is not None}


def _terms(sticky_key: str | None, cold: Cold | None, deadline: float | None) -> dict[str, str | None]:
    """The headers of a request's terms. Raises InvalidArgument for a deadline that no server takes."""
    if deadline is not None and not 0.001 <= deadline <= 999_999:
        raise InvalidArgument(f"{deadline!r} is not a deadline: expected seconds, from 0.001 to 999999.")
    milliseconds = None if deadline is None else str(round(deadline * 1000))
    return {"x-turret-key": sticky_key, "x-turret-cold": cold, "x-turret-timeout-ms": milliseconds}


def _headers(fields: Mapping[str, str | None]) -> dict[str, str]:
    """The headers that are given; raises InvalidArgument for text that a header cannot carry."""
    for name, value in fields.items():
        if value is not None and not (value.strip() == value != "" and value.isascii() and value.isprintable()):
            raise InvalidArgument(f"{value[:80]!r} cannot be sent as {name}: use printable ASCII without spaces around it.")
    return {name: value for name, value in fields.items() if value is not None}

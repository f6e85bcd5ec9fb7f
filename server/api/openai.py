"""OpenAI's convention: GET /v1/models and POST /v1/embeddings."""

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from adapter_store.catalog import VersionRecord
from adapter_store.names import Reference
from server.api.documented import TERMS
from server.api.hot import Hot
from server.api.wire import count_rows, json_response, raise_first_error, services, terms, timing_headers, while_connected
from server.core import Array, Pooling
from server.errors import ApiError
from server.inference import Ask, Parameters, Source
from server.services import Services
from server.tasks.bounded import Body, FastList

router = APIRouter(tags=["openai"])


class EmbeddingRequest(Body):
    """OpenAI's request; `pooling`, `normalize` and `truncate` are Turret's."""

    model: str = "base"
    input: str | FastList[str] | FastList[int] | FastList[FastList[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    pooling: Pooling = "mean"
    normalize: bool = True
    truncate: bool = False


@router.post("/v1/embeddings", summary="Embed texts with the backbone or any adapter", openapi_extra={"parameters": TERMS})
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """One vector per input; `base64` is little-endian float32."""
    app = services(request)
    hidden_size = app.backbone.hidden_size
    if body.dimensions is not None and body.dimensions > hidden_size:
        raise ApiError(
            422, "too_many_dimensions", f"The vectors have {hidden_size} dimensions; {body.dimensions} were asked for.", "dimensions"
        )
    sources = _sources(body)
    if len(sources) > app.settings.max_rows:
        raise ApiError(
            422, "too_many_rows", f"The request has {len(sources)} inputs and the limit is {app.settings.max_rows}: send fewer at a time."
        )
    parameters = Parameters(pooling=body.pooling, normalize=body.normalize, truncate=body.truncate)
    served = terms(request)
    route = await app.inference.route(body.model, served)
    asks = [Ask(body.model, source, parameters, "embedding", route=route) for source in sources]
    answers, timing = await while_connected(request, app.inference.answer(asks, served))
    count_rows(app, answers)
    raise_first_error(answers)
    tokens = sum(answer.tokens for answer in answers)
    data = [
        {"object": "embedding", "index": i, "embedding": _shown(_shortened(answer.value, body), body.encoding_format)}
        for i, answer in enumerate(answers)
    ]
    content = {"object": "list", "data": data, "model": route.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return json_response(content, headers=timing_headers(answers, timing))


HOT = Hot("/v1/embeddings", EmbeddingRequest, embeddings)


def _sources(body: EmbeddingRequest) -> list[Source]:
    inputs: list[Any] = body.input if isinstance(body.input, list) else [body.input]
    if not inputs:
        raise ApiError(422, "empty_input", "'input' is empty: send at least one text.", "input")
    if isinstance(inputs[0], int):
        inputs = [inputs]
    return [Source(one) if isinstance(one, str) else Source(token_ids=tuple(one)) for one in inputs]


def _shortened(vector: Array, body: EmbeddingRequest) -> Array:
    """The first `dimensions` numbers, of length 1 again if the vector was."""
    if body.dimensions is None or body.dimensions == len(vector):
        return vector
    short = vector[: body.dimensions]
    length = float(np.linalg.norm(short))
    return short / length if body.normalize and length > 0 else short


def _shown(vector: Array, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode()
    return np.ascontiguousarray(vector)


@router.get("/v1/models", summary="List what can be called")
async def models(request: Request) -> Response:
    """The backbone as `base`, then every adapter with the backbone as its parent."""
    app, sees = services(request), terms(request).caller.sees
    return json_response(
        {"object": "list", "data": [_base(app), *(_model(entry.latest) for entry in app.store.entries() if sees(entry.name))]}
    )


@router.get("/v1/models/{model:path}", summary="Show what can be called")
async def model(request: Request, model: str) -> Response:
    """One model by its string."""
    app = services(request)
    if model == "base":
        return json_response(_base(app))
    route = await app.inference.route(model, terms(request))
    if route.digest is None:
        return json_response({"id": route.model, "object": "model", "created": int(app.started), "owned_by": "turret", "parent": "base"})
    name, _, version = route.model.partition("#")[0].partition("@")
    return json_response(_model(app.store.resolve(Reference(name, version))))


def _base(app: Services) -> dict[str, Any]:
    return {
        "id": "base",
        "object": "model",
        "created": int(app.started),
        "owned_by": "turret",
        "root": app.backbone.name,
        "parent": None,
    }


def _model(record: VersionRecord) -> dict[str, Any]:
    return {
        "id": record.name,
        "object": "model",
        "created": _seconds(record.created),
        "owned_by": "turret",
        "root": record.reference,
        "parent": "base",
    }


def _seconds(created: str) -> int:
    return int(np.datetime64(created.removesuffix("Z"), "s").astype(int))

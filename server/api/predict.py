"""Turret's own convention: POST /v1/predict in its four forms (one, list, fan-out, mixed rows)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from server.api.documented import TERMS
from server.api.hot import Hot
from server.api.wire import count_rows, json_response, services, terms, timing_headers, while_connected
from server.errors import ApiError, as_api_error, detail
from server.inference import Answer, Ask, AskedOutput, Parameters, Timing
from server.router import ManifestNotRead
from server.tasks.bounded import Body, FastList
from server.tasks.decode import raw
from server.tasks.inputs import Input, Inputs, is_batch, source, sources
from server.tasks.parameters import DEFAULTS

router = APIRouter(tags=["predict"])

Channels = Callable[[str], tuple[str, ...]]


class Row(Body):
    """One row of a mixed request."""

    model: str = Field(description="name, name@version, name@alias, stack(a, b) or base")
    inputs: Input
    parameters: Parameters = Field(default_factory=lambda: DEFAULTS)
    output: AskedOutput = "decoded"


class PredictRequest(Body):
    """Either `model` and `inputs`, or `requests`."""

    model: str | FastList[str] | None = Field(default=None, description="one model, or a list for a fan-out")
    inputs: Inputs = None
    parameters: Parameters = Field(default_factory=lambda: DEFAULTS)
    output: AskedOutput = "decoded"
    requests: FastList[Row] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "PredictRequest":
        if self.requests is not None:
            if self.model is not None or self.inputs is not None:
                raise ValueError("send either 'requests', or 'model' and 'inputs'")
            if not self.requests:
                raise ValueError("'requests' is empty")
            return self
        if self.model is None or self.inputs is None:
            raise ValueError("'model' and 'inputs' are needed (or 'requests' for mixed rows)")
        if self.model == [] or self.inputs == []:
            raise ValueError("'model' and 'inputs' must not be empty lists")
        return self

    @property
    def single(self) -> bool:
        """One model on one input, so that its error is the request's."""
        return self.requests is None and isinstance(self.model, str) and not is_batch(self.inputs)

    def asks(self, channels: Channels, max_rows: int) -> list[Ask]:
        """The asks of the request: for a fan-out over a list, all models of the first input, then of the second ...

        `channels` says which models a model string stands for, more than one for a parallel. Raises ApiError for more than `max_rows`.
        """
        if self.requests is not None:
            _check_rows(len(self.requests), max_rows)
            sources_ = [source(row.inputs, f"requests[{number}].inputs") for number, row in enumerate(self.requests)]
            asks = [
                Ask(model, one, row.parameters, row.output, fault)
                for row, one in zip(self.requests, sources_, strict=True)
                for model, fault in _spread(channels, row.model)
            ]
            _check_rows(len(asks), max_rows)
            return asks
        models = [self.model] if isinstance(self.model, str) else self.model or []
        _check_rows(len(models) * (len(self.inputs) if is_batch(self.inputs) else 1), max_rows)
        spread = [channel for model in models for channel in _spread(channels, model)]
        inputs = sources(self.inputs)
        _check_rows(len(spread) * len(inputs), max_rows)
        return [Ask(model, one, self.parameters, self.output, fault) for one in inputs for model, fault in spread]


def _spread(channels: Channels, model: str) -> list[tuple[str, ApiError | None]]:
    """The models that a model string stands for; one that cannot be resolved stands for itself, and its row tells what is wrong."""
    try:
        return [(channel, None) for channel in channels(model)]
    except ManifestNotRead:
        raise
    except Exception as error:
        return [(model, as_api_error(error))]


def _check_rows(rows: int, limit: int) -> None:
    if rows > limit:
        raise ApiError(422, "too_many_rows", f"The request has {rows} rows and the limit is {limit}: send fewer at a time.")


@router.post("/v1/predict", summary="Predict with one model, many models, or mixed rows", openapi_extra={"parameters": TERMS})
async def predict(request: Request, body: PredictRequest) -> Response:
    """Answers `{"results": [...], "timing": {...}}`, one result per row in order. The error of one row is in its result."""
    app = services(request)
    served = terms(request)
    asks = await app.inference.reading(lambda: body.asks(lambda model: app.router.channels(model, served), app.settings.max_rows))
    answers, timing = await while_connected(request, app.inference.answer(asks, served))
    count_rows(app, answers)
    if body.single and len(answers) == 1 and answers[0].error is not None:
        raise answers[0].error
    results = [_result(ask, answer) for ask, answer in zip(asks, answers, strict=True)]
    return json_response({"results": results, "timing": _timing(timing)}, headers=timing_headers(answers, timing))


HOT = Hot("/v1/predict", PredictRequest, predict)


def _result(ask: Ask, answer: Answer) -> dict[str, Any]:
    if answer.error is not None or answer.route is None:
        return {"model": ask.model, "error": detail(answer.error or ApiError(500, "internal_error", "The row has no answer."))}
    route = answer.route
    result = {
        "model": route.model,
        "digest": route.digest,
        "task": route.task if ask.output in ("decoded", "logits") else "feature-extraction",
        "output": _shown(answer.value) if ask.output in ("logits", "hidden", "encoder_hidden") else answer.value,
        "usage": {"input_tokens": answer.tokens, "truncated": answer.truncated},
    }
    if route.digest is None and route.digests:
        result["digests"] = list(route.digests)
    return result if answer.attention is None else result | {"attention": answer.attention}


def _shown(value: Any) -> Any:
    """Raw numbers as {"shape", "data"}, by their names where there are several, a list of them for several windows."""
    if isinstance(value, dict):
        return {name: raw(array) if isinstance(array, np.ndarray) else array for name, array in value.items()}
    return [_shown(one) for one in value] if isinstance(value, list) else raw(value)


def _timing(timing: Timing) -> dict[str, float]:
    return {
        "tokenization_ms": round(timing.tokenization * 1000, 3),
        "queue_ms": round(timing.queue * 1000, 3),
        "inference_ms": round(timing.inference * 1000, 3),
        "total_ms": round(timing.total * 1000, 3),
    }

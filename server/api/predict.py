"""Turret's own convention: POST /v1/predict in its four forms (one, list, fan-out, mixed rows)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from server.api.inputs import Input, as_source, is_batch
from server.api.wire import count_rows, json_response, services, timing_headers, while_connected
from server.errors import ApiError, detail
from server.inference import Answer, Ask, AskedOutput, Parameters, Timing
from server.tasks.decode import raw

router = APIRouter(tags=["predict"])


class Row(BaseModel):
    """One row of a mixed request."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="name, name@version, name@alias, stack(a, b) or base")
    inputs: Input
    parameters: Parameters = Field(default_factory=Parameters)
    output: AskedOutput = "decoded"


class PredictRequest(BaseModel):
    """Either `model` and `inputs`, or `requests`."""

    model_config = ConfigDict(extra="forbid")

    model: str | list[str] | None = Field(default=None, description="one model, or a list for a fan-out")
    inputs: Input | list[Input] | None = None
    parameters: Parameters = Field(default_factory=Parameters)
    output: AskedOutput = "decoded"
    requests: list[Row] | None = None

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

    def asks(self, channels: Callable[[str], tuple[str, ...]]) -> list[Ask]:
        """The asks of the request: for a fan-out over a list, all models of the first input, then of the second ...

        `channels` says which models a model string stands for, more than one for a parallel.
        """
        if self.requests is not None:
            return [
                Ask(model, as_source(row.inputs), row.parameters, row.output)
                for row in self.requests
                for model in _channels(channels, row.model)
            ]
        models = [self.model] if isinstance(self.model, str) else self.model or []
        spread = [channel for model in models for channel in _channels(channels, model)]
        inputs: list[Any] = self.inputs if is_batch(self.inputs) else [self.inputs]  # type: ignore[assignment]
        return [Ask(model, as_source(one), self.parameters, self.output) for one in inputs for model in spread]


def _channels(channels: Callable[[str], tuple[str, ...]], model: str) -> tuple[str, ...]:
    """A model string that cannot be resolved stands for itself: its row tells what is wrong."""
    try:
        return channels(model)
    except Exception:
        return (model,)


@router.post("/v1/predict", summary="Predict with one model, many models, or mixed rows")
async def predict(request: Request, body: PredictRequest) -> Response:
    """Answers `{"results": [...], "timing": {...}}`, one result per row in order. The error of one row is in its result."""
    app = services(request)
    asks = body.asks(app.router.channels)
    if len(asks) > app.settings.max_rows:
        raise ApiError(
            422, "too_many_rows", f"The request has {len(asks)} rows and the limit is {app.settings.max_rows}: send fewer at a time."
        )
    answers, timing = await while_connected(request, app.inference.answer(asks))
    count_rows(app, answers)
    if body.single and answers[0].error is not None:
        raise answers[0].error
    results = [_result(ask, answer) for ask, answer in zip(asks, answers, strict=True)]
    return json_response({"results": results, "timing": _timing(timing)}, headers=timing_headers(answers, timing))


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

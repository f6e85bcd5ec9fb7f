"""Hugging Face's inference convention: `InferenceClient(model="http://host/models/NAME")`. The task comes from the adapter."""

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from server.api.documented import TERMS
from server.api.hot import Hot
from server.api.wire import count_rows, json_response, raise_first_error, services, terms, timing_headers, while_connected
from server.core import Route
from server.errors import ApiError
from server.inference import Answer, Ask, AskedOutput, Parameters, Source, Timing
from server.tasks.bounded import Body
from server.tasks.inputs import Inputs, SimilarityInput, is_batch, sources, validated

router = APIRouter(tags=["huggingface"])

# Tasks whose answer to one input stands by itself; the others answer a list of one, as the client expects.
ALONE = frozenset({"token-classification", "question-answering", "fill-mask", "multiple-choice", "dependency-parsing"})


class HubParameters(Parameters):
    """The parameters of a call; `adapter_id` takes the place of the model in the path (as in TGI and LoRAX)."""

    adapter_id: str | None = None


class HubRequest(Body):
    """`inputs` and `parameters`; for embeddings `normalize` and `truncate` may stand at the root. Other root keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    inputs: Inputs
    parameters: HubParameters = Field(default_factory=HubParameters)
    normalize: bool | None = None
    truncate: bool | None = None


@router.post("/models/{model:path}", summary="Run a model, answering in the shape of its task", openapi_extra={"parameters": TERMS})
async def run_model(request: Request, model: str, body: HubRequest) -> Response:
    """text-classification `[[{label, score}]]`, token-classification `[{entity_group, ...}]`, feature-extraction `[[float]]`,
    question-answering `{score, start, end, answer}`, fill-mask `[{score, token, token_str, sequence}]`, similarity `[float]`."""
    parameters = body.parameters
    overrides = {key: value for key, value in (("normalize", body.normalize), ("truncate", body.truncate)) if value is not None}
    parameters = parameters.model_copy(update=overrides)
    model = parameters.adapter_id or model
    route = await services(request).inference.route(model, terms(request))
    if parameters.explain:
        raise ApiError(400, "no_place", "Answers of this convention have no place for attention: ask through /v1/predict.", "parameters")
    if isinstance(body.inputs, dict) and ("source_sentence" in body.inputs or "sentences" in body.inputs):
        return await _similar(request, model, route, validated(SimilarityInput, body.inputs, "inputs"), parameters)
    batch = is_batch(body.inputs)
    if body.inputs == []:
        raise ApiError(422, "empty_input", "'inputs' is empty: send at least one text.", "inputs")
    _check_rows(request, len(body.inputs) if batch else 1)
    output: AskedOutput = "decoded" if route.head is not None else "embedding"
    answers, timing = await _answers(request, [Ask(model, one, parameters, output, route=route) for one in sources(body.inputs)])
    values = [answer.value for answer in answers]
    nested = batch or task_of(route) not in ALONE
    return json_response(values if nested else values[0], headers=timing_headers(answers, timing))


HOT = Hot("/models/{model:path}", HubRequest, run_model)


async def _similar(request: Request, model: str, route: Route, inputs: SimilarityInput, parameters: Parameters) -> Response:
    """The cosine of the source sentence's vector with each other's."""
    if task_of(route) != "feature-extraction":
        raise ApiError(
            400, "wrong_task", f"The task of '{route.model}' is {route.task}: sentences are compared by a model of embeddings.", "inputs"
        )
    sentences = [inputs.source_sentence, *inputs.sentences]
    _check_rows(request, len(sentences))
    answers, timing = await _answers(
        request, [Ask(model, Source(sentence), parameters, "embedding", route=route) for sentence in sentences]
    )
    vectors = np.stack([answer.value for answer in answers])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return json_response(np.clip(vectors[1:] @ vectors[0], -1, 1).astype(float).tolist(), headers=timing_headers(answers, timing))


async def _answers(request: Request, asks: list[Ask]) -> tuple[list[Answer], Timing]:
    """The answers of all asks, or the first one's error."""
    app = services(request)
    answers, timing = await while_connected(request, app.inference.answer(asks, terms(request)))
    count_rows(app, answers)
    raise_first_error(answers)
    return answers, timing


def _check_rows(request: Request, rows: int) -> None:
    limit = services(request).settings.max_rows
    if rows > limit:
        raise ApiError(422, "too_many_rows", f"The request has {rows} inputs and the limit is {limit}: send fewer at a time.")


@router.get("/models/{model:path}/health", summary="Whether a model can be called")
async def model_health(request: Request, model: str) -> Response:
    """200 if the model exists."""
    await services(request).inference.route(model, terms(request))
    return json_response({"status": "ok"})


@router.get("/models/{model:path}", summary="What a model is")
async def model_info(request: Request, model: str) -> Response:
    """Its resolved version, digest, task and labels."""
    route = await services(request).inference.route(model, terms(request))
    labels = [] if route.head is None else list(route.head.labels)
    return json_response({"model_id": route.model, "digest": route.digest, "pipeline_tag": task_of(route), "labels": labels})


def task_of(route: Route) -> str:
    """The task of a route; without a head it is feature extraction."""
    return route.task or "feature-extraction"

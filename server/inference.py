"""The straight line of a request: route -> encode -> scheduler -> engine -> decode. Every convention of the wire calls `answer`."""

import asyncio
import time
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.core import Array, Pooling, Readout, Route, Sequence
from server.errors import ApiError, as_api_error
from server.residency import Residency
from server.router import Router
from server.scheduler import Scheduler
from server.tasks import decode
from server.tasks.encode import Encoded, Encoder, Text

AskedOutput = Literal["decoded", "logits", "hidden", "embedding"]


class Parameters(BaseModel):
    """How an input is read and its answer shaped. Names and meanings are those of Hugging Face's inference API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int | None = Field(default=5, ge=1, description="labels of a classification, best first; null for all")
    function_to_apply: decode.Function | None = Field(default=None, description="overrides the task's own")
    aggregation_strategy: decode.Aggregation = Field(default="simple", description="how tokens become entities")
    ignore_labels: tuple[str, ...] = Field(default=("O",), description="labels that are no entities")
    truncate: bool = Field(default=False, description="cut an input that is too long instead of refusing it")
    pooling: Pooling = Field(default="mean", description="of an embedding without an embedding head")
    normalize: bool = Field(default=True, description="scale such an embedding to length 1")


@dataclass(frozen=True, slots=True)
class Ask:
    """One row: what to run, on what, and what to answer."""

    model: str
    text: Text
    parameters: Parameters = field(default_factory=Parameters)
    output: AskedOutput = "decoded"


@dataclass(slots=True, eq=False)
class Answer:
    """One row's answer, or its error. `value` is the decoded answer or, for the raw outputs, an array."""

    route: Route | None = None
    readout: Readout | None = None
    value: Any = None
    tokens: int = 0
    truncated: bool = False
    error: ApiError | None = None


@dataclass(slots=True)
class Timing:
    """Seconds that a request spent in each part of the line."""

    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Inference:
    """What answers: the parts of the line, wired by `app.create_app`."""

    router: Router
    encoder: Encoder
    residency: Residency
    scheduler: Scheduler
    workers: ThreadPoolExecutor

    async def answer(self, asks: Rows[Ask]) -> tuple[list[Answer], Timing]:
        """One answer per ask, in order; the error of a row is in its answer. Raises QueueFull and Stopped for all of them."""
        began = time.perf_counter()
        answers = [self._routed(ask) for ask in asks]
        encoded = await self._encode([ask.text for ask in asks])
        timing = Timing(tokenization=time.perf_counter() - began)
        rows: dict[int, Sequence] = {}
        for i, (answer, tokens) in enumerate(zip(answers, encoded, strict=True)):
            answer.error = answer.error or (tokens if isinstance(tokens, ApiError) else None)
            if answer.error is None and answer.route and answer.readout and isinstance(tokens, Encoded):
                answer.tokens, answer.truncated = len(tokens.input_ids), tokens.truncated
                rows[i] = Sequence(answer.route, tokens.input_ids, tokens.type_ids, answer.readout)
        for i, output in (await self._run(rows, answers, timing)).items():
            tokens = encoded[i]
            assert isinstance(tokens, Encoded)
            self._finish(asks[i], answers[i], output, tokens)
        timing.total = time.perf_counter() - began
        return answers, timing

    def _routed(self, ask: Ask) -> Answer:
        try:
            route = self.router.route(ask.model)
            return Answer(route, readout(route, ask))
        except Exception as error:
            return Answer(error=as_api_error(error))

    async def _encode(self, texts: list[Text]) -> list[Encoded | ApiError]:
        """Each distinct text once; a fan-out asks the same text many times."""
        distinct = list(dict.fromkeys(texts))
        loop = asyncio.get_running_loop()
        encoded = dict(zip(distinct, await loop.run_in_executor(self.workers, self.encoder.encode, distinct), strict=True))
        return [encoded[text] for text in texts]

    async def _run(self, rows: dict[int, Sequence], answers: list[Answer], timing: Timing) -> dict[int, Array]:
        """The raw output of every row whose packages could be made resident."""
        held: list[str] = []
        try:
            for route in dict.fromkeys(row.route for row in rows.values()):
                try:
                    held += await self.residency.acquire(route.digests)
                except Exception as error:
                    for i in [i for i, row in rows.items() if row.route == route]:
                        answers[i].error = as_api_error(error)
                        del rows[i]
            if not rows:
                return {}
            ticket = self.scheduler.submit(list(rows.values()))
            outputs = await ticket.future
            timing.queue, timing.inference = ticket.queue_seconds, ticket.run_seconds
            return dict(zip(rows, outputs, strict=True))
        finally:
            self.residency.release(held)

    def _finish(self, ask: Ask, answer: Answer, output: Array, encoded: Encoded) -> None:
        assert answer.route is not None
        head, parameters = answer.route.head, ask.parameters
        if ask.output != "decoded" or head is None or head.type == "embedding":
            answer.value = output
        elif head.type == "tagging":
            if encoded.encoding is None:
                answer.error = ApiError(
                    400, "no_text", "Entities point into a text and token ids have none: ask for output 'logits'.", "inputs"
                )
                return
            answer.value = decode.tag(head, output, ask.text.text, encoded, parameters.aggregation_strategy, parameters.ignore_labels)
        else:
            answer.value = decode.classify(head, output, parameters.function_to_apply, parameters.top_k)


def readout(route: Route, ask: Ask) -> Readout:
    """What the engine reads out for an ask; raises ApiError where the route has no such output."""
    head = route.head
    if ask.output == "hidden":
        return Readout("hidden")
    if ask.output == "embedding" or (ask.output == "decoded" and head is not None and head.type == "embedding"):
        if head is not None and head.type == "embedding" and head.pooling is not None:
            return Readout("embedding", head.pooling, head.normalize)
        return Readout("embedding", ask.parameters.pooling, ask.parameters.normalize)
    if head is None:
        raise ApiError(
            400,
            "no_head",
            f"'{route.model}' has no head: ask for output 'hidden' or 'embedding', or append '#' and the name of a package with a head.",
            "model",
        )
    if head.type == "embedding":
        raise ApiError(
            400, "no_logits", f"'{route.model}' makes embeddings and has no logits: ask for output 'decoded' or 'hidden'.", "output"
        )
    return Readout("logits")

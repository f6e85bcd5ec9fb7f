"""The straight line of a request: route -> encode -> scheduler -> engine -> decode. Every convention of the wire calls `answer`."""

import asyncio
import time
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from server.core import Outputs, Route, Sequence
from server.errors import ApiError, as_api_error
from server.residency import Residency
from server.router import Router
from server.scheduler import Scheduler
from server.tasks.encode import Encoded, Encoder, Text
from server.tasks.parameters import Parameters
from server.tasks.rows import DECODERS, Prepared, Source, at_masks, prepare, raw, readout_of
from server.tasks.words import attention

__all__ = ["Answer", "Ask", "AskedOutput", "Inference", "Parameters", "Source", "Timing"]

AskedOutput = Literal["decoded", "logits", "hidden", "encoder_hidden", "embedding"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One input on one model: what to run, on what, and what to answer."""

    model: str
    source: Source
    parameters: Parameters = field(default_factory=Parameters)
    output: AskedOutput = "decoded"


@dataclass(slots=True, eq=False)
class Answer:
    """One ask's answer, or its error. `value` is the decoded answer or, for the raw outputs, an array, named arrays or a list of them."""

    route: Route | None = None
    value: Any = None
    tokens: int = 0
    truncated: bool = False
    attention: list[dict[str, Any]] | None = None
    error: ApiError | None = None
    prepared: Prepared | None = None


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
    max_rows: int

    async def answer(self, asks: Rows[Ask]) -> tuple[list[Answer], Timing]:
        """One answer per ask, in order; the error of an ask is in its answer. Raises QueueFull and Stopped for all of them."""
        began = time.perf_counter()
        answers = [self._routed(ask) for ask in asks]
        await asyncio.get_running_loop().run_in_executor(self.workers, self._prepare, asks, answers)
        timing = Timing(tokenization=time.perf_counter() - began)
        rows = {i: _sequences(answer) for i, answer in enumerate(answers) if answer.error is None}
        count = sum(map(len, rows.values()))
        if count > self.max_rows:
            raise ApiError(
                422, "too_many_rows", f"The request makes {count} rows and the limit is {self.max_rows}: send fewer inputs at a time."
            )
        for i, outputs in (await self._run(rows, answers, timing)).items():
            self._finish(asks[i], answers[i], outputs)
        timing.total = time.perf_counter() - began
        return answers, timing

    def _routed(self, ask: Ask) -> Answer:
        try:
            return Answer(self.router.route(ask.model))
        except Exception as error:
            return Answer(error=as_api_error(error))

    def _prepare(self, asks: Rows[Ask], answers: list[Answer]) -> None:
        """Tokenizes each distinct text once (a fan-out asks the same text many times) and makes the rows of every ask."""
        texts = [_texts(ask, answer) for ask, answer in zip(asks, answers, strict=True)]
        distinct = list(dict.fromkeys(text for some in texts for text in some))
        encoded = dict(zip(distinct, self.encoder.encode(distinct), strict=True))
        for ask, answer, some in zip(asks, answers, texts, strict=True):
            if answer.error is None:
                self._prepare_one(ask, answer, [encoded[text] for text in some])

    def _prepare_one(self, ask: Ask, answer: Answer, encoded: Rows[Encoded | ApiError]) -> None:
        assert answer.route is not None
        source, head = ask.source, answer.route.head
        try:
            whole: list[Encoded] = []
            for one in encoded:
                if isinstance(one, ApiError):
                    raise one
                whole.append(one)
            has_decoder = source.decoder_text is not None or source.decoder_ids is not None
            if has_decoder and not self.encoder.ids.encoder_decoder:
                raise ApiError(400, "no_decoder", "The backbone has no decoder: leave out decoder_text and decoder_input_ids.", "inputs")
            readout = readout_of(answer.route, ask.output, ask.parameters, has_decoder)
            prepared = prepare(self.encoder, answer.route, source, whole, readout, ask.parameters)
            if ask.output == "decoded" and head is not None and head.type == "masked_lm":
                prepared = at_masks(self.encoder, prepared)
            answer.prepared = prepared
            answer.tokens = sum(len(one.input_ids) for one in prepared.encoded)
            answer.truncated = any(one.truncated for one in prepared.encoded)
        except Exception as error:
            answer.error = as_api_error(error)

    async def _run(self, rows: dict[int, list[Sequence]], answers: list[Answer], timing: Timing) -> dict[int, list[Outputs]]:
        """The outputs of every ask whose packages could be made resident."""
        held: list[str] = []
        try:
            for route in dict.fromkeys(sequences[0].route for sequences in rows.values()):
                try:
                    held += await self.residency.acquire(route.digests)
                except Exception as error:
                    for i in [i for i, sequences in rows.items() if sequences[0].route == route]:
                        answers[i].error = as_api_error(error)
                        del rows[i]
            if not rows:
                return {}
            ticket = self.scheduler.submit([sequence for sequences in rows.values() for sequence in sequences])
            outputs = iter(await ticket.future)
            timing.queue, timing.inference = ticket.queue_seconds, ticket.run_seconds
            return {i: [next(outputs) for _ in sequences] for i, sequences in rows.items()}
        finally:
            self.residency.release(held)

    def _finish(self, ask: Ask, answer: Answer, outputs: list[Outputs]) -> None:
        assert answer.route is not None
        assert answer.prepared is not None
        head = answer.route.head
        try:
            if ask.output != "decoded" or head is None or head.type == "embedding":
                answer.value = raw(answer.route, ask.source, outputs, ask.output, answer.prepared.encoded)
            else:
                answer.value = DECODERS[head.type](self.encoder, head, ask.source, answer.prepared, outputs, ask.parameters)
            if ask.parameters.explain:
                answer.attention = attention(outputs[0], answer.route.fusion_members)
        except ApiError as error:
            answer.error = error


def _texts(ask: Ask, answer: Answer) -> list[Text]:
    return [] if answer.error is not None or answer.route is None else ask.source.texts(ask.parameters.truncate, answer.route.reserved)


def _sequences(answer: Answer) -> list[Sequence]:
    assert answer.route is not None
    assert answer.prepared is not None
    ready = answer.prepared
    return [
        Sequence(answer.route, one.input_ids, one.type_ids, ready.readout, ready.decoder_ids, ready.word_starts) for one in ready.encoded
    ]

"""The straight line of a request: route -> encode -> scheduler -> engine -> decode. Every convention of the wire calls `answer`."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from server.access.quotas import Quotas
from server.core import Outputs, RequestLimits, Route, Sequence, Terms
from server.errors import ApiError, as_api_error
from server.residency import Cold, Residency
from server.router import ManifestNotRead, Router
from server.scheduler import DeadlineExceeded, Reservation, Scheduler
from server.tasks.answers import Reading, answer_of, attention
from server.tasks.encode import INLINE, Encoded, Encoder, Text
from server.tasks.parameters import Parameters
from server.tasks.rows import AskedOutput, Prepared, Source, prepare, raised
from server.tiers import LoadFailed, TooBig

__all__ = ["Answer", "Ask", "AskedOutput", "Inference", "Parameters", "Source", "Timing"]

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_TERMS = Terms()

# Numbers that are read from the rows of one request: [tokens, vocabulary] is large, and [words, words, labels].
MAX_VALUES = 1 << 25

# Asks that are prepared on the event loop where their texts are short (`encode.INLINE`).
FEW = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """One input on one model: what to run, on what, and what to answer.

    `fault` is what was wrong before it could be asked; `route` the model's, where it has been resolved already.
    """

    model: str
    source: Source
    parameters: Parameters = field(default_factory=Parameters)
    output: AskedOutput = "decoded"
    fault: ApiError | None = None
    route: Route | None = None


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
    """What answers: the parts of the line, wired by `app.create_app`.

    `quotas` are charged for a request's tokens. `readers` read manifests: other threads than the `workers`, which tokenize, as a store
    may hang.
    """

    router: Router
    encoder: Encoder
    residency: Residency
    scheduler: Scheduler
    workers: ThreadPoolExecutor
    readers: ThreadPoolExecutor
    limits: RequestLimits
    quotas: Quotas

    async def answer(self, asks: Rows[Ask], terms: Terms = DEFAULT_TERMS) -> tuple[list[Answer], Timing]:
        """One answer per ask, in order; the error of an ask is in its answer. Raises QueueFull, DeadlineExceeded, Stopped for all."""
        if terms.deadline == math.inf:
            return await self._answer(asks, terms)
        try:
            async with asyncio.timeout(terms.deadline - time.perf_counter()):
                return await self._answer(asks, terms)
        except TimeoutError:
            raise DeadlineExceeded from None

    async def _answer(self, asks: Rows[Ask], terms: Terms) -> tuple[list[Answer], Timing]:
        began = time.perf_counter()
        self._check_characters(asks)
        answers = await self.reading(lambda: [self._routed(ask, terms) for ask in asks])
        digests = list(dict.fromkeys(digest for one in answers if one.route is not None for digest in one.route.digests))
        with self.residency.hold(digests):  # in the step that resolved them: what is deleted from now on stays until this ends
            self.residency.prefetch(digests)
            if _light(asks):
                self._prepare(asks, answers)
            else:
                await asyncio.get_running_loop().run_in_executor(self.workers, self._prepare, asks, answers)
            timing = Timing(tokenization=time.perf_counter() - began)
            rows = {i: _sequences(one) for i, one in enumerate(answers) if one.error is None}
            self._check_size(rows, answers)
            outputs = await self._run(rows, answers, terms, timing)
        readings = {i: self._reading(asks[i], answers[i], some) for i, some in outputs.items()}
        if any(reading.slow for reading in readings.values()):
            await asyncio.get_running_loop().run_in_executor(self.workers, _finish, readings, answers)
        else:
            _finish(readings, answers)
        timing.total = time.perf_counter() - began
        return answers, timing

    async def reading(self, resolve: Callable[[], T]) -> T:
        """What `resolve` makes of the router, once the manifests that it needs are read. What it returns is of this step of the loop.

        A manifest that cannot be read fails what needs it, not the others.
        """
        faults: dict[str, Exception] = {}
        try:
            return resolve()
        except ManifestNotRead:
            pass
        while True:
            try:
                with self.router.lacking(faults):
                    return resolve()
            except ManifestNotRead as needed:
                try:
                    await asyncio.get_running_loop().run_in_executor(self.readers, self.router.read, needed.digest)
                except Exception as error:
                    faults[needed.digest] = error

    async def route(self, model: str, terms: Terms) -> Route:
        """The route of a model string; raises as `Router.route`."""
        return await self.reading(lambda: self.router.route(model, terms))

    def _check_characters(self, asks: Rows[Ask]) -> None:
        """Raises ApiError for texts that would take long to tokenize. A text is tokenized once, a question for each of its models."""
        texts = {ask.source for ask in asks if ask.source.question is None} if len(asks) > 1 else [ask.source for ask in asks]
        questions = (ask.source for ask in asks if ask.source.question is not None) if len(asks) > 1 else ()
        sizes = [source.characters for source in (*texts, *questions)]
        longest, total = max(sizes, default=0), sum(sizes)
        limit, of_all = self.limits.max_input_chars, self.limits.max_request_chars
        if longest > limit:
            raise ApiError(422, "input_too_long", f"An input has {longest} characters and the limit is {limit}: shorten it.", "inputs")
        if total > of_all:
            sentence = f"The request has {total} characters to tokenize and the limit is {of_all}: send fewer inputs at a time."
            raise ApiError(422, "too_many_characters", sentence, "inputs")

    def _check_size(self, rows: dict[int, list[Sequence]], answers: list[Answer]) -> None:
        """Raises ApiError for a request that would run or answer too much, windows and choices counted."""
        count = sum(map(len, rows.values()))
        if count > self.limits.max_rows:
            raise ApiError(
                422,
                "too_many_rows",
                f"The request makes {count} rows and the limit is {self.limits.max_rows}: send fewer inputs at a time.",
            )
        values = sum(one.prepared.values for one in answers if one.error is None and one.prepared is not None)
        if values > MAX_VALUES:
            raise ApiError(
                422,
                "too_many_values",
                f"The request's heads make {values} numbers and the limit is {MAX_VALUES}: send fewer or shorter inputs.",
            )

    def _routed(self, ask: Ask, terms: Terms) -> Answer:
        if ask.fault is not None:
            return Answer(error=ask.fault)
        if ask.route is not None:
            return Answer(ask.route)
        try:
            return Answer(self.router.route(ask.model, terms))
        except ManifestNotRead:
            raise
        except Exception as error:
            return Answer(error=_fault(error))

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
        try:
            whole = [raised(one) for one in encoded]
            prepared = prepare(self.encoder, answer.route, ask.source, ask.output, ask.parameters, whole, self.limits.max_rows)
            answer.prepared = prepared
            answer.tokens = sum(len(one.input_ids) for one in prepared.encoded)
            answer.truncated = any(one.truncated for one in prepared.encoded)
        except Exception as error:
            answer.error = _fault(error)

    async def _run(self, rows: dict[int, list[Sequence]], answers: list[Answer], terms: Terms, timing: Timing) -> dict[int, list[Outputs]]:
        """The outputs of every ask whose packages could be made resident: together, or in groups that fit where all do not."""
        if not rows:
            return {}
        by_route: dict[Route, dict[int, list[Sequence]]] = {}
        for i, sequences in rows.items():
            by_route.setdefault(sequences[0].route, {})[i] = sequences
        outputs: dict[int, list[Outputs]] = {}
        tokens = sum(one.tokens for sequences in rows.values() for one in sequences)
        with self.scheduler.reserve(tokens, terms.caller, sum(map(len, rows.values())), terms.deadline) as reservation:
            self.quotas.charge_tokens(terms.caller, tokens)  # after: what the queue has no room for costs nothing
            routes = list(by_route)
            try:
                groups, faults = await self.residency.groups([route.digests for route in routes])
                for number, error in faults.items():
                    _fail(answers, by_route[routes[number]], error)
                for group in groups:
                    outputs |= await self._run_group([by_route[routes[number]] for number in group], answers, terms, reservation, timing)
            except (DeadlineExceeded, asyncio.CancelledError) as error:
                if isinstance(error, DeadlineExceeded) or time.perf_counter() >= terms.deadline:
                    self.quotas.refund_tokens(terms.caller, reservation.unrun)
                raise
        return outputs

    async def _run_group(
        self, parts: list[dict[int, list[Sequence]]], answers: list[Answer], terms: Terms, reservation: Reservation, timing: Timing
    ) -> dict[int, list[Outputs]]:
        """The same for some routes' rows, held together while they run. A package that cannot be had fails its rows alone."""
        while parts:
            wanted = {digest for part in parts for digest in _digests(part)}
            try:
                held = await self.residency.acquire(wanted, terms.cold)
            except (LoadFailed, Cold, TooBig) as error:
                lacking = {error.digest} if isinstance(error, LoadFailed) else set(error.digests) if isinstance(error, Cold) else wanted
                for part in [part for part in parts if lacking & set(_digests(part))] or list(parts):
                    _fail(answers, part, error)
                    parts.remove(part)
                continue
            try:
                some = {i: sequences for part in parts for i, sequences in part.items()}
                ticket = self.scheduler.submit([one for i in sorted(some) for one in some[i]], terms.caller, reservation)
                outputs = iter(await ticket.future)
            finally:
                self.residency.release(held)
            timing.queue += ticket.queue_seconds
            timing.inference += ticket.run_seconds
            return {i: [next(outputs) for _ in some[i]] for i in sorted(some)}
        return {}

    def _reading(self, ask: Ask, answer: Answer, outputs: list[Outputs]) -> Reading:
        assert answer.route is not None
        assert answer.prepared is not None
        return Reading(self.encoder, answer.route, ask.source, ask.output, ask.parameters, answer.prepared, outputs)


def _light(asks: Rows[Ask]) -> bool:
    """Whether asks are so few and short that they are prepared sooner than another thread would begin."""
    return len(asks) <= FEW and sum(INLINE + 1 if ask.source.kind != "text" else ask.source.characters for ask in asks) <= INLINE


def _finish(readings: dict[int, Reading], answers: list[Answer]) -> None:
    """Makes each answer of what was read."""
    for i, reading in readings.items():
        try:
            answers[i].value = answer_of(reading)
            if reading.parameters.explain:
                answers[i].attention = attention(reading)
        except Exception as error:
            answers[i].error = _fault(error)


def _digests(part: dict[int, list[Sequence]]) -> tuple[str, ...]:
    """The packages of the rows of one route."""
    return next(iter(part.values()))[0].route.digests


def _fail(answers: list[Answer], part: dict[int, list[Sequence]], error: Exception) -> None:
    fault = _fault(error)
    for i in part:
        answers[i].error = fault


def _fault(error: Exception) -> ApiError:
    """The error of one row; what is the server's own fault goes to its log."""
    fault = as_api_error(error)
    if fault.status == 500:
        log.error("a row failed", exc_info=error)
    return fault


def _texts(ask: Ask, answer: Answer) -> list[Text]:
    return [] if answer.error is not None or answer.route is None else ask.source.texts(ask.parameters.truncate, answer.route.reserved)


def _sequences(answer: Answer) -> list[Sequence]:
    assert answer.route is not None
    assert answer.prepared is not None
    ready = answer.prepared
    return [
        Sequence(answer.route, one.input_ids, one.type_ids, ready.readout, decoder, ready.word_starts)
        for one, decoder in zip(ready.encoded, ready.decoder_ids, strict=True)
    ]

"""`Turret` and `AsyncTurret`: the calls of `protocol.py` over a connection, tried again as `retry.py` says.

Every method sends one request (`list` one per page, `health` two), raises a subclass of TurretError where it fails, and
is safe to use from several threads or tasks at once.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from turret_client import protocol
from turret_client.answers import Response, package_digest
from turret_client.connection import Connection, Pages, content_length, response_of, version_of
from turret_client.download import Download
from turret_client.errors import TurretError
from turret_client.protocol import Call, EmbedInputs, Inputs, OutputKind, Parameters, Request, Row
from turret_client.results import (
    Adapter,
    AdapterDetails,
    AliasMoved,
    Deleted,
    Embeddings,
    Health,
    ModelInfo,
    Predictions,
    Published,
    Pulled,
)
from turret_client.upload import Body, Progress, package_body

DEFAULT_TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # seconds
Timeout = float | httpx.Timeout | None
File = str | PathLike[str]
Models = list[ModelInfo]

T = TypeVar("T")


class Turret(Connection):
    """A connection to a Turret server, blocking.

    url          the server's base URL; default: the environment's TURRET_URL, else http://127.0.0.1:8080
    api_key      sent as `Authorization: Bearer`; default: the environment's TURRET_API_KEY, else none
    timeout      seconds (or an httpx.Timeout) for connecting and for each silence of the server; None waits for ever
    max_retries  tries after the first one (see `retry.py`)
    transport, sleep    for tests: an httpx transport, and what waits between tries
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 3,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, api_key, max_retries)
        self._sleep = sleep
        self._http = httpx.Client(timeout=timeout, transport=transport, verify=self._verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        self._http.close()

    def predict(
        self, model: str | Sequence[str], inputs: Inputs, *, parameters: Parameters | None = None, output: OutputKind = "decoded"
    ) -> Predictions:
        """Runs a model on a text, a pair or token ids, or a list of these. A list of models answers for each (fan-out).

        One row per input and model: all models of the first input, then of the second. A row that failed among others is an
        error in its place, whose `output` raises RowFailed.
        """
        return self._call(protocol.predict(model, inputs, parameters, output))

    def predict_many(self, requests: Sequence[Row]) -> Predictions:
        """Runs rows of different models, parameters and outputs in one request; they share batches on the server."""
        return self._call(protocol.predict_many(requests))

    def embed(self, inputs: EmbedInputs, model: str, *, dimensions: int | None = None) -> Embeddings:
        """Vectors of one text or several, by an embedding adapter or `base`."""
        return self._call(protocol.embed(inputs, model, dimensions))

    def push(
        self,
        name: str,
        path: File,
        alias: str | None = None,
        if_none_match: bool = False,
        progress: Progress | None = None,
        members: Mapping[str, str] | None = None,
    ) -> Published:
        """Publishes a package file, or an adapter's folder as AdapterHub and PEFT write it, as the next version of `name`.

        alias          also points this alias to it, in the same step
        if_none_match  only if the name is new; raises Conflict otherwise
        progress       called with (bytes sent, bytes in all)
        members        of a fusion's folder: which adapters its members are, by the names that it gives them; the server takes those
                       of the same names where nothing is said
        A setup's folder (adapter_setup.json) becomes several packages: NAME.MEMBER for each adapter, and NAME for the whole.
        Raises InvalidArgument, before anything is sent, for a path that no server would take.
        """
        return self._call(protocol.push(name, package_body(Path(path)), alias, if_none_match, members), progress)

    def pull(self, reference: str, file: File, progress: Progress | None = None) -> Pulled:
        """Downloads the package of `name`, `name@3`, `name@prod` or `name@sha256:...` to `file`, whole and checked, or not at all.

        Raises DigestMismatch if the bytes are not those that the server (or the reference) names.
        """
        name, version = protocol.split_reference(reference)
        sink = Download(Path(file), progress)
        pinned = version if version and version.startswith("sha256:") else None
        if pinned:
            version = version_of(self.show(name), pinned)
        request = protocol.package(name, version or "latest")
        headers = self._identified(request)
        return self._retrying(request, lambda: self._download(request, headers, sink, pinned))

    def list(
        self, *, task: str | None = None, method: str | None = None, namespace: str | None = None, page_size: int | None = None
    ) -> Iterator[Adapter]:
        """The published adapters, newest version of each; pages are fetched as the iteration reaches them."""
        pages = Pages()
        while pages.more:
            yield from pages.turn(self._call(protocol.list_page(task, method, namespace, page_size, pages.cursor)))

    def show(self, name: str) -> AdapterDetails:
        """Versions, aliases, manifest, residency and counts of one adapter."""
        return self._call(protocol.show(name))

    def delete(self, name: str, version: int | None = None) -> Deleted:
        """Deletes one version, or the name with all its versions. Running requests finish first."""
        return self._call(protocol.delete(name, version))

    def set_alias(self, name: str, alias: str, version: int) -> AliasMoved:
        """Points an alias to a version, in one step."""
        return self._call(protocol.set_alias(name, alias, version))

    def models(self) -> Models:
        """All model names that the server answers to, as OpenAI's list has them."""
        return self._call(protocol.models())

    def health(self) -> Health:
        """Whether the server is alive and ready; raises ConnectionFailed if nothing answers."""
        return self._call(protocol.ready()) if self._call(protocol.alive()) else Health(alive=False, ready=False)

    def _call(self, call: Call[T], progress: Progress | None = None) -> T:
        headers = self._identified(call.request)
        return self._retrying(call.request, lambda: call.parse(self._exchange(call.request, headers, progress)))

    def _retrying(self, request: Request, attempt: Callable[[], T]) -> T:
        tried = 0
        while True:
            try:
                return attempt()
            except TurretError as error:
                wait = self._wait(error, tried, request)
                if wait is None:
                    raise
            tried += 1
            self._sleep(wait)

    def _exchange(self, request: Request, headers: dict[str, str], progress: Progress | None) -> Response:
        content = request.content.chunks(progress) if isinstance(request.content, Body) else request.content
        try:
            answer = self._http.request(
                request.method, self.url + request.path, params=_params(request), headers=headers, content=content or None
            )
        except httpx.RequestError as error:
            raise self._broken(error, headers) from error
        return response_of(answer, headers, answer.content)

    def _download(self, request: Request, headers: dict[str, str], sink: Download, pinned: str | None) -> Pulled:
        try:
            with self._http.stream(request.method, self.url + request.path, headers=headers) as answer, sink:
                content = b"" if answer.is_success else answer.read()
                promised = package_digest(response_of(answer, headers, content))
                sink.start(pinned or promised, content_length(answer))
                for chunk in answer.iter_bytes():
                    sink.write(chunk)
                return sink.finish()
        except httpx.RequestError as error:
            raise self._broken(error, headers) from error


class AsyncTurret(Connection):
    """A connection to a Turret server for asyncio or trio. Arguments and methods are those of `Turret`, awaited."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        super().__init__(url, api_key, max_retries)
        self._sleep = sleep
        self._http = httpx.AsyncClient(timeout=timeout, transport=transport, verify=self._verify)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        await self._http.aclose()

    async def predict(
        self, model: str | Sequence[str], inputs: Inputs, *, parameters: Parameters | None = None, output: OutputKind = "decoded"
    ) -> Predictions:
        """See `Turret.predict`."""
        return await self._call(protocol.predict(model, inputs, parameters, output))

    async def predict_many(self, requests: Sequence[Row]) -> Predictions:
        """See `Turret.predict_many`."""
        return await self._call(protocol.predict_many(requests))

    async def embed(self, inputs: EmbedInputs, model: str, *, dimensions: int | None = None) -> Embeddings:
        """See `Turret.embed`."""
        return await self._call(protocol.embed(inputs, model, dimensions))

    async def push(
        self,
        name: str,
        path: File,
        alias: str | None = None,
        if_none_match: bool = False,
        progress: Progress | None = None,
        members: Mapping[str, str] | None = None,
    ) -> Published:
        """See `Turret.push`."""
        body = await anyio.to_thread.run_sync(package_body, Path(path))
        return await self._call(protocol.push(name, body, alias, if_none_match, members), progress)

    async def pull(self, reference: str, file: File, progress: Progress | None = None) -> Pulled:
        """See `Turret.pull`."""
        name, version = protocol.split_reference(reference)
        sink = Download(Path(file), progress)
        pinned = version if version and version.startswith("sha256:") else None
        if pinned:
            version = version_of(await self.show(name), pinned)
        request = protocol.package(name, version or "latest")
        headers = self._identified(request)
        return await self._retrying(request, lambda: self._download(request, headers, sink, pinned))

    async def list(
        self, *, task: str | None = None, method: str | None = None, namespace: str | None = None, page_size: int | None = None
    ) -> AsyncIterator[Adapter]:
        """See `Turret.list`; an asynchronous iterator."""
        pages = Pages()
        while pages.more:
            for adapter in pages.turn(await self._call(protocol.list_page(task, method, namespace, page_size, pages.cursor))):
                yield adapter

    async def show(self, name: str) -> AdapterDetails:
        """See `Turret.show`."""
        return await self._call(protocol.show(name))

    async def delete(self, name: str, version: int | None = None) -> Deleted:
        """See `Turret.delete`."""
        return await self._call(protocol.delete(name, version))

    async def set_alias(self, name: str, alias: str, version: int) -> AliasMoved:
        """See `Turret.set_alias`."""
        return await self._call(protocol.set_alias(name, alias, version))

    async def models(self) -> Models:
        """See `Turret.models`."""
        return await self._call(protocol.models())

    async def health(self) -> Health:
        """See `Turret.health`."""
        return await self._call(protocol.ready()) if await self._call(protocol.alive()) else Health(alive=False, ready=False)

    async def _call(self, call: Call[T], progress: Progress | None = None) -> T:
        headers = self._identified(call.request)

        async def attempt() -> T:
            return call.parse(await self._exchange(call.request, headers, progress))

        return await self._retrying(call.request, attempt)

    async def _retrying(self, request: Request, attempt: Callable[[], Awaitable[T]]) -> T:
        tried = 0
        while True:
            try:
                return await attempt()
            except TurretError as error:
                wait = self._wait(error, tried, request)
                if wait is None:
                    raise
            tried += 1
            await self._sleep(wait)

    async def _exchange(self, request: Request, headers: dict[str, str], progress: Progress | None) -> Response:
        content = request.content.achunks(progress) if isinstance(request.content, Body) else request.content
        try:
            answer = await self._http.request(
                request.method, self.url + request.path, params=_params(request), headers=headers, content=content or None
            )
        except httpx.RequestError as error:
            raise self._broken(error, headers) from error
        return response_of(answer, headers, answer.content)

    async def _download(self, request: Request, headers: dict[str, str], sink: Download, pinned: str | None) -> Pulled:
        try:
            async with self._http.stream(request.method, self.url + request.path, headers=headers) as answer:
                with sink:
                    content = b"" if answer.is_success else await answer.aread()
                    promised = package_digest(response_of(answer, headers, content))
                    sink.start(pinned or promised, content_length(answer))
                    async for chunk in answer.aiter_bytes():
                        await anyio.to_thread.run_sync(sink.write, chunk)
                    return await anyio.to_thread.run_sync(sink.finish)
        except httpx.RequestError as error:
            raise self._broken(error, headers) from error


def _params(request: Request) -> httpx.QueryParams | None:
    """The query; a parameter with several values is repeated."""
    return httpx.QueryParams({key: value if isinstance(value, str) else list(value) for key, value in request.params.items()}) or None

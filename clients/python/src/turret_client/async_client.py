"""`AsyncTurret`: the methods of `Turret` for asyncio and trio, over the same calls of `protocol.py`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx

from turret_client import protocol
from turret_client.answers import Response, package_digest
from turret_client.catalogue import Adapter, AdapterDetails, AliasMoved, Commit, Deleted, Published, Pulled, Resident
from turret_client.changes import Change, Target
from turret_client.client import Turret
from turret_client.connection import (
    DEFAULT_TIMEOUT,
    Connection,
    File,
    Models,
    Pages,
    Timeout,
    content_length,
    query_of,
    response_of,
    version_of,
)
from turret_client.download import Download
from turret_client.errors import TurretError
from turret_client.names import split_reference
from turret_client.protocol import Call, Cold, EmbedInputs, Inputs, OutputKind, Parameters, Request, Row
from turret_client.results import Embeddings, Health, Predictions
from turret_client.upload import Body, Progress, package_body

T = TypeVar("T")


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
        self._timeout = timeout
        self._http = httpx.AsyncClient(timeout=timeout, transport=transport, verify=self._verify)
        self._given_transport = transport is not None
        self._uploader: Turret | None = None  # made by the first push

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; the client cannot be used afterwards."""
        await self._http.aclose()
        if self._uploader is not None:
            self._uploader.close()

    async def predict(
        self,
        model: str | Sequence[str],
        inputs: Inputs,
        *,
        parameters: Parameters | None = None,
        output: OutputKind = "decoded",
        sticky_key: str | None = None,
        cold: Cold | None = None,
        deadline: float | None = None,
    ) -> Predictions:
        """See `Turret.predict`."""
        return await self._call(protocol.predict(model, inputs, parameters, output, sticky_key, cold, deadline))

    async def predict_many(
        self, requests: Sequence[Row], *, sticky_key: str | None = None, cold: Cold | None = None, deadline: float | None = None
    ) -> Predictions:
        """See `Turret.predict_many`."""
        return await self._call(protocol.predict_many(requests, sticky_key, cold, deadline))

    async def embed(
        self,
        inputs: EmbedInputs,
        model: str,
        *,
        dimensions: int | None = None,
        sticky_key: str | None = None,
        cold: Cold | None = None,
        deadline: float | None = None,
    ) -> Embeddings:
        """See `Turret.embed`."""
        return await self._call(protocol.embed(inputs, model, dimensions, sticky_key, cold, deadline))

    async def push(
        self,
        name: str,
        path: File,
        alias: str | None = None,
        if_none_match: bool = False,
        progress: Progress | None = None,
        members: Mapping[str, str] | None = None,
        signature: str | None = None,
    ) -> Published:
        """See `Turret.push`."""
        body = await anyio.to_thread.run_sync(package_body, Path(path))
        return await self._call(protocol.push(name, body, alias, if_none_match, members, signature), progress)

    async def pull(self, reference: str, file: File, progress: Progress | None = None) -> Pulled:
        """See `Turret.pull`."""
        name, version = split_reference(reference)
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
            page = await self._call(protocol.list_page(task, method, namespace, page_size, pages.cursor))
            for adapter in pages.turn(page.adapters, page.next_cursor):
                yield adapter

    async def show(self, name: str) -> AdapterDetails:
        """See `Turret.show`."""
        return await self._call(protocol.show(name))

    async def delete(self, name: str, version: int | None = None) -> Deleted:
        """See `Turret.delete`."""
        return await self._call(protocol.delete(name, version))

    async def set_alias(self, name: str, alias: str, target: Target) -> AliasMoved:
        """See `Turret.set_alias`."""
        return await self._call(protocol.set_alias(name, alias, target))

    async def drop_alias(self, name: str, alias: str) -> AliasMoved:
        """See `Turret.drop_alias`."""
        return await self._call(protocol.drop_alias(name, alias))

    async def rollback(self, name: str, alias: str) -> AliasMoved:
        """See `Turret.rollback`."""
        return await self._call(protocol.rollback(name, alias))

    async def change(self, changes: Sequence[Change | Mapping[str, Any]]) -> Commit:
        """See `Turret.change`."""
        return await self._call(protocol.change(changes))

    async def history(self, name: str | None = None, limit: int | None = None) -> AsyncIterator[Commit]:
        """See `Turret.history`; an asynchronous iterator."""
        pages = Pages(limit)
        while pages.more:
            page = await self._call(protocol.history_page(name, pages.cursor, pages.size))
            for commit in pages.turn(page.commits, page.next_before):
                yield commit

    async def load(self, reference: str, *, pin: bool = False) -> Resident:
        """See `Turret.load`."""
        return await self._call(protocol.load(*split_reference(reference), pin))

    async def unload(self, name: str) -> Resident:
        """See `Turret.unload`."""
        return await self._call(protocol.unload(name))

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
        if isinstance(request.content, Body) and not self._given_transport:
            return await self._upload(request, headers, progress)
        content = request.content.achunks(progress) if isinstance(request.content, Body) else request.content
        try:
            answer = await self._http.request(
                request.method, self.url + request.path, params=query_of(request), headers=headers, content=content or None
            )
        except httpx.RequestError as error:
            raise self._broken(error, headers) from error
        return response_of(answer, headers, answer.content)

    async def _upload(self, request: Request, headers: dict[str, str], progress: Progress | None) -> Response:
        """Sends a body from a worker thread over a blocking connection.

        An event loop whose write to a socket fails throws away what could still be read from it, and with it the sentence of a
        server that refuses in the middle of an upload. A blocking socket reads it.
        """
        if self._http.is_closed:
            raise RuntimeError("This client has been closed.")
        if self._uploader is None:
            self._uploader = Turret(self.url, timeout=self._timeout)
        send = partial(self._uploader._exchange, request, headers, _in_the_loop(progress))
        return await anyio.to_thread.run_sync(send, abandon_on_cancel=True)

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


def _in_the_loop(progress: Progress | None) -> Progress:
    """What a worker thread reports to: calls `progress` in the event loop, and ends the upload of a push that was cancelled."""

    def report(done: int, total: int) -> None:
        anyio.from_thread.check_cancelled()
        if progress is not None:
            anyio.from_thread.run_sync(progress, done, total)

    return report

"""`Turret`: the calls of `protocol.py` over a blocking connection, tried again as `retry.py` says. `async_client.py` is its twin.

Every method sends one request (`list` and `history` one per page, `health` two), raises a subclass of TurretError where it
fails, and is safe to use from several threads at once.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from turret_client import protocol
from turret_client.answers import Response, package_digest
from turret_client.catalogue import Adapter, AdapterDetails, AliasMoved, Commit, Deleted, Published, Pulled, Resident
from turret_client.changes import Change, Target
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
        """Runs a model on a text, a pair or token ids, or a list of these. A list of models answers for each (fan-out).

        One row per input and model: all models of the first input, then of the second. A row that failed among others is an
        error in its place, whose `output` raises RowFailed.

        sticky_key  of weighted aliases, all requests of one key get the same version; default: all of one API key
        cold        "refuse" raises ModelCold where the model is not on the device yet; default: waits for it
        deadline    seconds in which the server must have answered, else it does not run it and DeadlineExceeded is raised
        """
        return self._call(protocol.predict(model, inputs, parameters, output, sticky_key, cold, deadline))

    def predict_many(
        self, requests: Sequence[Row], *, sticky_key: str | None = None, cold: Cold | None = None, deadline: float | None = None
    ) -> Predictions:
        """Runs rows of different models, parameters and outputs in one request; they share batches on the server."""
        return self._call(protocol.predict_many(requests, sticky_key, cold, deadline))

    def embed(
        self,
        inputs: EmbedInputs,
        model: str,
        *,
        dimensions: int | None = None,
        sticky_key: str | None = None,
        cold: Cold | None = None,
        deadline: float | None = None,
    ) -> Embeddings:
        """Vectors of one text or several, by an embedding adapter or `base`."""
        return self._call(protocol.embed(inputs, model, dimensions, sticky_key, cold, deadline))

    def push(
        self,
        name: str,
        path: File,
        alias: str | None = None,
        if_none_match: bool = False,
        progress: Progress | None = None,
        members: Mapping[str, str] | None = None,
        signature: str | None = None,
    ) -> Published:
        """Publishes a package file, or an adapter's folder as AdapterHub and PEFT write it, as the next version of `name`.

        alias          also points this alias to it, in the same step
        if_none_match  only if the name is new; raises Conflict otherwise
        progress       called with (bytes sent, bytes in all)
        members        of a fusion's folder: which adapters its members are, by the names that it gives them; the server takes those
                       of the same names where nothing is said
        signature      of a package file: what `sign_package` made of it
        A setup's folder (adapter_setup.json) becomes several packages: NAME.MEMBER for each adapter, and NAME for the whole.
        Raises InvalidArgument, before anything is sent, for a path that no server would take.
        """
        return self._call(protocol.push(name, package_body(Path(path)), alias, if_none_match, members, signature), progress)

    def pull(self, reference: str, file: File, progress: Progress | None = None) -> Pulled:
        """Downloads the package of `name`, `name@3`, `name@prod` or `name@sha256:...` to `file`, whole and checked, or not at all.

        Raises DigestMismatch if the bytes are not those that the server (or the reference) names.
        """
        name, version = split_reference(reference)
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
            page = self._call(protocol.list_page(task, method, namespace, page_size, pages.cursor))
            yield from pages.turn(page.adapters, page.next_cursor)

    def show(self, name: str) -> AdapterDetails:
        """Versions, aliases, manifest, residency and counts of one adapter."""
        return self._call(protocol.show(name))

    def delete(self, name: str, version: int | None = None) -> Deleted:
        """Deletes one version, or the name with all its versions. Running requests finish first."""
        return self._call(protocol.delete(name, version))

    def set_alias(self, name: str, alias: str, target: Target) -> AliasMoved:
        """Points an alias to a version, or spreads it over several by weight ({3: 90, 4: 10}), in one step.

        Requests of one `sticky_key`, else those of one API key, all get the same version.
        """
        return self._call(protocol.set_alias(name, alias, target))

    def drop_alias(self, name: str, alias: str) -> AliasMoved:
        """Removes an alias."""
        return self._call(protocol.drop_alias(name, alias))

    def rollback(self, name: str, alias: str) -> AliasMoved:
        """Points an alias back to where it was before its last move; twice is forward again."""
        return self._call(protocol.rollback(name, alias))

    def change(self, changes: Sequence[Change | Mapping[str, Any]]) -> Commit:
        """Makes several changes (SetAlias, DropAlias, Rollback, Delete, Publish) as one commit: all of them, or none."""
        return self._call(protocol.change(changes))

    def history(self, name: str | None = None, limit: int | None = None) -> Iterator[Commit]:
        """Who changed what and when, newest first: all commits, or those that concern `name`; at most `limit` of them.

        Pages are fetched as the iteration reaches them.
        """
        pages = Pages(limit)
        while pages.more:
            page = self._call(protocol.history_page(name, pages.cursor, pages.size))
            yield from pages.turn(page.commits, page.next_before)

    def load(self, reference: str, *, pin: bool = False) -> Resident:
        """Brings `name`, `name@3` or `name@prod` to the device before it is asked for; pinned, it is never displaced."""
        return self._call(protocol.load(*split_reference(reference), pin))

    def unload(self, name: str) -> Resident:
        """Frees the device of an adapter, pinned or not. It is loaded again when it is asked for."""
        return self._call(protocol.unload(name))

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
                request.method, self.url + request.path, params=query_of(request), headers=headers, content=content or None
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

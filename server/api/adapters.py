"""The catalogue over HTTP: publish, list, show, download, alias, roll back, load, delete."""

from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from adapter_store.catalog import Entry, VersionRecord
from adapter_store.names import check_name, parse_reference
from server.api.changes import Target, aliases_of, by
from server.api.uploads import body_file, form_files, is_form
from server.api.wire import json_response, note, services, terms
from server.errors import ApiError
from server.publishing import Upload, Uploaded
from server.services import Services
from server.tasks.bounded import Body

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

BINARY = {"schema": {"type": "string", "format": "binary"}}
PACKAGE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The package file", "content": {"application/octet-stream": BINARY}},
    304: {"description": "If-None-Match names the digest"},
}
FILES = {"schema": {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}}
PACKAGE_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": BINARY, "multipart/form-data": FILES}}}


class HeldFile(FileResponse):
    """A file that is held until its last byte is sent, or its reader has gone."""

    def __init__(self, held: ExitStack, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


class LoadRequest(Body):
    """Which version to bring to the device (a number, an alias or `latest`), and whether it shall stay there."""

    version: str = Field(default="latest", max_length=80)
    pin: bool = False


# The routes with more segments stand first: a name may hold a slash, so `{name:path}` would swallow them.


@router.get("/{name:path}/versions/{version}/package", summary="Download a package", response_class=FileResponse, responses=PACKAGE_ANSWERS)
async def download(request: Request, name: str, version: str) -> Response:
    """The package file's bytes; the ETag is its digest. `version` is a number, an alias or `latest`."""
    app = services(request)
    record = app.store.resolve(parse_reference(f"{name}@{version}"))
    etag = f'"{record.digest}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"etag": etag})
    held = ExitStack()
    path = await run_in_threadpool(held.enter_context, app.store.local(record.digest))
    filename = f"{record.name.replace('/', '-')}-{record.version}.safetensors"
    return HeldFile(held, path, media_type="application/octet-stream", filename=filename, headers={"etag": etag})


@router.delete("/{name:path}/versions/{version}", summary="Delete one version")
async def delete_version(request: Request, name: str, version: int) -> Response:
    """Removes a version once no request uses it any more. 409 while an alias or another package refers to it."""
    return await _delete(request, name, version)


@router.post("/{name:path}/aliases/{alias}/rollback", summary="Move an alias back")
async def rollback(request: Request, name: str, alias: str) -> Response:
    """Points an alias where it pointed before it was last moved; once more takes that back."""
    entry = await run_in_threadpool(services(request).store.rollback, check_name(name), alias, by(request))
    return _moved(request, entry, alias)


@router.put("/{name:path}/aliases/{alias}", summary="Make or move an alias")
async def put_alias(request: Request, name: str, alias: str, body: Target) -> Response:
    """Points an alias to a version, or to several by weight: a request takes one of them by its key, always the same one."""
    entry = await run_in_threadpool(services(request).store.set_alias, check_name(name), alias, body.target, by(request))
    return _moved(request, entry, alias)


@router.delete("/{name:path}/aliases/{alias}", summary="Remove an alias")
async def delete_alias(request: Request, name: str, alias: str) -> Response:
    """Removes an alias; what it pointed to stays."""
    entry = await run_in_threadpool(services(request).store.drop_alias, check_name(name), alias, by(request))
    return _moved(request, entry, alias)


@router.post("/{name:path}/load", summary="Bring an adapter to the device")
async def load(request: Request, name: str, body: LoadRequest) -> Response:
    """Makes a version, with all that it is composed of, resident before its first request; `pin` keeps it from being evicted."""
    app = services(request)
    record = app.store.resolve(parse_reference(f"{name}@{body.version}"))
    await app.residency.load(await _digests(app, record), pin=body.pin)
    note(request, version=record.version, digest=record.digest, pin=body.pin)
    return json_response(_residence(app, record))


@router.post("/{name:path}/unload", summary="Let an adapter go from the device")
async def unload(request: Request, name: str) -> Response:
    """Takes the pins off all versions of the name, and off the device those that no request uses. The next request loads them again.
    What they are composed of stays: it may be in use by others.
    """
    app = services(request)
    entry = app.store.show(name)
    for record in entry.versions.values():
        app.residency.unload([record.digest])
    return json_response(_residence(app, entry.latest))


@router.put(
    "/{name:path}",
    summary="Publish a package or an adapter's folder",
    status_code=201,
    responses={200: {"description": "The name holds these bytes already: its existing version"}},
    openapi_extra=PACKAGE_BODY,
)
async def publish(request: Request, name: str, alias: str | None = None, member: Annotated[list[str] | None, Query()] = None) -> Response:
    """Body: a package file (application/octet-stream), or multipart/form-data with a folder's files under their own names
    (those of a setup's folders as `folder/file`). Members of a fusion are found under the names that its config gives them, or
    as `member=their-name=name@version` says.

    201 for a new version; 200 and the existing version for bytes that the name already holds. `If-None-Match: *` refuses an
    existing name with 412. `x-turret-signature: SIGNER:BASE64` is an Ed25519 signature over the package's digest.
    """
    app = services(request)
    upload = Upload(
        name=check_name(name),
        alias=alias,
        only_new=request.headers.get("if-none-match") == "*",
        members=_pairs(member or []),
        signature=request.headers.get("x-turret-signature"),
        caller=terms(request).caller,
    )
    if is_form(request):
        async with form_files(request) as files:
            uploaded = await run_in_threadpool(app.publisher.folder, files, upload)
    else:
        async with body_file(request) as path:
            uploaded = await run_in_threadpool(app.publisher.package, path, upload)
    record = uploaded.published.record
    note(request, version=record.version, digest=record.digest, alias=alias)
    return json_response(_published(app, uploaded), 201 if uploaded.published.created else 200)


@router.get("", summary="List adapters")
async def list_adapters(
    request: Request,
    task: str | None = None,
    method: str | None = None,
    namespace: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: str | None = None,
) -> Response:
    """The newest version of every name, sorted by name. `cursor` is the `next_cursor` of the page before."""
    sees = terms(request).caller.sees
    entries = [
        entry
        for entry in services(request).store.entries()
        if _wanted(entry, task, method, namespace) and entry.name > (cursor or "") and sees(entry.name)
    ]
    page = entries[:limit]
    items = [{**_version(entry.latest), "aliases": aliases_of(entry)} for entry in page]
    return json_response({"adapters": items, "next_cursor": page[-1].name if len(entries) > limit else None})


@router.get("/{name:path}", summary="Show an adapter")
async def show(request: Request, name: str) -> Response:
    """Manifest of the newest version, all versions, aliases, whether it is on the device, and how many rows it answered."""
    app = services(request)
    entry = app.store.show(name)
    manifest = await app.inference.reading(lambda: app.router.manifest(entry.latest.digest))
    return json_response(
        {
            "name": entry.name,
            "aliases": aliases_of(entry),
            "versions": [_version(record) for record in entry.versions.values()],
            "manifest": manifest.model_dump(mode="json"),
            "resident": _resident(app, *entry.versions.values()),
            "counts": {"requests": int(sum(_rows(app, record) for record in entry.versions.values()))},
        }
    )


@router.delete("/{name:path}", summary="Delete an adapter")
async def delete(request: Request, name: str) -> Response:
    """Removes a name with all its versions once no request uses them any more. 409 while another package refers to one."""
    return await _delete(request, name, None)


async def _delete(request: Request, name: str, version: int | None) -> Response:
    app = services(request)
    versions = list(app.store.show(name).versions) if version is None else [version]
    freed = await run_in_threadpool(app.store.delete, name, version, by(request))
    await app.following.settle(freed)
    note(request, versions=versions)
    return json_response({"name": name, "deleted": versions})


def _moved(request: Request, entry: Entry, alias: str) -> Response:
    aliases = aliases_of(entry)
    note(request, alias=alias, target=aliases.get(alias))
    return json_response({"name": entry.name, "aliases": aliases})


async def _digests(app: Services, record: VersionRecord) -> tuple[str, ...]:
    """Everything that a version needs on the device, with what it is composed of, for each of its answers."""

    def needed() -> list[str]:
        channels = app.router.channels(record.reference)
        return [digest for channel in channels for digest in app.router.route(channel).digests]

    return tuple(dict.fromkeys(await app.inference.reading(needed)))


def _residence(app: Services, record: VersionRecord) -> dict[str, Any]:
    return {"name": record.name, "version": record.version, "digest": record.digest, "resident": _resident(app, record)}


def _resident(app: Services, *records: VersionRecord) -> dict[str, bool]:
    """Where any of some versions is."""
    places = [app.residency.resident(record.digest) for record in records]
    return {place: any(one[place] for one in places) for place in ("device", "host", "pinned")}


def _pairs(members: list[str]) -> dict[str, str]:
    """`mnli=acme/mnli` as {"mnli": "acme/mnli"}."""
    pairs: dict[str, str] = {}
    for text in members:
        name, equals, reference = text.rpartition("=")
        if not (name and equals and reference):
            raise ApiError(422, "invalid_member", f"{text[:80]!r} does not say what a member is: expected member=NAME=REFERENCE.", "member")
        pairs[name] = reference
    return pairs


def _wanted(entry: Entry, task: str | None, method: str | None, namespace: str | None) -> bool:
    summary = entry.latest.summary
    return (
        (task is None or task in (summary.task, summary.head))
        and (method is None or method in summary.methods)
        and (namespace is None or entry.name.startswith(f"{namespace}/"))
    )


def _version(record: VersionRecord) -> dict[str, Any]:
    summary = record.summary
    return {
        "name": record.name,
        "version": record.version,
        "digest": record.digest,
        "task": summary.task,
        "head": summary.head,
        "methods": list(summary.methods),
        "size": summary.size,
        "parameters": summary.parameters,
        "license": summary.license,
        "created": record.created,
        "by": record.by,
        "signature": None if record.signature is None else record.signature.partition(":")[0],
    }


def _rows(app: Services, record: VersionRecord) -> float:
    return app.metrics.registry.get_sample_value("turret_rows_total", {"model": record.reference, "outcome": "ok"}) or 0.0


def _published(app: Services, uploaded: Uploaded) -> dict[str, Any]:
    record = uploaded.published.record
    entry = app.store.catalog.find(record.name)  # None where it was deleted since
    return {
        **_version(record),
        "aliases": {} if entry is None else aliases_of(entry),
        "warnings": list(uploaded.warnings),
        "imported": list(uploaded.report),
    }

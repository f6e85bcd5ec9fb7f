"""The catalogue over HTTP: publish, list, show, download, alias, delete."""

import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from adapter_store.catalog import Entry, VersionRecord
from adapter_store.names import LATEST, check_name, parse_reference
from server.api.wire import json_response, services
from server.errors import ApiError
from server.publishing import Uploaded
from server.services import Services

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

MAX_FILES = 256
SETUP = "adapter_setup.json"
FILE_NAME = re.compile(r"(?:[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,127}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class AliasRequest(BaseModel):
    """Where an alias shall point."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)


# The routes with more segments stand first: a name may hold a slash, so `{name:path}` would swallow them.


@router.get("/{name:path}/versions/{version}/package", summary="Download a package")
async def download(request: Request, name: str, version: str) -> Response:
    """The package file's bytes; the ETag is its digest. `version` is a number, an alias or `latest`."""
    app = services(request)
    record = app.store.resolve(parse_reference(f"{name}@{version}"))
    etag = f'"{record.digest}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"etag": etag})
    path = await run_in_threadpool(app.store.path, record.digest)
    filename = f"{record.name.replace('/', '-')}-{record.version}.safetensors"
    return FileResponse(path, media_type="application/octet-stream", filename=filename, headers={"etag": etag})


@router.delete("/{name:path}/versions/{version}", summary="Delete one version")
async def delete_version(request: Request, name: str, version: int) -> Response:
    """Removes a version once no request uses it any more. 409 while an alias or another package refers to it."""
    return await _delete(services(request), name, version)


@router.put("/{name:path}/aliases/{alias}", summary="Make or move an alias")
async def put_alias(request: Request, name: str, alias: str, body: AliasRequest) -> Response:
    """Points an alias of the name to a version."""
    app = services(request)
    await run_in_threadpool(app.store.set_alias, check_name(name), alias, body.version)
    return json_response({"name": name, "aliases": _aliases(app.store.show(name))})


@router.put("/{name:path}", summary="Publish a package or an adapter's folder", status_code=201)
async def publish(request: Request, name: str, alias: str | None = None, member: Annotated[list[str] | None, Query()] = None) -> Response:
    """Body: a package file (application/octet-stream), or multipart/form-data with a folder's files under their own names
    (those of a setup's folders as `folder/file`). Members of a fusion are found under the names that its config gives them, or
    as `member=their-name=name@version` says.

    201 for a new version; 200 and the existing version for bytes that the name already holds. `If-None-Match: *` refuses an
    existing name with 412.
    """
    app = services(request)
    check_name(name)
    only_new = request.headers.get("if-none-match") == "*"
    pairs = _pairs(member or [])
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with _form_files(request) as files:
            uploaded = await run_in_threadpool(app.publisher.folder, files, name, alias, only_new, pairs)
    else:
        async with _body_file(request) as path:
            uploaded = await run_in_threadpool(app.publisher.package, path, name, alias, only_new)
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
    entries = [
        entry for entry in services(request).store.entries() if _wanted(entry, task, method, namespace) and entry.name > (cursor or "")
    ]
    page = entries[:limit]
    items = [{**_version(entry.latest), "aliases": _aliases(entry)} for entry in page]
    return json_response({"adapters": items, "next_cursor": page[-1].name if len(entries) > limit else None})


@router.get("/{name:path}", summary="Show an adapter")
async def show(request: Request, name: str) -> Response:
    """Manifest of the newest version, all versions, aliases, whether it is on the device, and how many rows it answered."""
    app = services(request)
    entry = app.store.show(name)
    manifest = await run_in_threadpool(app.router.manifest, entry.latest.digest)
    return json_response(
        {
            "name": entry.name,
            "aliases": _aliases(entry),
            "versions": [_version(record) for record in entry.versions.values()],
            "manifest": manifest.model_dump(mode="json"),
            "resident": {"device": any(record.digest in app.residency for record in entry.versions.values())},
            "counts": {"requests": int(sum(_rows(app, record) for record in entry.versions.values()))},
        }
    )


@router.delete("/{name:path}", summary="Delete an adapter")
async def delete(request: Request, name: str) -> Response:
    """Removes a name with all its versions once no request uses them any more. 409 while another package refers to one."""
    return await _delete(services(request), name, None)


async def _delete(app: Services, name: str, version: int | None) -> Response:
    versions = list(app.store.show(name).versions) if version is None else [version]
    digests = await run_in_threadpool(app.store.delete, name, version, False)
    for digest in digests:
        await app.residency.drop(digest)
        app.router.forget(digest)
    await run_in_threadpool(app.store.collect, digests)
    return json_response({"name": name, "deleted": versions})


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


def _aliases(entry: Entry) -> dict[str, int]:
    return {LATEST: entry.latest.version, **entry.aliases}


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
    }


def _rows(app: Services, record: VersionRecord) -> float:
    return app.metrics.registry.get_sample_value("turret_rows_total", {"model": record.reference, "outcome": "ok"}) or 0.0


def _published(app: Services, uploaded: Uploaded) -> dict[str, Any]:
    record = uploaded.published.record
    entry = app.store.show(record.name)
    return {**_version(record), "aliases": _aliases(entry), "warnings": list(uploaded.warnings), "imported": list(uploaded.report)}


@asynccontextmanager
async def _body_file(request: Request) -> AsyncIterator[Path]:
    """The body on disk, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="turret-upload-") as folder:
        path = Path(folder) / "package.safetensors"
        with path.open("wb") as file:
            async for chunk in request.stream():
                await run_in_threadpool(file.write, chunk)
        if path.stat().st_size == 0:
            raise ApiError(400, "empty_body", "The body is empty: send a package file, or a folder as multipart/form-data.")
        yield path


@asynccontextmanager
async def _form_files(request: Request) -> AsyncIterator[dict[str, Path]]:
    """The files of a multipart body on disk, by their own names; a name that is a path is refused."""
    with tempfile.TemporaryDirectory(prefix="turret-upload-") as folder:
        files: dict[str, Path] = {}
        try:
            form = await request.form(max_files=MAX_FILES, max_fields=8)
        except HTTPException as error:  # what Starlette makes of a MultiPartException
            raise ApiError(400, "invalid_form", f"The multipart body cannot be read: {error.detail}") from error
        async with _closing(form):
            for _, part in form.multi_items():
                if isinstance(part, UploadFile):
                    name = _file_name(part.filename, files)
                    files[name] = Path(folder) / f"{len(files)}-{name.rpartition('/')[2]}"
                    await run_in_threadpool(_copy, part, files[name])
        stray = next((name for name in files if "/" in name), None)
        if stray is not None and SETUP not in files:
            raise _bad_name(stray)
        if not files:
            raise ApiError(400, "empty_form", "The form holds no files: send the files of an adapter's folder under their own names.")
        yield files


@asynccontextmanager
async def _closing(form: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await form.close()


def _file_name(name: str | None, taken: dict[str, Path]) -> str:
    if name is None or not FILE_NAME.fullmatch(name):
        raise _bad_name(name or "")
    if name in taken:
        raise ApiError(422, "duplicate_file", f"The form holds two files called '{name}'.")
    return name


def _copy(part: UploadFile, target: Path) -> None:
    with target.open("wb") as file:
        while chunk := part.file.read(1 << 20):
            file.write(chunk)


def _bad_name(name: str) -> ApiError:
    return ApiError(
        422,
        "invalid_file_name",
        f"{name[:80]!r} is not a plain file name: send each file under its own name, those of a setup's folders as folder/file.",
    )

"""Bodies on disk: a package file, or the files of a multipart form. Streams in pieces, so memory stays flat; leaves nothing behind."""

import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from server.api.wire import services
from server.errors import ApiError

MAX_FILES = 256
PIECE = 1 << 20  # bytes that are written at once
SETUP = "adapter_setup.json"
FILE_NAME = re.compile(r"(?:[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,127}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_form(request: Request) -> bool:
    """Whether the body is a multipart form."""
    return request.headers.get("content-type", "").startswith("multipart/form-data")


@asynccontextmanager
async def body_file(request: Request) -> AsyncIterator[Path]:
    """The body on disk, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="upload-", dir=services(request).scratch) as folder:
        path = Path(folder) / "package.safetensors"
        with path.open("wb") as file:
            gathered = bytearray()
            async for chunk in request.stream():
                gathered += chunk
                if len(gathered) >= PIECE:
                    await run_in_threadpool(file.write, gathered)
                    gathered = bytearray()
            file.write(gathered)
        if path.stat().st_size == 0:
            raise ApiError(400, "empty_body", "The body is empty: send a package file, or a folder as multipart/form-data.")
        yield path


@asynccontextmanager
async def form_files(request: Request) -> AsyncIterator[dict[str, Path]]:
    """The files of a multipart body on disk, by their own names; a name that is a path is refused."""
    with tempfile.TemporaryDirectory(prefix="upload-", dir=services(request).scratch) as folder:
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
        while chunk := part.file.read(PIECE):
            file.write(chunk)


def _bad_name(name: str) -> ApiError:
    return ApiError(
        422,
        "invalid_file_name",
        f"{name[:80]!r} is not a plain file name: send each file under its own name, those of a setup's folders as folder/file.",
    )

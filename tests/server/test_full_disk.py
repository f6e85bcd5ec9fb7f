"""Disks that are full: what is refused says so in one sentence and leaves nothing, and the server goes on."""

import errno
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from harness import error, serving
from starlette.testclient import TestClient

from adapter_store import blobs
from server.api import uploads

PACKAGE = tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b"), 1)


def full(*args: Any, **more: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(io.BytesIO):
    """A file on a full disk."""

    write = full


def body(client: TestClient) -> Any:
    return client.put("/v1/adapters/full", content=PACKAGE)


def form(client: TestClient) -> Any:
    return client.put("/v1/adapters/full", files=[("files", ("a.safetensors", PACKAGE)), ("files", ("b.json", b"{}"))])


def in_uploads(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(Path, "open", lambda *args: Full())


def in_copies(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(uploads, "_copy", full)


def in_blobs(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(shutil, "copyfileobj", full)


def in_commits(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(blobs.Folder, "put_if_absent", lambda self, key, data: _reporting(self, key))


def _reporting(store: blobs.Folder, key: str) -> bool:
    with store._reporting("write", key):
        return bool(full())


def no_folder(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(tempfile, "mkdtemp", full)


@pytest.fixture(scope="module")
def roomy(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(backbone, tmp_path_factory.mktemp("full")) as client:
        yield client


@pytest.mark.parametrize(
    ("disk", "send"),
    [(in_uploads, body), (in_copies, form), (in_blobs, body), (in_commits, body), (no_folder, body), (no_folder, form)],
)
def test_an_upload_to_a_full_disk(
    roomy: TestClient,
    disk: Callable[[pytest.MonkeyPatch], None],
    send: Callable[[TestClient], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = len(list(roomy.app.state.services.scratch.iterdir()))
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        disk(patched)
        fault = error(send(roomy), 507, "disk_full")
    assert "full" in fault["message"]
    assert [record.exc_info for record in caplog.records] == [None], "one line, no traceback"
    assert len(list(roomy.app.state.services.scratch.iterdir())) == before
    store = Path(roomy.app.state.services.settings.store)
    assert list((store / "staged").glob("*")) == []
    error(roomy.get("/v1/adapters/full"), 404, "model_not_found")
    roomy.app.state.services.store.collect(grace=0)
    assert list(store.rglob("*.safetensors")) == [], "what was sent before is collected"

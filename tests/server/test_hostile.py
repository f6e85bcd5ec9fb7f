"""Hostile packages and folders over HTTP: each is refused with one sentence, in bounded memory, and the server is as it was.

No clock is read: what bounds the work is what bounds the memory, as nothing is made of a file before its size is known.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hostile_bytes
import hostile_folders
import hostile_manifests
import hostile_packages
import numpy as np
import pytest
import tiny
from harness import array, predict, put, serving
from hostile_folders import adapterhub, form, peft
from hostile_packages import GOOD
from starlette.testclient import TestClient

from adapter_store.manifest import Manifest
from adapter_store.package import TensorData, write_package

PACKAGES = hostile_bytes.TABLES | hostile_packages.TABLES | hostile_manifests.TABLES
FOLDERS = hostile_folders.TABLES
MANIFEST = Manifest(methods={"bottleneck": tiny.KINDS["pfeiffer"]}, head=tiny.classifier("ham", "spam"), backbone=tiny.SPEC)
MAX_UPLOAD = 64 << 20
MAX_GROWTH = 128 << 20  # bytes: the largest of these uploads is held three times by the client and the form, and parsed once


@pytest.fixture(scope="module")
def served(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """An app with one good adapter."""
    with serving(backbone, tmp_path_factory.mktemp("store") / "store", max_upload_bytes=MAX_UPLOAD) as client:
        put(client, "good", GOOD)
        yield client


def memory(field: str) -> int:
    """A line of this process's memory in bytes: VmRSS is what it holds, VmHWM the most that it held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def unharmed(client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Around hostile uploads: the server answers as before, to the bit, and nothing is left of them: no file, no name, no memory."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    store = Path(client.app.state.services.settings.store)  # type: ignore[attr-defined]

    def state() -> Any:
        answer = predict(client, model="good", inputs="t1 t2 t3", output="logits")[0]
        return answer["digest"], answer["output"], client.get("/v1/adapters").json(), files(store), client.get("/readyz").status_code

    before = state()
    assert before[-1] == 200
    forget_peak()
    held = memory("VmRSS")
    yield
    assert memory("VmHWM") - held < MAX_GROWTH
    assert state() == before
    assert list(folder.iterdir()) == []


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_refusal(answer: Any, what: str) -> None:
    """A status that blames the upload, and one sentence of bounded length."""
    assert 400 <= answer.status_code < 500, (what, answer.status_code, answer.text[:500])
    message = answer.json()["error"]["message"]
    assert message.isprintable(), (what, message)
    assert 10 < len(message) < 1200, (what, message)
    assert message.endswith((".", "?")), (what, message)


@pytest.mark.parametrize("table", PACKAGES)
def test_packages(table: str, served: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = PACKAGES[table]()
    with unharmed(served, tmp_path, monkeypatch):
        for what, data in packages.items():
            check_refusal(served.put("/v1/adapters/hostile", content=data), what)


@pytest.mark.parametrize("table", FOLDERS)
def test_folders(table: str, served: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = FOLDERS[table]()
    with unharmed(served, tmp_path, monkeypatch):
        for what, contents in folders.items():
            check_refusal(served.put("/v1/adapters/hostile", files=[("files", file) for file in contents]), what)


@pytest.mark.parametrize("good", [adapterhub, peft])
def test_the_folders_that_are_broken_here_are_good(good: Any, backbone: Path, tmp_path: Path) -> None:
    with serving(backbone, tmp_path / "store") as client:
        assert client.put("/v1/adapters/good", files=[("files", file) for file in form(good())]).status_code == 201


def test_at_least_300_packages_and_100_folders_are_different() -> None:
    packages = {hashlib.sha256(data).digest() for table in PACKAGES.values() for data in table().values()}
    folders = {repr(contents) for table in FOLDERS.values() for contents in table().values()}
    assert len(packages) >= 300
    assert len(folders) >= 100


def test_numbers_at_the_end_of_their_range_do_not_spoil_their_neighbours(served: TestClient) -> None:
    """Finite weights are taken, however large or small; what overflows is that package's own answer."""
    for name, value in (("huge", np.finfo("<f4").max), ("denormal", np.float32(1e-42))):
        shapes = MANIFEST.tensors()
        contents = {tensor: TensorData("F32", shape, np.full(shape, value, "<f4").tobytes()) for tensor, shape in shapes.items()}
        put(served, name, write_package(MANIFEST, contents))
    alone = predict(served, model="good", inputs="t1 t2 t3", output="logits")[0]["output"]
    rows = [{"model": model, "inputs": "t1 t2 t3", "output": "logits"} for model in ("huge", "good", "denormal", "good", "huge")]
    answers = predict(served, requests=rows)
    assert array(answers[1]["output"]) == pytest.approx(array(alone), abs=1e-5)
    assert answers[1]["output"] == answers[3]["output"]
    assert np.isfinite(array(answers[2]["output"])).all()


def test_published_stacks_of_each_other_do_not_double_without_end(served: TestClient) -> None:
    digest = put(served, "stack0", GOOD)["digest"]
    for number in range(1, 20):
        pin = f"stack{number - 1}@{digest}"
        answer = served.put(
            f"/v1/adapters/stack{number}", content=tiny.package(Manifest(composition=f"stack({pin}, {pin})", backbone=tiny.SPEC), 1)
        )
        if answer.status_code != 201:
            break
        digest = answer.json()["digest"]
    check_refusal(answer, f"stack {number}")
    assert number < 10

"""Settings come from the tests alone; one app on a tiny backbone that most tests of the wire share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from harness import MAX_BODY, MAX_ROWS, MAX_UPLOAD, put, serving
from starlette.testclient import TestClient

from adapter_store.manifest import Head


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> None:
    for name in [name for name in os.environ if name.startswith("TURRET_") and name != "TURRET_SHARED"]:
        del os.environ[name]


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_backbone(tmp_path_factory.mktemp("backbone") / "tiny-bert")


@pytest.fixture(scope="session")
def client(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The app with: spam (two versions, prod -> 1), topic (multi-label), score (regression), ner (tagging), lang (no head),
    acme/mood, vectors (an embedding head alone). Tests that change anything use names of their own."""
    kinds = tiny.KINDS
    limits = {"max_rows": MAX_ROWS, "max_body_bytes": MAX_BODY, "max_upload_bytes": MAX_UPLOAD}
    with serving(backbone, tmp_path_factory.mktemp("store"), **limits) as client:
        put(client, "spam", tiny.adapter(kinds["pfeiffer"], tiny.classifier("ham", "spam", "odd"), 1), alias="prod")
        put(client, "spam", tiny.adapter(kinds["houlsby"], tiny.classifier("ham", "spam", "odd"), 2))
        put(client, "topic", tiny.adapter(kinds["parallel"], Head(type="multilabel_classification", use_pooler=True, labels=("a", "b")), 3))
        put(client, "score", tiny.adapter(kinds["gated"], Head(type="regression", labels=("stars",)), 4))
        put(client, "ner", tiny.adapter(kinds["pfeiffer"], Head(type="tagging", labels=("O", "B-X", "I-X", "B-Y")), 5))
        put(client, "lang", tiny.adapter(kinds["houlsby"], None, 6))
        put(client, "acme/mood", tiny.adapter(kinds["channel"], tiny.classifier("glad", "sad"), 7))
        put(client, "vectors", tiny.adapter(kinds["pfeiffer"], Head(type="embedding", layers=0, pooling="cls", normalize=True), 8))
        yield client


@pytest.fixture(scope="session")
def empty(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(backbone, tmp_path_factory.mktemp("empty"), max_upload_bytes=MAX_UPLOAD) as client:
        yield client


@pytest.fixture
def _nothing_left(empty: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test: no name, no blob, no commit, no temporary file, and the server ready."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    store = Path(empty.app.state.services.settings.store)
    assert [path for path in store.rglob("*") if path.is_file()] == []
    assert list(tmp_path.iterdir()) == []
    assert {path.name for path in empty.app.state.services.scratch.iterdir()} <= {"lock", "cache"}
    assert empty.get("/v1/adapters").json() == {"adapters": [], "next_cursor": None}
    assert empty.get("/readyz").status_code == 200

"""The audit log: one line for each request that changes something, refused ones included, and for each reload of the files."""

import json
import logging
import os
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import tiny
from callers import bearer, entry, write
from harness import serving
from starlette.testclient import TestClient

from adapter_store.errors import BrokenFile
from server.access.audit import Audit
from server.access.control import Control
from server.settings import Settings

PACKAGE = tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("ham", "spam"))


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, each a whole JSON object."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def audited(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("audited")
    keys = write(folder / "keys.toml", entry("ci", "publish", names=("acme/*",)), entry("reader", "predict"))
    with serving(backbone, folder / "store", api_keys=keys, audit_log=folder / "audit.log") as client:
        client.log = folder / "audit.log"
        yield client


def last(client: TestClient) -> dict[str, Any]:
    return lines(client.log)[-1]


def test_what_a_line_says(audited: TestClient) -> None:
    answer = audited.put("/v1/adapters/acme/x", content=PACKAGE, headers=bearer("ci") | {"x-request-id": "r-1"})
    assert answer.status_code == 201
    line = last(audited)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    expected = {
        "event": "request",
        "caller": "ci",
        "client": "testclient",
        "request_id": "r-1",
        "method": "PUT",
        "path": "/v1/adapters/acme/x",
        "status": 201,
        "name": "acme/x",
    }
    assert {key: line[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("method", "path", "key", "status", "said"),
    [
        ("PUT", "/v1/adapters/acme/x", None, 401, {"caller": None, "name": "acme/x"}),
        ("PUT", "/v1/adapters/acme/x", "reader", 403, {"caller": "reader"}),
        ("PUT", "/v1/adapters/other/x", "ci", 403, {"caller": "ci", "name": "other/x"}),
        ("PUT", "/v1/adapters/acme/x", "ci", 422, {"caller": "ci"}),
        ("PUT", "/v1/adapters/acme/x/aliases/prod", "ci", 422, {"name": "acme/x", "alias": "prod"}),
        ("DELETE", "/v1/adapters/acme/none", "ci", 404, {"name": "acme/none"}),
        ("DELETE", "/v1/adapters/acme/none/versions/7", "ci", 404, {"name": "acme/none", "version": "7"}),
        ("DELETE", "/v1/adapters/other/x", "ci", 404, {"name": "other/x"}),
        ("DELETE", "/v1/adapters/" + "x" * 9000, "ci", 414, {"caller": None}),
    ],
)
def test_refused_changes_are_written_too(
    audited: TestClient, method: str, path: str, key: str | None, status: int, said: dict[str, Any]
) -> None:
    before = len(lines(audited.log))
    answer = audited.request(method, path, content=b"not a package", headers={} if key is None else bearer(key))
    assert answer.status_code == status
    (line,) = lines(audited.log)[before:]
    assert (line["method"], line["path"], line["status"]) == (method, path, status)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert {field: line[field] for field in said} == said


def test_what_changes_nothing_is_not_written(audited: TestClient) -> None:
    before = lines(audited.log)
    audited.get("/v1/adapters/acme/x", headers=bearer("reader"))
    audited.get("/v1/adapters/acme/x")
    audited.post("/v1/predict", json={"model": "acme/x", "inputs": "t1"}, headers=bearer("reader"))
    audited.patch("/v1/adapters/acme/x", headers=bearer("ci"))
    assert lines(audited.log) == before


def test_hostile_paths_stay_one_line(audited: TestClient) -> None:
    before = len(lines(audited.log))
    audited.delete("/v1/adapters/a%0A%7B%22event%22%3A%22forged%22%7D%0D%E2%80%A8", headers=bearer("ci"))
    audited.delete("/v1/adapters/%ff%00%1b", headers=bearer("ci"))
    assert len(lines(audited.log)) in (before + 1, before + 2), "a path with a line break may be no route"
    assert all(line["event"] != "forged" for line in lines(audited.log))


def test_notes_cannot_take_the_place_of_facts(audited: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.access.Guard.admit", lambda self, scope, rule, parameters: forged(scope))
    from server.api.access import state_of

    def forged(scope: Any) -> None:
        state_of(scope).notes.update(status=200, caller="root", digest="sha256:1")
        raise PermissionError

    assert audited.delete("/v1/adapters/acme/x").status_code == 500
    assert {key: last(audited)[key] for key in ("status", "caller", "digest")} == {"status": 500, "caller": None, "digest": "sha256:1"}


def test_reloads_are_written(tmp_path: Path) -> None:
    keys, log = write(tmp_path / "keys.toml", entry("a", "predict")), tmp_path / "audit.log"
    control = Control.open(Settings(backbone="none", api_keys=keys, audit_log=log))
    control.reload_if_changed()
    assert lines(log) == []
    for text, fault in (("broken", True), ("broken", True), (entry("b", "predict"), False), (entry("b", "predict"), False)):
        write(keys, text)
        control.reload_if_changed()
        assert (lines(log)[-1]["fault"] is not None) == fault
    control.audit.close()
    assert [(line["event"], line["setting"], line["file"]) for line in lines(log)] == [("reload", "api-keys", str(keys))] * 2


# The file


def test_a_log_that_was_rotated_away_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = Audit(path)
    audit.write("request", {"n": 1})
    path.rename(tmp_path / "audit.log.1")
    audit.write("request", {"n": 2})
    path.unlink()
    audit.write("request", {"n": 3})
    (tmp_path / "new").write_text("")
    (tmp_path / "new").replace(path)
    audit.write("request", {"n": 4})
    audit.close()
    audit.close()
    audit.write("request", {"n": 5})
    audit.close()
    assert [line["n"] for line in lines(tmp_path / "audit.log.1")] == [1]
    assert [line["n"] for line in lines(path)] == [4, 5]


def test_two_writers_and_threads_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audits = [Audit(path), Audit(path)]

    def writing(audit: Audit, start: int) -> None:
        for n in range(start, start + 50):
            audit.write("request", {"n": n, "long": "x" * 2000})

    threads = [threading.Thread(target=writing, args=(audits[i % 2], 50 * i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for audit in audits:
        audit.close()
    assert sorted(line["n"] for line in lines(path)) == list(range(200))
    assert path.stat().st_mode & 0o007 == 0


def test_without_a_file_lines_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "turret.audit"):
        Audit().write("request", {"name": "x"})
    (record,) = caplog.records
    assert (record.name, record.levelname, json.loads(record.message)["name"]) == ("turret.audit", "INFO", "x")


@pytest.mark.parametrize("written", [OSError(28, "No space left on device"), 3])
def test_what_the_file_does_not_take_goes_to_the_logger(
    written: OSError | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(descriptor: int, data: bytes) -> int:
        if isinstance(written, OSError):
            raise written
        return written

    audit = Audit(tmp_path / "audit.log")
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        patched.setattr(os, "write", failing)
        audit.write("request", {"name": "x"})
    assert audit.lost == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert json.loads(caplog.records[1].message)["name"] == "x"
    audit.write("request", {"name": "y"})
    audit.close()
    assert [line["name"] for line in lines(tmp_path / "audit.log")] == ["y"]


def test_a_log_that_cannot_be_opened_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="cannot be written: Is a directory"):
        Audit(tmp_path)

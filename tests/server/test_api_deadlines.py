"""Deadlines over the wire: 504 in every convention, at its time, whatever is waited for; nothing runs, and nothing stays behind."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from callers import bearer, entry, write
from harness import put, serving
from starlette.testclient import TestClient

ROUTES = (
    ("/v1/predict", {"model": "spam", "inputs": "t1 t2"}),
    ("/v1/predict", {"model": ["spam", "ner"], "inputs": ["t1 t2", "t3"]}),
    ("/v1/embeddings", {"model": "base", "input": "t1 t2"}),
    ("/models/spam", {"inputs": "t1 t2"}),
)


@contextmanager
def held(client: TestClient) -> Iterator[None]:
    """While the engine is held up."""
    scheduler = client.app.state.services.scheduler
    gate = client.portal.call(asyncio.Event)
    entered = client.portal.call(asyncio.Event)

    def wait() -> None:
        client.portal.call(entered.set)
        client.portal.call(gate.wait)

    call = client.portal.start_task_soon(scheduler.call, wait)
    client.portal.call(entered.wait)
    try:
        yield
    finally:
        client.portal.call(gate.set)
        call.result(10)


def rows(client: TestClient) -> float:
    """Rows that the engine has run."""
    return client.app.state.services.metrics.registry.get_sample_value("turret_batch_rows_sum") or 0.0


def late(answer: Any, path: str) -> None:
    """Checks the envelope of an answer that came too late."""
    assert answer.status_code == 504, answer.text
    fault = answer.json()
    if path.startswith("/models"):
        assert (set(fault), fault["error_type"]) == ({"error", "error_type"}, "deadline_exceeded")
        sentence = fault["error"]
    else:
        assert (fault["error"]["type"], fault["error"]["code"], fault["error"]["param"]) == ("server_error", "deadline_exceeded", None)
        sentence = fault["error"]["message"]
    assert "deadline" in sentence
    assert "\n" not in sentence
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_request_ends_at_its_deadline_and_does_not_run(client: TestClient, path: str, body: dict[str, Any]) -> None:
    ran = rows(client)
    with held(client):
        began = time.perf_counter()
        late(client.post(path, json=body, headers={"x-turret-timeout-ms": "60"}), path)
        assert 0.06 <= time.perf_counter() - began < 5
        assert client.app.state.services.scheduler.queued_tokens == 0
    assert rows(client) == ran
    assert client.post(path, json=body, headers={"x-turret-timeout-ms": "60000"}).status_code == 200


def test_the_server_s_own_timeout_is_the_most(backbone: Path, tmp_path: Path) -> None:
    with serving(backbone, tmp_path / "store", request_timeout=0.05) as client:
        body = {"model": "base", "inputs": "t1", "output": "hidden"}
        with held(client):
            for headers in ({}, {"x-turret-timeout-ms": "60000"}):
                late(client.post("/v1/predict", json=body, headers=headers), "/v1/predict")
        client.app.state.services.settings.request_timeout = 60
        assert client.post("/v1/predict", json=body).status_code == 200


def test_the_wait_for_cold_packages_counts(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(backbone, tmp_path / "store") as client:
        put(client, "spam", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b")))
        services = client.app.state.services
        client.post("/v1/adapters/spam/unload", json={})
        with held(client):  # packages go to the device on the engine's thread
            late(client.post("/v1/predict", json=ROUTES[0][1], headers={"x-turret-timeout-ms": "60"}), "/v1/predict")
            assert services.scheduler.queued_tokens == 0
        assert client.post("/v1/predict", json=ROUTES[0][1]).status_code == 200
        assert client.delete("/v1/adapters/spam").status_code == 200, "no lease is left"


def test_tokens_that_did_not_run_are_not_charged(backbone: Path, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", entry("one", "predict", tokens_per_minute=60))
    with serving(backbone, tmp_path / "store", api_keys=keys) as client:
        body = {"model": "base", "inputs": "t1 t2 t3", "output": "hidden"}

        def left(**headers: str) -> tuple[int, int]:
            answer = client.post("/v1/predict", json=body, headers=bearer("one") | headers)
            return answer.status_code, int(answer.headers["x-ratelimit-remaining-tokens"])

        status, before = left()
        assert status == 200
        with held(client):
            status, after = left(**{"x-turret-timeout-ms": "50"})
        assert status == 504
        assert after >= before

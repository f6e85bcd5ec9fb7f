"""What surrounds every route: the list of routes, errors nobody handles, request ids, timing, health, metrics, the documents."""

import asyncio
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
from harness import MAX_BODY, error, put, serving
from starlette.testclient import TestClient

from server.api.access import RULES

# Every route that the app answers: it does not start unless each has a rule.
ROUTES = {str(rule) for rule in RULES}

BODY = {"model": "spam", "inputs": "t1 t2"}


def test_the_documents_name_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    documented = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    own = {re.sub(r":path", "", route) for route in ROUTES if not re.search(r"/docs|/openapi", route)}
    assert documented == own
    for methods in document["paths"].values():
        assert all(operation["summary"] and operation["description"] for operation in methods.values())
    page = client.get("/docs")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert client.get("/redoc").status_code == 404


# Faults that no handler sees


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/predict", 404),
        ("GET", "/v1/predict", 405),
        ("DELETE", "/v1/embeddings", 405),
        ("POST", "/healthz", 405),
        ("POST", "/v1/adapters/spam", 405),
        ("PATCH", "/v1/adapters/spam", 405),
    ],
)
def test_no_such_route(client: TestClient, method: str, path: str, status: int) -> None:
    fault = error(client.request(method, path), status, "not_found" if status == 404 else "http_error")
    assert path in fault["message"]


def test_a_fault_of_the_server_gives_nothing_away(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patched:
        for query in ("entries", "refresh"):
            patched.setattr(type(client.app.state.services.store), query, broken)
        fault = error(client.get("/v1/models"), 500, "internal_error")
        assert "secret" not in fault["message"]
        assert fault["type"] == "server_error"
        assert until_ready(client, False).json()["error"]["message"] == "The store cannot be read; the server's log says why."
    assert until_ready(client, True).json()["status"] == "ready"


def until_ready(client: TestClient, ready: bool) -> Any:
    """What /readyz answers once it says so; a server finds out when it next reads the log."""
    for _ in range(100):
        answer = client.get("/readyz")
        if (answer.status_code == 200) == ready:
            break
        threading.Event().wait(0.1)
    assert answer.status_code == (200 if ready else 503)
    return answer


def test_limits_are_the_same_for_every_route(client: TestClient) -> None:
    for path in ("/v1/predict", "/v1/embeddings"):
        error(client.post(path, content=b" " * (MAX_BODY + 1)), 413, "body_too_large")
    assert client.post("/models/spam", content=b" " * (MAX_BODY + 1)).status_code == 413
    error(client.put("/v1/adapters/spam/aliases/prod", content=b" " * (MAX_BODY + 1)), 413, "body_too_large")
    error(client.request("DELETE", "/v1/adapters/spam", content=b" " * (MAX_BODY + 1)), 413, "body_too_large")


def test_the_queue_is_full(backbone: Path, tmp_path: Path) -> None:
    """429 with Retry-After in every convention, while the engine is held up; and service again afterwards."""
    with serving(backbone, tmp_path / "store", max_queue_tokens=4) as client:
        put(client, "spam", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b")))
        assert client.post("/v1/predict", json=BODY).status_code == 200
        held = threading.Event()
        scheduler = client.app.state.services.scheduler
        client.portal.start_task_soon(scheduler.call, held.wait)
        waiting = threading.Thread(target=lambda: answers.append(client.post("/v1/predict", json={**BODY, "inputs": "t1 t2 t3"})))
        answers: list[Any] = []
        try:
            waiting.start()
            while not scheduler.queued_tokens:
                threading.Event().wait(0.01)
            for path, body in (
                ("/v1/predict", BODY),
                ("/v1/embeddings", {"model": "base", "input": "t1 t2"}),
                ("/models/spam", {"inputs": "t1 t2"}),
            ):
                refused = client.post(path, json=body)
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
        finally:
            held.set()
            waiting.join(10)
        assert [answer.status_code for answer in answers] == [200]
        assert client.post("/v1/predict", json=BODY).status_code == 200


def test_the_work_of_a_client_that_hangs_up_is_dropped(client: TestClient) -> None:
    """It hangs up while its rows wait: the answer is 499 to nobody, the rows never run, and its adapter can be deleted."""
    put(client, "left", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b"), 90))
    body = {"model": "left", "inputs": "t1"}
    assert client.post("/v1/predict", json=body).status_code == 200
    services = client.app.state.services
    held, statuses, received = threading.Event(), list[int](), list[str]()

    async def receive() -> dict[str, Any]:
        received.append("")
        if len(received) == 1:
            return {"type": "http.request", "body": json.dumps(body).encode()}
        for _ in range(500):
            if services.scheduler.queued_tokens:
                break
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status", 0))

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "raw_path": b"/v1/predict", "query_string": b"", "headers": headers}
    rows = services.metrics.registry.get_sample_value("turret_batch_rows_sum")
    try:
        client.portal.start_task_soon(services.scheduler.call, held.wait)
        client.portal.call(client.app, {**scope, "app": client.app}, receive, send)
    finally:
        held.set()
    assert statuses[0] == 499
    assert client.delete("/v1/adapters/left").status_code == 200
    assert client.post("/v1/predict", json=BODY).status_code == 200
    assert services.metrics.registry.get_sample_value("turret_batch_rows_sum") == rows + 1


# Headers


def test_a_request_id_is_echoed_or_made(client: TestClient) -> None:
    for path in ("/healthz", "/nowhere", "/v1/adapters/nobody"):
        assert client.get(path, headers={"x-request-id": "abc-123"}).headers.get_list("x-request-id") == ["abc-123"]
    made = {client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    for unfit in ("x" * 129, "with space", ""):
        given = client.get("/healthz", headers={"x-request-id": unfit}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", given)
    refused = client.post("/v1/predict", content=b" " * (MAX_BODY + 1), headers={"x-request-id": "big"})
    assert refused.headers["x-request-id"] == "big"


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/predict", BODY), ("/models/spam", {"inputs": "t1 t2"}), ("/v1/embeddings", {"model": "spam", "input": "t1 t2"})],
)
def test_timing_and_model_headers(client: TestClient, path: str, body: dict[str, Any]) -> None:
    headers = client.post(path, json=body).headers
    assert headers["x-turret-model"] == "spam@2"
    assert headers["x-turret-digest"].startswith("sha256:")
    assert headers["x-compute-tokens"] == "2"
    for name in ("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert 0 <= int(headers[name]) < 60_000


# Health and metrics


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["backbone"]) == ("ready", "tiny-bert")
    assert ready["adapters"] == len(client.get("/v1/adapters").json()["adapters"])


def test_not_ready_without_the_engine(backbone: Path, tmp_path: Path) -> None:
    with serving(backbone, tmp_path / "store") as client:
        client.app.state.services.scheduler.stop()
        error(client.get("/readyz"), 503, "engine_down")
        error(client.post("/v1/embeddings", json={"model": "base", "input": "t1"}), 503, "shutting_down")
        assert client.get("/healthz").status_code == 200


def test_metrics_count_and_name_no_adapter_in_paths(client: TestClient) -> None:
    registry = client.app.state.services.metrics.registry
    labels = {"model": "topic@1", "outcome": "ok"}
    before = registry.get_sample_value("turret_rows_total", labels) or 0
    client.post("/v1/predict", json={"model": "topic", "inputs": ["t1", "t2"]})
    assert registry.get_sample_value("turret_rows_total", labels) == before + 2
    client.get("/v1/adapters/spam")
    client.get("/some/unknown/path")
    text = client.get("/metrics").text
    assert 'turret_requests_total{method="GET",path="/v1/adapters/{name:path}",status="200"}' in text
    assert "/some/unknown/path" not in text
    assert 'path="/v1/adapters/spam' not in text
    for name in (
        "turret_batch_tokens_bucket",
        "turret_queued_tokens",
        "turret_resident_packages",
        "turret_resident_bytes",
        "turret_request_seconds_sum",
    ):
        assert f"\n{name}" in text


def test_other_conventions_count_too(client: TestClient) -> None:
    registry = client.app.state.services.metrics.registry
    labels = {"model": "acme/mood@1", "outcome": "ok"}
    before = registry.get_sample_value("turret_rows_total", labels) or 0
    client.post("/models/acme/mood", json={"inputs": "t1"})
    client.post("/v1/embeddings", json={"model": "acme/mood", "input": "t1"})
    assert registry.get_sample_value("turret_rows_total", labels) == before + 2
    failed = {"model": "acme/mood@1", "outcome": "error"}
    for path, body in (("/v1/predict", {"model": "acme/mood", "inputs": ""}), ("/models/acme/mood", {"inputs": ""})):
        assert client.post(path, json=body).status_code == 422
    assert registry.get_sample_value("turret_rows_total", failed) == 2


def test_two_apps_share_nothing(backbone: Path, tmp_path: Path) -> None:
    with serving(backbone, tmp_path / "one") as one, serving(backbone, tmp_path / "two") as two:
        put(one, "mine", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b")))
        assert one.post("/v1/predict", json={"model": "mine", "inputs": "t1"}).status_code == 200
        error(two.post("/v1/predict", json={"model": "mine", "inputs": "t1"}), 404, "model_not_found")
        assert "mine@1" not in two.get("/metrics").text

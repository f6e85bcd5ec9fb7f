"""Two servers on one store: what one publishes, points and deletes, the other does a moment later."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from harness import predict, put, serving
from starlette.testclient import TestClient

from server.scratch import Scratch

HEAD = tiny.classifier("a", "b")


@pytest.fixture
def pair(backbone: Path, tmp_path: Path) -> Iterator[tuple[TestClient, TestClient]]:
    store = tmp_path / "store"
    with serving(backbone, store, poll=0.05) as one, serving(backbone, store, poll=0.05) as other:
        yield one, other


def until(condition: Callable[[], Any]) -> None:
    for _ in range(400):
        if condition():
            return
        threading.Event().wait(0.025)
    pytest.fail("it did not come about within 10 seconds")


def version(client: TestClient, model: str) -> str | None:
    answer = client.post("/v1/predict", json={"model": model, "inputs": "t1 t2"})
    return answer.json()["results"][0]["model"] if answer.status_code == 200 else None


def test_the_other_server_follows(pair: tuple[TestClient, TestClient]) -> None:
    one, other = pair
    put(one, "spam", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 1), alias="prod")
    until(lambda: version(other, "spam@prod") == "spam@1")
    digest = put(other, "spam", tiny.adapter(tiny.KINDS["houlsby"], HEAD, 2), alias="prod")["digest"]
    until(lambda: version(one, "spam@prod") == "spam@2")
    outputs = [predict(client, model="spam@prod", inputs="t1 t2", output="logits")[0]["output"]["data"] for client in pair]
    np.testing.assert_allclose(*outputs, rtol=0, atol=1e-5)

    assert one.post("/v1/adapters/spam/aliases/prod/rollback").json()["aliases"]["prod"] == 1
    until(lambda: version(other, "spam@prod") == "spam@1")
    residency = other.app.state.services.residency
    assert digest in residency
    assert one.delete("/v1/adapters/spam/versions/2").status_code == 200
    until(lambda: digest not in residency.digests)
    assert version(other, "spam@2") is None
    assert version(other, "spam@prod") == "spam@1"
    assert 'model="spam@2"' not in other.get("/metrics").text, "what is counted goes with the version"


def test_a_new_version_of_what_is_in_use_is_fetched_ahead(pair: tuple[TestClient, TestClient]) -> None:
    one, other = pair
    put(one, "warm", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 3))
    until(lambda: version(other, "warm") == "warm@1")
    digest = put(one, "warm", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 4))["digest"]
    until(lambda: other.app.state.services.residency.resident(digest)["host"])


def test_a_store_that_cannot_be_read_stops_nobody(pair: tuple[TestClient, TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded is served; when the store is back, the server catches up."""
    one, other = pair
    put(one, "spam", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 1))
    until(lambda: version(other, "spam") == "spam@1")
    store = other.app.state.services.store

    def broken() -> bool:
        raise OSError("the network is down")

    with monkeypatch.context() as patched:
        patched.setattr(store, "refresh", broken)
        put(one, "spam", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 2))
        until(lambda: other.get("/readyz").status_code == 503)
        assert version(other, "spam") == "spam@1"
    until(lambda: version(other, "spam") == "spam@2")
    until(lambda: other.get("/readyz").status_code == 200)


def test_scratch_folders_of_the_dead_are_removed(tmp_path: Path) -> None:
    alive = Scratch(tmp_path)
    dead = tmp_path / "turret-scratch-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "upload-1").mkdir()
    fresh = tmp_path / "turret-scratch-fresh"
    fresh.mkdir()
    other = Scratch(tmp_path)
    assert set(tmp_path.iterdir()) == {alive.folder, other.folder, fresh}
    for scratch in (alive, other):
        scratch.close()
    assert list(tmp_path.iterdir()) == [fresh]

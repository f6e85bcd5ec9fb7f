"""Manifests are read from the store on threads of their own: one that cannot be had, or not now, concerns only those who need it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
from harness import predict, put, serving
from starlette.testclient import TestClient

HEAD = tiny.classifier("a", "b")


@pytest.fixture
def late(backbone: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A server that has read no manifest of what is in its store: warm, cold-0, cold-1, cold-2."""
    store = tmp_path / "store"
    with serving(backbone, store) as client:
        for seed, name in enumerate(("warm", "cold-0", "cold-1", "cold-2")):
            put(client, name, tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, seed))
    with serving(backbone, store, poll=60) as client:
        yield client


def test_one_that_is_damaged_fails_its_rows_alone(late: TestClient, tmp_path: Path) -> None:
    digest = late.app.state.services.store.show("cold-1").latest.digest.removeprefix("sha256:")
    (tmp_path / "store" / "blobs" / "sha256" / f"{digest}.safetensors").write_bytes(b"damaged")
    models = ["warm", "cold-1", "stack(cold-0, cold-1)", "cold-0"]
    results = late.post("/v1/predict", json={"model": models, "inputs": "t1 t2"}).json()["results"]
    assert ["error" in result for result in results] == [False, True, True, False]
    assert all("publish the package again" in result["error"]["message"] for result in results[1:3])
    assert late.post("/v1/predict", json={"model": "cold-1", "inputs": "t1"}).status_code == 500


def test_a_store_that_hangs_holds_up_no_one_else(late: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three wait for manifests, more than there are threads that tokenize; who needs none is answered."""
    predict(late, model="warm", inputs="t1")
    waiting, over = threading.Semaphore(0), threading.Event()
    router = late.app.state.services.router
    read = type(router).read

    def hang(self: object, digest: str) -> object:
        waiting.release()
        assert over.wait(20)
        return read(router, digest)

    monkeypatch.setattr(type(router), "read", hang)
    with ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(predict, late, model=f"cold-{number}", inputs="t1") for number in range(3)]
        try:
            for _ in asked:
                assert waiting.acquire(timeout=20)
            warm = clients_answer(late)
        finally:
            over.set()
        assert warm == "warm@1"
        assert [one.result()[0]["model"] for one in asked] == [f"cold-{number}@1" for number in range(3)]


def clients_answer(client: TestClient) -> str:
    """What the warm model answers within the time that a wait for the others would take."""
    with ThreadPoolExecutor(1) as one:
        model: str = one.submit(predict, client, model="warm", inputs="t1 t2").result(timeout=15)[0]["model"]
        return model

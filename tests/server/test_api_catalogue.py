"""The catalogue over HTTP: publish, show, list, download, alias, delete; and uploads that must leave nothing behind."""

import hashlib
import threading
from typing import Any

import numpy as np
import pytest
import tiny
from harness import MAX_UPLOAD, error, put
from safetensors.numpy import load, save
from starlette.testclient import TestClient

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone

PFEIFFER = tiny.KINDS["pfeiffer"]
SOUND = tiny.adapter(PFEIFFER, tiny.classifier("a", "b"), 50)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# Publish


def test_publish_twice_is_the_same_version(client: TestClient) -> None:
    first = client.put("/v1/adapters/twice", content=SOUND)
    assert first.status_code == 201
    assert (
        first.json().items()
        >= {
            "name": "twice",
            "version": 1,
            "digest": digest_of(SOUND),
            "task": "text-classification",
            "head": "classification",
            "methods": ["bottleneck"],
            "size": len(SOUND),
            "aliases": {"latest": 1},
            "warnings": [],
        }.items()
    )
    again = client.put("/v1/adapters/twice", content=SOUND)
    assert again.status_code == 200
    assert again.json()["version"] == 1
    other = client.put("/v1/adapters/twice", content=tiny.adapter(PFEIFFER, tiny.classifier("a", "b"), 51), params={"alias": "prod"})
    assert (other.status_code, other.json()["version"], other.json()["aliases"]) == (201, 2, {"latest": 2, "prod": 2})


def test_only_a_new_name(client: TestClient) -> None:
    headers = {"if-none-match": "*"}
    assert client.put("/v1/adapters/only-new", content=SOUND, headers=headers).status_code == 201
    error(client.put("/v1/adapters/only-new", content=SOUND, headers=headers), 412, "already_exists")


def test_a_name_with_a_slash(client: TestClient) -> None:
    assert client.put("/v1/adapters/team%2Fone", content=SOUND).json()["name"] == "team/one"
    assert client.put("/v1/adapters/team/one", content=SOUND).status_code == 200
    assert client.get("/v1/adapters/team%2Fone").json()["name"] == "team/one"


def test_show_and_counts(client: TestClient) -> None:
    put(client, "counted", SOUND)
    before = client.get("/v1/adapters/counted").json()
    assert (before["resident"], before["counts"]) == ({"device": False, "host": False, "pinned": False}, {"requests": 0})
    assert client.post("/v1/predict", json={"model": "counted", "inputs": ["t1", "t2"]}).status_code == 200
    after = client.get("/v1/adapters/counted").json()
    assert (after["resident"], after["counts"]) == ({"device": True, "host": True, "pinned": False}, {"requests": 2})
    assert after["manifest"]["head"]["labels"] == ["a", "b"]
    assert [version["digest"] for version in after["versions"]] == [digest_of(SOUND)]


def test_list_in_pages_and_by_kind(client: TestClient) -> None:
    whole = [entry["name"] for entry in client.get("/v1/adapters").json()["adapters"]]
    assert whole == sorted(whole)
    pages: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = client.get("/v1/adapters", params={"limit": 3, "cursor": cursor}).json()
        pages += [entry["name"] for entry in page["adapters"]]
        cursor = page["next_cursor"]
    assert pages == whole

    def names(**query: str) -> set[str]:
        return {entry["name"] for entry in client.get("/v1/adapters", params=query).json()["adapters"]}

    assert names(task="token-classification") == {"ner"}
    assert names(task="regression") == {"score"}
    assert "acme/mood" in names(namespace="acme", method="bottleneck")
    assert "spam" not in names(namespace="acme")
    assert names(method="lora") == set()
    error(client.get("/v1/adapters", params={"limit": 0}), 422, "invalid_request")


def test_download_is_what_was_sent(client: TestClient) -> None:
    put(client, "bytes", SOUND, alias="prod")
    etag = f'"{digest_of(SOUND)}"'
    for version in ("1", "prod", "latest"):
        answer = client.get(f"/v1/adapters/bytes/versions/{version}/package")
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (200, SOUND, etag)
        assert "bytes-1.safetensors" in answer.headers["content-disposition"]
    unchanged = client.get("/v1/adapters/bytes/versions/1/package", headers={"if-none-match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert client.get("/v1/adapters/acme/mood/versions/1/package").status_code == 200
    error(client.get("/v1/adapters/bytes/versions/7/package"), 404, "model_not_found")


def test_aliases(client: TestClient) -> None:
    put(client, "aliased", SOUND)
    answer = client.put("/v1/adapters/aliased/aliases/prod", json={"version": 1})
    assert answer.json() == {"name": "aliased", "aliases": {"latest": 1, "prod": 1}}
    error(client.put("/v1/adapters/aliased/aliases/prod", json={"version": 2}), 404, "model_not_found")
    error(client.put("/v1/adapters/aliased/aliases/latest", json={"version": 1}), 400, "invalid_model")
    error(client.put("/v1/adapters/aliased/aliases/prod", json={"version": "x"}), 422, "invalid_request")
    error(client.put("/v1/adapters/nobody/aliases/prod", json={"version": 1}), 404, "model_not_found")


# Delete


def test_delete(client: TestClient) -> None:
    put(client, "doomed", SOUND, alias="prod")
    put(client, "doomed", tiny.adapter(PFEIFFER, tiny.classifier("a", "b"), 52))
    assert client.post("/v1/predict", json={"model": ["doomed@1", "doomed@2"], "inputs": "t1"}).status_code == 200
    error(client.delete("/v1/adapters/doomed/versions/1"), 409, "conflict")
    assert client.delete("/v1/adapters/doomed/versions/2").json() == {"name": "doomed", "deleted": [2]}
    error(client.post("/v1/predict", json={"model": "doomed@2", "inputs": "t1"}), 404, "model_not_found")
    assert client.delete("/v1/adapters/doomed").json() == {"name": "doomed", "deleted": [1]}
    for answer in (
        client.get("/v1/adapters/doomed"),
        client.delete("/v1/adapters/doomed"),
        client.delete("/v1/adapters/doomed/versions/1"),
    ):
        error(answer, 404, "model_not_found")


def test_what_others_refer_to_stays(client: TestClient) -> None:
    digest = put(client, "part", tiny.adapter(PFEIFFER, None, 53))["digest"]
    head = tiny.classifier("a", "b")
    manifest = Manifest(methods={"own": PFEIFFER}, composition=f"stack(part@{digest}, self)", head=head, backbone=tiny.SPEC)
    put(client, "whole", tiny.package(manifest, 54))
    put(client, "own-alone", tiny.adapter(PFEIFFER, None, 55))
    error(client.delete("/v1/adapters/part"), 409, "conflict")
    answer = client.post("/v1/predict", json={"model": ["whole", "base#whole"], "inputs": "t1 t2", "output": "logits"})
    composed, bare = (np.array(result["output"]["data"]) for result in answer.json()["results"])
    assert np.abs(composed - bare).max() > 1e-3
    assert client.delete("/v1/adapters/whole").status_code == 200
    assert client.delete("/v1/adapters/part").status_code == 200


def test_delete_waits_for_those_who_use_it(client: TestClient) -> None:
    """The engine is held up while a prediction waits for it; the delete ends after the prediction has answered."""
    digest = put(client, "drained", tiny.adapter(PFEIFFER, tiny.classifier("a", "b"), 56))["digest"]
    body = {"model": "drained", "inputs": "t1"}
    assert client.post("/v1/predict", json=body).status_code == 200
    path = client.app.state.services.store.path(digest)
    held, answers = threading.Event(), dict[str, Any]()
    client.portal.start_task_soon(client.app.state.services.scheduler.call, held.wait)
    predicting = threading.Thread(target=lambda: answers.update(predict=client.post("/v1/predict", json=body)))
    deleting = threading.Thread(target=lambda: answers.update(delete=client.delete("/v1/adapters/drained")))
    try:
        predicting.start()
        wait_until(lambda: client.app.state.services.scheduler.queued_tokens > 0)
        deleting.start()
        deleting.join(0.2)
        assert deleting.is_alive(), answers
        assert path.exists()
        error(client.post("/v1/predict", json=body), 404, "model_not_found")
    finally:
        held.set()
    predicting.join(10)
    deleting.join(10)
    assert (answers["predict"].status_code, answers["delete"].status_code) == (200, 200)
    assert digest not in client.app.state.services.residency.digests
    assert path.exists(), "other servers on the store may have admitted requests for it"
    client.app.state.services.store.collect(grace=0)
    assert not path.exists()


def wait_until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("nothing happened for 5 seconds")


# Uploads that are refused


def with_value(value: float) -> bytes:
    tensors = {name: array.copy() for name, array in load(SOUND).items()}
    tensors["bottleneck.layers.1.output.down.bias"][0] = value
    length = int.from_bytes(SOUND[:8], "little")
    broken = save(tensors)
    return SOUND[: 8 + length] + broken[8 + int.from_bytes(broken[:8], "little") :]


def made_for(**change: Any) -> bytes:
    backbone = Backbone.model_validate(tiny.SPEC.model_dump() | change)
    return tiny.package(Manifest(methods={"bottleneck": PFEIFFER}, backbone=backbone), 0)


UNSERVED = Manifest(
    methods={"own": PFEIFFER},
    composition="average(self:0.5, average(self:1.0):0.5)",
    head=Head(type="regression", labels=("x",)),
    backbone=tiny.SPEC,
)


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"garbage" * 100, 422, "invalid_package"),
        (b"\xff" * 8 + b"{}", 422, "invalid_package"),
        (SOUND[:7], 422, "invalid_package"),
        (SOUND[:-1], 422, "invalid_package"),
        (SOUND[: len(SOUND) // 2], 422, "invalid_package"),
        (SOUND + b"\0", 422, "invalid_package"),
        (with_value(float("nan")), 422, "invalid_package"),
        (with_value(float("inf")), 422, "invalid_package"),
        (save({"x": np.zeros(3, dtype="<f4")}), 422, "invalid_package"),
        (made_for(hidden_size=16), 422, "wrong_backbone"),
        (made_for(num_layers=2), 422, "wrong_backbone"),
        (made_for(model_type="roberta"), 422, "wrong_backbone"),
        (made_for(fingerprint="sha256:" + "0" * 64), 422, "wrong_backbone"),
        (tiny.package(UNSERVED, 0), 422, "unsupported_method"),
        (SOUND + b"\0" * MAX_UPLOAD, 413, "body_too_large"),
    ],
)
def test_a_package_that_is_refused(empty: TestClient, data: bytes, status: int, code: str) -> None:
    error(empty.put("/v1/adapters/hostile", content=data), status, code)
    error(empty.put("/v1/adapters/hostile", content=iter([data])), status, code)


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("name", ["UPPER", "a/b/c", "base", "self", "-x", "a b", "a@1", "%2e%2e%2fx", "x" * 65])
def test_a_name_that_is_refused(empty: TestClient, name: str) -> None:
    error(empty.put(f"/v1/adapters/{name}", content=SOUND), 400, "invalid_model")


@pytest.mark.usefixtures("_nothing_left")
@pytest.mark.parametrize("alias", ["latest", "1", "A", "../x", ""])
def test_an_alias_that_is_refused(empty: TestClient, alias: str) -> None:
    error(empty.put("/v1/adapters/fine", content=SOUND, params={"alias": alias}), 400, "invalid_model")

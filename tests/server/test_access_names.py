"""Names in bodies, lists and sentences: what a caller may not know of is nowhere, and as good as what does not exist."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from callers import bearer, entry, write
from harness import error, serving
from starlette.testclient import TestClient

from adapter_store.manifest import Manifest

PACKAGE = tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("ham", "spam"))
HIDDEN, NOBODY = "other/secret", "other/nobody"


@pytest.fixture(scope="module")
def shared(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The same package as acme/x and as other/secret, which has three more: two composed of acme/x, and one with a weighted alias."""
    folder = tmp_path_factory.mktemp("shared")
    keys = write(folder / "keys.toml", entry("acme", "predict", "publish", names=("acme/*",)), entry("root", "admin"))
    with serving(backbone, folder / "store", api_keys=keys) as client:
        client.headers |= bearer("root")
        digest = client.put("/v1/adapters/acme/x", content=PACKAGE).json()["digest"]
        client.put(f"/v1/adapters/{HIDDEN}", content=PACKAGE)
        client.put(f"/v1/adapters/{HIDDEN}", content=tiny.adapter(tiny.KINDS["houlsby"], None, 4))
        weights = {"weights": {"1": 1, "2": 1}}
        assert client.put(f"/v1/adapters/{HIDDEN}/aliases/canary", json=weights).status_code == 200
        for seed, name in enumerate(("other/stacked", "acme/stacked", "other/again")):
            manifest = Manifest(
                composition=f"stack(acme/x@{digest}, {HIDDEN}@{digest})", head=tiny.classifier("a", "b"), backbone=tiny.SPEC
            )
            assert client.put(f"/v1/adapters/{name}", content=tiny.package(manifest, seed)).status_code == 201
        yield client


def ask(client: TestClient, method: str, path: str, body: Any, key: str = "acme") -> Any:
    return client.request(method, path, json=body, headers=bearer(key))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/predict", {"model": "{}", "inputs": "t1"}),
        ("POST", "/v1/predict", {"model": "{}@canary", "inputs": "t1"}),
        ("POST", "/v1/predict", {"model": "stack(acme/x@99, {})", "inputs": "t1"}),
        ("POST", "/v1/predict", {"model": "stack(acme/none, {})", "inputs": "t1"}),
        ("POST", "/v1/predict", {"model": "parallel(acme/x, {})", "inputs": "t1"}),
        ("POST", "/v1/predict", {"model": "acme/x#{}", "inputs": "t1"}),
        ("POST", "/v1/predict", {"model": ["acme/none", "{}"], "inputs": "t1"}),
        ("POST", "/v1/predict", {"requests": [{"model": "{}", "inputs": "t1"}, {"model": "acme/none", "inputs": "t1"}]}),
        ("POST", "/v1/embeddings", {"model": "{}", "input": "t1"}),
        ("POST", "/models/acme/x", {"inputs": "t1", "parameters": {"adapter_id": "{}"}}),
        ("POST", "/v1/changes", {"changes": [{"type": "alias", "name": "{}", "alias": "a", "version": 1}]}),
        ("POST", "/v1/changes", {"changes": [{"type": "alias", "name": "{}", "alias": "a", "version": 99}]}),
        ("POST", "/v1/changes", {"changes": [{"type": "unalias", "name": "{}", "alias": "canary"}]}),
        ("POST", "/v1/changes", {"changes": [{"type": "rollback", "name": "{}", "alias": "canary"}]}),
        ("POST", "/v1/changes", {"changes": [{"type": "delete", "name": "{}"}]}),
        ("POST", "/v1/changes", {"changes": [{"type": "publish", "name": "acme/copy", "source": "{}"}]}),
        ("POST", "/v1/changes", {"changes": [{"type": "publish", "name": "acme/copy", "source": "{}@7"}]}),
        ("GET", "/v1/changes?name={}", None),
    ],
)
def test_a_hidden_name_is_as_good_as_unknown(shared: TestClient, method: str, path: str, body: Any) -> None:
    hidden, nobody = (ask(shared, method, path.format(name), named(body, name)) for name in (HIDDEN, NOBODY))
    assert hidden.status_code == nobody.status_code
    if "timing" in hidden.text:
        assert hidden.json()["results"] == [named(one, HIDDEN, NOBODY) for one in nobody.json()["results"]]
    else:
        assert hidden.text.replace(HIDDEN, NOBODY) == nobody.text
    apart = {"x-request-id", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time", "content-length"}
    assert set(hidden.headers) - apart == set(nobody.headers) - apart


def named(value: Any, name: str, place: str = "{}") -> Any:
    """A value with a name in its place."""
    if isinstance(value, dict):
        return {key: named(one, name, place) for key, one in value.items()}
    if isinstance(value, list):
        return [named(one, name, place) for one in value]
    return value.replace(place, name) if isinstance(value, str) else value


def test_a_name_that_cannot_be_published_under_is_not_made_by_a_change(shared: TestClient) -> None:
    body = {"changes": [{"type": "publish", "name": "other/new", "source": "acme/x"}]}
    assert ask(shared, "POST", "/v1/changes", body).status_code in (403, 404)
    assert shared.get("/v1/adapters/other/new").status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/adapters", "/v1/models", "/v1/changes", "/v1/adapters/acme/x", "/models/acme/x", "/v1/models/acme/x"]
)
def test_lists_and_answers_have_no_hidden_name(shared: TestClient, path: str) -> None:
    answer = ask(shared, "GET", path, None)
    assert answer.status_code == 200
    assert "acme/x" in answer.text
    assert "other/" not in answer.text
    assert "other/" in shared.get(path).text or "acme/x" in path


def test_predictions_have_no_hidden_name(shared: TestClient) -> None:
    """A package goes by the name that was asked for, also where another name holds the same bytes."""
    for body in ({"inputs": "t1"}, {"inputs": "t1", "output": "hidden"}, {"inputs": {"question": "t1", "context": "t1"}}, {"inputs": ""}):
        for model in (
            "acme/x",
            "stack(acme/x, acme/x)",
            "average(acme/x, acme/x)",
            "parallel(acme/x, acme/x)",
            "fuse[acme/x](acme/x, acme/x)",
        ):
            answer = ask(shared, "POST", "/v1/predict", {"model": model, **body})
            assert "other/" not in answer.text
            assert "other/" not in str(answer.headers)


def test_a_conflict_names_who_refers_only_as_far_as_the_caller_may_know(shared: TestClient) -> None:
    for method, path, body in (
        ("DELETE", "/v1/adapters/acme/x", None),
        ("DELETE", "/v1/adapters/acme/x/versions/1", None),
        ("POST", "/v1/changes", {"changes": [{"type": "delete", "name": "acme/x"}]}),
    ):
        told = error(ask(shared, method, path, body), 409, "conflict")["message"]
        assert "acme/stacked@1" in told
        assert "other/" not in told
        whole = error(ask(shared, method, path, body, "root"), 409, "conflict")["message"]
        assert "other/stacked@1" in whole
        assert "other/again@1" in whole


def test_a_composition_of_hidden_members_cannot_be_published(shared: TestClient) -> None:
    digest = shared.get(f"/v1/adapters/{HIDDEN}").json()["versions"][0]["digest"]
    told = []
    for name in (HIDDEN, NOBODY):
        manifest = Manifest(composition=f"stack({name}@{digest}, {name}@{digest})", head=tiny.classifier("a", "b"), backbone=tiny.SPEC)
        answer = shared.put("/v1/adapters/acme/y", content=tiny.package(manifest, 3), headers=bearer("acme"))
        assert answer.status_code == 404
        told.append(answer.text.replace(name, "NAME"))
    assert told[0] == told[1]

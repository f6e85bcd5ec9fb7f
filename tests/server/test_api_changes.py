"""Aliases with weights, rollback, several changes at once, history, promotion, loading, over HTTP."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from callers import bearer, entry, write
from harness import error, predict, put, serving
from starlette.testclient import TestClient

PFEIFFER = tiny.KINDS["pfeiffer"]
BODY = {"model": "canary@prod", "inputs": "t1 t2"}


def adapter(seed: int, *labels: str) -> bytes:
    return tiny.adapter(PFEIFFER, tiny.classifier(*(labels or ("a", "b"))), seed)


@pytest.fixture
def canary(client: TestClient) -> Iterator[TestClient]:
    """The name canary with three versions, prod on the first."""
    for seed in (71, 72, 73):
        put(client, "canary", adapter(seed))
    assert aliases(client.put("/v1/adapters/canary/aliases/prod", json={"version": newest(client) - 2}))["prod"] == newest(client) - 2
    yield client
    client.delete("/v1/adapters/canary")


def newest(client: TestClient, name: str = "canary") -> int:
    return int(client.get(f"/v1/adapters/{name}").json()["aliases"]["latest"])


def aliases(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["aliases"]
    return found


def answered_by(client: TestClient, headers: dict[str, str]) -> str:
    answer = client.post("/v1/predict", json=BODY, headers=headers)
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert answer.headers["x-turret-model"] == result["model"]
    assert answer.headers["x-turret-digest"] == result["digest"]
    return str(result["model"])


def test_a_weighted_alias_is_sticky_by_key(canary: TestClient) -> None:
    last = newest(canary)
    moved = canary.put("/v1/adapters/canary/aliases/prod", json={"weights": {str(last): 1, str(last - 1): 3}})
    assert aliases(moved)["prod"] == {str(last - 1): 3, str(last): 1}
    keys = [{"x-turret-key": f"user-{number}"} for number in range(200)]
    drawn = [answered_by(canary, key) for key in keys]
    assert drawn == [answered_by(canary, key) for key in keys]
    counts = Counter(drawn)
    assert counts.keys() == {f"canary@{last - 1}", f"canary@{last}"}
    assert 25 <= counts[f"canary@{last}"] <= 75, "a quarter of 200"
    without = {answered_by(canary, {}) for _ in range(60)}
    assert without == counts.keys(), "without a key every request draws anew"


def test_a_canary_that_grows_takes_nobody_back(canary: TestClient) -> None:
    last = newest(canary)
    keys = [{"x-turret-key": f"user-{number}"} for number in range(100)]
    before: set[str] = set()
    for share in (10, 40, 80):
        canary.put("/v1/adapters/canary/aliases/prod", json={"weights": {str(last - 1): 100 - share, str(last): share}})
        new = {key["x-turret-key"] for key in keys if answered_by(canary, key) == f"canary@{last}"}
        assert before <= new
        assert len(new) > len(before)
        before = new


def test_every_row_of_a_composition_draws_the_same(canary: TestClient) -> None:
    last = newest(canary)
    canary.put("/v1/adapters/canary/aliases/prod", json={"weights": {str(last - 1): 1, str(last): 1}})
    for number in range(20):
        body = {"model": ["stack(lang, canary@prod)", "canary@prod", "parallel(canary@prod, spam)"], "inputs": "t1"}
        results = canary.post("/v1/predict", json=body, headers={"x-turret-key": f"k{number}"}).json()["results"]
        versions = {result["model"].rpartition("canary@")[2].rstrip(")") for result in results if "canary" in result["model"]}
        assert len(versions) == 1
        stacked = results[0]
        assert stacked["digest"] is None
        assert len(stacked["digests"]) == 2


def test_rollback_and_back(canary: TestClient) -> None:
    first = newest(canary) - 2
    path = "/v1/adapters/canary/aliases/prod"
    assert canary.post(f"{path}/rollback").status_code in (200, 409), "the first alias of a name has nowhere to go"
    canary.put(path, json={"version": first})
    canary.put(path, json={"weights": {str(first): 9, str(first + 1): 1}})
    assert aliases(canary.post(f"{path}/rollback"))["prod"] == first
    assert aliases(canary.post(f"{path}/rollback"))["prod"] == {str(first): 9, str(first + 1): 1}
    error(canary.post("/v1/adapters/canary/aliases/nothing/rollback"), 404, "model_not_found")
    canary.put(path, json={"version": first + 2})
    canary.put(path, json={"version": first})
    assert canary.delete(f"/v1/adapters/canary/versions/{first + 2}").status_code == 200
    fault = error(canary.post(f"{path}/rollback"), 409, "conflict")
    assert f"version {first + 2}" in fault["message"]
    assert aliases(canary.delete(path)) == {"latest": first + 1}
    error(canary.delete(path), 404, "model_not_found")
    error(canary.post("/v1/predict", json=BODY), 404, "model_not_found")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"version": 1, "weights": {"1": 1}}, 422),
        ({"weights": {}}, 422),
        ({"weights": {"1": 0}}, 422),
        ({"weights": {"0": 1}}, 422),
        ({"weights": {"x": 1}}, 422),
        ({"weights": {"1": 0.5}}, 422),
        ({"weights": {str(version): 1 for version in range(1, 18)}}, 422),
        ({"version": 10**30}, 404),
        ({"weights": {"999": 1, "1": 1}}, 404),
    ],
)
def test_targets_that_are_none(canary: TestClient, body: dict[str, Any], status: int) -> None:
    answer = canary.put("/v1/adapters/canary/aliases/prod", json=body)
    error(answer, status, {422: "invalid_request", 404: "model_not_found"}[status])


def test_several_changes_are_one_commit(client: TestClient) -> None:
    old, new = (put(client, "pair-a", adapter(seed))["version"] for seed in (81, 82))
    put(client, "pair-b", adapter(83))
    changes = [
        {"type": "alias", "name": "pair-a", "alias": "prod", "version": new},
        {"type": "alias", "name": "pair-b", "alias": "prod", "version": 1},
        {"type": "publish", "name": "pair-c", "source": f"pair-a@{old}", "alias": "prod"},
        {"type": "delete", "name": "pair-a", "version": old},
    ]
    made = client.post("/v1/changes", json={"changes": changes})
    assert made.status_code == 200, made.text
    assert [change["type"] for change in made.json()["changes"]] == ["alias", "alias", "publish", "alias", "delete"]
    assert made.json()["by"] == "local"
    assert client.get("/v1/adapters/pair-c").json()["aliases"] == {"latest": 1, "prod": 1}
    (result,) = predict(client, model="pair-c@prod", inputs="t1")
    assert result["digest"] == client.get("/v1/adapters/pair-c").json()["versions"][0]["digest"]
    again = client.post("/v1/changes", json={"changes": changes[:2]}).json()
    assert again == {"commit": made.json()["commit"], "time": None, "by": None, "changes": []}

    page = client.get("/v1/changes", params={"limit": 1}).json()
    assert page["commits"] == [made.json()]
    older = client.get("/v1/changes", params={"before": page["next_before"], "name": "pair-a"}).json()
    assert [[change["type"] for change in commit["changes"]] for commit in older["commits"]] == [["publish"], ["publish"]]
    assert {commit["by"] for commit in older["commits"]} == {"local"}

    for number in (0, 1):  # the second one is refused, so the first does not happen either
        refused = [{"type": "delete", "name": "pair-b", "version": 7}]
        refused.insert(number, {"type": "unalias", "name": "pair-a", "alias": "prod"})
        error(client.post("/v1/changes", json={"changes": refused}), 404, "model_not_found")
        assert client.get("/v1/adapters/pair-a").json()["aliases"]["prod"] == new
    names = ("pair-a", "pair-b", "pair-c")
    gone = client.post("/v1/changes", json={"changes": [{"type": "delete", "name": name} for name in names]})
    assert gone.status_code == 200, gone.text
    assert not {entry["name"] for entry in client.get("/v1/adapters").json()["adapters"]} & set(names)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"changes": []},
        {"changes": [{"type": "nothing"}]},
        {"changes": [{"type": "collect", "digests": []}]},
        {"changes": [{"type": "alias", "name": "spam", "alias": "x"}]},
        {"changes": [{"type": "delete", "name": "spam", "more": 1}]},
        {"changes": [{"type": "unalias", "name": "spam", "alias": "prod"}] * 257},
    ],
)
def test_changes_that_are_none(client: TestClient, body: dict[str, Any]) -> None:
    error(client.post("/v1/changes", json=body), 422, "invalid_request")
    assert client.get("/v1/adapters/spam").json()["aliases"]["prod"] == 1


def test_load_pin_and_unload(client: TestClient) -> None:
    digest = put(client, "pinned", adapter(91))["digest"]
    place = {"name": "pinned", "version": 1, "digest": digest}
    loaded = client.post("/v1/adapters/pinned/load", json={"pin": True})
    assert loaded.json() == place | {"resident": {"device": True, "host": True, "pinned": True}}
    assert client.post("/v1/adapters/pinned/unload").json()["resident"] | {"host": False} == {
        "device": False,
        "host": False,
        "pinned": False,
    }
    assert client.post("/v1/adapters/pinned/load", json={"version": "1"}).json()["resident"]["device"]
    error(client.post("/v1/adapters/pinned/load", json={"version": "7"}), 404, "model_not_found")
    error(client.post("/v1/adapters/pinned/load", json={"version": "?"}), 400, "invalid_model")
    error(client.post("/v1/adapters/nobody/unload"), 404, "model_not_found")
    client.delete("/v1/adapters/pinned")
    assert digest not in client.app.state.services.residency.digests


def test_history_and_changes_by_key(backbone: Path, tmp_path: Path) -> None:
    """Who made a change is its key; what a key may not know of is neither shown nor changed by it."""
    held = (entry("acme", "publish", names=("acme/*",)), entry("other", "publish", names=("other/*",)), entry("root", "admin"))
    keys = write(tmp_path / "keys.toml", *held)
    with serving(backbone, tmp_path / "store", api_keys=keys) as client:
        for name in ("acme", "other"):
            assert client.put(f"/v1/adapters/{name}/x", content=adapter(1), headers=bearer(name)).status_code == 201
        both = [{"type": "alias", "name": f"{name}/x", "alias": "prod", "version": 1} for name in ("acme", "other")]
        hidden = error(client.post("/v1/changes", json={"changes": both}, headers=bearer("acme")), 404, "model_not_found")
        unknown = error(
            client.post("/v1/changes", json={"changes": [both[0] | {"name": "acme/y"}]}, headers=bearer("acme")), 404, "model_not_found"
        )
        assert hidden["message"].replace("other/x", "acme/y") == unknown["message"]
        copied = {"changes": [{"type": "publish", "name": "acme/stolen", "source": "other/x"}]}
        error(client.post("/v1/changes", json=copied, headers=bearer("acme")), 404, "model_not_found")
        assert client.post("/v1/changes", json={"changes": both}, headers=bearer("root")).status_code == 200
        shown = client.get("/v1/changes", headers=bearer("acme")).json()["commits"]
        assert [(commit["by"], [change["name"] for change in commit["changes"]]) for commit in shown] == [
            ("root", ["acme/x"]),
            ("acme", ["acme/x"]),
        ]
        assert client.get("/v1/changes", params={"name": "other/x"}, headers=bearer("acme")).json()["commits"] == []
        everything = client.get("/v1/changes", headers=bearer("root")).json()["commits"]
        assert [commit["by"] for commit in everything] == ["root", "other", "acme"]

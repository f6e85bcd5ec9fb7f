"""Aliases, several changes in one commit, history, residency, terms and signatures of both clients, and their errors."""

from pathlib import Path
from typing import Any

import pytest
from client_driver import Waited
from client_stub import DIGEST, Stub
from turret_client import (
    BadSignature,
    Delete,
    DropAlias,
    Forbidden,
    InvalidArgument,
    ModelCold,
    Publish,
    QuotaExceeded,
    Rollback,
    SetAlias,
    TooManyUploads,
    TurretError,
    UnexpectedResponse,
    Unprocessable,
    UnsignedPackage,
)
from turret_client.errors import Overloaded, Unavailable, error_class


def asked(stub: Stub) -> list[tuple[str, str]]:
    return [(each.method, each.path) for each in stub.asked]


def test_aliases(client: Any, stub: Stub) -> None:
    assert client.set_alias("acme/spam", "prod", {4: 10, 3: 90}).aliases == {"latest": 3, "prod": {3: 90, 4: 10}}
    assert stub.asked[0].json == {"weights": {"4": 10, "3": 90}}
    assert client.drop_alias("acme/spam", "prod").aliases == {"latest": 3}
    assert client.rollback("acme/spam", "prod").aliases == {"latest": 3, "prod": 1}
    path = "/v1/adapters/acme/spam/aliases/prod"
    assert asked(stub) == [("PUT", path), ("DELETE", path), ("POST", path + "/rollback")]


def test_weights_come_as_numbers(client: Any) -> None:
    assert next(iter(client.list())).aliases == {"latest": 3, "prod": {3: 90, 4: 10}}
    version = client.show("spam").versions[0]
    assert (version.by, version.signature) == ("acme-ci", "acme-release")
    assert client.show("spam").versions[1].signature is None


@pytest.mark.parametrize("target", [0, -1, True, {}, {3: 0}, {0: 1}, {3: 0.5}, dict.fromkeys(range(1, 18), 1)])
def test_targets_that_no_alias_can_have(client: Any, stub: Stub, target: Any) -> None:
    with pytest.raises(InvalidArgument):
        client.set_alias("spam", "prod", target)
    assert stub.asked == []


def test_several_changes_are_one_request(client: Any, stub: Stub) -> None:
    changes = [
        Publish("spam", "staging/spam@4", alias="prod"),
        Publish("ham", "staging/ham"),
        SetAlias("spam", "canary", {3: 90, 4: 10}),
        SetAlias("spam", "old", 2),
        DropAlias("spam", "older"),
        Rollback("topic", "prod"),
        Delete("topic", 1),
        Delete("gone"),
        {"type": "freeze", "name": "spam"},
    ]
    commit = client.change(changes)
    assert asked(stub) == [("POST", "/v1/changes")]
    assert stub.asked[0].json["changes"] == [
        {"type": "publish", "name": "spam", "source": "staging/spam@4", "alias": "prod"},
        {"type": "publish", "name": "ham", "source": "staging/ham"},
        {"type": "alias", "name": "spam", "alias": "canary", "weights": {"3": 90, "4": 10}},
        {"type": "alias", "name": "spam", "alias": "old", "version": 2},
        {"type": "unalias", "name": "spam", "alias": "older"},
        {"type": "rollback", "name": "topic", "alias": "prod"},
        {"type": "delete", "name": "topic", "version": 1},
        {"type": "delete", "name": "gone"},
        {"type": "freeze", "name": "spam"},
    ]
    assert (commit.commit, commit.by, commit.time.year) == (12, "acme-ci", 2026)
    assert (commit.changes[0].version, commit.changes[0].digest, commit.changes[2].weights) == (5, DIGEST, {3: 90, 4: 10})


@pytest.mark.parametrize(
    "change",
    [SetAlias("No Name", "prod", 1), SetAlias("spam", "../x", 1), Publish("spam", "a@"), Publish("spam", "a", "b/c"), Delete("..")],
)
def test_changes_that_are_none_are_never_sent(client: Any, stub: Stub, change: Any) -> None:
    with pytest.raises(InvalidArgument):
        client.change([Delete("spam"), change])
    assert stub.asked == []


def test_what_must_not_be_done_twice(client: Any, stub: Stub, waited: Waited) -> None:
    for call in (
        lambda: client.rollback("spam", "prod"),
        lambda: client.drop_alias("spam", "prod"),
        lambda: client.change([Delete("spam")]),
    ):
        stub.drop()
        with pytest.raises(TurretError, match="broke before the answer"):
            call()
    assert (len(stub.asked), waited) == (3, [])
    stub.drop()
    client.set_alias("spam", "prod", 3)
    assert len(stub.asked) == 5


def test_history_turns_the_pages(client: Any, stub: Stub) -> None:
    assert [commit.commit for commit in client.history()] == list(range(12, 0, -1))
    assert [each.query for each in stub.asked] == ["", "before=10", "before=7", "before=4"]
    stub.asked.clear()
    assert [commit.commit for commit in client.history("acme/spam", limit=4)] == [12, 11, 10, 9]
    assert [each.query for each in stub.asked] == ["name=acme%2Fspam&limit=4"]
    stub.asked.clear()
    assert len(list(client.history(limit=1000))) == 12
    assert stub.asked[0].query == "limit=100"


def test_history_ends_where_it_is_told_to(client: Any, stub: Stub) -> None:
    page = b'{"commits": [{"commit": 9, "changes": []}, {"commit": 8}], "next_before": 8}'
    stub.answer(200, page)
    assert [commit.commit for commit in client.history(limit=1)] == [9]
    stub.answer(200, b'{"commits": [], "next_before": 8}')  # nothing that this key may know of
    assert [commit.commit for commit in client.history(limit=2)] == [7, 6]
    for _ in range(2):
        stub.answer(200, page)
    with pytest.raises(UnexpectedResponse, match="repeats itself"):
        list(client.history())
    stub.asked.clear()
    for limit, name in ((0, None), (-1, None), (None, "No Name")):
        with pytest.raises(InvalidArgument):
            list(client.history(name, limit))
    assert stub.asked == []


def test_history_has_each_kind_of_change(client: Any) -> None:
    changes = {change.type: change for commit in reversed(list(client.history(limit=4))) for change in commit.changes}
    assert (changes["publish"].version, changes["publish"].signature) == (4, "acme-release")
    assert changes["alias"].weights == {3: 90, 4: 10}
    assert len(changes["collect"].digests) == 2
    assert changes["freeze"].model_extra == {"until": "June"}


def test_load_and_unload(client: Any, stub: Stub) -> None:
    loaded = client.load("acme/spam@prod", pin=True)
    assert (loaded.version, loaded.digest, loaded.resident) == (3, DIGEST, {"device": True, "host": True, "pinned": True})
    client.load("spam")
    assert client.unload("spam").resident["device"] is False
    assert asked(stub) == [
        ("POST", "/v1/adapters/acme/spam/load"),
        ("POST", "/v1/adapters/spam/load"),
        ("POST", "/v1/adapters/spam/unload"),
    ]
    assert [each.json for each in stub.asked] == [{"pin": True, "version": "prod"}, {"pin": False}, {}]


def test_terms_are_headers(client: Any, stub: Stub) -> None:
    client.predict("spam", "a", sticky_key="user 7", cold="refuse")
    client.predict_many([{"model": "spam", "inputs": "a"}], sticky_key="k", cold="wait")
    client.embed("a", "base", sticky_key="e", cold="refuse")
    client.predict("spam", "a")
    sent = [(each.headers.get("x-turret-key"), each.headers.get("x-turret-cold")) for each in stub.asked]
    assert sent == [("user 7", "refuse"), ("k", "wait"), ("e", "refuse"), (None, None)]
    assert all("sticky" not in each.body.decode() for each in stub.asked)
    for key in ("", " a", "ü", "a\r\nb", "\x00"):
        with pytest.raises(InvalidArgument, match="x-turret-key"):
            client.predict("spam", "a", sticky_key=key)
    assert len(stub.asked) == 4


def test_a_deadline_is_a_header_in_milliseconds(client: Any, stub: Stub) -> None:
    client.predict("spam", "a", deadline=0.25)
    client.predict_many([{"model": "spam", "inputs": "a"}], deadline=2)
    client.embed("a", "base", deadline=0.0011)
    client.predict("spam", "a")
    assert [each.headers.get("x-turret-timeout-ms") for each in stub.asked] == ["250", "2000", "1", None]
    for deadline in (0, -1.0, 0.0001, 1e6, float("nan")):
        with pytest.raises(InvalidArgument, match="deadline"):
            client.predict("spam", "a", deadline=deadline)
    assert len(stub.asked) == 4


def test_a_composition_tells_all_digests(client: Any) -> None:
    row = client.predict("stack(a, b)", "text")[0]
    assert (row.digest, row.digests) == (None, (DIGEST, "sha256:" + "2" * 64))
    assert client.predict("spam", "text")[0].digests == ()


def test_a_signature_is_a_header(client: Any, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(b"x")
    client.push("spam", tmp_path / "p.safetensors", signature="acme-release:AAAA")
    client.push("spam", tmp_path / "p.safetensors")
    assert [each.headers.get("x-turret-signature") for each in stub.asked] == ["acme-release:AAAA", None]
    with pytest.raises(InvalidArgument, match="x-turret-signature"):
        client.push("spam", tmp_path / "p.safetensors", signature="a\nb")


# Errors.


@pytest.mark.parametrize(
    ("status", "code", "kind", "general"),
    [
        (429, "quota_exceeded", QuotaExceeded, Overloaded),
        (429, "too_many_uploads", TooManyUploads, Overloaded),
        (429, "queue_full", Overloaded, Overloaded),
        (503, "model_cold", ModelCold, Unavailable),
        (503, "not_ready", Unavailable, Unavailable),
        (422, "unsigned_package", UnsignedPackage, Unprocessable),
        (422, "bad_signature", BadSignature, Unprocessable),
        (422, "golden_example_failed", Unprocessable, Unprocessable),
        (403, "quota_exceeded", Forbidden, Forbidden),  # a code does not overrule the status
    ],
)
def test_codes_refine_statuses(status: int, code: str, kind: type[TurretError], general: type[TurretError]) -> None:
    assert error_class(status, code) is kind
    assert issubclass(kind, general)


@pytest.mark.parametrize(("status", "code", "kind"), [(429, "quota_exceeded", QuotaExceeded), (503, "model_cold", ModelCold)])
def test_what_passes_is_waited_for(client: Any, stub: Stub, waited: Waited, status: int, code: str, kind: type[TurretError]) -> None:
    body = b'{"error": {"message": "Not yet.", "code": "%s"}}' % code.encode()
    stub.answer(status, body, retry_after="5")
    assert len(client.predict("spam", "a", cold="refuse")) == 1
    assert 5 <= waited[0] <= 5.25
    for _ in range(4):
        stub.answer(status, body, retry_after="0")
    with pytest.raises(kind, match=r"Not yet\.") as caught:
        client.predict("spam", "a", cold="refuse")
    assert (caught.value.code, caught.value.retry_after) == (code, 0.0)

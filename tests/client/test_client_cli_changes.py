"""The commands of aliases, changes, history and residency: what is sent, and what is printed where."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from client_driver import Terminal
from client_stub import DIGEST, Stub
from turret_client.catalogue import Commit
from turret_client.render import pointers

MOVED = {"name": "acme/spam", "aliases": {"latest": 3, "prod": {"3": 90, "4": 10}}}


def test_alias_with_weights(turret: Any, stub: Stub) -> None:
    assert turret("alias", "acme/spam", "prod", "3=90", "4=10").stdout == "acme/spam\tlatest=3 prod=3:90,4:10\n"
    assert json.loads(turret("alias", "acme/spam", "prod", "4=10", "3=90", "--json").stdout) == MOVED
    assert [asked.json for asked in stub.asked] == [{"weights": {"3": 90, "4": 10}}, {"weights": {"4": 10, "3": 90}}]
    assert turret("alias", "spam", "prod", "3=1").exit_code == 0
    assert stub.asked[2].json == {"weights": {"3": 1}}


def test_alias_is_removed_and_rolled_back(turret: Any, stub: Stub) -> None:
    assert turret("alias", "spam", "prod", "--remove").stdout == "spam\tlatest=3\n"
    assert turret("rollback", "spam", "prod").stdout == "spam\tlatest=3 prod=1\n"
    assert json.loads(turret("rollback", "spam", "prod", "--json").stdout)["aliases"] == {"latest": 3, "prod": 1}
    assert [(asked.method, asked.path) for asked in stub.asked[:2]] == [
        ("DELETE", "/v1/adapters/spam/aliases/prod"),
        ("POST", "/v1/adapters/spam/aliases/prod/rollback"),
    ]


@pytest.mark.parametrize(
    "versions", [(), ("3", "--remove"), ("3", "4"), ("3", "4=10"), ("3=90", "3=10"), ("3=",), ("=3",), ("3=0.5",), ("-1",), ("prod",)]
)
def test_alias_usage(turret: Any, stub: Stub, versions: tuple[str, ...]) -> None:
    result = turret("alias", "spam", "prod", *versions)
    assert (result.exit_code, result.stdout, stub.asked) == (2, "", [])


@pytest.mark.parametrize("versions", [("0",), ("3=0",), ("0=3", "4=1")])
def test_alias_refuses_what_no_server_takes(turret: Any, stub: Stub, versions: tuple[str, ...]) -> None:
    result = turret("alias", "spam", "prod", *versions)
    assert (result.exit_code, result.stdout, result.stderr.count("\n"), stub.asked) == (1, "", 1, [])


def test_weights_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert pointers({"prod": {4: 10, 3: 90}, "latest": 4}) == "latest -> 4; prod -> 3 (90%), 4 (10%)"
    assert pointers({"a": {1: 1, 2: 2}, "b": {7: 5}, "c": {1: 999, 2: 1}}) == "a -> 1 (33.3%), 2 (66.7%); b -> 7; c -> 1 (99.9%), 2 (0.1%)"


def test_promote(turret: Any, stub: Stub) -> None:
    result = turret("promote", "staging/spam@4", "spam", "--alias", "prod")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"12\tpublish spam@5 {DIGEST}\n", "")
    assert stub.asked[0].json == {"changes": [{"type": "publish", "name": "spam", "source": "staging/spam@4", "alias": "prod"}]}
    assert json.loads(turret("promote", "staging/spam", "spam", "--json").stdout)["commit"] == 12
    assert turret("promote", "staging/Spam", "spam").exit_code == 1
    assert len(stub.asked) == 2


def test_what_changes_nothing_says_so(turret: Any, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    from turret_client.client import Turret

    monkeypatch.setattr(Turret, "change", lambda self, changes: Commit(commit=12, changes=[]))
    assert turret("promote", "spam", "spam").stdout == "12\tnothing to change\n"


def test_apply(turret: Any, stub: Stub, tmp_path: Path) -> None:
    changes = [
        {"type": "alias", "name": "spam", "alias": "prod", "weights": {"3": 90, "4": 10}},
        {"type": "delete", "name": "spam", "version": 2},
        {"type": "freeze", "name": "spam", "until": "June"},
    ]
    document = json.dumps({"changes": changes})
    (tmp_path / "release.json").write_text(document)
    expected = '12\talias spam prod=3:90,4:10\n12\tdelete spam@2\n12\tfreeze spam until="June"\n'
    assert turret("apply", tmp_path / "release.json").stdout == expected
    assert turret("apply", "-", stdin=document).stdout == expected
    assert json.loads(turret("apply", "-", "--json", stdin=document).stdout)["changes"] == changes
    assert [asked.json["changes"] for asked in stub.asked] == [changes] * 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"changes": {}}', '{"changes": []}', '{"changes": ["alias"]}', '"\ud800"', "[" * 100_000]
)
def test_apply_refuses_files_without_changes(turret: Any, stub: Stub, tmp_path: Path, text: str) -> None:
    file = tmp_path / "release.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    result = turret("apply", file)
    assert (result.exit_code, result.stdout, result.stderr.count("\n"), stub.asked) == (1, "", 1, [])
    assert "No such file" in turret("apply", tmp_path / "gone").stderr


def test_history(turret: Any, stub: Stub) -> None:
    when = "2026-11-24 10:00:00+00:00"
    lines = turret("history", "spam", "--limit", 4).stdout.splitlines()
    assert lines == [
        f"12\t{when}\tacme-ci\talias spam prod=3:90,4:10",
        f"11\t{when}\tacme-ci\tcollect 2 packages",
        f'11\t{when}\tacme-ci\tfreeze spam until="June"',
        f"10\t{when}\tacme-ci\tunalias spam old",
        f"10\t{when}\tacme-ci\tdelete spam@2",
        f"10\t{when}\tacme-ci\tdelete spam",
        f"9\t{when}\tacme-ci\tpublish spam@4 {DIGEST} signed by acme-release",
        f"9\t{when}\tacme-ci\talias spam prod=4",
    ]
    assert stub.asked[0].query == "name=spam&limit=4"
    document = json.loads(turret("history", "--json").stdout)
    assert [commit["commit"] for commit in document["commits"]] == list(range(12, 0, -1))
    assert document["commits"][0]["changes"][0]["weights"] == {"3": 90, "4": 10}
    assert turret("history", "--limit", 0).exit_code == 2


def test_load_and_unload(turret: Any, stub: Stub) -> None:
    assert turret("load", "acme/spam@prod", "--pin").stdout == f"acme/spam@3\t{DIGEST}\tdevice=true host=true pinned=true\n"
    assert turret("unload", "acme/spam").stdout == f"acme/spam@3\t{DIGEST}\tdevice=false host=true pinned=false\n"
    assert json.loads(turret("load", "spam", "--json").stdout)["resident"]["pinned"] is False
    assert stub.asked[0].json == {"pin": True, "version": "prod"}


def test_predict_on_terms(turret: Any, stub: Stub) -> None:
    assert turret("predict", "spam@prod", "a", "--sticky-key", "user-7", "--cold", "refuse").exit_code == 0
    assert (stub.asked[0].headers["x-turret-key"], stub.asked[0].headers["x-turret-cold"]) == ("user-7", "refuse")
    assert turret("predict", "spam@prod", "a", "--deadline", "1.5").exit_code == 0
    assert stub.asked[1].headers["x-turret-timeout-ms"] == "1500"
    assert turret("predict", "spam", "a", "--cold", "lukewarm").exit_code == 2
    assert turret("predict", "spam", "a", "--sticky-key", "ü").exit_code == 1
    document = json.loads(turret("predict", "stack(a, b)", "a", "--json").stdout)
    assert document["results"][0]["digests"] == [DIGEST, "sha256:" + "2" * 64]

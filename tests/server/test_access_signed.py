"""Signatures and token quotas in a running server: where they are asked for, and what is said."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from callers import bearer, entry, write
from harness import error, serving
from starlette.testclient import TestClient

from adapter_store.signatures import public_key_of, sign

PACKAGE, OTHER = (tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("ham", "spam"), seed) for seed in (1, 2))
RELEASE, EVE = b"\1" * 32, b"\2" * 32
RULE = '[[required]]\nnames = "acme/*"\nsigners = ["release"]\n'


def signer(name: str, key: bytes) -> str:
    return f'[signers.{name}]\npublic_key = "{public_key_of(key)}"\n'


@pytest.fixture
def signed(backbone: Path, tmp_path: Path) -> Iterator[TestClient]:
    """acme/* must be signed by release."""
    file = write(tmp_path / "signers.toml", signer("release", RELEASE), RULE)
    with serving(backbone, tmp_path / "store", signers=file) as client:
        client.signers = file
        yield client


def push(client: TestClient, name: str, data: bytes, signature: str | None = None) -> Any:
    return client.put(f"/v1/adapters/{name}", content=data, headers={} if signature is None else {"x-turret-signature": signature})


def digest_of(client: TestClient, data: bytes) -> str:
    return str(push(client, "open", data).json()["digest"])


def test_publishing_what_must_be_signed(signed: TestClient) -> None:
    digest, other = digest_of(signed, PACKAGE), digest_of(signed, OTHER)
    unsigned = error(push(signed, "acme/x", PACKAGE), 422, "unsigned_package")
    assert unsigned["message"] == f"Packages under 'acme/*' must be signed by 'release', and {digest} is not signed."
    for signature in (
        f"release:{sign(RELEASE, other)}",
        f"release:{sign(EVE, digest)}",
        f"eve:{sign(EVE, digest)}",
        "release",
        "release:AAAA",
    ):
        error(push(signed, "acme/x", PACKAGE, signature), 422, "bad_signature")
    assert signed.get("/v1/adapters/acme/x").status_code == 404
    answer = push(signed, "acme/x", PACKAGE, f"release:{sign(RELEASE, digest)}")
    assert answer.status_code == 201
    assert signed.get("/v1/adapters/acme/x").json()["versions"][0]["signature"] == "release"
    assert signed.post("/v1/predict", json={"model": "acme/x", "inputs": "t1"}).status_code == 200
    error(push(signed, "open2", PACKAGE, f"eve:{sign(EVE, digest)}"), 422, "bad_signature")


def test_copying_to_where_it_must_be_signed(signed: TestClient) -> None:
    digest_of(signed, PACKAGE)
    change = {"changes": [{"type": "publish", "name": "acme/x", "source": "open"}]}
    error(signed.post("/v1/changes", json=change), 422, "unsigned_package")
    assert signed.get("/v1/adapters/acme/x").status_code == 404
    digest = push(signed, "staged", PACKAGE, f"release:{sign(RELEASE, digest_of(signed, PACKAGE))}").json()["digest"]
    change["changes"][0]["source"] = f"staged@{digest}"
    assert signed.post("/v1/changes", json=change).status_code == 200
    assert signed.post("/v1/predict", json={"model": "acme/x", "inputs": "t1"}).status_code == 200


def test_a_signer_who_is_no_longer_trusted(signed: TestClient) -> None:
    """What it signed is served until the file says otherwise, and again once it is trusted again."""
    body = {"model": "acme/x", "inputs": "t1"}
    push(signed, "acme/x", PACKAGE, f"release:{sign(RELEASE, digest_of(signed, PACKAGE))}")
    assert signed.post("/v1/predict", json=body).status_code == 200
    access = signed.app.state.services.access
    write(signed.signers, signer("release", EVE), RULE)
    access.reload_if_changed()
    error(signed.post("/v1/predict", json=body), 422, "bad_signature")
    assert signed.post("/models/acme/x", json={"inputs": "t1"}).status_code == 422
    assert signed.post("/v1/predict", json={"model": "open", "inputs": "t1"}).status_code == 200
    write(signed.signers, signer("release", RELEASE), RULE)
    access.reload_if_changed()
    assert signed.post("/v1/predict", json=body).status_code == 200


def test_a_header_with_anything_in_it(signed: TestClient) -> None:
    for value in (b"\xff\xfe", b"release:" + base64.b64encode(b"\0" * 64), b"a" * 5000, b" ", b"release:%00"):
        answer = signed.put("/v1/adapters/any", content=PACKAGE, headers={b"x-turret-signature": value})
        error(answer, 422, "bad_signature")


# Tokens


def test_tokens_are_taken_for_every_convention(backbone: Path, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", entry("few", "predict", tokens_per_minute=10), entry("root", "admin"))
    with serving(backbone, tmp_path / "store", api_keys=keys) as client:
        client.app.state.services.access.quotas._clock = lambda: 0
        client.app.state.services.access.quotas.set({"few": client.app.state.services.access.keys.limits()["few"]})
        client.put("/v1/adapters/x", content=PACKAGE, headers=bearer("root"))
        key = bearer("few")
        text = "t1 t2 t3"

        def left() -> int:
            return int(client.get("/v1/models", headers=key).headers["x-ratelimit-remaining-tokens"])

        too_big = client.post("/v1/predict", json={"model": "x", "inputs": [text] * 4}, headers=key)
        assert error(too_big, 422, "too_big_for_quota")["message"].startswith("The request has 12 tokens and the key 'few' may use 10")
        assert left() == 10
        assert client.post("/v1/predict", json={"model": "x", "inputs": text}, headers=key).status_code == 200
        assert client.post("/v1/embeddings", json={"model": "x", "input": text}, headers=key).status_code == 200
        assert client.post("/models/x", json={"inputs": text}, headers=key).status_code == 200
        assert left() == 1
        for path, body in (("/v1/predict", {"model": "x", "inputs": text}), ("/v1/embeddings", {"model": "x", "input": text})):
            refused = client.post(path, json=body, headers=key)
            error(refused, 429, "quota_exceeded")
            assert refused.headers["retry-after"] == "12"
        assert client.post("/models/x", json={"inputs": text}, headers=key).status_code == 429
        assert client.post("/v1/predict", json={"model": "x", "inputs": text}, headers=bearer("root")).status_code == 200

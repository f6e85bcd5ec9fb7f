"""`turret keygen` and `turret push --sign`: keys, the files that servers read, and signatures that verify."""

import base64
import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from client_stub import DIGEST, PACKAGE, Stub
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from turret_client import InvalidArgument, sign_package
from turret_client.keys import Grant, Scope, key_block, mint

KEY = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]{43}")


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


# API keys.


def test_a_key_is_printed_and_its_hash_is_kept(turret: Any, stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    options = ("--scope", "predict", "--scope", "publish", "--names", "acme/*", "--names", "spam", "--rpm", 600, "--tpm", 100_000)
    result = turret("keygen", "acme-ci", *options, "--weight", 2, "--file", file)
    assert (result.exit_code, result.stderr) == (0, "")
    key = result.stdout.strip()
    assert KEY.fullmatch(key)
    assert key.startswith("acme-ci.")
    assert tomllib.loads(file.read_text()) == {
        "keys": {
            "acme-ci": {
                "sha256": hashlib.sha256(key.encode()).hexdigest(),
                "scopes": ["predict", "publish"],
                "names": ["acme/*", "spam"],
                "requests_per_minute": 600,
                "tokens_per_minute": 100_000,
                "weight": 2.0,
            }
        }
    }
    assert mode(file) == 0o600
    assert key not in file.read_text()
    assert stub.asked == []


def test_keys_are_added_to_a_file_as_it_is(turret: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("# ours\n[keys.old]\nsha256 = '00'")
    file.chmod(0o640)
    assert turret("keygen", "new", "--scope", "admin", "--file", file).exit_code == 0
    assert file.read_text().startswith("# ours\n[keys.old]\nsha256 = '00'\n\n[keys.new]\n")
    assert mode(file) == 0o640
    assert turret("keygen", "third", "--scope", "admin", "--file", file).exit_code == 0
    assert list(tomllib.loads(file.read_text())["keys"]) == ["old", "new", "third"]
    before = file.read_text()
    result = turret("keygen", "old", "--scope", "admin", "--file", file)
    assert (result.exit_code, result.stdout, file.read_text() == before) == (1, "", True)
    assert "has 'old' among its keys already" in result.stderr


@pytest.mark.parametrize("content", [b"not toml", b"keys = 3\n", b"keys = {}\n", b"\xff", b"a = " + b"[" * 100_000])
def test_files_that_cannot_be_added_to(turret: Any, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys.toml"
    file.write_bytes(content)
    result = turret("keygen", "new", "--scope", "admin", "--file", file)
    assert (result.exit_code, result.stdout, result.stderr.count("\n"), file.read_bytes()) == (1, "", 1, content)
    assert turret("keygen", "new", "--scope", "admin", "--file", tmp_path / "gone" / "keys.toml").exit_code == 1


def test_without_a_file_the_block_is_on_stderr(turret: Any) -> None:
    result = turret("keygen", "ci", "--scope", "predict")
    key = result.stdout.strip()
    assert KEY.fullmatch(key)
    assert tomllib.loads(result.stderr)["keys"]["ci"] == {
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "scopes": ["predict"],
        "names": ["*"],
    }
    document = json.loads(turret("keygen", "ci", "--scope", "predict", "--json").stdout)
    assert document["sha256"] == hashlib.sha256(document["key"].encode()).hexdigest()
    assert tomllib.loads(document["toml"])["keys"][document["name"]]["sha256"] == document["sha256"]


@pytest.mark.parametrize(
    "args",
    [
        ("a.b", "--scope", "predict"),
        ("local", "--scope", "predict"),
        ("_a", "--scope", "predict"),
        ("a" * 65, "--scope", "predict"),
        ("ci", "--scope", "predict", "--names", "acme/**"),
        ("ci", "--scope", "predict", "--names", "a*"),
        ("ci", "--scope", "predict", "--names", ""),
        ("ci", "--scope", "predict", "--names", "*\n"),
        ("ci", "--scope", "predict", "--weight", "0"),
        ("ci", "--scope", "predict", "--weight", "nan"),
        ("ci", "--scope", "predict", "--weight", "1001"),
        ("ci", "--scope", "predict", "--rpm", 10**9 + 1),
        ("--signer", "a:b", "--key-file", "k"),
    ],
)
def test_keys_that_no_server_would_take(turret: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    result = turret("keygen", *args, "--file", "keys.toml")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("ci",),
        ("--scope", "predict"),
        ("ci", "--scope", "nonsense"),
        ("ci", "--scope", "predict", "--rpm", 0),
        ("ci", "--scope", "predict", "--key-file", "k"),
        ("--signer", "s"),
        ("ci", "--signer", "s", "--key-file", "k"),
        ("--signer", "s", "--key-file", "k", "--scope", "predict"),
    ],
)
def test_wrong_usage(turret: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[object, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    result = turret("keygen", *args)
    assert (result.exit_code, result.stdout, list(tmp_path.iterdir())) == (2, "", [])


def test_keys_differ() -> None:
    assert len({mint("ci") for _ in range(100)}) == 100


@given(
    st.lists(st.sampled_from(Scope), min_size=1),
    st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}(/(\*|[a-z0-9]{1,9}))?", fullmatch=True), min_size=1),
    st.none() | st.integers(1, 10**9),
    st.none() | st.integers(1, 10**12),
    st.none() | st.floats(0, 1000, exclude_min=True),
)
def test_any_grant_is_read_back(scopes: list[Scope], names: list[str], rpm: int | None, tpm: int | None, weight: float | None) -> None:
    block = tomllib.loads(key_block(mint("ci"), Grant(scopes, names, rpm, tpm, weight)))["keys"]["ci"]
    assert set(block["scopes"]) == {str(scope) for scope in scopes}
    assert block["names"] == list(dict.fromkeys(names))
    assert (block.get("requests_per_minute"), block.get("tokens_per_minute"), block.get("weight")) == (rpm, tpm, weight)


# Signers.


def test_a_signature_verifies_with_the_key_of_the_file(turret: Any, stub: Stub, tmp_path: Path) -> None:
    signers, pem, package = tmp_path / "signers.toml", tmp_path / "release.key", tmp_path / "p.safetensors"
    package.write_bytes(PACKAGE)
    result = turret("keygen", "--signer", "acme-release", "--file", signers, "--key-file", pem)
    assert (result.exit_code, result.stderr, mode(pem), mode(signers)) == (0, "", 0o600, 0o600)
    public = base64.b64decode(tomllib.loads(signers.read_text())["signers"]["acme-release"]["public_key"], validate=True)
    assert result.stdout == f"acme-release\t{base64.b64encode(public).decode()}\t{pem}\n"
    assert turret("push", "spam", package, "--sign", pem, "--signer", "acme-release").exit_code == 0
    signer, _, signature = stub.asked[0].headers["x-turret-signature"].partition(":")
    assert signer == "acme-release"
    key = ed25519.Ed25519PublicKey.from_public_bytes(public)
    key.verify(base64.b64decode(signature, validate=True), b"turret-package-v1\n" + DIGEST.encode())
    assert stub.asked[0].body == PACKAGE


def test_private_keys_are_never_overwritten(turret: Any, tmp_path: Path) -> None:
    pem, signers = tmp_path / "release.key", tmp_path / "signers.toml"
    result = turret("keygen", "--signer", "one", "--key-file", pem)
    assert list(tomllib.loads(result.stdout)["signers"]) == ["one"]
    before = pem.read_bytes()
    result = turret("keygen", "--signer", "two", "--key-file", pem, "--file", signers)
    assert (result.exit_code, result.stdout, pem.read_bytes() == before, signers.exists()) == (1, "", True, False)
    assert "is there already" in result.stderr


def test_a_signer_that_is_there_leaves_no_key_behind(turret: Any, tmp_path: Path) -> None:
    signers = tmp_path / "signers.toml"
    signers.write_text("[signers.one]\npublic_key = ''\n[[required]]\nnames = '*'\nsigners = ['one']\n")
    result = turret("keygen", "--signer", "one", "--key-file", tmp_path / "k", "--file", signers)
    assert (result.exit_code, (tmp_path / "k").exists()) == (1, False)
    document = json.loads(turret("keygen", "--signer", "two", "--key-file", tmp_path / "k", "--file", signers, "--json").stdout)
    assert tomllib.loads(signers.read_text())["signers"]["two"]["public_key"] == document["public_key"]
    assert document["key_file"] == str(tmp_path / "k")


def test_a_folder_is_not_signed(turret: Any, stub: Stub, adapter: Path, tmp_path: Path) -> None:
    turret("keygen", "--signer", "one", "--key-file", tmp_path / "k")
    result = turret("push", "spam", adapter, "--sign", tmp_path / "k", "--signer", "one")
    assert (result.exit_code, result.stdout, result.stderr.count("\n"), stub.asked) == (1, "", 1, [])
    assert "turret convert" in result.stderr
    for options in (("--sign", tmp_path / "k"), ("--signer", "one")):
        assert turret("push", "spam", adapter, *options).exit_code == 2


def test_files_that_hold_no_key(tmp_path: Path) -> None:
    package = tmp_path / "p.safetensors"
    package.write_bytes(PACKAGE)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(encoding, form, serialization.NoEncryption())
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(encoding, form, serialization.BestAvailableEncryption(b"x"))
    for content, reason in ((b"", "holds no Ed25519"), (b"-----BEGIN", "holds no"), (other, "holds no"), (locked, "is encrypted")):
        (tmp_path / "k").write_bytes(content)
        with pytest.raises(InvalidArgument, match=reason):
            sign_package(package, tmp_path / "k", "one")
    with pytest.raises(InvalidArgument, match="not a name of a key"):
        sign_package(package, tmp_path / "k", "one:two")


def test_without_cryptography(turret: Any, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.safetensors").write_bytes(PACKAGE)
    assert turret("keygen", "--signer", "one", "--key-file", tmp_path / "k").exit_code == 0
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for args in (
        ("keygen", "--signer", "two", "--key-file", tmp_path / "l"),
        ("push", "spam", tmp_path / "p.safetensors", "--sign", tmp_path / "k", "--signer", "one"),
    ):
        result = turret(*args)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert "install turret-client[sign]" in result.stderr
    assert turret("push", "spam", tmp_path / "p.safetensors").exit_code == 0
    assert KEY.fullmatch(turret("keygen", "ci", "--scope", "predict").stdout.strip())

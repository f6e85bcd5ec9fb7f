"""Signatures of packages and the policy over them. No file, key or signature does worse than be refused with a sentence."""

import base64
import os
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from adapter_store.errors import BadSignature, BrokenFile, Unsigned
from adapter_store.signatures import MAX_KEPT, Trust, public_key_of, sign, verify

DIGEST, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"

# RFC 8032, 7.1, test 1: the secret key and its public key.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")

RELEASE, BOB = b"\1" * 32, b"\2" * 32


def write(path: Path, text: str) -> Path:
    """Writes a file that is old enough for its time to be relied on."""
    path.write_text(text)
    os.utime(path, (1_000_000_000 + len(text), 1_000_000_000 + len(text)))
    return path


def signers(path: Path, rules: str = "", **keys: bytes) -> Path:
    known = "".join(f'[signers.{name}]\npublic_key = "{public_key_of(key)}"\n' for name, key in keys.items())
    return write(path, known + rules)


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    """acme/* is signed by release, acme/open by bob as well (it stands first); everybody else as they like."""
    rules = '[[required]]\nnames = "acme/open"\nsigners = ["release", "bob"]\n[[required]]\nnames = "acme/*"\nsigners = ["release"]\n'
    return Trust(signers(tmp_path / "signers.toml", rules, release=RELEASE, bob=BOB))


# The signature itself


def test_the_key_of_the_rfc() -> None:
    assert public_key_of(SECRET) == base64.b64encode(PUBLIC).decode()
    expected = Ed25519PrivateKey.from_private_bytes(SECRET).sign(b"turret-package-v1\n" + DIGEST.encode())
    assert sign(SECRET, DIGEST) == base64.b64encode(expected).decode()


def test_a_key_in_each_of_its_forms() -> None:
    key = Ed25519PrivateKey.from_private_bytes(RELEASE)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert sign(pem, DIGEST) == sign(RELEASE, DIGEST) == sign(base64.b64encode(RELEASE) + b"\n", DIGEST)
    assert verify(public_key_of(pem), DIGEST, sign(pem, DIGEST))


def test_a_signature_is_of_one_digest_by_one_key() -> None:
    signature = sign(RELEASE, DIGEST)
    assert verify(public_key_of(RELEASE), DIGEST, signature)
    assert not verify(public_key_of(RELEASE), OTHER, signature)
    assert not verify(public_key_of(BOB), DIGEST, signature)
    assert not verify(public_key_of(RELEASE), DIGEST, sign(BOB, DIGEST))


def test_keys_that_cannot_sign() -> None:
    private = Ed25519PrivateKey.from_private_bytes(RELEASE)
    locked = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    foreign = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for given_key in (b"", b"short", b"\xff" * 31, locked, foreign, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(BadSignature, match="not an Ed25519 private key"):
            sign(given_key, DIGEST)


@given(st.text(), st.text(), st.text())
def test_no_text_verifies_or_breaks(public_key: str, digest: str, signature: str) -> None:
    assert verify(public_key, digest, signature) is False
    assert verify(public_key_of(RELEASE), digest, signature) is False


# The policy


def test_a_signature_where_one_is_required(trust: Trust) -> None:
    trust.check("acme/x", DIGEST, f"release:{sign(RELEASE, DIGEST)}")
    with pytest.raises(Unsigned, match=r"^Packages under 'acme/\*' must be signed by 'release', and sha256:1+ is not signed\.$"):
        trust.check("acme/x", DIGEST, None)
    with pytest.raises(BadSignature, match="must be signed by 'release', not by 'bob'"):
        trust.check("acme/x", DIGEST, f"bob:{sign(BOB, DIGEST)}")
    with pytest.raises(BadSignature, match=r"by 'release' is not one of sha256:1+"):
        trust.check("acme/x", DIGEST, f"release:{sign(RELEASE, OTHER)}")
    with pytest.raises(BadSignature, match="by 'release' is not one of"):
        trust.check("acme/x", DIGEST, f"release:{sign(BOB, DIGEST)}")


def test_the_first_rule_that_matches_decides(trust: Trust) -> None:
    trust.check("acme/open", DIGEST, f"bob:{sign(BOB, DIGEST)}")
    trust.check("acme/open", DIGEST, f"release:{sign(RELEASE, DIGEST)}")
    with pytest.raises(Unsigned, match="by 'release' or 'bob', and"):
        trust.check("acme/open", DIGEST, None)


def test_where_none_is_required_one_that_is_given_must_be_sound(trust: Trust) -> None:
    trust.check("spam", DIGEST, None)
    trust.check("acmes/x", DIGEST, None)
    trust.check("spam", DIGEST, f"bob:{sign(BOB, DIGEST)}")
    with pytest.raises(BadSignature, match="'eve' is not known here; known are 'release', 'bob'"):
        trust.check("spam", DIGEST, f"eve:{sign(BOB, DIGEST)}")
    with pytest.raises(BadSignature, match="is not one of"):
        trust.check("spam", DIGEST, f"bob:{sign(BOB, OTHER)}")


@pytest.mark.parametrize("signature", ["", "bob", "bob:", ":" + "A" * 86 + "==", "bob:AAAA", "bob:" + "A" * 88, "b b:" + "A" * 86 + "=="])
def test_what_is_not_a_signature(trust: Trust, signature: str) -> None:
    for policy in (trust, Trust(None)):
        with pytest.raises(BadSignature, match="expected SIGNER:BASE64"):
            policy.check("spam", DIGEST, signature)


@given(st.text(max_size=200))
def test_any_signature_is_refused_with_a_sentence(signature: str) -> None:
    with pytest.raises(BadSignature):
        Trust(None).check("spam", DIGEST, signature)


def test_without_a_file_nothing_is_required() -> None:
    trust = Trust(None)
    trust.check("acme/x", DIGEST, None)
    trust.check("acme/x", DIGEST, f"anybody:{sign(RELEASE, OTHER)}")
    assert not trust.reload_if_changed()


def test_a_signature_is_verified_once(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("adapter_store.signatures.verify", lambda *signed: asked.append(signed) or verify(*signed))
    for _ in range(3):
        trust.check("acme/x", DIGEST, f"release:{sign(RELEASE, DIGEST)}")
        with pytest.raises(BadSignature):
            trust.check("acme/x", OTHER, f"release:{sign(RELEASE, DIGEST)}")
    assert len(asked) == 2


def test_what_is_kept_is_bounded(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_KEPT <= 1_000_000
    monkeypatch.setattr("adapter_store.signatures.MAX_KEPT", 4)
    for i in range(9):
        with pytest.raises(BadSignature):
            trust.check("spam", f"sha256:{i:064}", f"bob:{sign(BOB, DIGEST)}")
    assert len(trust._verified) <= 4


# The file


def test_the_file_is_read_again_when_it_changes(trust: Trust) -> None:
    assert trust.file is not None
    path, signature = trust.file.path, f"release:{sign(RELEASE, DIGEST)}"
    trust.check("acme/x", DIGEST, signature)
    assert not trust.reload_if_changed()
    signers(path, release=BOB)
    assert trust.reload_if_changed()
    assert trust.generation == 1
    trust.check("acme/x", DIGEST, None)
    with pytest.raises(BadSignature, match="is not one of"):
        trust.check("acme/x", DIGEST, signature)


def test_a_file_that_breaks_while_it_is_used_changes_nothing(trust: Trust, caplog: pytest.LogCaptureFixture) -> None:
    assert trust.file is not None
    path = trust.file.path
    sound = path.read_text()
    for broken in ("signers = 3", "[[", "[signers.release]\n"):
        write(path, broken)
        assert not trust.reload_if_changed()
        assert trust.file.fault is not None
        assert trust.file.fault in caplog.text
        with pytest.raises(Unsigned):
            trust.check("acme/x", DIGEST, None)
    logged = len(caplog.records)
    path.unlink()
    for _ in range(3):
        assert not trust.reload_if_changed()
    assert len(caplog.records) == logged + 1, "a fault is logged once"
    write(path, sound)
    assert not trust.reload_if_changed()
    assert trust.file.fault is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[signers.a]\npublic_key = 'AAAA'", "signers.a.public_key: expected the base64 of an Ed25519 public key, 32 bytes"),
        ("[signers.a]\npublic_key = 3", "signers.a.public_key: Input should be a valid string"),
        ("[signers.a]", "signers.a.public_key: this field is missing"),
        ("[signers.'a b']\npublic_key = ''", "signers.a b"),
        ("[[required]]\nnames = 'a/b/c'\nsigners = ['a']", r"required.0.names: expected a name, a namespace as 'namespace/\*', or '\*'"),
        ("[[required]]\nnames = 'acme/*'\nsigners = []", "required.0.signers: List should have at least 1 item"),
        (
            "[[required]]\nnames = 'acme/*'\nsigners = ['eve']",
            r"the rule for 'acme/\*' asks for the signer 'eve', who has no \[signers.eve\]",
        ),
        ("[keys.a]", "keys: there is no field of this name"),
        ("[signers", "it is not TOML"),
        ("a = " + "[" * 5000, "it is not TOML"),
        ("a = " + "1" * 5000, "it is not TOML"),
    ],
)
def test_a_broken_file_is_refused_with_the_field_at_fault(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path / "signers.toml", text)
    with pytest.raises(BrokenFile, match=f"^The signers file {path} cannot be used: {sentence}") as caught:
        Trust(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="cannot be used: No such file or directory"):
        Trust(tmp_path / "nowhere.toml")
    with pytest.raises(BrokenFile, match="cannot be used: Is a directory"):
        Trust(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'a = "\xe9"')
    with pytest.raises(BrokenFile, match="not UTF-8"):
        Trust(tmp_path / "latin.toml")


@given(st.binary(max_size=300) | st.text(alphabet="[]sigrequdnam.k=\"'\n*/#{}0", max_size=120).map(str.encode))
def test_any_bytes_are_a_file_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    with suppress(BrokenFile):
        Trust(path)

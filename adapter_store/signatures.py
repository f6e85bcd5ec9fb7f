"""Ed25519 signatures on packages, and whose signature which names need. The cryptography is the `cryptography` library's.

What is signed is the message b"turret-package-v1\\n" and the package's digest in ASCII (RFC 8032, no prehash). A signature reads
`SIGNER:BASE64`; signers and rules stand in a TOML file:

    [signers.acme-release]
    public_key = "<base64 of the raw 32 bytes>"

    [[required]]
    names = "acme/*"
    signers = ["acme-release"]

The first rule whose pattern a name matches decides; names without a rule need no signature, but one that is given must be sound.
"""

import base64
import binascii
import re
from fnmatch import fnmatchcase
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator

from adapter_store.errors import BadSignature, Unsigned
from adapter_store.names import shown
from adapter_store.tomlfile import TITLE, NamePattern, Title, TomlFile

PREFIX = b"turret-package-v1\n"
SIGNATURE = re.compile(rf"({TITLE}):([A-Za-z0-9+/]{{86}}==)")
MAX_KEPT = 100_000


class Signer(BaseModel):
    """Who may sign: the raw 32 bytes of an Ed25519 public key, in base64."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    public_key: StrictStr

    @field_validator("public_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        if len(_decoded(text) or b"") != 32:
            raise ValueError("expected the base64 of an Ed25519 public key, 32 bytes")
        return text


class Requirement(BaseModel):
    """One of `signers` must have signed every package under a name that matches the pattern."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: NamePattern
    signers: list[Title] = Field(min_length=1)


class Signers(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signers: dict[Title, Signer] = Field(default_factory=dict)
    required: list[Requirement] = Field(default_factory=list)

    @model_validator(mode="after")
    def _all_known(self) -> "Signers":
        for rule in self.required:
            for name in rule.signers:
                if name not in self.signers:
                    raise ValueError(f"the rule for '{rule.names}' asks for the signer '{name}', who has no [signers.{name}]")
        return self


class Trust:
    """Whose signatures count: the signers' file, read again when it changes. Without a file nothing is required and nothing is verified.

    `generation` counts the changes, for those who keep what `check` allowed. Raises BrokenFile where the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self.file = None if path is None else TomlFile(path, Signers, "The signers file")
        self.generation = 0
        self._verified: dict[tuple[str, ...], bool] = {}

    def reload_if_changed(self) -> bool:
        """Whether the file was read anew and says something else now."""
        if self.file is None or not self.file.reload_if_changed():
            return False
        self.generation += 1
        return True

    def check(self, name: str, digest: str, signature: str | None) -> None:
        """Raises Unsigned or BadSignature where a package may not be published or served under a name."""
        signers = None if self.file is None else self.file.content
        rules = [] if signers is None else signers.required
        rule = next((rule for rule in rules if fnmatchcase(name, rule.names)), None)
        if signature is None:
            if rule is not None:
                raise Unsigned(f"Packages under '{rule.names}' must be signed by {_any_of(rule.signers)}, and {digest} is not signed.")
            return
        match = SIGNATURE.fullmatch(signature)
        if match is None:
            raise BadSignature(f"{shown(signature)} is not a signature: expected SIGNER:BASE64 with the base64 of 64 bytes.")
        if signers is None:
            return
        signer, encoded = match.groups()
        if rule is not None and signer not in rule.signers:
            raise BadSignature(f"Packages under '{rule.names}' must be signed by {_any_of(rule.signers)}, not by '{signer}'.")
        if signer not in signers.signers:
            raise BadSignature(f"The signer '{signer}' is not known here; {_known(signers)}.")
        if not self._verifies(signers.signers[signer].public_key, digest, encoded):
            raise BadSignature(f"The signature by '{signer}' is not one of {digest}: sign these very bytes with the key of '{signer}'.")

    def _verifies(self, *signed: str) -> bool:
        """`verify`, asked once for each (public key, digest, signature)."""
        kept = self._verified.get(signed)
        if kept is None:
            if len(self._verified) >= MAX_KEPT:
                self._verified.clear()
            kept = self._verified[signed] = verify(*signed)
        return kept


def sign(private_key: bytes, digest: str) -> str:
    """The base64 of the signature of a package's digest. `private_key` is PEM (PKCS8, unencrypted), the raw 32 bytes, or their base64.

    Raises BadSignature for anything else.
    """
    return base64.b64encode(_private(private_key).sign(PREFIX + digest.encode("ascii"))).decode()


def verify(public_key: str, digest: str, signature: str) -> bool:
    """Whether `signature` (base64) is one of a package's digest by the owner of `public_key` (base64 of the raw 32 bytes)."""
    raw, signed = _decoded(public_key), _decoded(signature)
    if raw is None or signed is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signed, PREFIX + digest.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key_of(private_key: bytes) -> str:
    """The public key that belongs to a private one, as the signers' file holds it."""
    return base64.b64encode(_private(private_key).public_key().public_bytes_raw()).decode()


def _private(given: bytes) -> Ed25519PrivateKey:
    try:
        if b"-----BEGIN" in given:
            key = load_pem_private_key(given, None)
        else:
            raw = given if len(given) == 32 else base64.b64decode(given.strip(), validate=True)
            key = Ed25519PrivateKey.from_private_bytes(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadSignature("The signing key is not an Ed25519 private key: expected unencrypted PEM, or the base64 of its 32 bytes.")
    return key


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _any_of(signers: list[str]) -> str:
    named = [f"'{signer}'" for signer in signers]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} or {named[-1]}"


def _known(signers: Signers) -> str:
    named = ", ".join(f"'{signer}'" for signer in list(signers.signers)[:8])
    return f"known are {named}{' ...' if len(signers.signers) > 8 else ''}" if named else "the signers file names none"

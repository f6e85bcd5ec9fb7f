"""API keys from a TOML file that holds their hashes: who a request's headers belong to. Read again when the file changes.

    [keys.acme-ci]
    sha256 = "<hex of the sha256 of the whole key>"
    scopes = ["predict", "publish"]
    names = ["acme/*"]
    requests_per_minute = 600      # optional
    tokens_per_minute = 100000     # optional
    weight = 1.0                   # optional: share of the engine

A key reads NAME.SECRET, NAME as in the file. The secret has 256 random bits, so that one round of sha256 is as good as a slow hash.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator

from adapter_store.tomlfile import NamePattern, Title, TomlFile
from server.access.quotas import Limits
from server.core import LOCAL, Caller, Scope

# What an unknown name is compared with: no key has this hash, or rather nobody knows one that has.
DUMMY = bytes(32)
MAX_KEY_BYTES = 512


class Key(BaseModel):
    """One key of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: StrictStr
    scopes: list[Scope] = Field(min_length=1)
    names: list[NamePattern] = Field(min_length=1)
    requests_per_minute: StrictInt | None = Field(default=None, ge=1, le=10**9)
    tokens_per_minute: StrictInt | None = Field(default=None, ge=1, le=10**12)
    weight: float = Field(default=1.0, gt=0, le=1000, strict=True, allow_inf_nan=False)

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, text: str) -> str:
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise ValueError("expected the sha256 of the whole key in 64 lower-case hex digits ('turret keygen' writes it)")
        return text


class KeysFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: dict[Title, Key] = Field(default_factory=dict)

    @field_validator("keys")
    @classmethod
    def _none_is_local(cls, keys: dict[str, Key]) -> dict[str, Key]:
        if LOCAL.name in keys:
            raise ValueError(f"the name '{LOCAL.name}' stands for callers without a key: choose another")
        return keys


@dataclass(frozen=True, slots=True)
class Known:
    """A key as it is looked up: the hash, whose it is and what it may use up."""

    sha256: bytes
    caller: Caller
    limits: Limits


class Keys:
    """The keys of a file; raises BrokenFile where it cannot be used at the start."""

    def __init__(self, path: Path) -> None:
        self.file = TomlFile(path, KeysFile, "The keys file")
        self._known = _known(self.file.content)

    def reload_if_changed(self) -> bool:
        """Whether the file was read anew and says something else now. Never raises: a broken file changes nothing."""
        changed = self.file.reload_if_changed()
        if changed:
            self._known = _known(self.file.content)
        return changed

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller | None:
        """Whose key the headers carry; None where there is no key, more than one, or one that is not in the file."""
        key = presented(headers)
        if key is None or len(key) > MAX_KEY_BYTES:
            return None
        known = self._known.get(key.partition(b".")[0].decode("ascii", "replace"))
        same = hmac.compare_digest(hashlib.sha256(key).digest(), DUMMY if known is None else known.sha256)
        return known.caller if same and known is not None else None

    def limits(self) -> dict[str, Limits]:
        """The quotas of every key, by name."""
        return {name: known.limits for name, known in self._known.items()}


def presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key that a request's headers carry, as `authorization: Bearer KEY` or `x-api-key: KEY`; b"" where they carry several."""
    found: set[bytes] = set()
    for name, value in headers:
        if name == b"x-api-key":
            found.add(value.strip())
        elif name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.add(rest.strip())
    return None if not found else found.pop() if len(found) == 1 else b""


def _known(content: KeysFile) -> dict[str, Known]:
    return {
        name: Known(
            bytes.fromhex(key.sha256),
            Caller(name, frozenset(key.scopes), tuple(key.names), key.weight),
            Limits(key.requests_per_minute, key.tokens_per_minute),
        )
        for name, key in content.keys.items()
    }

"""API keys and signers as a server's files list them: making a key, and adding a block to a TOML file. Pure; no server is asked.

A key reads NAME.SECRET. The server's file holds the sha256 of the whole, so that who reads the file cannot use the key.
"""

import hashlib
import json
import os
import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from turret_client.errors import InvalidArgument
from turret_client.names import NAME, SEGMENT

Section = Literal["keys", "signers"]

KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # a bare key of TOML; no dot, which parts the name from the secret
RESERVED = "local"  # what servers call who needs no key
PATTERN = re.compile(rf"\*|{SEGMENT}/\*|{NAME.pattern}")
SECRET_BYTES = 32

# What servers take; a file with more than that would be refused as a whole.
MOST_REQUESTS, MOST_TOKENS, MOST_WEIGHT = 10**9, 10**12, 1000


class Scope(StrEnum):
    """What a key may do: run models; change what is published; all of it, and what is resident."""

    PREDICT = "predict"
    PUBLISH = "publish"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key may do: its scopes, the names that it knows of, its quotas and its share of the engine (None: the server's default)."""

    scopes: Sequence[Scope]
    names: Sequence[str] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if not self.scopes:
            raise InvalidArgument("A key without a scope may do nothing: give it predict, publish or admin.")
        for pattern in self.names:
            if not PATTERN.fullmatch(pattern):
                raise InvalidArgument(f"{pattern[:80]!r} names no adapters: expected a name, a namespace as in acme/*, or * for all.")
        _check_quota(self.requests_per_minute, MOST_REQUESTS)
        _check_quota(self.tokens_per_minute, MOST_TOKENS)
        if self.weight is not None and not 0 < self.weight <= MOST_WEIGHT:
            raise InvalidArgument(f"{self.weight} is not a weight: expected a number above 0, at most {MOST_WEIGHT}.")


def _check_quota(quota: int | None, most: int) -> None:
    if quota is not None and not 1 <= quota <= most:
        raise InvalidArgument(f"{quota} is not a quota: expected a whole number from 1 to {most}.")


def mint(name: str) -> str:
    """A new key of this name; raises InvalidArgument for a name that no key can have."""
    if name == RESERVED:
        raise InvalidArgument(f"'{RESERVED}' stands for callers without a key: choose another name.")
    return f"{checked_key_name(name)}.{secrets.token_urlsafe(SECRET_BYTES)}"


def key_block(key: str, grant: Grant) -> str:
    """The key as a block of the server's file of API keys: hashed, with what it may do."""
    fields = {
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "scopes": list(dict.fromkeys(grant.scopes)),
        "names": list(dict.fromkeys(grant.names)),
        "requests_per_minute": grant.requests_per_minute,
        "tokens_per_minute": grant.tokens_per_minute,
        "weight": None if grant.weight is None else float(grant.weight),
    }
    return _block("keys", key.partition(".")[0], fields)


def signer_block(name: str, public_key: str) -> str:
    """A signer as a block of the server's file of signers."""
    return _block("signers", checked_key_name(name), {"public_key": public_key})


def _block(section: Section, name: str, fields: Mapping[str, object]) -> str:
    """A TOML table. Text, numbers and lists of these, all ASCII, read the same in JSON and in TOML."""
    lines = [f"{field} = {json.dumps(value)}\n" for field, value in fields.items() if value is not None]
    return f"[{section}.{name}]\n{''.join(lines)}"


def checked_key_name(name: str) -> str:
    """`name` if a key or signer can have it; raises InvalidArgument."""
    if not KEY_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:80]!r} is not a name of a key or signer: use letters, digits, '_' and '-', "
            "starting with a letter or digit, at most 64 characters."
        )
    return name


def add_block(file: Path, section: Section, name: str, block: str) -> None:
    """Appends a block to a TOML file, in one write, so that a server that reads it again never sees half a block.

    A new file is made for its owner only. Raises InvalidArgument, adding nothing, where the file has a block of this name or is
    not TOML.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as stream:
        stream.write(_addition(stream.readall(), file, section, name, block))


def _addition(content: bytes, file: Path, section: Section, name: str, block: str) -> bytes:
    """The bytes to append to the file's content."""
    gap = "" if not content else "\n" if content.endswith(b"\n") else "\n\n"
    try:
        present = tomllib.loads(content.decode()).get(section, {})
        if isinstance(present, dict) and name in present:
            raise InvalidArgument(f"{file} has '{name}' among its {section} already: choose another name, or remove that block first.")
        tomllib.loads(content.decode() + gap + block)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{file} is not a TOML file that can be added to, so nothing was: {error}.") from None
    return f"{gap}{block}".encode()

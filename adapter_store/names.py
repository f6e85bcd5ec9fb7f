"""Names of packages and references to one version of a package.

    name       = segment | segment "/" segment          a segment is [a-z0-9][a-z0-9._-]{0,63}
    reference  = name [ "@" selector ]                   selector: version number | alias | "sha256:" hex digits

    pattern    = name | segment "/*" | "*"               which names an API key or a signing rule is about

`base` is the bare backbone and `self` the package that speaks, so neither can be published.
"""

import re
from dataclasses import dataclass

from adapter_store.errors import InvalidName

SEGMENT = r"[a-z0-9][a-z0-9._-]{0,63}"
NAME = re.compile(rf"{SEGMENT}(?:/{SEGMENT})?")
PATTERN = re.compile(rf"\*|{SEGMENT}/\*|{NAME.pattern}")
ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LATEST = "latest"
RESERVED = frozenset({"base", "self"})


def check_name(name: str) -> str:
    """Returns `name` if it may be published; raises InvalidName otherwise."""
    if not NAME.fullmatch(name):
        raise InvalidName(
            f"{shown(name)} is not a valid name: use lower-case letters, digits, '.', '_' and '-', starting with a letter "
            "or digit, at most 64 characters, optionally namespace/name."
        )
    if name in RESERVED:
        raise InvalidName(f"'{name}' is reserved: choose another name.")
    return name


def check_alias(alias: str) -> str:
    """Returns `alias` if it may be set by hand; raises InvalidName otherwise (`latest` moves by publishing only)."""
    if alias == LATEST:
        raise InvalidName("'latest' always points to the newest version and cannot be set: choose another alias.")
    if not ALIAS.fullmatch(alias):
        raise InvalidName(f"{shown(alias)} is not a valid alias: use lower-case letters, digits, '.', '_' and '-', starting with a letter.")
    return alias


@dataclass(frozen=True, slots=True)
class Reference:
    """One package as a request names it: a name and a selector (a version number, an alias or a digest)."""

    name: str
    selector: str = LATEST

    def __str__(self) -> str:
        return self.name if self.selector == LATEST else f"{self.name}@{self.selector}"


def parse_reference(text: str) -> Reference:
    """`spam`, `acme/spam@3`, `spam@prod`, `spam@sha256:...` as a Reference; raises InvalidName."""
    name, at, selector = text.partition("@")
    if not NAME.fullmatch(name):
        raise InvalidName(f"{shown(text)} does not name an adapter: expected name, name@version, name@alias or namespace/name.")
    if not at:
        return Reference(name)
    if not any(kind.fullmatch(selector) for kind in (VERSION, ALIAS, DIGEST)):
        raise InvalidName(
            f"{shown(selector)} is neither a version number, an alias nor a digest ('sha256:' and 64 hex digits) of '{name}'."
        )
    return Reference(name, selector)


def one_line(text: str, limit: int) -> str:
    """Somebody else's words for an error sentence: cut, and what does not print (line breaks, half surrogates) escaped."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text[:limit])


def shown(text: str, limit: int = 80) -> str:
    """`text` quoted for an error sentence, cut so that hostile input cannot blow the sentence up."""
    return repr(text if len(text) <= limit else text[:limit] + "…")

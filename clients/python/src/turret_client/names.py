"""The wire's grammar of names and references, and the paths made of them: nothing that could lead elsewhere passes.

name       = segment | segment "/" segment          a segment is [a-z0-9][a-z0-9._-]{0,63}
reference  = name [ "@" selector ]                   selector: version number | alias | "sha256:" hex digits
"""

import re
from urllib.parse import quote

from turret_client.errors import InvalidArgument

SEGMENT = r"[a-z0-9][a-z0-9._-]{0,63}"
NAME = re.compile(rf"{SEGMENT}(?:/{SEGMENT})?")
SELECTOR = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}|sha256:[0-9a-f]{64}")
ADAPTERS = "/v1/adapters"


def split_reference(reference: str) -> tuple[str, str | None]:
    """`name@selector` as its two parts, the selector None if absent; raises InvalidArgument unless both are well formed."""
    name, at, selector = reference.partition("@")
    checked_name(name)
    return name, checked_selector(selector, name) if at else None


def checked_reference(reference: str) -> str:
    """`reference` if it is one: a name, maybe with a selector; raises InvalidArgument."""
    split_reference(reference)
    return reference


def checked_name(name: str) -> str:
    """`name` if the wire's grammar allows it; raises InvalidArgument."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:80]!r} is not an adapter's name: use lower-case letters, digits, '.', '_' and '-', optionally namespace/name."
        )
    return name


def checked_selector(selector: int | str, name: str) -> str:
    """A version number, alias or digest as text; raises InvalidArgument if it is none of these."""
    if not SELECTOR.fullmatch(text := str(selector)):
        raise InvalidArgument(f"{text[:80]!r} is neither a version number, an alias nor a digest of '{name}'.")
    return text


def adapter_path(name: str) -> str:
    """The path of an adapter; raises InvalidArgument for a name that could lead elsewhere."""
    return f"{ADAPTERS}/{checked_name(name)}"


def version_path(name: str, version: int | str) -> str:
    """The path of a version, given as number or alias."""
    return f"{adapter_path(name)}/versions/{quote(checked_selector(version, name), safe='')}"


def alias_path(name: str, alias: str) -> str:
    """The path of an alias."""
    return f"{adapter_path(name)}/aliases/{quote(checked_selector(alias, name), safe='')}"

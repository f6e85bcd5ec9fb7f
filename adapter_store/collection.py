"""Which blobs nobody needs any more. Knows the keys of packages, generations and ages; deletes nothing itself.

    blobs/sha256/<hex>.safetensors          generation 0 of a package's bytes
    blobs/sha256/<hex>.<g>.safetensors      generation g

A generation ends with a `Collect` commit, which the state machine refuses for a digest that a version refers to. After that commit
its key is deleted, and nobody ever writes it again: whoever publishes these bytes later, or was about to, writes the key of the
next generation. So no order of events and no death of a process takes the bytes of a version away.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from adapter_store.blobs import Item
from adapter_store.catalog import Catalog
from adapter_store.errors import NotFound
from adapter_store.names import DIGEST, shown

FOLDER = "blobs/sha256"
# Digests that one commit collects at most.
BATCH = 1000
_KEY = re.compile(rf"{FOLDER}/([0-9a-f]{{64}})(?:\.([1-9][0-9]{{0,8}}))?\.safetensors")


@dataclass(frozen=True, slots=True)
class Collectable:
    """Digests whose generation may end now, and keys of generations that have ended."""

    digests: tuple[str, ...]
    ended: tuple[str, ...]


def blob_key(digest: str, generation: int) -> str:
    """The key of a package's bytes; raises NotFound for what is no digest."""
    if not DIGEST.fullmatch(digest):
        raise NotFound(f"{shown(digest)} is not a digest ('sha256:' and 64 hex digits).")
    suffix = f".{generation}" if generation else ""
    return f"{FOLDER}/{digest.removeprefix('sha256:')}{suffix}.safetensors"


def collectable(catalog: Catalog, items: Iterable[Item], before: float) -> Collectable:
    """What of a listing of the blobs can go: what lost its last reference before that moment (seconds since 1970), and what was
    written before it and never had one."""
    digests: list[str] = []
    ended: list[str] = []
    for item in items:
        match = _KEY.fullmatch(item.key)
        if match is None:
            continue
        digest, generation = f"sha256:{match[1]}", int(match[2] or 0)
        blob = catalog.blob(digest)
        if generation < blob.generation:
            ended.append(item.key)
        elif generation == blob.generation and not blob.references:
            since = max(item.modified, 0.0 if blob.freed is None else seconds(blob.freed))
            if since < before:
                digests.append(digest)
    return Collectable(tuple(digests), tuple(ended))


def seconds(time: str) -> float:
    """A commit's time as seconds since 1970; 0 for one that tells none."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0

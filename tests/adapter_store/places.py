"""Places for stores: memory, a folder, a real S3 server. What a store promises it promises on all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest

from adapter_store.blobs import open_blobs
from adapter_store.store import Store

KINDS = ("memory", "folder", "s3")


class Place:
    """Where one store is; any number of Store objects may be opened on it."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.blobs = open_blobs(url)

    def open(self, **options: Any) -> Store:
        """A Store of its own, as another process would have it."""
        return Store(self.blobs if self.kind == "memory" else open_blobs(self.url), **options)

    def keys(self, prefix: str) -> list[str]:
        return sorted(item.key for item in self.blobs.list(prefix))

    def overwrite(self, key: str, data: bytes) -> None:
        """What no store does: changes what is under a key."""
        obstore.put(self.blobs._store, key, data)


def make_place(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory://",
        "folder": lambda: str(tmp_path / "store"),
        "s3": lambda: str(request.getfixturevalue("object_store").url()),
    }
    return Place(kind, urls[kind]())

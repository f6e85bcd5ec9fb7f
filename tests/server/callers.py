"""Keys for tests: files of them, and the headers that carry them."""

import hashlib
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

TIMES = count(1_000_000_000)


def key_of(name: str) -> str:
    """The whole key of a name."""
    return f"{name}.{name[::-1]:x<43}"


def bearer(name: str) -> dict[str, str]:
    """The header that carries the key of a name."""
    return {"authorization": f"Bearer {key_of(name)}"}


def entry(name: str, *scopes: str, names: tuple[str, ...] = ("*",), **more: Any) -> str:
    """A key's part of the file."""
    fields = {"sha256": hashlib.sha256(key_of(name).encode()).hexdigest(), "scopes": list(scopes), "names": list(names), **more}
    return f"[keys.{name}]\n" + "".join(f"{field} = {json.dumps(value)}\n" for field, value in fields.items())


def write(path: Path, *parts: str) -> Path:
    """Writes a file with a time of its own, long past, so that the first look at it sees the change and the second none."""
    path.write_text("\n".join(parts))
    os.utime(path, (next(TIMES),) * 2)
    return path

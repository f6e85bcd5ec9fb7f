"""A folder of files, given as names and paths: reads its JSON, its tensors and its card. Knows no format of adapters.

Names are only ever keys: nothing is opened but the paths that came with them, so a name cannot lead out of anywhere.
"""

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_store.errors import InvalidPackage
from adapter_store.manifest import MAX_CARD, Manifest
from adapter_store.names import shown
from adapter_store.package import MAX_SIZE
from adapter_store.tensorfile import TensorData, parse_json, read_header

Files = Mapping[str, Path]

MAX_FILES = 256
MAX_JSON = 16 << 20
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class ImportedPackage:
    """A folder as a package: ready for `write_package`. `report` says what was matched, `warnings` what to look at."""

    manifest: Manifest
    tensors: Mapping[str, TensorData]
    report: tuple[str, ...]
    warnings: tuple[str, ...]


def folder_files(folder: Path) -> dict[str, Path]:
    """The files directly in a folder under their own names."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def check_names(files: Files) -> None:
    """Refuses names that are paths, and crowds of files."""
    if len(files) > MAX_FILES:
        raise InvalidPackage(f"The folder has {len(files)} files; at most {MAX_FILES} are allowed.")
    for name in files:
        if not name or len(name) > 255 or name in (".", "..") or re.search(r"[/\\\x00-\x1f]", name):
            raise InvalidPackage(f"{shown(name)} is not a plain file name: give the files of one folder without their path.")


def read_object(files: Files, name: str) -> dict[str, Any]:
    """A JSON file as an object; raises InvalidPackage."""
    path = files[name]
    size = path.stat().st_size
    if size > MAX_JSON:
        raise InvalidPackage(f"{name} has {size} bytes; at most {MAX_JSON} are allowed.")
    value = parse_json(path.read_bytes(), name)
    if not isinstance(value, dict):
        raise InvalidPackage(f"{name} is not a JSON object.")
    return value


def read_tensors(files: Files, name: str, max_size: int = MAX_SIZE) -> dict[str, TensorData]:
    """The tensors of a safetensors file. The file is mapped, not read, so its bytes cost no memory until they are used."""
    with files[name].open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_size:
            raise InvalidPackage(f"{name} has {size} bytes; at most {max_size} are allowed.")
        header = read_header(file, size, name)
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return {key: TensorData(info.dtype, info.shape, data[info.start : info.end]) for key, info in header.tensors.items()}


def read_card(files: Files, warnings: list[str]) -> tuple[str, str]:
    """The text of README.md, cut to what a manifest may hold, and the license of its front matter; empty where there is none."""
    if CARD not in files:
        return "", ""
    with files[CARD].open("rb") as file:
        text = file.read(4 * MAX_CARD + 1).decode("utf-8", errors="replace")
    if len(text) > MAX_CARD:
        warnings.append(f"{CARD} is longer than {MAX_CARD} characters and was cut.")
    front_matter = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    license_line = front_matter and re.search(r"^license:[ \t]*(\S.*?)[ \t\r]*$", front_matter[1], re.MULTILINE)
    return text[:MAX_CARD], license_line[1].strip("\"'")[:256] if license_line else ""

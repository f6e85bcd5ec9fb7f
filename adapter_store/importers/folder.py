"""A folder of files, given as names and paths: reads its JSON, its tensors and its card. Knows no format of adapters.

Names are only ever keys: nothing is opened but the paths that came with them, so a name cannot lead out of anywhere. A name may
hold one slash ("de/adapter.safetensors"): the folders of setups have folders of their own.
"""

import mmap
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from adapter_store.errors import InvalidPackage
from adapter_store.golden import Example
from adapter_store.manifest import MAX_CARD, Manifest
from adapter_store.methods import Backbone
from adapter_store.names import shown
from adapter_store.package import MAX_SIZE, sentence
from adapter_store.tensorfile import TensorData, parse_json, read_header

Files = Mapping[str, Path]
Frozen = Callable[[str], TensorData | None]

MAX_FILES = 1024
MAX_JSON = 16 << 20
MAX_JSON_VALUES = 1 << 18
MAX_CHECKPOINT = 64 << 30  # bytes of a whole model; it is mapped, and little of it is read
CARD = "README.md"
EXAMPLES = "examples.json"
SETUP = "adapter_setup.json"


_EXAMPLES: TypeAdapter[tuple[Example, ...]] = TypeAdapter(tuple[Example, ...])


@dataclass(frozen=True, slots=True)
class ImportedPackage:
    """A folder as a package: ready for `write_package`. `report` says what was matched, `warnings` what to look at."""

    manifest: Manifest
    tensors: Mapping[str, TensorData]
    report: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Options:
    """What an importer may be told besides the folder's files.

    backbone: what the package is for; None: the one that the folder describes. members: which packages the members of a fusion
    are, pinned by digest ("acme/mnli@sha256:..."), by the names of its config. frozen: the backbone's own tensors, by the names
    of transformers' checkpoints.
    """

    backbone: Backbone | None = None
    members: Mapping[str, str] | None = None
    frozen: Frozen | None = None


@dataclass(frozen=True, slots=True)
class Remarks:
    """What an import matched, and what its owner should look at."""

    report: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def folder_files(folder: Path) -> dict[str, Path]:
    """The files directly in a folder under their own names; of a setup, those of its folders too, as "folder/file"."""
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    if SETUP in files:
        inner = (folder for folder in sorted(folder.iterdir()) if folder.is_dir())
        files |= {f"{folder.name}/{path.name}": path for folder in inner for path in sorted(folder.iterdir()) if path.is_file()}
    return files


def check_names(files: Files) -> None:
    """Refuses names that are paths of more than one folder and a file, and crowds of files."""
    if len(files) > MAX_FILES:
        raise InvalidPackage(f"The folder has {len(files)} files; at most {MAX_FILES} are allowed.")
    for name in files:
        parts = name.split("/")
        if len(parts) > 2 or not all(_plain(part) for part in parts):
            raise InvalidPackage(
                f"{shown(name)} is not a plain file name: give the files of one folder without their path, or as folder/file in a setup."
            )


def _plain(name: str) -> bool:
    return 0 < len(name) <= 255 and name not in (".", "..") and not re.search(r"[\\\x00-\x1f]", name)


def inner_folders(files: Files) -> dict[str, dict[str, Path]]:
    """The folders of a setup by name, each with its files under their own names."""
    folders: dict[str, dict[str, Path]] = {}
    for name, path in files.items():
        folder, slash, file = name.partition("/")
        if slash:
            folders.setdefault(folder, {})[file] = path
    return folders


def read_object(files: Files, name: str) -> dict[str, Any]:
    """A JSON file as an object; raises InvalidPackage."""
    path = files[name]
    size = path.stat().st_size
    if size > MAX_JSON:
        raise InvalidPackage(f"{name} has {size} bytes; at most {MAX_JSON} are allowed.")
    value = parse_json(path.read_bytes(), name, MAX_JSON_VALUES)
    if not isinstance(value, dict):
        raise InvalidPackage(f"{name} is not a JSON object.")
    return value


def read_examples(files: Files) -> tuple[Example, ...]:
    """The golden examples of examples.json, a list of objects as in a manifest; none where there is no such file."""
    if EXAMPLES not in files:
        return ()
    size = files[EXAMPLES].stat().st_size
    if size > MAX_JSON:
        raise InvalidPackage(f"{EXAMPLES} has {size} bytes; at most {MAX_JSON} are allowed.")
    try:
        return _EXAMPLES.validate_python(parse_json(files[EXAMPLES].read_bytes(), EXAMPLES))
    except ValidationError as error:
        raise InvalidPackage(f"{EXAMPLES} is not a list of golden examples: {sentence(error)}") from None


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
    lines = front_matter[1].split("\n") if front_matter else []
    license_name = next((named for line in lines if line.startswith("license:") and (named := line.removeprefix("license:").strip())), "")
    return text[:MAX_CARD], license_name.strip("\"'")[:256]


def listed(names: Iterable[str], limit: int = 10) -> str:
    """Names for a sentence, the first few of many."""
    found = sorted(names)
    return ", ".join(shown(name, 60) for name in found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")

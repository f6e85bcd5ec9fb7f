"""`turret inspect` and `turret convert`: packages and folders on this machine, without a server.

They work with `adapter_store`, which comes with turret-server and not with the client; it is imported when first needed.
"""

import importlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from turret_client.download import AtomicFile
from turret_client.errors import InvalidArgument
from turret_client.upload import folder_files, pickled

# The keys under which transformers' configs keep their dimensions.
HIDDEN_SIZE = ("hidden_size", "dim", "d_model", "n_embd")
NUM_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a package file is. `manifest` as plain JSON; `size` in bytes."""

    digest: str
    size: int
    parameters: int
    task: str | None
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Converted:
    """A package file that was written from a folder: what it is, what the import matched, and what it wants to be known."""

    package: Inspected
    report: list[str]
    warnings: list[str]


def inspect(file: Path) -> Inspected:
    """Reads and checks a package file; raises InvalidArgument with the store's sentence."""
    with _store_errors():
        opened = _store("package").open_package(file)
        manifest = opened.manifest
        fields = json.loads(manifest.to_json())
        return Inspected(opened.digest, opened.size, opened.parameters, manifest.task, fields)


def convert(folder: Path, file: Path, backbone: Path | None = None, license_: str | None = None, card: Path | None = None) -> Converted:
    """Writes an adapter's folder as one package file, whole or not at all; pickles (.bin) are read here and nowhere else.

    backbone: folder or config.json of the model that the adapter is for, where the adapter's own files do not tell.
    license_, card: put into the manifest in place of what the folder says; the card is a text file.
    """
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is not a folder.")
    changes = {"license": license_, "card": _text(card) if card else None}
    with _store_errors(), tempfile.TemporaryDirectory(prefix="turret-") as temporary, AtomicFile(file) as target:
        source = _without_pickles(folder, Path(temporary))
        files = {path.name: path for path in folder_files(source)}
        imported = _store("importers").import_folder(files, backbone=_backbone(backbone))
        manifest = _changed(imported.manifest, {key: value for key, value in changes.items() if value is not None})
        for chunk in _store("package").package_chunks(manifest, imported.tensors):
            target.write(chunk)
        target.commit()
    return Converted(inspect(file), _lines(imported.report), _lines(imported.warnings))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument(f"{file} is not UTF-8 text.") from None


def _changed(manifest: Any, changes: dict[str, str]) -> Any:
    try:
        return type(manifest).model_validate(manifest.model_dump() | changes)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidArgument(f"The package cannot take this {first['loc'][0]}: {first['msg']}.") from None


def _without_pickles(folder: Path, temporary: Path) -> Path:
    """The folder, or, if weights of it are only there as pickles, a copy in `temporary` with safetensors in their place."""
    pickles = _store("importers.pickles")
    names = {file.name for file in folder.iterdir()}
    only_pickled = any(name in names and twin not in names for name, twin in pickles.STANDARD_NAMES.items())
    if only_pickled or (pickled(folder) and not any(name.endswith(".safetensors") for name in names)):
        with warnings.catch_warnings(action="ignore"):  # torch's own remarks on old pickles
            pickles.bin_to_safetensors(folder, temporary)
        return temporary
    return folder


def _backbone(path: Path | None) -> Any:
    """The store's description of a backbone, read from its config.json; None without a path."""
    if path is None:
        return None
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_bytes())
        hidden = next(config[key] for key in HIDDEN_SIZE if key in config)
        layers = next(config[key] for key in NUM_LAYERS if key in config)
        return _store("methods").Backbone(model_type=config["model_type"], hidden_size=hidden, num_layers=layers)
    except FileNotFoundError:
        raise InvalidArgument(f"{path} is not a model's folder: it has no config.json.") from None
    except (ValueError, TypeError, KeyError, StopIteration):
        raise InvalidArgument(f"{file} does not tell a model's type, hidden size and number of layers.") from None


def _lines(report: Any) -> list[str]:
    """A report of the importers as lines of text."""
    if isinstance(report, dict):
        return [f"{key}: {value}" for key, value in report.items()]
    return [report] if isinstance(report, str) else [str(line) for line in report]


def _store(module: str) -> Any:
    """A module of `adapter_store`, which is not a dependency of the client."""
    return importlib.import_module(f"adapter_store.{module}")


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turns the store's errors into the client's with the same sentence, and its absence into one that tells what to install."""
    try:
        store_error = _store("errors").StoreError
        try:
            yield
        except store_error as error:
            raise InvalidArgument(str(error)) from error
    except ImportError as error:
        raise InvalidArgument(
            f"This command reads packages with Turret's own library, of which '{error.name}' is missing: install turret-server."
        ) from error

"""`turret inspect` and `turret convert`: packages and folders on this machine, without a server.

They work with `adapter_store`, which comes with turret-server and not with the client; it is imported when first needed.
"""

import importlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from turret_client.download import AtomicFile
from turret_client.errors import InvalidArgument
from turret_client.upload import SETUP, folder_files, pickled

FUSION = "adapter_fusion_config.json"


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


def convert(
    folder: Path,
    file: Path,
    backbone: Path | None = None,
    license_: str | None = None,
    card: Path | None = None,
    members: Mapping[str, str] | None = None,
) -> Converted:
    """Writes an adapter's folder as one package file, whole or not at all; pickles (.bin) are read here and nowhere else.

    backbone: folder or config.json of the model that the adapter is for, where the adapter's own files do not tell. A folder also
    gives the weights that a checkpoint of the original Compacter code is compared with.
    license_, card: put into the manifest in place of what the folder says; the card is a text file.
    members: of a fusion, which packages its members are, each pinned by digest.
    """
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is not a folder.")
    changes = {"license": license_, "card": _text(card) if card else None}
    with _store_errors(), tempfile.TemporaryDirectory(prefix="turret-") as temporary, AtomicFile(file) as target:
        source = _without_pickles(folder, Path(temporary))
        files = {path.name: path for path in folder_files(source)}
        imported = _store("importers").import_folder(files, _backbone(backbone), members=members, frozen=_frozen(backbone))
        manifest = _changed(imported.manifest, {key: value for key, value in changes.items() if value is not None})
        for chunk in _store("package").package_chunks(manifest, imported.tensors):
            target.write(chunk)
        target.commit()
    return Converted(inspect(file), _lines(imported.report), _lines(imported.warnings))


def several(folder: Path, members: Mapping[str, str] | None = None) -> bool:
    """Whether a folder cannot be one package without a server: a setup, or a fusion of whose members no digests are given."""
    if not folder.is_dir():
        return False
    return (folder / SETUP).is_file() or ((folder / FUSION).is_file() and not members)


def unpickle(folder: Path, target: Path) -> list[str]:
    """Writes a setup's or a fusion's folder as a new folder with safetensors in place of pickles; the names of its files."""
    if target.exists():
        raise InvalidArgument(f"{target} is there already: a folder of several packages is written as a new folder.")
    with _store_errors():
        pickles = _store("importers.pickles")
        if not pickles.pickles_of(folder):
            raise InvalidArgument(
                f"{folder} becomes several packages, or one that needs to know others, and holds no pickles: push it to a server."
            )
        with tempfile.TemporaryDirectory(prefix=".turret-", dir=target.absolute().parent) as temporary:
            whole = Path(temporary) / "folder"
            with warnings.catch_warnings(action="ignore"):  # torch's own remarks on old pickles
                written = pickles.bin_to_safetensors(folder, whole)
            names = sorted(path.relative_to(whole).as_posix() for path in written)
            whole.rename(target)
    return names


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
    if pickles.pickles_of(folder) or (pickled(folder) and not any(name.endswith(".safetensors") for name in names)):
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
    except FileNotFoundError:
        raise InvalidArgument(f"{path} is not a model's folder: it has no config.json.") from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise InvalidArgument(f"{file} does not tell a model's type, hidden size and number of layers.")
    with _store_errors():
        return _store("importers.backbones").backbone_of(config)


def _frozen(path: Path | None) -> Any:
    """The backbone's own tensors by name; None where its weights are not at hand."""
    if path is None or not path.is_dir() or not list(path.glob("*.safetensors")):
        return None
    return _store("importers.backbones").frozen_of(path)


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

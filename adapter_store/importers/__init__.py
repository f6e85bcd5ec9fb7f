"""Folders of other libraries as packages: a table of importers, tried in order. Knows no weights and no HTTP.

Importers read safetensors and JSON only; pickles are opened by `pickles.py`, offline, and nowhere else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.importers.adapterhub import import_adapterhub, is_adapterhub
from adapter_store.importers.adapterhub_fusion import fusion_members, import_fusion, is_fusion
from adapter_store.importers.adapterhub_setup import Step, import_setup, is_setup
from adapter_store.importers.compacter import import_compacter, is_compacter
from adapter_store.importers.folder import (
    EXAMPLES,
    Files,
    Frozen,
    ImportedPackage,
    Options,
    check_names,
    folder_files,
    listed,
    read_examples,
)
from adapter_store.importers.peft import import_peft, is_peft
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.package import package_chunks

__all__ = [
    "IMPORTERS",
    "Files",
    "Frozen",
    "Imported",
    "ImportedPackage",
    "Importer",
    "Options",
    "Step",
    "folder_files",
    "import_folder",
    "import_to_file",
    "needed_members",
    "setup_steps",
    "write_imported",
]


@dataclass(frozen=True, slots=True)
class Importer:
    """One format of folders: how it is recognised and read."""

    format: str
    detect: Callable[[Files], bool]
    load: Callable[[Files, Options], ImportedPackage]


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_to_file` wrote: the manifest, what was matched, and what to look at."""

    manifest: Manifest
    report: tuple[str, ...]
    warnings: tuple[str, ...]


def import_folder(
    files: Files, backbone: Backbone | None = None, *, members: Mapping[str, str] | None = None, frozen: Frozen | None = None
) -> ImportedPackage:
    """The files of one folder, by name, as a package for `backbone` (None: the one that the folder describes).

    An examples.json among them becomes the package's golden examples. Raises InvalidPackage, UnsupportedMethod and WrongBackbone.
    """
    check_names(files)
    examples = read_examples(files)
    files = {name: path for name, path in files.items() if name != EXAMPLES}
    for importer in IMPORTERS:
        if importer.detect(files):
            package = importer.load(files, Options(backbone, members, frozen))
            return replace(package, manifest=package.manifest.model_copy(update={"examples": examples}))
    raise InvalidPackage(
        f"The folder is not one that can be imported: found {listed(files) or 'nothing'}; expected adapter_config.json and "
        "adapter.safetensors, or head_config.json and model_head.safetensors, or both pairs (AdapterHub), or adapter_config.json and "
        "adapter_model.safetensors (PEFT)."
    )


def import_to_file(
    files: Files,
    backbone: Backbone | None,
    target: Path,
    *,
    members: Mapping[str, str] | None = None,
    frozen: Frozen | None = None,
) -> Imported:
    """`import_folder`, written as a package file to `target`, tensor by tensor."""
    package = import_folder(files, backbone, members=members, frozen=frozen)
    write_imported(package, target)
    return Imported(package.manifest, package.report, package.warnings)


def write_imported(package: ImportedPackage, target: Path) -> None:
    """Writes an imported package as a file, tensor by tensor; raises InvalidPackage."""
    chunks = package_chunks(package.manifest, package.tensors)
    with target.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


def needed_members(files: Files) -> tuple[str, ...]:
    """The members that a fusion folder wants to be told of in `members`, by the names of its config; of other folders none."""
    check_names(files)
    return fusion_members(files) if not is_setup(files) and is_fusion(files) else ()


def setup_steps(files: Files, backbone: Backbone | None, name: str) -> tuple[Step, ...] | None:
    """The packages of a setup folder, to be published as parts of `name` in this order; None for a folder that is no setup.

    Each step's `build` takes the pins ("name@sha256:...") of the names before it. Raises as `import_folder` does, and InvalidName.
    """
    check_names(files)
    if not is_setup(files):
        return None
    if EXAMPLES in files:
        raise UnsupportedMethod(f"{EXAMPLES} of a setup is not read: golden examples belong to one package.")
    return import_setup(files, backbone, name)


def _refuse_setup(files: Files, options: Options) -> ImportedPackage:
    raise UnsupportedMethod("This is a setup of several adapters, which become several packages: push its folder to a server.")


# The first row that recognises a folder reads it.
IMPORTERS: tuple[Importer, ...] = (
    Importer("adapterhub-setup", is_setup, _refuse_setup),
    Importer("peft", is_peft, import_peft),
    Importer("adapterhub-fusion", is_fusion, import_fusion),
    Importer("compacter", is_compacter, import_compacter),
    Importer("adapterhub", is_adapterhub, import_adapterhub),
)

"""Folders of other libraries as packages: a table of importers, tried in order. Knows no weights and no HTTP.

Importers read safetensors and JSON only; pickles are opened by `pickles.py`, offline, and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.importers.adapterhub import ADAPTER_CONFIG, import_adapterhub, is_adapterhub
from adapter_store.importers.folder import Files, ImportedPackage, check_names, folder_files, read_object
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.names import shown
from adapter_store.package import package_chunks

__all__ = ["IMPORTERS", "Files", "Imported", "ImportedPackage", "Importer", "folder_files", "import_folder", "import_to_file"]


@dataclass(frozen=True, slots=True)
class Importer:
    """One format of folders: how it is recognised and read."""

    format: str
    detect: Callable[[Files], bool]
    load: Callable[[Files, Backbone | None], ImportedPackage]


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_to_file` wrote: the manifest, what was matched, and what to look at."""

    manifest: Manifest
    report: tuple[str, ...]
    warnings: tuple[str, ...]


def import_folder(files: Files, backbone: Backbone | None = None) -> ImportedPackage:
    """The files of one folder, by name, as a package for `backbone` (None: the one that the folder describes).

    Raises InvalidPackage, UnsupportedMethod and WrongBackbone.
    """
    check_names(files)
    for importer in IMPORTERS:
        if importer.detect(files):
            return importer.load(files, backbone)
    found = ", ".join(shown(name, 60) for name in sorted(files)[:10]) or "nothing"
    raise InvalidPackage(
        f"The folder is not one that can be imported: found {found}; expected adapter_config.json and adapter.safetensors, "
        "or head_config.json and model_head.safetensors, or both pairs (AdapterHub)."
    )


def import_to_file(files: Files, backbone: Backbone | None, target: Path) -> Imported:
    """`import_folder`, written as a package file to `target`, tensor by tensor."""
    package = import_folder(files, backbone)
    chunks = package_chunks(package.manifest, package.tensors)
    with target.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
    return Imported(package.manifest, package.report, package.warnings)


def _is_peft(files: Files) -> bool:
    if "adapter_model.safetensors" in files or "adapter_model.bin" in files:
        return True
    return ADAPTER_CONFIG in files and "peft_type" in read_object(files, ADAPTER_CONFIG)


def _refuse_peft(files: Files, backbone: Backbone | None) -> NoReturn:
    kind = read_object(files, ADAPTER_CONFIG).get("peft_type") if ADAPTER_CONFIG in files else None
    raise UnsupportedMethod(f"This is a PEFT folder{f' (peft_type {shown(str(kind), 40)})' if kind else ''}; PEFT is not served yet.")


def _refusing(reason: str) -> Callable[[Files, Backbone | None], NoReturn]:
    def refuse(files: Files, backbone: Backbone | None) -> NoReturn:
        raise UnsupportedMethod(reason)

    return refuse


def _has(*names: str) -> Callable[[Files], bool]:
    return lambda files: any(name in files for name in names)


# The first row that recognises a folder reads it; rows for formats that are recognised but not served say so.
IMPORTERS: tuple[Importer, ...] = (
    Importer("peft", _is_peft, _refuse_peft),
    Importer(
        "adapterhub-setup",
        _has("adapter_setup.json"),
        _refusing("This is an AdapterHub setup of several adapters; push its folders one by one."),
    ),
    Importer(
        "adapterhub-fusion",
        _has("adapter_fusion_config.json", "model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"),
        _refusing("This is an AdapterFusion folder (adapter_fusion_config.json); fusions are not served yet."),
    ),
    Importer("adapterhub", is_adapterhub, import_adapterhub),
    Importer(
        "compacter",
        _has("training_config.json"),
        _refusing("This is a checkpoint of the original Compacter code, which is not served yet."),
    ),
)

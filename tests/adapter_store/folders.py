"""Folders as the libraries write them, for the tests of importers: golden ones, and small ones made on the spot."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file
from samples import check_sentence

from adapter_store.errors import StoreError
from adapter_store.importers import ImportedPackage, folder_files, import_folder
from adapter_store.importers.backbones import backbone_of
from adapter_store.methods import Backbone
from adapter_store.package import write_package

HIDDEN = 8
PIN = "sha256:" + "0" * 64


def load_folder(folder: Path, backbone: Backbone | None = None, **options: Any) -> ImportedPackage:
    return import_folder(folder_files(folder), backbone, **options)


def refused(folder: Path, kind: type[StoreError], *words: str, backbone: Backbone | None = None, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        load_folder(folder, backbone, **options)
    check_sentence(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def backbone_from(case: Path, **change: Any) -> Backbone:
    """What a golden case's backbone is, with changes."""
    config = json.loads((case / "backbone" / "config.json").read_text())
    return Backbone.model_validate(backbone_of(config).model_dump() | change)


def rename_tensors(path: Path, **renames: str) -> None:
    """Replaces parts of the tensors' names; `__` in a keyword stands for a dot."""
    contents = load_file(path)
    for old, new in renames.items():
        contents = {name.replace(old.replace("__", "."), new): value for name, value in contents.items()}
    save_file(contents, path)


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype("<f4")


def numbers(imported: ImportedPackage) -> dict[str, Any]:
    """The package's tensors as arrays; the package must be sound."""
    return load(write_package(imported.manifest, imported.tensors))


def write_adapter(
    folder: Path, model_type: str, config: Any, shapes: Mapping[str, tuple[int, ...]], version: str | None = "adapters.1.3.0", **more: Any
) -> dict[str, Any]:
    """An adapter named "x" for a model of hidden size 8; returns its tensors."""
    folder.mkdir(exist_ok=True)
    file = {"config": config, "hidden_size": HIDDEN, "model_type": model_type, "name": "x"} | more
    (folder / "adapter_config.json").write_text(json.dumps(file | ({"version": version} if version else {})))
    contents = {name: values(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    save_file(contents, folder / "adapter.safetensors")
    return contents


def write_peft(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A PEFT folder; returns its tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    contents = {name: values(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    save_file(contents, folder / "adapter_model.safetensors")
    return contents

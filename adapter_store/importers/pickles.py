"""Pickled weights (*.bin) of a folder -> safetensors, offline: the only place that opens a pickle, and only with `weights_only`.

Never called by a server. Imports torch inside its function, so that the rest of the store needs none.
"""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_store.errors import InvalidPackage
from adapter_store.importers.compacter import PICKLE, TRAINING, WEIGHTS
from adapter_store.importers.folder import SETUP
from adapter_store.names import shown

# The library's names for the same weights, pickled and as safetensors.
STANDARD_NAMES = {
    "pytorch_adapter.bin": "adapter.safetensors",
    "pytorch_model_head.bin": "model_head.safetensors",
    "pytorch_model_adapter_fusion.bin": "model_adapter_fusion.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
}
_COPIED = (".json", ".md", ".safetensors")


def pickles_of(folder: Path) -> dict[Path, str]:
    """The pickles of a folder, and of the folders of a setup, that have no safetensors beside them, each with the name of its twin.

    A whole model's is one of them only where it is a checkpoint of the original Compacter code.
    """
    names = STANDARD_NAMES | ({PICKLE: WEIGHTS} if (folder / TRAINING).is_file() else {})
    return {
        path: names[path.name]
        for inner in (folder, *inner_folders(folder))
        for path in sorted(inner.iterdir())
        if path.name in names and not (inner / names[path.name]).exists()
    }


def inner_folders(folder: Path) -> list[Path]:
    """The folders in a setup; in other folders none that matters."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir()] if (folder / SETUP).is_file() else []


def bin_to_safetensors(folder: Path, target: Path) -> list[Path]:
    """Writes each pickle of `folder` to `target` as safetensors, copies its JSON, cards and safetensors; returns what it wrote.

    The folders of a setup are written too. Weights that are there as safetensors already are taken as they are. Tensors that share
    memory are written once each. Raises InvalidPackage for a pickle that is more than tensors.
    """
    pickles = pickles_of(folder)
    if not pickles:
        raise InvalidPackage(f"The folder {shown(str(folder))} has no weights to convert: expected {' or '.join(STANDARD_NAMES)}.")
    written: list[Path] = []
    for inner in (folder, *inner_folders(folder)):
        there = target / inner.relative_to(folder)
        there.mkdir(parents=True, exist_ok=True)
        for path in sorted(inner.iterdir()):
            if path.is_file() and path.suffix in _COPIED:
                written.append(there / path.name)
                if there.resolve() != inner.resolve():
                    shutil.copyfile(path, there / path.name)
    for path, name in pickles.items():
        written.append(target / path.parent.relative_to(folder) / name)
        _convert(path, written[-1])
    return written


def _convert(source: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file

    try:
        with warnings.catch_warnings(action="ignore"):  # torch's remarks on old pickles
            state: Any = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is none fails in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidPackage(f"{source.name} was refused: it is not a plain file of tensors ({reason[:200]}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise InvalidPackage(f"{source.name} was refused: it must hold tensors by their names, and nothing else.")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target)

"""Pickled weights (*.bin) of a folder -> safetensors, offline: the only place that opens a pickle, and only with `weights_only`.

Never called by a server. Imports torch inside its function, so that the rest of the store needs none.
"""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_store.errors import InvalidPackage
from adapter_store.names import shown

# The library's names for the same weights, pickled and as safetensors.
STANDARD_NAMES = {
    "pytorch_adapter.bin": "adapter.safetensors",
    "pytorch_model_head.bin": "model_head.safetensors",
    "pytorch_model_adapter_fusion.bin": "model_adapter_fusion.safetensors",
    "adapter_model.bin": "adapter_model.safetensors",
}
_COPIED = (".json", ".md", ".safetensors")


def bin_to_safetensors(folder: Path, target: Path) -> list[Path]:
    """Writes each pickle of `folder` to `target` as safetensors, copies its JSON, cards and safetensors; returns what it wrote.

    Weights that are there as safetensors already are taken as they are. Tensors that share memory are written once each.
    Raises InvalidPackage for a pickle that is more than tensors.
    """
    pickles = [
        path for path in sorted(folder.iterdir()) if path.name in STANDARD_NAMES and not (folder / STANDARD_NAMES[path.name]).exists()
    ]
    if not pickles:
        raise InvalidPackage(f"The folder {shown(str(folder))} has no weights to convert: expected {' or '.join(STANDARD_NAMES)}.")
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _COPIED:
            written.append(target / path.name)
            if target.resolve() != folder.resolve():
                shutil.copyfile(path, target / path.name)
    for path in pickles:
        written.append(target / STANDARD_NAMES[path.name])
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

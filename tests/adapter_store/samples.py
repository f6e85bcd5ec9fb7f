"""Small packages built on the spot, and broken ones."""

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck, Shape
from adapter_store.package import TensorData, write_package

BACKBONE = Backbone(model_type="bert", hidden_size=8, num_layers=2)
MANIFEST = Manifest(
    name="spam",
    methods={"bottleneck": Bottleneck(reduction_factor=4)},
    head=Head(type="classification", labels=("ham", "spam")),
    backbone=BACKBONE,
    license="mit",
)


def tensor(shape: Shape, dtype: str = "F32", seed: int = 0) -> TensorData:
    """Random finite values."""
    values = np.random.default_rng(seed).normal(size=shape).astype("<f4")
    if dtype == "F32":
        data = values.tobytes()
    elif dtype == "F16":
        data = values.astype("<f2").tobytes()
    else:
        data = (values.view("<u4") >> 16).astype("<u2").tobytes()
    return TensorData(dtype, shape, data)


def tensors(manifest: Manifest = MANIFEST, dtype: str = "F32", seed: int = 0) -> dict[str, TensorData]:
    return {name: tensor(shape, dtype, seed + i) for i, (name, shape) in enumerate(manifest.tensors().items())}


def package(manifest: Manifest = MANIFEST, dtype: str = "F32", seed: int = 0) -> bytes:
    return write_package(manifest, tensors(manifest, dtype, seed))


def package_file(folder: Path, seed: int = 0, manifest: Manifest = MANIFEST) -> Path:
    path = folder / f"package-{seed}.safetensors"
    path.write_bytes(package(manifest, seed=seed))
    return path


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A file's header as JSON, and its tensors' bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Mapping[str, Any] | str, body: bytes) -> bytes:
    """A file of any header, sound or not."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + body


def write_safetensors(path: Path, contents: Mapping[str, TensorData]) -> None:
    """A safetensors file as other libraries write it."""
    header: dict[str, Any] = {}
    body = b""
    for name, item in contents.items():
        header[name] = {"dtype": item.dtype, "shape": list(item.shape), "data_offsets": [len(body), len(body) + len(item.data)]}
        body += bytes(item.data)
    path.write_bytes(join(header, body))


def copy_folder(source: Path, target: Path) -> Path:
    """A folder of fixtures that a test may change."""
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    """Sets top-level keys; a value of `...` removes the key; a dict is merged into the object that is there."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is ...:
            value.pop(key, None)
        elif isinstance(change, dict) and isinstance(value.get(key), dict):
            value[key] |= change
        else:
            value[key] = change
    path.write_text(json.dumps(value))


def check_sentence(error: Exception) -> None:
    """What every error of the store must be: one line, not blown up by its cause."""
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 1500

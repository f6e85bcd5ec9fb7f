"""One package = one safetensors file whose `__metadata__["turret"]` is its manifest. Writes them and checks them whole.

Opening reads the file once, in chunks, so memory stays flat: header, manifest, shape law, finite values and sha256 in one pass.
Knows the manifest and the container; knows neither the store nor where files come from.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, StoreError, WrongBackbone, fault
from adapter_store.limits import Limits
from adapter_store.manifest import METADATA_KEY, Manifest
from adapter_store.methods import Backbone, Shape
from adapter_store.names import one_line, shown
from adapter_store.tensorfile import (
    ITEMSIZE,
    Header,
    TensorData,
    TensorInfo,
    check_values,
    file_chunks,
    parse_json,
    read_exactly,
    read_header,
)

__all__ = [
    "MAX_SIZE",
    "Package",
    "TensorData",
    "TensorInfo",
    "check_backbone",
    "open_package",
    "package_chunks",
    "read_manifest",
    "read_package",
    "write_package",
]

DEFAULT = Limits()
MAX_SIZE = DEFAULT.max_bytes
MAX_MANIFEST = DEFAULT.max_manifest
MAX_MANIFEST_VALUES = 1 << 17
_MAX_FAULTS = 1000  # more are only counted: each costs half a KB to describe
_CHUNK = 1 << 20
_WHAT = "The package"

# dtype -> unsigned integers of its width and the bits of its exponent: all of them set means infinity or NaN.
_EXPONENT: dict[str, tuple[str, int]] = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


@dataclass(frozen=True, slots=True)
class Package:
    """A checked package: what its manifest says, and the index of its tensors. `size` is in bytes."""

    manifest: Manifest
    digest: str
    size: int
    parameters: int
    tensors: Mapping[str, TensorInfo]


def write_package(manifest: Manifest, tensors: Mapping[str, TensorData]) -> bytes:
    """The bytes of a package file; equal content gives equal bytes, hence an equal digest. Raises InvalidPackage."""
    return b"".join(package_chunks(manifest, tensors))


def package_chunks(manifest: Manifest, tensors: Mapping[str, TensorData]) -> Iterator[bytes | memoryview]:
    """The same bytes piece by piece, for writing files without holding them. Checks before it yields."""
    for name, tensor in tensors.items():
        if tensor.dtype not in ITEMSIZE:
            raise InvalidPackage(f"The tensor {shown(name)} has the dtype {shown(tensor.dtype)}: only {', '.join(ITEMSIZE)} are allowed.")
        expected = int(np.prod(tensor.shape, dtype=np.int64)) * ITEMSIZE[tensor.dtype]
        if memoryview(tensor.data).nbytes != expected:
            raise InvalidPackage(f"The tensor {shown(name)} has {memoryview(tensor.data).nbytes} bytes instead of {expected}.")
    _check_shape_law(manifest, {name: tensor.shape for name, tensor in tensors.items()})
    text = manifest.to_json()
    _check_manifest_size(text)
    return file_chunks({METADATA_KEY: text}, tensors)


def open_package(path: Path, max_size: int = MAX_SIZE, limits: Limits | None = None) -> Package:
    """Checks a package file in one pass; raises InvalidPackage (or OSError where the file cannot be read).

    `max_size` is in bytes; of it and `limits.max_bytes` the smaller holds.
    """
    with path.open("rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size, max_size, limits or DEFAULT)


def read_package(data: bytes, max_size: int = MAX_SIZE, limits: Limits | None = None) -> Package:
    """`open_package` for bytes in memory."""
    return _read(io.BytesIO(data), len(data), max_size, limits or DEFAULT)


def read_manifest(path: Path) -> Manifest:
    """The manifest alone, from the header of a file that has been checked before (one that is in the store)."""
    with path.open("rb") as file:
        return _manifest(read_header(file, os.fstat(file.fileno()).st_size, _WHAT))


def check_backbone(manifest: Manifest, backbone: Backbone) -> None:
    """Raises WrongBackbone unless the package was made for `backbone`: equal type and dimensions, and fingerprints if both are known."""
    made_for = manifest.backbone
    fields = {
        "model_type": "model type",
        "hidden_size": "hidden size",
        "num_layers": "number of layers",
        "decoder_layers": "number of decoder layers",
        "embeddings": "embedding size",
    }
    for field, word in fields.items():
        wanted, here = getattr(made_for, field), getattr(backbone, field)
        if wanted != here:
            raise WrongBackbone(
                f"The package was made for a backbone with the {word} {shown(str(wanted))}, but the backbone{_named(backbone)} "
                f"it is checked against has {shown(str(here))}."
            )
    for name, dimensions in made_for.linears.items():
        if backbone.linears and name not in backbone.linears:
            raise WrongBackbone(f"The package was made for a backbone with a linear '{name}', and the backbone{_named(backbone)} has none.")
        if backbone.linears.get(name, dimensions) != dimensions:
            raise WrongBackbone(
                f"The package was made for a backbone whose '{name}' goes from {dimensions[0]} to {dimensions[1]}, but that of the "
                f"backbone{_named(backbone)} goes from {backbone.linears[name][0]} to {backbone.linears[name][1]}."
            )
    if made_for.fingerprint and backbone.fingerprint and made_for.fingerprint != backbone.fingerprint:
        raise WrongBackbone(
            f"The package was made for a backbone{_named(made_for)} with the fingerprint {made_for.fingerprint}, but the "
            f"backbone{_named(backbone)} it is checked against has {backbone.fingerprint}: same shape, other weights."
        )


def _named(backbone: Backbone) -> str:
    return f" {shown(backbone.name)}" if backbone.name else ""


class _Hashing:
    """A reader that hashes what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        return data


def _read(file: BinaryIO, size: int, max_size: int, limits: Limits = DEFAULT) -> Package:
    if size > min(max_size, limits.max_bytes):
        raise InvalidPackage(f"{_WHAT} has {size} bytes; at most {min(max_size, limits.max_bytes)} are allowed.")
    stream = _Hashing(file)
    header = read_header(stream, size, _WHAT, limits.max_header, limits.max_tensors)
    manifest = _manifest(header, limits.max_manifest)
    _check_shape_law(manifest, {name: info.shape for name, info in header.tensors.items()})
    limits.check(manifest)
    for name, info in header.tensors.items():
        _check_finite(stream, name, info)
    if file.read(1):
        raise InvalidPackage(f"{_WHAT} grew while it was read: publish a file that nobody is writing to.")
    parameters = sum(info.parameters for info in header.tensors.values())
    return Package(manifest, f"sha256:{stream.sha256.hexdigest()}", size, parameters, header.tensors)


def _manifest(header: Header, max_manifest: int = MAX_MANIFEST) -> Manifest:
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        raise InvalidPackage(f"{_WHAT} has no manifest: its safetensors __metadata__ lacks the key '{METADATA_KEY}'.")
    _check_manifest_size(text, max_manifest)
    fields = parse_json(text, "The manifest")
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise InvalidPackage(f"The manifest is not valid: {sentence(error)}") from None
    except (ValueError, OverflowError, StoreError) as error:
        raise InvalidPackage(f"The manifest is not valid: {one_line(str(error), 400)}") from None


def sentence(error: ValidationError) -> str:
    """The first fault of a ValidationError as one sentence that names the field; of very many their number alone."""
    count = error.error_count()
    if count > _MAX_FAULTS:
        return f"{count} of its values are missing, unknown or not of the kind that they must be."
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(map(str, first["loc"]))
    message = one_line(fault(first), 400).rstrip(".")
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"{f'{shown(field)}: ' if field else ''}{message}{more}."


def _check_manifest_size(text: str, limit: int = MAX_MANIFEST) -> None:
    if len(text) > limit:
        raise InvalidPackage(f"The manifest has {len(text)} characters; at most {limit} are allowed: shorten its card, labels or examples.")
    check_values(text, "The manifest", MAX_MANIFEST_VALUES)


def _check_shape_law(manifest: Manifest, shapes: Mapping[str, Shape]) -> None:
    """The tensors must be exactly those that the manifest promises."""
    try:
        # A law is only worked out where the file can hold what it demands, so a boastful manifest costs nothing.
        least = sum(method.least(manifest.backbone) for method in manifest.methods.values())
        if least > len(shapes):
            raise InvalidPackage(f"The manifest promises at least {least} tensors, but the package holds only {len(shapes)}.")
        expected = manifest.tensors()
    except ValueError as error:
        raise InvalidPackage(f"The manifest does not hold together: {error}.") from None
    missing = sorted(expected.keys() - shapes.keys())
    if missing:
        raise InvalidPackage(f"{_WHAT} lacks the tensor '{missing[0]}' that its manifest promises{_others(missing)}.")
    unexpected = sorted(shapes.keys() - expected.keys())
    if unexpected:
        raise InvalidPackage(f"{_WHAT} holds the tensor {shown(unexpected[0])}, which its manifest does not promise{_others(unexpected)}.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise InvalidPackage(f"The tensor '{name}' has the shape {list(shapes[name])}; its manifest promises {list(shape)}.")


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_finite(stream: _Hashing, name: str, info: TensorInfo) -> None:
    dtype, exponent = _EXPONENT[info.dtype]
    left = info.end - info.start
    while left:
        data = read_exactly(stream, min(left, _CHUNK), _WHAT)
        left -= len(data)
        bits: npt.NDArray[np.unsignedinteger] = np.frombuffer(data, dtype=dtype)
        if bool(((bits & exponent) == exponent).any()):
            raise InvalidPackage(f"The tensor '{name}' holds a value that is not finite (infinity or NaN).")

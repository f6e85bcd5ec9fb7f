"""A package staged on the host: all of its tensors in one piece of memory, as the device wants them, so that it moves there in one copy.

A bottleneck that has a place in a bank lies in front, laid out as a slot of it (`bank.BankShape`). What a package takes is known
from its manifest alone: `measured` stages tensors that have shapes and no memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapter_store.manifest import Manifest
from server.engine.bank import BankShape, InSlot, aligned
from server.engine.loader import LoadedPackage, package_of

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A package whose tensors are views of `buffer` [numbers]. `shape` is that of its bottleneck's bank, None where it has none."""

    buffer: Tensor
    package: LoadedPackage
    shape: BankShape | None

    @property
    def nbytes(self) -> int:
        """Bytes that the package takes on the device, and on the host where that is not pinned."""
        return self.buffer.numel() * self.buffer.element_size()

    @property
    def host_bytes(self) -> int:
        """Bytes on the host: pinned memory comes in powers of two."""
        return host_bytes(self.nbytes, self.buffer.device.type == "cpu" and self.buffer.is_pinned())

    @property
    def slot(self) -> Tensor | None:
        """The bottleneck as its bank keeps it."""
        return None if self.shape is None else self.buffer[: self.shape.numel]

    def moved(self, buffer: Tensor) -> "Staged":
        """The package in a copy of its buffer."""

        def moved(tensor: Tensor) -> Tensor:
            mine = tensor.untyped_storage().data_ptr() == self.buffer.untyped_storage().data_ptr()
            return buffer.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()) if mine else tensor

        package = mapped(self.package, moved)
        if self.shape is not None and package.bottleneck is not None:
            package = replace(package, bottleneck=(package.bottleneck[0], InSlot(self.shape, buffer[: self.shape.numel])))
        return Staged(buffer, package, self.shape)


def stage(
    package: LoadedPackage,
    dtype: torch.dtype,
    banked: bool = True,
    pinned: bool = False,
    shared: Tensor | None = None,
    device: torch.device = CPU,
) -> Staged:
    """Copies a package's tensors into one piece of memory. `shared` is a tensor of the backbone that it may hold and need not bring."""
    bottleneck = package.bottleneck
    shape = BankShape.of(*bottleneck) if banked and bottleneck is not None else None
    rest = package if shape is None else replace(package, bottleneck=None)
    places: dict[int, tuple[int, Tensor]] = {}
    size = 0 if shape is None else shape.numel

    def place(tensor: Tensor) -> Tensor:
        nonlocal size
        if tensor is not shared and id(tensor) not in places:
            places[id(tensor)] = size, tensor
            size += aligned(tensor.numel())
        return tensor

    mapped(rest, place)
    buffer = torch.empty(size, dtype=dtype, device=device, pin_memory=pinned)
    for start, tensor in places.values():
        buffer[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)

    def placed(tensor: Tensor) -> Tensor:
        if tensor is shared:
            return tensor
        start, _ = places[id(tensor)]
        return buffer[start : start + tensor.numel()].view(tensor.shape)

    staged = mapped(rest, placed)
    if shape is not None and bottleneck is not None:
        slot = buffer[: shape.numel]
        shape.lay_out(*bottleneck, slot)
        config = bottleneck[0].model_copy(update={"scaling": 1.0})  # the scaling is in the weights now
        staged = replace(staged, bottleneck=(config, InSlot(shape, slot)))
    return Staged(buffer, staged, shape)


def measured(manifest: Manifest, dtype: torch.dtype, banked: bool = True) -> int:
    """Bytes of a package on the device. One whose head turns out to be the backbone's own takes less."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in manifest.tensors().items()}
    return stage(package_of(manifest, tensors), dtype, banked, device=torch.device("meta")).nbytes


def host_bytes(nbytes: int, pinned: bool) -> int:
    """What `nbytes` take on the host: pinned memory comes in powers of two."""
    return 1 << (nbytes - 1).bit_length() if pinned and nbytes else nbytes


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value of dataclasses, dicts and tuples with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(one, change) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(mapped(one, change) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: mapped(getattr(value, field.name), change) for field in fields(value)})
    return value

"""Tensors as numbers of a known width, cut and put together without arithmetic: any dtype stays what it is, bit by bit."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adapter_store.methods import Shape
from adapter_store.tensorfile import ITEMSIZE, TensorData

Bits = npt.NDArray[np.unsignedinteger]

# The bits of 1.0.
_ONE = {"F32": 0x3F800000, "F16": 0x3C00, "BF16": 0x3F80}


def bits(tensor: TensorData) -> Bits:
    """The tensor's numbers as unsigned integers of their width, in its shape."""
    return np.frombuffer(tensor.data, dtype=f"<u{ITEMSIZE[tensor.dtype]}").reshape(tensor.shape)


def tensor_of(array: Bits, dtype: str) -> TensorData:
    """The inverse of `bits`."""
    return TensorData(dtype, array.shape, array.tobytes())


def reshaped(tensor: TensorData, shape: Shape) -> TensorData:
    """The same numbers in another shape of as many."""
    return TensorData(tensor.dtype, shape, tensor.data)


def equal(one: TensorData, other: TensorData) -> bool:
    """Whether two tensors are the same, bit by bit."""
    return one.dtype == other.dtype and one.shape == other.shape and bytes(one.data) == bytes(other.data)


def ones(shape: Shape, dtype: str) -> TensorData:
    """A tensor of ones."""
    return tensor_of(np.full(shape, _ONE[dtype], dtype=f"<u{ITEMSIZE[dtype]}"), dtype)


def thirds(blocks: Sequence[TensorData | None], like: TensorData, fill: float = 0.0) -> TensorData:
    """Three blocks of rows, each as tall as `like`, one above the other; None is a block of `fill`, 0 or 1."""
    empty = np.full(like.shape, _ONE[like.dtype] if fill else 0, dtype=f"<u{ITEMSIZE[like.dtype]}")
    return tensor_of(np.concatenate([empty if block is None else bits(block) for block in blocks]), like.dtype)


def split_rows(tensor: TensorData, count: int) -> list[TensorData]:
    """The tensor cut into `count` blocks of rows, which must divide it."""
    return [tensor_of(np.ascontiguousarray(block), tensor.dtype) for block in np.split(bits(tensor), count)]


def diagonal_thirds(blocks: Sequence[TensorData | None], rank: int) -> TensorData:
    """B of a fused LoRA: block j [out, r] of those given lies in the rows of its third and the j-th columns, zeros elsewhere."""
    given = [block for block in blocks if block is not None]
    height = given[0].shape[0]
    whole = np.zeros((3 * height, rank * len(given)), dtype=f"<u{ITEMSIZE[given[0].dtype]}")
    column = 0
    for third, block in enumerate(blocks):
        if block is not None:
            whole[third * height : (third + 1) * height, column : column + rank] = bits(block)
            column += rank
    return tensor_of(whole, given[0].dtype)


def opened(bias: TensorData, closed: Sequence[bool]) -> TensorData:
    """The biases of gates, 64 in place of those of `closed`: a sigmoid that is 1 in every dtype."""
    values = bits(bias).copy()
    values[list(closed)] = {"F32": 0x42800000, "F16": 0x5400, "BF16": 0x4280}[bias.dtype]
    return tensor_of(values, bias.dtype)


def same_numbers(one: TensorData, other: TensorData) -> bool:
    """Whether two tensors hold the same numbers, whatever their dtypes."""
    return one.shape == other.shape and (equal(one, other) if one.dtype == other.dtype else np.array_equal(_floats(one), _floats(other)))


def _floats(tensor: TensorData) -> npt.NDArray[np.float32]:
    raw = bits(tensor)
    if tensor.dtype == "BF16":
        return (raw.astype("<u4") << 16).view("<f4")
    return raw.view("<f2" if tensor.dtype == "F16" else "<f4").astype("<f4")

"""The safetensors container, read defensively and written deterministically. Knows no manifest, no method and no numpy.

    u64 little-endian N | N bytes of JSON: {name: {dtype, shape, data_offsets}, "__metadata__": {str: str}} | the tensors' bytes

Format: https://github.com/huggingface/safetensors#format. Everything in a header is checked against the size of the file before
anything of that size is allocated.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, Protocol

from adapter_store.errors import InvalidPackage
from adapter_store.methods import Shape
from adapter_store.names import one_line, shown

ITEMSIZE = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER = 16 << 20
MAX_TENSORS = 32768
MAX_VALUES = 1 << 19  # of one JSON text: a value of three characters can cost two hundred bytes of memory
MAX_DIMENSIONS = 8
MAX_DIMENSION = 1 << 32
MAX_DIGITS = 40  # of an integer, so that it fits a float
MAX_NESTING = 64
_ALIGNMENT = 8
_TENSOR_NAME = re.compile(r"[\x20-\x7e]{1,512}")


class Reader(Protocol):
    """What is read from: the one method of a binary file that is needed."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TensorData:
    """One tensor to write: its safetensors dtype ("F32", "F16" or "BF16"), shape and little-endian bytes."""

    dtype: str
    shape: Shape
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: bytes `start` to `end`, counted from the start of the file."""

    dtype: str
    shape: Shape
    start: int
    end: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: the tensors in the order of their bytes, which fill the file from `data_start` to its end."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    data_start: int


def parse_json(text: str | bytes, what: str, max_values: int = MAX_VALUES) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, bounded nesting and number of values; raises InvalidPackage naming `what`."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        check_values(decoded, what, max_values)
        value = json.loads(decoded, **_HOOKS)
        if _deeper_than(value, MAX_NESTING):
            raise RecursionError
        return value
    except RecursionError:
        raise InvalidPackage(f"{what} is not sound JSON: it is nested more than {MAX_NESTING} levels deep.") from None
    except ValueError as error:
        raise InvalidPackage(f"{what} is not sound JSON: {one_line(str(error), 200)}.") from None


def check_values(text: str, what: str, max_values: int) -> None:
    """Raises InvalidPackage for JSON of too many values: counted before they are made, as the marks before and between them."""
    marks = sum(map(text.count, ",[{"))
    if marks > max_values:
        raise InvalidPackage(f"{what} has {marks} commas and brackets; at most {max_values} are allowed, so that it can be read.")


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        inner = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in inner if isinstance(item, dict | list)]
    return bool(level)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} appears twice")
        result[key] = value
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{shown(text, 24)} is too large a number")
    return number


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{shown(text, 24)} is a number of more than {MAX_DIGITS} digits")
    return int(text)


_HOOKS: dict[str, Any] = {"object_pairs_hook": _object, "parse_constant": _no_constant, "parse_float": _float, "parse_int": _int}


def read_header(stream: Reader, size: int, what: str, max_header: int = MAX_HEADER, max_tensors: int = MAX_TENSORS) -> Header:
    """Reads and checks the header of a file of `size` bytes, leaving `stream` at the first tensor; raises InvalidPackage."""
    if size < 8:
        raise InvalidPackage(f"{what} has {size} bytes, too few for a safetensors file.")
    (length,) = struct.unpack("<Q", read_exactly(stream, 8, what))
    if length > size - 8:
        raise InvalidPackage(
            f"{what} announces a header of {length} bytes, but only {size - 8} bytes follow: is it a whole safetensors file?"
        )
    if length > max_header:
        raise InvalidPackage(f"{what} has a header of {length} bytes; at most {max_header} are allowed.")
    entries = parse_json(read_exactly(stream, length, what), f"{what}'s header")
    if not isinstance(entries, dict):
        raise InvalidPackage(f"{what}'s header is not a JSON object.")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidPackage(f"{what}'s __metadata__ must map strings to strings.")
    if len(entries) > max_tensors:
        raise InvalidPackage(f"{what} names {len(entries)} tensors; at most {max_tensors} are allowed.")
    tensors = {name: _tensor(name, entry, what) for name, entry in entries.items()}
    return Header(metadata, _placed(tensors, 8 + length, size, what), 8 + length)


def _tensor(name: str, entry: Any, what: str) -> TensorInfo:
    """One entry of the header, with offsets still counted from the start of the data."""
    if not _TENSOR_NAME.fullmatch(name):
        raise InvalidPackage(f"{what} names a tensor {shown(name)}: names must be 1 to 512 printable ASCII characters.")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidPackage(f"{what} must give the tensor {shown(name)} exactly a dtype, a shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise InvalidPackage(f"{what} holds the tensor {shown(name)} as {shown(str(dtype))}: only {', '.join(ITEMSIZE)} are allowed.")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS or any(dimension > MAX_DIMENSION for dimension in shape):
        raise InvalidPackage(f"{what} gives the tensor {shown(name)} a shape that is not a short list of sizes.")
    if not _naturals(offsets) or len(offsets) != 2:
        raise InvalidPackage(f"{what} gives the tensor {shown(name)} data_offsets that are not a pair of positions.")
    start, end = offsets
    if end - start != prod(shape) * ITEMSIZE[dtype]:
        raise InvalidPackage(
            f"{what} gives the tensor {shown(name)} of shape {shape} and dtype {dtype} {shown(str(end - start), 24)} bytes "
            f"instead of {prod(shape) * ITEMSIZE[dtype]}."
        )
    return TensorInfo(dtype, tuple(shape), start, end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _placed(tensors: dict[str, TensorInfo], data_start: int, size: int, what: str) -> dict[str, TensorInfo]:
    """The tensors in the order of their bytes; they must fill the data exactly, without gaps or overlaps."""
    placed: dict[str, TensorInfo] = {}
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end, item[0])):
        if info.start != position:
            raise InvalidPackage(f"{what} does not place the tensor {shown(name)} where the one before it ends.")
        position = info.end
        placed[name] = TensorInfo(info.dtype, info.shape, data_start + info.start, data_start + info.end)
    if data_start + position != size:
        raise InvalidPackage(f"{what} has {size} bytes, but its header describes {data_start + position}: is it cut off or changed?")
    return placed


def read_exactly(stream: Reader, count: int, what: str) -> bytes:
    """`count` bytes, or InvalidPackage if the file ends before."""
    data = stream.read(count)
    if len(data) != count:
        raise InvalidPackage(f"{what} ended {count - len(data)} bytes too early: is it cut off?")
    return data


def file_chunks(metadata: Mapping[str, str], tensors: Mapping[str, TensorData]) -> Iterator[bytes | memoryview]:
    """The bytes of a file, header first. Equal arguments give equal bytes: wide dtypes first (so that all are aligned), then by name."""
    order = sorted(tensors, key=lambda name: (-ITEMSIZE[tensors[name].dtype], name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + prod(tensor.shape) * ITEMSIZE[tensor.dtype]
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    if len(header) > MAX_HEADER:
        raise InvalidPackage(f"The package's header would have {len(header)} bytes; at most {MAX_HEADER} are allowed.")
    yield struct.pack("<Q", len(header)) + header
    for name in order:
        yield tensors[name].data

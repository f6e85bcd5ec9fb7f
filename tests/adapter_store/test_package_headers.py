"""Headers of package files, and the values of their tensors: whatever they hold, they are read or refused with one sentence."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from broken import GOOD, refused, with_entry, with_manifest
from samples import MANIFEST, join, split, tensors

from adapter_store.package import TensorData, write_package


@pytest.mark.parametrize(
    "header",
    ["", "{", "[]", "null", "1", '"x"', "nan", "{\xff}", '{"a": NaN}', '{"a": Infinity}', "[" * 100_000, '{"a":' * 100_000,
     '{"__metadata__": []}', '{"__metadata__": {"turret": 1}}', '{"__metadata__": {"turret": {}}}', '{"x": {"shape": ' + "9" * 5000 + "}}"],
)  # fmt: skip
def test_unsound_headers(header: str) -> None:
    refused(join(header, b""))
    data = header.encode("latin-1")
    refused(struct.pack("<Q", len(data)) + data)


def test_duplicate_keys() -> None:
    header, body = split(GOOD)
    text = json.dumps(header)
    refused(join(text[:-1] + ', "head.0.bias": ' + json.dumps(header["head.0.bias"]) + "}", body), "head.0.bias", "twice")
    refused(join('{"__metadata__": {}, ' + text[1:], body), "twice")
    refused(with_manifest('{"format": "turret/1", "format": "turret/1"}'), "twice")


def test_many_duplicate_keys() -> None:
    refused(join("{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"0":0}', b""), "twice")


@pytest.mark.parametrize("dtype", ["I64", "F64", "F8_E4M3", "F8_E5M2", "U8", "BOOL", "f32", "", None, 1, [], {}])
def test_dtypes(dtype: Any) -> None:
    refused(with_entry("head.0.bias", dtype=dtype), "head.0.bias")


@pytest.mark.parametrize(
    "shape", [[3], [2, 1], [], [-2], [2.0], ["2"], [True, 2], None, 2, {}, [0], [2**62, 2**62], [2**31, 0], [1] * 9, [[2]], [10**39]]
)
def test_shapes(shape: Any) -> None:
    refused(with_entry("head.0.bias", shape=shape), "head.0.bias")


@pytest.mark.parametrize(
    "offsets", [[0], [0, 8, 8], None, "08", [8, 0], [-8, 0], [0.0, 8.0], [2**63, 2**63 + 8], [10**39, 10**39 + 8], [True, 8]]
)
def test_offsets(offsets: Any) -> None:
    refused(with_entry("head.0.bias", data_offsets=offsets), "head.0.")


def test_overlap_and_gap() -> None:
    header, body = split(GOOD)
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    start, end = header[last]["data_offsets"]
    refused(with_entry(last, data_offsets=[start - 4, end - 4]))
    moved = {**header, last: header[last] | {"data_offsets": [start + 4, end + 4]}}
    refused(join(moved, body + b"\0\0\0\0"), last)
    same = {**header, "head.0.bias": header["head.0.bias"] | {"data_offsets": [0, 8]}}
    refused(join(same, body))


@pytest.mark.parametrize(
    "entry", [{}, [], None, 1, "x", {"dtype": "F32"}, {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "more": 1}]
)
def test_entries(entry: Any) -> None:
    header, body = split(GOOD)
    refused(join(header | {"head.0.bias": entry}, body), "head.0.bias")


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "/etc/passwd", "a\0b", "a\nb", "ä", "x" * 513, "\ud800", "head.0.bias "])
def test_tensor_names(name: str) -> None:
    header, body = split(GOOD)
    header[name] = header.pop("head.0.bias")
    refused(join(header, body))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_values_that_are_not_finite(dtype: str, value: float, place: int) -> None:
    contents = tensors(dtype=dtype)
    name = "bottleneck.layers.1.output.up.weight"
    bits = np.array([value], "<f4")
    item = {"F32": bits.tobytes(), "F16": bits.astype("<f2").tobytes(), "BF16": (bits.view("<u4") >> 16).astype("<u2").tobytes()}[dtype]
    data = bytearray(contents[name].data)
    if place == 0:
        data[: len(item)] = item
    else:
        data[-len(item) :] = item
    contents[name] = TensorData(dtype, contents[name].shape, bytes(data))
    refused(write_package(MANIFEST, contents), name, "finite")

"""The good package for tiny's backbone, and ways to break its header and its numbers, as tables: a name and the bytes."""

import json
import struct
from typing import Any

import numpy as np
import tiny

from adapter_store.errors import StoreError
from adapter_store.package import read_package

Table = dict[str, bytes]

GOOD = tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("ham", "spam", "odd"), 1)
HEADER = 8 + struct.unpack("<Q", GOOD[:8])[0]
BODY = GOOD[HEADER:]
BIAS = "head.1.bias"
MILLIONS = 16 << 20


def header() -> dict[str, Any]:
    """The good header, to be changed."""
    entries: dict[str, Any] = json.loads(GOOD[8:HEADER])
    return entries


def manifest() -> dict[str, Any]:
    """The good manifest, to be changed."""
    fields: dict[str, Any] = json.loads(header()["__metadata__"]["turret"])
    return fields


def raw(text: str | bytes, body: bytes = b"") -> bytes:
    """A file with any header."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data + body


def with_manifest(change: dict[str, Any] | str) -> bytes:
    """The good file with fields of its manifest changed (`...` leaves one out), or another text in its place."""
    fields = manifest() | change if isinstance(change, dict) else {}
    text = change if isinstance(change, str) else json.dumps({key: value for key, value in fields.items() if value is not ...})
    return raw(json.dumps(header() | {"__metadata__": {"turret": text}}), BODY)


def with_entry(name: str = BIAS, **change: Any) -> bytes:
    entries = header()
    return raw(json.dumps(entries | {name: entries[name] | change}), BODY)


def renamed(name: str) -> bytes:
    entries = header()
    entry = entries.pop(BIAS)
    return raw(json.dumps(entries | {name: entry}), BODY)


def refused(data: bytes) -> bool:
    try:
        read_package(data)
    except StoreError:
        return True
    return False


# Headers


def headers() -> Table:
    """JSON that is none, too much, or not what a header is."""
    good = json.dumps(header())
    filled = '{{"a":[{}0]}}'
    texts: dict[str, str | bytes] = {
        "nothing": "",
        "a brace": "{",
        "a list": "[]",
        "null": "null",
        "a number": "1",
        "a text": '"x"',
        "not utf-8": b'{"\xff": 1}',
        "utf-16": '{"a": 1}'.encode("utf-16"),
        "a comment": "{} // x",
        "trailing comma": '{"a": 1,}',
        "NaN": '{"a": NaN}',
        "-Infinity": '{"a": -Infinity}',
        "1e999": '{"a": 1e999}',
        "many digits": '{"a": ' + "9" * 5000 + "}",
        "many decimals": '{"a": 1.' + "9" * (1 << 20) + "}",
        "deep lists": "[" * 100_000,
        "deep objects": '{"a":' * 100_000,
        "closed deep lists": "[" * 900 + "]" * 900,
        "closed deep objects": '{"a":' * 200 + "1" + "}" * 200,
        "a deep entry": good[:-1] + ', "x": ' + "[" * 80 + "]" * 80 + "}",
        "empty lists": filled.format("[]," * 1_000_000),
        "empty objects": filled.format("{}," * 1_000_000),
        "small objects": filled.format('{"":0},' * 800_000),
        "small numbers": filled.format("1," * 2_000_000),
        "a million tensors": "{" + ",".join(f'"{i}":0' for i in range(600_000)) + "}",
        "40,000 tensors": "{" + ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(40_000)) + "}",
        "a long key": '{"' + "k" * (4 << 20) + '": 0}',
        "a long shape": '{"a": {"dtype": "F32", "shape": [' + "1," * 100_000 + '1], "data_offsets": [0, 4]}}',
        "16 MB of spaces": "{" + " " * MILLIONS + "}",
        "a duplicate": good[:-1] + f', "{BIAS}": {json.dumps(header()[BIAS])}}}',
        "two manifests": '{"__metadata__": {"turret": "{}"}, ' + good[1:],
        "duplicates": "{" + ",".join(['"a":0'] * 50_000) + "}",
        "metadata is a list": '{"__metadata__": []}',
        "metadata of numbers": '{"__metadata__": {"turret": 1}}',
        "metadata is null": '{"__metadata__": null}',
        "no metadata": json.dumps({key: value for key, value in header().items() if key != "__metadata__"}),
        "another's metadata": json.dumps(header() | {"__metadata__": {"format": "pt"}}),
        "no tensors": json.dumps({"__metadata__": header()["__metadata__"]}),
    }
    return {name: raw(text, BODY) for name, text in texts.items()}


def entries() -> Table:
    """Entries of one tensor: dtypes, shapes, places and names."""
    dtypes = (
        "F64",
        "I64",
        "I32",
        "I16",
        "I8",
        "U8",
        "U16",
        "U32",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
        "C64",
        "f32",
        "F32 ",
        "",
        None,
        1,
        True,
        [],
        {},
        "F" * 100_000,
    )
    shapes = (
        [4],
        [3, 1],
        [1, 3],
        [],
        [-3],
        [3.0],
        ["3"],
        [True],
        None,
        3,
        "3",
        {},
        [0],
        [2**62, 2**62],
        [2**31, 0],
        [1] * 9,
        [[3]],
        [10**39],
        [2**64 + 3],
        [3, 2**32 + 1],
    )
    offsets = (
        [0],
        [0, 12, 12],
        None,
        "0 12",
        [12, 0],
        [-12, 0],
        [0.0, 12.0],
        [2**63, 2**63 + 12],
        [10**38, 10**38 + 12],
        [True, 12],
        [0, 2**64],
        [[0], [12]],
        {"start": 0},
    )
    names = (
        "",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\windows\\win.ini",
        "a\0b",
        "a\nb",
        "ä",
        "hеad.1.bias",
        "x" * 513,
        "\ud800",
        BIAS + " ",
        " " + BIAS,
        "\u202e",
        "__metadata__ ",
    )
    whole: tuple[Any, ...] = ({}, [], None, 1, "x", {"dtype": "F32"}, header()[BIAS] | {"more": 1})
    table = {f"dtype {number}": with_entry(dtype=dtype) for number, dtype in enumerate(dtypes)}
    table |= {f"shape {number}": with_entry(shape=shape) for number, shape in enumerate(shapes)}
    table |= {f"offsets {number}": with_entry(data_offsets=pair) for number, pair in enumerate(offsets)}
    table |= {f"name {number}": renamed(name) for number, name in enumerate(names)}
    table |= {f"entry {number}": raw(json.dumps(header() | {BIAS: entry}), BODY) for number, entry in enumerate(whole)}
    return table | places()


def places() -> Table:
    """Tensors that overlap, leave gaps, lie in another's bytes or are too many or too few."""
    good = header()
    last = max((name for name in good if name != "__metadata__"), key=lambda name: good[name]["data_offsets"])
    start, end = good[last]["data_offsets"]
    stowaway = {"dtype": "F32", "shape": [1], "data_offsets": [len(BODY), len(BODY) + 4]}
    return {
        "overlap": with_entry(last, data_offsets=[start - 4, end - 4]),
        "gap": raw(json.dumps(good | {last: good[last] | {"data_offsets": [start + 4, end + 4]}}), BODY + bytes(4)),
        "the same bytes": raw(json.dumps(good | {BIAS: good[BIAS] | {"data_offsets": [0, 12]}}), BODY),
        "a stowaway": raw(json.dumps(good | {"stowaway": stowaway}), BODY + bytes(4)),
        "an empty stowaway": raw(json.dumps(good | {"stowaway": stowaway | {"shape": [0], "data_offsets": [len(BODY)] * 2}}), BODY),
        "one lacks": raw(json.dumps({name: entry for name, entry in good.items() if name != last}), BODY[:start]),
        "half as wide": with_entry(BIAS, dtype="F16"),
        "transposed": with_entry("head.1.weight", shape=good["head.1.weight"]["shape"][::-1]),
    }


def values() -> Table:
    """Numbers that are not finite, in each dtype, first and last."""
    bits = {
        "F32": ("<u4", (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF)),
        "F16": ("<u2", (0x7C00, 0xFC00, 0x7E00, 0x7C01)),
        "BF16": ("<u2", (0x7F80, 0xFF80, 0x7FC0, 0x7F81)),
    }
    table: Table = {}
    for dtype, (kind, patterns) in bits.items():
        sized = header()
        for entry in (entry for name, entry in sized.items() if name != "__metadata__"):
            entry["dtype"] = dtype
            entry["data_offsets"] = [offset * np.dtype(kind).itemsize // 4 for offset in entry["data_offsets"]]
        count = len(BODY) // 4
        for pattern in patterns:
            for place in (0, count // 2, count - 1):
                numbers = np.zeros(count, kind)
                numbers[place] = pattern
                table[f"{dtype} {pattern:x} at {place}"] = raw(json.dumps(sized), numbers.tobytes())
    return table


TABLES = {table.__name__: table for table in (headers, entries, values)}

"""Package files, sound and hostile: a file is accepted whole or refused with one sentence, whatever its bytes."""

import hashlib
import io
import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from samples import BACKBONE, MANIFEST, check_sentence, join, package, split, tensor, tensors

import adapter_store.package as package_module
from adapter_store.errors import InvalidPackage, StoreError, WrongBackbone
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck
from adapter_store.package import (
    TensorData,
    check_backbone,
    open_package,
    read_manifest,
    read_package,
    write_package,
)

GOOD = package()
HEADER_END = len(GOOD) - len(split(GOOD)[1])


def refused(data: bytes, *words: str) -> str:
    """The sentence with which `data` is refused, which must hold `words`."""
    with pytest.raises(InvalidPackage) as caught:
        read_package(data)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 1200
    for word in words:
        assert word in sentence, sentence
    return sentence


def with_manifest(change: dict[str, Any] | str) -> bytes:
    """The good package with another manifest: a changed one, or any text."""
    header, body = split(GOOD)
    text = change if isinstance(change, str) else json.dumps(json.loads(header["__metadata__"]["turret"]) | change)
    header["__metadata__"]["turret"] = text
    return join(header, body)


def with_entry(name: str, **change: Any) -> bytes:
    header, body = split(GOOD)
    header[name] = header[name] | change
    return join(header, body)


# Sound files


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_write_and_read(dtype: str) -> None:
    data = package(dtype=dtype)
    read = read_package(data)
    assert read.manifest == MANIFEST
    assert read.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert read.size == len(data)
    assert read.parameters == sum(int(np.prod(shape)) for shape in MANIFEST.tensors().values())
    for name, info in read.tensors.items():
        assert (info.dtype, info.shape) == (dtype, MANIFEST.tensors()[name])
        assert data[info.start : info.end] == tensors(dtype=dtype)[name].data


def test_bytes_do_not_depend_on_the_order_of_tensors() -> None:
    contents = tensors()
    assert write_package(MANIFEST, dict(reversed(contents.items()))) == write_package(MANIFEST, contents)


def test_mixed_dtypes_stay_aligned() -> None:
    contents = tensors()
    contents["head.0.bias"] = tensor((2,), "F16")
    read = read_package(write_package(MANIFEST, contents))
    assert all(info.start % (4 if info.dtype == "F32" else 2) == 0 for info in read.tensors.values())


def test_the_safetensors_library_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    values = load(GOOD)
    assert values.keys() == MANIFEST.tensors().keys()
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(save(values, metadata={"turret": MANIFEST.to_json(), "format": "np"}))
    opened = open_package(path)
    assert opened.manifest == MANIFEST == read_manifest(path)


def test_denormals_and_extremes_are_finite() -> None:
    contents = tensors()
    contents["head.0.weight"] = TensorData("F32", (2, 8), np.full(16, 1e-45, "<f4").tobytes())
    contents["head.0.bias"] = TensorData("F16", (2,), np.array([6e-8, 65504], "<f2").tobytes())
    contents["bottleneck.layers.0.output.up.bias"] = TensorData("F32", (8,), np.full(8, -np.finfo("<f4").max, "<f4").tobytes())
    read_package(write_package(MANIFEST, contents))


def test_headers_may_be_padded_with_spaces() -> None:
    header, body = split(GOOD)
    read_package(join(json.dumps(header) + " " * 100, body))


def test_memory_stays_flat(tmp_path: Path) -> None:
    backbone = Backbone(model_type="bert", hidden_size=4096, num_layers=2)
    manifest = Manifest(methods={"bottleneck": Bottleneck(reduction_factor=16)}, backbone=backbone)
    path = tmp_path / "large.safetensors"
    path.write_bytes(write_package(manifest, tensors(manifest)))
    size = path.stat().st_size
    assert size > 16 << 20
    tracemalloc.start()
    open_package(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 << 20


# Cut off and overlong


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, HEADER_END - 1, HEADER_END, HEADER_END + 1, len(GOOD) - 1])
def test_truncated(length: int) -> None:
    refused(GOOD[:length])


def test_every_truncation_of_a_file_is_refused() -> None:
    for length in range(0, len(GOOD), 7):
        refused(GOOD[:length])


def test_trailing_bytes() -> None:
    refused(GOOD + b"\0", "bytes")


def test_a_file_that_shrinks_or_grows_while_it_is_read() -> None:
    for data in (GOOD[:-10], GOOD + b"more"):
        with pytest.raises(InvalidPackage):
            package_module._read(io.BytesIO(data), len(GOOD), 1 << 20)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, len(GOOD)])
def test_header_larger_than_the_file(length: int) -> None:
    tracemalloc.start()
    refused(struct.pack("<Q", length) + GOOD[8:], "header")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_header_over_the_limit() -> None:
    refused(join(" " * ((16 << 20) + 1), b""), "header", "at most")


def test_file_over_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "package"
    path.write_bytes(GOOD)
    with pytest.raises(InvalidPackage, match="at most 100"):
        open_package(path, max_size=100)


# Headers


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


def test_many_duplicate_keys_are_refused_quickly() -> None:
    text = "{" + ",".join(f'"{i}":0' for i in range(200_000)) + ',"0":0}'
    start = time.process_time()
    refused(join(text, b""), "twice")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("dtype", ["I64", "F64", "F8_E4M3", "F8_E5M2", "U8", "BOOL", "f32", "", None, 1, [], {}])
def test_dtypes(dtype: Any) -> None:
    refused(with_entry("head.0.bias", dtype=dtype), "head.0.bias")


@pytest.mark.parametrize(
    "shape", [[3], [2, 1], [], [-2], [2.0], ["2"], [True, 2], None, 2, {}, [0], [2**62, 2**62], [2**31, 0], [1] * 9, [[2]], [10**400]]
)
def test_shapes(shape: Any) -> None:
    refused(with_entry("head.0.bias", shape=shape), "head.0.bias")


@pytest.mark.parametrize(
    "offsets", [[0], [0, 8, 8], None, "08", [8, 0], [-8, 0], [0.0, 8.0], [2**63, 2**63 + 8], [10**400, 10**400 + 8], [True, 8]]
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


# Manifests


def test_no_manifest() -> None:
    header, body = split(GOOD)
    del header["__metadata__"]
    refused(join(header, body), "manifest", "turret")
    refused(join(header | {"__metadata__": {"format": "pt"}}, body), "manifest")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "turret", "[" * 100_000, '{"format": "turret/1"}', "{}", '{"a": ' + "9" * 5000 + "}"]
)
def test_manifests_that_are_none(text: str) -> None:
    refused(with_manifest(text), "manifest")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"unknown": 1}, "unknown"),
        ({"format": "turret/2"}, "format"),
        ({"methods": {"bottleneck": {"method": "bottleneck", "reduction_factor": 0}}}, "reduction_factor"),
        ({"methods": {"bottleneck": {"method": "bottleneck", "reduction_factor": 1e-300}}}, ""),
        ({"methods": {"bottleneck": {"method": "bottleneck", "reduction_factor": {"0": 4}}}}, "layer 1"),
        ({"methods": {"bottleneck": {"method": "bottleneck", "non_linearity": "rrelu"}}}, "rrelu"),
        ({"methods": {"head": {"method": "bottleneck"}}}, "parts"),
        ({"methods": {"../x": {"method": "bottleneck"}}}, "parts"),
        ({"methods": {"lora": {"method": "lora"}}}, "method"),
        ({"methods": {}, "head": None}, "neither"),
        ({"head": {"type": "classification", "labels": ["a", "a"]}}, "different"),
        ({"head": {"type": "classification", "labels": ["a", ""]}}, "label"),
        ({"head": {"type": "classification", "labels": ["a" * 257]}}, "label"),
        ({"head": {"type": "classification", "labels": [str(i) for i in range(65537)]}}, "65536"),
        ({"head": {"type": "qa", "labels": ["a"]}}, "head.type"),
        ({"head": {"type": "classification", "labels": ["a", "b"], "layers": 1000}}, "head.layers"),
        ({"composition": "stack(a, self)"}, "pin"),
        ({"composition": "stack(" * 50}, "model string"),
        ({"composition": "self#other"}, "head"),
        ({"backbone": {"model_type": "bert", "hidden_size": 10**30, "num_layers": 2}}, "hidden_size"),
        ({"backbone": {"model_type": "bert", "hidden_size": 8, "num_layers": 2, "fingerprint": "sha256:x"}}, "fingerprint"),
        ({"card": "x" * 65537}, "card"),
        ({"card": "x" * (5 << 20)}, "at most"),
        ({"name": "\ud800"}, "name"),
    ],
)
def test_manifests_that_are_unsound(change: dict[str, Any], word: str) -> None:
    refused(with_manifest(change), word)


@pytest.mark.parametrize("value", ["1e999", "9" * 4000, "-1", '"x"', "[]"])
def test_numbers_that_are_none(value: str) -> None:
    refused(with_manifest(MANIFEST.to_json().replace('"reduction_factor":4.0', f'"reduction_factor":{value}')), "manifest")


def test_the_package_must_hold_exactly_what_its_manifest_promises() -> None:
    header, body = split(GOOD)
    renamed = dict(header)
    renamed["head.1.bias"] = renamed.pop("head.0.bias")
    refused(join(renamed, body), "head.0.bias", "lacks")
    extra = header | {"stowaway": {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}}
    refused(join(extra, body + bytes(4)), "stowaway")
    refused(with_entry("head.0.weight", shape=[8, 2]), "head.0.weight", "[8, 2]", "[2, 8]")


def test_a_boastful_manifest_costs_nothing() -> None:
    backbone = {"model_type": "bert", "hidden_size": 65536, "num_layers": 1024}
    methods = {"m": {"method": "bottleneck", "mh_adapter": True, "scaling": "channel", "use_gating": True}}
    start = time.process_time()
    refused(with_manifest({"backbone": backbone, "methods": methods}), "at least 2048 tensors")
    refused(with_manifest({"backbone": backbone}), "at least 1024 tensors")
    refused(with_manifest({"backbone": backbone, "methods": {"b": {"leave_out": list(range(1, 1024))}}}))
    assert time.process_time() - start < 2


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


# Writing


def test_writing_checks_too() -> None:
    contents = tensors()
    with pytest.raises(InvalidPackage, match="lacks"):
        write_package(MANIFEST, {name: contents[name] for name in list(contents)[1:]})
    with pytest.raises(InvalidPackage, match="I64"):
        write_package(MANIFEST, contents | {"head.0.bias": TensorData("I64", (2,), bytes(16))})
    with pytest.raises(InvalidPackage, match="4 bytes instead of 8"):
        write_package(MANIFEST, contents | {"head.0.bias": TensorData("F32", (2,), bytes(4))})


# Backbones


def test_backbones() -> None:
    fingerprint = "sha256:" + "a" * 64
    check_backbone(MANIFEST, BACKBONE.model_copy(update={"fingerprint": fingerprint, "name": "other-name"}))
    pinned = MANIFEST.model_copy(update={"backbone": BACKBONE.model_copy(update={"fingerprint": fingerprint})})
    check_backbone(pinned, BACKBONE)
    for change, word in (
        ({"model_type": "roberta"}, "model type"),
        ({"hidden_size": 16}, "hidden size"),
        ({"num_layers": 3}, "number of layers"),
        ({"fingerprint": "sha256:" + "b" * 64}, "fingerprint"),
    ):
        with pytest.raises(WrongBackbone, match=word):
            check_backbone(pinned, BACKBONE.model_copy(update=change))


# Fuzz


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_refused_or_read(flips: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, value in flips:
        data[place] = value
    survives(bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.integers(8, HEADER_END - 1), st.text(max_size=6))
def test_headers_with_spliced_text(place: int, text: str) -> None:
    header = GOOD[8:place] + text.encode() + GOOD[place:HEADER_END]
    survives(struct.pack("<Q", len(header)) + header + GOOD[HEADER_END:])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    survives(data)
    survives(struct.pack("<Q", len(data)) + data)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = ["format", "name", "methods", "composition", "head", "backbone", "license", "card", "source"]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3))
def test_any_manifest(change: dict[str, Any]) -> None:
    survives(with_manifest(change))


def survives(data: bytes) -> None:
    """Only a StoreError may come out, and only a package that writes back to the same tensors may go in."""
    try:
        read = read_package(data)
    except StoreError as error:
        check_sentence(error)
        return
    contents = {name: TensorData(info.dtype, info.shape, data[info.start : info.end]) for name, info in read.tensors.items()}
    assert read_package(write_package(read.manifest, contents)).manifest == read.manifest


def test_a_head_alone_is_a_package() -> None:
    manifest = Manifest(head=Head(type="embedding", layers=0, pooling="mean"), backbone=BACKBONE)
    read = read_package(write_package(manifest, {}))
    assert read.parameters == 0
    assert read.manifest.task == "feature-extraction"

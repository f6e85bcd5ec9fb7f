"""Package files: what is written is read back, what is cut off or overlong is not, and which backbone they are for."""

import hashlib
import io
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from broken import GOOD, HEADER_END, refused
from safetensors.numpy import load, save
from samples import BACKBONE, MANIFEST, join, package, split, tensor, tensors

import adapter_store.package as package_module
from adapter_store.errors import InvalidPackage, WrongBackbone
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck
from adapter_store.package import TensorData, check_backbone, open_package, read_manifest, read_package, write_package

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


def test_a_head_alone_is_a_package() -> None:
    manifest = Manifest(head=Head(type="embedding", layers=0, pooling="mean"), backbone=BACKBONE)
    read = read_package(write_package(manifest, {}))
    assert read.parameters == 0
    assert read.manifest.task == "feature-extraction"


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
        ({"decoder_layers": 1}, "decoder layers"),
        ({"fingerprint": "sha256:" + "b" * 64}, "fingerprint"),
    ):
        with pytest.raises(WrongBackbone, match=word):
            check_backbone(pinned, BACKBONE.model_copy(update=change))


def test_linears_that_the_backbone_has_not() -> None:
    """A key's width would be read from a linear of another family, and the engine would meet tensors of another size."""
    fused = BACKBONE.model_copy(update={"linears": {"qkv": (8, 24)}})
    check_backbone(MANIFEST.model_copy(update={"backbone": fused}), BACKBONE)
    with pytest.raises(WrongBackbone, match="'qkv'"):
        check_backbone(MANIFEST.model_copy(update={"backbone": fused}), BACKBONE.model_copy(update={"linears": {"k": (8, 8)}}))
    with pytest.raises(ValueError, match="decoder"):
        Backbone(model_type="t5", hidden_size=8, num_layers=2, decoder_layers=3)

"""Any bytes at all: only a StoreError may come out, and only a sound package may go in."""

import struct
from typing import Any

from broken import GOOD, HEADER_END, with_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import check_sentence

from adapter_store.errors import StoreError
from adapter_store.package import TensorData, read_package, write_package


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

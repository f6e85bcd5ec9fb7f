"""The good package, and ways to break it; what a refusal must be."""

import json
from typing import Any

import pytest
from samples import check_sentence, join, package, split

from adapter_store.errors import InvalidPackage
from adapter_store.package import read_package

GOOD = package()
HEADER_END = len(GOOD) - len(split(GOOD)[1])


def refused(data: bytes, *words: str) -> str:
    """The sentence with which `data` is refused, which must hold `words`."""
    with pytest.raises(InvalidPackage) as caught:
        read_package(data)
    sentence = str(caught.value)
    check_sentence(caught.value)
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

"""Manifests that are none, or that promise what cannot be: refused with one sentence, before they cost anything."""

from typing import Any

import pytest
from broken import GOOD, refused, with_entry, with_manifest
from samples import MANIFEST, join, split

from adapter_store.methods import Bottleneck


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


def test_the_law_of_a_boastful_manifest_is_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def tensors(self: Bottleneck, backbone: Any) -> Any:
        raise AssertionError("worked out")

    monkeypatch.setattr(Bottleneck, "tensors", tensors)
    backbone = {"model_type": "bert", "hidden_size": 65536, "num_layers": 1024}
    methods = {"m": {"method": "bottleneck", "mh_adapter": True, "scaling": "channel", "use_gating": True}}
    refused(with_manifest({"backbone": backbone, "methods": methods}), "at least 2048 tensors")
    refused(with_manifest({"backbone": backbone}), "at least 1024 tensors")

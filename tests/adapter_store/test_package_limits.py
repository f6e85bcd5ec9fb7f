"""An operator's limits: what is over one is refused with a sentence that names the limit, the value and what to do."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from samples import BACKBONE, MANIFEST, check_sentence, package, package_file, tensors

from adapter_store.composition import parse
from adapter_store.errors import InvalidPackage
from adapter_store.golden import Example
from adapter_store.limits import Limits, depth
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck, LoRA, Prefix, Prompt
from adapter_store.package import MAX_SIZE, open_package, read_package

GOOD = package()
PIN = "sha256:" + "0" * 64
LINEARS = Backbone(model_type="bert", hidden_size=8, num_layers=2, linears={"q": (8, 8), "k": (8, 8)})
HEAD = Head(type="classification", labels=("ham", "spam"))
EXAMPLE = Example(inputs="a", expected=1)


def composed(composition: str) -> Manifest:
    return Manifest(composition=composition, backbone=BACKBONE)


def adapted(**methods: Any) -> Manifest:
    return Manifest(methods=methods, backbone=LINEARS)


# Limit -> what it is set to, a manifest that is just within, one that is over, and the value that the sentence names.
CASES: dict[str, tuple[int, Manifest, Manifest, str]] = {
    "max_labels": (2, MANIFEST, MANIFEST.model_copy(update={"head": Head(type="tagging", labels=("a", "b", "c"))}), "3 labels"),
    "max_label_length": (4, MANIFEST, MANIFEST.model_copy(update={"head": Head(type="tagging", labels=("a", "bbbbb"))}), "5 characters"),
    "max_rank": (
        2,
        adapted(bottleneck=Bottleneck(reduction_factor={"0": 4.0, "1": 1.0}, leave_out=(1,))),
        adapted(bottleneck=Bottleneck(reduction_factor={"0": 4.0, "1": 2.0})),
        "is 4",
    ),
    "max_prefix": (
        3,
        adapted(prompt=Prompt(prompt_length=3, place="words")),
        adapted(prefix=Prefix(prefix_length=4)),
        "length 4",
    ),
    "max_members": (2, composed(f"stack(a@{PIN}, b@{PIN})"), composed(f"average(a@{PIN}, stack(b@{PIN}, a@{PIN}))"), "3 members"),
    "max_composition": (100, composed(f"stack(a@{PIN})"), composed(f"stack(a@{PIN}, b@{PIN})"), "characters"),
    "max_composition_depth": (2, composed(f"stack(a@{PIN})"), composed(f"stack(a@{PIN}, parallel(b@{PIN}))"), "3 blocks"),
    "max_card": (10, MANIFEST.model_copy(update={"card": "x" * 10}), MANIFEST.model_copy(update={"card": "x" * 11}), "11 characters"),
    "max_examples": (
        1,
        MANIFEST.model_copy(update={"examples": (EXAMPLE,)}),
        MANIFEST.model_copy(update={"examples": (EXAMPLE,) * 2}),
        "2 golden",
    ),
}
OF_THE_FILE = {"max_bytes", "max_header", "max_manifest", "max_tensors"}


def test_every_limit_has_a_case() -> None:
    assert CASES.keys() | OF_THE_FILE == {field.name for field in dataclasses.fields(Limits)}


@pytest.mark.parametrize("limit", CASES)
def test_limits_of_a_manifest(limit: str) -> None:
    value, within, over, told = CASES[limit]
    limits = Limits(**{limit: value})
    read_package(package(within), limits=limits)
    read_package(package(over))
    with pytest.raises(InvalidPackage) as caught:
        read_package(package(over), limits=limits)
    check_sentence(caught.value)
    for word in (limit, told, f"at most {value}"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("methods", "rank"),
    [
        ({"lora": LoRA(modules=("layers.0.q", "layers.1.k"), rank=1, scaling=1.0, ranks={"layers.1.k": 3})}, 3),
        ({"lora": LoRA(modules=("layers.0.q",), rank=2, scaling=1.0), "bottleneck": Bottleneck(reduction_factor=8)}, 2),
        ({"bottleneck": Bottleneck(reduction_factor=2, phm_layer=True, phm_dim=2, phm_rank=5)}, 5),
        ({"bottleneck": Bottleneck(reduction_factor=4, phm_rank=5)}, 2),
    ],
)
def test_what_a_rank_is(methods: dict[str, Any], rank: int) -> None:
    data = package(adapted(**methods))
    read_package(data, limits=Limits(max_rank=rank))
    with pytest.raises(InvalidPackage, match=f"is {rank};"):
        read_package(data, limits=Limits(max_rank=rank - 1))


def test_a_package_without_any_of_it_is_within_the_tightest() -> None:
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(Limits)), 0)
    room = {"max_bytes": 1 << 20, "max_header": 1 << 20, "max_manifest": 1 << 20}
    read_package(
        package(Manifest(head=Head(type="embedding", layers=0, pooling="mean"), backbone=BACKBONE)), limits=Limits(**nothing | room)
    )


@pytest.mark.parametrize("limit", sorted(OF_THE_FILE))
def test_limits_of_the_file(limit: str, tmp_path: Path) -> None:
    header = int.from_bytes(GOOD[:8], "little")
    exact = {"max_bytes": len(GOOD), "max_header": header, "max_manifest": len(MANIFEST.to_json()), "max_tensors": len(tensors())}[limit]
    path = package_file(tmp_path)
    open_package(path, limits=Limits(**{limit: exact}))
    with pytest.raises(InvalidPackage, match=f"at most {exact - 1} are allowed") as caught:
        open_package(path, limits=Limits(**{limit: exact - 1}))
    check_sentence(caught.value)


def test_of_two_sizes_the_smaller_holds(tmp_path: Path) -> None:
    path = package_file(tmp_path)
    for sizes in ((100, MAX_SIZE), (MAX_SIZE, 100)):
        with pytest.raises(InvalidPackage, match="at most 100 are allowed"):
            open_package(path, sizes[0], limits=Limits(max_bytes=sizes[1]))


def test_depth() -> None:
    for text, deep in (("base", 0), ("a", 1), ("stack(a, b)", 2), ("average(a, stack(b, fuse[f](c)))", 4)):
        assert depth(parse(text).root) == deep

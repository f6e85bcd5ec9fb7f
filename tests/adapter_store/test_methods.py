"""The shape law against what the real library wrote: golden folder -> import -> write -> open gives the same tensors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load, load_file

from adapter_store.importers import folder_files, import_folder
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import ACTIVATIONS, Backbone, Bottleneck, activation
from adapter_store.package import read_package, write_package

BOTTLENECKS = [
    ("bert_batchsplit_cls", "adapters/nli"),
    ("bert_batchsplit_cls", "adapters/qqp"),
    ("bert_fusion3_pfeiffer_cls", "adapters/mnli"),
    ("bert_houlsby_cls", "adapters/sst"),
    ("bert_leave_out_rf_map", "adapters/sst"),
    ("bert_multilabel_pooler", "adapters/toxic"),
    ("bert_parallel_cls", "adapters/sst"),
    ("bert_pfeiffer_cls", "adapters/sst"),
    ("bert_scaled_parallel_mh", "adapters/sst"),
    ("bert_stack_lang_task_tag", "setup/ner"),
    ("bert_static_cls", "adapters/sst"),
    ("distilbert_pfeiffer_cls", "adapters/sst"),
    ("roberta_pfeiffer_cls", "adapters/sst"),
    ("xlmr_stack_tag", "adapters/ner"),
]


@pytest.mark.parametrize(("case", "folder"), BOTTLENECKS)
def test_golden_folders_keep_every_tensor(golden: Path, case: str, folder: str) -> None:
    source = golden / case / "safetensors" / folder
    imported = import_folder(folder_files(source))
    data = write_package(imported.manifest, imported.tensors)
    package = read_package(data)
    assert {name: info.shape for name, info in package.tensors.items()} == imported.manifest.tensors()

    ours = load(data)
    theirs = [value for path in sorted(source.glob("*.safetensors")) for value in load_file(path).values()]
    assert len(ours) == len(theirs)
    assert sorted(value.tobytes() for value in ours.values()) == sorted(value.tobytes() for value in theirs)


def test_golden_names_go_to_the_right_places(golden: Path) -> None:
    folder = golden / "bert_leave_out_rf_map" / "safetensors" / "adapters" / "sst"
    imported = import_folder(folder_files(folder))
    ours = load(write_package(imported.manifest, imported.tensors))
    theirs = load_file(folder / "adapter.safetensors")
    for layer in (0, 2, 3):
        for site, path in (("mh", "attention.output"), ("output", "output")):
            for name, module in (("down", "adapter_down.0"), ("up", "adapter_up")):
                for kind in ("weight", "bias"):
                    expected = theirs[f"bert.encoder.layer.{layer}.{path}.adapters.sst.{module}.{kind}"]
                    np.testing.assert_array_equal(ours[f"bottleneck.layers.{layer}.{site}.{name}.{kind}"], expected)
    heads = load_file(folder / "model_head.safetensors")
    np.testing.assert_array_equal(ours["head.0.weight"], heads["heads.sst.1.weight"])
    np.testing.assert_array_equal(ours["head.1.bias"], heads["heads.sst.4.bias"])


@pytest.mark.parametrize(("hidden", "factor", "size"), [(100, 16, 6), (30, 16, 1), (32, 0.5, 64), (8, 1000, 1), (768, 16.0, 48)])
def test_width_is_floored_and_at_least_one(hidden: int, factor: float, size: int) -> None:
    assert Bottleneck(reduction_factor=factor).size(0, hidden) == size


def test_every_option_has_its_tensors() -> None:
    method = Bottleneck(mh_adapter=True, scaling="channel", use_gating=True, ln_before=True, ln_after=True, leave_out=(0,))
    shapes = method.tensors(Backbone(model_type="bert", hidden_size=32, num_layers=2))
    assert len(shapes) == 2 * (4 + 1 + 2 + 4)
    assert shapes["layers.1.mh.scaling"] == (32,)
    assert shapes["layers.1.output.gate.weight"] == (1, 32)
    assert not any(name.startswith("layers.0.") for name in shapes)


@pytest.mark.parametrize(
    "fields",
    [
        {"output_adapter": False},
        {"non_linearity": "rrelu"},
        {"reduction_factor": 0},
        {"reduction_factor": {}},
        {"reduction_factor": {"first": 2}},
        {"scaling": "loud"},
        {"leave_out": [-1]},
        {"residual_before_ln": "post_add", "original_ln_before": False},
        {"unknown": 1},
    ],
)
def test_unsound_configs_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Bottleneck.model_validate(fields)


def test_activations_are_canonical() -> None:
    assert all(activation(name) == ours == activation(ours) for name, ours in ACTIVATIONS.items())


bottlenecks = st.builds(
    Bottleneck,
    mh_adapter=st.booleans(),
    reduction_factor=st.one_of(st.floats(0.5, 64), st.fixed_dictionaries({"default": st.floats(1, 8)})),
    non_linearity=st.sampled_from(sorted(set(ACTIVATIONS.values()))),
    scaling=st.one_of(st.floats(-9, 9), st.sampled_from(["learned", "channel"])),
    use_gating=st.booleans(),
    ln_after=st.booleans(),
    residual_before_ln=st.sampled_from([True, False, "post_add"]),
    leave_out=st.sets(st.integers(0, 3)).map(tuple),
)
heads = st.builds(
    Head,
    type=st.sampled_from(["classification", "multilabel_classification", "tagging"]),
    layers=st.integers(1, 3),
    activation=st.sampled_from([None, "tanh"]),
    bias=st.booleans(),
    labels=st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=5), min_size=1, unique=True).map(tuple),
)


@given(bottlenecks, st.one_of(st.none(), heads), st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
def test_manifests_round_trip(method: Bottleneck, head: Head | None, card: str) -> None:
    backbone = Backbone(model_type="bert", hidden_size=8, num_layers=3)
    manifest = Manifest(methods={"bottleneck": method}, head=head, backbone=backbone, card=card)
    again = Manifest.model_validate_json(manifest.to_json())
    assert again == manifest
    assert again.to_json() == manifest.to_json()
    assert again.tensors() == manifest.tensors()

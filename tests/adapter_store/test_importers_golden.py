"""Every golden folder, as its library wrote it, with its backbone and without: every tensor is matched, and the package is sound."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from folders import PIN, backbone_from
from safetensors.numpy import load, load_file

from adapter_store.importers import folder_files, import_folder, needed_members, setup_steps
from adapter_store.importers.pickles import bin_to_safetensors, pickles_of
from adapter_store.manifest import Manifest
from adapter_store.methods import Backbone
from adapter_store.package import read_package, write_package

CASES = (
    "bert_batchsplit_cls", "bert_compacter_cls", "bert_compacter_unshared_rank2", "bert_dependency_parsing", "bert_double_inv_tag",
    "bert_fusion3_pfeiffer_cls", "bert_houlsby_cls", "bert_ia3_cls", "bert_leave_out_rf_map", "bert_lora_cls", "bert_madx_inv_mlm",
    "bert_mixed_kinds_alone", "bert_multilabel_pooler", "bert_multiple_choice", "bert_parallel_cls", "bert_pfeiffer_cls", "bert_prefix_cls",
    "bert_qa", "bert_scaled_parallel_mh", "bert_stack_lang_task_tag", "bert_static_cls", "distilbert_pfeiffer_cls", "gpt2_lora_static",
    "gpt2_pfeiffer_static", "llama_lora_all_static", "llama_pfeiffer_static", "orig_compacter_t5", "peft_bert_lora_seqcls",
    "peft_gpt2_lora_clm", "roberta_pfeiffer_cls", "t5_compacter", "t5_lora_ia3", "t5_pfeiffer_static", "xlmr_stack_tag",
)  # fmt: skip


def folders_of(case: Path) -> Iterator[Path]:
    """The folders of a case that make one package each."""
    for folder in sorted(path for path in case.rglob("*") if path.is_dir()):
        names = {path.name for path in folder.iterdir()}
        if names & {"adapter_config.json", "adapter_fusion_config.json", "head_config.json", "training_config.json"}:
            yield folder


def import_anyhow(folder: Path, backbone: Backbone | None, scratch: Path) -> Manifest:
    """The folder's package, pickles converted, members of a fusion pinned; the package must hold every tensor of the folder."""
    source = folder
    if pickles_of(folder):
        source = scratch / f"{folder.parent.name}-{folder.name}"
        bin_to_safetensors(folder, source)
    files = folder_files(source)
    members = {member: f"{member}@{PIN}" for member in needed_members(files)}
    imported = import_folder(files, backbone, members=members)
    package = read_package(write_package(imported.manifest, imported.tensors))
    assert package.manifest == imported.manifest
    assert {name: info.shape for name, info in package.tensors.items()} == imported.manifest.tensors()
    assert imported.report
    return imported.manifest


def test_the_cases_are_those_that_are_there(golden: Path) -> None:
    assert tuple(sorted(path.name for path in golden.iterdir() if path.is_dir())) == CASES


@pytest.mark.parametrize("name", CASES)
def test_golden_folders(golden: Path, tmp_path: Path, name: str) -> None:
    case = golden / name
    backbone = backbone_from(case)
    for folder in folders_of(case):
        manifest = import_anyhow(folder, backbone, tmp_path)
        assert manifest.backbone.linears.items() <= backbone.linears.items()
        alone = import_anyhow(folder, None, tmp_path)
        assert alone.tensors() == manifest.tensors()
        assert alone.backbone == manifest.backbone


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_golden_setup(golden: Path, tmp_path: Path, kind: str) -> None:
    case = golden / "bert_stack_lang_task_tag"
    folder = case / kind / "setup"
    if kind == "bin":
        bin_to_safetensors(folder, tmp_path / "setup")
        folder = tmp_path / "setup"
    steps = setup_steps(folder_files(folder), backbone_from(case), "acme/ner")
    assert steps is not None
    assert [step.name for step in steps] == ["acme/ner.de", "acme/ner.ner", "acme/ner"]
    pins: dict[str, str] = {}
    for step in steps:
        imported = step.build(pins)
        package = read_package(write_package(imported.manifest, imported.tensors))
        pins[step.name] = f"{step.name}@{package.digest}"
    assert imported.manifest.composition == f"stack({pins['acme/ner.de']}, {pins['acme/ner.ner']})"
    assert (imported.manifest.head, imported.manifest.methods, imported.tensors) == (None, {}, {})


# Tensors that the libraries keep as we do, by what their names are there.
MODULES = {
    "bert_lora_cls": ("lora.layers.{i}.q.a", "bert.encoder.layer.{i}.attention.self.query.loras.{name}.lora_A"),
    "bert_compacter_cls": (
        "bottleneck.layers.{i}.mh.up.w_right",
        "bert.encoder.layer.{i}.attention.output.adapters.{name}.adapter_up.W_right",
    ),
    "llama_lora_all_static": ("lora.layers.{i}.down.b", "model.layers.{i}.mlp.down_proj.loras.{name}.lora_B"),
    "bert_madx_inv_mlm": ("invertible.f.1.weight", "bert.invertible_adapters.{name}.F.2.weight"),
}


@pytest.mark.parametrize("case", sorted(MODULES))
def test_golden_tensors_lie_where_they_belong(golden: Path, case: str) -> None:
    ours, theirs = MODULES[case]
    folder = next(iter(sorted((golden / case / "safetensors" / "adapters").iterdir())))
    imported = import_folder(folder_files(folder))
    packed, written = load(write_package(imported.manifest, imported.tensors)), load_file(folder / "adapter.safetensors")
    found = 0
    for layer in range(imported.manifest.backbone.num_layers):
        name = json.loads((folder / "adapter_config.json").read_text())["name"]
        source = theirs.format(i=layer, name=name)
        if source in written:
            found += 1
            np.testing.assert_array_equal(packed[ours.format(i=layer)], written[source])
    assert found

"""AdapterHub folders: what is read, what is refused and by which words. Golden folders are changed to make the other cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save_file
from samples import check_sentence, copy_folder, edit_json, tensor, write_safetensors

from adapter_store.errors import InvalidPackage, StoreError, UnsupportedMethod, WrongBackbone
from adapter_store.importers import ImportedPackage, folder_files, import_folder, import_to_file
from adapter_store.importers.adapterhub_config import PRESETS, bottleneck
from adapter_store.importers.adapterhub_heads import STATIC
from adapter_store.importers.pickles import bin_to_safetensors
from adapter_store.methods import Backbone, Bottleneck
from adapter_store.package import open_package, write_package


@pytest.fixture
def pfeiffer(golden: Path, tmp_path: Path) -> Path:
    """A copy of a Pfeiffer adapter with a head (bert, hidden 32, 3 layers) to be changed."""
    return copy_folder(golden / "bert_pfeiffer_cls" / "safetensors" / "adapters" / "sst", tmp_path / "sst")


def load_folder(folder: Path, backbone: Backbone | None = None) -> ImportedPackage:
    return import_folder(folder_files(folder), backbone)


def refused(folder: Path, kind: type[StoreError], *words: str, backbone: Backbone | None = None) -> None:
    with pytest.raises(kind) as caught:
        load_folder(folder, backbone)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def backbone_of(case: Path, **change: Any) -> Backbone:
    config = json.loads((case / "backbone" / "config.json").read_text())
    hidden, layers = config.get("hidden_size", config.get("dim")), config.get("num_hidden_layers", config.get("n_layers"))
    return Backbone.model_validate({"model_type": config["model_type"], "hidden_size": hidden, "num_layers": layers} | change)


def rename_tensors(path: Path, **renames: str) -> None:
    """Replaces parts of the tensors' names; `__` in a keyword stands for a dot."""
    contents = load_file(path)
    for old, new in renames.items():
        contents = {name.replace(old.replace("__", "."), new): value for name, value in contents.items()}
    save_file(contents, path)


# What is read


def test_a_pfeiffer_folder(golden: Path, pfeiffer: Path) -> None:
    fingerprint = "sha256:" + "f" * 64
    backbone = backbone_of(golden / "bert_pfeiffer_cls", fingerprint=fingerprint, name="some/model")
    imported = load_folder(pfeiffer, backbone)
    assert imported.manifest.backbone == backbone
    assert imported.manifest.name == "sst"
    assert imported.manifest.methods == {"bottleneck": Bottleneck(reduction_factor=4)}
    head = imported.manifest.head
    assert head is not None
    assert (head.type, head.layers, head.activation, head.use_pooler, head.bias) == ("classification", 2, "tanh", False, True)
    assert head.labels == tuple(json.loads((pfeiffer / "head_config.json").read_text())["config"]["label2id"])
    assert imported.manifest.source == {"format": "adapterhub", "version": "adapters.1.3.0", "model_class": "BertAdapterModel"}
    assert imported.warnings == ()
    assert any("12 tensors" in line for line in imported.report)


@pytest.mark.parametrize(
    "case", ["bert_pfeiffer_cls", "bert_leave_out_rf_map", "bert_scaled_parallel_mh", "distilbert_pfeiffer_cls", "roberta_pfeiffer_cls"]
)
def test_without_a_backbone_its_dimensions_come_from_the_folder(golden: Path, case: str) -> None:
    folder = golden / case / "safetensors" / "adapters" / "sst"
    alone, known = load_folder(folder), load_folder(folder, backbone_of(golden / case))
    assert alone.manifest == known.manifest
    assert write_package(alone.manifest, alone.tensors) == write_package(known.manifest, known.tensors)


def test_layers_left_out_and_factors_by_layer(golden: Path) -> None:
    method = load_folder(golden / "bert_leave_out_rf_map" / "safetensors" / "adapters" / "sst").manifest.methods["bottleneck"]
    assert method.leave_out == (1,)
    assert [method.size(layer, 24) for layer in (0, 2, 3)] == [12, 6, 3]
    assert (method.mh_adapter, method.non_linearity, method.original_ln_before) == (True, "silu", False)


def test_scaled_parallel(golden: Path) -> None:
    imported = load_folder(golden / "bert_scaled_parallel_mh" / "safetensors" / "adapters" / "sst")
    method = imported.manifest.methods["bottleneck"]
    assert (method.scaling, method.is_parallel, method.sites) == ("learned", True, ("mh", "output"))
    assert imported.tensors["bottleneck.layers.0.mh.scaling"].shape == (1,)


def test_a_static_head(golden: Path) -> None:
    head = load_folder(golden / "bert_static_cls" / "safetensors" / "adapters" / "sst").manifest.head
    assert head is not None
    assert (head.type, head.layers, head.activation, head.use_pooler) == ("classification", 1, None, True)
    assert head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_tagging_and_multilabel(golden: Path) -> None:
    tagging = load_folder(golden / "xlmr_stack_tag" / "safetensors" / "adapters" / "ner").manifest
    assert tagging.head is not None
    assert (tagging.head.type, tagging.task, tagging.head.layers) == ("tagging", "token-classification", 1)
    toxic = load_folder(golden / "bert_multilabel_pooler" / "safetensors" / "adapters" / "toxic").manifest.head
    assert toxic is not None
    assert (toxic.type, toxic.use_pooler) == ("multilabel_classification", True)


def test_import_to_file(golden: Path, pfeiffer: Path, tmp_path: Path) -> None:
    (pfeiffer / "README.md").write_text("---\ntags:\n- x\nlicense: apache-2.0\n---\n# A card\n")
    (pfeiffer / "notes.txt").write_text("more")
    target = tmp_path / "package"
    imported = import_to_file(folder_files(pfeiffer), None, target)
    opened = open_package(target)
    assert opened.manifest == imported.manifest
    assert opened.manifest.license == "apache-2.0"
    assert opened.manifest.card.endswith("# A card\n")
    assert "ignored 'notes.txt'" in imported.report


def test_a_long_card_is_cut(pfeiffer: Path) -> None:
    (pfeiffer / "README.md").write_text("ä" * 100_000)
    imported = load_folder(pfeiffer)
    assert len(imported.manifest.card) == 65536
    assert any("README.md" in warning for warning in imported.warnings)


def test_an_adapter_without_a_head_and_a_head_without_an_adapter(golden: Path, pfeiffer: Path) -> None:
    files = folder_files(pfeiffer)
    adapter = import_folder({name: path for name, path in files.items() if "adapter" in name})
    assert adapter.manifest.head is None
    only_head = {name: path for name, path in files.items() if "head" in name}
    head = import_folder(only_head, backbone_of(golden / "bert_pfeiffer_cls"))
    assert head.manifest.methods == {}
    assert head.manifest.name == "sst"
    with pytest.raises(InvalidPackage, match="how many layers"):
        import_folder(only_head)


def test_names_that_are_not_ours(pfeiffer: Path) -> None:
    edit_json(pfeiffer / "adapter_config.json", name="SST @ 2/b x")
    rename_tensors(pfeiffer / "adapter.safetensors", adapters__sst__="adapters.SST @ 2/b x.")
    assert load_folder(pfeiffer).manifest.name == ""
    edit_json(pfeiffer / "adapter_config.json", name="SST-2")
    rename_tensors(pfeiffer / "adapter.safetensors", **{"SST @ 2/b x": "SST-2"})
    assert load_folder(pfeiffer).manifest.name == "sst-2"


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_keys_of_a_bare_model_and_of_the_first_version(pfeiffer: Path, prefix: str) -> None:
    expected = load_folder(pfeiffer)
    rename_tensors(pfeiffer / "adapter.safetensors", bert__=prefix, output__adapters__="output.layer_text_task_adapters.")
    imported = load_folder(pfeiffer)
    assert write_package(imported.manifest, imported.tensors) == write_package(expected.manifest, expected.tensors)


def test_all_tensors_of_the_grammar(tmp_path: Path) -> None:
    """A channel-scaled, gated adapter with both norms, as the pickle converter writes it: the first norm is there twice."""
    method = {"reduction_factor": 4, "ln_before": True, "ln_after": True, "use_gating": True, "scaling": "channel"}
    config = {"config": method, "hidden_size": 8, "model_type": "electra", "name": "x", "version": "adapters.1.3.0"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    site = "electra.encoder.layer.0.output.adapters.x"
    norm_weight, norm_bias = tensor((8,), seed=1), tensor((8,), seed=2)
    contents = {
        f"{site}.adapter_down.1.weight": tensor((2, 8)),
        f"{site}.adapter_down.1.bias": tensor((2,)),
        f"{site}.adapter_down.0.weight": norm_weight,
        f"{site}.adapter_down.0.bias": norm_bias,
        f"{site}.adapter_norm_before.weight": norm_weight,
        f"{site}.adapter_norm_before.bias": norm_bias,
        f"{site}.adapter_norm_after.weight": tensor((8,)),
        f"{site}.adapter_norm_after.bias": tensor((8,)),
        f"{site}.adapter_up.weight": tensor((8, 2)),
        f"{site}.adapter_up.bias": tensor((8,)),
        f"{site}.gate.weight": tensor((1, 8)),
        f"{site}.gate.bias": tensor((1,)),
        f"{site}.scaling": tensor((8,)),
    }
    write_safetensors(tmp_path / "adapter.safetensors", contents)
    imported = load_folder(tmp_path)
    assert imported.manifest.backbone.num_layers == 1
    assert len(imported.tensors) == 11
    assert imported.tensors["bottleneck.layers.0.output.ln_before.weight"].data == norm_weight.data
    contents[f"{site}.adapter_down.0.bias"] = tensor((8,), seed=9)
    write_safetensors(tmp_path / "adapter.safetensors", contents)
    refused(tmp_path, InvalidPackage, "contradict")


# Configs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pfeiffer", Bottleneck()),
        ("seq_bn", Bottleneck()),
        ("houlsby", Bottleneck(mh_adapter=True, non_linearity="silu", original_ln_before=False)),
        ("double_seq_bn", Bottleneck(mh_adapter=True, non_linearity="silu", original_ln_before=False)),
        ("par_bn", Bottleneck(is_parallel=True, original_ln_before=False, reduction_factor=2, scaling=4.0)),
        ("scaled_par_bn", Bottleneck(is_parallel=True, original_ln_before=False, reduction_factor=2, scaling="learned")),
    ],
)
def test_presets_by_name(name: str, expected: Bottleneck) -> None:
    assert bottleneck({"config": name}, False, []) == expected


@pytest.mark.parametrize(
    "name",
    sorted(PRESETS.keys() - {"seq_bn", "pfeiffer", "double_seq_bn", "houlsby", "par_bn", "parallel", "scaled_par_bn", "scaled_parallel"}),
)
def test_presets_that_are_not_served(name: str) -> None:
    with pytest.raises(UnsupportedMethod):
        bottleneck({"config": name}, False, [])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("mystery", "no known preset"),
        ({"phm_layer": True}, "Compacter"),
        ({"architecture": "lora"}, "LoRA"),
        ({"architecture": "lora", "composition_mode": "scale"}, "(IA)^3"),
        ({"architecture": "lora", "use_dora": True}, "DoRA"),
        ({"architecture": "lora", "vera_d": 0.1}, "VeRA"),
        ({"architecture": "prefix_tuning"}, "prefix tuning"),
        ({"architecture": "prompt_tuning"}, "prompt tuning"),
        ({"architecture": "reft"}, "ReFT"),
        ({"architecture": "mtl_lora"}, "MTL-LoRA"),
        ({"architecture": "union"}, "MAM"),
        ({"architecture": "novel"}, "novel"),
        ({"inv_adapter": "nice"}, "invertible"),
        ({"invertible_adapter": {"block_type": "nice"}}, "invertible"),
        ({"non_linearity": "rrelu"}, "rrelu"),
    ],
)
def test_methods_refused_by_name(config: Any, words: str) -> None:
    with pytest.raises(UnsupportedMethod) as caught:
        bottleneck({"config": config}, False, [])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [None, [], 3, {"reduction_factor": None}, {"reduction_factor": "x"}, {"scaling": "loud"}, {"leave_out": [-1]}, {"non_linearity": 3},
     {"mh_adapter": "maybe"}, {"mh_adapter": False, "output_adapter": False}, {"ln_after": True, "LN_after": False}],
)  # fmt: skip
def test_configs_that_are_unsound(config: Any) -> None:
    with pytest.raises(InvalidPackage):
        bottleneck({"config": config}, False, [])


def test_old_spellings_integers_and_unknown_keys() -> None:
    warnings: list[str] = []
    old = {"MH_Adapter": 1, "Output_Adapter": 0, "LN_after": 0, "scaling": 2, "leave_out": None, "attention_type": "sent-lvl", "novel": 3}
    assert bottleneck({"config": old}, False, warnings) == Bottleneck(mh_adapter=True, output_adapter=False, scaling=2.0)
    assert warnings == ["The config has keys that are not known and were ignored: 'novel'."]


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("gelu", None, "gelu_new"),
        ("gelu_orig", None, "gelu"),
        ("swish", None, "silu"),
        ("gelu", "2.1.0", "gelu"),
        ("gelu", "adapters.1.3.0", "gelu"),
        ("GELU", "adapters.1.3.0", "gelu"),
    ],
)
def test_gelu_meant_another_function_before_versions(name: str, version: str | None, expected: str) -> None:
    config = {"config": {"non_linearity": name}} | ({"version": version} if version else {})
    assert bottleneck(config, False, []).non_linearity == expected


def test_old_task_adapters_name_an_invertible_part_that_they_lack() -> None:
    warnings: list[str] = []
    config = {"config": {"invertible_adapter": {"block_type": "nice"}}, "type": "text_task"}
    assert bottleneck(config, False, warnings) == Bottleneck()
    assert len(warnings) == 1
    with pytest.raises(UnsupportedMethod):
        bottleneck(config, True, [])


# What is refused


@pytest.mark.parametrize(
    ("folder", "kind", "word"),
    [
        ("bert_compacter_cls/safetensors/adapters/sst", UnsupportedMethod, "Compacter"),
        ("bert_lora_cls/safetensors/adapters/sst", UnsupportedMethod, "LoRA"),
        ("bert_ia3_cls/safetensors/adapters/sst", UnsupportedMethod, "(IA)^3"),
        ("bert_madx_inv_mlm/safetensors/adapters/de", UnsupportedMethod, "invertible"),
        ("bert_double_inv_tag/safetensors/adapters/yo", UnsupportedMethod, "invertible"),
        ("bert_fusion3_pfeiffer_cls/safetensors/fusions/mnli,qqp,sst", UnsupportedMethod, "fusion"),
        ("bert_stack_lang_task_tag/safetensors/setup", UnsupportedMethod, "setup"),
        ("bert_qa/safetensors/adapters/squad", UnsupportedMethod, "question_answering"),
        ("bert_multiple_choice/safetensors/adapters/copa", UnsupportedMethod, "multiple_choice"),
        ("bert_dependency_parsing/safetensors/adapters/ud", UnsupportedMethod, "dependency_parsing"),
        ("gpt2_pfeiffer_static/safetensors/adapters/poem", UnsupportedMethod, "gpt2"),
        ("t5_pfeiffer_static/safetensors/adapters/sum", UnsupportedMethod, "t5"),
        ("peft_bert_lora_seqcls/safetensors/peft", UnsupportedMethod, "PEFT"),
        ("peft_bert_lora_seqcls/bin/peft", UnsupportedMethod, "LORA"),
        ("orig_compacter_t5/compacter_checkpoint", UnsupportedMethod, "Compacter"),
        ("bert_pfeiffer_cls/bin/adapters/sst", InvalidPackage, "turret convert"),
        ("bert_prefix_cls/bin/adapters/sst", InvalidPackage, "turret convert"),
        ("bert_pfeiffer_cls/backbone", InvalidPackage, "tokenizer.json"),
    ],
)
def test_golden_folders_that_are_refused(golden: Path, folder: str, kind: type[StoreError], word: str) -> None:
    refused(golden / folder, kind, word)


def test_nothing_and_files_that_are_paths(pfeiffer: Path) -> None:
    with pytest.raises(InvalidPackage, match="nothing"):
        import_folder({})
    for name in ("../adapter_config.json", "a/b", "a\\b", "/etc/passwd", "", ".", "..", "a\0b", "x" * 300):
        with pytest.raises(InvalidPackage, match="plain file name"):
            import_folder(folder_files(pfeiffer) | {name: pfeiffer / "adapter_config.json"})
    with pytest.raises(InvalidPackage, match="at most"):
        import_folder({str(i): pfeiffer for i in range(1000)})


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter.safetensors", "head_config.json", "model_head.safetensors"])
def test_half_of_a_pair(pfeiffer: Path, name: str) -> None:
    (pfeiffer / name).unlink()
    refused(pfeiffer, InvalidPackage, name)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"config": NaN}', '{"a": 1, "a": 2}', "\ud800"])
@pytest.mark.parametrize("name", ["adapter_config.json", "head_config.json"])
def test_json_that_is_none(pfeiffer: Path, name: str, text: str) -> None:
    (pfeiffer / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(pfeiffer, InvalidPackage, name)


@pytest.mark.parametrize("name", ["adapter.safetensors", "model_head.safetensors"])
def test_weights_that_are_none(pfeiffer: Path, name: str) -> None:
    data = (pfeiffer / name).read_bytes()
    for broken in (b"", data[:4], data[:-1], data + b"x", b"\xff" * 100):
        (pfeiffer / name).write_bytes(broken)
        refused(pfeiffer, InvalidPackage, name)


def test_tensors_that_are_not_matched(pfeiffer: Path) -> None:
    path = pfeiffer / "adapter.safetensors"
    good = load_file(path)
    for extra in (
        "bert.encoder.layer.0.output.adapters.other.adapter_up.weight",
        "bert.encoder.layer.0.output.adapters.sst.adapter_up.extra",
        "bert.encoder.layer.00.output.adapters.sst.adapter_up.weight",
        "bert.encoder.layer.0.attention.output.adapters.sst.adapter_up.weight",
        "bert.encoder.layer.0.output.adapters.sst.adapter_down.1.weight",
        "bert.encoder.layer.0.output.adapters.sst.scaling",
        "bert.encoder.layer.0.output.adapters.sst.gate.weight",
        "roberta.encoder.layer.0.output.adapters.sst.adapter_up.weight",
        "bert.encoder.layer.0.attention.self.query.loras.sst.lora_A",
    ):
        save_file(good | {extra: np.zeros((1, 32), "<f4")}, path)
        refused(pfeiffer, InvalidPackage, extra)
    save_file(good | {"bert.invertible_adapters.sst.F.0.weight": np.zeros((2, 2), "<f4")}, path)
    refused(pfeiffer, UnsupportedMethod, "invertible")


def test_tensors_that_are_missing_or_misshapen(pfeiffer: Path) -> None:
    path = pfeiffer / "adapter.safetensors"
    good = load_file(path)
    name = "bert.encoder.layer.1.output.adapters.sst.adapter_up.bias"
    save_file({key: value for key, value in good.items() if key != name}, path)
    refused(pfeiffer, InvalidPackage, "layers.1.output.up.bias")
    save_file(good | {name: np.zeros(31, "<f4")}, path)
    refused(pfeiffer, InvalidPackage, name, "[31]", "[32]")
    save_file({key: value for key, value in good.items() if ".layer.1." not in key}, path)
    refused(pfeiffer, InvalidPackage, "layers.1.")


def test_other_backbones(golden: Path, pfeiffer: Path) -> None:
    case = golden / "bert_pfeiffer_cls"
    for change, word in (
        ({"model_type": "roberta"}, "model type"),
        ({"hidden_size": 64}, "hidden size"),
        ({"num_layers": 2}, "only 2 layers"),
        ({"num_layers": 4}, "has 4 layers"),
    ):
        refused(pfeiffer, WrongBackbone, word, backbone=backbone_of(case, **change))
    edit_json(pfeiffer / "adapter_config.json", model_name="google-bert/bert-base-uncased")
    assert load_folder(pfeiffer, backbone_of(case, name="/models/bert-base-uncased/")).warnings == ()
    assert "roberta-base" in load_folder(pfeiffer, backbone_of(case, name="roberta-base")).warnings[0]


def test_configs_that_contradict_each_other(pfeiffer: Path) -> None:
    edit_json(pfeiffer / "head_config.json", hidden_size=64)
    refused(pfeiffer, InvalidPackage, "hidden_size")
    edit_json(pfeiffer / "head_config.json", hidden_size=32, model_type="roberta")
    refused(pfeiffer, InvalidPackage, "model_type")
    edit_json(pfeiffer / "head_config.json", model_type=...)
    edit_json(pfeiffer / "adapter_config.json", model_type=...)
    refused(pfeiffer, InvalidPackage, "model_type")


# Heads


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label2id": {"a": 0, "b": 1}}, "3 ids"),
        ({"label2id": {"a": 0, "b": 1, "c": 1}}, "3 ids"),
        ({"label2id": {"a": 0, "b": 1, "c": 3}}, "3 ids"),
        ({"label2id": {"a": 0, "b": 1, "c": -1}}, "-1"),
        ({"label2id": {"a": 0, "b": 1, "c": 1.5}}, "1.5"),
        ({"label2id": {"a": 0, "b": 1, "c": True}}, "True"),
        ({"label2id": {"a": 0, "b": 1, "": 2}}, "label"),
        ({"label2id": []}, "label2id"),
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"num_labels": "3"}, "num_labels"),
        ({"layers": 0}, "layers"),
        ({"layers": 99}, "layers"),
        ({"layers": True}, "layers"),
        ({"layers": 3}, "heads.sst.4.weight"),
        ({"activation_function": None}, "heads.sst.3.weight"),
        ({"activation_function": "rrelu"}, "rrelu"),
        ({"bias": False}, "heads.sst.4.bias"),
        ({"use_pooler": "maybe"}, "use_pooler"),
        ({"head_type": "causal_lm"}, "causal_lm"),
        ({"head_type": ["x"]}, "x"),
    ],
)
def test_heads_that_are_refused(pfeiffer: Path, change: dict[str, Any], words: str) -> None:
    path = pfeiffer / "head_config.json"
    config = json.loads(path.read_text())
    config["config"] |= change
    path.write_text(json.dumps(config))
    refused(pfeiffer, InvalidPackage, words)


def test_labels(pfeiffer: Path) -> None:
    edit_json(pfeiffer / "head_config.json", config={"label2id": None})
    assert load_folder(pfeiffer).manifest.head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")  # type: ignore[union-attr]
    edit_json(pfeiffer / "head_config.json", config={"label2id": {"c": "2", "a": "0", "b": "1"}})
    assert load_folder(pfeiffer).manifest.head.labels == ("a", "b", "c")  # type: ignore[union-attr]


def test_one_label_is_a_regression_and_layers_without_activation_leave_no_index(pfeiffer: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        f"heads.sst.{i}.{kind}": rng.normal(size=shape).astype("<f4")
        for i, kind, shape in ((1, "weight", (32, 32)), (1, "bias", (32,)), (3, "weight", (1, 32)))
    }
    save_file(weights, pfeiffer / "model_head.safetensors")
    edit_json(pfeiffer / "head_config.json", config={"num_labels": 1, "label2id": None, "activation_function": None, "bias": False})
    imported = load_folder(pfeiffer)
    head = imported.manifest.head
    assert head is not None
    assert (head.type, head.labels, head.activation, head.bias) == ("regression", ("LABEL_0",), None, False)
    np.testing.assert_array_equal(load(write_package(imported.manifest, imported.tensors))["head.1.weight"], weights["heads.sst.3.weight"])


def test_foreign_heads_in_the_file_are_ignored_and_reported(pfeiffer: Path) -> None:
    path = pfeiffer / "model_head.safetensors"
    save_file(load_file(path) | {"heads.sst2.1.weight": np.zeros((2, 2), "<f4"), "heads.sst2.1.bias": np.zeros(2, "<f4")}, path)
    imported = load_folder(pfeiffer)
    assert any("'sst2'" in line for line in imported.report)
    assert len([name for name in imported.tensors if name.startswith("head.")]) == 4
    save_file(load_file(path) | {"heads.sst.9.weight": np.zeros((2, 2), "<f4")}, path)
    refused(pfeiffer, InvalidPackage, "heads.sst.9.weight")


def test_old_heads_keep_their_activation(pfeiffer: Path) -> None:
    """The old meaning of gelu holds for `non_linearity` of adapters only, as in the library."""
    edit_json(pfeiffer / "head_config.json", version=..., config={"activation_function": "gelu"})
    assert load_folder(pfeiffer).manifest.head.activation == "gelu"  # type: ignore[union-attr]


@pytest.mark.parametrize("model_class", sorted(STATIC))
def test_static_classes(pfeiffer: Path, model_class: str) -> None:
    static = STATIC[model_class]
    weights = {}
    for i, module in enumerate(static.modules):
        rows = 3 if i == len(static.modules) - 1 else 32
        weights |= {f"{module}.weight": np.ones((rows, 32), "<f4"), f"{module}.bias": np.ones(rows, "<f4")}
    save_file(weights, pfeiffer / "model_head.safetensors")
    edit_json(
        pfeiffer / "head_config.json", config=None, name=None, label2id={"a": 0, "b": 1, "c": 2}, num_labels=3, model_class=model_class
    )
    head = load_folder(pfeiffer).manifest.head
    assert head is not None
    assert (head.type, head.layers, head.labels) == (static.type, len(static.modules), ("a", "b", "c"))
    assert head.use_pooler is (model_class == "BertForSequenceClassification")


def test_static_classes_that_are_not_served(pfeiffer: Path) -> None:
    edit_json(pfeiffer / "head_config.json", config=None, name=None, model_class="BertForQuestionAnswering")
    refused(pfeiffer, UnsupportedMethod, "BertForQuestionAnswering")


# Pickles


@pytest.mark.parametrize("case", ["bert_pfeiffer_cls", "bert_static_cls"])
def test_pickles_convert_to_the_same_package(golden: Path, tmp_path: Path, case: str) -> None:
    folder = golden / case
    written = bin_to_safetensors(folder / "bin" / "adapters" / "sst", tmp_path / "out")
    assert {path.name for path in written} == {"adapter_config.json", "head_config.json", "adapter.safetensors", "model_head.safetensors"}
    ours, theirs = load_folder(tmp_path / "out"), load_folder(folder / "safetensors" / "adapters" / "sst")
    assert write_package(ours.manifest, ours.tensors) == write_package(theirs.manifest, theirs.tensors)


def test_pickles_that_are_more_than_tensors(tmp_path: Path) -> None:
    import pickle

    for content in (pickle.dumps({"x": print}), pickle.dumps([1]), b"", b"nonsense", b"PK\x03\x04 no zip"):
        (tmp_path / "pytorch_adapter.bin").write_bytes(content)
        with pytest.raises(InvalidPackage, match=r"pytorch_adapter\.bin was refused"):
            bin_to_safetensors(tmp_path, tmp_path / "out")
    (tmp_path / "pytorch_adapter.bin").unlink()
    with pytest.raises(InvalidPackage, match="no weights"):
        bin_to_safetensors(tmp_path, tmp_path / "out")


# Fuzz

values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**40), st.floats(), st.text(max_size=3), st.lists(st.integers(0, 3), max_size=2), st.just({})
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_config_is_read_or_refused(pfeiffer: Path, data: st.DataObject) -> None:
    for name in ("adapter_config.json", "head_config.json"):
        path = pfeiffer / name
        original = path.read_text()
        config = json.loads(original)
        for target in (config, config["config"]):
            for key in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=1)):
                target[key] = data.draw(values)
        path.write_text(json.dumps(config))
        try:
            imported = load_folder(pfeiffer)
            write_package(imported.manifest, imported.tensors)
        except StoreError as error:
            check_sentence(error)
        finally:
            path.write_text(original)

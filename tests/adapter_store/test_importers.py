"""AdapterHub folders: what is read, what is refused and by which words. Golden folders are changed to make the other cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import backbone_from, load_folder, refused, rename_tensors
from safetensors.numpy import load_file, save_file
from samples import check_sentence, copy_folder, edit_json, tensor, write_safetensors

from adapter_store.errors import InvalidPackage, UnsupportedMethod, WrongBackbone
from adapter_store.families import FAMILIES
from adapter_store.importers import folder_files, import_folder, import_to_file
from adapter_store.importers.adapterhub_config import LinearsConfig, Part, PrefixConfig, read_parts
from adapter_store.importers.adapterhub_presets import PRESETS
from adapter_store.importers.pickles import bin_to_safetensors
from adapter_store.methods import Bottleneck, Invertible, Prompt
from adapter_store.package import open_package, write_package


@pytest.fixture
def pfeiffer(golden: Path, tmp_path: Path) -> Path:
    """A copy of a Pfeiffer adapter with a head (bert, hidden 32, 3 layers) to be changed."""
    return copy_folder(golden / "bert_pfeiffer_cls" / "safetensors" / "adapters" / "sst", tmp_path / "sst")


SEQ_BN = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu", "original_ln_before": True}

PARALLEL = Bottleneck(is_parallel=True, original_ln_before=False, reduction_factor=2, scaling=4.0)


def parts(file: dict[str, Any], invertible: bool = False, family: str = "bert", warnings: list[str] | None = None) -> list[Part]:
    return read_parts(file, FAMILIES[family], invertible, [] if warnings is None else warnings)


def bottleneck(config: Any, **file: Any) -> Bottleneck:
    (part,) = parts({"config": config, "version": "adapters.1.3.0"} | file)
    assert isinstance(part, Bottleneck)
    return part


# What is read


def test_a_pfeiffer_folder(golden: Path, pfeiffer: Path) -> None:
    fingerprint = "sha256:" + "f" * 64
    backbone = backbone_from(golden / "bert_pfeiffer_cls", fingerprint=fingerprint, name="some/model")
    imported = load_folder(pfeiffer, backbone)
    assert imported.manifest.backbone == backbone.model_copy(update={"linears": {}})
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
    alone, known = load_folder(folder), load_folder(folder, backbone_from(golden / case))
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
    assert (method.scaling, method.is_parallel, method.mh_adapter, method.output_adapter) == ("learned", True, True, True)
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
    head = import_folder(only_head, backbone_from(golden / "bert_pfeiffer_cls"))
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
    method = SEQ_BN | {"reduction_factor": 4, "ln_before": True, "ln_after": True, "use_gating": True, "scaling": "channel"}
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
        ("pfeiffer", [Bottleneck()]),
        ("seq_bn", [Bottleneck()]),
        ("houlsby", [Bottleneck(mh_adapter=True, non_linearity="silu", original_ln_before=False)]),
        ("par_bn", [PARALLEL]),
        ("scaled_par_bn", [Bottleneck(is_parallel=True, original_ln_before=False, reduction_factor=2, scaling="learned")]),
        ("seq_bn_inv", [Bottleneck(), Invertible()]),
        ("compacter++", [Bottleneck(phm_layer=True, reduction_factor=32, non_linearity="gelu")]),
        ("lora", [LinearsConfig()]),
        ("ia3", [LinearsConfig(composition_mode="scale", attn_matrices=("k", "v"), intermediate_lora=True, r=1, alpha=1)]),
        ("prefix_tuning_flat", [PrefixConfig(flat=True)]),
        ("prompt_tuning", [Prompt(prompt_length=10, place="embeddings")]),
        (
            "mam",
            [PrefixConfig(bottleneck_size=800), Bottleneck(is_parallel=True, original_ln_before=False, reduction_factor=2, scaling=4.0)],
        ),
    ],
)
def test_presets_by_name(name: str, expected: list[Part]) -> None:
    assert parts({"config": name, "version": "adapters.1.3.0"}, invertible="inv" in name) == expected


def test_all_presets_are_read() -> None:
    for name in PRESETS:
        assert parts({"config": name}, invertible="inv" in name)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("mystery", "no known preset"),
        ({"architecture": "lora", "use_dora": True}, "DoRA"),
        ({"architecture": "lora", "vera_d": 0.1, "vera_b": 0.0}, "VeRA"),
        ({"architecture": "prompt_tuning", "combine": "suffix"}, "suffix"),
        ({"architecture": "reft"}, "ReFT"),
        ({"architecture": "mtl_lora"}, "MTL-LoRA"),
        ({"architecture": "union", "configs": [SEQ_BN, SEQ_BN]}, "several parts of the method bottleneck"),
        ({"architecture": "novel"}, "novel"),
        (SEQ_BN | {"inv_adapter": "glow"}, "glow"),
        (SEQ_BN | {"non_linearity": "rrelu"}, "rrelu"),
        ({"architecture": "prefix_tuning", "non_linearity": "rrelu"}, "rrelu"),
    ],
)
def test_methods_refused_by_name(config: Any, words: str) -> None:
    with pytest.raises(UnsupportedMethod) as caught:
        parts({"config": config}, invertible=isinstance(config, dict) and "inv_adapter" in config)
    check_sentence(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"reduction_factor": None}, {"reduction_factor": "x"}, {"scaling": "loud"}, {"leave_out": [-1]}, {"non_linearity": 3},
     {"non_linearity": ["relu"]}, {"mh_adapter": "maybe"}, {"output_adapter": False}, {"ln_after": True, "LN_after": False},
     {"mh_adapter": ...}, {"non_linearity": ...}, {"inv_adapter": "nice"}],
)  # fmt: skip
def test_configs_that_are_unsound(change: dict[str, Any]) -> None:
    config = {key: value for key, value in (SEQ_BN | change).items() if value is not ...}
    with pytest.raises(InvalidPackage) as caught:
        parts({"config": config})
    check_sentence(caught.value)


@pytest.mark.parametrize(
    "config",
    [None, [], 3, {"architecture": "lora", "r": 0}, {"architecture": "lora", "composition_mode": "scale"}, {"architecture": "union"},
     {"architecture": "union", "configs": [{"architecture": "union", "configs": ["lora"]}]},
     {"architecture": "prefix_tuning", "leave_out": "x"}],
)  # fmt: skip
def test_other_configs_that_are_unsound(config: Any) -> None:
    with pytest.raises(InvalidPackage):
        parts({"config": config})


def test_old_spellings_integers_and_unknown_keys() -> None:
    warnings: list[str] = []
    old = {
        "MH_Adapter": 1, "Output_Adapter": 0, "LN_after": 0, "scaling": 2, "leave_out": None, "attention_type": "sent-lvl", "novel": 3,
        "reduction_factor": 16, "non_linearity": "relu",
    }  # fmt: skip
    expected = Bottleneck(mh_adapter=True, output_adapter=False, scaling=2.0, original_ln_before=False)
    assert parts({"config": old}, warnings=warnings) == [expected]
    assert warnings == ["The config has keys that are not known and were ignored: 'novel'."]


def test_what_is_not_said_has_the_defaults_of_the_librarys_base_class() -> None:
    config = {key: value for key, value in SEQ_BN.items() if key != "original_ln_before"}
    assert bottleneck(config) == Bottleneck(original_ln_before=False)


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
    file = {"config": SEQ_BN | {"non_linearity": name}} | ({"version": version} if version else {})
    (part,) = parts(file)
    assert isinstance(part, Bottleneck)
    assert part.non_linearity == expected


def test_old_task_adapters_name_an_invertible_part_that_they_lack() -> None:
    warnings: list[str] = []
    file = {"config": SEQ_BN | {"invertible_adapter": {"block_type": "nice", "reduction_factor": 4}}, "type": "text_task"}
    assert parts(file, warnings=warnings) == [Bottleneck()]
    assert len(warnings) == 1
    assert parts(file, invertible=True) == [Bottleneck(), Invertible(reduction_factor=4)]
    with pytest.raises(InvalidPackage, match="no tensor"):
        parts(file | {"type": "text_lang"})


def test_models_reached_by_hooks_end_with_the_adapter() -> None:
    assert parts({"config": SEQ_BN}, family="modernbert") == [Bottleneck(original_ln_after=False)]
    with pytest.raises(UnsupportedMethod, match="mh_adapter together with original_ln_before"):
        parts({"config": SEQ_BN | {"mh_adapter": True}}, family="modernbert")
    parallel = SEQ_BN | {"mh_adapter": True, "is_parallel": True}
    assert parts({"config": parallel}, family="modernbert") == [Bottleneck(mh_adapter=True, is_parallel=True, original_ln_after=False)]


@pytest.mark.parametrize(
    ("version", "alpha"),
    [
        ("adapters.1.0.1", 4),
        ("adapters.1.1.0", 8),
        ("adapters.1.1.0.dev1", 4),
        ("adapters.0.2.2", 4),
        ("3.2.1", 8),
        (None, 8),
        ("adapters.x", 8),
    ],
)
def test_old_versions_trained_with_a_scaling_of_one(version: str | None, alpha: int) -> None:
    file = {"config": {"architecture": "lora", "r": 4, "alpha": 8}} | ({"version": version} if version else {})
    (part,) = parts(file)
    assert isinstance(part, LinearsConfig)
    assert part.alpha == alpha


# What is refused


@pytest.mark.parametrize(
    ("folder", "word"),
    [
        ("bert_pfeiffer_cls/bin/adapters/sst", "turret convert"),
        ("bert_prefix_cls/bin/adapters/sst", "turret convert"),
        ("peft_bert_lora_seqcls/bin/peft", "turret convert"),
        ("orig_compacter_t5/compacter_checkpoint", "turret convert"),
        ("bert_pfeiffer_cls/backbone", "tokenizer.json"),
    ],
)
def test_golden_folders_that_are_refused(golden: Path, folder: str, word: str) -> None:
    refused(golden / folder, InvalidPackage, word)


def test_nothing_and_files_that_are_paths(pfeiffer: Path) -> None:
    with pytest.raises(InvalidPackage, match="nothing"):
        import_folder({})
    for name in ("../adapter_config.json", "a/b/c", "a/", "/a", "a/..", "a\\b", "/etc/passwd", "", ".", "..", "a\0b", "x" * 300):
        with pytest.raises(InvalidPackage, match="plain file name"):
            import_folder(folder_files(pfeiffer) | {name: pfeiffer / "adapter_config.json"})
    with pytest.raises(InvalidPackage, match="at most"):
        import_folder({str(i): pfeiffer for i in range(2000)})


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
    refused(pfeiffer, InvalidPackage, "invertible")


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
        refused(pfeiffer, WrongBackbone, word, backbone=backbone_from(case, **change))
    edit_json(pfeiffer / "adapter_config.json", model_name="google-bert/bert-base-uncased")
    assert load_folder(pfeiffer, backbone_from(case, name="/models/bert-base-uncased/")).warnings == ()
    assert "roberta-base" in load_folder(pfeiffer, backbone_from(case, name="roberta-base")).warnings[0]


def test_configs_that_contradict_each_other(pfeiffer: Path) -> None:
    edit_json(pfeiffer / "head_config.json", hidden_size=64)
    refused(pfeiffer, InvalidPackage, "hidden_size")
    edit_json(pfeiffer / "head_config.json", hidden_size=32, model_type="roberta")
    refused(pfeiffer, InvalidPackage, "model_type")
    edit_json(pfeiffer / "head_config.json", model_type=...)
    edit_json(pfeiffer / "adapter_config.json", model_type=...)
    refused(pfeiffer, InvalidPackage, "model_type")


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

"""The parts of AdapterHub adapters: LoRA, (IA)^3, prefixes, prompts, invertible adapters, Compacter and unions of these."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import HIDDEN, load_folder, numbers, refused, write_adapter
from safetensors.numpy import load_file, save_file
from samples import edit_json

from adapter_store.errors import InvalidPackage, UnsupportedMethod, WrongBackbone
from adapter_store.methods import IA3, Backbone, Bottleneck, Invertible, LoRA, Prefix, Prompt

LORA = {"architecture": "lora", "r": 2, "alpha": 6}
SEQ_BN = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu", "original_ln_before": True}
BERT = "bert.encoder.layer.0"


def site(path: str, name: str = "x", down: str = "adapter_down.0") -> dict[str, tuple[int, ...]]:
    """The tensors of a bottleneck of size 2."""
    inner = {f"{down}.weight": (2, HIDDEN), f"{down}.bias": (2,), "adapter_up.weight": (HIDDEN, 2), "adapter_up.bias": (HIDDEN,)}
    return {f"{path}.adapters.{name}.{key}": shape for key, shape in inner.items()}


def low_rank(path: str, inputs: int = HIDDEN, outputs: int = HIDDEN, rank: int = 2) -> dict[str, tuple[int, ...]]:
    return {f"{path}.loras.x.lora_A": (rank, inputs), f"{path}.loras.x.lora_B": (outputs, rank)}


# LoRA


def test_lora_at_every_linear(tmp_path: Path) -> None:
    config = LORA | {"attn_matrices": ["v", "q", "k"], "intermediate_lora": True, "output_lora": True}
    self_attention = f"{BERT}.attention.self"
    shapes = low_rank(f"{self_attention}.query") | low_rank(f"{self_attention}.key") | low_rank(f"{self_attention}.value")
    shapes |= low_rank(f"{BERT}.intermediate.dense", HIDDEN, 20) | low_rank(f"{BERT}.output.dense", 20, HIDDEN)
    theirs = write_adapter(tmp_path, "bert", config, shapes)
    imported = load_folder(tmp_path)
    modules = ("layers.0.q", "layers.0.k", "layers.0.v", "layers.0.up", "layers.0.down")
    assert imported.manifest.methods == {"lora": LoRA(modules=modules, rank=2, scaling=3.0)}
    assert imported.manifest.backbone.linears["down"] == (20, HIDDEN)
    np.testing.assert_array_equal(numbers(imported)["lora.layers.0.down.a"], theirs[f"{BERT}.output.dense.loras.x.lora_A"])
    del shapes[f"{BERT}.output.dense.loras.x.lora_B"]
    write_adapter(tmp_path, "bert", config, shapes)
    refused(tmp_path, InvalidPackage, "lora.layers.0.down.b", backbone=backbone("bert"))


def backbone(model_type: str, layers: int = 1, decoder: int = 0, **linears: tuple[int, int]) -> Backbone:
    square = (HIDDEN, HIDDEN)
    known: dict[str, tuple[int, int]] = dict.fromkeys(("q", "k", "v", "o"), square) | {"up": (HIDDEN, 20), "down": (20, HIDDEN)}
    if decoder:
        known |= dict.fromkeys(("cross_q", "cross_k", "cross_v", "cross_o"), square)
    return Backbone(model_type=model_type, hidden_size=HIDDEN, num_layers=layers, decoder_layers=decoder, linears=known | linears)


def test_lora_only_where_the_config_calls_for_it(tmp_path: Path) -> None:
    shapes = low_rank(f"{BERT}.attention.self.query") | low_rank(f"{BERT}.attention.self.value")
    write_adapter(tmp_path, "bert", LORA, shapes | low_rank(f"{BERT}.attention.self.key"))
    refused(tmp_path, InvalidPackage, "attention.self.key", "does not call for")
    write_adapter(tmp_path, "bert", LORA, low_rank(f"{BERT}.attention.self.query"))
    refused(tmp_path, InvalidPackage, "lora.layers.0.v")
    write_adapter(tmp_path, "bert", LORA | {"selfattn_lora": False}, shapes)
    refused(tmp_path, InvalidPackage, "attention.self.query", "does not call for")
    write_adapter(tmp_path, "bert", LORA | {"leave_out": [1]}, shapes)
    assert load_folder(tmp_path, backbone("bert", 2)).manifest.backbone.num_layers == 2
    refused(tmp_path, WrongBackbone, "3 layers", backbone=backbone("bert", 3))
    wide = backbone("bert", 2, q=(HIDDEN, 12))
    refused(tmp_path, InvalidPackage, "query.loras.x.lora_B", "[12, 2]", backbone=wide)


def test_llamas_feed_forward_has_swapped_names(tmp_path: Path) -> None:
    config = LORA | {"attn_matrices": [], "intermediate_lora": True}
    write_adapter(tmp_path, "llama", config, low_rank("model.layers.0.mlp.down_proj", 20, HIDDEN))
    (method,) = load_folder(tmp_path).manifest.methods.values()
    assert isinstance(method, LoRA)
    assert method.modules == ("layers.0.down",)
    write_adapter(
        tmp_path, "llama", config | {"intermediate_lora": False, "output_lora": True}, low_rank("layers.0.mlp.up_proj", HIDDEN, 20)
    )
    (method,) = load_folder(tmp_path).manifest.methods.values()
    assert isinstance(method, LoRA)
    assert method.modules == ("layers.0.up",)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_t5_covers_cross_attention_and_the_ungated_dense(tmp_path: Path, prefix: str) -> None:
    config = LORA | {"attn_matrices": ["q"], "intermediate_lora": True, "leave_out": [1]}
    paths = [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
    ]
    shapes = {key: shape for path in paths for key, shape in low_rank(prefix + path).items()}
    for path in ("encoder.block.0.layer.1.DenseReluDense.wi_1", "decoder.block.0.layer.2.DenseReluDense.wi_1"):
        shapes |= low_rank(prefix + path, HIDDEN, 20)
    write_adapter(tmp_path, "t5", config, shapes)
    imported = load_folder(tmp_path)
    (method,) = imported.manifest.methods.values()
    assert isinstance(method, LoRA)
    assert method.modules == ("layers.0.q", "layers.0.up", "layers.2.q", "layers.2.cross_q", "layers.2.up")
    assert (imported.manifest.backbone.num_layers, imported.manifest.backbone.decoder_layers) == (3, 1)
    assert load_folder(tmp_path, backbone("t5", 3, 1)).manifest.methods == imported.manifest.methods
    refused(tmp_path, WrongBackbone, "ends at layer", backbone=backbone("t5", 4, 2))


@pytest.mark.parametrize(("family", "path"), [("gpt2", "transformer.h.0.attn.c_attn"), ("modernbert", "model.layers.0.attn.Wqkv")])
@pytest.mark.parametrize("matrices", [["q"], ["v", "q"], ["q", "k", "v"], ["k", "v"]])
def test_fused_projections_become_one_lora(tmp_path: Path, family: str, path: str, matrices: list[str]) -> None:
    """Block j of A, then block j of B, into the j-th adapted third: A and B of the whole must give the same."""
    count = len(matrices)
    shapes = {f"{path}.loras.x.lora_A": (2 * count, HIDDEN), f"{path}.loras.x.lora_B": (HIDDEN * count, 2)}
    theirs = write_adapter(tmp_path, family, LORA | {"attn_matrices": matrices}, shapes)
    imported = load_folder(tmp_path)
    (method,) = imported.manifest.methods.values()
    assert isinstance(method, LoRA)
    assert (method.modules, method.rank_of("layers.0.qkv"), method.scaling) == (("layers.0.qkv",), 2 * count, 3.0)
    ours = numbers(imported)
    expected = np.zeros((3 * HIDDEN, HIDDEN), "<f4")
    a, b = (np.split(theirs[f"{path}.loras.x.lora_{letter}"], count) for letter in "AB")
    for block, third in enumerate(place for place, letter in enumerate("qkv") if letter in matrices):
        expected[third * HIDDEN : (third + 1) * HIDDEN] = b[block] @ a[block]
    np.testing.assert_allclose(ours["lora.layers.0.qkv.b"] @ ours["lora.layers.0.qkv.a"], expected, atol=1e-6)


def test_gates_take_the_place_of_the_scaling(tmp_path: Path) -> None:
    path = f"{BERT}.attention.self.query"
    shapes = low_rank(path) | {f"{path}.loras.x.gate.weight": (1, HIDDEN), f"{path}.loras.x.gate.bias": (1,)}
    write_adapter(tmp_path, "bert", LORA | {"attn_matrices": ["q"], "use_gating": True}, shapes)
    (method,) = load_folder(tmp_path).manifest.methods.values()
    assert method == LoRA(modules=("layers.0.q",), rank=2, scaling=1.0, use_gating=True)


def test_fused_projections_have_a_gate_for_each_third(tmp_path: Path) -> None:
    path = "transformer.h.0.attn.c_attn.loras.x"
    gates: dict[str, tuple[int, ...]] = {f"{path}.gate.weight": (2, HIDDEN), f"{path}.gate.bias": (2,)}
    matrices = {"attn_matrices": ["q", "v"], "use_gating": True}
    theirs = write_adapter(tmp_path, "gpt2", LORA | matrices, gates | {f"{path}.lora_A": (4, HIDDEN), f"{path}.lora_B": (2 * HIDDEN, 2)})
    ours = numbers(load_folder(tmp_path))
    np.testing.assert_array_equal(ours["lora.layers.0.qkv.gate.weight"][[0, 2]], theirs[f"{path}.gate.weight"])
    assert not ours["lora.layers.0.qkv.gate.weight"][1].any()
    ia3 = {"architecture": "lora", "composition_mode": "scale", "r": 1, "alpha": 1}
    theirs = write_adapter(tmp_path, "gpt2", ia3 | matrices, gates | {f"{path}.lora_B": (2 * HIDDEN, 1)})
    ours = numbers(load_folder(tmp_path))
    gate = 1 / (1 + np.exp(-ours["ia3.layers.0.qkv.gate.bias"]))
    np.testing.assert_allclose(gate[[0, 2]], 1 / (1 + np.exp(-theirs[f"{path}.gate.bias"])), rtol=1e-6)
    assert gate[1] == 1
    assert not ours["ia3.layers.0.qkv.gate.weight"][1].any()


def test_ia3(tmp_path: Path) -> None:
    config = {
        "architecture": "lora", "composition_mode": "scale", "attn_matrices": ["k", "v"], "intermediate_lora": True, "r": 1, "alpha": 2
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {f"{BERT}.attention.self.{name}.loras.x.lora_B": (HIDDEN, 1) for name in ("key", "value")}
    write_adapter(tmp_path, "bert", config, shapes | {f"{BERT}.intermediate.dense.loras.x.lora_B": (20, 1)})
    imported = load_folder(tmp_path)
    assert imported.manifest.methods == {"ia3": IA3(outputs=("layers.0.k", "layers.0.v", "layers.0.up"), scaling=2.0)}
    path = "h.0.attn.c_attn.loras.x.lora_B"
    theirs = write_adapter(tmp_path, "gpt2", config | {"intermediate_lora": False}, {path: (2 * HIDDEN, 1)})
    scale = numbers(load_folder(tmp_path))["ia3.layers.0.qkv.scale"]
    np.testing.assert_array_equal(scale, np.concatenate([np.ones(HIDDEN, "<f4"), theirs[path][:, 0]]))
    write_adapter(tmp_path, "gpt2", config | {"intermediate_lora": False}, {path: (2 * HIDDEN, 2)})
    refused(tmp_path, InvalidPackage, "[out, 1]")


def test_dimensions_that_nothing_tells(tmp_path: Path) -> None:
    config = {"architecture": "lora", "composition_mode": "scale", "attn_matrices": [], "intermediate_lora": True, "r": 1, "alpha": 1}
    write_adapter(tmp_path, "llama", config, {"model.layers.0.mlp.down_proj.loras.x.lora_B": (HIDDEN, 1)})
    refused(tmp_path, InvalidPackage, "'down'", "name the backbone")
    assert load_folder(tmp_path, backbone("llama")).manifest.backbone.linears == {"down": (20, HIDDEN)}


# Prefixes and prompts


def pooled(key: str, attentions: list[str]) -> list[str]:
    """A prefix's key and those of its copies in the attentions."""
    return [f"bert.prefix_tuning.prefix_tunings.x.{key}"] + [f"{path}.prefix_tuning.pool.prefix_tunings.x.{key}" for path in attentions]


def test_a_flat_prefix_and_its_copies(tmp_path: Path) -> None:
    attentions = [f"bert.encoder.layer.{i}.attention.self" for i in range(3)]
    keys = pooled("self_prefix.control_trans", attentions)
    config = {"architecture": "prefix_tuning", "flat": True, "prefix_length": 5, "leave_out": [1]}
    contents = write_adapter(tmp_path, "bert", config, dict.fromkeys(keys, (5 * 2 * 2 * HIDDEN,)))
    same = dict.fromkeys(keys, contents[keys[0]])
    save_file(same, tmp_path / "adapter.safetensors")
    imported = load_folder(tmp_path)
    assert imported.manifest.methods == {"prefix": Prefix(prefix_length=5, leave_out=(1,))}
    assert (imported.manifest.backbone.num_layers, imported.manifest.backbone.linears) == (3, {"k": (HIDDEN, HIDDEN)})
    np.testing.assert_array_equal(numbers(imported)["prefix.self.prefix"], contents[keys[0]].reshape(5, 4, HIDDEN))
    save_file({keys[0]: contents[keys[0]]}, tmp_path / "adapter.safetensors")
    assert load_folder(tmp_path, backbone("bert", 3)).manifest.methods == imported.manifest.methods
    refused(tmp_path, InvalidPackage, "how many layers")
    save_file(same | {keys[2]: contents[keys[2]]}, tmp_path / "adapter.safetensors")
    refused(tmp_path, InvalidPackage, "contradict")


def test_a_reparametrised_prefix_with_gates(tmp_path: Path) -> None:
    config = {
        "architecture": "prefix_tuning", "prefix_length": 5, "bottleneck_size": 3, "use_gating": True, "shared_gating": False
    }  # fmt: skip
    root = "distilbert.prefix_tuning.prefix_tunings.x.self"
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}.wte.weight": (5, HIDDEN),
        f"{root}.control_trans.0.weight": (3, HIDDEN),
        f"{root}.control_trans.0.bias": (3,),
        f"{root}.control_trans.2.weight": (2 * HIDDEN, 3),
        f"{root}.control_trans.2.bias": (2 * HIDDEN,),
    }
    gate = "distilbert.transformer.layer.0.attention.prefix_tuning.prefix_gates.x"
    write_adapter(tmp_path, "distilbert", config, shapes | {f"{gate}.weight": (2, HIDDEN), f"{gate}.bias": (2,)})
    imported = load_folder(tmp_path)
    expected = Prefix(prefix_length=5, flat=False, bottleneck_size=3, use_gating=True, shared_gating=False)
    assert imported.manifest.methods == {"prefix": expected}
    assert {"prefix.self.embedding", "prefix.self.mlp.1.weight", "prefix.layers.0.self.gate.weight"} <= imported.tensors.keys()


def test_t5_prefixes_by_group(tmp_path: Path) -> None:
    config = {"architecture": "prefix_tuning", "flat": True, "prefix_length": 2, "encoder_prefix": True, "cross_prefix": False}
    shapes = {
        f"transformer.prefix_tuning.prefix_tunings.x.{group}.control_trans": (2 * 2 * HIDDEN,)
        for group in ("encoder_prefix", "self_prefix")
    }
    write_adapter(tmp_path, "t5", config, shapes)
    (method,) = load_folder(tmp_path, backbone("t5", 2, 1)).manifest.methods.values()
    assert isinstance(method, Prefix)
    assert method.groups == ("encoder", "self")
    edit_json(tmp_path / "adapter_config.json", config={"leave_out": [0]})
    refused(tmp_path, InvalidPackage, "encoder_prefix", backbone=backbone("t5", 2, 1))
    edit_json(tmp_path / "adapter_config.json", config={"leave_out": [], "cross_prefix": True})
    refused(tmp_path, InvalidPackage, "prefix.cross.prefix", backbone=backbone("t5", 2, 1))


def test_prompts(tmp_path: Path) -> None:
    config = {"architecture": "prompt_tuning", "prompt_length": 4, "combine": "prefix_after_bos"}
    write_adapter(tmp_path, "bert", config, {"bert.prompt_tuning.prompt_tunings.x.prompt_embedding.weight": (4, HIDDEN)})
    imported = load_folder(tmp_path, backbone("bert"))
    assert imported.manifest.methods == {"prompt": Prompt(prompt_length=4, place="embeddings", after_first=True)}
    refused(tmp_path, InvalidPackage, "how many layers")


# Invertible adapters and Compacter


def test_an_invertible_part_has_the_activation_of_its_bottleneck(tmp_path: Path) -> None:
    config = SEQ_BN | {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2, "non_linearity": "swish"}
    nets = {f"electra.invertible_lang_adapters.x.{net}": (inputs, 5 - inputs) for net, inputs in (("F", 3), ("G", 2))}
    shapes = site("electra.encoder.layer.0.output")
    for net, (inputs, outputs) in nets.items():
        inner = inputs // 2
        shapes |= {
            f"{net}.0.weight": (inner, inputs),
            f"{net}.0.bias": (inner,),
            f"{net}.2.weight": (outputs, inner),
            f"{net}.2.bias": (outputs,),
        }
    write_adapter(tmp_path, "electra", config, shapes)
    imported = load_folder(tmp_path)
    assert imported.manifest.methods["invertible"] == Invertible(non_linearity="silu", reduction_factor=2)
    assert imported.manifest.backbone.embedding_size == 5
    assert imported.warnings == ()


def kronecker(path: str, rank: int = 1, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The linears of a Compacter of size 4, n = 2."""
    inner = {"adapter_down.0.W_left": (2, 4, rank), "adapter_down.0.W_right": (2, rank, 2), "adapter_down.0.b": (4,)}
    inner |= {"adapter_up.W_left": (2, 2, rank), "adapter_up.W_right": (2, rank, 4), "adapter_up.b": (HIDDEN,)}
    return {f"{path}.adapters.x.{name}": shape for name, shape in (inner | more).items()}


COMPACTER = SEQ_BN | {"phm_layer": True, "phm_dim": 2, "reduction_factor": 2}
OUTPUT = f"{BERT}.output"


@pytest.mark.parametrize(
    ("change", "shapes", "name"),
    [
        ({}, kronecker(OUTPUT) | {"bert.shared_parameters.x.phm_rule": (2, 2, 2)}, "shared.rule"),
        (
            {"factorized_phm_rule": True},
            kronecker(OUTPUT) | {"bert.shared_parameters.x.phm_rule_left": (2, 2, 1), "bert.shared_parameters.x.phm_rule_right": (2, 1, 2)},
            "shared.rule_left",
        ),
        (
            {"shared_phm_rule": False, "phm_rank": 3},
            kronecker(OUTPUT, 3, **{"adapter_down.0.phm_rule": (2, 2, 2), "adapter_up.phm_rule": (2, 2, 2)}),
            "layers.0.output.up.rule",
        ),
        (
            {"factorized_phm_W": False, "phm_bias": False},
            {f"{OUTPUT}.adapters.x.adapter_down.0.W": (2, 4, 2), f"{OUTPUT}.adapters.x.adapter_up.W": (2, 2, 4)}
            | {"bert.shared_parameters.x.phm_rule": (2, 2, 2)},
            "layers.0.output.down.w",
        ),
        (
            {"shared_W_phm": True},
            {f"{OUTPUT}.adapters.x.adapter_down.0.b": (4,), f"{OUTPUT}.adapters.x.adapter_up.b": (HIDDEN,)}
            | {"bert.shared_parameters.x.W_down_left": (2, 4, 1), "bert.shared_parameters.x.W_down_right": (2, 1, 2)}
            | {"bert.shared_parameters.x.W_up_left": (2, 2, 1), "bert.shared_parameters.x.W_up_right": (2, 1, 4)}
            | {"bert.shared_parameters.x.phm_rule": (2, 2, 2)},
            "shared.up.w_right",
        ),
    ],
)
def test_compacter_in_all_its_forms(tmp_path: Path, change: dict[str, Any], shapes: dict[str, tuple[int, ...]], name: str) -> None:
    write_adapter(tmp_path, "bert", COMPACTER | change, shapes)
    imported = load_folder(tmp_path)
    assert f"bottleneck.{name}" in imported.tensors
    assert len(imported.tensors) == len(shapes)
    (method,) = imported.manifest.methods.values()
    assert isinstance(method, Bottleneck)
    assert method.phm_layer


def test_a_compacter_that_lost_its_rule_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, "bert", COMPACTER, {key.removeprefix("bert."): shape for key, shape in kronecker(OUTPUT).items()})
    refused(tmp_path, UnsupportedMethod, "has lost its Kronecker rule", "cannot be recovered")


# Bottlenecks of other families


@pytest.mark.parametrize(
    ("family", "paths"),
    [
        ("gpt2", ["transformer.h.0.attention_adapters", "transformer.h.0.output_adapters"]),
        ("llama", ["model.layers.0.attention_adapters", "model.layers.0.output_adapters"]),
        ("distilbert", ["transformer.layer.0.attention_adapters", "transformer.layer.0.output_adapters"]),
        ("albert", [f"albert.encoder.albert_layer_groups.0.albert_layers.0.{path}_adapters" for path in ("attention.attention", "output")]),
        ("t5", ["encoder.block.0.layer.0", "encoder.block.0.layer.1", *(f"decoder.block.0.layer.{i}" for i in (0, 1, 2))]),
    ],
)
def test_sites_of_families(tmp_path: Path, family: str, paths: list[str]) -> None:
    config = SEQ_BN | {"mh_adapter": True, "cross_adapter": True}
    write_adapter(tmp_path, family, config, {key: shape for path in paths for key, shape in site(path).items()})
    imported = load_folder(tmp_path)
    assert len(imported.tensors) == 4 * len(paths)
    assert imported.manifest.backbone.num_layers == (2 if family == "t5" else 1)
    if family == "t5":
        assert "bottleneck.layers.1.cross.up.weight" in imported.tensors


def test_alberts_layers_are_counted_group_by_group(tmp_path: Path) -> None:
    path = "albert.encoder.albert_layer_groups.{g}.albert_layers.{i}.output_adapters"
    places = [(group, inner) for group in (0, 1) for inner in (0, 1)]
    shapes = {key: shape for group, inner in places for key, shape in site(path.format(g=group, i=inner)).items()}
    theirs = write_adapter(tmp_path, "albert", SEQ_BN, shapes)
    imported = load_folder(tmp_path)
    assert imported.manifest.backbone.num_layers == 4
    key = f"{path.format(g=1, i=0)}.adapters.x.adapter_up.bias"
    np.testing.assert_array_equal(numbers(imported)["bottleneck.layers.2.output.up.bias"], theirs[key])
    assert "embeddings" in imported.warnings[0]


def test_a_t5_whose_layers_cannot_be_counted(tmp_path: Path) -> None:
    shapes = site("encoder.block.0.layer.1") | site("decoder.block.0.layer.2")
    write_adapter(tmp_path, "t5", SEQ_BN | {"leave_out": [1]}, shapes)
    assert load_folder(tmp_path).manifest.backbone == backbone("t5", 3, 1).model_copy(update={"linears": {}})
    write_adapter(tmp_path, "t5", SEQ_BN | {"leave_out": [1, 2]}, site("encoder.block.0.layer.1"))
    refused(tmp_path, InvalidPackage, "encoder and decoder have", "name the backbone")
    assert load_folder(tmp_path, backbone("t5", 3, 2)).manifest.backbone.encoder_layers == 1


# Unions


def test_a_union_of_everything(tmp_path: Path) -> None:
    prefix = {"architecture": "prefix_tuning", "flat": True, "prefix_length": 1}
    ia3 = {"architecture": "lora", "composition_mode": "scale", "attn_matrices": [], "intermediate_lora": True, "r": 1, "alpha": 1}
    config = {"architecture": "union", "configs": [prefix, SEQ_BN, LORA | {"attn_matrices": ["q"]}, ia3]}
    shapes = site(OUTPUT) | low_rank(f"{BERT}.attention.self.query") | {f"{BERT}.intermediate.dense.loras.x.lora_B": (20, 1)}
    shapes["bert.prefix_tuning.prefix_tunings.x.self_prefix.control_trans"] = (2 * HIDDEN,)
    write_adapter(tmp_path, "bert", config, shapes)
    imported = load_folder(tmp_path)
    assert list(imported.manifest.methods) == ["prefix", "bottleneck", "lora", "ia3"]
    assert imported.manifest.methods["ia3"] == IA3(outputs=("layers.0.up",))
    assert len(imported.report) == 4
    contents = load_file(tmp_path / "adapter.safetensors")
    save_file({key: value for key, value in contents.items() if "loras" not in key or "query" in key}, tmp_path / "adapter.safetensors")
    refused(tmp_path, InvalidPackage, "ia3.layers.0.up")

"""PEFT folders: LoRA, (IA)^3, prefixes and prompts, their heads by task, and what changes the backbone and is refused by name."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import HIDDEN, load_folder, numbers, refused, values, write_peft
from safetensors.numpy import load_file, save_file
from samples import edit_json

from adapter_store.errors import InvalidPackage, UnsupportedMethod, WrongBackbone
from adapter_store.manifest import Head
from adapter_store.methods import IA3, Backbone, LoRA, Prefix, Prompt

LORA: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "bias": "none",
    "use_dora": False, "init_lora_weights": True, "modules_to_save": ["classifier", "score"], "peft_version": "0.21.2",
    "rank_pattern": {}, "alpha_pattern": {},
}  # fmt: skip
ROOT = "base_model.model"
BERT = f"{ROOT}.bert.encoder.layer"
CLASSIFIER: dict[str, tuple[int, ...]] = {f"{ROOT}.classifier.weight": (3, HIDDEN), f"{ROOT}.classifier.bias": (3,)}
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")


def low_rank(path: str, rank: int = 2, inputs: int = HIDDEN, outputs: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    return {f"{path}.lora_A.weight": (rank, inputs), f"{path}.lora_B.weight": (outputs, rank)}


def backbone(model_type: str = "bert", layers: int = 2, decoder: int = 0, **linears: tuple[int, int]) -> Backbone:
    square = (HIDDEN, HIDDEN)
    known = dict.fromkeys(("q", "k", "v", "o", "pooler", "cross_q"), square)
    known |= {"qkv": (HIDDEN, 3 * HIDDEN), "up": (HIDDEN, 20), "down": (20, HIDDEN)}
    return Backbone(model_type=model_type, hidden_size=HIDDEN, num_layers=layers, decoder_layers=decoder, linears=known | linears)


def both(name: str, rank: int = 2, **sizes: int) -> dict[str, tuple[int, ...]]:
    return low_rank(f"{BERT}.0.{name}", rank, **sizes) | low_rank(f"{BERT}.1.{name}", rank, **sizes)


QUERY = both("attention.self.query")


def test_a_lora_with_a_head(tmp_path: Path) -> None:
    theirs = write_peft(tmp_path, LORA | {"base_model_name_or_path": "bert-base-uncased"}, QUERY | CLASSIFIER)
    imported = load_folder(tmp_path)
    assert imported.manifest.methods == {"lora": LoRA(modules=("layers.0.q", "layers.1.q"), rank=2, scaling=2.0)}
    assert imported.manifest.head == Head(type="classification", layers=1, use_pooler=True, labels=LABELS)
    assert imported.manifest.source == {"format": "peft", "version": "peft.0.21.2", "model_name": "bert-base-uncased"}
    np.testing.assert_array_equal(numbers(imported)["lora.layers.1.q.b"], theirs[f"{BERT}.1.attention.self.query.lora_B.weight"])
    assert load_folder(tmp_path, backbone()).manifest.methods == imported.manifest.methods


def test_ranks_alphas_and_their_patterns(tmp_path: Path) -> None:
    key, value = "attention.self.key", "attention.self.value"
    shapes = QUERY | low_rank(f"{BERT}.0.{key}", 4) | low_rank(f"{BERT}.1.{key}", 2) | both(value)
    config = LORA | {
        "target_modules": ["query", "key", "value"],
        "rank_pattern": {"layer.0.attention.self.key": 4},
        "alpha_pattern": {r"^bert\.encoder\.layer\.1\..*value": 12, "key": 8},
    }
    write_peft(tmp_path, config, shapes | CLASSIFIER)
    (method,) = load_folder(tmp_path).manifest.methods.values()
    assert isinstance(method, LoRA)
    assert (method.rank, method.ranks) == (2, {"layers.0.k": 4})
    scalings = {address: method.scaling_of(address) for address in method.modules}
    assert scalings == {"layers.0.q": 2, "layers.1.q": 2, "layers.0.k": 2, "layers.1.k": 4, "layers.0.v": 2, "layers.1.v": 6}
    write_peft(tmp_path, config | {"use_rslora": True}, shapes | CLASSIFIER)
    (method,) = load_folder(tmp_path).manifest.methods.values()
    assert isinstance(method, LoRA)
    assert method.scaling_of("layers.0.k") == pytest.approx(8 / 2)
    assert method.scaling_of("layers.1.v") == pytest.approx(12 / math.sqrt(2))


@pytest.mark.parametrize("expression", ["(a+)+b", "(.*)*x", ".*.*.*y", "((((((x))))))", "x" * 300, "(", "[", "(a|b){9}"])
def test_patterns_that_could_take_long_or_are_none(tmp_path: Path, expression: str) -> None:
    write_peft(tmp_path, LORA | {"alpha_pattern": {expression: 3}}, QUERY | CLASSIFIER)
    refused(tmp_path, UnsupportedMethod, "alpha_pattern")


def test_many_patterns_with_repetitions_are_refused(tmp_path: Path) -> None:
    write_peft(tmp_path, LORA | {"alpha_pattern": {f".*{i}": 3 for i in range(100)}}, QUERY | CLASSIFIER)
    refused(tmp_path, UnsupportedMethod, "repetitions")
    write_peft(tmp_path, LORA | {"alpha_pattern": {"query": "4"}}, QUERY | CLASSIFIER)
    refused(tmp_path, InvalidPackage, "query")


@pytest.mark.parametrize(
    ("model_type", "paths", "addresses"),
    [
        ("bert", {"bert.pooler.dense": (8, 8), "bert.encoder.layer.0.attention.output.dense": (8, 8)}, ("layers.0.o", "pooler")),
        ("gpt2", {"transformer.h.0.attn.c_attn": (8, 24), "transformer.h.1.mlp.c_proj": (20, 8)}, ("layers.0.qkv", "layers.1.down")),
        ("modernbert", {"model.layers.0.attn.Wqkv": (8, 24), "head.dense": (8, 8)}, ("layers.0.qkv", "pooler")),
        ("llama", {"model.layers.1.mlp.gate_proj": (8, 20)}, ("layers.1.gate",)),
        (
            "electra",
            {"electra.embeddings_project": (4, 8), "electra.encoder.layer.1.attention.self.key": (8, 8)},
            ("layers.1.k", "embedding_projection"),
        ),
        ("albert", {"albert.encoder.albert_layer_groups.0.albert_layers.1.ffn": (8, 20)}, ("layers.1.up",)),
        ("t5", {"encoder.block.0.layer.1.DenseReluDense.wi_0": (8, 20)}, ("layers.0.gate",)),
        ("t5", {"decoder.block.0.layer.1.EncDecAttention.q": (8, 8)}, ("layers.1.cross_q",)),
    ],
)
def test_linears_of_families(tmp_path: Path, model_type: str, paths: dict[str, tuple[int, int]], addresses: tuple[str, ...]) -> None:
    shapes = {
        key: shape for path, (inputs, outputs) in paths.items() for key, shape in low_rank(f"{ROOT}.{path}", 2, inputs, outputs).items()
    }
    write_peft(tmp_path, LORA | {"task_type": None, "target_modules": "some.*expression"}, shapes)
    base = backbone(model_type, 2, 1 if model_type == "t5" else 0, gate=(8, 20), embedding_projection=(4, 8))
    imported = load_folder(tmp_path, base)
    (method,) = imported.manifest.methods.values()
    assert isinstance(method, LoRA)
    assert method.modules == addresses
    assert imported.manifest.backbone.linears.keys() == {address.rpartition(".")[2] for address in addresses}
    assert imported.manifest.head is None


def test_layers_that_are_missing(tmp_path: Path) -> None:
    write_peft(tmp_path, LORA | {"layers_to_transform": [1]}, low_rank(f"{BERT}.1.attention.self.query") | CLASSIFIER)
    (method,) = load_folder(tmp_path, backbone(layers=4)).manifest.methods.values()
    assert isinstance(method, LoRA)
    assert method.modules == ("layers.1.q",)
    edit_json(tmp_path / "adapter_config.json", layers_to_transform=None)
    refused(tmp_path, InvalidPackage, "layer.0.attention.self.query", "target_modules", backbone=backbone())
    refused(tmp_path, WrongBackbone, "reaches layer 1", backbone=backbone(layers=1))
    write_peft(tmp_path, LORA, {key: shape for key, shape in (QUERY | CLASSIFIER).items() if "1.attention.self.query.lora_B" not in key})
    refused(tmp_path, InvalidPackage, "lora.layers.1.q.b")


def test_the_model_type_must_be_told_where_the_keys_do_not_tell_it(tmp_path: Path) -> None:
    path = f"{ROOT}.roberta.encoder.layer.0.attention.self.query"
    write_peft(tmp_path, LORA | {"task_type": None}, low_rank(path))
    refused(tmp_path, InvalidPackage, "roberta, xlm-roberta", "name the backbone")
    assert load_folder(tmp_path, backbone("xlm-roberta", 1)).manifest.backbone.model_type == "xlm-roberta"
    edit_json(tmp_path / "adapter_config.json", auto_mapping={"parent_library": "transformers.models.xlm_roberta.modeling_xlm_roberta"})
    assert load_folder(tmp_path).manifest.backbone.model_type == "xlm-roberta"
    write_peft(tmp_path, {"peft_type": "PROMPT_TUNING"}, {"prompt_embeddings": (3, HIDDEN)})
    refused(tmp_path, InvalidPackage, "name the backbone")


# (IA)^3, prefixes and prompts


def test_ia3_scales_inputs_of_the_feed_forward(tmp_path: Path) -> None:
    config = {
        "peft_type": "IA3",
        "target_modules": ["key", "output.dense"],
        "feedforward_modules": ["output.dense"],
        "task_type": "SEQ_CLS",
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (0, 1):
        shapes |= {f"{BERT}.{layer}.attention.self.key.ia3_l": (HIDDEN, 1), f"{BERT}.{layer}.output.dense.ia3_l": (1, 20)}
        shapes[f"{BERT}.{layer}.attention.output.dense.ia3_l"] = (1, HIDDEN)
    theirs = write_peft(tmp_path, config | {"task_type": "SEQ_CLS"}, shapes | CLASSIFIER)
    imported = load_folder(tmp_path)
    assert imported.manifest.methods == {
        "ia3": IA3(outputs=("layers.0.k", "layers.1.k"), inputs=("layers.0.o", "layers.0.down", "layers.1.o", "layers.1.down"))
    }
    np.testing.assert_array_equal(numbers(imported)["ia3.layers.1.down.scale"], theirs[f"{BERT}.1.output.dense.ia3_l"][0])
    write_peft(tmp_path, config | {"task_type": None}, {f"{BERT}.0.attention.self.key.ia3_l": (HIDDEN, 2)})
    refused(tmp_path, InvalidPackage, "[out, 1]")


def test_a_prefix_shifts_positions(tmp_path: Path) -> None:
    config = {"peft_type": "PREFIX_TUNING", "num_layers": 2, "token_dim": HIDDEN, "num_virtual_tokens": 3, "task_type": "SEQ_CLS"}
    head = {key.replace("base_model.model.", "base_model."): shape for key, shape in CLASSIFIER.items()}
    theirs = write_peft(tmp_path, config, {"prompt_embeddings": (3, 4 * HIDDEN)} | head)
    imported = load_folder(tmp_path, backbone())
    assert imported.manifest.methods == {"prefix": Prefix(prefix_length=3, shift_positions=True)}
    assert imported.manifest.head is not None
    np.testing.assert_array_equal(numbers(imported)["prefix.self.prefix"], theirs["prompt_embeddings"].reshape(3, 4, HIDDEN))
    refused(tmp_path, WrongBackbone, "2 layers", "3 layers", backbone=backbone(layers=3))
    refused(tmp_path, InvalidPackage, "prompt_embeddings", backbone=backbone(k=(HIDDEN, 4)))


@pytest.mark.parametrize("layers", [2, 3])
def test_a_prefix_of_t5_is_its_decoders(tmp_path: Path, layers: int) -> None:
    """PEFT gives the decoder's self-attention alone a prefix; layer j reads the slots 4 j and 4 j + 1, counted round."""
    config = {"peft_type": "PREFIX_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_layers": layers, "num_transformer_submodules": 2}
    theirs = write_peft(tmp_path, config, {"prompt_embeddings": (3, 2 * layers * HIDDEN)})
    imported = load_folder(tmp_path, backbone("t5", 2 * layers, layers))
    assert imported.manifest.methods == {"prefix": Prefix(prefix_length=3, shift_positions=True)}
    slots = [(4 * layer + second) % (2 * layers) for layer in range(layers) for second in (0, 1)]
    expected = theirs["prompt_embeddings"].reshape(3, 2 * layers, HIDDEN)[:, slots]
    np.testing.assert_array_equal(numbers(imported)["prefix.self.prefix"], expected)


def test_a_prompt_of_t5_is_the_first_half(tmp_path: Path) -> None:
    config = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM", "num_layers": 2, "num_transformer_submodules": 2}
    theirs = write_peft(tmp_path, config, {"prompt_embeddings": (6, HIDDEN)})
    imported = load_folder(tmp_path, backbone("t5", 4, 2))
    assert imported.manifest.methods == {"prompt": Prompt(prompt_length=3, place="words")}
    np.testing.assert_array_equal(numbers(imported)["prompt.embedding"], theirs["prompt_embeddings"][:3])


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING"])
def test_prompts_lie_among_the_words(tmp_path: Path, kind: str) -> None:
    write_peft(tmp_path, {"peft_type": kind, "task_type": "CAUSAL_LM", "num_layers": 2}, {"prompt_embeddings": (3, HIDDEN)})
    imported = load_folder(tmp_path, backbone("gpt2"))
    assert imported.manifest.methods == {"prompt": Prompt(prompt_length=3, place="words")}
    assert imported.manifest.head == Head(type="causal_lm", layers=0)
    save_file({"other": values((1,))}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, InvalidPackage, "prompt_embeddings", backbone=backbone("gpt2"))


# Heads


QUERIES = {
    "bert": "encoder.layer.0.attention.self.query",
    "distilbert": "transformer.layer.0.attention.q_lin",
    "gpt2": "h.0.attn.c_attn",
    "llama": "layers.0.self_attn.q_proj",
    "modernbert": "layers.0.attn.Wqkv",
    "t5": "encoder.block.0.layer.0.SelfAttention.q",
}
ONE: dict[str, tuple[int, ...]] = {"classifier.weight": (3, 8), "classifier.bias": (3,)}


@pytest.mark.parametrize(
    ("model_type", "task", "shapes", "head"),
    [
        ("bert", "TOKEN_CLS", {"classifier.weight": (3, 8), "classifier.bias": (3,)}, Head(type="tagging", labels=LABELS)),
        (
            "bert", "QUESTION_ANS", {"qa_outputs.weight": (2, 8), "qa_outputs.bias": (2,)},
            Head(type="question_answering", labels=("start", "end")),
        ),
        (
            "bert", "SEQ_CLS", {"classifier.weight": (1, 8), "classifier.bias": (1,)},
            Head(type="regression", use_pooler=True, labels=("LABEL_0",)),
        ),
        (
            "bert", "SEQ_CLS",
            {"classifier.weight": (3, 8), "classifier.bias": (3,), "bert.pooler.dense.weight": (8, 8), "bert.pooler.dense.bias": (8,)},
            Head(type="classification", use_pooler=True, own_pooler=True, labels=LABELS),
        ),
        (
            "distilbert", "SEQ_CLS",
            {"pre_classifier.weight": (8, 8), "pre_classifier.bias": (8,), "classifier.weight": (3, 8), "classifier.bias": (3,)},
            Head(type="classification", layers=2, activation="relu", labels=LABELS),
        ),
        ("gpt2", "SEQ_CLS", {"score.weight": (3, 8)}, Head(type="classification", bias=False, labels=LABELS, last_token="rightmost")),
        ("llama", "TOKEN_CLS", {"score.weight": (3, 8), "score.bias": (3,)}, Head(type="tagging", labels=LABELS)),
        ("modernbert", "SEQ_CLS", ONE, Head(type="classification", use_pooler=True, labels=LABELS)),
        ("modernbert", "TOKEN_CLS", ONE, Head(type="tagging", use_pooler=True, labels=LABELS)),
        ("gpt2", "CAUSAL_LM", {}, Head(type="causal_lm", layers=0)),
        ("llama", "CAUSAL_LM", {"lm_head.weight": (11, 8)}, Head(type="causal_lm", layers=1, bias=False, vocab_size=11)),
        ("t5", "SEQ_2_SEQ_LM", {}, Head(type="seq2seq_lm", layers=0)),
        ("bert", "FEATURE_EXTRACTION", {}, None),
        ("bert", None, {}, None),
    ],
)  # fmt: skip
def test_heads_by_task(tmp_path: Path, model_type: str, task: str | None, shapes: dict[str, tuple[int, ...]], head: Head | None) -> None:
    outputs = 3 * HIDDEN if model_type in ("gpt2", "modernbert") else HIDDEN
    config = LORA | {"task_type": task, "target_modules": None}
    write_peft(
        tmp_path,
        config,
        low_rank(f"{ROOT}.{QUERIES[model_type]}", outputs=outputs) | {f"{ROOT}.{key}": shape for key, shape in shapes.items()},
    )
    imported = load_folder(tmp_path, backbone(model_type, 2, 1 if model_type == "t5" else 0))
    assert imported.manifest.head == head
    numbers(imported)


@pytest.mark.parametrize(
    ("model_type", "task", "shapes", "words"),
    [
        ("bert", "SEQ_CLS", {}, "modules_to_save"),
        ("bert", "SEQ_CLS", {"classifier.weight": (3, 8), "classifier.bias": (3,), "extra.weight": (1, 1)}, "extra.weight"),
        ("bert", "QUESTION_ANS", {"qa_outputs.weight": (3, 8), "qa_outputs.bias": (3,)}, "3 outputs"),
        ("bert", "CAUSAL_LM", {}, "causal_lm head"),
        ("bert", "SEQ_2_SEQ_LM", {}, "seq2seq_lm head"),
        ("bert", "SINGING", {}, "SINGING"),
        ("bert", ["SEQ_CLS"], {}, "task_type"),
        ("bert", None, {"classifier.weight": (3, 8)}, "no task_type"),
        ("bert", "CAUSAL_LM", {"lm_head.weight": (3, 8)}, "causal_lm head"),
    ],
)
def test_heads_that_are_refused(tmp_path: Path, model_type: str, task: Any, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    write_peft(tmp_path, LORA | {"task_type": task}, QUERY | {f"{ROOT}.{key}": shape for key, shape in shapes.items()})
    refused(tmp_path, InvalidPackage, words, backbone=backbone(model_type))


def test_a_class_that_the_config_names_stands_for_a_task(tmp_path: Path) -> None:
    mapping = {"base_model_class": "BertForSequenceClassification", "parent_library": "transformers.models.bert.modeling_bert"}
    write_peft(tmp_path, LORA | {"task_type": None, "auto_mapping": mapping}, QUERY | CLASSIFIER)
    assert load_folder(tmp_path).manifest.head == Head(type="classification", use_pooler=True, labels=LABELS)


# What is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"peft_type": ["LORA"]}, "LORA"),
        ({"peft_type": None}, "None"),
        ({"bias": "lora_only"}, "lora_only"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": ["x"]}, "init_lora_weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_qalora": True}, "QALoRA"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"use_novelty": True}, "use_novelty"),
    ],
)
def test_options_refused_by_name(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_peft(tmp_path, LORA | change, QUERY | CLASSIFIER)
    refused(tmp_path, UnsupportedMethod, words)


@pytest.mark.parametrize("begin", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_beginnings_that_leave_the_backbone_alone(tmp_path: Path, begin: Any) -> None:
    write_peft(tmp_path, LORA | {"init_lora_weights": begin, "eva_config": {"rho": 2.0}}, QUERY | CLASSIFIER)
    load_folder(tmp_path)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (f"{BERT}.0.attention.self.query.base_layer.bias", "base_layer.bias"),
        (f"{BERT}.0.attention.self.query.lora_magnitude_vector", "DoRA"),
        (f"{ROOT}.bert.embeddings.word_embeddings.lora_embedding_A", "embedding"),
        (f"{BERT}.0.attention.self.query.lora_B.bias", "lora_bias"),
        (f"{ROOT}.bert.novel.lora_A.weight", "bert.novel"),
        (f"{ROOT}.lm_head.lora_A.weight", "lm_head"),
        (f"{BERT}.00.attention.self.query.lora_A.weight", "layer.00"),
    ],
)
def test_tensors_refused_by_name(tmp_path: Path, key: str, words: str) -> None:
    write_peft(tmp_path, LORA, QUERY | CLASSIFIER | {key: (2, HIDDEN)})
    refused(tmp_path, UnsupportedMethod, words, backbone=backbone())


def test_half_a_folder(tmp_path: Path) -> None:
    write_peft(tmp_path, LORA, QUERY | CLASSIFIER)
    (tmp_path / "adapter_config.json").rename(tmp_path / "config.json")
    refused(tmp_path, InvalidPackage, "adapter_config.json")
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    refused(tmp_path, InvalidPackage, "turret convert")
    (tmp_path / "adapter_model.bin").unlink()
    refused(tmp_path, InvalidPackage, "adapter_model.safetensors")


def test_golden_folders(golden: Path) -> None:
    folder = golden / "peft_gpt2_lora_clm" / "safetensors" / "peft"
    imported = load_folder(folder)
    theirs = load_file(folder / "adapter_model.safetensors")
    np.testing.assert_array_equal(
        numbers(imported)["lora.layers.0.qkv.b"], theirs["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    )
    assert imported.manifest.head == Head(type="causal_lm", layers=0)

"""Heads: flexible ones of every type, those of transformers' classes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import load_folder, numbers, refused, values
from safetensors.numpy import load_file, save_file
from samples import copy_folder, edit_json

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.importers.static_heads import CLASS_OF, STATIC
from adapter_store.manifest import LM_HEADS, SENTENCE_HEADS, Head
from adapter_store.methods import Backbone

VOCABULARY = 11


@pytest.fixture
def pfeiffer(golden: Path, tmp_path: Path) -> Path:
    """A copy of a Pfeiffer adapter with a head (bert, hidden 32, 3 layers) to be changed."""
    return copy_folder(golden / "bert_pfeiffer_cls" / "safetensors" / "adapters" / "sst", tmp_path / "sst")


def flexible(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> tuple[Head, dict[str, Any], dict[str, Any]]:
    """The folder's head made another one: our head, our tensors, and the file's."""
    head_file = json.loads((folder / "head_config.json").read_text())
    (folder / "head_config.json").write_text(json.dumps(head_file | {"config": config}))
    weights = {f"heads.sst.{name}": values(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    save_file(weights, folder / "model_head.safetensors")
    imported = load_folder(folder)
    assert imported.manifest.head is not None
    return imported.manifest.head, numbers(imported), weights


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
        ({"head_type": "image_classification"}, "image_classification"),
        ({"head_type": "masked_lm", "layers": 3}, "3 layers"),
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
    np.testing.assert_array_equal(numbers(imported)["head.1.weight"], weights["heads.sst.3.weight"])


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


def test_spans_have_their_own_labels(pfeiffer: Path) -> None:
    config = {"head_type": "question_answering", "layers": 1, "num_labels": 2, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    head, _, _ = flexible(pfeiffer, config, {"1.weight": (2, 32), "1.bias": (2,)})
    assert (head.type, head.labels, head.outputs) == ("question_answering", ("start", "end"), 2)
    edit_json(pfeiffer / "head_config.json", config={"num_labels": 3, "label2id": None})
    refused(pfeiffer, UnsupportedMethod, "3 outputs")


def test_choices_have_one_output_and_no_labels(pfeiffer: Path) -> None:
    config = {
        "head_type": "multiple_choice",
        "layers": 1,
        "num_choices": 4,
        "label2id": {f"LABEL_{i}": i for i in range(4)},
        "use_pooler": True,
    }
    head, ours, _ = flexible(pfeiffer, config, {"1.weight": (1, 32), "1.bias": (1,)})
    assert (head.type, head.labels, head.outputs, head.use_pooler) == ("multiple_choice", (), 1, True)
    assert ours["head.0.weight"].shape == (1, 32)


def test_dependency_parsing(pfeiffer: Path) -> None:
    config = {"head_type": "dependency_parsing", "num_labels": 3, "label2id": {"a": 0, "b": 1, "c": 2}}
    shapes = {"biaffine_arcs.weight": (1, 33, 32), "biaffine_rels.weight": (3, 33, 33)}
    head, ours, theirs = flexible(pfeiffer, config, shapes)
    assert (head.type, head.labels) == ("dependency_parsing", ("a", "b", "c"))
    np.testing.assert_array_equal(ours["head.relations"], theirs["heads.sst.biaffine_rels.weight"])


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({"layers": 2, "activation_function": "gelu", "layer_norm": True, "bias": True}, {"dense": 0, "norm": 2, "decoder": 3}),
        ({"layers": 2, "activation_function": None, "layer_norm": True, "bias": False}, {"dense": 0, "norm": 1, "decoder": 2}),
        ({"layers": 2, "activation_function": "relu", "layer_norm": False, "bias": True}, {"dense": 0, "decoder": 2}),
        (
            {"layers": 2, "activation_function": "gelu", "layer_norm": True, "bias": True, "embedding_size": 16},
            {"dense": 0, "norm": 2, "decoder": 3},
        ),
        ({"layers": 1, "activation_function": "gelu", "layer_norm": True, "bias": True}, {"decoder": 0}),
        ({"layers": 1, "bias": False}, {"decoder": 0}),
    ],
)
@pytest.mark.parametrize("head_type", ["masked_lm", "causal_lm", "seq2seq_lm"])
def test_flexible_heads_of_language_models(pfeiffer: Path, head_type: str, config: dict[str, Any], places: dict[str, int]) -> None:
    size = config.get("embedding_size", 32)
    shapes: dict[str, tuple[int, ...]] = {f"{places['decoder']}.weight": (VOCABULARY, size)}
    if config["bias"]:
        shapes[f"{places['decoder']}.bias"] = (VOCABULARY,)
    for name, shape in (("dense", (size, 32)), ("norm", (size,))):
        if name in places:
            shapes |= {f"{places[name]}.weight": shape, f"{places[name]}.bias": (size,)}
    head, ours, theirs = flexible(pfeiffer, config | {"head_type": head_type, "label2id": None, "vocab_size": VOCABULARY}, shapes)
    assert (head.type, head.layers, head.invert, head.bias) == (head_type, config["layers"], True, config["bias"])
    assert (head.vocab_size, head.embedding_size) == (VOCABULARY, config.get("embedding_size"))
    assert head.norm is ("norm" in places)
    for name, place in places.items():
        np.testing.assert_array_equal(ours[f"head.{name}.weight"], theirs[f"heads.sst.{place}.weight"])
    edit_json(pfeiffer / "head_config.json", config={"vocab_size": VOCABULARY + 1})
    refused(pfeiffer, InvalidPackage, f"heads.sst.{places['decoder']}.weight")


def test_the_library_defaults_of_heads_that_say_little(pfeiffer: Path) -> None:
    shapes = {"1.weight": (32, 32), "1.bias": (32,), "4.weight": (3, 32), "4.bias": (3,)}
    head, _, _ = flexible(pfeiffer, {"head_type": "classification", "num_labels": 3}, shapes)
    assert (head.layers, head.activation, head.labels) == (2, "tanh", ("LABEL_0", "LABEL_1", "LABEL_2"))


# Heads of transformers' own classes


def static_shapes(model_class: str, hidden: int = 32) -> dict[str, tuple[int, ...]]:
    static = STATIC[model_class]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, module in enumerate(static.modules):
        last = number == len(static.modules) - 1
        if static.type in LM_HEADS:
            shapes[f"{module}.weight"] = (VOCABULARY, hidden) if last else (hidden,) if number == 1 else (hidden, hidden)
        else:
            rows = {"question_answering": 2, "multiple_choice": 1}.get(static.type, 3)
            shapes[f"{module}.weight"] = (rows if last else hidden, hidden)
        if static.bias or not last:
            shapes[f"{module}.bias"] = shapes[f"{module}.weight"][:1]
    return shapes


@pytest.mark.parametrize("model_class", sorted(STATIC))
def test_static_classes(pfeiffer: Path, model_class: str) -> None:
    model_type = next(family for family, name in sorted(CLASS_OF.items(), key=lambda item: -len(item[1])) if model_class.startswith(name))
    static = STATIC[model_class]
    for name in ("adapter.safetensors", "adapter_config.json"):
        (pfeiffer / name).unlink()
    save_file({name: values(shape) for name, shape in static_shapes(model_class).items()}, pfeiffer / "model_head.safetensors")
    edit_json(
        pfeiffer / "head_config.json",
        config=None, name=None, label2id={"a": 0, "b": 1, "c": 2}, num_labels=3, model_class=model_class, model_type=model_type,
    )  # fmt: skip
    decoder = 1 if model_type in ("t5", "mt5") else 0
    head = load_folder(pfeiffer, Backbone(model_type=model_type, hidden_size=32, num_layers=2, decoder_layers=decoder)).manifest.head
    assert head is not None
    assert (head.type, head.layers, head.bias, head.invert, head.scaled) == (static.type, static.layers, static.bias, False, False)
    if static.type in ("classification", "tagging"):
        assert head.labels == ("a", "b", "c")
    decoders = model_type in ("gpt2", "llama") and static.type in SENTENCE_HEADS
    assert head.last_token == ("rightmost" if decoders else "counted")


def test_a_bias_that_is_written_twice_must_be_one(pfeiffer: Path) -> None:
    weights = {name: values(shape) for name, shape in static_shapes("BertForMaskedLM").items()}
    weights["cls.predictions.bias"] = weights["cls.predictions.decoder.bias"].copy()
    save_file(weights, pfeiffer / "model_head.safetensors")
    edit_json(pfeiffer / "head_config.json", config=None, name=None, model_class="BertForMaskedLM")
    head = load_folder(pfeiffer).manifest.head
    assert head is not None
    assert (head.type, head.activation, head.norm, head.invert, head.vocab_size) == ("masked_lm", "gelu", True, False, VOCABULARY)
    save_file(
        {name: value for name, value in weights.items() if name != "cls.predictions.decoder.bias"}, pfeiffer / "model_head.safetensors"
    )
    assert load_folder(pfeiffer).manifest.head == head
    save_file(weights | {"cls.predictions.bias": values((VOCABULARY,), 9)}, pfeiffer / "model_head.safetensors")
    refused(pfeiffer, InvalidPackage, "contradict")


def test_static_classes_that_are_not_served(pfeiffer: Path) -> None:
    edit_json(pfeiffer / "head_config.json", config=None, name=None, model_class="BertForNextSentencePrediction")
    refused(pfeiffer, UnsupportedMethod, "BertForNextSentencePrediction", "publish the adapter alone")


def test_heads_on_t5_read_the_scaled_state(golden: Path) -> None:
    folder = golden / "t5_compacter" / "safetensors" / "adapters"
    head = load_folder(next(folder.iterdir())).manifest.head
    assert head is not None
    assert (head.type, head.invert) == ("seq2seq_lm", True)


def test_modernbert_brings_the_dense_and_the_norm_below_its_classifier(pfeiffer: Path) -> None:
    for name in ("adapter.safetensors", "adapter_config.json"):
        (pfeiffer / name).unlink()
    weights = {"classifier.weight": values((3, 32)), "classifier.bias": values((3,)), "head.dense.weight": values((32, 32), 1)}
    weights["head.norm.weight"] = values((32,), 2)
    save_file(weights, pfeiffer / "model_head.safetensors")
    change = {"config": None, "name": None, "label2id": {"a": 0, "b": 1, "c": 2}, "num_labels": 3, "model_type": "modernbert"}
    edit_json(pfeiffer / "head_config.json", **change, model_class="ModernBertForSequenceClassification")
    backbone = Backbone(model_type="modernbert", hidden_size=32, num_layers=2)
    imported = load_folder(pfeiffer, backbone)
    head = imported.manifest.head
    assert head is not None
    assert (head.use_pooler, head.own_pooler, head.pooler_activation, head.pooler_bias, head.pooler_norm) == (
        True,
        True,
        "gelu",
        False,
        True,
    )
    np.testing.assert_array_equal(numbers(imported)["head.pooler.norm.weight"], weights["head.norm.weight"])
    save_file({name: value for name, value in weights.items() if "norm" not in name}, pfeiffer / "model_head.safetensors")
    refused(pfeiffer, InvalidPackage, "head.norm.weight", backbone=backbone)

"""Checkpoints of the original Compacter code: the adapters, the tuned norms, and the comparison with the frozen model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import backbone_from, load_folder, numbers, refused, values
from safetensors.numpy import load_file, save_file
from samples import edit_json

from adapter_store.errors import InvalidPackage, UnsupportedMethod, WrongBackbone
from adapter_store.importers.backbones import frozen_of
from adapter_store.importers.pickles import bin_to_safetensors
from adapter_store.manifest import Head
from adapter_store.methods import Bottleneck, Norms
from adapter_store.tensorfile import TensorData

CASE = "orig_compacter_t5"
SAMPLER = "encoder.block.0.layer.0.adapter_controller.adapters.mrpc.down_sampler"


@pytest.fixture
def checkpoint(golden: Path, tmp_path: Path) -> Path:
    """The golden checkpoint as safetensors, to be changed."""
    bin_to_safetensors(golden / CASE / "compacter_checkpoint", tmp_path / "run")
    return tmp_path / "run"


def change_weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def test_a_whole_model_without_the_frozen_one(checkpoint: Path) -> None:
    imported = load_folder(checkpoint)
    method, norms = imported.manifest.methods["bottleneck"], imported.manifest.methods["norms"]
    assert isinstance(method, Bottleneck)
    assert isinstance(norms, Norms)
    assert (method.mh_adapter, method.output_adapter, method.original_ln_before, method.original_ln_after) == (True, True, False, True)
    assert (method.phm_layer, method.phm_dim, method.phm_rank, method.shared_phm_rule, method.non_linearity) == (
        True,
        4,
        1,
        True,
        "gelu_new",
    )
    assert len(norms.modules) == 12
    assert imported.manifest.head == Head(type="seq2seq_lm", layers=0)
    assert imported.manifest.name == "mrpc"
    assert "could not be compared" in imported.warnings[0]
    theirs = load_file(checkpoint / "model.safetensors")
    ours = numbers(imported)
    np.testing.assert_array_equal(ours["bottleneck.layers.0.mh.down.w_left"], theirs[f"{SAMPLER}.W_left"])
    np.testing.assert_array_equal(ours["bottleneck.shared.rule"], theirs["phm_rule"])
    np.testing.assert_array_equal(ours["norms.layers.2.cross.weight"], theirs["decoder.block.0.layer.1.layer_norm.weight"])
    np.testing.assert_array_equal(ours["norms.final.decoder.weight"], theirs["decoder.final_layer_norm.weight"])


def test_norms_that_are_the_backbones_own_are_left_out(golden: Path, checkpoint: Path) -> None:
    frozen = frozen_of(golden / CASE / "backbone")
    tuned = load_folder(checkpoint, backbone_from(golden / CASE), frozen=frozen)
    assert tuned.warnings == ()
    own = {key: value for key, value in load_file(golden / CASE / "backbone" / "model.safetensors").items() if "layer_norm" in key}
    change_weights(checkpoint, lambda weights: weights | own)
    assert "norms" not in load_folder(checkpoint, frozen=frozen).manifest.methods
    one = {"encoder.final_layer_norm.weight": values(own["encoder.final_layer_norm.weight"].shape)}
    change_weights(checkpoint, lambda weights: weights | one)
    assert load_folder(checkpoint, frozen=frozen).manifest.methods["norms"] == Norms(modules=("final.encoder",))


def test_another_backbone_is_named_by_its_tensor(golden: Path, checkpoint: Path) -> None:
    frozen = frozen_of(golden / CASE / "backbone")
    key = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
    right = load_file(checkpoint / "model.safetensors")[key]
    change_weights(checkpoint, lambda weights: weights | {key: right + 1})
    refused(checkpoint, WrongBackbone, key, frozen=frozen)
    change_weights(checkpoint, lambda weights: weights | {key: right, "novel": values((1,))})
    refused(checkpoint, WrongBackbone, "novel", "is not a tensor of the backbone", frozen=frozen)
    refused(checkpoint, WrongBackbone, "layers", backbone=backbone_from(golden / CASE, num_layers=6, decoder_layers=3))
    refused(checkpoint, WrongBackbone, "hidden size", backbone=backbone_from(golden / CASE, hidden_size=99))


def test_the_same_numbers_in_another_dtype_are_the_same(golden: Path, checkpoint: Path) -> None:
    frozen = frozen_of(golden / CASE / "backbone")

    def halved(name: str) -> TensorData | None:
        tensor = frozen(name)
        if tensor is None:
            return None
        return TensorData("F16", tensor.shape, np.frombuffer(tensor.data, "<f4").astype("<f2").tobytes())

    def rounded(weights: dict[str, Any]) -> dict[str, Any]:
        return {k: v if "adapter" in k or "rule" in k else v.astype("<f2").astype("<f4") for k, v in weights.items()}

    change_weights(checkpoint, rounded)
    load_folder(checkpoint, frozen=halved)


def test_what_is_shared_must_be_the_same_everywhere(checkpoint: Path) -> None:
    change_weights(checkpoint, lambda weights: weights | {f"{SAMPLER}.phm_rule": values((4, 4, 4))})
    refused(checkpoint, InvalidPackage, "contradict")


def test_rules_of_their_own(checkpoint: Path) -> None:
    change_weights(checkpoint, lambda weights: {key: value for key, value in weights.items() if key != "phm_rule"})
    method = load_folder(checkpoint).manifest.methods["bottleneck"]
    assert isinstance(method, Bottleneck)
    assert not method.shared_phm_rule


def replaced(weights: dict[str, Any], parts: Callable[[int, int], dict[str, Any]]) -> dict[str, Any]:
    """The weights with other linears in the samplers."""
    kept = {key: value for key, value in weights.items() if "_sampler" not in key and key != "phm_rule"}
    samplers = {key.rpartition(".")[0] for key in weights if "_sampler" in key}
    hidden, size = 24, len(weights[f"{SAMPLER}.b"])
    for sampler in samplers:
        inputs, outputs = (hidden, size) if "down" in sampler else (size, hidden)
        kept |= {f"{sampler}.{name}": value for name, value in parts(inputs, outputs).items()}
    return kept


def test_plain_linears(checkpoint: Path) -> None:
    change_weights(checkpoint, lambda weights: replaced(weights, lambda i, o: {"weight": values((o, i)), "bias": values((o,))}))
    method = load_folder(checkpoint).manifest.methods["bottleneck"]
    assert isinstance(method, Bottleneck)
    assert not method.phm_layer


def test_low_rank_linears_are_kronecker_layers_of_one_part(checkpoint: Path) -> None:
    def low_rank(inputs: int, outputs: int) -> dict[str, Any]:
        return {"W_left": values((inputs, 2)), "W_right": values((2, outputs)), "b": values((outputs,))}

    change_weights(checkpoint, lambda weights: replaced(weights, low_rank))
    imported = load_folder(checkpoint)
    method = imported.manifest.methods["bottleneck"]
    assert isinstance(method, Bottleneck)
    assert (method.phm_layer, method.phm_dim, method.phm_rank, method.shared_phm_rule) == (True, 1, 2, True)
    ours = numbers(imported)
    assert ours["bottleneck.shared.rule"].tolist() == [[[1.0]]]
    assert ours["bottleneck.layers.0.mh.down.w_left"].shape == (1, 24, 2)


def test_norms_of_the_controllers(checkpoint: Path) -> None:
    def with_norms(weights: dict[str, Any]) -> dict[str, Any]:
        controllers = {key.split(".adapters.")[0] for key in weights if ".adapters." in key}
        return weights | {
            f"{c}.{w}_layer_norm.{k}": values((24,)) for c in controllers for w in ("pre", "post") for k in ("weight", "bias")
        }

    change_weights(checkpoint, with_norms)
    refused(checkpoint, InvalidPackage, "_layer_norm", "does not call for")
    edit_json(checkpoint / "training_config.json", add_layer_norm_before_adapter=True, add_layer_norm_after_adapter=True)
    method = load_folder(checkpoint).manifest.methods["bottleneck"]
    assert isinstance(method, Bottleneck)
    assert (method.ln_before, method.ln_after) == (True, True)


def test_sites_and_layers_that_have_none(checkpoint: Path) -> None:
    change_weights(checkpoint, lambda weights: {k: v for k, v in weights.items() if ".layer.0.adapter_controller" not in k})
    refused(checkpoint, InvalidPackage, "layers.0.mh")
    edit_json(checkpoint / "training_config.json", add_adapter_in_self_attention=False)
    load_folder(checkpoint)
    change_weights(checkpoint, lambda weights: {k: v for k, v in weights.items() if "decoder.block.1" not in k or "adapter" not in k})
    refused(checkpoint, InvalidPackage, "layers.3.output")
    edit_json(checkpoint / "training_config.json", task_adapter_layers_decoder=["0"])
    method = load_folder(checkpoint).manifest.methods["bottleneck"]
    assert isinstance(method, Bottleneck)
    assert method.leave_out == (3,)


@pytest.mark.parametrize("switch", ["prefix_tuning", "bitfit", "unfreeze_lm_head", "unfreeze_model", "intrinsic_model"])
@pytest.mark.parametrize("name", ["training_config.json", "config.json"])
def test_switches_refused_by_name(checkpoint: Path, switch: str, name: str) -> None:
    edit_json(checkpoint / name, **{switch: True})
    refused(checkpoint, UnsupportedMethod, switch if switch.startswith(("unfreeze", "intrinsic")) else "is of a run with")


def test_other_refusals(checkpoint: Path) -> None:
    for file, change, words in (
        ("config.json", {"model_type": "bart"}, "bart"),
        ("config.json", {"model_type": "t5"}, "config.json"),
        ("training_config.json", {"non_linearity": "rrelu"}, "rrelu"),
        ("training_config.json", {"non_linearity": ...}, "non_linearity"),
        ("training_config.json", {"task_reduction_factor": "x"}, "reduction_factor"),
        ("training_config.json", {"task_reduction_factor": 1}, "shape"),
    ):
        folder = checkpoint.parent / "copy"
        shutil.copytree(checkpoint, folder)
        edit_json(folder / file, **change)
        if change == {"model_type": "t5"}:
            (folder / "config.json").write_text(json.dumps(change))
        refused(folder, InvalidPackage, words)
        shutil.rmtree(folder)
    tasks = {f"{SAMPLER.replace('mrpc', 'rte')}.b": values((8,))}
    change_weights(checkpoint, lambda weights: weights | tasks)
    refused(checkpoint, InvalidPackage, "several tasks", "rte")
    change_weights(checkpoint, lambda weights: {key: value for key, value in weights.items() if "adapter" not in key})
    refused(checkpoint, InvalidPackage, "no task")
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, InvalidPackage, "model.safetensors")

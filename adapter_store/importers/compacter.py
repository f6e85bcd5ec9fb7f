"""Checkpoints of the original Compacter code (github.com/rabeehk/compacter, T5 only): the whole model, and the run's training_config.json.

    {encoder|decoder}.block.I.layer.J.adapter_controller.adapters.TASK.{down|up}_sampler.{W_left, W_right, W, b, phm_rule ...}
    {encoder|decoder}.block.I.layer.J.adapter_controller.{pre|post}_layer_norm.{weight, bias}
    phm_rule ..., W_down_left ...      what is shared, repeated in every sampler

y = x + (post_LN?(Up(act(Down(pre_LN?(h))))) + h) at self-attention and feed-forward: a bottleneck without the h + x of the `adapters`
library's own compacter++. Its runs tune the layer norms, which become a part of the package; all else must be the backbone's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, UnsupportedMethod, WrongBackbone
from adapter_store.families import FAMILIES
from adapter_store.importers import blocks
from adapter_store.importers.adapterhub import check_law
from adapter_store.importers.adapterhub_folder import describe, ignored, manifest_of, pickled
from adapter_store.importers.adapterhub_match import Collected, collected
from adapter_store.importers.backbones import backbone_of, check_model, plain_backbone
from adapter_store.importers.folder import (
    MAX_CHECKPOINT,
    Files,
    Frozen,
    ImportedPackage,
    Options,
    Remarks,
    listed,
    read_object,
    read_tensors,
)
from adapter_store.importers.places import Counts, Places
from adapter_store.manifest import Head
from adapter_store.methods import Backbone, Bottleneck, Method, Norms, activation
from adapter_store.names import shown
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData

TRAINING, CONFIG, WEIGHTS, PICKLE = "training_config.json", "config.json", "model.safetensors", "pytorch_model.bin"

# Switches of a run that change the model in other ways.
_REFUSED = {
    "prefix_tuning": "prefix tuning",
    "bitfit": "BitFit (tuned biases)",
    "unfreeze_lm_head": "a tuned language-model head (unfreeze_lm_head)",
    "unfreeze_model": "a fully tuned model (unfreeze_model)",
    "intrinsic_model": "intrinsic dimensions (intrinsic_model)",
    "intrinsic_said": "intrinsic dimensions (intrinsic_said)",
}
_CONTROLLER = re.compile(
    r"(?P<layer>.+)\.adapter_controller\.(?:adapters\.(?P<task>[^.]+)\.(?P<way>down|up)_sampler|(?P<norm>pre|post)_layer_norm)\.(?P<name>\w+)"
)
_SHARED = re.compile(r"phm_rule(?:_left|_right)?|W_(?:down|up)(?:_left|_right)?")
_NAMES = {
    "weight": "weight", "bias": "bias", "b": "bias", "W": "w", "W_left": "w_left", "W_right": "w_right",
    "phm_rule": "rule", "phm_rule_left": "rule_left", "phm_rule_right": "rule_right",
}  # fmt: skip
_TIED = frozenset({"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"})
# Old T5 checkpoints hold it, and no T5 reads it.
_UNREAD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def is_compacter(files: Files) -> bool:
    """Whether the run's own JSON is there."""
    return TRAINING in files


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint, sorted: the adapters' by place, what they share, the norms, and the rest of the model."""

    samplers: dict[tuple[int, str, str], dict[str, tuple[str, TensorData]]]
    shared: dict[str, TensorData]
    norms: dict[str, tuple[str, TensorData]]
    frozen: dict[str, TensorData]
    task: str


def import_compacter(files: Files, options: Options) -> ImportedPackage:
    """The checkpoint as a package; raises InvalidPackage, UnsupportedMethod (naming the switch) and WrongBackbone."""
    training, config = read_object(files, TRAINING), _model_config(files)
    _refuse(training, config)
    remarks = Remarks()
    base = _backbone(config, options.backbone)
    counts = Counts((base.encoder_layers, base.decoder_layers))
    checkpoint = _sorted(read_tensors(files, WEIGHTS, MAX_CHECKPOINT), counts)
    method = _method(training, checkpoint, counts)
    whole = _bottleneck(method, checkpoint)
    methods: dict[str, Method] = {"bottleneck": method}
    tuned = _tuned(checkpoint, options.frozen, remarks)
    if tuned:
        methods["norms"] = Norms(modules=tuple(tuned))
        whole.update(collected((f"norms.{module}.weight", tensor, key) for module, (key, tensor) in tuned.items()))
    check_law(methods, base, whole, TRAINING)
    remarks.report.append(
        f"task {shown(checkpoint.task)}: {len(whole.tensors) - len(tuned)} tensors of bottleneck, {len(tuned)} tuned norms"
    )
    described = describe(files, {"name": checkpoint.task, "model_name": training.get("model_name_or_path")}, remarks, "compacter")
    manifest = manifest_of(described, base, methods, Head(type="seq2seq_lm", layers=0))
    remarks.report.extend(ignored(files, (TRAINING, CONFIG, WEIGHTS)))
    return ImportedPackage(manifest, whole.tensors, tuple(remarks.report), tuple(remarks.warnings))


def _model_config(files: Files) -> dict[str, Any]:
    if WEIGHTS not in files and PICKLE in files:
        raise pickled(PICKLE)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise InvalidPackage(f"The folder holds {TRAINING} but not {name}: both are needed.")
    return read_object(files, CONFIG)


def _refuse(training: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if config.get("model_type") != "t5":
        raise UnsupportedMethod(
            f"Checkpoints of the original Compacter code are served for T5, not for {shown(str(config.get('model_type')))}."
        )
    for switch, what in _REFUSED.items():
        if training.get(switch) or config.get(switch):
            raise UnsupportedMethod(f"The checkpoint is of a run with {what}, which is not served.")


def _backbone(config: Mapping[str, Any], given: Backbone | None) -> Backbone:
    own = backbone_of(config)
    counts = Counts((own.encoder_layers, own.decoder_layers))
    if given is not None:
        check_model(own.model_type, own.hidden_size, given)
        if (own.encoder_layers, own.decoder_layers) != (given.encoder_layers, given.decoder_layers):
            raise WrongBackbone(
                f"The checkpoint has {own.encoder_layers} and {own.decoder_layers} layers, but the backbone has "
                f"{given.encoder_layers} and {given.decoder_layers} layers."
            )
    return plain_backbone(given, own.model_type, own.hidden_size, counts, None, "")


def _sorted(weights: Mapping[str, TensorData], counts: Counts) -> Checkpoint:
    places = Places("t5")
    sites = [{module.holder: str(module.site) for module in layers.sites} for layers in FAMILIES["t5"].layers]
    norms = [{path: site for site, path in layers.norms.items()} for layers in FAMILIES["t5"].layers]
    found = Checkpoint({}, {}, {}, {}, "")
    tasks: set[str] = set()
    for key, tensor in weights.items():
        spot = next(places.spots(key))
        match = _CONTROLLER.fullmatch(spot.rest) if spot.stack is not None else None
        if match is not None and spot.stack is not None:
            site = sites[spot.stack].get(match["layer"])
            if site is None or spot.layer >= counts.layers[spot.stack]:
                raise InvalidPackage(f"{WEIGHTS} holds the tensor {shown(key, 160)}, which lies where no adapter is.")
            tasks |= {match["task"]} if match["task"] else set()
            found.samplers.setdefault((counts.number(spot), site, match["way"] or match["norm"]), {})[match["name"]] = (key, tensor)
        elif spot.stack is not None and spot.rest.removesuffix(".weight") in norms[spot.stack]:
            site = norms[spot.stack][spot.rest.removesuffix(".weight")]
            found.norms[f"layers.{counts.number(spot)}.{site}"] = (key, tensor)
        elif final := re.fullmatch(r"(encoder|decoder)\.final_layer_norm\.weight", key):
            found.norms[f"final.{final[1]}"] = (key, tensor)
        elif _SHARED.fullmatch(key):
            found.shared[key] = tensor
        else:
            found.frozen[key] = tensor
    if len(tasks) != 1:
        what = f"of several tasks ({listed(tasks)}): save one alone" if tasks else "of no task (adapter_controller)"
        raise InvalidPackage(f"The checkpoint holds adapters {what}.")
    return Checkpoint(found.samplers, found.shared, found.norms, found.frozen, tasks.pop())


def _method(training: Mapping[str, Any], checkpoint: Checkpoint, counts: Counts) -> Bottleneck:
    """The run's settings, and of the Kronecker layers what their tensors tell."""
    name = training.get("non_linearity")
    if not isinstance(name, str):
        raise InvalidPackage(f"{TRAINING} does not name the adapter's activation (non_linearity).")
    try:
        function = activation(name)
    except ValueError as error:
        raise UnsupportedMethod(f"The adapter's non_linearity cannot be served: {error}.") from None
    sites = {site for _, site, _ in checkpoint.samplers}
    chosen = any(
        training.get(key) is not None for key in ("task_adapter_layers_encoder", "task_adapter_layers_decoder", "task_adapter_in_decoder")
    )
    there = {layer for layer, _, _ in checkpoint.samplers}
    fields = {
        "mh_adapter": training.get("add_adapter_in_self_attention", True),
        "output_adapter": training.get("add_adapter_in_feed_forward", True),
        "cross_adapter": "cross" in sites,
        "reduction_factor": training.get("task_reduction_factor", 16),
        "non_linearity": function,
        "original_ln_before": False,
        "ln_before": training.get("add_layer_norm_before_adapter", False),
        "ln_after": training.get("add_layer_norm_after_adapter", False),
        "leave_out": [layer for layer in range(counts.total) if layer not in there] if chosen else [],
    }
    try:
        return Bottleneck.model_validate(fields | _kronecker(checkpoint))
    except ValidationError as error:
        raise InvalidPackage(f"{TRAINING} is not valid: {sentence(error)}") from None


def _kronecker(checkpoint: Checkpoint) -> dict[str, Any]:
    """Plain linears have a weight; low-rank ones are a Kronecker layer of one part, whose rule is 1."""
    down = next((own for (_, _, way), own in sorted(checkpoint.samplers.items()) if way == "down"), {})
    if "weight" in down:
        return {}
    rule = next((own for name, (_, own) in down.items() if name.startswith("phm_rule") and own.shape), None)
    left = down.get("W_left")
    rank = left[1].shape[-1] if left and left[1].shape else 1
    fields: dict[str, Any] = {"phm_layer": True, "phm_rank": rank, "phm_bias": "b" in down, "factorized_phm_W": left is not None}
    if rule is None:
        return fields | {"phm_dim": 1, "shared_phm_rule": True}
    return fields | {
        "phm_dim": rule.shape[0],
        "factorized_phm_rule": "phm_rule_left" in down,
        "shared_phm_rule": any(key.startswith("phm_rule") for key in checkpoint.shared),
        "shared_W_phm": any(key.startswith("W_") for key in checkpoint.shared),
    }


def _bottleneck(method: Bottleneck, checkpoint: Checkpoint) -> Collected:
    """The adapters under our names. What is shared lies in the file once by itself and again in every sampler, and must be equal there."""
    whole = collected()
    low_rank = method.phm_layer and not any("rule" in name for own in checkpoint.samplers.values() for name in own)
    for (layer, site, way), own in checkpoint.samplers.items():
        for name, (key, tensor) in own.items():
            if way in ("pre", "post"):
                ours = f"layers.{layer}.{site}.{'ln_before' if way == 'pre' else 'ln_after'}.{name}"
            elif name not in _NAMES:
                raise InvalidPackage(f"{WEIGHTS} holds the tensor {shown(key, 160)}, which is no part of an adapter.")
            else:
                ours = f"{_shelf(method, name, way, f'layers.{layer}.{site}.{way}')}.{_NAMES[name]}"
                if low_rank and name in ("W_left", "W_right"):
                    tensor = blocks.reshaped(tensor, (1, *tensor.shape))
            whole.add(f"bottleneck.{ours}", tensor, key)
    for key, tensor in checkpoint.shared.items():
        whole.add(f"bottleneck.{_shared_name(key)}", tensor, key)
    if low_rank:
        dtype = next(iter(whole.tensors.values())).dtype
        whole.add("bottleneck.shared.rule", blocks.ones((1, 1, 1), dtype), "the rule of a low-rank layer")
    return whole


def _shelf(method: Bottleneck, name: str, way: str, own: str) -> str:
    """Where a sampler's tensor belongs: to itself, or to what all share."""
    if name.startswith("phm_rule"):
        return "shared" if method.shared_phm_rule else own
    return f"shared.{way}" if name.startswith("W") and method.shared_W_phm else own


def _shared_name(key: str) -> str:
    """`W_down_left` as `shared.down.w_left`, `phm_rule` as `shared.rule`."""
    if key in _NAMES:
        return f"shared.{_NAMES[key]}"
    _, way, *side = key.split("_")
    return f"shared.{way}.{'_'.join(['w', *side])}"


def _tuned(checkpoint: Checkpoint, frozen: Frozen | None, remarks: Remarks) -> dict[str, tuple[str, TensorData]]:
    """The norms that the package must bring: those that are not the backbone's, or all where that is not known.

    All else of the model must be the backbone's; raises WrongBackbone naming the tensor that is not.
    """
    if frozen is None:
        remarks.warnings.append(
            "The checkpoint holds a whole model, which could not be compared with the backbone's own weights: its layer norms were "
            "all taken into the package, and the rest was taken to be the backbone's."
        )
        return dict(sorted(checkpoint.norms.items()))
    for key, tensor in checkpoint.frozen.items():
        own = frozen(key)
        if own is None and key in _TIED:
            own = frozen("shared.weight")
        if key != _UNREAD and (own is None or not blocks.same_numbers(tensor, own)):
            state = "is not a tensor of the backbone" if own is None else "is not the backbone's"
            raise WrongBackbone(
                f"The checkpoint's tensor {shown(key, 160)} {state}: it was trained on another model, or changed more than adapters."
            )
    tuned = {module: own for module, own in checkpoint.norms.items() if not _is_frozen(own, frozen)}
    remarks.report.append(f"compared {len(checkpoint.frozen) + len(checkpoint.norms)} tensors with the backbone's own")
    return dict(sorted(tuned.items()))


def _is_frozen(own: tuple[str, TensorData], frozen: Frozen) -> bool:
    there = frozen(own[0])
    return there is not None and blocks.same_numbers(own[1], there)

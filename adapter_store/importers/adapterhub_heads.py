"""Heads of the `adapters` library -> our Head and its tensors. Knows nothing of adapters.

Flexible heads (`*AdapterModel`) are a torch Sequential: Dropout, Linear[, activation], ..., Dropout, Linear; only Linears have
tensors, `heads.NAME.{index}`. Those of language models have no Dropout, and a LayerNorm behind the activation. Heads of static
classes (`BertForSequenceClassification`) are named by the model's own modules, and lie in `static_heads.py`.
"""

from collections.abc import Mapping
from typing import Any

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.families import FAMILIES
from adapter_store.importers.folder import Remarks
from adapter_store.importers.heads import (
    ALONE,
    Sources,
    Weights,
    default_labels,
    head_activation,
    linear_sources,
    lm_sources,
    make_head,
    static_head,
    take,
)
from adapter_store.importers.static_heads import CLASS_OF, STATIC
from adapter_store.manifest import LM_HEADS, MAX_VOCABULARY, Head
from adapter_store.methods import Backbone
from adapter_store.names import shown
from adapter_store.tensorfile import TensorData

MAX_LAYERS = 8
_CONFIG, _FILE = "head_config.json", "model_head.safetensors"

# Head type -> the library's defaults: layers and activation.
_DEFAULTS: dict[str, tuple[int, str | None]] = {
    "classification": (2, "tanh"),
    "multilabel_classification": (2, "tanh"),
    "multiple_choice": (2, "tanh"),
    "tagging": (1, "tanh"),
    "question_answering": (1, "tanh"),
    "dependency_parsing": (1, None),
    "masked_lm": (2, "gelu"),
    "causal_lm": (1, None),
    "seq2seq_lm": (1, None),
}


def import_head(config: Mapping[str, Any], weights: Weights, backbone: Backbone, remarks: Remarks) -> tuple[Head, dict[str, TensorData]]:
    """The head and its tensors under our names; raises InvalidPackage, or UnsupportedMethod naming the head."""
    name = config.get("name")
    fields = config.get("config")
    if fields is None:
        weights = _without_prefixes(weights, remarks)
        head, sources = _static(config, weights, backbone)
    elif isinstance(fields, dict) and isinstance(name, str) and name:
        weights = _own(weights, f"heads.{name}.", remarks)
        head, sources = _flexible(f"heads.{name}", fields, weights, backbone)
    else:
        raise InvalidPackage(f"{_CONFIG} is not valid: 'config' must be an object and 'name' the head's name.")
    tensors = take(weights, sources, head, backbone, _CONFIG, _FILE)
    whose = shown(name) if isinstance(name, str) and name else "of the model class"
    remarks.report.append(f"head {whose}: {head.type}, {len(head.labels)} labels, {len(tensors)} tensors")
    return head, tensors


def _flexible(prefix: str, fields: dict[str, Any], weights: Weights, backbone: Backbone) -> tuple[Head, Sources]:
    head_type = fields.get("head_type")
    if not isinstance(head_type, str) or head_type not in _DEFAULTS:
        raise UnsupportedMethod(
            f"The head is of the type {shown(str(head_type))}, which this version does not serve; served are "
            f"{', '.join(_DEFAULTS)}; {ALONE}"
        )
    layers, function = _DEFAULTS[head_type]
    layers, function = fields.get("layers", layers), fields.get("activation_function", function)
    if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
        raise InvalidPackage(f"{_CONFIG} is not valid: 'layers' must be 1 to {MAX_LAYERS}, not {shown(str(layers))}.")
    if head_type in LM_HEADS:
        return _language_model(prefix, head_type, layers, function, fields, weights, backbone)
    labels = _labels(fields.get("label2id"), fields.get("num_choices" if head_type == "multiple_choice" else "num_labels"))
    scaled = {"scaled": True} if FAMILIES[backbone.model_type].encoder_decoder else {}
    if head_type == "dependency_parsing":
        sources = {"head.arcs": [f"{prefix}.biaffine_arcs.weight"], "head.relations": [f"{prefix}.biaffine_rels.weight"]}
        return make_head(head_type, labels, _CONFIG, **scaled), sources
    stride = 3 if function else 2
    head = make_head(
        head_type,
        labels,
        _CONFIG,
        layers=layers,
        activation=None if layers == 1 else head_activation(function),
        use_pooler=fields.get("use_pooler") or False,
        bias=fields.get("bias", True),
        **scaled,
    )
    return head, linear_sources([f"{prefix}.{1 + stride * layer}" for layer in range(layers)])


def _language_model(
    prefix: str, head_type: str, layers: int, function: Any, fields: dict[str, Any], weights: Weights, backbone: Backbone
) -> tuple[Head, Sources]:
    """A flexible head of a language model, before whose decoder the row's invertible adapter is undone."""
    if layers > 2:
        raise UnsupportedMethod(f"The {head_type} head has {layers} layers, of which this version serves 1 and 2; {ALONE}")
    masked = head_type == "masked_lm"
    norm, bias = fields.get("layer_norm", masked) and layers == 2, fields.get("bias", masked)
    place = (1 + bool(function) + bool(norm)) if layers == 2 else 0
    decoder = weights.get(f"{prefix}.{place}.weight")
    vocab_size = fields.get("vocab_size") or (decoder.shape[0] if decoder is not None and decoder.shape else None)
    if type(vocab_size) is not int or not 1 <= vocab_size <= MAX_VOCABULARY:
        raise InvalidPackage(f"{_CONFIG} is not valid: 'vocab_size' must be a number from 1 to {MAX_VOCABULARY}.")
    size = fields.get("embedding_size", backbone.hidden_size)
    head = make_head(
        head_type,
        (),
        _CONFIG,
        layers=layers,
        activation=None if layers == 1 else head_activation(function),
        norm=norm,
        bias=bias,
        vocab_size=vocab_size,
        embedding_size=None if layers == 1 or size == backbone.hidden_size else size,
        invert=True,
    )
    dense = f"{prefix}.0" if layers == 2 else None
    return head, lm_sources(dense, f"{prefix}.{1 + bool(function)}" if norm else None, f"{prefix}.{place}")


def _static(config: Mapping[str, Any], weights: Weights, backbone: Backbone) -> tuple[Head, Sources]:
    model_class = str(config.get("model_class"))
    static = STATIC.get(model_class)
    if static is None:
        served = ", ".join(name for name in STATIC if name.startswith(CLASS_OF[backbone.model_type]))
        raise UnsupportedMethod(f"Heads of the class {shown(model_class)} are not served, for this backbone only {served}; {ALONE}")
    labelled = static.type in ("classification", "tagging")
    labels = _labels(config.get("label2id"), config.get("num_labels")) if labelled else default_labels(2)
    return static_head(static, labels, weights, backbone, _CONFIG)


def _labels(label2id: Any, num_labels: Any) -> tuple[str, ...]:
    """Labels in the order of their ids, which must be 0 .. n-1, each once; LABEL_0, LABEL_1 ... where none are given."""
    if num_labels is not None and (type(num_labels) is not int or not 0 < num_labels <= 65536):
        raise InvalidPackage(f"{_CONFIG} is not valid: 'num_labels' must be a number from 1 to 65536.")
    if label2id is None and num_labels is not None:
        return default_labels(num_labels)
    if not isinstance(label2id, dict) or not label2id:
        raise InvalidPackage(f"{_CONFIG} is not valid: 'label2id' must map labels to their ids.")
    by_id: dict[int, str] = {}
    for label, number in label2id.items():
        if isinstance(number, bool) or not str(number).isdecimal() or len(str(number)) > 6:
            raise InvalidPackage(f"{_CONFIG} gives the label {shown(label)} the id {shown(str(number))}: ids must be numbers from 0 on.")
        by_id[int(number)] = label
    count = len(label2id) if num_labels is None else num_labels
    if sorted(by_id) != list(range(count)) or len(label2id) != count:
        raise InvalidPackage(f"{_CONFIG} must give each of the {count} ids from 0 to {count - 1} exactly one label in 'label2id'.")
    return tuple(by_id[i] for i in range(count))


def _own(weights: Weights, prefix: str, remarks: Remarks) -> dict[str, TensorData]:
    """The head's own tensors. The library filters by the start of a name, so heads with longer names may be in the file too."""
    foreign = sorted(
        {key.split(".")[1] for key in weights if key.startswith("heads.") and not key.startswith(prefix) and key.count(".") > 1}
    )
    if foreign:
        remarks.report.append(f"ignored the tensors of other heads in the file: {', '.join(shown(name, 40) for name in foreign[:10])}")
    return {key: tensor for key, tensor in weights.items() if not (key.startswith("heads.") and key.split(".")[1] in foreign)}


def _without_prefixes(weights: Weights, remarks: Remarks) -> dict[str, TensorData]:
    """The library writes the prefixes of a T5ForConditionalGeneration into the file of its head as well."""
    kept = {key: tensor for key, tensor in weights.items() if not key.startswith("prefix_tuning.")}
    if len(kept) < len(weights):
        remarks.report.append(f"ignored {len(weights) - len(kept)} tensors of prefixes in the head's file")
    return kept

"""head_config.json + model_head.safetensors of the `adapters` library -> our Head and its tensors. Knows nothing of adapters.

Flexible heads (`*AdapterModel`) are a torch Sequential: Dropout, Linear[, activation], ..., Dropout, Linear; only Linears have
tensors, `heads.NAME.{index}`. Heads of static classes (`BertForSequenceClassification`) are named by the model's own modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.manifest import Head
from adapter_store.methods import Backbone, activation
from adapter_store.names import shown
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData

SERVED = ("classification", "multilabel_classification", "tagging")
MAX_LAYERS = 8
_ALONE = "leave out head_config.json and model_head.safetensors to publish the adapter alone."


@dataclass(frozen=True, slots=True)
class Static:
    """The head of a static model class: its flexible equivalent and the model's modules, first layer first."""

    type: str
    modules: tuple[str, ...]
    activation: str | None = None
    use_pooler: bool = False


_TAGGING = Static("tagging", ("classifier",))
_ROBERTA = Static("classification", ("classifier.dense", "classifier.out_proj"), "tanh")

STATIC: dict[str, Static] = {
    "BertForSequenceClassification": Static("classification", ("classifier",), use_pooler=True),
    "BertForTokenClassification": _TAGGING,
    "RobertaForSequenceClassification": _ROBERTA,
    "RobertaForTokenClassification": _TAGGING,
    "XLMRobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaForTokenClassification": _TAGGING,
    "ElectraForSequenceClassification": Static("classification", ("classifier.dense", "classifier.out_proj"), "gelu"),
    "ElectraForTokenClassification": _TAGGING,
    "DistilBertForSequenceClassification": Static("classification", ("pre_classifier", "classifier"), "relu"),
    "DistilBertForTokenClassification": _TAGGING,
}


def import_head(
    config: dict[str, Any], weights: Mapping[str, TensorData], backbone: Backbone, report: list[str]
) -> tuple[Head, dict[str, TensorData]]:
    """The head and its tensors under our names; raises InvalidPackage, or UnsupportedMethod naming the head."""
    name = config.get("name")
    fields = config.get("config")
    if fields is None:
        head, modules = _static(config)
    elif isinstance(fields, dict) and isinstance(name, str) and name:
        head, modules = _flexible(name, fields)
        weights = _own(weights, f"heads.{name}.", report)
    else:
        raise InvalidPackage("head_config.json is not valid: 'config' must be an object and 'name' the head's name.")
    tensors = _rename(weights, modules, head, backbone)
    report.append(f"head {shown(name) if name else 'of the model class'}: {head.type}, {len(head.labels)} labels, {len(tensors)} tensors")
    return head, tensors


def _flexible(name: str, fields: dict[str, Any]) -> tuple[Head, list[str]]:
    head_type = _served(fields.get("head_type"))
    layers = fields.get("layers", 1)
    if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
        raise InvalidPackage(f"head_config.json is not valid: 'layers' must be 1 to {MAX_LAYERS}, not {shown(str(layers))}.")
    function = fields.get("activation_function")
    stride = 2 if function is None else 3
    modules = [f"heads.{name}.{1 + stride * layer}" for layer in range(layers)]
    head = _head(
        type=head_type,
        layers=layers,
        activation=None if layers == 1 else _activation(function),
        use_pooler=fields.get("use_pooler") or False,
        bias=fields.get("bias", True),
        labels=_labels(fields.get("label2id"), fields.get("num_labels")),
    )
    return head, modules


def _static(config: dict[str, Any]) -> tuple[Head, list[str]]:
    model_class = str(config.get("model_class"))
    static = STATIC.get(model_class)
    if static is None:
        raise UnsupportedMethod(f"Heads of the class {shown(model_class)} are not served, only {', '.join(STATIC)}; {_ALONE}")
    head = _head(
        type=static.type,
        layers=len(static.modules),
        activation=static.activation,
        use_pooler=static.use_pooler,
        labels=_labels(config.get("label2id"), config.get("num_labels")),
    )
    return head, list(static.modules)


def _served(head_type: Any) -> str:
    if head_type not in SERVED:
        raise UnsupportedMethod(
            f"The head is of the type {shown(str(head_type))}, which this version does not serve; served are {', '.join(SERVED)}; {_ALONE}"
        )
    return str(head_type)


def _activation(name: Any) -> str | None:
    if name is None:
        return None
    try:
        return activation(str(name))
    except ValueError as error:
        raise UnsupportedMethod(f"The head's activation_function cannot be served: {error}.") from None


def _labels(label2id: Any, num_labels: Any) -> tuple[str, ...]:
    """Labels in the order of their ids, which must be 0 .. n-1, each once; LABEL_0, LABEL_1 ... where none are given."""
    if num_labels is not None and (type(num_labels) is not int or not 0 < num_labels <= 65536):
        raise InvalidPackage("head_config.json is not valid: 'num_labels' must be a number from 1 to 65536.")
    if label2id is None and num_labels is not None:
        return tuple(f"LABEL_{i}" for i in range(num_labels))
    if not isinstance(label2id, dict) or not label2id:
        raise InvalidPackage("head_config.json is not valid: 'label2id' must map labels to their ids.")
    by_id: dict[int, str] = {}
    for label, number in label2id.items():
        if isinstance(number, bool) or not str(number).isdecimal() or len(str(number)) > 6:
            raise InvalidPackage(
                f"head_config.json gives the label {shown(label)} the id {shown(str(number))}: ids must be numbers from 0 on."
            )
        by_id[int(number)] = label
    count = len(label2id) if num_labels is None else num_labels
    if sorted(by_id) != list(range(count)) or len(label2id) != count:
        raise InvalidPackage(f"head_config.json must give each of the {count} ids from 0 to {count - 1} exactly one label in 'label2id'.")
    return tuple(by_id[i] for i in range(count))


def _head(type: str, labels: tuple[str, ...], **fields: Any) -> Head:
    if type == "classification" and len(labels) == 1:
        type = "regression"
    try:
        return Head.model_validate({"type": type, "labels": labels} | fields)
    except ValidationError as error:
        raise InvalidPackage(f"head_config.json is not valid: {sentence(error)}") from None


def _own(weights: Mapping[str, TensorData], prefix: str, report: list[str]) -> dict[str, TensorData]:
    """The head's own tensors. The library filters by the start of a name, so heads with longer names may be in the file too."""
    foreign = sorted(
        {key.split(".")[1] for key in weights if key.startswith("heads.") and not key.startswith(prefix) and key.count(".") > 1}
    )
    if foreign:
        report.append(f"ignored the tensors of other heads in the file: {', '.join(shown(name, 40) for name in foreign[:10])}")
    return {key: tensor for key, tensor in weights.items() if not (key.startswith("heads.") and key.split(".")[1] in foreign)}


def _rename(weights: Mapping[str, TensorData], modules: list[str], head: Head, backbone: Backbone) -> dict[str, TensorData]:
    sources = {f"head.{layer}.{kind}": f"{module}.{kind}" for layer, module in enumerate(modules) for kind in ("weight", "bias")}
    tensors: dict[str, TensorData] = {}
    for key, shape in head.tensors(backbone).items():
        source = sources[key]
        if source not in weights:
            raise InvalidPackage(f"model_head.safetensors lacks the tensor {shown(source, 160)} that head_config.json calls for.")
        if weights[source].shape != shape:
            actual = list(weights[source].shape)
            raise InvalidPackage(f"The tensor {shown(source, 160)} has the shape {actual}; head_config.json calls for {list(shape)}.")
        tensors[key] = weights[source]
    unmatched = sorted(weights.keys() - {sources[key] for key in tensors})
    if unmatched:
        raise InvalidPackage(
            f"model_head.safetensors holds the tensor {shown(unmatched[0], 160)}, which head_config.json does not call for."
        )
    return tensors

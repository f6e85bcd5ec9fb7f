"""Folders of the `adapters` library (AdapterHub), any version: adapter_config.json + adapter.safetensors and/or a head.

Knows the library's file names, configs and keys (adapters 1.3.0 and older); the result is a manifest and tensors under Turret's
names. Nothing is guessed: a tensor that is not understood, or one that is missing, is an error that names it.
Key grammar: <model prefix><site>.adapters.NAME.{adapter_down.0 | adapter_up | gate | adapter_norm_before | ...}.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidName, InvalidPackage, UnsupportedMethod, WrongBackbone
from adapter_store.importers.adapterhub_config import bottleneck
from adapter_store.importers.adapterhub_heads import import_head
from adapter_store.importers.folder import CARD, Files, ImportedPackage, read_card, read_object, read_tensors
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck, Shape, Site
from adapter_store.names import check_name, shown
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData

ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"
HEAD_CONFIG, HEAD_WEIGHTS, HEAD_PICKLE = "head_config.json", "model_head.safetensors", "pytorch_model_head.bin"
KNOWN_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE, HEAD_CONFIG, HEAD_WEIGHTS, HEAD_PICKLE)

PART = "bottleneck"


@dataclass(frozen=True, slots=True)
class Family:
    """Where one family of models keeps its adapters: the prefix of its keys and the path of each site, `{i}` the layer."""

    prefix: str
    sites: Mapping[Site, str]


_BERT_SITES: dict[Site, str] = {"mh": "encoder.layer.{i}.attention.output", "output": "encoder.layer.{i}.output"}

FAMILIES: dict[str, Family] = {
    "bert": Family("bert.", _BERT_SITES),
    "roberta": Family("roberta.", _BERT_SITES),
    "xlm-roberta": Family("roberta.", _BERT_SITES),
    "electra": Family("electra.", _BERT_SITES),
    "distilbert": Family(
        "distilbert.", {"mh": "transformer.layer.{i}.attention_adapters", "output": "transformer.layer.{i}.output_adapters"}
    ),
}

# The module that holds the adapters, in this version of the library and in its first.
_HOLDER = "(?:adapters|attention_text_task_adapters|attention_text_lang_adapters|layer_text_task_adapters|layer_text_lang_adapters)"

# The library's tensor -> ours. With ln_before the norm is the first module of adapter_down and is written a second time there.
_TENSORS = {"adapter_up": "up", "gate": "gate", "adapter_norm_before": "ln_before", "adapter_norm_after": "ln_after"}
_DOWN = {False: {"adapter_down.0": "down"}, True: {"adapter_down.0": "ln_before", "adapter_down.1": "down"}}


def is_adapterhub(files: Files) -> bool:
    """Whether any file has one of the library's names."""
    return any(name in files for name in KNOWN_FILES)


def import_adapterhub(files: Files, backbone: Backbone | None) -> ImportedPackage:
    """The folder as a package for `backbone`; with None the backbone is what the folder says of it.

    Raises InvalidPackage, UnsupportedMethod (naming the method, head or model) and WrongBackbone.
    """
    has_adapter = _complete(files, ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE)
    has_head = _complete(files, HEAD_CONFIG, HEAD_WEIGHTS, HEAD_PICKLE)
    report: list[str] = []
    warnings: list[str] = []
    configs = [read_object(files, name) for name, there in ((ADAPTER_CONFIG, has_adapter), (HEAD_CONFIG, has_head)) if there]
    model_type, hidden_size = _model(configs)
    if backbone is not None:
        _check_model(model_type, hidden_size, configs[0], backbone, warnings)
    methods: dict[str, Bottleneck] = {}
    tensors: dict[str, TensorData] = {}
    if has_adapter:
        backbone, methods[PART], tensors = _import_adapter(files, configs[0], model_type, hidden_size, backbone, report, warnings)
    if backbone is None:
        raise InvalidPackage("A folder with only a head does not say how many layers its model has: name the backbone it is for.")
    head: Head | None = None
    if has_head:
        head, head_tensors = import_head(configs[-1], read_tensors(files, HEAD_WEIGHTS), backbone, report)
        tensors |= head_tensors
    manifest = _manifest(files, configs, backbone, methods, head, warnings)
    used = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD_CONFIG, HEAD_WEIGHTS, CARD}
    report += [f"ignored {shown(name)}" for name in files if name not in used]
    return ImportedPackage(manifest, tensors, tuple(report), tuple(warnings))


def _complete(files: Files, config: str, weights: str, pickle: str) -> bool:
    """Whether a config and its weights are there; raises InvalidPackage if only one of them is."""
    if weights not in files and pickle in files:
        raise InvalidPackage(
            f"{pickle} is a pickle, which a server never opens: convert the folder on your own machine with "
            "`turret convert FOLDER FILE` and publish FILE."
        )
    if (config in files) != (weights in files):
        there, missing = (config, weights) if config in files else (weights, config)
        raise InvalidPackage(f"The folder holds {there} but not {missing}: both are needed.")
    return config in files


def _model(configs: list[dict[str, Any]]) -> tuple[str, int]:
    """The model type and hidden size that all configs of the folder agree on."""
    types = {config["model_type"] for config in configs if isinstance(config.get("model_type"), str)}
    sizes = {config["hidden_size"] for config in configs if type(config.get("hidden_size")) is int}
    if len(types) != 1 or len(sizes) != 1:
        raise InvalidPackage("The configs of the folder must name one model_type and one hidden_size.")
    model_type, hidden_size = types.pop(), sizes.pop()
    if model_type not in FAMILIES:
        raise UnsupportedMethod(
            f"The folder was made for a model of type {shown(model_type)}, which this version does not serve; "
            f"served are {', '.join(sorted(FAMILIES))}."
        )
    return model_type, hidden_size


def _check_model(model_type: str, hidden_size: int, config: dict[str, Any], backbone: Backbone, warnings: list[str]) -> None:
    for word, wanted, here in (
        ("model type", model_type, backbone.model_type),
        ("hidden size", str(hidden_size), str(backbone.hidden_size)),
    ):
        if wanted != here:
            raise WrongBackbone(f"The folder was made for a model with the {word} {shown(wanted)}, but the backbone has {shown(here)}.")
    name = config.get("model_name")
    if isinstance(name, str) and name and backbone.name and _basename(name) != _basename(backbone.name):
        warnings.append(f"The folder was made for the model {shown(name)}, but the backbone is {shown(backbone.name)}.")


def _basename(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _import_adapter(
    files: Files,
    config: dict[str, Any],
    model_type: str,
    hidden_size: int,
    backbone: Backbone | None,
    report: list[str],
    warnings: list[str],
) -> tuple[Backbone, Bottleneck, dict[str, TensorData]]:
    name = config.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidPackage(f"{ADAPTER_CONFIG} does not give the adapter's name.")
    weights = read_tensors(files, ADAPTER_WEIGHTS)
    method = bottleneck(config, any("invertible" in key for key in weights), warnings)
    matched = _match(weights, name, FAMILIES[model_type], method)
    layers = {int(key.split(".")[1]) for key in matched}
    if backbone is None:
        num_layers = max((*layers, *method.leave_out), default=-1) + 1
        backbone = _backbone(model_type, hidden_size, num_layers, config)
    _check_layers(layers, method, backbone)
    _check_shapes(name, method, backbone, {key: (source, weights[source].shape) for key, source in matched.items()})
    sites = " and ".join(method.sites)
    report.append(f"adapter {shown(name)}: {len(matched)} tensors of a bottleneck at {len(layers)} layers ({sites})")
    return backbone, method, {f"{PART}.{key}": weights[source] for key, source in matched.items()}


def _match(weights: Mapping[str, TensorData], name: str, family: Family, method: Bottleneck) -> dict[str, str]:
    """Our tensor name -> the library's. Every tensor of the file must be matched."""
    table = _TENSORS | _DOWN[method.ln_before]
    patterns = {
        site: re.compile(
            f"(?:{re.escape(family.prefix)})?{re.escape(path).replace(re.escape('{i}'), '(?P<layer>0|[1-9][0-9]{0,3})')}"
            rf"\.{_HOLDER}\.{re.escape(name)}\.(?:scaling|(?P<module>{'|'.join(map(re.escape, table))})\.(?P<kind>weight|bias))"
        )
        for site, path in family.sites.items()
    }
    matched: dict[str, str] = {}
    for source, tensor in weights.items():
        found = [(site, match) for site, pattern in patterns.items() if (match := pattern.fullmatch(source))]
        if not found:
            if "invertible" in source:
                raise UnsupportedMethod(f"The adapter has an invertible part ({shown(source)}), which this version does not serve yet.")
            raise InvalidPackage(f"{ADAPTER_WEIGHTS} holds the tensor {shown(source, 160)}, which is none of the adapter {shown(name)}.")
        site, match = found[0]
        inner = f"{table[match['module']]}.{match['kind']}" if match["module"] else "scaling"
        key = f"layers.{match['layer']}.{site}.{inner}"
        if key in matched and bytes(weights[matched[key]].data) != bytes(tensor.data):
            raise InvalidPackage(
                f"{ADAPTER_WEIGHTS} holds {shown(source, 160)} and {shown(matched[key], 160)}, which contradict each other."
            )
        matched.setdefault(key, source)
    return matched


def _check_layers(layers: set[int], method: Bottleneck, backbone: Backbone) -> None:
    reach = max(layers, default=-1) + 1
    if reach > backbone.num_layers:
        raise WrongBackbone(f"The adapter reaches layer {reach - 1}, but the backbone has only {backbone.num_layers} layers.")
    reach = max((*layers, *method.leave_out), default=-1) + 1
    if reach < backbone.num_layers:
        raise WrongBackbone(f"The adapter ends at layer {reach - 1}, but the backbone has {backbone.num_layers} layers.")


def _check_shapes(name: str, method: Bottleneck, backbone: Backbone, found: Mapping[str, tuple[str, Shape]]) -> None:
    try:
        expected = method.tensors(backbone)
    except ValueError as error:
        raise InvalidPackage(f"{ADAPTER_CONFIG} does not hold together: {error}.") from None
    for key, shape in expected.items():
        if key not in found:
            raise InvalidPackage(f"{ADAPTER_WEIGHTS} lacks the tensor of '{key}' that the config of the adapter {shown(name)} calls for.")
        source, actual = found[key]
        if actual != shape:
            raise InvalidPackage(f"The tensor {shown(source, 160)} has the shape {list(actual)}; the config calls for {list(shape)}.")
    for key, (source, _) in found.items():
        if key not in expected:
            raise InvalidPackage(f"{ADAPTER_WEIGHTS} holds the tensor {shown(source, 160)}, which the adapter's config does not call for.")


def _backbone(model_type: str, hidden_size: int, num_layers: int, config: dict[str, Any]) -> Backbone:
    try:
        return Backbone(model_type=model_type, hidden_size=hidden_size, num_layers=num_layers, name=_text(config, "model_name"))
    except ValidationError as error:
        raise InvalidPackage(f"{ADAPTER_CONFIG} is not valid: {sentence(error)}") from None


def _text(config: dict[str, Any], key: str) -> str:
    value = config.get(key)
    return value[:256] if isinstance(value, str) else ""


def _manifest(
    files: Files,
    configs: list[dict[str, Any]],
    backbone: Backbone,
    methods: dict[str, Bottleneck],
    head: Head | None,
    warnings: list[str],
) -> Manifest:
    card, license_name = read_card(files, warnings)
    source = {"format": "adapterhub"} | {key: _text(configs[0], key) for key in ("version", "model_name", "model_class")}
    try:
        return Manifest(
            name=_name(_text(configs[0], "name")),
            methods=methods,
            head=head,
            backbone=backbone,
            license=license_name,
            card=card,
            source={key: value for key, value in source.items() if value},
        )
    except ValidationError as error:
        raise InvalidPackage(f"The folder does not make a valid package: {sentence(error)}") from None


def _name(name: str) -> str:
    """The adapter's name where it is one of ours, else none: the publisher names the package anyway."""
    try:
        return check_name(name.lower())
    except InvalidName:
        return ""

"""What all folders of the `adapters` library share: file names, the model that they were made for, the manifest.

File names and top-level keys are those of adapters 1.3.0 and older.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidName, InvalidPackage, UnsupportedMethod
from adapter_store.families import FAMILIES
from adapter_store.importers.backbones import check_model
from adapter_store.importers.folder import CARD, Files, Remarks, read_card, read_object
from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Method
from adapter_store.names import check_name, shown
from adapter_store.package import sentence

Config = Mapping[str, Any]

MAX_ADAPTER_NAME = 512  # as long as a tensor's, which holds it


@dataclass(frozen=True, slots=True)
class Pair:
    """A config and its weights, and the pickle that may stand for the weights."""

    config: str
    weights: str
    pickle: str

    @property
    def names(self) -> tuple[str, str, str]:
        return self.config, self.weights, self.pickle


ADAPTER = Pair("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin")
HEAD = Pair("head_config.json", "model_head.safetensors", "pytorch_model_head.bin")
FUSION = Pair("adapter_fusion_config.json", "model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
# Written beside adapters of models that the library reaches through its plugin interface; says what `families.py` says.
INTERFACE = "adapter_interface.json"


def complete(files: Files, pair: Pair) -> bool:
    """Whether a config and its weights are there; raises InvalidPackage if only one of them is."""
    if pair.weights not in files and pair.pickle in files:
        raise pickled(pair.pickle)
    if (pair.config in files) != (pair.weights in files):
        there, missing = (pair.config, pair.weights) if pair.config in files else (pair.weights, pair.config)
        raise InvalidPackage(f"The folder holds {there} but not {missing}: both are needed.")
    return pair.config in files


def pickled(name: str) -> InvalidPackage:
    """The error for weights that are there as a pickle only."""
    return InvalidPackage(
        f"{name} is a pickle, which a server never opens: convert the folder on your own machine with "
        "`turret convert FOLDER FILE` and publish FILE."
    )


@dataclass(frozen=True, slots=True)
class Model:
    """The model that a folder was made for."""

    type: str
    hidden_size: int
    name: str


def model_of(configs: Sequence[Config], backbone: Backbone | None, remarks: Remarks) -> Model:
    """The model that all configs of the folder agree on; raises WrongBackbone where it is not `backbone`."""
    types = {config["model_type"] for config in configs if isinstance(config.get("model_type"), str)}
    sizes = {config["hidden_size"] for config in configs if type(config.get("hidden_size")) is int}
    if len(types) != 1 or len(sizes) != 1:
        raise InvalidPackage("The configs of the folder must name one model_type and one hidden_size.")
    model = Model(types.pop(), sizes.pop(), text(configs[0], "model_name"))
    if model.type not in FAMILIES:
        raise UnsupportedMethod(
            f"The folder was made for a model of type {shown(model.type)}, which this version does not serve; "
            f"served are {', '.join(sorted(FAMILIES))}."
        )
    if backbone is not None:
        check_model(model.type, model.hidden_size, backbone)
        if model.name and backbone.name and _basename(model.name) != _basename(backbone.name):
            remarks.warnings.append(f"The folder was made for the model {shown(model.name)}, but the backbone is {shown(backbone.name)}.")
    return model


def _basename(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def text(config: Config, key: str) -> str:
    """A text of a config, cut to what a manifest holds."""
    value = config.get(key)
    return value[:256] if isinstance(value, str) else ""


def adapter_name(config: Config, file: str) -> str:
    """The name that the library's keys hold."""
    name = config.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_ADAPTER_NAME:
        raise InvalidPackage(f"{file} does not give the adapter's name, a text of 1 to {MAX_ADAPTER_NAME} characters.")
    return name


@dataclass(frozen=True, slots=True)
class Described:
    """What a folder says of itself besides its tensors."""

    card: str
    license: str
    name: str
    source: dict[str, str]


def describe(files: Files, config: Config, remarks: Remarks, format_name: str = "adapterhub") -> Described:
    """Card, license, name and origin."""
    card, license_name = read_card(files, remarks.warnings)
    source = {"format": format_name} | {key: text(config, key) for key in ("version", "model_name", "model_class")}
    return Described(card, license_name, our_name(text(config, "name")), {key: value for key, value in source.items() if value})


def our_name(name: str) -> str:
    """The adapter's name where it is one of ours, else none: the publisher names the package anyway."""
    try:
        return check_name(name.lower())
    except InvalidName:
        return ""


def manifest_of(
    described: Described, backbone: Backbone, methods: Mapping[str, Method], head: Head | None, composition: str | None = None
) -> Manifest:
    """The package's manifest; raises InvalidPackage where its parts do not go together."""
    try:
        return Manifest(
            name=described.name,
            methods=dict(methods),
            composition=composition,
            head=head,
            backbone=backbone,
            license=described.license,
            card=described.card,
            source=described.source,
        )
    except ValidationError as error:
        raise InvalidPackage(f"The folder does not make a valid package: {sentence(error)}") from None


def ignored(files: Files, used: Sequence[str]) -> list[str]:
    """Lines of the report on the files that were not read."""
    return [f"ignored {shown(name)}" for name in files if name not in (*used, CARD, INTERFACE)]


def read_config(files: Files, pair: Pair) -> dict[str, Any]:
    """The config of a pair."""
    return read_object(files, pair.config)

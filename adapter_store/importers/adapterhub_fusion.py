"""AdapterFusion folders of the `adapters` library: adapter_fusion_config.json + model_adapter_fusion.safetensors, and maybe a head.

The members are packages of their own; the package of the fusion holds its weights and names them, pinned by digest, in its
composition. Keys: `<site>.adapter_fusion_layer.NAME.{query | key | value | dense}.*`; NAME often holds commas.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from adapter_store.composition import Adapter, Block, Fuse, format_block
from adapter_store.errors import InvalidName, InvalidPackage, UnsupportedMethod
from adapter_store.families import Site
from adapter_store.importers.adapterhub import check_law
from adapter_store.importers.adapterhub_folder import (
    FUSION,
    HEAD,
    Config,
    Model,
    adapter_name,
    complete,
    describe,
    ignored,
    manifest_of,
    model_of,
    read_config,
)
from adapter_store.importers.adapterhub_heads import import_head
from adapter_store.importers.adapterhub_match import Collected, Entry, Grammar, collected
from adapter_store.importers.backbones import plain_backbone
from adapter_store.importers.folder import Files, ImportedPackage, Options, Remarks, listed, read_tensors
from adapter_store.importers.places import Counts, Places, count_layers
from adapter_store.methods import Backbone, Fusion
from adapter_store.names import DIGEST, Reference, parse_reference, shown
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData

PART = "fusion"
SELF = Reference("self")
# What the library's temperature is on the first forward pass after loading; it falls with every pass and is in no file.
_FIRST_TEMPERATURE = 50.0

_DYNAMIC: dict[str, Any] = {"query": True, "key": True, "value": True}
PRESETS: dict[str, dict[str, Any]] = {"dynamic": _DYNAMIC, "static": _DYNAMIC | {"value": False}}
_FIELDS = ("query", "key", "value", "query_before_ln", "value_before_softmax", "residual_before")
_TENSORS = ("query.weight", "query.bias", "key.weight", "key.bias", "value.weight")
_DENSE = ("dense.weight", "dense.bias")
_SITES: tuple[Site, ...] = ("mh", "cross", "output")


def is_fusion(files: Files) -> bool:
    """Whether any file has the name of a fusion's."""
    return any(name in files for name in FUSION.names)


def fusion_members(files: Files) -> tuple[str, ...]:
    """The names of the adapters that a fusion folder fuses, as its config gives them; raises InvalidPackage."""
    complete(files, FUSION)
    return _members(read_config(files, FUSION))


def _members(config: Config) -> tuple[str, ...]:
    """The list of names; files of older versions have it in the fusion's name only."""
    names = config.get("adapter_names") or config.get("name")
    names = names.split(",") if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidPackage(f"{FUSION.config} does not name the adapters that are fused (adapter_names).")
    if len(set(names)) != len(names):
        raise InvalidPackage(f"{FUSION.config} names an adapter twice in adapter_names.")
    return tuple(names)


def import_fusion(files: Files, options: Options) -> ImportedPackage:
    """The folder as a package that fuses `options.members`; raises InvalidPackage naming those that are not told."""
    complete(files, FUSION)
    config = read_config(files, FUSION)
    children = pinned_members(_members(config), options.members or {})
    return build_fusion(files, options, Fuse(SELF, children))


def pinned_members(names: Sequence[str], members: Mapping[str, str]) -> tuple[Block, ...]:
    """The members as blocks; raises InvalidPackage for one that is not told or not pinned by digest."""
    missing = [name for name in names if name not in members]
    if missing:
        raise InvalidPackage(
            f"The folder is a fusion of {listed(names)}, and it is not told which published packages these are: "
            f"publish them first, and name each one ({shown(missing[0], 60)} = name@sha256:...)."
        )
    blocks: list[Block] = []
    for name in names:
        reference = parse_reference(members[name])
        if not DIGEST.fullmatch(reference.selector):
            raise InvalidName(f"The member {shown(name, 60)} must be pinned by digest (name@sha256:...), not {shown(members[name])}.")
        blocks.append(Adapter(reference))
    return tuple(blocks)


def build_fusion(files: Files, options: Options, composition: Block) -> ImportedPackage:
    """The weights and the head of a fusion folder as a package with a composition."""
    has_head = complete(files, HEAD)
    remarks = Remarks()
    configs = [read_config(files, pair) for pair, there in ((FUSION, True), (HEAD, has_head)) if there]
    model = model_of(configs, options.backbone, remarks)
    backbone, method, weights = _weights(configs[0], read_tensors(files, FUSION.weights), model, options.backbone, remarks)
    tensors: dict[str, TensorData] = dict(weights.tensors)
    head = None
    if has_head:
        head, head_tensors = import_head(configs[-1], read_tensors(files, HEAD.weights), backbone, remarks)
        tensors |= head_tensors
    manifest = manifest_of(describe(files, configs[0], remarks), backbone, {PART: method}, head, format_block(composition))
    remarks.report.extend(ignored(files, (*FUSION.names, *HEAD.names)))
    return ImportedPackage(manifest, tensors, tuple(remarks.report), tuple(remarks.warnings))


def _weights(
    config: Config, weights: Mapping[str, TensorData], model: Model, base: Backbone | None, remarks: Remarks
) -> tuple[Backbone, Fusion, Collected]:
    name = adapter_name(config, FUSION.config)
    places = Places(model.type)
    own = _own(weights, name, remarks)
    entries = Grammar(places, name).entries(own, frozenset({"fusion"}), f"the fusion {shown(name)}")
    counts = count_layers([entry.spot for entry in entries], frozenset(), places.family, base, f"The fusion {shown(name)}")
    backbone = plain_backbone(base, model.type, model.hidden_size, counts, None, model.name)
    method = _method(config, entries, counts, remarks)
    whole = collected()
    for entry in entries:
        if entry.rest in _TENSORS:
            whole.add(f"{PART}.{entry.address(counts)}.{entry.rest}", entry.tensor, entry.key)
        elif entry.rest not in _DENSE:
            raise InvalidPackage(f"{FUSION.weights} holds the tensor {shown(entry.key, 160)}, which is no part of a fusion.")
    check_law({PART: method}, backbone, whole, f"the config of the fusion {shown(name)}")
    unused = len(entries) - len(whole.tensors)
    remarks.report.append(
        f"fusion {shown(name)}: {len(whole.tensors)} tensors at {counts.total} layers ({', '.join(method.sites)})"
        + (f", {unused} that the library never uses were left out" if unused else "")
    )
    return backbone, method, whole


def _own(weights: Mapping[str, TensorData], name: str, remarks: Remarks) -> dict[str, TensorData]:
    """The fusion's own tensors. The library filters by the start of a name, so fusions with longer names may be in the file too."""
    own = {key: tensor for key, tensor in weights.items() if f".adapter_fusion_layer.{name}." in key}
    others = {key for key in weights.keys() - own.keys() if f".adapter_fusion_layer.{name}" in key}
    if others:
        remarks.report.append(f"ignored {len(others)} tensors of other fusions in the file")
    return own | {key: tensor for key, tensor in weights.items() if key not in own and key not in others}


def _method(config: Config, entries: Sequence[Entry], counts: Counts, remarks: Remarks) -> Fusion:
    fields = config.get("config")
    if isinstance(fields, str):
        if fields not in PRESETS:
            raise UnsupportedMethod(f"The fusion's config is {shown(fields)}, which is no known preset; known are {', '.join(PRESETS)}.")
        fields = PRESETS[fields]
    if not isinstance(fields, dict):
        raise InvalidPackage(f"{FUSION.config} has no config: expected an object with the fusion's settings, or a preset's name.")
    if fields.get("temperature"):
        remarks.warnings.append(
            f"The fusion was trained with a temperature that falls with every pass and is in no file; it was set to {_FIRST_TEMPERATURE}, "
            "which the library computes with right after it has loaded the fusion."
        )
    sites = tuple(site for site in _SITES if any(entry.at == site for entry in entries))
    if not sites:
        raise InvalidPackage(f"{FUSION.weights} holds no tensor of the fusion.")
    there = {counts.number(entry.spot) for entry in entries}
    try:
        return Fusion.model_validate(
            {key: fields[key] for key in _FIELDS if key in fields}
            | {"sites": sites, "leave_out": [layer for layer in range(counts.total) if layer not in there]}
            | ({"temperature": _FIRST_TEMPERATURE} if fields.get("temperature") else {})
        )
    except ValidationError as error:
        raise InvalidPackage(f"{FUSION.config} is not valid: {sentence(error)}") from None

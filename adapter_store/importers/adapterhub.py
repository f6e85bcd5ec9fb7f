"""Folders of one adapter of the `adapters` library (AdapterHub), any version: adapter_config.json + adapter.safetensors, a head, or both.

The result is a manifest and tensors under Turret's names. Nothing is guessed: a tensor that is not understood, or one that is
missing, is an error that names it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adapter_store.errors import InvalidPackage
from adapter_store.families import LINEARS
from adapter_store.importers.adapterhub_config import LinearsConfig, Part, PrefixConfig, read_parts
from adapter_store.importers.adapterhub_folder import (
    ADAPTER,
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
from adapter_store.importers.adapterhub_match import Collected, Entry, Grammar, Kind, collected
from adapter_store.importers.adapterhub_parts import Context, builder_of, split_linears
from adapter_store.importers.backbones import EMBEDDING_TOLD, plain_backbone, with_linears
from adapter_store.importers.folder import Files, ImportedPackage, Options, Remarks, read_tensors
from adapter_store.importers.places import NAME_BACKBONE, Dimensions, Places, count_layers
from adapter_store.manifest import Head
from adapter_store.methods import Backbone, Bottleneck, Method, Shape
from adapter_store.names import shown
from adapter_store.tensorfile import TensorData

_KINDS: frozenset[Kind] = frozenset({"bottleneck", "linear", "gate", "prefix", "prompt", "invertible", "shared"})


def is_adapterhub(files: Files) -> bool:
    """Whether any file has one of the library's names."""
    return any(name in files for name in (*ADAPTER.names, *HEAD.names))


def import_adapterhub(files: Files, options: Options) -> ImportedPackage:
    """The folder as a package for the backbone of the options; without one the backbone is what the folder says of it.

    Raises InvalidPackage, UnsupportedMethod (naming the method, head or model) and WrongBackbone.
    """
    has_adapter, has_head = complete(files, ADAPTER), complete(files, HEAD)
    remarks = Remarks()
    configs = [read_config(files, pair) for pair, there in ((ADAPTER, has_adapter), (HEAD, has_head)) if there]
    model = model_of(configs, options.backbone, remarks)
    backbone = options.backbone
    adapter = Adapter()
    if has_adapter:
        adapter = import_adapter(configs[0], read_tensors(files, ADAPTER.weights), model, options.backbone, remarks)
        backbone = adapter.backbone
    if backbone is None:
        raise InvalidPackage(f"A folder with only a head does not say how many layers its model has: {NAME_BACKBONE}.")
    if not has_adapter:
        backbone = with_linears(backbone, options.backbone, Dimensions(), ())
    head: Head | None = None
    tensors: dict[str, TensorData] = dict(adapter.tensors)
    if has_head:
        head, head_tensors = import_head(configs[-1], read_tensors(files, HEAD.weights), backbone, remarks)
        tensors |= head_tensors
    manifest = manifest_of(describe(files, configs[0], remarks), backbone, adapter.methods, head)
    remarks.report.extend(ignored(files, (ADAPTER.config, ADAPTER.weights, HEAD.config, HEAD.weights)))
    return ImportedPackage(manifest, tensors, tuple(remarks.report), tuple(remarks.warnings))


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's parts under our names, and the backbone as far as they need it."""

    backbone: Backbone | None = None
    methods: Mapping[str, Method] = field(default_factory=dict)
    tensors: Mapping[str, TensorData] = field(default_factory=dict)


def import_adapter(config: Config, weights: Mapping[str, TensorData], model: Model, backbone: Backbone | None, remarks: Remarks) -> Adapter:
    """The methods of an adapter_config.json with their tensors, each of which must be matched."""
    name = adapter_name(config, ADAPTER.config)
    places = Places(model.type)
    entries = Grammar(places, name).entries(weights, _KINDS, f"the adapter {shown(name)}")
    has_invertible = any(entry.kind == "invertible" for entry in entries)
    parts = read_parts(config, places.family, has_invertible, remarks.warnings)
    spots = [entry.spot for entry in entries]
    counts = count_layers(spots, _left_out(parts, entries), places.family, backbone, f"The adapter {shown(name)}")
    context = Context(places, counts, Dimensions())
    embedding = _embedding_size(entries)
    plain = plain_backbone(backbone, model.type, model.hidden_size, counts, embedding, model.name)
    methods: dict[str, Method] = {}
    whole = collected()
    for part, own in _owned(parts, entries, context, name):
        row = builder_of(part)
        methods[row.part], built = row.build(part, own, context)
        whole.update(built, f"{row.part}.")
        remarks.report.append(_line(name, row.part, methods[row.part], built, own, context))
    check_names(methods, plain, whole, f"the config of the adapter {shown(name)}")
    spec = with_linears(plain, backbone, context.dimensions, methods.values())
    check_law(methods, spec, whole, f"the config of the adapter {shown(name)}")
    if backbone is None and embedding is None and model.type in EMBEDDING_TOLD:
        remarks.warnings.append(
            f"The folder does not tell the size of the model's embeddings, which may not be the hidden size: {NAME_BACKBONE}."
        )
    return Adapter(spec, methods, whole.tensors)


def _left_out(parts: Sequence[Part], entries: Sequence[Entry]) -> frozenset[int]:
    """The layers in which the file has no tensor, as its config says. The copies of a prefix are in all layers, left out or not."""
    inside = {entry.kind for entry in entries if entry.spot.stack is not None}
    if any(isinstance(part, PrefixConfig) for part in parts) and ("prefix" in inside or not inside):
        return frozenset()
    layered = [frozenset(part.leave_out) for part in parts if isinstance(part, Bottleneck | LinearsConfig | PrefixConfig)]
    return frozenset.intersection(*layered) if layered else frozenset()


def _embedding_size(entries: Sequence[Entry]) -> int | None:
    """What an invertible adapter or a prompt tells of the size of an embedding."""
    wide = {(entry.kind, entry.rest): entry.tensor.shape[-1] for entry in entries if entry.tensor.shape}
    halves = [wide[kind] for kind in (("invertible", "F.0.weight"), ("invertible", "G.0.weight")) if kind in wide]
    prompts = [size for (kind, _), size in wide.items() if kind == "prompt"]
    return sum(halves) if len(halves) == 2 else prompts[0] if prompts else None


def _owned(parts: Sequence[Part], entries: Sequence[Entry], context: Context, name: str) -> list[tuple[Part, list[Entry]]]:
    """Each part with its entries; raises InvalidPackage for an entry that is no part's."""
    linears = split_linears(parts, [entry for entry in entries if entry.kind == "linear"], context)
    owned: list[tuple[Part, list[Entry]]] = []
    taken = {"linear"}
    for part in parts:
        row = builder_of(part)
        own = linears.get(row.part, []) if row.kinds == ("linear",) else [entry for entry in entries if entry.kind in row.kinds]
        owned.append((part, own))
        taken |= set(row.kinds)
    for entry in entries:
        if entry.kind not in taken:
            raise InvalidPackage(
                f"The weights hold the tensor {shown(entry.key, 160)}, which the config of {shown(name)} does not call for."
            )
    return owned


def _line(name: str, part: str, method: Method, built: Collected, own: Sequence[Entry], context: Context) -> str:
    """What was matched of one part."""
    layers = {context.counts.number(entry.spot) for entry in own if entry.spot.stack is not None}
    places = sorted({entry.at for entry in own if entry.at and entry.kind != "shared"})
    where = f" at {len(layers)} layers ({', '.join(places)})" if layers and places else ""
    twice = len(own) - len(built.tensors)
    return f"adapter {shown(name)}: {len(built.tensors)} tensors of {part}{where}" + (
        f", {twice} of them twice in the file" if twice > 0 else ""
    )


def check_names(methods: Mapping[str, Method], plain: Backbone, whole: Collected, wanting: str) -> None:
    """The tensors must be exactly those that the methods call for, by name; raises InvalidPackage naming the file's tensor."""
    expected = _law(methods, plain.model_copy(update={"linears": dict.fromkeys(LINEARS, (1, 3))}))
    for name in expected:
        if name not in whole.tensors:
            raise InvalidPackage(f"The weights lack the tensor of '{name}' that {wanting} calls for.")
    for name in sorted(whole.tensors.keys() - expected.keys()):
        raise InvalidPackage(f"The weights hold the tensor {shown(whole.sources[name], 160)}, which {wanting} does not call for.")


def check_law(methods: Mapping[str, Method], backbone: Backbone, whole: Collected, wanting: str) -> None:
    """`check_names`, and the tensors must have the shapes that the methods call for."""
    check_names(methods, backbone, whole, wanting)
    for name, shape in _law(methods, backbone).items():
        source, actual = whole.sources[name], whole.tensors[name].shape
        if actual != shape:
            raise InvalidPackage(f"The tensor {shown(source, 160)} has the shape {list(actual)}; {wanting} calls for {list(shape)}.")


def _law(methods: Mapping[str, Method], backbone: Backbone) -> dict[str, Shape]:
    try:
        return {f"{part}.{name}": shape for part, method in methods.items() for name, shape in method.tensors(backbone).items()}
    except ValueError as error:
        raise InvalidPackage(f"The adapter's config does not hold together: {error}.") from None

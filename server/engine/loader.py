"""From a package's file to tensors, sorted by method and address."""

import mmap
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adapter_store.manifest import Manifest
from adapter_store.methods import IA3, Backbone, Bottleneck, Fusion, Invertible, LoRA, Norms, Prefix, Prompt
from adapter_store.tensorfile import read_header
from server.engine.heads import HeadWeights
from server.methods.bottleneck import BottleneckWeights, Dense, Projection
from server.methods.fusion import FusionWeights
from server.methods.invertible import InvertibleWeights
from server.methods.lora import LoRAWeights, Part, ScaleWeights
from server.methods.phm import Kronecker
from server.methods.prefix import PrefixWeights, reparametrised

Named = dict[str, Tensor]

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPackage:
    """A package's tensors as the engine takes them in, by address. A method that the package lacks is None or empty."""

    bottleneck: tuple[Bottleneck, Mapping[str, BottleneckWeights]] | None = None
    fusion: tuple[Fusion, dict[str, FusionWeights]] | None = None
    linears: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    prefixes: dict[tuple[int, str], PrefixWeights] = field(default_factory=dict)
    shift: int = 0
    prompt: tuple[Prompt, Tensor] | None = None
    invertible: InvertibleWeights | None = None
    norms: Named = field(default_factory=dict)
    head: HeadWeights | None = None


def load_package(path: Path, manifest: Manifest) -> LoadedPackage:
    """Reads a file that the store has validated, as float32 on the CPU. Safe to call from any thread."""
    return package_of(manifest, {name: tensor.to(torch.float32) for name, tensor in read_tensors(path).items()})


def read_tensors(path: Path) -> Named:
    """The tensors of a file that the store has validated, as views of its mapped pages: nothing is read before it is used.

    safetensors' own reader leaks two numbers for each tensor that it reads (0.8.0), which adds up where packages come and go.
    """
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size, path.name)
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that could be written
    return {
        name: torch.frombuffer(pages, dtype=DTYPES[info.dtype], count=info.parameters, offset=info.start).view(info.shape)
        for name, info in header.tensors.items()
    }


def package_of(manifest: Manifest, tensors: Named) -> LoadedPackage:
    """A package from its tensors, under the names of the shape law."""
    bottleneck = fusion = prompt = invertible = None
    linears: dict[str, list[Part]] = defaultdict(list)
    prefixes: dict[tuple[int, str], PrefixWeights] = {}
    norms: Named = {}
    shift = 0
    for part, config in manifest.methods.items():
        own = {name: tensors[f"{part}.{name}"] for name in config.tensors(manifest.backbone)}
        match config:
            case Bottleneck():
                bottleneck = (config, _bottlenecks(config, own))
            case Fusion():
                fusion = (config, _fusions(config, own, manifest.backbone))
            case LoRA() | IA3():
                for address, weights in _parts(config, own):
                    linears[address].append(weights)
            case Prefix():
                prefixes = _prefixes(config, own, manifest.backbone)
                shift = config.prefix_length if config.shift_positions else 0
            case Prompt():
                prompt = (config, own["embedding"])
            case Invertible():
                invertible = _invertible(config, own)
            case Norms():
                norms = {name.removesuffix(".weight"): tensor for name, tensor in own.items()}
    head = None if manifest.head is None else HeadWeights.of(manifest.head, tensors)
    by_address = {address: tuple(parts) for address, parts in linears.items()}
    return LoadedPackage(bottleneck, fusion, by_address, prefixes, shift, prompt, invertible, norms, head)


def _by_address(tensors: Named) -> dict[str, Named]:
    """`layers.3.mh.down.weight` -> "layers.3.mh": {"down.weight": ...}."""
    sites: dict[str, Named] = defaultdict(dict)
    for name, tensor in tensors.items():
        if name.startswith("layers."):
            _, layer, site, field_name = name.split(".", 3)
            sites[f"layers.{layer}.{site}"][field_name] = tensor
    return dict(sites)


def _bottlenecks(config: Bottleneck, tensors: Named) -> dict[str, BottleneckWeights]:
    shared = {name.removeprefix("shared."): tensor for name, tensor in tensors.items() if name.startswith("shared.")}
    sites = {}
    for address, own in _by_address(tensors).items():
        others = {name.replace(".", "_"): t for name, t in own.items() if not name.startswith(("down.", "up."))}
        down, up = (_projection(config, name, own, shared) for name in ("down", "up"))
        sites[address] = BottleneckWeights(down, up, **others)
    return sites


def _projection(config: Bottleneck, name: str, own: Named, shared: Named) -> Projection:
    if not config.phm_layer:
        return Dense(own[f"{name}.weight"], own[f"{name}.bias"])
    weights = shared if config.shared_W_phm else own
    rules, prefix = (shared, "") if config.shared_phm_rule else (own, f"{name}.")
    rule = rules[f"{prefix}rule_left"] @ rules[f"{prefix}rule_right"] if config.factorized_phm_rule else rules[f"{prefix}rule"]
    bias = own.get(f"{name}.bias")
    if config.factorized_phm_W:
        return Kronecker(rule, weights[f"{name}.w_left"], weights[f"{name}.w_right"], bias)
    return Kronecker(rule, None, weights[f"{name}.w"], bias)


def _fusions(config: Fusion, tensors: Named, backbone: Backbone) -> dict[str, FusionWeights]:
    by_site = _by_address(tensors)
    addresses = [f"layers.{layer}.{site}" for layer in range(backbone.num_layers) for site in config.sites_of(layer, backbone)]
    named = {address: {name.replace(".", "_"): t for name, t in by_site.get(address, {}).items()} for address in addresses}
    return {address: FusionWeights(**weights) for address, weights in named.items()}


def _parts(config: LoRA | IA3, tensors: Named) -> list[tuple[str, Part]]:
    def gate(address: str) -> tuple[Tensor | None, Tensor | None]:
        return tensors.get(f"{address}.gate.weight"), tensors.get(f"{address}.gate.bias")

    if isinstance(config, LoRA):
        return [
            (address, LoRAWeights(tensors[f"{address}.a"], tensors[f"{address}.b"], config.scaling_of(address), *gate(address)))
            for address in config.modules
        ]
    parts: list[tuple[str, Part]] = [
        (address, ScaleWeights(tensors[f"{address}.scale"], config.scaling, False, *gate(address))) for address in config.outputs
    ]
    return parts + [(address, ScaleWeights(tensors[f"{address}.scale"], config.scaling, True)) for address in config.inputs]


def _prefixes(config: Prefix, tensors: Named, backbone: Backbone) -> dict[tuple[int, str], PrefixWeights]:
    prefixes: dict[tuple[int, str], PrefixWeights] = {}
    for group in config.groups:
        layers = config.layers(group, backbone)
        if config.flat:
            whole = tensors[f"{group}.prefix"]
        else:
            first, second = ((tensors[f"{group}.mlp.{i}.weight"], tensors[f"{group}.mlp.{i}.bias"]) for i in (0, 1))
            whole = reparametrised(tensors[f"{group}.embedding"], first, second, config.non_linearity, len(layers))
        for place, layer in enumerate(layers):
            weight, bias = (tensors.get(f"layers.{layer}.{group}.gate.{kind}") for kind in ("weight", "bias"))
            prefixes[layer, group] = PrefixWeights(whole[:, 2 * place], whole[:, 2 * place + 1], weight, bias, config.shift_positions)
    return prefixes


def _invertible(config: Invertible, tensors: Named) -> InvertibleWeights:
    f, g = (tuple((tensors[f"{net}.{i}.weight"], tensors[f"{net}.{i}.bias"]) for i in (0, 1)) for net in ("f", "g"))
    return InvertibleWeights((f[0], f[1]), (g[0], g[1]), config.non_linearity)

"""From a package's file to tensors on the device, sorted by method and site."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from adapter_store.manifest import Manifest
from adapter_store.methods import Bottleneck
from server.engine.bank import SiteIndex
from server.engine.families import Family
from server.engine.heads import HeadWeights
from server.methods.bottleneck import BottleneckWeights


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPackage:
    """A package's tensors as the engine takes them in: adapters in the manifest's order, and the head."""

    adapters: tuple[tuple[Bottleneck, dict[SiteIndex, BottleneckWeights]], ...]
    head: HeadWeights | None


def load_package(path: Path, manifest: Manifest, family: Family, device: torch.device, dtype: torch.dtype) -> LoadedPackage:
    """Reads a file that the store has validated. Safe to call from any thread."""
    tensors = {name: tensor.to(device, dtype) for name, tensor in load_file(path).items()}
    adapters = tuple(
        (config, _by_site(config, manifest, family, {name: tensors[f"{part}.{name}"] for name in config.tensors(manifest.backbone)}))
        for part, config in manifest.methods.items()
    )
    head = None if manifest.head is None else HeadWeights.of(manifest.head, tensors)
    return LoadedPackage(adapters, head)


def _by_site(config: Bottleneck, manifest: Manifest, family: Family, tensors: dict[str, Tensor]) -> dict[SiteIndex, BottleneckWeights]:
    """`layers.3.mh.down.weight` -> the weights of site 3 * sites + the place of mh, with `down_weight` set."""
    places = {modules.site: place for place, modules in enumerate(family.sites)}
    fields: dict[SiteIndex, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        _, layer, site, field = name.split(".", 3)
        index = int(layer) * len(family.sites) + places[site]  # type: ignore[index]
        fields.setdefault(index, {})[field.replace(".", "_")] = tensor
    return {index: BottleneckWeights(**weights) for index, weights in sorted(fields.items())}

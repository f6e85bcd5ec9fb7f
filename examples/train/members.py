"""Published demo adapters back in the `adapters` library: from Turret's package file to the library's modules, bit for bit.

A package is one safetensors file. Its metadata holds a JSON manifest (the adapter's config under the library's own field
names, of which `seq_bn` has the defaults); its tensors are `bottleneck.layers.{i}.{mh|output}.{down|up}.{weight|bias}`
and `head.0.{weight|bias}`. Serves fusions, which build on finished adapters, and comparisons with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from adapters import SeqBnConfig
from data import REPOSITORY
from safetensors import safe_open
from torch import Tensor

PACKAGES = REPOSITORY / "examples" / "adapters"
MODULES = {"down": "adapter_down.0", "up": "adapter_up"}


def add_published(model: torch.nn.Module, name: str, with_head: bool = False, folder: Path = PACKAGES) -> int:
    """Adds the published adapter `name` to the model under its name; returns its number of parameters without the head.

    Raises ValueError unless exactly the tensors of the package fill exactly the parameters of the library's modules.
    """
    manifest, tensors = read_package(folder / f"{name}.safetensors")
    if set(manifest["methods"]) != {"bottleneck"}:
        raise ValueError(f"{name} is more than a bottleneck adapter")
    fields = {field: value for field, value in manifest["methods"]["bottleneck"].items() if field != "method"}
    model.add_adapter(name, config=SeqBnConfig(**fields))
    wanted = {parameter: value for parameter, value in model.named_parameters() if f".adapters.{name}." in parameter}
    count = sum(parameter.numel() for parameter in wanted.values())
    if with_head:
        labels = manifest["head"]["labels"]
        add = model.add_tagging_head if manifest["head"]["type"] == "tagging" else model.add_classification_head
        add(name, num_labels=len(labels), layers=1, id2label=dict(enumerate(labels)))
        wanted |= {key: value for key, value in model.named_parameters() if key.startswith(f"heads.{name}.")}
    else:
        tensors = {key: value for key, value in tensors.items() if not key.startswith("head.")}
    given = {library_key(key, name, model.base_model_prefix): value for key, value in tensors.items()}
    if given.keys() != wanted.keys():
        raise ValueError(f"{name}: these tensors have no counterpart: {sorted(given.keys() ^ wanted.keys())[:4]}")
    for key, parameter in wanted.items():
        parameter.data.copy_(given[key])
    return count


def read_package(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(str(path), "pt") as opened:
        return json.loads(opened.metadata()["turret"]), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def library_key(key: str, name: str, prefix: str) -> str:
    """The library's name of a package's tensor in a model of the BERT family."""
    if key.startswith("head.0."):
        return f"heads.{name}.1.{key.removeprefix('head.0.')}"
    _, _, layer, site, module, kind = key.split(".")
    place = {"mh": "attention.output", "output": "output"}[site]
    return f"{prefix}.encoder.layer.{layer}.{place}.adapters.{name}.{MODULES[module]}.{kind}"

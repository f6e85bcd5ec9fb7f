"""One config per adapter method, with its shape law: config + backbone dimensions -> the exact names and shapes of its tensors.

The shape law is what a package is validated against and what the engine loads from. Names inside a package:

    {part}.layers.{i}.{site}.{tensor}        part: the key of the method in the manifest, usually the method's name
                                             site: mh (after self-attention) | cross | output (after the feed-forward)
    {part}.layers.{i}.{linear}.{tensor}      linear: q, k, v, o, up, down ... (families.py)
"""

from typing import Annotated

from pydantic import Field

from adapter_store.families import Site
from adapter_store.methods.base import ACTIVATIONS, Backbone, Frozen, Shape, activation
from adapter_store.methods.bottleneck import MAX_BOTTLENECK, Bottleneck
from adapter_store.methods.fusion import Fusion, Invertible, Norms
from adapter_store.methods.lora import IA3, LoRA
from adapter_store.methods.prefix import Prefix, Prompt

__all__ = [
    "ACTIVATIONS",
    "IA3",
    "MAX_BOTTLENECK",
    "Backbone",
    "Bottleneck",
    "Frozen",
    "Fusion",
    "Invertible",
    "LoRA",
    "Method",
    "Norms",
    "Prefix",
    "Prompt",
    "Shape",
    "Site",
    "activation",
]

Method = Annotated[Bottleneck | Fusion | IA3 | Invertible | LoRA | Norms | Prefix | Prompt, Field(discriminator="method")]

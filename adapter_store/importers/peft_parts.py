"""The parts of a PEFT adapter -> our methods and tensors, one reader per peft_type.

Ranks come from the tensors, scalings from alpha and its patterns. Knows no heads and no files.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, UnsupportedMethod, WrongBackbone
from adapter_store.importers import blocks
from adapter_store.importers.adapterhub_folder import ADAPTER
from adapter_store.importers.adapterhub_match import Collected, collected
from adapter_store.importers.folder import Remarks
from adapter_store.importers.peft_config import PEFT_TYPES, Config, number, pattern
from adapter_store.importers.places import NAME_BACKBONE, Counts, Dimensions, Places, Spot, addresses, count_layers
from adapter_store.methods import IA3, Backbone, LoRA, Method, Prefix, Prompt
from adapter_store.names import shown
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData

WEIGHTS = "adapter_model.safetensors"
PROMPT = "prompt_embeddings"
PROMPTED = frozenset({"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"})
_ROOT = "base_model."
_WHAT = "The PEFT adapter"

Tensors = Mapping[str, TensorData]

_SUFFIXES = (".lora_A.weight", ".lora_B.weight", ".ia3_l")
# Suffixes of what is recognised and not served.
_REFUSED = {
    ".lora_magnitude_vector": "DoRA (lora_magnitude_vector)",
    ".lora_embedding_A": "LoRA on an embedding",
    ".lora_embedding_B": "LoRA on an embedding",
    ".lora_A.bias": "LoRA with biases (lora_bias)",
    ".lora_B.bias": "LoRA with biases (lora_bias)",
}


def is_adapter(key: str) -> bool:
    """Whether a tensor is an adapter's and not a head's; raises UnsupportedMethod for what changes the backbone or is not served."""
    for suffix, what in _REFUSED.items():
        if key.endswith(suffix):
            raise UnsupportedMethod(f"The file holds {shown(key, 160)}: {what} is not served.")
    if ".base_layer." in key:
        raise UnsupportedMethod(
            f"The file holds {shown(key, 160)}, a tensor of the backbone itself: adapters that change the backbone are not served."
        )
    return key.endswith(_SUFFIXES)


def stripped(key: str) -> str:
    """A key without the names of PEFT's own classes before it."""
    return key.removeprefix(_ROOT).removeprefix("model.") if key.startswith(f"{_ROOT}model.") else key.removeprefix(_ROOT)


@dataclass(frozen=True, slots=True)
class Read:
    """What readers know besides the tensors."""

    config: Config
    places: Places
    backbone: Backbone | None
    dimensions: Dimensions
    remarks: Remarks


Result = tuple[Counts, Method, Collected]


def _linears(own: Tensors, context: Read) -> list[tuple[str, Spot, str, str]]:
    """(key, spot, linear, suffix) of every tensor; raises UnsupportedMethod for a module that is none of the backbone's linears."""
    found: list[tuple[str, Spot, str, str]] = []
    for key in own:
        suffix = next(suffix for suffix in _SUFFIXES if key.endswith(suffix))
        path = stripped(key).removesuffix(suffix)
        spots = ((spot, context.places.linear(spot, spot.rest)) for spot in context.places.spots(path))
        match = next(((spot, name) for spot, name in spots if name is not None), None)
        if match is None:
            raise UnsupportedMethod(
                f"The adapter changes the module {shown(path, 160)}, which is none of the linears of a model of type "
                f"{shown(context.places.model_type)} that this version adapts."
            )
        found.append((key, match[0], match[1], suffix))
    return found


def _counted(found: Sequence[tuple[str, Spot, str, str]], context: Read) -> Counts:
    """The number of layers; PEFT may adapt any of them, so those that are missing are taken to be left out."""
    backbone = context.backbone
    if backbone is not None:
        left_out = frozenset(range(backbone.num_layers))
        return count_layers([spot for _, spot, _, _ in found], left_out, context.places.family, backbone, _WHAT)
    return count_layers([spot for _, spot, _, _ in found], frozenset(), context.places.family, None, _WHAT)


def _address(spot: Spot, name: str, counts: Counts) -> str:
    return name if spot.stack is None else f"layers.{counts.number(spot)}.{name}"


def _read_lora(own: Tensors, context: Read) -> Result:
    found = _linears(own, context)
    counts = _counted(found, context)
    whole = collected()
    modules: dict[str, str] = {}
    for key, spot, name, suffix in found:
        if suffix == ".ia3_l":
            raise InvalidPackage(f"The weights hold the tensor {shown(key, 160)}, which is none of a LoRA.")
        address = _address(spot, name, counts)
        modules[address] = stripped(key).removesuffix(suffix)
        tensor = own[key]
        if len(tensor.shape) != 2 or not all(tensor.shape):
            raise InvalidPackage(f"The tensor {shown(key, 160)} has the shape {list(tensor.shape)}; a LoRA is made of matrices.")
        whole.add(f"lora.{address}.{'a' if suffix == _SUFFIXES[0] else 'b'}", tensor, key)
        context.dimensions.see(name, **({"inputs": tensor.shape[1]} if suffix == _SUFFIXES[0] else {"outputs": tensor.shape[0]}))
    if not modules:
        raise InvalidPackage(f"{WEIGHTS} holds no tensor of a LoRA.")
    config = context.config
    ranks = {address: whole.tensors[name].shape[0] for address in modules if (name := f"lora.{address}.a") in whole.tensors}
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else number(config, "r", 8)
    alphas = {address: float(pattern(config, "alpha_pattern", path, number(config, "lora_alpha", 8))) for address, path in modules.items()}
    root = config.get("use_rslora")
    scalings = {address: alphas[address] / (math.sqrt(r) if root else r) for address, r in ((a, ranks.get(a, rank)) for a in modules)}
    scaling = Counter(scalings.values()).most_common(1)[0][0]
    try:
        method = LoRA(
            modules=_ordered(modules, counts),
            rank=rank,
            scaling=scaling,
            ranks={address: r for address, r in ranks.items() if r != rank},
            scalings={address: s for address, s in scalings.items() if s != scaling},
        )
    except ValidationError as error:
        raise InvalidPackage(f"{ADAPTER.config} is not valid: {sentence(error)}") from None
    return counts, method, whole


def _ordered(modules: Mapping[str, str], counts: Counts) -> tuple[str, ...]:
    """The addresses layer by layer, those outside the layers last."""
    layers: dict[int, set[str]] = {}
    for address in modules:
        if address.startswith("layers."):
            _, layer, name = address.split(".")
            layers.setdefault(int(layer), set()).add(name)
    return addresses(counts, layers) + tuple(sorted(address for address in modules if not address.startswith("layers.")))


def _read_ia3(own: Tensors, context: Read) -> Result:
    found = _linears(own, context)
    counts = _counted(found, context)
    whole = collected()
    sides: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for key, spot, name, suffix in found:
        tensor = own[key]
        at_input = len(tensor.shape) == 2 and tensor.shape[0] == 1
        if suffix != ".ia3_l" or len(tensor.shape) != 2 or 1 not in tensor.shape:
            raise InvalidPackage(f"The tensor {shown(key, 160)} has the shape {list(tensor.shape)}; (IA)^3 calls for [out, 1] or [1, in].")
        address = _address(spot, name, counts)
        sides[at_input][address] = key
        size = max(tensor.shape)
        context.dimensions.see(name, **({"inputs": size} if at_input else {"outputs": size}))
        whole.add(f"ia3.{address}.scale", blocks.reshaped(tensor, (size,)), key)
    try:
        method = IA3(outputs=_ordered(sides[False], counts), inputs=_ordered(sides[True], counts))
    except ValidationError as error:
        raise InvalidPackage(f"{WEIGHTS} is not valid: {sentence(error)}") from None
    return counts, method, whole


def _virtual(own: Tensors, context: Read) -> tuple[Counts, TensorData]:
    """The prompt or prefix, and the layers of the model."""
    kind = context.config["peft_type"]
    layers = context.config.get("num_layers")
    two = context.places.family.encoder_decoder
    if context.backbone is not None:
        backbone = context.backbone
        counts = Counts((backbone.encoder_layers, backbone.decoder_layers) if two else (backbone.num_layers,))
    elif type(layers) is int and 1 <= layers <= 1024 and not two:
        counts = Counts((layers,))
    else:
        raise InvalidPackage(f"{ADAPTER.config} does not say how many layers the model has (num_layers): {NAME_BACKBONE}.")
    tensor = own.get(PROMPT)
    if tensor is None or len(tensor.shape) != 2:
        raise InvalidPackage(f"{WEIGHTS} does not hold the matrix '{PROMPT}' that {kind} calls for.")
    return counts, tensor


def _read_prefix(own: Tensors, context: Read) -> Result:
    counts, tensor = _virtual(own, context)
    if context.places.family.encoder_decoder:
        return _read_decoder_prefix(counts, tensor, context)
    layers = context.config.get("num_layers", counts.total)
    family = context.places.family
    if not family.shared_layers and layers != counts.total:
        raise WrongBackbone(f"The prefix was made for {layers} layers, but the backbone has {counts.total} layers.")
    if family.shared_layers:
        raise UnsupportedMethod(
            f"PREFIX_TUNING on a model of type {shown(context.places.model_type)}, whose layers are shared, is not served."
        )
    length, width = tensor.shape
    if not length or not width or width % (2 * counts.total):
        raise InvalidPackage(
            f"The tensor '{PROMPT}' has the shape {[length, width]}, which is not a key and a value for {counts.total} layers."
        )
    width //= 2 * counts.total
    fused = "qkv" in family.layers[0].linears
    context.dimensions.see("qkv" if fused else "k", outputs=3 * width if fused else width)
    whole = collected([("prefix.self.prefix", blocks.reshaped(tensor, (length, 2 * counts.total, width)), PROMPT)])
    try:
        return counts, Prefix(prefix_length=length, flat=True, shift_positions=True), whole
    except ValidationError as error:
        raise InvalidPackage(f"{WEIGHTS} is not valid: {sentence(error)}") from None


def _read_decoder_prefix(counts: Counts, tensor: TensorData, context: Read) -> Result:
    """T5's, as PEFT 0.21.2 runs it: the decoder's self-attention alone has a prefix, and layer j reads the slots 4 j and 4 j + 1, counted

    round the 2 L that there are.
    """
    length, width = tensor.shape
    layers, decoder = context.config.get("num_layers", counts.decoder), counts.decoder
    slots = 2 * layers if type(layers) is int else 0
    if slots < 2 or not length or not width or width % slots:
        raise InvalidPackage(f"The tensor '{PROMPT}' has the shape {[length, width]}, which is not a key and a value for each layer.")
    width //= slots
    context.dimensions.see("k", outputs=width)
    read = [(4 * layer + second) % slots for layer in range(decoder) for second in (0, 1)]
    ordered = blocks.bits(tensor).reshape(length, slots, width)[:, read]
    whole = collected([("prefix.self.prefix", blocks.tensor_of(np.ascontiguousarray(ordered), tensor.dtype), PROMPT)])
    try:
        return counts, Prefix(prefix_length=length, flat=True, shift_positions=True), whole
    except ValidationError as error:
        raise InvalidPackage(f"{WEIGHTS} is not valid: {sentence(error)}") from None


def _read_prompt(own: Tensors, context: Read) -> Result:
    counts, tensor = _virtual(own, context)
    submodules = context.config.get("num_transformer_submodules")
    if context.places.family.encoder_decoder and submodules == 2 and tensor.shape[0] % 2 == 0:  # PEFT uses the first half alone
        tensor = blocks.split_rows(tensor, 2)[0]
    try:
        method = Prompt(prompt_length=tensor.shape[0], place="words")
    except ValidationError as error:
        raise InvalidPackage(f"{WEIGHTS} is not valid: {sentence(error)}") from None
    return counts, method, collected([("prompt.embedding", tensor, PROMPT)])


PEFT_READERS: dict[str, Callable[[Tensors, Read], Result]] = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "PREFIX_TUNING": _read_prefix,
    "PROMPT_TUNING": _read_prompt,
    "P_TUNING": _read_prompt,
}
assert PEFT_READERS.keys() == PEFT_TYPES

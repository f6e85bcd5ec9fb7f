"""The backbone that a package is for: from a model's config.json, or from what a folder's tensors tell of it.

The dimensions are those of transformers' classes, by the canonical names of `families.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, WrongBackbone
from adapter_store.families import FAMILIES
from adapter_store.importers.folder import MAX_CHECKPOINT, Frozen, read_tensors
from adapter_store.importers.places import NAME_BACKBONE, Counts, Dimensions
from adapter_store.methods import IA3, Backbone, LoRA, Method, Prefix
from adapter_store.names import shown
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData

Config = Mapping[str, Any]
Linears = dict[str, tuple[int, int]]

# Where transformers' configs keep what every model has.
HIDDEN_SIZE = ("hidden_size", "dim", "d_model", "n_embd")
NUM_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")

# What is read of a config besides whole numbers.
_WORDS = frozenset({"model_type", "feed_forward_proj"})

# Families whose embeddings may have another size than the hidden state.
EMBEDDING_TOLD = frozenset({"albert", "electra"})


def backbone_of(config: Config, name: str = "") -> Backbone:
    """A model's config.json as a Backbone, with its linears as far as they are told; raises InvalidPackage."""
    config = {key: value for key, value in config.items() if type(value) is int or (key in _WORDS and isinstance(value, str))}
    try:
        model_type = config["model_type"]
        hidden = _first(config, HIDDEN_SIZE)
        layers, decoder = _LAYERS.get(model_type, _plain_layers)(config)
        embedding = config.get("embedding_size") if model_type in EMBEDDING_TOLD else None
        return Backbone(
            model_type=model_type,
            hidden_size=hidden,
            num_layers=layers,
            decoder_layers=decoder,
            embedding_size=None if embedding == hidden else embedding,
            linears=_linears(model_type, config, hidden),
            name=name,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError):
        raise InvalidPackage(
            "The model's config.json does not tell a model's type, hidden size, number of layers and dimensions as its family has them."
        ) from None


def frozen_of(folder: Path) -> Frozen:
    """The tensors of a model's folder by name, None for one that it does not hold; its files are opened when first asked for."""

    @cache
    def weights() -> dict[str, TensorData]:
        found: dict[str, TensorData] = {}
        for path in sorted(folder.glob("*.safetensors")):
            found |= read_tensors({path.name: path}, path.name, MAX_CHECKPOINT)
        return found

    return lambda name: weights().get(name)


def _first(config: Config, keys: Iterable[str]) -> int:
    return int(next((config[key] for key in keys if key in config), None))  # type: ignore[arg-type]


def _linears(model_type: str, config: Config, hidden: int) -> Linears:
    """None where the family is not known, or the config leaves out what they depend on."""
    try:
        return _LINEARS[model_type](config, hidden)
    except KeyError:
        return {}


def _plain_layers(config: Config) -> tuple[int, int]:
    return _first(config, NUM_LAYERS), 0


def _albert_layers(config: Config) -> tuple[int, int]:
    return config.get("num_hidden_groups", 1) * config.get("inner_group_num", 1), 0


def _t5_layers(config: Config) -> tuple[int, int]:
    decoder = config.get("num_decoder_layers") or config["num_layers"]
    return config["num_layers"] + decoder, decoder


_LAYERS: dict[str, Callable[[Config], tuple[int, int]]] = {"albert": _albert_layers, "mt5": _t5_layers, "t5": _t5_layers}


def _encoder(hidden: int, wide: int) -> Linears:
    return dict.fromkeys("qkvo", (hidden, hidden)) | {"up": (hidden, wide), "down": (wide, hidden)}


def _bert(config: Config, hidden: int) -> Linears:
    return _encoder(hidden, config["intermediate_size"]) | {"pooler": (hidden, hidden)}


def _electra(config: Config, hidden: int) -> Linears:
    size = config["embedding_size"]
    return _encoder(hidden, config["intermediate_size"]) | ({} if size == hidden else {"embedding_projection": (size, hidden)})


def _albert(config: Config, hidden: int) -> Linears:
    return _bert(config, hidden) | {"embedding_projection": (config["embedding_size"], hidden)}


def _distilbert(config: Config, hidden: int) -> Linears:
    return _encoder(hidden, config["hidden_dim"])


def _modernbert(config: Config, hidden: int) -> Linears:
    wide = config["intermediate_size"]
    fused = {"qkv": (hidden, 3 * hidden), "o": (hidden, hidden), "pooler": (hidden, hidden)}
    return fused | {"up": (hidden, 2 * wide), "down": (wide, hidden)}


def _gpt2(config: Config, hidden: int) -> Linears:
    wide = config.get("n_inner") or 4 * hidden
    return {"qkv": (hidden, 3 * hidden), "o": (hidden, hidden), "up": (hidden, wide), "down": (wide, hidden)}


def _llama(config: Config, hidden: int) -> Linears:
    heads, wide = config["num_attention_heads"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // heads
    queries, keys = heads * size, (config.get("num_key_value_heads") or heads) * size
    attention = {"q": (hidden, queries), "k": (hidden, keys), "v": (hidden, keys), "o": (queries, hidden)}
    return attention | {"gate": (hidden, wide), "up": (hidden, wide), "down": (wide, hidden)}


def _t5(config: Config, hidden: int) -> Linears:
    inner, wide = config["num_heads"] * config["d_kv"], config["d_ff"]
    linears = {f"{mark}{letter}": (hidden, inner) for mark in ("", "cross_") for letter in "qkv"}
    linears |= {"o": (inner, hidden), "cross_o": (inner, hidden), "up": (hidden, wide), "down": (wide, hidden)}
    return linears | ({"gate": (hidden, wide)} if str(config.get("feed_forward_proj", "relu")).startswith("gated") else {})


_LINEARS: dict[str, Callable[[Config, int], Linears]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "electra": _electra,
    "distilbert": _distilbert,
    "albert": _albert,
    "modernbert": _modernbert,
    "gpt2": _gpt2,
    "llama": _llama,
    "mt5": _t5,
    "t5": _t5,
}


def plain_backbone(base: Backbone | None, model_type: str, hidden: int, counts: Counts, embedding: int | None, name: str) -> Backbone:
    """The backbone without its linears: the one that was given, else what the folder says of its own."""
    if base is not None:
        return base.model_copy(update={"linears": {}})
    try:
        return Backbone(
            model_type=model_type,
            hidden_size=hidden,
            num_layers=counts.total,
            decoder_layers=counts.decoder,
            embedding_size=None if embedding == hidden else embedding,
            name=name,
        )
    except ValidationError as error:
        raise InvalidPackage(f"The folder's configs are not valid: {sentence(error)}") from None


def with_linears(plain: Backbone, base: Backbone | None, seen: Dimensions, methods: Iterable[Method]) -> Backbone:
    """The backbone with the dimensions of the linears that the methods need, of the given backbone or as the tensors tell them."""
    known = seen.complete(plain.hidden_size) | (base.linears if base is not None else {})
    needed = needed_linears(plain.model_type, methods)
    missing = sorted(needed - known.keys())
    if missing:
        raise InvalidPackage(f"The folder does not tell the dimensions of the model's linear '{missing[0]}': {NAME_BACKBONE}.")
    try:
        return Backbone.model_validate(plain.model_dump() | {"linears": {name: known[name] for name in sorted(needed)}})
    except ValidationError as error:
        raise InvalidPackage(f"The folder's tensors do not make a sound model: {sentence(error)}") from None


def needed_linears(model_type: str, methods: Iterable[Method]) -> set[str]:
    """The linears whose dimensions the shape laws of the methods read."""
    needed: set[str] = set()
    for method in methods:
        if isinstance(method, LoRA):
            needed |= {address.rpartition(".")[2] for address in method.modules}
        elif isinstance(method, IA3):
            needed |= {address.rpartition(".")[2] for address in (*method.outputs, *method.inputs)}
        elif isinstance(method, Prefix):
            key = "qkv" if "qkv" in FAMILIES[model_type].layers[0].linears else "k"
            needed |= {"cross_k" if group == "cross" else key for group in method.groups}
    return needed


def check_model(model_type: str, hidden_size: int | None, backbone: Backbone) -> None:
    """Raises WrongBackbone unless a folder's model is of the backbone's type and hidden size."""
    for word, wanted, here in (
        ("model type", model_type, backbone.model_type),
        ("hidden size", str(hidden_size), str(backbone.hidden_size)),
    ):
        if wanted != here and wanted != "None":
            raise WrongBackbone(f"The folder was made for a model with the {word} {shown(wanted)}, but the backbone has {shown(here)}.")

"""The parts of an adapter of the `adapters` library -> our methods and tensors, one builder per kind of part.

A builder takes the config of its part and the entries of its kind, and gives the method with its tensors under our names. What is
fused in the backbone (q, k and v of GPT-2 and ModernBERT) comes out as one LoRA or scale of the whole linear.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.importers import blocks
from adapter_store.importers.adapterhub_config import LinearsConfig, Part, PrefixConfig
from adapter_store.importers.adapterhub_match import Collected, Entry, collected, contradiction, unexpected
from adapter_store.importers.places import Counts, Dimensions, Places, addresses
from adapter_store.methods import IA3, Bottleneck, Invertible, LoRA, Method, Prefix, Prompt
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData


@dataclass(frozen=True, slots=True)
class Context:
    """What builders know besides their part: the family, how its layers are counted, what is seen of its linears."""

    places: Places
    counts: Counts
    dimensions: Dimensions


Built = tuple[Method, Collected]

# The library's tensors of a bottleneck -> ours. With ln_before the norm is the first module of adapter_down and is written a second
# time there.
_NORMS = {"adapter_norm_before": "ln_before", "adapter_norm_after": "ln_after", "gate": "gate"}
_RULES = {"phm_rule": "rule", "phm_rule_left": "rule_left", "phm_rule_right": "rule_right"}
_KRONECKER = {"W_left": "w_left", "W_right": "w_right", "W": "w", "b": "bias"} | _RULES
_SHARED = _RULES | {f"W_{way}{side}": f"{way}.w{side}" for way in ("down", "up") for side in ("", "_left", "_right")}


def _bottleneck_names(method: Bottleneck) -> dict[str, str]:
    """The library's names of the tensors at one site -> ours."""
    inner = _KRONECKER if method.phm_layer else {"weight": "weight", "bias": "bias"}
    down = "adapter_down.1" if method.ln_before else "adapter_down.0"
    names = {"scaling": "scaling"}
    names |= {
        f"{module}.{theirs}": f"{way}.{ours}" for module, way in ((down, "down"), ("adapter_up", "up")) for theirs, ours in inner.items()
    }
    norms = _NORMS | ({"adapter_down.0": "ln_before"} if method.ln_before else {})
    return names | {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in norms.items() for kind in ("weight", "bias")}


def _bottleneck(method: Part, entries: Sequence[Entry], context: Context) -> Built:
    assert isinstance(method, Bottleneck)
    tables = {"bottleneck": _bottleneck_names(method), "shared": _SHARED}
    whole = collected()
    for entry in entries:
        name = tables[entry.kind].get(entry.rest)
        if name is None:
            raise unexpected(entry)
        whole.add(f"{entry.address(context.counts)}.{name}", entry.tensor, entry.key)
    _check_shared(method, whole)
    return method, whole


def _check_shared(method: Bottleneck, whole: Collected) -> None:
    """The library loses what is shared when it saves from a bare model, and starts from random numbers when it loads."""
    rule = ("rule_left", "rule_right") if method.factorized_phm_rule else ("rule",)
    lost = [name for name in rule if f"shared.{name}" not in whole.tensors] if method.phm_layer and method.shared_phm_rule else []
    if lost:
        raise UnsupportedMethod(
            "The file has lost its Kronecker rule (shared_parameters.NAME.phm_rule), as happens when a Compacter is saved from a bare "
            "model or a T5ForConditionalGeneration, and it cannot be recovered: save the adapter again from a model with flexible heads "
            "(an AdapterModel)."
        )


def _invertible(method: Part, entries: Sequence[Entry], context: Context) -> Built:
    assert isinstance(method, Invertible)
    names = {
        f"{net}.{old}.{kind}": f"{net.lower()}.{new}.{kind}" for net in "FG" for old, new in ((0, 0), (2, 1)) for kind in ("weight", "bias")
    }
    whole = collected()
    for entry in entries:
        if entry.rest not in names:
            raise unexpected(entry)
        whole.add(names[entry.rest], entry.tensor, entry.key)
    return method, whole


def _prompt(method: Part, entries: Sequence[Entry], context: Context) -> Built:
    assert isinstance(method, Prompt)
    whole = collected()
    for entry in entries:
        if entry.rest != "prompt_embedding.weight":
            raise unexpected(entry)
        whole.add("embedding", entry.tensor, entry.key)
    return method, whole


# LoRA and (IA)^3.

# Where the library's names of the feed-forward are swapped: its "intermediate" is what comes last.
_SWAPPED = frozenset({"llama"})


_SCALE_TENSORS = frozenset({"lora_B", "gate.weight", "gate.bias"})
_LORA_TENSORS = _SCALE_TENSORS | {"lora_A"}
# Our tensors of a linear, by the library's that each is made of.
_MADE_OF = {"a": "lora_A", "b": "lora_B", "scale": "lora_B"}


def _modules(config: LinearsConfig, context: Context) -> dict[int, set[str]]:
    """The linears of each layer that the config calls for."""
    family = context.places.family
    first, second = ("down", "up") if context.places.model_type in _SWAPPED else ("up", "down")
    called: dict[int, set[str]] = {}
    layer = 0
    for stack, count in enumerate(context.counts.layers):
        linears = family.layers[stack].linears
        names = {mark + letter for letter in "qkv" if letter in config.attn_matrices for mark in ("", "cross_") if mark + letter in linears}
        if "qkv" in linears and set(config.attn_matrices) & set("qkv"):
            names.add("qkv")
        names = names if config.selfattn_lora else set()
        names |= ({first} if config.intermediate_lora else set()) | ({second} if config.output_lora else set())
        for _ in range(count):
            called[layer] = set() if layer in config.leave_out else names
            layer += 1
    return called


def _linears(config: Part, entries: Sequence[Entry], context: Context) -> Built:
    assert isinstance(config, LinearsConfig)
    modules = addresses(context.counts, _modules(config, context))
    if not modules:
        raise InvalidPackage("The adapter's config adapts no linear at all, so the adapter would do nothing.")
    matrices = [letter in config.attn_matrices for letter in "qkv"]
    by_address: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        if entry.rest not in (_SCALE_TENSORS if config.scales else _LORA_TENSORS):
            raise unexpected(entry)
        own = by_address.setdefault(entry.address(context.counts), {})
        if not blocks.equal(own.setdefault(entry.rest, entry).tensor, entry.tensor):
            raise contradiction(own[entry.rest].key, entry.key)
    whole = collected()
    ranks: dict[str, int] = {}
    for address, own in by_address.items():
        fused = address.endswith(".qkv")
        build = _scale if config.scales else _low_rank
        for name, tensor in build(own, matrices if fused else []).items():
            whole.add(f"{address}.{name}", tensor, own[_MADE_OF.get(name, name)].key)
        if fused and sum(matrices) > 1:
            ranks[address] = config.r * sum(matrices)
        _see(address, whole, context.dimensions)
    scaling = 1.0 if config.use_gating else config.alpha if config.scales else config.alpha / config.r
    if config.scales:
        return IA3(outputs=modules, scaling=scaling, use_gating=config.use_gating), whole
    ranks = {address: rank for address, rank in ranks.items() if address in modules}
    return LoRA(modules=modules, rank=config.r, ranks=ranks, scaling=scaling, use_gating=config.use_gating), whole


def _low_rank(own: dict[str, Entry], matrices: list[bool]) -> dict[str, TensorData]:
    """A and B of one linear, and its gate. Of a fused one block j of A's rows pairs with block j of B's, in the j-th adapted third."""
    tensors = {name: own[theirs].tensor for name, theirs in (("a", "lora_A"), ("b", "lora_B")) if theirs in own}
    if matrices and "b" in tensors and len(tensors["b"].shape) == 2:
        tensors["b"] = blocks.diagonal_thirds(_adapted(own["lora_B"], matrices), tensors["b"].shape[-1])
    return tensors | _gates(own, matrices, fills=False)


def _scale(own: dict[str, Entry], matrices: list[bool]) -> dict[str, TensorData]:
    """The vector of one linear, ones where a third of a fused one is not adapted."""
    if "lora_B" not in own:
        return _gates(own, matrices, fills=True)
    scale = own["lora_B"].tensor
    if len(scale.shape) != 2 or scale.shape[1] != 1:
        raise InvalidPackage(f"The tensor '{own['lora_B'].key[:160]}' has the shape {list(scale.shape)}; (IA)^3 calls for [out, 1].")
    if matrices:
        given = _adapted(own["lora_B"], matrices)
        scale = blocks.thirds(given, next(block for block in given if block is not None), fill=1.0)
    return {"scale": blocks.reshaped(scale, scale.shape[:1])} | _gates(own, matrices, fills=True)


def _gates(own: dict[str, Entry], matrices: list[bool], fills: bool) -> dict[str, TensorData]:
    """The gate of one linear; a fused one has a gate for each third. One that is not adapted has 0 there, or, to keep a scale as it

    is, a gate that is always open: no weight, and a bias whose sigmoid is 1."""
    tensors: dict[str, TensorData] = {name: own[name].tensor for name in ("gate.weight", "gate.bias") if name in own}
    if matrices:
        for name in tensors:
            rows = _adapted(own[name], matrices)
            tensors[name] = blocks.thirds(rows, next(row for row in rows if row is not None))
            if fills and name == "gate.bias":
                tensors[name] = blocks.opened(tensors[name], [row is None for row in rows])
    return tensors


def _adapted(entry: Entry, matrices: list[bool]) -> list[TensorData | None]:
    """The three blocks of a fused linear's tensor, None for what is not adapted."""
    count = sum(matrices)
    if not entry.tensor.shape or entry.tensor.shape[0] % count:
        raise InvalidPackage(f"The tensor '{entry.key[:160]}' has the shape {list(entry.tensor.shape)}, which is not {count} equal blocks.")
    given = iter(blocks.split_rows(entry.tensor, count))
    return [next(given) if adapted else None for adapted in matrices]


def _see(address: str, whole: Collected, dimensions: Dimensions) -> None:
    for name, place, inputs in (("a", 1, True), ("b", 0, False), ("scale", 0, False), ("gate.weight", 1, True)):
        tensor = whole.tensors.get(f"{address}.{name}")
        if tensor is not None and len(tensor.shape) > place:
            dimensions.see(address, **{"inputs" if inputs else "outputs": tensor.shape[place]})


# Prefix tuning.

_PREFIX = {
    "control_trans": "prefix", "wte.weight": "embedding",
    **{f"control_trans.{old}.{kind}": f"mlp.{new}.{kind}" for old, new in ((0, 0), (2, 1)) for kind in ("weight", "bias")},
}  # fmt: skip


def _prefix(config: Part, entries: Sequence[Entry], context: Context) -> Built:
    assert isinstance(config, PrefixConfig)
    fields = config.model_dump(exclude={"encoder_prefix", "cross_prefix"})
    if config.flat:
        fields = {key: value for key, value in fields.items() if key not in ("bottleneck_size", "non_linearity")}
    groups = _groups(config, context)
    try:
        method = Prefix.model_validate(fields | {"groups": groups})
    except ValidationError as error:
        raise InvalidPackage(f"adapter_config.json is not valid: {sentence(error)}") from None
    whole = collected()
    for entry in entries:
        if entry.kind == "gate" and entry.rest in ("weight", "bias"):
            whole.add(f"{entry.address(context.counts)}.gate.{entry.rest}", entry.tensor, entry.key)
        elif entry.kind == "prefix" and entry.at and entry.rest in _PREFIX:
            whole.add(f"{entry.at}.{_PREFIX[entry.rest]}", _folded(entry, method, context), entry.key)
        else:
            raise unexpected(entry)
    return method, whole


def _groups(config: PrefixConfig, context: Context) -> tuple[str, ...]:
    """The groups that the config asks for, in models of two stacks; those whose layers are all left out have no prefix."""
    counts = context.counts
    kept = [layer for layer in range(counts.total) if layer not in config.leave_out]
    encoder = any(layer < counts.layers[0] for layer in kept)
    if len(counts.layers) == 1:
        return ("self",) if encoder else ()
    decoder = any(layer >= counts.layers[0] for layer in kept)
    wanted = (("encoder", config.encoder_prefix and encoder), ("self", decoder), ("cross", config.cross_prefix and decoder))
    return tuple(group for group, there in wanted if there)


def _folded(entry: Entry, method: Prefix, context: Context) -> TensorData:
    """A flat prefix, one long row in the file, as [P, 2 L, K]; what is not flat stays as it is."""
    counts, tensor = context.counts, entry.tensor
    first, last = (counts.layers[0], counts.total) if counts.decoder and entry.at != "encoder" else (0, counts.layers[0])
    layers = sum(layer not in method.leave_out for layer in range(first, last))
    size = tensor.shape[0] if tensor.shape else 0
    rows = method.prefix_length * 2 * layers if entry.rest == "control_trans" else 2 * layers
    key = "cross_k" if entry.at == "cross" else "qkv" if "qkv" in context.places.family.layers[0].linears else "k"
    if entry.rest in ("control_trans", "control_trans.2.weight") and rows and size % rows == 0:
        width = size // rows
        context.dimensions.see(key, outputs=3 * width if key == "qkv" else width)
        if entry.rest == "control_trans":
            return blocks.reshaped(tensor, (method.prefix_length, 2 * layers, width))
    return tensor


@dataclass(frozen=True, slots=True)
class Builder:
    """How one kind of part is built: the name of the part, the kinds of entries it takes, and what builds it."""

    part: str
    kinds: tuple[str, ...]
    build: Callable[[Part, Sequence[Entry], Context], Built]


def builder_of(part: Part) -> Builder:
    """The row of the table for a part of a config."""
    if isinstance(part, LinearsConfig):
        return Builder("ia3" if part.scales else "lora", ("linear",), _linears)
    return _BUILDERS[type(part)]


_BUILDERS: dict[type, Builder] = {
    Bottleneck: Builder("bottleneck", ("bottleneck", "shared"), _bottleneck),
    Invertible: Builder("invertible", ("invertible",), _invertible),
    Prompt: Builder("prompt", ("prompt",), _prompt),
    PrefixConfig: Builder("prefix", ("prefix", "gate"), _prefix),
}


def split_linears(parts: Sequence[Part], entries: Sequence[Entry], context: Context) -> dict[str, list[Entry]]:
    """The entries of linears by part, as a union may hold LoRA at some linears and (IA)^3 at others."""
    configs = [part for part in parts if isinstance(part, LinearsConfig)]
    owners = {
        f"layers.{layer}.{name}": builder_of(config).part
        for config in reversed(configs)
        for layer, names in _modules(config, context).items()
        for name in names
    }
    split: dict[str, list[Entry]] = {}
    for entry in entries:
        owner = owners.get(entry.address(context.counts))
        if owner is None:
            raise unexpected(entry)
        split.setdefault(owner, []).append(entry)
    return split

"""Foreign heads under our names: what all formats of heads share. Knows our Head and its tensors, and nothing of adapters."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.families import FAMILIES
from adapter_store.importers.blocks import equal
from adapter_store.importers.static_heads import Static
from adapter_store.manifest import LM_HEADS, SENTENCE_HEADS, SPAN_LABELS, Head
from adapter_store.methods import Backbone, activation
from adapter_store.names import shown
from adapter_store.package import sentence
from adapter_store.tensorfile import TensorData

Weights = Mapping[str, TensorData]
Sources = Mapping[str, Sequence[str]]

ALONE = "leave out head_config.json and model_head.safetensors to publish the adapter alone."


def make_head(type: str, labels: tuple[str, ...], where: str, **fields: Any) -> Head:
    """A Head; one label makes a classification a regression, and spans have names of their own."""
    if type == "classification" and len(labels) == 1:
        type = "regression"
    if type == "question_answering":
        if len(labels) != 2:
            raise UnsupportedMethod(f"The question_answering head has {len(labels)} outputs; one that finds answers has 2, start and end.")
        labels = SPAN_LABELS
    if type == "multiple_choice":
        labels = ()
    try:
        return Head.model_validate({"type": type, "labels": labels} | fields)
    except ValidationError as error:
        raise InvalidPackage(f"{where} is not valid: {sentence(error)}") from None


def head_activation(name: Any) -> str | None:
    """The canonical name of a head's activation; raises UnsupportedMethod."""
    if not name:
        return None
    try:
        return activation(str(name))
    except ValueError as error:
        raise UnsupportedMethod(f"The head's activation_function cannot be served: {error}.") from None


def linear_sources(modules: Sequence[str]) -> dict[str, list[str]]:
    """Where the tensors of a row of linears are, by our names."""
    return {f"head.{layer}.{kind}": [f"{module}.{kind}"] for layer, module in enumerate(modules) for kind in ("weight", "bias")}


def lm_sources(dense: str | None, norm: str | None, decoder: str, also: str | None = None) -> dict[str, list[str]]:
    """Where the tensors of a language-model head are, by our names."""
    modules = {"dense": dense, "norm": norm, "decoder": decoder}
    sources = {f"head.{ours}.{kind}": [f"{theirs}.{kind}"] for ours, theirs in modules.items() if theirs for kind in ("weight", "bias")}
    if also:
        sources["head.decoder.bias"].append(also)
    return sources


def static_head(
    static: Static, labels: tuple[str, ...], weights: Weights, backbone: Backbone, where: str
) -> tuple[Head, dict[str, list[str]]]:
    """The Head that a model class has, and where its tensors are."""
    family = FAMILIES[backbone.model_type]
    if static.type in LM_HEADS:
        decoder = static.modules[-1]
        tensor = weights.get(f"{decoder}.weight")
        if tensor is None or len(tensor.shape) != 2:
            raise InvalidPackage(f"The head's weights lack the tensor '{decoder}.weight', a matrix, that {where} calls for.")
        two = static.layers == 2
        dense, norm = static.modules[:2] if two else (None, None)
        size = tensor.shape[1] if two and tensor.shape[1] != backbone.hidden_size else None
        fields = {"activation": static.activation, "norm": two, "bias": static.bias, "embedding_size": size, "vocab_size": tensor.shape[0]}
        return make_head(static.type, (), where, layers=static.layers, **fields), lm_sources(dense, norm, decoder, static.also)
    pooler, more = _own_pooler(weights, backbone) if static.use_pooler else ({}, {})
    last = {"last_token": "rightmost"} if family.classify == "last" and static.type in SENTENCE_HEADS else {}
    head = make_head(
        static.type,
        labels,
        where,
        layers=static.layers,
        activation=static.activation,
        use_pooler=static.use_pooler,
        bias=static.bias,
        **last,
        **pooler,
    )
    return head, linear_sources(static.modules) | more


def take(weights: Weights, sources: Sources, head: Head, backbone: Backbone, where: str, file: str) -> dict[str, TensorData]:
    """The head's tensors under our names; every tensor of `weights` must be one of them. Raises InvalidPackage."""
    tensors: dict[str, TensorData] = {}
    used: set[str] = set()
    for key, shape in head.tensors(backbone).items():
        there = [source for source in sources[key] if source in weights]
        if not there:
            raise InvalidPackage(f"{file} lacks the tensor {shown(sources[key][0], 160)} that {where} calls for.")
        tensor = weights[there[0]]
        if tensor.shape != shape:
            raise InvalidPackage(f"The tensor {shown(there[0], 160)} has the shape {list(tensor.shape)}; {where} calls for {list(shape)}.")
        for source in there[1:]:
            if not equal(tensor, weights[source]):
                raise InvalidPackage(f"{file} holds {shown(there[0], 160)} and {shown(source, 160)}, which contradict each other.")
        tensors[key] = tensor
        used |= set(there)
    unmatched = sorted(weights.keys() - used)
    if unmatched:
        raise InvalidPackage(f"{file} holds the tensor {shown(unmatched[0], 160)}, which {where} does not call for.")
    return tensors


def _own_pooler(weights: Weights, backbone: Backbone) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Of a pooler that was trained and saved too: the fields of the head, and where its tensors are.

    ModernBERT's is a prediction head, `head.{dense, norm}`: its activation is of no file, and gelu in all of its checkpoints.
    """
    family = FAMILIES[backbone.model_type]
    path = family.linears.get("pooler")
    dense = next((name for name in (f"{family.prefix}{path}", str(path)) if path and f"{name}.weight" in weights), None)
    if dense is None:
        return {}, {}
    sources = {f"head.pooler.{kind}": [f"{dense}.{kind}"] for kind in ("weight", "bias")}
    if family.pooler != "head":
        return {"own_pooler": True}, sources
    sources["head.pooler.norm.weight"] = ["head.norm.weight"]
    fields = {"pooler_activation": "gelu", "pooler_bias": f"{dense}.bias" in weights, "pooler_norm": True}
    return {"own_pooler": True} | fields, sources


def default_labels(count: int) -> tuple[str, ...]:
    """LABEL_0, LABEL_1 ... as transformers names what nobody named."""
    return tuple(f"LABEL_{i}" for i in range(count))

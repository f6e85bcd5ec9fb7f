"""The frozen backbone: transformers' own class, loaded once, its sites and linears tapped, called on packed batches only."""

import hashlib
import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import cached_file

from adapter_store.families import FAMILIES, Family
from adapter_store.methods import Backbone as BackboneSpec
from server.engine import attention, linears
from server.engine.heads import LanguageModel, Pooler
from server.engine.lanes import MOST
from server.engine.plan import Stream
from server.engine.postnorm import PostNormWeights
from server.engine.running import Running, Stage, StreamPlan
from server.engine.taps import install, layers_of, linears_of, prepare

# The settings that decide what the weights compute; the rest of a config may differ between copies of one model.
_FINGERPRINTED = ("hidden_act", "activation", "layer_norm_eps", "num_attention_heads", "n_heads", "pad_token_id", "embedding_size")
# Those of families whose fingerprint has always had them; added where the config has them and the family is not one of the first.
_FINGERPRINTED_LATER = (
    "activation_function", "dense_act_fn", "feed_forward_proj", "hidden_activation", "is_gated_act", "layer_norm_epsilon", "layer_types",
    "local_attention", "n_head", "norm_eps", "num_heads", "num_hidden_groups", "num_hidden_layers", "num_key_value_heads",
    "relative_attention_max_distance", "relative_attention_num_buckets", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "scale_decoder_outputs", "sliding_window",
)  # fmt: skip
_FIRST_FAMILIES = frozenset({"bert", "roberta", "xlm-roberta", "electra", "distilbert"})
_CLASSES = {"causal_lm": AutoModelForCausalLM, "seq2seq_lm": AutoModelForSeq2SeqLM}
UNLIMITED = 4096  # tokens of one input where the model has no table of positions that would end


class BackboneError(Exception):
    """The backbone cannot be served; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """The backbone's modules once more, on the same weights, with a stage of their own, so that several forwards run at once."""

    model: nn.Module
    stage: Stage


@dataclass(slots=True, eq=False)
class Backbone:
    """A loaded backbone.

    max_tokens: what its position embeddings allow in one sequence; lanes: one for each forward that may run at once.
    """

    spec: BackboneSpec
    family: Family
    model: nn.Module
    config: PreTrainedConfig
    pooler: Pooler | None
    language_model: LanguageModel
    max_tokens: int
    streams: tuple[Stream, ...]
    lanes: tuple[Lane, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def words(self) -> Tensor:
        """The word embeddings [V, E], which language-model heads are often tied to."""
        weight: Tensor = self.model.get_submodule(self.family.words).weight  # type: ignore[assignment]
        return weight

    @property
    def pooling(self) -> str:
        """How a sentence head without a pooling of its own reads the row: "mean" for some ModernBERTs."""
        return str(getattr(self.config, "classifier_pooling", "cls"))

    def forward(self, plan: StreamPlan, explained: bool = False, lane: int = 0) -> tuple[Tensor, Running]:
        """The last hidden state [T, H] of the first stack's last level, and what was running (for its attentions)."""
        running = Running(plan, explained)
        inputs: dict[str, Any] = {"input_ids": plan.input_ids.unsqueeze(0), "running": running}
        if self.family.positions != "none":
            inputs["position_ids"] = plan.position_ids.unsqueeze(0)
        if self.family.token_types and plan.type_ids is not None:
            inputs["token_type_ids"] = plan.type_ids.unsqueeze(0)
        whole, stage = self.lanes[lane].model, self.lanes[lane].stage
        model = whole.encoder if self.family.encoder_decoder else whole
        with stage.entered(running):
            hidden: Tensor = model(use_cache=False, **inputs).last_hidden_state[0]  # type: ignore[operator]
        return hidden if running.last is None else running.last, running

    def decode(self, plan: StreamPlan, encoded: Tensor, explained: bool = False, lane: int = 0) -> tuple[Tensor, Running]:
        """The decoder's last hidden state [T, H], its cross-attention on the encoder's [encoder tokens, H]."""
        running = Running(plan, explained)
        with self.lanes[lane].stage.entered(running):
            output = self.lanes[lane].model.decoder(  # type: ignore[operator]
                input_ids=plan.input_ids.unsqueeze(0), encoder_hidden_states=encoded.unsqueeze(0), use_cache=False, running=running
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden, running


def load_backbone(
    source: str, device: str = "auto", dtype: str = "auto", name: str = "", fast: bool = True, lanes: int | None = None
) -> Backbone:
    """Loads a local folder or hub id. device: auto, cpu, cuda, cuda:1. dtype: auto (float32), float32, bfloat16, float16.
    name: what to call it; by default the hub id or the folder's name. fast=False keeps transformers' layers and torch's own Linears
    (the slow twin). lanes: forwards that may run at once; by default torch's threads on a CPU, eight at most, and one on a GPU.

    Raises BackboneError for a family that is not served or a checkpoint that is not whole, or a device that is not there.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise BackboneError(f"The backbone '{source}' could not be read: {first_line(error)}") from error
    family = _family(config)
    target = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise BackboneError(f"There is no device '{device}' here that torch can use: leave the device to 'auto', or name 'cpu'.")
    kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    model, pooler, lm_head = _load(source, config, family)
    shown = name or (Path(source).resolve().name if Path(source).is_dir() else source)
    spec = _spec(config, family, model, lm_head, pooler, shown)
    model.to(target, kind)
    for module in (pooler, lm_head):
        if module is not None:
            module.to(target, kind)
    several = lanes or (min(MOST, torch.get_num_threads()) if target.type == "cpu" else 1)
    flat = prepare(model, family) if fast else []
    made = _lanes(model, family, config.num_attention_heads, flat, several)
    padding_id = config.pad_token_id if family.positions == "after_padding" else None
    first = spec.encoder_layers
    streams = [Stream(0, first, padding_id, not family.shared_layers, target)]
    if spec.decoder_layers:
        streams.append(Stream(first, spec.num_layers, None, False, target))
    return Backbone(
        spec, family, model, config, _pooler(pooler, model, family), _language_model(config, family, lm_head), _max_tokens(config, family),
        tuple(streams), made, target, kind,
    )  # fmt: skip


def _lanes(model: nn.Module, family: Family, heads: int, flat: Sequence[PostNormWeights | None], count: int) -> tuple[Lane, ...]:
    """The model and copies of its modules, which share every tensor."""
    tensors = (*model.parameters(), *model.buffers())
    models = [model, *(deepcopy(model, {id(tensor): tensor for tensor in tensors}) for _ in range(count - 1))]
    lanes = tuple(Lane(one, Stage()) for one in models)
    for lane in lanes:
        install(lane.model, family, heads, lane.stage, flat)
    return lanes


def _load(source: str, config: PreTrainedConfig, family: Family) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
    """The base model, its pooler and its language-model head, the last two None where the checkpoint does not have them whole."""
    loader = _CLASSES.get(family.lm or "", AutoModelForMaskedLM if family.pooler == "head" else AutoModel)
    model, info = loader.from_pretrained(
        source, config=config, attn_implementation=attention.NAME, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    heads = tuple(f"{name}." for name in (family.pooler, family.lm_head, "decoder") if name) if not family.encoder_decoder else ()
    optional = (*heads, f"{family.lm_head}.") if family.lm_head else heads
    lost = [key for key in missing if not key.startswith(optional)] if optional else missing
    if lost:
        raise BackboneError(f"The checkpoint of '{source}' lacks {len(lost)} of the model's tensors, the first is '{lost[0]}'.")
    model.eval().requires_grad_(False)

    def whole(name: str | None) -> nn.Module | None:
        there = name is not None and not any(key.startswith(f"{name}.") for key in missing)
        module = getattr(model, name, None) if there and name else None
        return module if isinstance(module, nn.Module) else None

    pooler, lm_head = whole(family.pooler), whole(family.lm_head)
    base: nn.Module = model.base_model if (family.prefix and family.lm) or family.pooler == "head" else model
    if family.pooler and family.pooler != "head":
        base.pooler = None  # type: ignore[assignment]  # it would read the first token of the whole batch; heads call it on each row's own
    return base, pooler, lm_head


def _family(config: PreTrainedConfig) -> Family:
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BackboneError(f"Models of type '{config.model_type}' are not served; served are {', '.join(FAMILIES)}.")
    if not family.causal and not family.encoder_decoder and getattr(config, "is_decoder", False):
        raise BackboneError("The backbone is configured as a decoder (is_decoder); this family is served as an encoder only.")
    if getattr(config, "add_cross_attention", False):
        raise BackboneError("The backbone has cross-attention of its own (add_cross_attention), which is served for T5 only.")
    if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
        raise BackboneError(f"Position embeddings of type '{config.position_embedding_type}' are not served; only 'absolute' are.")
    return family


def _spec(
    config: PreTrainedConfig, family: Family, model: nn.Module, lm_head: nn.Module | None, pooler: nn.Module | None, name: str
) -> BackboneSpec:
    counts = [len(layers_of(model, layers)) for layers in family.layers]
    embedding: int = model.get_submodule(family.words).embedding_dim  # type: ignore[assignment]
    return BackboneSpec(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=sum(counts),
        decoder_layers=counts[1] if len(counts) > 1 else 0,
        embedding_size=None if embedding == config.hidden_size else embedding,
        linears=_linears(model, family, pooler),
        name=name,
        fingerprint=fingerprint(config, model),
    )


def _linears(model: nn.Module, family: Family, pooler: nn.Module | None) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for layers in family.layers:
        for name, module in linears_of(layers_of(model, layers)[0], layers).items():
            found[name] = linears.dimensions(module)
    for name, path in family.linears.items():
        layerless = _pooler_dense(pooler) if name == "pooler" else dict(model.named_modules()).get(path)
        if layerless is not None:
            found[name] = linears.dimensions(layerless)
    return found


def _pooler_dense(pooler: nn.Module | None) -> nn.Module | None:
    return pooler if pooler is None or isinstance(pooler, nn.Linear) else pooler.dense  # type: ignore[return-value]


def _pooler(pooler: nn.Module | None, model: nn.Module, family: Family) -> Pooler | None:
    dense = _pooler_dense(pooler)
    if pooler is None or dense is None:
        return None
    activation: Callable[[Tensor], Tensor] = torch.tanh
    norm = None
    if family.pooler == "head":
        activation, norm = pooler.act, pooler.norm  # type: ignore[assignment]
    return Pooler(dense.weight, dense.bias, activation, norm)  # type: ignore[arg-type]


def _language_model(config: PreTrainedConfig, family: Family, lm_head: nn.Module | None) -> LanguageModel:
    scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) and family.encoder_decoder else 1.0
    eps = getattr(config, "layer_norm_eps", 1e-12)
    if lm_head is None:
        return LanguageModel(scale=scale, eps=eps)
    return LanguageModel(lm_head.weight, getattr(lm_head, "bias", None), scale, eps)  # type: ignore[arg-type]


def _max_tokens(config: PreTrainedConfig, family: Family) -> int:
    if family.positions == "none":
        return UNLIMITED
    reserved = config.pad_token_id + 1 if family.positions == "after_padding" else 0
    return int(config.max_position_embeddings) - reserved


def fingerprint(config: PreTrainedConfig, model: nn.Module) -> str:
    """sha256 over the settings that matter and every float32 tensor (name, shape, bytes) but the heads', in name order."""
    digest = hashlib.sha256()
    settings = {key: getattr(config, key, None) for key in _FINGERPRINTED}
    if config.model_type not in _FIRST_FAMILIES:
        settings |= {key: getattr(config, key) for key in _FINGERPRINTED_LATER if getattr(config, key, None) is not None}
    digest.update(json.dumps([config.model_type, settings], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("lm_head."):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return f"sha256:{digest.hexdigest()}"


def load_tokenizer(source: str) -> Tokenizer:
    """The backbone's tokenizer, without the truncation and padding that its file may carry."""
    path = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    tokenizer = Tokenizer.from_file(path) if path else AutoTokenizer.from_pretrained(source).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def first_line(error: Exception) -> str:
    """The first sentence of a library's error, for our own."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

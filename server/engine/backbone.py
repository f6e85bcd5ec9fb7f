"""The frozen backbone: transformers' own class, loaded once, its sites installed, called on packed batches only."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file

from adapter_store.methods import Backbone as BackboneSpec
from server.core import Batch, Ints
from server.engine import attention
from server.engine.families import FAMILIES, Family
from server.engine.linears import prepack
from server.engine.sites import Plan, Stage, install

# The settings that decide what the weights compute; the rest of a config may differ between copies of one model.
_FINGERPRINTED = ("hidden_act", "activation", "layer_norm_eps", "num_attention_heads", "n_heads", "pad_token_id", "embedding_size")


class BackboneError(Exception):
    """The backbone cannot be served; the sentence says why and what to do."""


@dataclass(slots=True, eq=False)
class Backbone:
    """A loaded backbone. `max_tokens` is what its position embeddings allow in one sequence."""

    spec: BackboneSpec
    family: Family
    model: nn.Module
    pooler: nn.Module | None
    max_tokens: int
    padding_id: int
    stage: Stage

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def forward(self, batch: Batch, plan: Plan) -> Tensor:
        """The last hidden state of a packed batch, [T, H]."""
        device = self.device
        inputs = {
            "input_ids": batch.input_ids,
            "position_ids": position_ids(batch, self.padding_id) if self.family.positions == "after_padding" else counted(batch.cu_seqlens),
        }
        if self.family.token_types:
            inputs["token_type_ids"] = batch.type_ids
        tensors = {name: torch.from_numpy(ids).to(device).unsqueeze(0) for name, ids in inputs.items()}
        with self.stage.running(plan):
            output = self.model(**tensors, packing=attention.Packing.of(batch.cu_seqlens))
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def counted(cu_seqlens: Ints) -> Ints:
    """0, 1, 2 ... within each sequence, [T]."""
    return np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))


def position_ids(batch: Batch, padding_id: int) -> Ints:
    """RoBERTa's positions, [T]: padding_id + 1, + 2 ... over a row's tokens; a padding token itself stays at padding_id."""
    real = (batch.input_ids != padding_id).astype(np.int64)
    running = np.cumsum(real)
    before = np.concatenate([[0], running])[batch.cu_seqlens[:-1]]
    positions: Ints = (running - np.repeat(before, np.diff(batch.cu_seqlens))) * real + padding_id
    return positions


def load_backbone(source: str, device: str = "auto", dtype: str = "auto", name: str = "", fast: bool = True) -> Backbone:
    """Loads a local folder or hub id. device: auto, cpu, cuda, cuda:1. dtype: auto (float32), float32, bfloat16, float16.
    name: what to call it; by default the hub id or the folder's name. fast=False keeps torch's own Linears (the slow twin).

    Raises BackboneError for a family that is not served or a checkpoint that is not whole.
    """
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise BackboneError(f"The backbone '{source}' could not be read: {first_line(error)}") from error
    family = _family(config)
    model, info = AutoModel.from_pretrained(
        source, config=config, attn_implementation=attention.NAME, dtype=torch.float32, output_loading_info=True
    )
    missing = sorted(info["missing_keys"])
    lost = [name for name in missing if family.pooler is None or not name.startswith(f"{family.pooler}.")]
    if lost:
        raise BackboneError(f"The checkpoint of '{source}' lacks {len(lost)} of the model's tensors, the first is '{lost[0]}'.")
    pooler = getattr(model, family.pooler, None) if family.pooler and not missing else None
    if family.pooler:
        model.pooler = None  # it would read the first token of the whole batch; heads call it on each row's own
    model.eval().requires_grad_(False)
    layers = len(model.get_submodule(family.layers))
    spec = BackboneSpec(
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=layers,
        name=name or (Path(source).resolve().name if Path(source).is_dir() else source),
        fingerprint=fingerprint(config, model),
    )
    target = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
    kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    model.to(target, kind)
    if pooler is not None:
        pooler.to(target, kind)
    if fast:
        prepack(model, family)
    stage = Stage()
    install(model, family, stage)
    padding_id = config.pad_token_id if config.pad_token_id is not None else 0
    reserved = padding_id + 1 if family.positions == "after_padding" else 0
    return Backbone(spec, family, model, pooler, config.max_position_embeddings - reserved, padding_id, stage)


def _family(config: PreTrainedConfig) -> Family:
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BackboneError(f"Models of type '{config.model_type}' are not served; served are {', '.join(FAMILIES)}.")
    if getattr(config, "is_decoder", False):
        raise BackboneError("The backbone is configured as a decoder (is_decoder); only encoders are served.")
    if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
        raise BackboneError(f"Position embeddings of type '{config.position_embedding_type}' are not served; only 'absolute' are.")
    return family


def fingerprint(config: PreTrainedConfig, model: nn.Module) -> str:
    """sha256 over the settings that matter and every float32 tensor (name, shape, bytes) but the pooler's, in name order."""
    digest = hashlib.sha256()
    settings = {key: getattr(config, key, None) for key in _FINGERPRINTED}
    digest.update(json.dumps([config.model_type, settings], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
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

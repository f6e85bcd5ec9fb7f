"""A small random backbone and packages of every kind for it, built on the spot."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertModel

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import IA3, Backbone, Bottleneck, Fusion, Invertible, LoRA, Method, Prefix, Prompt
from adapter_store.package import TensorData, write_package

HIDDEN, LAYERS, VOCABULARY = 32, 3, 60
INNER = 48
LINEARS = dict.fromkeys(("q", "k", "v", "o", "pooler"), (HIDDEN, HIDDEN)) | {"up": (HIDDEN, INNER), "down": (INNER, HIDDEN)}
SPEC = Backbone(model_type="bert", hidden_size=HIDDEN, num_layers=LAYERS, linears=LINEARS)

# One of every kind of bottleneck: some have a delta form, the others go step by step.
KINDS: dict[str, Bottleneck] = {
    "pfeiffer": Bottleneck(reduction_factor=4),
    "houlsby": Bottleneck(reduction_factor=8, mh_adapter=True, original_ln_before=False, non_linearity="silu"),
    "parallel": Bottleneck(reduction_factor=2, is_parallel=True, scaling=4.0),
    "channel": Bottleneck(reduction_factor=4, mh_adapter=True, is_parallel=True, scaling="channel", non_linearity="gelu"),
    "dropped": Bottleneck(reduction_factor={"default": 4.0, "2": 8.0}, leave_out=(1,), scaling="learned"),
    "gated": Bottleneck(reduction_factor=4, use_gating=True),
    "ln_before": Bottleneck(reduction_factor=4, ln_before=True, non_linearity="tanh"),
    "ln_after": Bottleneck(reduction_factor=4, ln_after=True, adapter_residual_before_ln=True),
    "no_ln": Bottleneck(reduction_factor=4, original_ln_after=False),
    "post_add": Bottleneck(reduction_factor=4, residual_before_ln="post_add", mh_adapter=True),
    "after_ln": Bottleneck(reduction_factor=4, residual_before_ln=False),
    "compacter": Bottleneck(reduction_factor=4, phm_layer=True, mh_adapter=True, original_ln_before=False, non_linearity="gelu"),
    "compacter++": Bottleneck(reduction_factor=8, phm_layer=True, phm_rank=2, shared_phm_rule=False, scaling="learned"),
    "full_w": Bottleneck(reduction_factor=4, phm_layer=True, phm_dim=2, factorized_phm_W=False, factorized_phm_rule=True),
    "shared_w": Bottleneck(reduction_factor=4, phm_layer=True, shared_W_phm=True, phm_bias=False, scaling="channel"),
    "phm_gated": Bottleneck(reduction_factor=4, phm_layer=True, use_gating=True),
}


def at(*names: str, layers: tuple[int, ...] = tuple(range(LAYERS))) -> tuple[str, ...]:
    """Addresses of linears in layers."""
    return tuple(f"layers.{layer}.{name}" for layer in layers for name in names)


# Packages of the other methods, and of several together, by their parts.
OTHERS: dict[str, dict[str, Method]] = {
    "lora": {"lora": LoRA(modules=at("q", "v"), rank=4, scaling=2.0)},
    "lora_all": {
        "lora": LoRA(modules=(*at("q", "k", "v", "o", "up", "down", layers=(1, 2)), "pooler"), rank=3, scaling=0.5, ranks={"layers.1.q": 2})
    },
    "lora_gated": {"lora": LoRA(modules=at("q", "up"), rank=2, scaling=1.0, use_gating=True)},
    "ia3": {"ia3": IA3(outputs=at("k", "v", "up"))},
    "ia3_peft": {"ia3": IA3(outputs=at("k", "v"), inputs=at("down", "o"))},
    "ia3_gated": {"ia3": IA3(outputs=at("k", "up"), use_gating=True, scaling=2.0)},
    "prefix": {"prefix": Prefix(prefix_length=3, leave_out=(1,))},
    "prefix_mlp": {"prefix": Prefix(prefix_length=4, flat=False, bottleneck_size=6)},
    "prefix_shifted": {"prefix": Prefix(prefix_length=5, shift_positions=True)},
    "prefix_gated": {"prefix": Prefix(prefix_length=2, use_gating=True, shared_gating=False)},
    "prompt": {"prompt": Prompt(prompt_length=3, place="embeddings")},
    "prompt_after": {"prompt": Prompt(prompt_length=2, place="embeddings", after_first=True)},
    "prompt_words": {"prompt": Prompt(prompt_length=4, place="words")},
    "madx": {"bottleneck": KINDS["pfeiffer"], "invertible": Invertible()},
    "mam": {"prefix": Prefix(prefix_length=3), "bottleneck": KINDS["parallel"]},
    "unipelt": {
        "prefix": Prefix(prefix_length=2, use_gating=True),
        "bottleneck": KINDS["gated"],
        "lora": LoRA(modules=at("q", "v"), rank=2, scaling=1.0, use_gating=True),
    },
}

FUSIONS: dict[str, Fusion] = {
    "dynamic": Fusion(),
    "static": Fusion(value=False),
    "late_value": Fusion(value_before_softmax=False),
    "no_query": Fusion(query=False),
    "no_key": Fusion(key=False),
    "nothing": Fusion(query=False, key=False, value=False),
    "query_before_ln": Fusion(query_before_ln=True),
    "residual_before": Fusion(residual_before=True),
    "cool": Fusion(temperature=50.0),
}


def save_backbone(folder: Path, seed: int = 0, hidden_act: str = "gelu") -> Path:
    """A random bert with a pooler; its tokenizer knows the words t0 to t59."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=INNER,
        hidden_act=hidden_act,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def package(manifest: Manifest, seed: int, scale: float = 0.3) -> bytes:
    """A package of random weights, strong enough that a wrong rule shows."""
    random = np.random.default_rng(seed)
    values = {name: random.normal(scale=scale, size=shape).astype("<f4") for name, shape in manifest.tensors().items()}
    return write_package(manifest, {name: TensorData("F32", value.shape, value.tobytes()) for name, value in values.items()})


def adapter(config: Bottleneck, head: Head | None = None, seed: int = 0) -> bytes:
    """A package with one adapter."""
    return package(Manifest(methods={"bottleneck": config}, head=head, backbone=SPEC), seed)


def classifier(*labels: str) -> Head:
    return Head(type="classification", layers=2, activation="tanh", labels=labels)

"""A small random backbone and packages of every kind for it, built on the spot."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertModel

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck
from adapter_store.package import TensorData, write_package

HIDDEN, LAYERS, VOCABULARY = 32, 3, 60
SPEC = Backbone(model_type="bert", hidden_size=HIDDEN, num_layers=LAYERS)

# One of every kind of bottleneck: the first five have a delta form, the others go step by step.
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
}


def save_backbone(folder: Path, seed: int = 0, hidden_act: str = "gelu") -> Path:
    """A random bert with a pooler; its tokenizer knows the words t0 to t59."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_act=hidden_act,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def package(manifest: Manifest, seed: int) -> bytes:
    """A package of random weights, strong enough that a wrong rule shows."""
    random = np.random.default_rng(seed)
    values = {name: random.normal(scale=0.3, size=shape).astype("<f4") for name, shape in manifest.tensors().items()}
    return write_package(manifest, {name: TensorData("F32", value.shape, value.tobytes()) for name, value in values.items()})


def adapter(config: Bottleneck, head: Head | None = None, seed: int = 0) -> bytes:
    """A package with one adapter."""
    return package(Manifest(methods={"bottleneck": config}, head=head, backbone=SPEC), seed)


def classifier(*labels: str) -> Head:
    return Head(type="classification", layers=2, activation="tanh", labels=labels)

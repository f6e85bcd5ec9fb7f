"""A small random backbone of every family that is served, built on the spot, with a tokenizer of the words t0 to t59."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

VOCABULARY, HIDDEN, LAYERS = 60, 24, 2

_BERT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
}
_T5 = {
    "d_model": HIDDEN,
    "d_kv": 6,
    "num_heads": 4,
    "d_ff": 40,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "vocab_size": VOCABULARY,
}
_T5 |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "relative_attention_num_buckets": 8}
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT | {"embedding_size": 16},
    "distilbert": {
        "dim": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": 4,
        "hidden_dim": 40,
        "max_position_embeddings": 64,
        "vocab_size": VOCABULARY,
    },
    "albert": _BERT | {"embedding_size": 16},
    "modernbert": _BERT
    | {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8},
    "gpt2": {
        "n_embd": HIDDEN,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 64,
        "vocab_size": VOCABULARY,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "llama": _BERT | {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    "t5": _T5,
    "mt5": _T5 | _GATED,
}
_CLASSES = {
    "modernbert": AutoModelForMaskedLM,
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "mt5": AutoModelForSeq2SeqLM,
}


def save_backbone(family: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint of one family, its weights random and strong."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **CONFIGS[family])
    model = _CLASSES.get(family, AutoModel).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder

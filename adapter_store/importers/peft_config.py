"""The adapter_config.json of PEFT: which methods and options are served, and what patterns say of a module. Knows no tensors."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.names import shown

Config = Mapping[str, Any]

PEFT_TYPES = frozenset({"LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"})

# Ways to begin a LoRA that leave the backbone as it is; others write a part of its weights into A and B (PiSSA, OLoRA, CorDA ...).
_BEGINNINGS = frozenset({"gaussian", "eva", "orthogonal", "mica"})

# Options that change what is computed, with the values that do not; null and false never do.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "target_parameters": "LoRA on parameters that are no module's weight",
    "alora_invocation_tokens": "aLoRA, which begins at given tokens",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron's parallel layers",
}

# Options that are about training, loading or the file, or that the tensors tell better.
# fmt: off
_WITHOUT_EFFECT = frozenset([
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "encoder_dropout", "encoder_hidden_size",
    "encoder_num_layers", "encoder_reparameterization_type", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "feedforward_modules", "inference_mode", "init_ia3_weights", "init_lora_weights", "init_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save",
    "num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens", "peft_type", "peft_version",
    "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "token_dim", "tokenizer_kwargs", "tokenizer_name_or_path", "use_rslora",
    "velora_config", "modality", "enable_lora", "merge_weights",
])
# fmt: on


def check_options(config: Config) -> None:
    """Raises UnsupportedMethod for a method, or an option of it, that is not served; each is named."""
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPES:
        raise UnsupportedMethod(f"This is a PEFT folder of the type {shown(str(kind), 40)}; served are {', '.join(sorted(PEFT_TYPES))}.")
    if config.get("bias", "none") != "none":
        raise UnsupportedMethod(f"The adapter changes biases of the backbone (bias {shown(str(config['bias']), 40)}), which is not served.")
    begin = config.get("init_lora_weights", True)
    if not (isinstance(begin, bool) or begin is None or (isinstance(begin, str) and begin in _BEGINNINGS)):
        raise UnsupportedMethod(
            f"The adapter began with init_lora_weights {shown(str(begin), 40)}, which changes the backbone's own weights: "
            "convert it to a plain LoRA when saving it (path_initial_model_for_weight_conversion)."
        )
    for option, what in _REFUSED.items():
        if config.get(option):
            raise UnsupportedMethod(f"The adapter uses {what} ({option}), which is not served.")
    unknown = sorted(key for key, value in config.items() if value and key not in _WITHOUT_EFFECT and key not in _REFUSED)
    if unknown:
        raise UnsupportedMethod(f"The config sets {shown(unknown[0], 60)}, an option that this version does not know.")


def number(config: Config, key: str, default: int) -> int:
    """A whole number of the config."""
    value = config.get(key, default)
    if type(value) is not int or not 0 <= value <= 1 << 30:
        raise InvalidPackage(f"adapter_config.json is not valid: {shown(key)} must be a number, not {shown(str(value), 40)}.")
    return value


# Patterns are regular expressions of strangers: so many, so long, with so many repetitions one by one and in all.
_MAX_PATTERNS, _MAX_LENGTH, _MAX_REPEATS, _MAX_ALL_REPEATS = 1024, 256, 2, 64


def pattern(config: Config, key: str, path: str, default: int) -> int:
    """What the first entry of a pattern that fits a module says of it; entries are regular expressions at the end of its path."""
    for expression, value in _entries(config, key).items():
        if _expression(expression, key).match(path):
            if type(value) is not int or not 0 < value <= 1 << 30:
                raise InvalidPackage(f"adapter_config.json is not valid: {shown(key)} gives {shown(expression)} no number greater than 0.")
            return value
    return default


def _entries(config: Config, key: str) -> dict[str, Any]:
    entries = config.get(key) or {}
    if not isinstance(entries, dict) or len(entries) > _MAX_PATTERNS:
        raise InvalidPackage(f"adapter_config.json is not valid: {shown(key)} must map at most {_MAX_PATTERNS} modules to numbers.")
    if sum(map(_repeats, entries)) > _MAX_ALL_REPEATS:
        raise UnsupportedMethod(f"The entries of {key} hold more than {_MAX_ALL_REPEATS} repetitions, too many to be read.")
    return entries


def _repeats(text: str) -> int:
    return len(re.findall(r"[*+?{]", text))


@lru_cache(maxsize=4096)
def _expression(text: str, key: str) -> re.Pattern[str]:
    """The entry as PEFT reads it; raises UnsupportedMethod for one that could take very long."""
    tame = len(text) <= _MAX_LENGTH and text.count("(") <= 4 and _repeats(text) <= _MAX_REPEATS and not re.search(r"\)[*+?{]", text)
    try:
        if not tame:
            raise ValueError
        return re.compile(rf"(.*\.)?({text})$")
    except (ValueError, re.error, RecursionError, OverflowError):
        raise UnsupportedMethod(f"The entry {shown(text)} of {key} is not an expression that this version reads.") from None

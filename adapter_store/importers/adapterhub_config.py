"""The `config` of an adapter_config.json -> our Bottleneck. Knows the library's presets, key names and old spellings, no tensors.

Missing keys take the library's dataclass defaults, which are those of `seq_bn` and of our Bottleneck.
"""

from typing import Any

from pydantic import ValidationError

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.methods import Bottleneck, activation
from adapter_store.names import shown
from adapter_store.package import sentence

_SEQ_BN: dict[str, Any] = {}
_DOUBLE_SEQ_BN: dict[str, Any] = {"mh_adapter": True, "non_linearity": "swish", "original_ln_before": False}
_PAR_BN: dict[str, Any] = {"is_parallel": True, "original_ln_before": False, "reduction_factor": 2, "scaling": 4.0}
_NICE = {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}

# Presets by their names of today and of before; a config may be nothing but such a name.
PRESETS: dict[str, dict[str, Any]] = {
    "seq_bn": _SEQ_BN,
    "pfeiffer": _SEQ_BN,
    "double_seq_bn": _DOUBLE_SEQ_BN,
    "houlsby": _DOUBLE_SEQ_BN,
    "par_bn": _PAR_BN,
    "parallel": _PAR_BN,
    "scaled_par_bn": _PAR_BN | {"scaling": "learned"},
    "scaled_parallel": _PAR_BN | {"scaling": "learned"},
    "seq_bn_inv": _SEQ_BN | _NICE,
    "pfeiffer+inv": _SEQ_BN | _NICE,
    "double_seq_bn_inv": _DOUBLE_SEQ_BN | _NICE,
    "houlsby+inv": _DOUBLE_SEQ_BN | _NICE,
    "compacter": _DOUBLE_SEQ_BN | {"phm_layer": True},
    "compacter++": _SEQ_BN | {"phm_layer": True},
    "lora": {"architecture": "lora"},
    "ia3": {"architecture": "lora", "composition_mode": "scale"},
    "prefix_tuning": {"architecture": "prefix_tuning"},
    "prefix_tuning_flat": {"architecture": "prefix_tuning"},
    "prompt_tuning": {"architecture": "prompt_tuning"},
    "mam": {"architecture": "union"},
    "unipelt": {"architecture": "union"},
}

ARCHITECTURES = {
    "lora": "LoRA",
    "prefix_tuning": "prefix tuning",
    "prompt_tuning": "prompt tuning",
    "reft": "ReFT",
    "mtl_lora": "MTL-LoRA",
    "union": "a union of several methods (MAM, UniPELT)",
}

# Keys that change training only, or belong to methods that are refused before.
# fmt: off
_WITHOUT_EFFECT = frozenset([
    "architecture", "dropout", "stochastic_depth", "init_weights", "init_weights_seed", "cross_adapter", "inv_adapter",
    "invertible_adapter", "inv_adapter_reduction_factor", "phm_layer", "phm_dim", "phm_rank", "phm_bias", "phm_c_init",
    "phm_init_range", "learn_phm", "factorized_phm_w", "factorized_phm_rule", "shared_w_phm", "shared_phm_rule",
    "hypercomplex_nonlinearity", "attention_type", "new_attention_norm",
])
# fmt: on

# Files without a "version" come from before the library's gelu was the exact one.
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}


def bottleneck(adapter_config: dict[str, Any], has_invertible: bool, warnings: list[str]) -> Bottleneck:
    """The adapter's config as a Bottleneck; raises UnsupportedMethod naming the method, or InvalidPackage.

    `has_invertible`: whether the weights hold an invertible adapter. A task adapter of the first version may name one that it
    does not have.
    """
    config = _fields(adapter_config.get("config"))
    _refuse_others(config)
    invertible = config.get("inv_adapter") or config.get("invertible_adapter")
    if invertible and adapter_config.get("type") == "text_task" and not has_invertible:
        warnings.append("The config names an invertible adapter that the weights do not have, as old task adapters do; it was left out.")
    elif invertible or has_invertible:
        raise UnsupportedMethod("The adapter has an invertible part (inv_adapter, as in MAD-X), which this version does not serve yet.")
    own = {key: value for key, value in config.items() if key in Bottleneck.model_fields and key != "method"}
    unknown = sorted(config.keys() - own.keys() - _WITHOUT_EFFECT)
    if unknown:
        warnings.append(f"The config has keys that are not known and were ignored: {', '.join(shown(key, 40) for key in unknown[:10])}.")
    if "non_linearity" in own:
        own["non_linearity"] = _activation(own["non_linearity"], old="version" not in adapter_config)
    if own.get("leave_out", ()) is None:
        del own["leave_out"]
    try:
        return Bottleneck.model_validate(own)
    except ValidationError as error:
        raise InvalidPackage(f"adapter_config.json is not valid: {sentence(error)}") from None


def _fields(config: Any) -> dict[str, Any]:
    """The config with today's spelling of its keys; a name of a preset is looked up."""
    if isinstance(config, str):
        if config.lower() not in PRESETS:
            raise UnsupportedMethod(f"The adapter's config is {shown(config)}, which is no known preset; known are {', '.join(PRESETS)}.")
        return dict(PRESETS[config.lower()])
    if not isinstance(config, dict):
        raise InvalidPackage("adapter_config.json has no config: expected an object with the adapter's settings, or a preset's name.")
    lower = {key.lower(): value for key, value in config.items()}
    if len(lower) != len(config):
        raise InvalidPackage("The config in adapter_config.json has keys that differ only in upper and lower case.")
    return lower


def _refuse_others(config: dict[str, Any]) -> None:
    architecture = config.get("architecture")
    if architecture is not None:
        method = ARCHITECTURES.get(str(architecture), shown(str(architecture)))
        if architecture == "lora":
            method = "(IA)^3" if config.get("composition_mode") == "scale" else "DoRA" if config.get("use_dora") else method
            method = "VeRA" if config.get("vera_d") is not None else method
    elif config.get("phm_layer"):
        method = "Compacter (phm_layer)"
    else:
        return
    raise UnsupportedMethod(f"The adapter's method is {method}, which this version does not serve yet; it serves bottleneck adapters.")


def _activation(name: Any, old: bool) -> str:
    if not isinstance(name, str):
        raise InvalidPackage("adapter_config.json is not valid: 'non_linearity' must be the name of an activation.")
    try:
        return activation(_OLD_ACTIVATIONS.get(name, name) if old else name)
    except ValueError as error:
        raise UnsupportedMethod(f"The adapter's non_linearity cannot be served: {error}.") from None

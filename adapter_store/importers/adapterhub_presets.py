"""The presets of the `adapters` library (adapters 1.3.0, ADAPTER_CONFIG_MAP) by their names of today and of before.

A config may be nothing but such a name. Fields that are not given have the defaults of the library's dataclasses.
"""

from typing import Any

Fields = dict[str, Any]

_SEQ_BN: Fields = {
    "mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu", "original_ln_before": True
}  # fmt: skip
_DOUBLE_SEQ_BN: Fields = _SEQ_BN | {"mh_adapter": True, "non_linearity": "swish", "original_ln_before": False}
_PAR_BN: Fields = _SEQ_BN | {"is_parallel": True, "original_ln_before": False, "reduction_factor": 2, "scaling": 4.0}
_NICE: Fields = {"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
_COMPACTER: Fields = {"phm_layer": True, "reduction_factor": 32, "non_linearity": "gelu"}
_PREFIX: Fields = {"architecture": "prefix_tuning"}
_LORA: Fields = {"architecture": "lora"}
_GATED: Fields = {"use_gating": True}

PRESETS: dict[str, Fields] = {
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
    "compacter": _DOUBLE_SEQ_BN | _COMPACTER,
    "compacter++": _SEQ_BN | _COMPACTER,
    "lora": _LORA,
    "ia3": _LORA | {"composition_mode": "scale", "attn_matrices": ["k", "v"], "intermediate_lora": True, "r": 1, "alpha": 1},
    "prefix_tuning": _PREFIX,
    "prefix_tuning_flat": _PREFIX | {"flat": True},
    "prompt_tuning": {"architecture": "prompt_tuning"},
    "mam": {"architecture": "union", "configs": [_PREFIX | {"bottleneck_size": 800}, _PAR_BN]},
    "unipelt": {
        "architecture": "union",
        "configs": [_PREFIX | _GATED | {"prefix_length": 10}, _SEQ_BN | _GATED, _LORA | _GATED | {"r": 8, "alpha": 2}],
    },
}

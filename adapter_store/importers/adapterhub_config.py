"""The `config` of an adapter_config.json -> the parts that it describes. Knows the library's key names and old spellings.

Missing keys take the defaults of the library's dataclasses (adapters 1.3.0, configuration/adapter_config.py); those that have none
there are asked for. Knows no tensors.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.families import Family
from adapter_store.importers.adapterhub_presets import PRESETS, Fields
from adapter_store.methods import Bottleneck, Invertible, Prompt, activation
from adapter_store.methods.base import check_layers
from adapter_store.names import shown
from adapter_store.package import sentence

MAX_UNION = 32
REFUSED = {"reft": "ReFT", "mtl_lora": "MTL-LoRA"}

# Keys of bottlenecks that change training only, or that old versions wrote.
# fmt: off
_WITHOUT_EFFECT = frozenset([
    "architecture", "dropout", "stochastic_depth", "init_weights", "init_weights_seed", "inv_adapter", "invertible_adapter",
    "inv_adapter_reduction_factor", "phm_c_init", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity", "attention_type",
    "new_attention_norm",
])
# fmt: on
_REQUIRED = ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity")

# Files without a "version" come from before the library's gelu was the exact one.
_OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}


class _Read(BaseModel):
    """A config whose further keys do not matter; null stands for "nothing is left out"."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    leave_out: tuple[int, ...] = Field(default=(), fail_fast=True)

    @field_validator("leave_out", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        return () if value is None else value

    @field_validator("leave_out")
    @classmethod
    def _sorted_layers(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return check_layers(value)


class LinearsConfig(_Read):
    """LoRAConfig: LoRA, or (IA)^3 where the composition mode is "scale". Which linears a layer has depends on the family."""

    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    attn_matrices: tuple[str, ...] = Field(default=("q", "v"), fail_fast=True)
    r: int = Field(default=8, ge=1)
    alpha: float = 8
    composition_mode: Literal["add", "scale"] = "add"
    use_gating: bool = False
    use_dora: bool = False
    vera_d: float | None = None
    vera_b: float | None = None

    @property
    def scales(self) -> bool:
        """Whether it is (IA)^3."""
        return self.composition_mode == "scale"


class PrefixConfig(_Read):
    """PrefixTuningConfig. Which attentions get a prefix depends on the family."""

    encoder_prefix: bool = True
    cross_prefix: bool = True
    flat: bool = False
    prefix_length: int = 30
    bottleneck_size: int = 512
    non_linearity: str = "tanh"
    use_gating: bool = False
    shared_gating: bool = True


class _PromptConfig(_Read):
    prompt_length: int = 10
    combine: str = "prefix"


Part = Bottleneck | Invertible | Prompt | LinearsConfig | PrefixConfig


@dataclass(frozen=True, slots=True)
class Whole:
    """What a config is read with: the file around it and what the weights hold."""

    file: Mapping[str, Any]
    family: Family
    has_invertible: bool
    warnings: list[str]


def read_parts(file: Mapping[str, Any], family: Family, has_invertible: bool, warnings: list[str]) -> list[Part]:
    """The parts that an adapter_config.json describes; raises UnsupportedMethod naming the method, or InvalidPackage.

    `has_invertible`: whether the weights hold an invertible adapter. A task adapter of the first version may name one that it
    does not have.
    """
    config = _fields(file.get("config"))
    function = config.get("non_linearity")
    if "version" not in file and isinstance(function, str):
        config["non_linearity"] = _OLD_ACTIVATIONS.get(function, function)
    if config.get("architecture") == "lora" and _scaled_wrongly(file.get("version")) and config.get("alpha", 8) != config.get("r", 8):
        warnings.append(
            "The file is of a version of the library that trained with a scaling of 1, whatever its alpha; it was taken as such."
        )
        config["alpha"] = config.get("r", 8)
    return _read(config, Whole(file, family, has_invertible, warnings))


def _read(config: Fields, whole: Whole) -> list[Part]:
    architecture = config.get("architecture")
    reader = _READERS.get(str(architecture) if architecture else None)
    if reader is None:
        raise UnsupportedMethod(
            f"The adapter's method is {REFUSED.get(str(architecture), shown(str(architecture)))}, which this version does not serve."
        )
    try:
        return reader(config, whole)
    except ValidationError as error:
        raise InvalidPackage(f"adapter_config.json is not valid: {sentence(error)}") from None


def _fields(config: Any) -> Fields:
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


def _scaled_wrongly(version: Any) -> bool:
    """Versions "adapters.X" before 1.1.0 (github.com/adapter-hub/adapters/pull/770)."""
    match = re.match(r"adapters\.(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?[.-]?((?:dev|a|b|rc)?)", version) if isinstance(version, str) else None
    if match is None:
        return False
    number = (int(match[1]), int(match[2]), int(match[3] or 0))
    return number < (1, 1, 0) or (number == (1, 1, 0) and bool(match[4]))


def _bottleneck(config: Fields, whole: Whole) -> list[Part]:
    names = {name.lower(): name for name in Bottleneck.model_fields if name != "method"}
    own = {names[key]: value for key, value in config.items() if key in names}
    unknown = sorted(config.keys() - names.keys() - _WITHOUT_EFFECT)
    if unknown:
        whole.warnings.append(
            f"The config has keys that are not known and were ignored: {', '.join(shown(key, 40) for key in unknown[:10])}."
        )
    missing = [key for key in _REQUIRED if key not in own]
    if missing:
        raise InvalidPackage(f"The config in adapter_config.json lacks '{missing[0]}'.")
    own["non_linearity"] = _activation(own["non_linearity"])
    own.setdefault("original_ln_before", False)
    if own.get("leave_out", ()) is None:
        del own["leave_out"]
    method = Bottleneck.model_validate(own)
    if whole.family.hooked:
        method = _hooked(method)
    return [method, *_invertible(config, method, whole)]


def _hooked(method: Bottleneck) -> Bottleneck:
    """The library adds the residual and applies the norm in the model there, so nothing of either comes after the adapter."""
    if method.mh_adapter and method.original_ln_before and not method.is_parallel:
        raise UnsupportedMethod(
            "The adapter sets mh_adapter together with original_ln_before, for which the library reads the norm of another layer "
            "(the last one's) in models of this type; that is not served."
        )
    return method.model_copy(update={"original_ln_after": False})


def _invertible(config: Fields, method: Bottleneck, whole: Whole) -> list[Part]:
    old = config.get("invertible_adapter")
    old = old if isinstance(old, dict) else {"block_type": old} if old else {}
    kind = config.get("inv_adapter") or old.get("block_type")
    factor = config.get("inv_adapter_reduction_factor") or old.get("reduction_factor") or 2
    if not kind and whole.has_invertible:
        raise InvalidPackage("The weights hold an invertible adapter, which the config does not name (inv_adapter).")
    if not kind:
        return []
    if not whole.has_invertible:
        if whole.file.get("type") != "text_task":
            raise InvalidPackage("The config names an invertible adapter (inv_adapter), of which the weights hold no tensor.")
        whole.warnings.append(
            "The config names an invertible adapter that the weights do not have, as old task adapters do; it was left out."
        )
        return []
    if kind != "nice":
        raise UnsupportedMethod(f"The adapter's invertible part is of the kind {shown(str(kind))}, which is not served; only 'nice' is.")
    return [Invertible(non_linearity=method.non_linearity, reduction_factor=factor)]


def _linears(config: Fields, whole: Whole) -> list[Part]:
    read = LinearsConfig.model_validate(config)
    for method, used in (("DoRA (use_dora)", read.use_dora), ("VeRA (vera_d, vera_b)", read.vera_d is not None or read.vera_b is not None)):
        if used:
            raise UnsupportedMethod(f"The adapter's method is {method}, which this version does not serve.")
    if read.scales and read.r != 1:
        raise InvalidPackage(f"adapter_config.json is not valid: composition_mode 'scale' needs r 1, not {read.r}.")
    return [read]


def _prefix(config: Fields, whole: Whole) -> list[Part]:
    read = PrefixConfig.model_validate(config)
    return [read.model_copy(update={"non_linearity": _activation(read.non_linearity)})]


def _prompt(config: Fields, whole: Whole) -> list[Part]:
    read = _PromptConfig.model_validate(config)
    if read.combine not in ("prefix", "prefix_after_bos"):
        raise UnsupportedMethod(
            f"The prompt is combined by {shown(read.combine)}, which is not served; only prefix and prefix_after_bos are."
        )
    return [Prompt(prompt_length=read.prompt_length, place="embeddings", after_first=read.combine == "prefix_after_bos")]


def _union(config: Fields, whole: Whole) -> list[Part]:
    configs = config.get("configs")
    if not isinstance(configs, list) or not 1 <= len(configs) <= MAX_UNION:
        raise InvalidPackage(f"adapter_config.json is not valid: a union has a list of 1 to {MAX_UNION} 'configs'.")
    parts: list[Part] = []
    for inner in configs:
        fields = _fields(inner)
        if fields.get("architecture") == "union":
            raise InvalidPackage("adapter_config.json is not valid: a union lies within a union.")
        parts += _read(fields, whole)
    kinds = [_kind(part) for part in parts]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise UnsupportedMethod(f"The adapter is a union of several parts of the method {twice[0]}, which this version does not serve.")
    return parts


def _kind(part: Part) -> str:
    if isinstance(part, LinearsConfig):
        return "ia3" if part.scales else "lora"
    return "prefix" if isinstance(part, PrefixConfig) else part.method


_READERS: dict[str | None, Callable[[Fields, Whole], list[Part]]] = {
    None: _bottleneck,
    "lora": _linears,
    "prefix_tuning": _prefix,
    "prompt_tuning": _prompt,
    "union": _union,
}


def _activation(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidPackage("adapter_config.json is not valid: 'non_linearity' must be the name of an activation.")
    try:
        return activation(name)
    except ValueError as error:
        raise UnsupportedMethod(f"The adapter's non_linearity cannot be served: {error}.") from None

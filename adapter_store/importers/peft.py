"""PEFT folders (peft 0.21.2 and older): adapter_config.json with a peft_type + adapter_model.safetensors.

Keys are `base_model.model.<module path>.{lora_A | lora_B}.weight` and `.ia3_l`; prompts and prefixes are one tensor,
`prompt_embeddings`, and their heads lie under `base_model.` alone. Ranks come from the tensors. A folder names neither its model type
nor its labels: the first is the backbone's, or clear from the keys; the labels are LABEL_0, LABEL_1 ...
"""

import re

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.families import FAMILIES
from adapter_store.importers.adapterhub import check_law, check_names
from adapter_store.importers.adapterhub_folder import ADAPTER, describe, ignored, manifest_of, pickled
from adapter_store.importers.adapterhub_match import Collected
from adapter_store.importers.backbones import plain_backbone, with_linears
from adapter_store.importers.folder import Files, ImportedPackage, Options, Remarks, read_object, read_tensors
from adapter_store.importers.peft_config import Config, check_options, number
from adapter_store.importers.peft_heads import split_head
from adapter_store.importers.peft_parts import PEFT_READERS, PROMPT, PROMPTED, WEIGHTS, Read, Tensors, is_adapter, stripped
from adapter_store.importers.places import (
    NAME_BACKBONE,
    READS_HIDDEN,
    WRITES_HIDDEN,
    Counts,
    Dimensions,
    Places,
)
from adapter_store.methods import IA3, Backbone, LoRA, Method, Prefix, Prompt
from adapter_store.names import shown

PICKLE = "adapter_model.bin"


def is_peft(files: Files) -> bool:
    """Whether a folder is PEFT's, which shares the name of its config with the `adapters` library."""
    if WEIGHTS in files or PICKLE in files:
        return True
    return ADAPTER.config in files and "peft_type" in read_object(files, ADAPTER.config)


def import_peft(files: Files, options: Options) -> ImportedPackage:
    """The folder as a package; raises InvalidPackage, UnsupportedMethod (naming the method or option) and WrongBackbone."""
    if ADAPTER.config not in files:
        raise InvalidPackage(f"The folder holds {WEIGHTS if WEIGHTS in files else PICKLE} but not {ADAPTER.config}: both are needed.")
    config = read_object(files, ADAPTER.config)
    check_options(config)
    if WEIGHTS not in files:
        raise (
            pickled(PICKLE) if PICKLE in files else InvalidPackage(f"The folder holds {ADAPTER.config} but not {WEIGHTS}: both are needed.")
        )
    remarks = Remarks()
    weights = read_tensors(files, WEIGHTS)
    model_type = _model_type(weights, config, options.backbone)
    places = Places(model_type)
    prompted = str(config["peft_type"]) in PROMPTED
    own = {key: tensor for key, tensor in weights.items() if (key == PROMPT if prompted else is_adapter(key))}
    rest = {stripped(key): tensor for key, tensor in weights.items() if key not in own}
    context = Read(config, places, options.backbone, Dimensions(), remarks)
    counts, method, whole = PEFT_READERS[str(config["peft_type"])](own, context)
    hidden = _hidden(config, context.dimensions, model_type, method, options.backbone)
    plain = plain_backbone(options.backbone, model_type, hidden, counts, _prompt_size(method, whole), _base_name(config))
    check_names({method.method: method}, plain, whole, "the config")
    backbone = with_linears(plain, options.backbone, context.dimensions, [method])
    check_law({method.method: method}, backbone, whole, "the config")
    _check_targets(config, places, counts, method)
    remarks.report.append(f"adapter: {len(whole.tensors)} tensors of {method.method}")
    head, head_tensors = split_head(config, rest, backbone, remarks)
    described = describe(files, {"model_name": _base_name(config), "version": f"peft.{config.get('peft_version', '')}"}, remarks, "peft")
    manifest = manifest_of(described, backbone, {method.method: method}, head)
    remarks.report.extend(ignored(files, (ADAPTER.config, WEIGHTS)))
    return ImportedPackage(manifest, dict(whole.tensors) | head_tensors, tuple(remarks.report), tuple(remarks.warnings))


def _base_name(config: Config) -> str:
    name = config.get("base_model_name_or_path")
    return name[:256] if isinstance(name, str) else ""


def _model_type(weights: Tensors, config: Config, backbone: Backbone | None) -> str:
    """The backbone's, else that of the class that the config names, else the one whose modules alone have the paths of the keys.

    Families with the same paths cannot be told apart.
    """
    if backbone is not None:
        if backbone.model_type not in FAMILIES:
            raise UnsupportedMethod(
                f"Models of type {shown(backbone.model_type)} are not served; served are {', '.join(sorted(FAMILIES))}."
            )
        return backbone.model_type
    mapping = config.get("auto_mapping")
    library = str(mapping.get("parent_library")) if isinstance(mapping, dict) else ""
    if (match := re.match(r"transformers\.models\.(\w+)\.", library)) and match[1].replace("_", "-") in FAMILIES:
        return match[1].replace("_", "-")
    keys = [stripped(key).rpartition(".lora_")[0] or stripped(key).removesuffix(".ia3_l") for key in weights if is_adapter(key)]
    fitting = [name for name in FAMILIES if keys and all(_named(Places(name), key) for key in keys)]
    if len(fitting) != 1:
        told = f": its keys fit models of the types {', '.join(fitting)}" if fitting else ""
        raise InvalidPackage(f"A PEFT folder does not say which type of model it was made for{told}; {NAME_BACKBONE}.")
    return fitting[0]


def _named(places: Places, key: str) -> bool:
    """Whether a key is a linear of the family, under the prefix that its classes with a head have."""
    prefix = places.family.prefix
    return key.startswith(prefix) and any(places.linear(spot, spot.rest) for spot in places.spots(key[len(prefix) :]))


def _prompt_size(method: Method, whole: Collected) -> int | None:
    return whole.tensors["prompt.embedding"].shape[1] if isinstance(method, Prompt) else None


# Where heads are as wide together as the hidden state, in every model of the family.
_SQUARE = frozenset({"q", "k", "v", "o"})
_SQUARE_FAMILIES = frozenset({"albert", "bert", "distilbert", "electra", "gpt2", "modernbert", "roberta", "xlm-roberta"})


def _hidden(config: Config, seen: Dimensions, model_type: str, method: Method, backbone: Backbone | None) -> int:
    """The hidden size: the backbone's, else what linears read or write that read or write nothing else, else the width of a prompt."""
    if backbone is not None:
        return backbone.hidden_size
    if isinstance(method, Prefix | Prompt):
        return number(config, "token_dim", 0) or _unknown()
    square = _SQUARE if model_type in _SQUARE_FAMILIES else frozenset()
    for name, (inputs, outputs) in seen.known.items():
        if inputs and name in READS_HIDDEN | square:
            return inputs
        if outputs and name in WRITES_HIDDEN | square:
            return outputs
        if outputs and name == "qkv" and model_type in _SQUARE_FAMILIES:
            return outputs // 3
    return _unknown()


def _unknown() -> int:
    raise InvalidPackage(f"The folder does not tell the model's hidden size: {NAME_BACKBONE}.")


def _check_targets(config: Config, places: Places, counts: Counts, method: Method) -> None:
    """Every linear that `target_modules` names, in every layer that it is to be in, must be in the file; raises InvalidPackage.

    Where the targets are an expression, or layers are counted in another way than PEFT's, nothing is known of what must be there.
    """
    named, only = config.get("target_modules"), config.get("layers_to_transform")
    plain = isinstance(named, list) and not config.get("exclude_modules") and len(places.family.layers) == 1
    if not isinstance(method, LoRA | IA3) or not plain or places.family.shared_layers:
        return
    targets = {target for target in named or () if isinstance(target, str)}
    chosen = [only] if type(only) is int else only if isinstance(only, list) and only else range(counts.total)
    have = set(method.modules if isinstance(method, LoRA) else (*method.outputs, *method.inputs))
    stack = places.family.layers[0]
    for layer in range(counts.total):
        for name, path in stack.linears.items():
            parts = f"{places.family.prefix}{stack.path.format(i=layer)}.{path}".split(".")
            targeted = any(".".join(parts[start:]) in targets for start in range(len(parts)))
            if targeted and layer in chosen and f"layers.{layer}.{name}" not in have:
                raise InvalidPackage(f"The weights lack the tensors of {shown('.'.join(parts), 160)}, which target_modules calls for.")

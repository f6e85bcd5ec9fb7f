"""Heads in PEFT folders, which say no more of them than a task: the head is that of transformers' class for the task and the family.

SEQ_CLS, TOKEN_CLS, QUESTION_ANS   the modules that are saved beside the adapter (modules_to_save)
CAUSAL_LM, SEQ_2_SEQ_LM            the backbone's own head, unless the file has an lm_head
"""

from collections.abc import Mapping
from typing import Any

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.families import FAMILIES
from adapter_store.importers.folder import Remarks
from adapter_store.importers.heads import Weights, default_labels, make_head, static_head, take
from adapter_store.importers.static_heads import CLASS_OF, STATIC, Static
from adapter_store.manifest import Head
from adapter_store.methods import Backbone
from adapter_store.names import shown
from adapter_store.tensorfile import TensorData

Taken = tuple[Head | None, dict[str, TensorData]]

_FILE = "adapter_model.safetensors"
_SUFFIX = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification", "QUESTION_ANS": "ForQuestionAnswering"}
_LANGUAGE = {"CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq_lm"}
_LM_HEAD = "lm_head"


def split_head(config: Mapping[str, Any], rest: Weights, backbone: Backbone, remarks: Remarks) -> Taken:
    """The head of a folder and its tensors, from what is no adapter's in its file; None where the task has none."""
    task = config.get("task_type")
    if task is not None and not isinstance(task, str):
        raise InvalidPackage("adapter_config.json is not valid: task_type must be a text.")
    if task in _LANGUAGE:
        return _language_model(_LANGUAGE[task], rest, backbone, remarks)
    model_class = f"{CLASS_OF[backbone.model_type]}{_SUFFIX[task]}" if task in _SUFFIX else None
    if model_class is None and rest:
        mapping = config.get("auto_mapping")
        model_class = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else None
        if model_class not in STATIC:
            first = shown(min(rest), 160)
            raise InvalidPackage(f"{_FILE} holds the tensor {first}, which is none of the adapter, and no task_type says what it is for.")
    if model_class is None:
        if task not in (None, "FEATURE_EXTRACTION"):
            raise UnsupportedMethod(f"The adapter's task_type is {shown(str(task))}, which this version does not serve.")
        return None, {}
    if model_class not in STATIC:
        raise UnsupportedMethod(f"Heads of the class {shown(str(model_class))} (task_type {task}) are not served.")
    return _static(STATIC[model_class], task or model_class, rest, backbone, remarks)


def _language_model(kind: str, rest: Weights, backbone: Backbone, remarks: Remarks) -> Taken:
    family = FAMILIES[backbone.model_type]
    if family.lm != kind:
        raise UnsupportedMethod(f"A {kind} head on a model of type {shown(backbone.model_type)} is not served.")
    if not any(key.startswith(f"{_LM_HEAD}.") for key in rest):
        head = make_head(kind, (), _FILE, layers=0)
        remarks.report.append(f"head: {kind}, the backbone's own")
        return head, take(rest, {}, head, backbone, "the task_type", _FILE)
    static = Static(kind, (_LM_HEAD,), bias=f"{_LM_HEAD}.bias" in rest)
    return _taken(*static_head(static, (), rest, backbone, "the task_type"), rest, backbone, remarks)


def _static(static: Static, task: str, rest: Weights, backbone: Backbone, remarks: Remarks) -> Taken:
    last = rest.get(f"{static.modules[-1]}.weight")
    if last is None or not last.shape:
        raise InvalidPackage(
            f"The file lacks the tensor '{static.modules[-1]}.weight' that {task} calls for: was the head saved (modules_to_save)?"
        )
    head, sources = static_head(static, default_labels(last.shape[0]), rest, backbone, "the task_type")
    return _taken(head, sources, rest, backbone, remarks)


def _taken(head: Head, sources: dict[str, list[str]], rest: Weights, backbone: Backbone, remarks: Remarks) -> Taken:
    tensors = take(rest, sources, head, backbone, "the task_type", _FILE)
    remarks.report.append(f"head: {head.type}, {len(head.labels)} labels, {len(tensors)} tensors")
    return head, tensors

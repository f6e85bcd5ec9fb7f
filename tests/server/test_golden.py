"""Every golden case through the whole server: folder in over HTTP, words in, the real library's numbers out.

The lists are explicit, so that a method, head or family that begins (or ceases) to be served changes this file.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import array, predict, push, serving
from safetensors.numpy import load_file

from adapter_store.errors import InvalidPackage, UnsupportedMethod
from adapter_store.importers import folder_files, import_folder
from adapter_store.importers.pickles import bin_to_safetensors
from server.engine.backbone import BackboneError, load_backbone
from server.engine.families import FAMILIES

TOLERANCE = 1e-4

# Folders that are imported, under their case.
SERVED: dict[str, tuple[str, ...]] = {
    "bert_batchsplit_cls": ("adapters/nli", "adapters/qqp", "adapters/sst"),
    "bert_fusion3_pfeiffer_cls": ("adapters/mnli", "adapters/qqp", "adapters/sst"),
    "bert_houlsby_cls": ("adapters/sst",),
    "bert_leave_out_rf_map": ("adapters/sst",),
    "bert_mixed_kinds_alone": ("adapters/ho", "adapters/pa", "adapters/pf"),
    "bert_multilabel_pooler": ("adapters/toxic",),
    "bert_parallel_cls": ("adapters/sst",),
    "bert_pfeiffer_cls": ("adapters/sst",),
    "bert_scaled_parallel_mh": ("adapters/sst",),
    "bert_stack_lang_task_tag": ("setup/ner",),
    "bert_static_cls": ("adapters/sst",),
    "distilbert_pfeiffer_cls": ("adapters/sst",),
    "roberta_pfeiffer_cls": ("adapters/sst",),
    "xlmr_stack_tag": ("adapters/ner",),
}

# Folders that are refused, and a word of the sentence that says why.
REFUSED: dict[str, dict[str, str]] = {
    "bert_compacter_cls": {"adapters/sst": "Compacter"},
    "bert_compacter_unshared_rank2": {"adapters/nli": "Compacter"},
    "bert_dependency_parsing": {"adapters/ud": "dependency_parsing"},
    "bert_double_inv_tag": {"adapters/yo": "invertible"},
    "bert_fusion3_pfeiffer_cls": {"fusions/mnli,qqp,sst": "AdapterFusion"},
    "bert_ia3_cls": {"adapters/sst": "(IA)^3"},
    "bert_lora_cls": {"adapters/sst": "LoRA"},
    "bert_madx_inv_mlm": {"adapters/de": "invertible"},
    "bert_mixed_kinds_alone": {"adapters/co": "Compacter", "adapters/ia": "(IA)^3", "adapters/lo": "LoRA", "adapters/px": "prefix tuning"},
    "bert_multiple_choice": {"adapters/copa": "multiple_choice"},
    "bert_prefix_cls": {"adapters/sst": "prefix tuning"},
    "bert_qa": {"adapters/squad": "question_answering"},
    "bert_stack_lang_task_tag": {"setup": "setup", "setup/de": "invertible"},
    "gpt2_lora_static": {"adapters/poem": "gpt2"},
    "gpt2_pfeiffer_static": {"adapters/poem": "gpt2"},
    "llama_lora_all_static": {"adapters/c": "llama"},
    "llama_pfeiffer_static": {"adapters/chat": "llama"},
    "orig_compacter_t5": {"compacter_checkpoint": "Compacter"},
    "peft_bert_lora_seqcls": {"peft": "PEFT"},
    "peft_gpt2_lora_clm": {"peft": "PEFT"},
    "t5_compacter": {"adapters/sum": "t5"},
    "t5_lora_ia3": {"adapters/i": "t5", "adapters/l": "t5"},
    "t5_pfeiffer_static": {"adapters/sum": "t5"},
    "xlmr_stack_tag": {"adapters/sw": "invertible"},
}

# Runs of the served cases whose numbers are compared: the label of the run and the adapter that it is.
COMPARED: dict[str, dict[str, str]] = {
    "bert_batchsplit_cls": {"alone.nli.": "nli", "alone.qqp.": "qqp", "alone.sst.": "sst"},
    "bert_houlsby_cls": {"": "sst"},
    "bert_leave_out_rf_map": {"": "sst"},
    "bert_mixed_kinds_alone": {"alone.ho.": "ho", "alone.pa.": "pa", "alone.pf.": "pf"},
    "bert_multilabel_pooler": {"": "toxic"},
    "bert_parallel_cls": {"": "sst"},
    "bert_pfeiffer_cls": {"": "sst"},
    "bert_scaled_parallel_mh": {"": "sst"},
    "bert_static_cls": {"": "sst"},
    "distilbert_pfeiffer_cls": {"": "sst"},
    "roberta_pfeiffer_cls": {"": "sst"},
}

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True)
class Case:
    """A case's texts, one per row, and what the library answers."""

    texts: list[str]
    expected: Arrays

    @classmethod
    def of(cls, folder: Path) -> "Case":
        inputs = json.loads((folder / "inputs.json").read_text())
        rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        texts = [" ".join(f"t{token}" for token, real in zip(ids, mask, strict=True) if real) for ids, mask in rows]
        return cls(texts, load_file(folder / "expected.safetensors"))

    def value(self, key: str, row: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A row's expected output; of outputs per token, the real tokens."""
        value = self.expected[key][row]
        return value[: len(self.texts[row].split())] if value.ndim == 2 else value


def folders_of(case: Path) -> Iterator[tuple[str, Path]]:
    """The folders of files that a case holds, as safetensors where it has them."""
    root = case / "safetensors" if (case / "safetensors").is_dir() else case / "bin" if (case / "bin").is_dir() else case
    for path in sorted(case.rglob("*.json")):
        if path.is_relative_to(root) and path.parent != case and "backbone" not in path.parts:
            yield path.parent.relative_to(root).as_posix(), path.parent


def as_safetensors(folder: Path, target: Path) -> Path:
    """The folder, its pickles converted if it has any."""
    if list(folder.glob("*.bin")):
        bin_to_safetensors(folder, target)
        return target
    return folder


def case_folder(case: Path, name: str, tmp_path: Path) -> Path:
    return as_safetensors(dict(folders_of(case))[name], tmp_path / name.replace("/", "-"))


def test_the_lists_name_every_folder_of_every_case(golden: Path) -> None:
    found = {(case.name, name) for case in golden.iterdir() if case.is_dir() for name, _ in folders_of(case)}
    assert found == {(case, name) for table in (SERVED, REFUSED) for case, names in table.items() for name in names}
    assert set(COMPARED) | {"bert_fusion3_pfeiffer_cls", "bert_stack_lang_task_tag", "xlmr_stack_tag"} == set(SERVED)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_refused(golden: Path, case: str, tmp_path: Path) -> None:
    for name, word in REFUSED[case].items():
        folder = dict(folders_of(golden / case))[name]
        weights = as_safetensors(folder, tmp_path / "converted") if case != "orig_compacter_t5" else folder
        with pytest.raises(UnsupportedMethod) as caught:
            import_folder(folder_files(weights))
        assert word in str(caught.value)


@pytest.mark.parametrize("case", ["gpt2_lora_static", "llama_pfeiffer_static", "t5_compacter", "peft_gpt2_lora_clm"])
def test_backbones_of_other_families_are_refused(golden: Path, case: str) -> None:
    with pytest.raises(BackboneError, match="are not served"):
        load_backbone(str(golden / case / "backbone"))


@pytest.mark.parametrize("case", sorted(SERVED.keys() | {case for case in REFUSED if case.startswith("bert_")}))
def test_a_case(golden: Path, case: str, tmp_path: Path) -> None:
    """Each run by itself, then all runs, texts and outputs of the backbone in one shuffled request."""
    numbers = Case.of(golden / case)
    with serving(golden / case / "backbone", tmp_path / "store") as client:
        for folder in SERVED.get(case, ()):
            push(client, folder.rpartition("/")[2], case_folder(golden / case, folder, tmp_path))
        wanted = [("base", "hidden", "base.last_hidden_state")]
        for label, name in COMPARED.get(case, {}).items():
            wanted += [(name, "logits", f"{label}logits"), (name, "hidden", f"{label}last_hidden_state")]
        for model, output, key in wanted:
            for row, result in enumerate(predict(client, model=model, inputs=numbers.texts, output=output)):
                close(result, numbers.value(key, row))
        rows = [(model, output, key, row) for model, output, key in wanted for row in range(len(numbers.texts))]
        random.Random(case).shuffle(rows)
        requests = [{"model": model, "inputs": numbers.texts[row], "output": output} for model, output, _, row in rows]
        for (_, _, key, row), result in zip(rows, predict(client, requests=requests), strict=True):
            close(result, numbers.value(key, row))


def close(result: dict[str, Any], expected: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    np.testing.assert_allclose(array(result["output"]), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", sorted(SERVED))
def test_pickles_converted_are_the_same_package(golden: Path, case: str, tmp_path: Path) -> None:
    with serving(golden / case / "backbone", tmp_path / "store") as client:
        for folder in SERVED[case]:
            first = push(client, "first", case_folder(golden / case, folder, tmp_path))
            second = push(client, "second", as_safetensors(golden / case / "bin" / folder, tmp_path / f"again-{folder.replace('/', '-')}"))
            assert first["digest"] == second["digest"]


def test_a_folder_for_another_backbone_is_refused(golden: Path, tmp_path: Path) -> None:
    folder = case_folder(golden / "bert_leave_out_rf_map", "adapters/sst", tmp_path)
    backbone = load_backbone(str(golden / "bert_pfeiffer_cls" / "backbone"))
    with pytest.raises(InvalidPackage):
        import_folder(folder_files(folder), backbone.spec)


def test_the_families_served() -> None:
    assert set(FAMILIES) == {"bert", "roberta", "xlm-roberta", "electra", "distilbert"}

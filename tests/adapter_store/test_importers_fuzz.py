"""Folders of every kind with anything in their configs and tensors: they are read, or refused with one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import PIN, backbone_from
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from samples import check_sentence, copy_folder

from adapter_store.errors import StoreError
from adapter_store.importers import folder_files, import_folder, needed_members, setup_steps
from adapter_store.importers.pickles import bin_to_safetensors, pickles_of
from adapter_store.package import write_package

FOLDERS = {
    "pfeiffer": "bert_pfeiffer_cls/safetensors/adapters/sst",
    "invertible": "bert_madx_inv_mlm/safetensors/adapters/de",
    "compacter": "bert_compacter_cls/safetensors/adapters/sst",
    "prefix": "bert_prefix_cls/bin/adapters/sst",
    "lora": "gpt2_lora_static/safetensors/adapters/poem",
    "ia3": "bert_ia3_cls/safetensors/adapters/sst",
    "fusion": "bert_fusion3_pfeiffer_cls/safetensors/fusions/mnli,qqp,sst",
    "peft": "peft_bert_lora_seqcls/safetensors/peft",
    "original": "orig_compacter_t5/compacter_checkpoint",
}

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**40),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
    st.lists(st.lists(st.text(max_size=1), max_size=1), max_size=1),
    st.just({}),
    st.dictionaries(st.text(max_size=2), st.integers(-1, 3), max_size=1),
)


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def case(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A golden folder that may be changed, and its case."""
    source = golden / FOLDERS[request.param]
    target = tmp_path_factory.mktemp("fuzz") / "folder"
    if pickles_of(source):
        bin_to_safetensors(source, target)
    else:
        copy_folder(source, target)
    return target, golden / FOLDERS[request.param].split("/")[0]


def changed_json(value: Any, data: st.DataObject) -> Any:
    """The object, one key of it or of an object in it replaced by anything."""
    keys = sorted(value)
    if not keys:
        return value
    key = data.draw(st.sampled_from(keys))
    inner = value[key]
    if isinstance(inner, dict) and inner and data.draw(st.booleans()):
        return value | {key: changed_json(inner, data)}
    return value | {key: data.draw(anything)}


def changed_tensors(tensors: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """The tensors, one of them in another shape, under another name, or gone."""
    key = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors[key]
    kind = data.draw(st.sampled_from(["flat", "empty", "scalar", "half", "name", "gone", "twice"]))
    rest = {name: other for name, other in tensors.items() if name != key}
    match kind:
        case "flat":
            return rest | {key: value.reshape(-1)}
        case "empty":
            return rest | {key: value[:0]}
        case "scalar":
            return rest | {key: value.reshape(-1)[:1].reshape(())}
        case "half":
            return rest | {key: value[: max(1, value.shape[0] // 2)].copy()}
        case "name":
            return rest | {data.draw(st.sampled_from([key + "x", key.partition(".")[2] or "x", key.replace(".0.", ".7.", 1)])): value}
        case "twice":
            return tensors | {key.partition(".")[2] or "x": value + 1}
        case _:
            return rest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_folder_is_read_or_refused(case: tuple[Path, Path], data: st.DataObject) -> None:
    folder, origin = case
    before = {path: path.read_bytes() for path in folder.iterdir()}
    path = data.draw(st.sampled_from(sorted(path for path in before if path.suffix in (".json", ".safetensors"))))
    backbone = data.draw(st.sampled_from([None, backbone_from(origin)]))
    try:
        if path.suffix == ".json":
            path.write_text(json.dumps(changed_json(json.loads(before[path]), data)))
        else:
            save_file(changed_tensors(load_file(path), data), path)
        files = folder_files(folder)
        members = {name: f"member{i}@{PIN}" for i, name in enumerate(needed_members(files))}
        imported = import_folder(files, backbone, members=members)
        write_package(imported.manifest, imported.tensors)
    except StoreError as error:
        check_sentence(error)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_setup_is_read_or_refused(golden: Path, tmp_path: Path, data: st.DataObject) -> None:
    source = golden / "bert_stack_lang_task_tag" / "safetensors" / "setup"
    files = folder_files(source)
    setup = json.loads((source / "adapter_setup.json").read_text())
    (tmp_path / "adapter_setup.json").write_text(json.dumps(changed_json(setup, data)))
    try:
        for step in setup_steps(files | {"adapter_setup.json": tmp_path / "adapter_setup.json"}, None, "mix") or ():
            step.build({"mix.de": f"mix.de@{PIN}", "mix.ner": f"mix.ner@{PIN}"})
    except StoreError as error:
        check_sentence(error)

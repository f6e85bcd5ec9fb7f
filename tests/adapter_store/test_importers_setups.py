"""Fusions, whose members must be pinned, and setups, which become several packages one after the other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import PIN, backbone_from, load_folder, refused, rename_tensors
from safetensors.numpy import load_file, save_file
from samples import check_sentence, copy_folder, edit_json

from adapter_store.errors import InvalidName, InvalidPackage, StoreError, UnsupportedMethod
from adapter_store.importers import ImportedPackage, folder_files, import_folder, needed_members, setup_steps
from adapter_store.methods import Fusion
from adapter_store.package import read_package, write_package

MEMBERS = {name: f"acme/{name}@{PIN}" for name in ("mnli", "qqp", "sst")}


@pytest.fixture
def fusion(golden: Path, tmp_path: Path) -> Path:
    """A copy of a fusion of three adapters, with its head, to be changed."""
    return copy_folder(golden / "bert_fusion3_pfeiffer_cls" / "safetensors" / "fusions" / "mnli,qqp,sst", tmp_path / "fusion")


def test_a_fusion_pins_its_members_in_order(fusion: Path) -> None:
    assert needed_members(folder_files(fusion)) == ("mnli", "qqp", "sst")
    imported = load_folder(fusion, members=MEMBERS)
    assert imported.manifest.composition == f"fuse[self](acme/mnli@{PIN}, acme/qqp@{PIN}, acme/sst@{PIN})"
    assert imported.manifest.methods == {"fusion": Fusion()}
    assert imported.manifest.head is not None
    assert imported.manifest.name == ""
    assert imported.warnings == ()


def test_members_that_are_not_told_or_not_pinned(fusion: Path) -> None:
    refused(fusion, InvalidPackage, "'mnli', 'qqp', 'sst'", "sha256")
    refused(fusion, InvalidPackage, "'qqp' = name", members={"mnli": f"a@{PIN}", "sst": f"c@{PIN}"})
    refused(fusion, InvalidName, "pinned by digest", members=MEMBERS | {"sst": "acme/sst@3"})
    refused(fusion, InvalidName, members=MEMBERS | {"sst": "No Name"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("dynamic", Fusion()),
        ({"value_before_softmax": False}, Fusion(value_before_softmax=False)),
        ({"query_before_ln": True, "residual_before": True}, Fusion(query_before_ln=True, residual_before=True)),
    ],
)
def test_settings_of_fusions(fusion: Path, change: Any, expected: Fusion) -> None:
    config = json.loads((fusion / "adapter_fusion_config.json").read_text())["config"]
    edit_json(fusion / "adapter_fusion_config.json", config=change if isinstance(change, str) else config | change)
    assert load_folder(fusion, members=MEMBERS).manifest.methods == {"fusion": expected}


def test_a_temperature_is_what_the_library_computes_with_first(fusion: Path) -> None:
    edit_json(fusion / "adapter_fusion_config.json", config={"temperature": True})
    imported = load_folder(fusion, members=MEMBERS)
    assert imported.manifest.methods == {"fusion": Fusion(temperature=50.0)}
    assert "temperature" in imported.warnings[0]


def test_parts_that_a_fusion_has_and_has_not(fusion: Path) -> None:
    path = fusion / "model_adapter_fusion.safetensors"
    weights = load_file(path)
    save_file({key: value for key, value in weights.items() if ".value." not in key}, path)
    refused(fusion, InvalidPackage, "value.weight", members=MEMBERS)
    edit_json(fusion / "adapter_fusion_config.json", config="static")
    assert load_folder(fusion, members=MEMBERS).manifest.methods == {"fusion": Fusion(value=False)}
    dense = {key.replace("query", "dense"): np.zeros((1, 32) if "weight" in key else 1, "<f4") for key in weights if "query" in key}
    save_file(dense, path)
    edit_json(fusion / "adapter_fusion_config.json", config={"query": False, "key": False, "value": False})
    config = {"query": False, "key": False, "value": False}
    edit_json(fusion / "adapter_fusion_config.json", config=config)
    imported = load_folder(fusion, members=MEMBERS)
    assert imported.manifest.methods == {"fusion": Fusion(**config)}
    assert any("never uses" in line for line in imported.report)
    save_file(weights | {"bert.encoder.layer.0.output.adapter_fusion_layer.mnli,qqp,sst.other.weight": np.zeros(1, "<f4")}, path)
    refused(fusion, InvalidPackage, "other.weight", members=MEMBERS)


def test_fusions_with_longer_names_in_the_file_are_ignored(fusion: Path) -> None:
    path = fusion / "model_adapter_fusion.safetensors"
    weights = load_file(path)
    save_file(weights | {key.replace("mnli,qqp,sst", "mnli,qqp,sst,cola"): value for key, value in weights.items()}, path)
    assert any("other fusions" in line for line in load_folder(fusion, members=MEMBERS).report)


def test_old_fusions_name_their_members_by_their_own_name(fusion: Path) -> None:
    edit_json(fusion / "adapter_fusion_config.json", adapter_names=...)
    assert needed_members(folder_files(fusion)) == ("mnli", "qqp", "sst")
    edit_json(fusion / "adapter_fusion_config.json", adapter_names=["a", "b"], name="mine")
    assert needed_members(folder_files(fusion)) == ("a", "b")
    for names in ([], [1], "", ["a", "a"], {}):
        edit_json(fusion / "adapter_fusion_config.json", adapter_names=names, name=...)
        with pytest.raises(InvalidPackage):
            needed_members(folder_files(fusion))


def test_a_fusion_of_another_name(fusion: Path) -> None:
    rename_tensors(fusion / "model_adapter_fusion.safetensors", **{"mnli,qqp,sst": "mine"})
    refused(fusion, InvalidPackage, "mine", members=MEMBERS)
    edit_json(fusion / "adapter_fusion_config.json", name="mine")
    assert load_folder(fusion, members=MEMBERS).manifest.name == "mine"
    edit_json(fusion / "adapter_fusion_config.json", config="mystery")
    refused(fusion, UnsupportedMethod, "mystery", members=MEMBERS)


# Setups


@pytest.fixture
def setup(golden: Path, tmp_path: Path) -> Path:
    """A folder with three adapters, a fusion of them with its head, and a head; what it does with them is up to the test."""
    case = golden / "bert_fusion3_pfeiffer_cls" / "safetensors"
    folder = tmp_path / "setup"
    folder.mkdir()
    for name in ("mnli", "qqp", "sst"):
        copy_folder(case / "adapters" / name, folder / name)
    copy_folder(case / "fusions" / "mnli,qqp,sst", folder / "mnli,qqp,sst")
    return folder


def single(name: str) -> dict[str, Any]:
    return {"type": "single", "children": [name]}


def block(kind: str, *children: Any, **kwargs: Any) -> dict[str, Any]:
    inner = [single(child) if isinstance(child, str) else child for child in children]
    return {"type": kind, "children": inner} | ({"kwargs": kwargs} if kwargs else {})


def write_setup(folder: Path, root: Any, head: Any = None) -> Mapping[str, Path]:
    (folder / "adapter_setup.json").write_text(json.dumps({"adapter_setup": root, "head_setup": head, "version": "adapters.1.3.0"}))
    return folder_files(folder)


def build(files: Mapping[str, Path], name: str = "acme/mix") -> dict[str, ImportedPackage]:
    steps = setup_steps(files, None, name)
    assert steps is not None
    pins: dict[str, str] = {}
    built: dict[str, ImportedPackage] = {}
    for step in steps:
        built[step.name] = step.build(pins)
        package = read_package(write_package(built[step.name].manifest, built[step.name].tensors))
        pins[step.name] = f"{step.name}@{package.digest}"
    return built


def composition(built: dict[str, ImportedPackage], name: str = "acme/mix") -> str:
    """The composition of a package without the digests."""
    text = built[name].manifest.composition
    assert text is not None
    parts = text.split("@sha256:")
    return parts[0] + "".join(part[64:] for part in parts[1:])


FUSE = block("Fuse", "mnli", "qqp", "sst")


def test_a_fusion_in_a_stack(setup: Path) -> None:
    built = build(write_setup(setup, block("Stack", FUSE, "sst"), "mnli,qqp,sst"))
    assert list(built) == ["acme/mix.mnli", "acme/mix.qqp", "acme/mix.sst", "acme/mix.fusion", "acme/mix"]
    assert composition(built, "acme/mix.fusion") == "fuse[self](acme/mix.mnli, acme/mix.qqp, acme/mix.sst)"
    fused = "fuse[acme/mix.fusion](acme/mix.mnli, acme/mix.qqp, acme/mix.sst)"
    assert composition(built) == f"stack({fused}, acme/mix.sst)"
    assert built["acme/mix.fusion"].manifest.head is not None
    assert built["acme/mix"].manifest.name == "mix"
    assert built["acme/mix"].manifest.source["format"] == "adapterhub-setup"


def test_a_fusion_of_another_name_is_found_by_its_members(setup: Path) -> None:
    (setup / "mnli,qqp,sst").rename(setup / "best")
    rename_tensors(setup / "best" / "model_adapter_fusion.safetensors", **{"mnli,qqp,sst": "best"})
    edit_json(setup / "best" / "adapter_fusion_config.json", name="best")
    assert list(build(write_setup(setup, FUSE)))[-2:] == ["acme/mix.best", "acme/mix"]
    copy_folder(setup / "best", setup / "other")
    with pytest.raises(InvalidPackage, match="several folders"):
        setup_steps(folder_files(setup), None, "acme/mix")


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (block("Stack", "sst"), "stack(M.sst)"),
        (block("Average", "mnli", "qqp", weights=[0.75, 0.25]), "average(M.mnli:0.75, M.qqp:0.25)"),
        (block("Average", "mnli", "qqp"), "average(M.mnli:0.5, M.qqp:0.5)"),
        (block("Parallel", block("Stack", "mnli", "sst"), "qqp"), "parallel(stack(M.mnli, M.sst), M.qqp)"),
        (block("Stack", "mnli", block("Average", "qqp", "sst")), "stack(M.mnli, average(M.qqp:0.5, M.sst:0.5))"),
    ],
)
def test_blocks(setup: Path, root: Any, expected: str) -> None:
    assert composition(build(write_setup(setup, root))) == expected.replace("M", "acme/mix")


@pytest.mark.parametrize(
    ("root", "kind", "words"),
    [
        (block("BatchSplit", "mnli", "sst", batch_sizes=[1, 1]), UnsupportedMethod, "BatchSplit"),
        (block("Stack", block("Split", "mnli", "sst", splits=[1, 1])), UnsupportedMethod, "Split"),
        (block("MultiTask", "mnli", "sst"), UnsupportedMethod, "MultiTask"),
        (block("Novel", "mnli"), UnsupportedMethod, "Novel"),
        (block("Stack", "mnli", "cola"), InvalidPackage, "cola"),
        (block("Fuse", "mnli", "sst"), InvalidPackage, "no folder"),
        (block("Stack", "MNLI/x"), InvalidName, "MNLI/x"),
        (block("Stack", "a b"), InvalidName, "a b"),
        (block("Average", "mnli", "sst", weights=[1]), InvalidPackage, "weight"),
        (block("Average", "mnli", "sst", weights=[-1, 2]), InvalidPackage, "weight"),
        ({"type": ["Stack"], "children": [single("mnli")]}, UnsupportedMethod, "Stack"),
        (block("Stack"), InvalidPackage, "children"),
        (single("mnli") | {"children": [1]}, InvalidPackage, "one name"),
        (None, InvalidPackage, "children"),
    ],
)
def test_setups_that_are_refused(setup: Path, root: Any, kind: type[StoreError], words: str) -> None:
    files = write_setup(setup, root)
    with pytest.raises(kind) as caught:
        build(files)
    check_sentence(caught.value)
    assert words in str(caught.value)


def test_depth_is_bounded(setup: Path) -> None:
    root: Any = single("mnli")
    for _ in range(200):
        root = block("Stack", root)
    with pytest.raises(InvalidPackage, match="deep"):
        setup_steps(write_setup(setup, root), None, "mix")


def test_two_members_of_one_name(setup: Path) -> None:
    copy_folder(setup / "mnli", setup / "MNLI")
    with pytest.raises(InvalidName, match="one name"):
        setup_steps(write_setup(setup, block("Stack", "mnli", "MNLI")), None, "mix")


def test_errors_name_the_folder(setup: Path) -> None:
    (setup / "sst" / "adapter.safetensors").unlink()
    with pytest.raises(InvalidPackage, match="In the folder 'sst': "):
        build(write_setup(setup, block("Stack", "mnli", "sst")))


def give_head(setup: Path, folder: str) -> None:
    """The fusion's head, as another one."""
    (setup / folder).mkdir(exist_ok=True)
    for name in ("head_config.json", "model_head.safetensors"):
        (setup / folder / name).write_bytes((setup / "mnli,qqp,sst" / name).read_bytes())
    rename_tensors(setup / folder / "model_head.safetensors", **{"mnli,qqp,sst": folder})
    edit_json(setup / folder / "head_config.json", name=folder)


def test_the_head_is_the_setups_own_where_its_members_would_answer_with_another(setup: Path) -> None:
    give_head(setup, "extra")
    files = write_setup(setup, block("Stack", "mnli", "sst"), "extra")
    own = build(files)["acme/mix"]
    assert own.manifest.head is not None
    assert len(own.tensors) == 4
    give_head(setup, "sst")
    assert build(write_setup(setup, block("Stack", "mnli", "sst"), "sst"))["acme/mix"].manifest.head is None
    give_head(setup, "mnli")
    assert build(write_setup(setup, block("Stack", "mnli", "sst"), "mnli"))["acme/mix"].manifest.head is not None
    assert build(write_setup(setup, block("Parallel", "mnli", "sst"), ["mnli", "sst"]))["acme/mix"].manifest.head is None
    assert build(write_setup(setup, block("Parallel", "mnli", "sst"), block("Parallel", "mnli", "sst")))["acme/mix"].manifest.head is None
    with pytest.raises(UnsupportedMethod, match="extra"):
        build(write_setup(setup, block("Parallel", "mnli", "sst"), ["mnli", "extra"]))
    for head, words in (("gone", "gone"), (3, "head_setup"), (True, "setup's folder")):
        with pytest.raises(InvalidPackage, match=words):
            build(write_setup(setup, block("Stack", "mnli"), head))


def test_a_setup_is_no_single_package(setup: Path, golden: Path) -> None:
    files = write_setup(setup, FUSE)
    with pytest.raises(UnsupportedMethod, match="push its folder"):
        import_folder(files)
    assert needed_members(files) == ()
    assert setup_steps(folder_files(setup / "mnli"), None, "mix") is None


def test_the_backbone_is_checked_in_every_part(setup: Path, golden: Path) -> None:
    steps = setup_steps(write_setup(setup, FUSE), backbone_from(golden / "bert_fusion3_pfeiffer_cls", num_layers=4), "mix")
    assert steps is not None
    with pytest.raises(StoreError, match="4 layers"):
        steps[0].build({})

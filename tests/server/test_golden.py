"""Every golden case through the whole server: folders in over HTTP, tokens in, the real libraries' numbers out."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import Case, as_safetensors
from harness import predict, push, serving

from adapter_store.errors import InvalidPackage
from adapter_store.importers import folder_files, import_folder
from server.core import Readout, Route, Sequence, Use
from server.engine.backbone import load_backbone
from server.engine.engine import Engine
from server.engine.loader import package_of

TOLERANCE = 1e-4
SHARED = Path(os.environ.get("TURRET_SHARED", Path(__file__).parents[3] / "shared"))
CASES = sorted(path.parent.name for path in (SHARED / "golden").glob("*/meta.json"))
OURS = Path(__file__).parents[1] / "cases"  # written by the same libraries; see its README


def test_there_are_cases(golden: Path) -> None:
    """The parameters below are read when tests are collected: an absent folder must fail, not skip them."""
    assert sorted(path.parent.name for path in golden.glob("*/meta.json")) == CASES
    assert len(CASES) >= 34


@pytest.mark.parametrize("name", CASES)
def test_a_case(golden: Path, name: str, tmp_path: Path) -> None:
    check_case(golden / name, tmp_path)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in OURS.glob("*/meta.json")))
def test_a_case_of_ours(name: str, tmp_path: Path) -> None:
    check_case(OURS / name, tmp_path)


def check_case(folder: Path, tmp_path: Path) -> None:
    """Each output by itself, then all rows, runs and outputs in one shuffled request."""
    case = Case(folder)
    with serving(case.backbone, tmp_path / "store") as client:
        case.publish(client, tmp_path)
        questions = list(case.questions())
        assert {key for key in case.expected if not key.startswith(("base.logits", "greedy", "library_raw"))} <= set(_keys(case)), (
            "every output is compared"
        )
        for question in questions[:: max(1, len(questions) // 12)]:
            (result,) = predict(client, **question.request)
            assert question.error(result["output"]) <= TOLERANCE
        random.Random(folder.name).shuffle(questions)
        results = predict(client, requests=[question.request for question in questions])
        worst = max(question.error(result["output"]) for question, result in zip(questions, results, strict=True))
        assert worst <= TOLERANCE


def _keys(case: Case) -> list[str]:
    """The expected keys that `questions` covers."""
    runs = case.meta.get("runs") or {"": None}
    keys = [f"{label}{key}" for label in ("base.", *runs) for key in ("last_hidden_state", "encoder_last_hidden_state", "logits")]
    return [*keys, "start_logits", "end_logits", "arc_preds", "rel_preds", *(f"logits_{number}" for number in range(8))]


@pytest.mark.parametrize("name", CASES)
def test_pickles_converted_are_the_same_packages(golden: Path, name: str, tmp_path: Path) -> None:
    case = Case(golden / name)
    if not ((case.folder / "safetensors").is_dir() and (case.folder / "bin").is_dir()):
        return  # the library cannot write this kind as safetensors, or the case has one form
    with serving(case.backbone, tmp_path / "store") as client:
        case.publish(client, tmp_path / "first")
        digests = {entry["name"]: entry["digest"] for entry in client.get("/v1/adapters").json()["adapters"]}
        for folder in case.folders():
            if (folder / "adapter_fusion_config.json").exists():
                continue
            twin = case.folder / "bin" / folder.relative_to(case.root)
            ours = case.names[folder.name]
            assert push(client, ours, as_safetensors(twin, tmp_path / f"again-{ours}"))["digest"] == digests[ours]


@pytest.mark.parametrize("name", ["gpt2_pfeiffer_static", "t5_pfeiffer_static"])
def test_greedy_tokens(golden: Path, name: str, tmp_path: Path) -> None:
    """Five tokens for each row, alone and together, as the library's generate makes them without sampling."""
    case = Case(golden / name)
    backbone = load_backbone(str(case.backbone), device="cpu")
    imported = import_folder(folder_files(case.folders()[0]), backbone.spec)
    tensors = {
        key: torch.frombuffer(bytearray(data.data), dtype=torch.float32).reshape(data.shape) for key, data in imported.tensors.items()
    }
    engine = Engine(backbone)
    engine.load("adapter", package_of(imported.manifest, tensors))
    route = Route("adapter", None, Use("adapter"), imported.manifest.head, "adapter")
    rows = []
    for place, ids in enumerate(case.rows):
        start = np.array([0]) if backbone.spec.decoder_layers else None
        rows.append(Sequence(route, np.array(ids), np.zeros(len(ids), dtype=np.int64), Readout(), start))
        assert engine.greedy([rows[-1]], 5) == [case.expected["greedy_tokens"][place].tolist()]
    assert engine.greedy(rows, 5) == case.expected["greedy_tokens"].tolist()


def test_a_folder_for_another_backbone_is_refused(golden: Path) -> None:
    folder = golden / "bert_leave_out_rf_map" / "safetensors" / "adapters" / "sst"
    backbone = load_backbone(str(golden / "bert_pfeiffer_cls" / "backbone"))
    with pytest.raises(InvalidPackage):
        import_folder(folder_files(folder), backbone.spec)

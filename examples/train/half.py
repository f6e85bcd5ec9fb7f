"""Stores a trained fusion in float16, and measures it anew as it is stored.

    python examples/train/half.py TASK --out work/TASK

Three H x H matrices per site make a fusion many times larger than its members; in float16 it is half of that. Takes what fuse.py
wrote, rounds query, key and value (the head stays float32), and writes the folder, the predictions, the scores and the card again
from the rounded weights, so that what is served is what was measured. The trained weights stay in `adapter-float32/`. Nothing is
trained; running it again changes nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import card
import metrics
import torch
from adapters import Fuse
from data import Sources
from fuse import FUSIONS, Data, FusionRecipe, build_fusion
from loop import predict, values
from safetensors.torch import load_file, save_file
from train import write_answers

WEIGHTS, HEAD_WEIGHTS = "model_adapter_fusion.safetensors", "model_head.safetensors"


def trained(task: str, data: Data, recipe: FusionRecipe, folder: Path) -> torch.nn.Module:
    """The fusion with the weights of a folder that fuse.py wrote; every one of them, and no other learns."""
    model = build_fusion(data.backbone, task, data.corpus, recipe)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    given = load_file(folder / WEIGHTS) | load_file(folder / HEAD_WEIGHTS)
    if given.keys() != parameters.keys():
        raise SystemExit(f"{folder}: these tensors have no counterpart: {sorted(given.keys() ^ parameters.keys())[:4]}")
    for name, value in given.items():
        parameters[name].data.copy_(value)
    model.set_active_adapters(Fuse(*recipe.members))
    return model


def store_half(whole: Path, target: Path) -> tuple[int, int]:
    """Writes the folder again with the fusion in float16; returns the bytes of its weights before and after."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target)
    rounded = {name: value.half() for name, value in load_file(whole / WEIGHTS).items()}
    if not all(value.isfinite().all() for value in rounded.values()):
        raise SystemExit("A weight is too large for float16.")
    save_file(rounded, target / WEIGHTS)
    return (whole / WEIGHTS).stat().st_size, (target / WEIGHTS).stat().st_size


def differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Of two lists of answers: how many labels differ, and the largest difference of a score where they do not."""
    same = [(a["score"], b["score"]) for a, b in zip(before, after, strict=True) if a["label"] == b["label"]]
    return {"changed": len(before) - len(same), "largest": max(abs(a - b) for a, b in same)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=FUSIONS)
    parser.add_argument("--out", type=Path, required=True, help="the folder that fuse.py wrote")
    parser.add_argument("--downloads", type=Path, default=Path("work/downloads"), help="cache of package files")
    parser.add_argument("--shared", type=Path, help="as for fuse.py")
    options = parser.parse_args()
    logging.getLogger("adapters").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    scores = json.loads((options.out / "scores.json").read_text(encoding="utf-8"))
    recipe = FusionRecipe(**scores["recipe"] | {"members": tuple(scores["recipe"]["members"])})
    data = Data.load(options.task, Sources.locate(options.downloads, options.shared), recipe.train_tokens)
    whole, target = options.out / "adapter-float32", options.out / "adapter"
    if not whole.exists():
        target.rename(whole)
    bytes_before, bytes_after = store_half(whole, target)
    before, after = (predict(trained(options.task, data, recipe, folder), data.test, data.corpus) for folder in (whole, target))

    graded = [data.graded(data.test, values(data.corpus.kind, answers)) for answers in (before, after)]
    scores |= {
        "score": graded[1],
        "stored": {
            "dtype": "float16",
            "bytes": bytes_after,
            "float32": {"score": graded[0], "bytes": bytes_before},
            **differences(before, after),
        },
    }
    write_answers(options.out, data.corpus, data.test, after)
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    (options.out / "card.md").write_text(card.text(options.task, data.corpus, scores), encoding="utf-8")
    main_metric = metrics.MAIN[data.corpus.kind]
    print(f"{main_metric}: float32 {graded[0][main_metric]:.4f}, float16 {graded[1][main_metric]:.4f}")
    print(json.dumps(scores["stored"], indent=2))


if __name__ == "__main__":
    main()

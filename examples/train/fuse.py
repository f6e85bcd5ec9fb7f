"""Trains an AdapterFusion over published demo adapters for a task with little data, and what it must be compared with.

    python examples/train/fuse.py TASK --out work/TASK

Pfeiffer et al., AdapterFusion, EACL 2021 (arXiv 2005.00247), the library's `dynamic` fusion. Backbone and members stay
frozen, the members bit for bit as they lie in examples/adapters; query, key, value and a one-layer head learn. All
members must act at the same sites: where only some do, the library has no fusion and fails. The LAST member's config
decides what the members read and what is added to their sum. Fuse no parallel adapters: their input is added twice.

Writes what train.py writes; `adapter/` holds the fusion and the head, not the members. The comparisons learn from the
same few examples: a linear probe, and one adapter from scratch as `train.py TASK` makes it. So little data makes scores
uneven, hence both are trained with several seeds; the first is the one that is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapters
import card
import metrics
import probe
import torch
from adapters import Fuse
from data import TASKS, Corpus, Sources, backbone_folder
from encoding import Row, encode, load_tokenizer
from loop import BACKBONE, MAX_TOKENS, Training, add_head, fit, frozen_backbone, learnable, predict, values
from members import add_published
from train import RECIPES, build_model, options_of, overridden, write_answers

SINGLE = "one Pfeiffer adapter"


@dataclass(frozen=True)
class FusionRecipe(Training):
    members: tuple[str, ...]
    fusion: str = "dynamic"  # query, key and value
    seeds: int = 3  # trainings of fusion and single adapter each, from `seed` on


FUSIONS = {
    "question-type": FusionRecipe(("clinc150", "sms-spam", "wnut17-ner"), learning_rate=1e-3, head_learning_rate=3e-3, epochs=10),
}


@dataclass(frozen=True)
class Data:
    corpus: Corpus
    backbone: Path
    train: list[Row]
    validation: list[Row]
    test: list[Row]

    @classmethod
    def load(cls, task: str, sources: Sources, train_tokens: int) -> Data:
        corpus, backbone = TASKS[task](sources), backbone_folder(sources)
        tokenizer = load_tokenizer(backbone)
        train = encode(tokenizer, corpus.train, train_tokens)
        return cls(corpus, backbone, train, *(encode(tokenizer, part, MAX_TOKENS) for part in (corpus.validation, corpus.test)))

    def score(self, model: torch.nn.Module, rows: list[Row]) -> dict[str, float]:
        return self.graded(rows, values(self.corpus.kind, predict(model, rows, self.corpus)))

    def graded(self, rows: list[Row], guess: list[Any]) -> dict[str, float]:
        return metrics.score(self.corpus.kind, [row.gold for row in rows], guess)


def build_fusion(backbone: Path, task: str, corpus: Corpus, recipe: FusionRecipe) -> torch.nn.Module:
    model = frozen_backbone(backbone, recipe)
    for member in recipe.members:
        add_published(model, member)
    setup = Fuse(*recipe.members)
    model.add_adapter_fusion(setup, recipe.fusion)
    add_head(model, task, corpus)
    model.train_adapter_fusion(setup)
    model.active_head = task
    return model


def trained_fusion(task: str, data: Data, recipe: FusionRecipe) -> tuple[torch.nn.Module, list[float]]:
    """The fusion, and its validation score after each epoch."""
    model = build_fusion(data.backbone, task, data.corpus, recipe)
    return model, fit(model, data.train, data.validation, data.corpus, recipe)


def trained_single(task: str, data: Data, seed: int) -> torch.nn.Module:
    """The adapter from scratch for comparison, by the recipe of train.py."""
    recipe = dataclasses.replace(RECIPES[task], seed=seed)
    model = build_model(data.backbone, task, data.corpus, recipe)
    fit(model, data.train, data.validation, data.corpus, recipe)
    return model


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in learnable(model, of_head=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=FUSIONS)
    options = options_of(FusionRecipe, parser)
    task, recipe = options.task, overridden(FUSIONS[options.task], options)
    data = Data.load(task, Sources.locate(options.downloads, options.shared), recipe.train_tokens)
    main_metric = metrics.MAIN[data.corpus.kind]

    began = time.monotonic()
    model, history = trained_fusion(task, data, recipe)
    seconds = round(time.monotonic() - began)
    validation = data.score(model, data.validation)
    print("validation", validation, flush=True)
    if options.only_validation:
        return

    options.out.mkdir(parents=True, exist_ok=True)
    fused = Fuse(*recipe.members)
    model.save_adapter_fusion(str(options.out / "adapter"), fused, with_head=task, use_safetensors=True)
    answers = predict(model, data.test, data.corpus)
    write_answers(options.out, data.corpus, data.test, answers)
    score = data.graded(data.test, values(data.corpus.kind, answers))
    count = parameters(model)

    single = trained_single(task, data, recipe.seed)
    compared = {SINGLE: {"score": data.score(single, data.test), "parameters": parameters(single)}}
    by_seed = {"the fusion": [score[main_metric]], SINGLE: [compared[SINGLE]["score"][main_metric]]}
    for seed in range(recipe.seed + 1, recipe.seed + recipe.seeds):
        again, _ = trained_fusion(task, data, dataclasses.replace(recipe, seed=seed))
        by_seed["the fusion"].append(data.score(again, data.test)[main_metric])
        by_seed[SINGLE].append(data.score(trained_single(task, data, seed), data.test)[main_metric])

    train_gold, gold = ([row.gold for row in rows] for rows in (data.train, data.test))
    scores = {
        "task": task,
        "kind": data.corpus.kind,
        "labels": data.corpus.labels,
        "main": main_metric,
        "score": score,
        "majority": data.graded(data.test, metrics.majority(data.corpus.kind, train_gold, gold)),
        "probe": data.graded(data.test, probe.answers(model, data.train, data.validation, data.test, data.corpus)),
        "compared": compared,
        "by_seed": by_seed,
        "parameters": count,
        "validation": validation,
        "validation_by_epoch": history,
        "oos_shift": 0.0,
        "sizes": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "split": data.corpus.about.split,
        "recipe": dataclasses.asdict(recipe),
        "single_recipe": dataclasses.asdict(RECIPES[task]),
        "train_seconds": seconds,
        "backbone": BACKBONE,
        "library": f"adapters {adapters.__version__}, torch {torch.__version__}",
    }
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    (options.out / "card.md").write_text(card.text(task, data.corpus, scores), encoding="utf-8")
    print(json.dumps({key: scores[key] for key in ("score", "compared", "probe", "majority", "by_seed")}, indent=2))


if __name__ == "__main__":
    main()

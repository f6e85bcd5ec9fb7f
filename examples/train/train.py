"""Trains one demo adapter with the `adapters` library and writes it, its test predictions and its card.

    python examples/train/train.py TASK --out work/TASK

The backbone stays frozen; only the adapter and its one-layer head learn. Writes `adapter/` (an AdapterHub folder),
`test.jsonl`, `predictions.jsonl` (the library's own answers in eval mode, float32), `scores.json` and `card.md`.
Hyperparameters were chosen on the validation split; `--only-validation` is how.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapters
import card
import metrics
import numpy as np
import oos
import probe
import torch
from adapters import BnConfig, CompacterPlusPlusConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from data import TASKS, Corpus, Sources, backbone_folder
from encoding import Row, batches, collate, encode, load_tokenizer
from loop import BACKBONE, MAX_TOKENS, Training, add_head, fit, frozen_backbone, learnable, predict, values
from members import add_published

KINDS = {
    "seq_bn": SeqBnConfig,
    "double_seq_bn": DoubleSeqBnConfig,
    "par_bn": ParBnConfig,
    "compacter++": CompacterPlusPlusConfig,
}


@dataclass(frozen=True)
class Recipe(Training):
    kind: str
    reduction_factor: int
    phm_dim: int = 0  # of Compacter++: the n of its n x n rules; 0 elsewhere
    phm_rank: int = 0  # of Compacter++: the rank of its factors; 0 elsewhere

    def config(self) -> BnConfig:
        phm = {name: value for name in ("phm_dim", "phm_rank") if (value := getattr(self, name))}
        return KINDS[self.kind](reduction_factor=self.reduction_factor, **phm)


RECIPES = {
    "clinc150": Recipe("double_seq_bn", 24, learning_rate=1e-3, epochs=8, dropout=0.2),
    "clinc150-compacter": Recipe("compacter++", 16, phm_dim=4, phm_rank=1, learning_rate=3e-3, epochs=10),
    "sms-spam": Recipe("double_seq_bn", 24, learning_rate=1e-3, epochs=4, dropout=0.2),
    "prompt-injection": Recipe("seq_bn", 16, learning_rate=1e-3, epochs=4),
    "wnut17-ner": Recipe("double_seq_bn", 24, learning_rate=1e-3, epochs=6),
    "sentiment-intensity": Recipe("par_bn", 16, learning_rate=1e-3, epochs=8),
    "question-type": Recipe("seq_bn", 16, learning_rate=3e-3, epochs=20),  # what fuse.py compares its fusion with
}
RIVALS = {"clinc150-compacter": ("clinc150", "Houlsby (`clinc150`)")}  # a published adapter for the same task


def build_model(backbone: Path, task: str, corpus: Corpus, recipe: Recipe) -> torch.nn.Module:
    model = frozen_backbone(backbone, recipe)
    model.add_adapter(task, config=recipe.config())
    add_head(model, task, corpus)
    model.train_adapter(task)
    return model


@torch.inference_mode()
def set_threshold(model: torch.nn.Module, task: str, validation: list[Row], corpus: Corpus) -> float:
    """Moves the bias of the `oos` output, if there is one, to where the validation accuracy is best."""
    if oos.LABEL not in corpus.labels:
        return 0.0
    model.eval()
    logits = np.zeros((len(validation), len(corpus.labels)), dtype=np.float32)
    for indices in batches(validation, 32, None):
        ids, mask = collate([validation[index] for index in indices])
        logits[indices] = model(ids, attention_mask=mask).logits.numpy()
    shift = oos.best_shift(logits, [row.gold for row in validation], list(corpus.labels))
    model.heads[task][-1].bias[corpus.labels.index(oos.LABEL)] += shift
    return shift


def rival(backbone: Path, task: str, test: list[Row], corpus: Corpus) -> dict[str, Any]:
    """Per title {"score", "parameters"} of the published adapter for the same task, if there is one."""
    if task not in RIVALS:
        return {}
    name, title = RIVALS[task]
    model = frozen_backbone(backbone, RECIPES[name])
    parameters = add_published(model, name, with_head=True)
    model.set_active_adapters(name)
    model.active_head = name
    score = metrics.score(corpus.kind, [row.gold for row in test], values(corpus.kind, predict(model, test, corpus)))
    return {title: {"score": score, "parameters": parameters}}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_answers(out: Path, corpus: Corpus, test: list[Row], answers: list[dict[str, Any]]) -> None:
    """test.jsonl and predictions.jsonl, line by line the same examples."""
    words = [{"tokens": len(row.ids), "first": row.first} if row.first else {} for row in test]
    lines = [{"inputs": e.text, "gold": e.gold, **extra} for e, extra in zip(corpus.test, words, strict=True)]
    write_lines(out / "test.jsonl", lines)
    write_lines(out / "predictions.jsonl", answers)


def options_of(recipe: type[Training], parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds what every training script takes, with an option per field of the recipe, and parses the command line."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--downloads", type=Path, default=Path("work/downloads"), help="cache of package files")
    parser.add_argument("--shared", type=Path, help="folder with data/clinc150 and data/wnut17 (or $TURRET_SHARED)")
    parser.add_argument("--only-validation", action="store_true", help="train and stop: for choosing hyperparameters")
    for field in dataclasses.fields(recipe):
        many = {"nargs": "+"} if field.type.startswith("tuple") else {}
        parser.add_argument("--" + field.name.replace("_", "-"), type={"int": int, "float": float}.get(field.type, str), **many)
    options = parser.parse_args()
    logging.getLogger("adapters").setLevel(logging.ERROR)  # it would warn at each pass without an adapter
    torch.set_num_threads(1)
    return options


def overridden(recipe: Training, options: argparse.Namespace) -> Any:
    """The recipe with what the command line gave."""
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(recipe)}
    return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    options = options_of(Recipe, parser)
    recipe = overridden(RECIPES[options.task], options)

    sources = Sources.locate(options.downloads, options.shared)
    corpus, backbone = TASKS[options.task](sources), backbone_folder(sources)
    tokenizer = load_tokenizer(backbone)
    train = encode(tokenizer, corpus.train, recipe.train_tokens)
    validation, test = (encode(tokenizer, part, MAX_TOKENS) for part in (corpus.validation, corpus.test))
    model = build_model(backbone, options.task, corpus, recipe)
    began = time.monotonic()
    history = fit(model, train, validation, corpus, recipe)
    seconds = round(time.monotonic() - began)
    shift = set_threshold(model, options.task, validation, corpus)
    guess = values(corpus.kind, predict(model, validation, corpus))
    final = metrics.score(corpus.kind, [row.gold for row in validation], guess)
    print("validation, with threshold", shift, final, flush=True)
    if options.only_validation:
        return

    options.out.mkdir(parents=True, exist_ok=True)
    model.save_adapter(str(options.out / "adapter"), options.task, with_head=True, use_safetensors=True)
    gold, answers = [row.gold for row in test], predict(model, test, corpus)
    write_answers(options.out, corpus, test, answers)
    parameters = sum(parameter.numel() for parameter in learnable(model, of_head=False))
    train_gold = [row.gold for row in train]
    scores = {
        "task": options.task,
        "kind": corpus.kind,
        "labels": corpus.labels,
        "main": metrics.MAIN[corpus.kind],
        "score": metrics.score(corpus.kind, gold, values(corpus.kind, answers)),
        "majority": metrics.score(corpus.kind, gold, metrics.majority(corpus.kind, train_gold, gold)),
        "probe": metrics.score(corpus.kind, gold, probe.answers(model, train, validation, test, corpus)),
        "compared": rival(backbone, options.task, test, corpus),
        "parameters": parameters,
        "validation": final,
        "validation_by_epoch": history,
        "oos_shift": shift,
        "sizes": {"train": len(train), "validation": len(validation), "test": len(test)},
        "split": corpus.about.split,
        "recipe": dataclasses.asdict(recipe),
        "train_seconds": seconds,
        "backbone": BACKBONE,
        "library": f"adapters {adapters.__version__}, torch {torch.__version__}",
    }
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    (options.out / "card.md").write_text(card.text(options.task, corpus, scores), encoding="utf-8")
    print(json.dumps({key: scores[key] for key in ("score", "majority", "probe")}, indent=2))


if __name__ == "__main__":
    main()

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
import random
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
from adapters import AutoAdapterModel, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from data import TASKS, Corpus, Sources, backbone_folder
from encoding import Row, batches, collate, encode, load_tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 512
IGNORED = -100  # the target of positions that carry no tag
KINDS = {"seq_bn": SeqBnConfig, "double_seq_bn": DoubleSeqBnConfig, "par_bn": ParBnConfig}


@dataclass(frozen=True)
class Recipe:
    kind: str
    reduction_factor: int
    learning_rate: float
    epochs: int
    batch_size: int = 32
    dropout: float = 0.1
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    train_tokens: int = 128  # longer training texts are cut here
    seed: int = 1


RECIPES = {
    "clinc150": Recipe("double_seq_bn", 24, 1e-3, 8, dropout=0.2),
    "sms-spam": Recipe("double_seq_bn", 24, 1e-3, 4, dropout=0.2),
    "prompt-injection": Recipe("seq_bn", 16, 1e-3, 4),
    "wnut17-ner": Recipe("double_seq_bn", 24, 1e-3, 6),
    "sentiment-intensity": Recipe("par_bn", 16, 1e-3, 8),
}


def build_model(backbone: Path, task: str, corpus: Corpus, recipe: Recipe) -> torch.nn.Module:
    model = AutoAdapterModel.from_pretrained(
        backbone, hidden_dropout_prob=recipe.dropout, attention_probs_dropout_prob=0.0, attn_implementation="sdpa"
    )
    model.config._name_or_path = model.base_model.config._name_or_path = BACKBONE
    model.add_adapter(task, config=KINDS[recipe.kind](reduction_factor=recipe.reduction_factor))
    add_head = model.add_tagging_head if corpus.kind == "tagging" else model.add_classification_head
    add_head(task, num_labels=len(corpus.labels), layers=1, id2label=dict(enumerate(corpus.labels)))
    model.train_adapter(task)
    return model


def loss_of(logits: Tensor, rows: list[Row], corpus: Corpus) -> Tensor:
    if corpus.kind == "regression":
        return functional.mse_loss(logits[:, 0], torch.tensor([row.gold for row in rows]))
    index = {label: position for position, label in enumerate(corpus.labels)}
    if corpus.kind == "classification":
        return functional.cross_entropy(logits, torch.tensor([index[row.gold] for row in rows]))
    target = torch.full(logits.shape[:2], IGNORED)
    for at, row in enumerate(rows):
        for position, tag in zip(row.first, row.gold, strict=True):
            if 0 <= position < target.shape[1]:
                target[at, position] = index[tag]
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def fit(model: torch.nn.Module, train: list[Row], validation: list[Row], corpus: Corpus, recipe: Recipe) -> list[float]:
    """Trains in place; returns the validation score after each epoch."""
    rng = random.Random(recipe.seed)
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnable, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(train) // recipe.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(recipe.warmup * steps), steps)
    history = []
    for epoch in range(recipe.epochs):
        began, total = time.monotonic(), 0.0
        model.train()
        for indices in batches(train, recipe.batch_size, rng):
            rows = [train[index] for index in indices]
            ids, mask = collate(rows)
            loss = loss_of(model(ids, attention_mask=mask).logits, rows, corpus)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learnable, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        guess = values(corpus.kind, predict(model, validation, corpus))
        scores = metrics.score(corpus.kind, [row.gold for row in validation], guess)
        history.append(scores[metrics.MAIN[corpus.kind]])
        seconds = time.monotonic() - began
        print(f"epoch {epoch + 1} loss {total / len(train):.4f} validation {scores} {seconds:.0f} s", flush=True)
    return history


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


@torch.inference_mode()
def predict(model: torch.nn.Module, rows: list[Row], corpus: Corpus) -> list[dict[str, Any]]:
    """Per row {"label", "score"}: the tags of the words for tagging, the raw value as score for a regression."""
    model.eval()
    answers: list[dict[str, Any]] = [{} for _ in rows]
    for indices in batches(rows, 32, None):
        ids, mask = collate([rows[index] for index in indices])
        for index, logits in zip(indices, model(ids, attention_mask=mask).logits, strict=True):
            if corpus.kind == "regression":
                answers[index] = {"label": corpus.labels[0], "score": logits[0].item()}
            elif corpus.kind == "classification":
                best = int(logits.argmax())
                answers[index] = {"label": corpus.labels[best], "score": logits.softmax(-1)[best].item()}
            else:
                best_tags = [corpus.labels[best] for best in logits.argmax(-1).tolist()]
                answers[index] = {"tags": [best_tags[at] if at >= 0 else "O" for at in rows[index].first]}
    return answers


def values(kind: str, answers: list[dict[str, Any]]) -> list[Any]:
    return [answer[{"classification": "label", "regression": "score", "tagging": "tags"}[kind]] for answer in answers]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--downloads", type=Path, default=Path("work/downloads"), help="cache of package files")
    parser.add_argument("--shared", type=Path, help="folder with data/clinc150 and data/wnut17 (or $TURRET_SHARED)")
    parser.add_argument("--only-validation", action="store_true", help="train and stop: for choosing hyperparameters")
    for field in dataclasses.fields(Recipe):
        parser.add_argument("--" + field.name.replace("_", "-"), type={"int": int, "float": float}.get(field.type, str))
    options = parser.parse_args()
    chosen = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe)}
    recipe = dataclasses.replace(RECIPES[options.task], **{k: v for k, v in chosen.items() if v is not None})
    logging.getLogger("adapters").setLevel(logging.ERROR)  # it would warn at each pass without an adapter
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)

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
    words = [{"tokens": len(row.ids), "first": row.first} if row.first else {} for row in test]
    lines = [{"inputs": e.text, "gold": e.gold, **extra} for e, extra in zip(corpus.test, words, strict=True)]
    write_lines(options.out / "test.jsonl", lines)
    write_lines(options.out / "predictions.jsonl", answers)
    train_gold = [row.gold for row in train]
    scores = {
        "task": options.task,
        "kind": corpus.kind,
        "labels": corpus.labels,
        "main": metrics.MAIN[corpus.kind],
        "score": metrics.score(corpus.kind, gold, values(corpus.kind, answers)),
        "majority": metrics.score(corpus.kind, gold, metrics.majority(corpus.kind, train_gold, gold)),
        "probe": metrics.score(corpus.kind, gold, probe.answers(model, train, validation, test, corpus)),
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

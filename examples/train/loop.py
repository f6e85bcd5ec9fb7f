"""The training loop: a frozen backbone, whatever else of the model can learn, a head for one corpus. Knows no recipes."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metrics
import torch
from adapters import AutoAdapterModel
from data import Corpus
from encoding import Row, batches, collate
from torch import Tensor
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 512
IGNORED = -100  # the target of positions that carry no tag


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the loop must be told; a recipe adds what is trained."""

    learning_rate: float
    head_learning_rate: float = 0.0  # 0: as the rest
    epochs: int
    batch_size: int = 32
    dropout: float = 0.1
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    train_tokens: int = 128  # longer training texts are cut here
    seed: int = 1


def frozen_backbone(backbone: Path, training: Training) -> torch.nn.Module:
    """The backbone without adapter or head; also seeds torch, so that what is added next begins the same each time."""
    torch.manual_seed(training.seed)
    model = AutoAdapterModel.from_pretrained(
        backbone, hidden_dropout_prob=training.dropout, attention_probs_dropout_prob=0.0, attn_implementation="sdpa"
    )
    model.config._name_or_path = model.base_model.config._name_or_path = BACKBONE
    return model


def add_head(model: torch.nn.Module, name: str, corpus: Corpus) -> None:
    add = model.add_tagging_head if corpus.kind == "tagging" else model.add_classification_head
    add(name, num_labels=len(corpus.labels), layers=1, id2label=dict(enumerate(corpus.labels)))


def learnable(model: torch.nn.Module, of_head: bool) -> list[torch.nn.Parameter]:
    """The parameters that learn, either those of the head or all others."""
    return [p for name, p in model.named_parameters() if p.requires_grad and name.startswith("heads.") == of_head]


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


def fit(model: torch.nn.Module, train: list[Row], validation: list[Row], corpus: Corpus, training: Training) -> list[float]:
    """Trains in place; returns the validation score after each epoch."""
    rng = random.Random(training.seed)
    head, rest = learnable(model, of_head=True), learnable(model, of_head=False)
    groups = [{"params": rest}, {"params": head, "lr": training.head_learning_rate or training.learning_rate}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    steps = training.epochs * -(-len(train) // training.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(training.warmup * steps), steps)
    history = []
    for epoch in range(training.epochs):
        began, total = time.monotonic(), 0.0
        model.train()
        for indices in batches(train, training.batch_size, rng):
            rows = [train[index] for index in indices]
            ids, mask = collate(rows)
            loss = loss_of(model(ids, attention_mask=mask).logits, rows, corpus)
            total += loss.item() * len(rows)
            penalty = model.base_model.get_fusion_regularization_loss()  # None where no fusion learns
            (loss if penalty is None else loss + penalty).backward()
            torch.nn.utils.clip_grad_norm_(rest + head, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        guess = values(corpus.kind, predict(model, validation, corpus))
        scores = metrics.score(corpus.kind, [row.gold for row in validation], guess)
        history.append(scores[metrics.MAIN[corpus.kind]])
        seconds = time.monotonic() - began
        print(f"epoch {epoch + 1} loss {total / len(train):.4f} validation {scores} {seconds:.0f} s", flush=True)
    return history


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

"""The model card of a trained demo adapter, as Markdown. Says what was measured and nothing that was not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data import Corpus

NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "in_scope_accuracy": "accuracy on in-scope texts",
    "oos_recall": "recall of `oos`",
    "entity_f1": "entity F1 (exact span and type)",
    "precision": "precision",
    "recall": "recall",
    "token_accuracy": "word accuracy",
    "pearson": "Pearson r",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
}
BASELINES = {
    "classification": "the commonest class of the test split",
    "regression": "the mean of the training targets",
    "tagging": "no entity anywhere",
}


def text(task: str, corpus: Corpus, scores: dict[str, Any]) -> str:
    about, recipe, sizes = corpus.about, scores["recipe"], scores["sizes"]
    rows = "\n".join(
        f"| {NAMES[name]} | **{value:.4f}** | {scores['majority'][name]:.4f} | {scores['probe'][name]:.4f} |"
        for name, value in scores["score"].items()
    )
    where = "the first sub-word of each word" if corpus.kind == "tagging" else "the mean-pooled text"
    return f"""---
license: {about.licence_id}
---
# {task}

{about.does} A demo adapter for `{scores["backbone"]}` (English, uncased, 384 wide, 6 layers), not a product.

- **Data**: {about.source}
- **Licence of the data**: {about.licence}
- **Split**: {about.split} {sizes["train"]:,} train / {sizes["validation"]:,} validation / {sizes["test"]:,} test.

## Scores on the whole test split

| | adapter | majority | linear probe |
|---|---|---|---|
{rows}

Majority is {BASELINES[corpus.kind]}. The probe is a {"ridge" if corpus.kind == "regression" else "logistic"} regression
on the frozen backbone's last hidden states ({where}).
{notes(scores)}
## Training

Kind `{recipe["kind"]}`, reduction factor {recipe["reduction_factor"]}, one linear head
({len(corpus.labels)} output{"s" if len(corpus.labels) > 1 else ""}); backbone frozen.
AdamW, learning rate {recipe["learning_rate"]:g} with {recipe["warmup"]:.0%} warm-up and linear decay,
weight decay {recipe["weight_decay"]:g}, {recipe["epochs"]} epochs of batches of {recipe["batch_size"]},
dropout {recipe["dropout"]:g}, texts cut at {recipe["train_tokens"]} tokens, seed {recipe["seed"]}, float32.
Library: {scores["library"]}. Of the recipes tried, the one with the best validation score was kept.
{scores["train_seconds"]} s on one CPU core.
"""


def notes(scores: dict[str, Any]) -> str:
    """What the table does not say by itself."""
    said = []
    if "accuracy" in scores["score"]:
        count = scores["sizes"]["test"]
        adapter, probe = (round((1 - scores[who]["accuracy"]) * count) for who in ("score", "probe"))
        said.append(f"Of {count:,} test examples the adapter gets {adapter:,} wrong, the probe {probe:,}.")
    if scores["oos_shift"]:
        said.append(
            f"The bias of `oos` was moved by {scores['oos_shift']:g} after training, to where the validation accuracy "
            "is best; the probe got the same treatment."
        )
    return "\n".join(said) + "\n" if said else ""

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
DEFAULT = "Of the recipes tried, the one with the best validation score was kept."
CHOSEN = {  # how the recipe of (task, kind) was chosen, where there is more to say
    ("clinc150-compacter", "compacter++"): "Chosen on the validation split, and little was tried: learning rate 0.005 with\n"
    "dropout 0.2 was stopped after 3 of 8 epochs, at an accuracy of 0.9258 (here 0.9313 after as many).",
    ("question-type", "dynamic"): "Of the recipes tried, the one with the best validation accuracy was kept: 0.8810, against 0.8773\n"
    "(learning rate 0.0002, head 0.001, 10 epochs) and 0.8755 (0.0005, head 0.003, 15 epochs). Of the single adapter\n"
    "three were tried: 0.8699 (the one above), 0.8699 with a lower macro-F1 (0.001, 10 epochs), 0.8662 (0.003, 10 epochs).",
}
BASELINES = {
    "classification": "the commonest class of the test split",
    "regression": "the mean of the training targets",
    "tagging": "no entity anywhere",
}


def text(task: str, corpus: Corpus, scores: dict[str, Any]) -> str:
    about, recipe, sizes = corpus.about, scores["recipe"], scores["sizes"]
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

{table(scores)}

Majority is {BASELINES[corpus.kind]}. The probe is a {"ridge" if corpus.kind == "regression" else "logistic"} regression
on the frozen backbone's last hidden states ({where}).
{notes(scores)}
## Training

{fused(scores) if "members" in recipe else alone(scores)}
{schedule(recipe)}
Library: {scores["library"]}.
{CHOSEN.get((task, recipe.get("kind") or recipe["fusion"]), DEFAULT)}
{scores["train_seconds"]} s on one CPU core.
"""


def table(scores: dict[str, Any]) -> str:
    """A row per metric and one for the size; a column for the adapter, for what it is compared with and per baseline."""
    compared = scores["compared"]
    names = ["fusion" if "members" in scores["recipe"] else "adapter", *compared, "majority", "linear probe"]
    rows = [["", *names], ["---"] * (len(names) + 1)]
    for metric, value in scores["score"].items():
        others = [*(one["score"] for one in compared.values()), scores["majority"], scores["probe"]]
        rows.append([NAMES[metric], f"**{value:.4f}**", *(f"{other[metric]:.4f}" for other in others)])
    sizes = [scores["parameters"], *(one["parameters"] for one in compared.values())]
    rows.append(["parameters trained, head not counted", *(f"{size:,}" for size in sizes), "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def notes(scores: dict[str, Any]) -> str:
    """What the table does not say by itself."""
    said = []
    if "accuracy" in scores["score"]:
        count = scores["sizes"]["test"]
        whose = {"the fusion" if "members" in scores["recipe"] else "the adapter": scores["score"]}
        whose |= {name: one["score"] for name, one in scores["compared"].items()} | {"the probe": scores["probe"]}
        wrong = [f"{who} {round((1 - score['accuracy']) * count):,}" for who, score in whose.items()]
        said.append(f"Wrong of {count:,} test examples: {', '.join(wrong)}.")
    if scores["compared"] and "by_seed" not in scores:
        said.append(f"{' and '.join(scores['compared'])}: the published demo adapter, measured here on the same texts.")
    if scores["oos_shift"]:
        said.append(
            f"The bias of `oos` was moved by {scores['oos_shift']:g} after training, to where the validation accuracy "
            "is best; the probe got the same treatment."
        )
        for who, one in scores["compared"].items():
            oos, rest = (scores["score"][key] - one["score"][key] for key in ("oos_recall", "in_scope_accuracy"))
            said.append(f"Against {who}: {oos:+.4f} in the recall of `oos`, {rest:+.4f} on in-scope texts.")
    if "stored" in scores:
        stored = scores["stored"]
        whole, changed = stored["float32"], stored["changed"]
        trained = ", ".join(f"{NAMES[metric]} {value:.4f}" for metric, value in whole["score"].items())
        said.append(
            f"Query, key and value are stored in {stored['dtype']}: {stored['bytes'] / 1e6:.1f} MB instead of {whole['bytes'] / 1e6:.1f}.\n"
            f"The scores of the fusion above are those of the rounded weights. As trained, in float32: {trained};\n"
            f"{changed or 'none'} of the {scores['sizes']['test']:,} labels changed, scores by at most {stored['largest']:.1e}."
        )
    if "by_seed" in scores:
        first, count = scores["recipe"]["seed"], scores["recipe"]["seeds"]
        said.append(
            f"{count} trainings of each (seeds {first} to {first + count - 1}; this is {first}), {NAMES[scores['main']]}: "
            + "; ".join(f"{who} {spread(found)}" for who, found in scores["by_seed"].items())
            + "."
        )
        fusion, single = scores["by_seed"].values()
        if max(min(fusion), min(single)) <= min(max(fusion), max(single)):
            said.append("The ranges overlap: on this task a single adapter does as well, and it is far smaller.")
    return "\n".join(said) + "\n" if said else ""


def spread(found: list[float]) -> str:
    return f"{sum(found) / len(found):.4f} on average ({min(found):.4f} to {max(found):.4f})"


def alone(scores: dict[str, Any]) -> str:
    """What was trained: one adapter."""
    recipe, outputs = scores["recipe"], len(scores["labels"])
    phm = f", `phm_dim` {recipe['phm_dim']}, `phm_rank` {recipe['phm_rank']}, one rule shared by all layers" if recipe["phm_dim"] else ""
    return f"""Kind `{recipe["kind"]}`, reduction factor {recipe["reduction_factor"]}{phm}, one linear head
({outputs} output{"s" if outputs > 1 else ""}); backbone frozen."""


def fused(scores: dict[str, Any]) -> str:
    """What was trained: a fusion of finished adapters."""
    recipe, single = scores["recipe"], scores["single_recipe"]
    members = ", ".join(f"`{member}`" for member in recipe["members"])
    return f"""AdapterFusion (`{recipe["fusion"]}`) of the published demo adapters {members}, with one linear head
({len(scores["labels"])} outputs). Backbone and members frozen: query, key, value and head learn. The members are all of one kind
and act at the same sites, so it is their common config that decides what is read and added (the library takes the
last one's, `{recipe["members"][-1]}`). What they were trained on has licences of its own: see their cards.
The adapter for comparison is a `{single["kind"]}` with reduction factor {single["reduction_factor"]} on the same examples, learning rate
{single["learning_rate"]:g}, {single["epochs"]} epochs, else as below; its recipe too was chosen on the validation split."""


def schedule(recipe: dict[str, Any]) -> str:
    head = f" ({recipe['head_learning_rate']:g} for the head)" if recipe["head_learning_rate"] else ""
    return f"""AdamW, learning rate {recipe["learning_rate"]:g}{head} with {recipe["warmup"]:.0%} warm-up and linear decay,
weight decay {recipe["weight_decay"]:g}, {recipe["epochs"]} epochs of batches of {recipe["batch_size"]},
dropout {recipe["dropout"]:g}, texts cut at {recipe["train_tokens"]} tokens, seed {recipe["seed"]}, float32."""

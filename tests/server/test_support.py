"""docs/support.md: what is served for which family, tried for each cell. `python tests/server/test_support.py` writes the tables anew."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from backbones import CONFIGS, save_backbone
from tiny import package

from adapter_store.errors import StoreError
from adapter_store.families import FAMILIES
from adapter_store.manifest import LM_HEADS, Head, Manifest
from adapter_store.methods import IA3, Backbone, Bottleneck, Fusion, Invertible, LoRA, Method, Norms, Prefix, Prompt
from adapter_store.store import Store
from server.core import Readout, Route, Sequence, pack
from server.engine import backbone as backbones
from server.engine.engine import Engine
from server.publishing import Publisher, Upload
from server.router import Router

torch.set_num_threads(1)

DOCUMENT = Path(__file__).parents[2] / "docs" / "support.md"
SERVED, REFUSED = "yes", "no"
Kind = Callable[[Backbone], dict[str, Method]]


def _linears(spec: Backbone, *wanted: str) -> tuple[str, ...]:
    """Addresses of some of the linears that a family has, in every layer that has them."""
    names = [name for name in wanted if name in spec.linears]
    layers = [(layer, name) for layer in range(spec.num_layers) for name in names]
    return tuple(f"layers.{layer}.{name}" for layer, name in layers if not name.startswith("cross_") or layer >= spec.encoder_layers)


KINDS: dict[str, Kind] = {
    "Pfeiffer": lambda spec: {"bottleneck": Bottleneck(reduction_factor=4)},
    "Houlsby": lambda spec: {"bottleneck": Bottleneck(reduction_factor=4, mh_adapter=True, original_ln_before=False)},
    "parallel": lambda spec: {"bottleneck": Bottleneck(reduction_factor=4, is_parallel=True, scaling="learned")},
    "at the cross-attention": lambda spec: {"bottleneck": Bottleneck(reduction_factor=4, cross_adapter=True, output_adapter=False)},
    "Compacter": lambda spec: {"bottleneck": Bottleneck(reduction_factor=3, phm_layer=True, mh_adapter=True, original_ln_before=False)},
    "AdapterFusion": lambda spec: {"fusion": Fusion()},
    "invertible (MAD-X)": lambda spec: {"invertible": Invertible()},
    "LoRA": lambda spec: {
        "lora": LoRA(modules=_linears(spec, "q", "k", "v", "qkv", "o", "cross_q", "cross_v", "up", "gate", "down"), rank=2, scaling=1.0)
    },
    "(IA)^3": lambda spec: {"ia3": IA3(outputs=_linears(spec, "k", "v", "qkv", "cross_k", "up"), inputs=_linears(spec, "down"))},
    "prefix": lambda spec: {"prefix": Prefix(prefix_length=3)},
    "prefix, positions shifted (PEFT)": lambda spec: {"prefix": Prefix(prefix_length=3, shift_positions=True)},
    "prompt behind the embeddings": lambda spec: {"prompt": Prompt(prompt_length=3, place="embeddings")},
    "prompt among the words (PEFT)": lambda spec: {"prompt": Prompt(prompt_length=3, place="words")},
    "tuned layer norms": lambda spec: {"norms": Norms(modules=("layers.0.output",))},
}

_LABELS = ("a", "b", "c")
HEADS: dict[str, Head] = {
    "classification": Head(type="classification", layers=2, activation="tanh", labels=_LABELS),
    "classification, pooled": Head(type="classification", use_pooler=True, labels=_LABELS),
    "multi-label": Head(type="multilabel_classification", labels=_LABELS),
    "regression": Head(type="regression", labels=("value",)),
    "multiple choice": Head(type="multiple_choice"),
    "tagging": Head(type="tagging", labels=_LABELS),
    "tagging, pooled": Head(type="tagging", use_pooler=True, labels=_LABELS),
    "question answering": Head(type="question_answering"),
    "dependency parsing": Head(type="dependency_parsing", labels=_LABELS),
    "embedding": Head(type="embedding", layers=0, pooling="mean", normalize=True),
    "masked LM": Head(type="masked_lm", layers=2, activation="gelu", norm=True, vocab_size=60),
    "causal LM": Head(type="causal_lm", vocab_size=60),
    "causal LM, the backbone's own": Head(type="causal_lm", layers=0),
    "seq2seq LM": Head(type="seq2seq_lm", vocab_size=60, bias=False),
    "seq2seq LM, the backbone's own": Head(type="seq2seq_lm", layers=0),
}

# Model strings over the packages that `tries_composition` publishes.
COMPOSITIONS = {
    "stack of two adapters": "stack(one, two)",
    "stack of a language (MAD-X) and a task": "stack(language, one)",
    "stack of LoRA and an adapter": "stack(lora, one)",
    "stack of a prefix and an adapter": "stack(prefix, one)",
    "fusion of two adapters": "fuse[fusion](one, two)",
    "fusion of stacks": "fuse[fusion](stack(two, one), two)",
    "fusion on top of a language": "stack(language, fuse[fusion](one, two))",
    "average of adapters": "average(one:0.25, two:0.75)",
    "average of LoRA": "average(lora:0.25, lora2:0.75)",
    "average of stacks": "average(stack(one, two), stack(two, one))",
    "average of kinds that differ": "average(one, lora)",
}


class Served:
    """A backbone with a store in memory: publishes as the server does, and runs what it has published."""

    def __init__(self, family: str, folder: Path) -> None:
        self.backbone = backbones.load_backbone(str(save_backbone(family, folder / family)), device="cpu")
        self.engine = Engine(self.backbone)
        self.store = Store.open("memory://")
        router = Router(self.store, self.backbone.spec)
        has_lm_head = self.backbone.language_model.weight is not None
        self.publisher = Publisher(self.store, router, self.backbone.spec, self.backbone.pooler is not None, has_lm_head)
        self.router, self.folder = router, folder

    def publish(self, name: str, seed: int | None = None, **fields: Any) -> None:
        """Publishes a random package; raises StoreError where it is refused."""
        path = self.folder / f"{name}.safetensors"
        path.write_bytes(package(Manifest(backbone=self.backbone.spec, **fields), seed=crc32(name.encode()) if seed is None else seed))
        published = self.publisher.package(path, Upload(name)).published
        self.engine.load(published.record.digest, self.engine.read(path, published.package.manifest))

    def answer(self, model: str, output: str) -> dict[str, Any]:
        """The arrays of one row on a model string."""
        route = self.router.route(model) if model != "base" else Route("base")
        ids = np.array([4, 9, 17, 5, 33, 1])
        decoder = np.array([0, 4, 9, 17, 5, 33]) if self.backbone.family.encoder_decoder else None
        starts = (1, 2, 4, 5) if route.head is not None and route.head.type == "dependency_parsing" else ()
        (answer,) = self.engine.run(pack([Sequence(route, ids, np.zeros_like(ids), Readout(output), decoder, starts)])[0])  # type: ignore[arg-type]
        return dict(answer)


def tries_kind(served: Served, kind: str) -> bool:
    """Publishes a package of a kind and runs it: True if served, False if refused with a sentence. It must change the answer."""
    try:
        fields: dict[str, Any] = {"methods": KINDS[kind](served.backbone.spec)}
        if kind == "AdapterFusion":
            for member in ("one", "two"):
                served.publish(member, methods=KINDS["Pfeiffer"](served.backbone.spec))
            pins = [served.store.show(member).latest.pin for member in ("one", "two")]
            fields["composition"] = f"fuse[self]({', '.join(pins)})"
        served.publish("kind", **fields)
    except (StoreError, ValueError):
        return False
    bare, adapted = served.answer("base", "hidden")["hidden"], served.answer("kind", "hidden")["hidden"]
    assert np.isfinite(adapted).all()
    assert np.abs(bare - adapted).max() > 1e-3
    return True


def tries_head(served: Served, head: str) -> bool:
    """The same for a head."""
    chosen = HEADS[head]
    try:
        served.publish("head", head=chosen)
    except StoreError:
        return False
    answer = served.answer("head", "embedding" if chosen.type == "embedding" else "logits")
    assert answer
    assert all(np.isfinite(array).all() for array in answer.values())
    if chosen.type in LM_HEADS:
        assert answer["logits"].shape[-1] == 60
    return True


def tries_composition(served: Served, composition: str) -> bool:
    """The same for a model string in a request."""
    model = COMPOSITIONS[composition]
    kinds = {"one": "Pfeiffer", "two": "Pfeiffer", "language": "invertible (MAD-X)", "lora": "LoRA", "lora2": "LoRA", "prefix": "prefix"}
    try:
        for name, kind in kinds.items():
            if name in model and name not in served.store.names():
                served.publish(name, methods=KINDS[kind](served.backbone.spec))
        if "fuse" in model and "fusion" not in served.store.names():
            pins = [served.store.show(member).latest.pin for member in ("one", "two")]
            served.publish("fusion", methods={"fusion": Fusion()}, composition=f"fuse[self]({', '.join(pins)})")
        answer = served.answer(model, "hidden")["hidden"]
    except StoreError:
        return False
    assert np.isfinite(answer).all()
    assert np.abs(served.answer("base", "hidden")["hidden"] - answer).max() > 1e-3
    return True


TABLES: list[tuple[str, Any, Callable[[Served, str], bool]]] = [
    ("kinds", KINDS, tries_kind),
    ("heads", HEADS, tries_head),
    ("compositions", COMPOSITIONS, tries_composition),
]


@cache
def results() -> dict[tuple[str, str, str], bool]:
    """Every cell: (table, row, family) -> whether it is served."""
    found = {}
    for family in CONFIGS:
        for table, rows, tries in TABLES:
            with tempfile.TemporaryDirectory() as folder:
                served = Served(family, Path(folder))
                for row in rows:
                    found[table, row, family] = tries(served, row)
    return found


def tables() -> Iterator[tuple[str, str]]:
    """The document's tables by their names."""
    for table, rows, _ in TABLES:
        lines = [f"| | {' | '.join(CONFIGS)} |", f"|---|{'---|' * len(CONFIGS)}"]
        for row in rows:
            cells = [SERVED if results()[table, row, family] else REFUSED for family in CONFIGS]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        yield table, "\n".join(lines)


def marked(text: str, table: str) -> tuple[int, int]:
    """Where a table stands in the document."""
    begin, end = f"<!-- {table} -->\n", f"\n<!-- end of {table} -->"
    return text.index(begin) + len(begin), text.index(end)


@pytest.mark.parametrize("table", [table for table, _, _ in TABLES])
def test_the_document_says_what_is_served(table: str) -> None:
    text = DOCUMENT.read_text()
    start, end = marked(text, table)
    assert text[start:end] == dict(tables())[table], "run `python tests/server/test_support.py` and look at what has changed"


@pytest.mark.parametrize("family", CONFIGS)
def test_kinds_and_heads_combine_freely(family: str, tmp_path: Path) -> None:
    """Every kind that a family is served with, under every head that it is served with."""
    served = Served(family, tmp_path)
    kinds = [kind for kind in KINDS if results()["kinds", kind, family] and kind != "AdapterFusion"]
    heads = [head for head in HEADS if results()["heads", head, family]]
    for kind in kinds:
        served.publish("kind", seed=0, methods=KINDS[kind](served.backbone.spec))
        for head in heads:
            served.publish("both", seed=0, methods=KINDS[kind](served.backbone.spec), head=HEADS[head])
            output = "embedding" if HEADS[head].type == "embedding" else "logits"
            assert all(np.isfinite(array).all() for array in served.answer("both", output).values()), (kind, head)
            difference = served.answer("both", "hidden")["hidden"] - served.answer("kind", "hidden")["hidden"]
            assert np.abs(difference).max() <= 1e-5, (kind, head)


def test_the_document_names_every_family() -> None:
    assert set(CONFIGS) == set(FAMILIES)


if __name__ == "__main__":
    written = DOCUMENT.read_text()
    for name, content in tables():
        start, end = marked(written, name)
        written = written[:start] + content + written[end:]
    DOCUMENT.write_text(written)
    sys.exit(0)

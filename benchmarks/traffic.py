"""What the services are asked: rows of texts and tasks, and their right answers, by stock transformers and by the engine's slow twin."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck, LoRA
from adapter_store.names import Reference
from adapter_store.package import TensorData, write_package
from adapter_store.store import Store
from benchmarks.workload import mixed, tasks
from server.core import Readout, Route, Use, pack
from server.core import Sequence as Row
from server.engine.backbone import load_backbone
from server.engine.engine import Engine

Vector = tuple[float, ...]

ADAPTERS = 64
PFEIFFER = Bottleneck()
TASKS = 8
LABELS = ("negative", "neutral", "positive")
HEAD = Head(type="classification", layers=2, activation="tanh", labels=LABELS)  # as BERT's pooler and classifier
RANK, SCALING, SCALE = 8, 2.0, 0.05
WORDS = ("the", "a", "to", "of", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as", "his", "they")


@dataclass(frozen=True, slots=True)
class Question:
    """One row: a text of `tokens` tokens for a task (None: the bare backbone), and its right answer once that is known."""

    text: str
    tokens: int
    task: int | None = None
    right: Vector | None = None


def questions(seed: int, rows: int, lengths: str, count: int | None) -> list[Question]:
    """`rows` texts of one of `workload.LENGTHS`, each for one of `count` tasks drawn evenly, or for the bare backbone."""
    rng = np.random.default_rng(seed)
    tokens = mixed(rng, rows, lengths)
    asked: Sequence[int | None] = [None] * rows if count is None else tasks(rng, rows, "uniform", count)
    # A word is a token; [CLS] and [SEP] are two more.
    return [Question(" ".join(rng.choice(WORDS, n - 2)), n, task) for n, task in zip(tokens, asked, strict=True)]


# Tasks: one LoRA and head each, as a package and merged into a full model


def lora_manifest(spec: Backbone) -> Manifest:
    """LoRA of rank 8 on query and value of every layer, and a classification head."""
    modules = tuple(f"layers.{layer}.{name}" for layer in range(spec.num_layers) for name in ("q", "v"))
    return Manifest(methods={"lora": LoRA(modules=modules, rank=RANK, scaling=SCALING)}, head=HEAD, backbone=spec)


def lora_tensors(manifest: Manifest, seed: int) -> dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]:
    """Random weights for a task."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, dtype=np.float32) * np.float32(SCALE) for name, shape in manifest.tensors().items()}


def stock_tasks(store: Path, spec: Backbone) -> None:
    """Publishes the tasks as `task-0`, `task-1` ... into a store."""
    opened = Store.open(str(store))
    manifest = lora_manifest(spec)
    for task in range(TASKS):
        values = lora_tensors(manifest, task)
        path = store / f"task-{task}.part"
        path.write_bytes(write_package(manifest, {name: TensorData("F32", one.shape, one.tobytes()) for name, one in values.items()}))
        opened.publish_all([(f"task-{task}", opened.examine(path, f"task-{task}"), path)])
        path.unlink()


def write_full_models(folder: Path, backbone: Path, spec: Backbone) -> list[Path]:
    """The same tasks as full models for transformers, `folder/task-0` ...: W' = W + s B A at query and value."""
    manifest = lora_manifest(spec)
    config = json.loads((backbone / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "num_labels": len(LABELS)}
    config |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: place for place, label in enumerate(LABELS)}}
    frozen = {f"bert.{name}": one for name, one in load_file(backbone / "model.safetensors").items() if not name.startswith("pooler.")}
    made = []
    for task in range(TASKS):
        values, weights = lora_tensors(manifest, task), dict(frozen)
        for layer in range(spec.num_layers):
            for short, long in (("q", "query"), ("v", "value")):
                name = f"bert.encoder.layer.{layer}.attention.self.{long}.weight"
                a, b = (values[f"lora.layers.{layer}.{short}.{part}"] for part in "ab")
                weights[name] = weights[name] + np.float32(SCALING) * (b @ a)
        for number, name in enumerate(("bert.pooler.dense", "classifier")):
            weights |= {f"{name}.{part}": values[f"head.{number}.{part}"] for part in ("weight", "bias")}
        one = folder / f"task-{task}"
        one.mkdir(parents=True)
        save_file(weights, one / "model.safetensors", metadata={"format": "pt"})
        (one / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            (one / name).write_bytes((backbone / name).read_bytes())
        made.append(one)
    return made


def longer_backbone(folder: Path, backbone: Path) -> Path:
    """The backbone's folder for sentence-transformers, which cuts texts off where a config of its says so, at 256: here at 512 tokens."""
    folder.mkdir(parents=True)
    for one in backbone.iterdir():
        if one.name != "sentence_bert_config.json":
            (folder / one.name).symlink_to(one)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
    return folder


# Right answers


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: short texts one at a time gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def bare_vectors(asked: Sequence[Question], backbone: Path) -> list[Question]:
    """With the bare backbone's embeddings, by transformers, one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(backbone), AutoModel.from_pretrained(backbone, dtype=torch.float32).eval()
    answered = []
    with torch.inference_mode():
        for one in asked:
            hidden = model(**tokenizer(one.text, return_tensors="pt")).last_hidden_state[0]
            vector = torch.nn.functional.normalize(hidden.mean(0), dim=-1)
            answered.append(replace(one, right=tuple(vector.tolist())))
    return answered


@one_thread()
def task_logits(asked: Sequence[Question], folders: Sequence[Path]) -> list[Question]:
    """With the logits of the tasks' full models, by transformers, one text at a time."""
    right: dict[int, Vector] = {}
    for task, folder in enumerate(folders):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            for place, one in enumerate(asked):
                if one.task == task:
                    right[place] = tuple(model(**tokenizer(one.text, return_tensors="pt")).logits[0].tolist())
    return [replace(one, right=right[place]) for place, one in enumerate(asked)]


@one_thread()
def adapter_vectors(asked: Sequence[Question], store: Path, backbone: Path) -> list[Question]:
    """With the embeddings of the adapters `adapter-0` ... of a store, by the engine's slow twin, one text at a time."""
    engine = Engine(load_backbone(str(backbone)), fast=False)
    sequences = rows(engine, asked, store, backbone)
    vectors = (engine.run(pack([sequence])[0])[0]["embedding"] for sequence in sequences)
    return [replace(one, right=tuple(map(float, vector))) for one, vector in zip(asked, vectors, strict=True)]


def rows(engine: Engine, asked: Sequence[Question], store: Path, backbone: Path) -> list[Row]:
    """The questions as the engine takes them, with their adapters loaded from the store."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    opened = Store.open(str(store))
    digests: dict[int | None, str] = {}
    for task in sorted({one.task for one in asked if one.task is not None}):
        digests[task] = opened.resolve(Reference(f"adapter-{task}")).digest
        engine.load(digests[task], engine.read(opened.path(digests[task]), opened.manifest(digests[task])))
    made = []
    for one in asked:
        ids = np.asarray(tokenizer(one.text)["input_ids"], dtype=np.int64)
        setup = None if one.task is None else Use(digests[one.task])
        made.append(Row(Route("bench", setup=setup), ids, np.zeros_like(ids), Readout("embedding")))
    return made

"""Golden cases (shared/reference/adapters.md, section 4) as a user meets them: folders to push, requests, and their expected numbers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import array, push
from safetensors.numpy import load_file
from starlette.testclient import TestClient

from adapter_store.importers.pickles import bin_to_safetensors

Values = np.ndarray[Any, np.dtype[np.float32]]

# Expected key -> what is asked for, and the name of the array in the answer ("" where the answer is one array).
KEYS: dict[str, tuple[str, str]] = {
    "last_hidden_state": ("hidden", ""),
    "encoder_last_hidden_state": ("encoder_hidden", ""),
    "logits": ("logits", ""),
    "start_logits": ("logits", "start"),
    "end_logits": ("logits", "end"),
    "arc_preds": ("logits", "arcs"),
    "rel_preds": ("logits", "relations"),
}


@dataclass(frozen=True)
class Question:
    """One request row of a case, and the array that must come back under `name`."""

    model: str
    inputs: dict[str, Any]
    output: str
    name: str
    expected: Values

    @property
    def request(self) -> dict[str, Any]:
        return {"model": self.model, "inputs": self.inputs, "output": self.output}

    def error(self, output: dict[str, Any]) -> float:
        """The largest difference of an answer's output."""
        got = array(output[self.name] if self.name else output)
        assert got.shape == self.expected.shape, (self.model, self.name, got.shape, self.expected.shape)
        return float(np.abs(got - self.expected).max())


class Case:
    """One folder of golden cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = json.loads((folder / "meta.json").read_text())
        self.inputs = json.loads((folder / "inputs.json").read_text())
        self.config = json.loads((folder / "backbone" / "config.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        self.rows = [
            [token for token, real in zip(ids, mask, strict=True) if real]
            for ids, mask in zip(self.inputs["input_ids"], self.inputs["attention_mask"], strict=True)
        ]
        self.names: dict[str, str] = {}
        self.headed: set[str] = set()

    @property
    def texts(self) -> list[str]:
        """The rows as words: the tokenizer of the cases maps t17 to 17."""
        return [" ".join(f"t{token}" for token in row) for row in self.rows]

    @property
    def backbone(self) -> Path:
        return self.folder / "backbone"

    @property
    def root(self) -> Path:
        """The folders as safetensors where the case has them."""
        return next((self.folder / kind for kind in ("safetensors", "bin") if (self.folder / kind).is_dir()), self.folder)

    def folders(self) -> list[Path]:
        """What is pushed, members before fusions; a setup as a whole."""
        setups = sorted(self.root.rglob("adapter_setup.json"))
        if setups:
            return [setups[0].parent]
        configs = ("adapter_config.json", "head_config.json", "training_config.json", "adapter_fusion_config.json")
        found = {
            path.parent for path in self.root.rglob("*.json") if path.name in configs and path.parent not in (self.backbone, self.folder)
        }
        return sorted(found, key=lambda path: ((path / "adapter_fusion_config.json").exists(), path))

    def publish(self, client: TestClient, temporary: Path) -> None:
        """Pushes every folder under a name of its own."""
        for number, folder in enumerate(self.folders()):
            fusion, setup = (folder / "adapter_fusion_config.json").exists(), (folder / "adapter_setup.json").exists()
            name = "setup" if setup else f"fusion-{number}" if fusion else folder.name.lower()
            members = [f"{theirs}={ours}" for theirs, ours in self.names.items() if theirs in self._members(folder)] if fusion else []
            published = push(client, name, as_safetensors(folder, temporary / str(number)), member=members)
            self.names[folder.name] = name
            if published["task"] is not None:
                self.headed.add(folder.name)
            for inner in sorted(path for path in folder.iterdir() if setup and path.is_dir()):
                fusion = (inner / "adapter_fusion_config.json").exists()
                self.names[inner.name] = f"{name}.{'fusion' if fusion else inner.name.lower()}"
                if (inner / "head_config.json").exists():
                    self.headed.add(inner.name)

    @staticmethod
    def _members(folder: Path) -> list[str]:
        config = json.loads((folder / "adapter_fusion_config.json").read_text())
        return list(config.get("adapter_names") or config["name"].split(","))

    def model(self, tree: dict[str, Any]) -> str:
        """A setup of the meta data as a model string."""
        if tree["type"] == "single":
            return self.names[tree["children"][0]]
        children = [self.model(child) for child in tree["children"]]
        match tree["type"]:
            case "Fuse":
                fusions = [name for name in self.names.values() if name.startswith("fusion-") or name.endswith(".fusion")]
                joined = ",".join(_last(child) for child in tree["children"])
                fusion = self.names.get(self.meta.get("fusion_name_of_the_run") or joined) or fusions[0]
                return f"fuse[{fusion}]({', '.join(children)})"
            case "Average":
                weights = tree.get("kwargs", {}).get("weights") or [1.0] * len(children)
                return f"average({', '.join(f'{child}:{weight:.9f}' for child, weight in zip(children, weights, strict=True))})"
            case kind:
                return f"{kind.lower()}({', '.join(children)})"

    def questions(self) -> Iterator[Question]:
        """Every output of every run, row by row. Extra expected keys that belong to no run are left alone."""
        yield from self._of_run("base", "base.", None)
        for label, run in (self.meta.get("runs") or {"": None}).items():
            if run is None:
                yield from self._of_run(next(iter(self.names.values())), label, None)
            elif run["setup"]["type"] == "BatchSplit":
                yield from self._of_batch_split(run)
            else:
                head = run.get("head") if isinstance(run.get("head"), str) else None
                yield from self._of_run(self.model(run["setup"]), label, head)

    def _of_run(self, model: str, label: str, head: str | None) -> Iterator[Question]:
        for key, (output, name) in KEYS.items():
            if f"{label}{key}" in self.expected and not (model == "base" and output == "logits"):
                for row in range(len(self.rows)):
                    asked = self._headed(model, head) if output == "logits" else model
                    yield Question(asked, self.input(row, output, name), output, name, self.value(f"{label}{key}", row, name))

    def _of_batch_split(self, run: dict[str, Any]) -> Iterator[Question]:
        """Each row alone on the adapter of its place."""
        row = 0
        for number, (child, count) in enumerate(zip(run["setup"]["children"], run["setup"]["kwargs"]["batch_sizes"], strict=True)):
            for place in range(count):
                yield Question(self.model(child), self.input(row, "logits", ""), "logits", "", self.expected[f"logits_{number}"][place])
                yield Question(self.model(child), self.input(row, "hidden", ""), "hidden", "", self.value("last_hidden_state", row, ""))
                row += 1

    def _headed(self, model: str, head: str | None) -> str:
        """The model with the run's head, where it has none of its own or another one."""
        if head is None or head not in self.headed or self.names[head] == model or model.endswith(f"{self.names[head]})"):
            return model
        return f"{model}#{self.names[head]}"

    def input(self, row: int, output: str, name: str) -> dict[str, Any]:
        """A row as the wire takes it. Hidden states of a decoder need its ids: without them the library shifts the row's own."""
        source: dict[str, Any] = {"input_ids": self.rows[row]}
        if "decoder_input_ids" in self.inputs:
            source["decoder_input_ids"] = self.inputs["decoder_input_ids"][row]
        elif output == "hidden" and self.config["model_type"] in ("t5", "mt5"):
            source["decoder_input_ids"] = [self.config["decoder_start_token_id"], *self.rows[row][:-1]]
        if name in ("arcs", "relations"):
            source["word_starts"] = [start for start in self.inputs["word_starts"][row] if start != self.config["pad_token_id"]]
        return source

    @property
    def _multiple_choice(self) -> bool:
        heads = [head.get("add") for head in self.meta.get("heads") or []]
        return "add_multiple_choice_head" in heads or self.meta.get("model_class", "").endswith("MultipleChoice")

    def value(self, key: str, row: int, name: str) -> Values:
        """A row's expected output: of outputs per token or word the row's own."""
        value = self.expected[key]
        if self._multiple_choice and key.endswith("logits"):
            return np.array([value.reshape(-1)[row]], dtype=np.float32)
        if name in ("arcs", "relations"):
            words = len([start for start in self.inputs["word_starts"][row] if start]) - 1
            return value[row][:words, : words + 1]
        if value.ndim == 2 and not name:
            return value[row]
        decoder = "decoder_input_ids" in self.inputs and not key.endswith("encoder_last_hidden_state")
        return value[row][: len(self.inputs["decoder_input_ids"][row]) if decoder else len(self.rows[row])]


def _last(tree: dict[str, Any]) -> str:
    """The adapter that stands for a block in the name of its fusion."""
    return str(tree["children"][0]) if tree["type"] == "single" else _last(tree["children"][-1])


def as_safetensors(folder: Path, target: Path) -> Path:
    """The folder, its pickles converted if it has any."""
    if any(folder.rglob("*.bin")):
        bin_to_safetensors(folder, target)
        return target
    return folder

"""Without HTTP: Turret's engine fed directly, and one bare transformers forward, each in a process of its own (`competitors/worker.py`).

The engine is fed what the server could feed it at best. A closed loop of 32 clients has 32 rows under way, so no batch can have more,
unless a batch's token budget is less: batches of that size, packed in advance, one right behind the other, are the ceiling. The server's
own batches are smaller, as the answers of the last batch have to travel to the clients before the next requests come; how large they were
is measured, and the engine is fed such batches too, which tells what HTTP costs from what smaller batches cost.
"""

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.competitors.workers.protocol import serve
from benchmarks.traffic import Question, rows
from server.core import Batch, pack
from server.core import Sequence as Row
from server.engine.backbone import load_backbone
from server.engine.engine import Engine, set_threads
from server.settings import Settings

MODULE = "benchmarks.feeding"
WARM_UP = 0.5

Figures = dict[str, float]


def batches(sequences: Sequence[Row], size: int, budget: int) -> list[Batch]:
    """The rows, over and over until no batch is cut short, in batches of at most `size` rows and `budget` tokens."""
    made: list[Batch] = []
    batch: list[Row] = []
    tokens = 0
    for row in [*sequences, *sequences[:size]]:
        if batch and (len(batch) == size or tokens + row.tokens > budget):
            made.append(pack(batch)[0])
            batch, tokens = [], 0
        batch.append(row)
        tokens += row.tokens
    return made or [pack(batch)[0]]


def timed(run: Callable[[], int], seconds: float) -> Figures:
    """Rows a second and CPU seconds a row of `run`, which returns how many rows it ran; and the median of its time in ms."""
    until = time.perf_counter() + WARM_UP
    while time.perf_counter() < until:
        run()
    times, done, began, used = [], 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        done += run()
        times.append(time.perf_counter() - before)
    passed = time.perf_counter() - began
    return {"per_second": done / passed, "cpu": (time.process_time() - used) / done, "p50": median(times) * 1000}


class Feeding:
    """What a worker of either kind has loaded."""

    def engine(self, backbone: str, store: str, asked: list[dict[str, Any]]) -> None:
        """Loads the engine as the server does, with the adapters of a store that the questions need."""
        self.settings = Settings(_cli_parse_args=[])  # type: ignore[call-arg]
        set_threads(self.settings.threads)
        self.fed = Engine(load_backbone(backbone))
        self.rows = rows(self.fed, [Question(**one) for one in asked], Path(store), Path(backbone))

    def feed(self, size: int, seconds: float) -> Figures:
        """All questions in batches of `size` rows, over and over."""
        turn = cycle(batches(self.rows, size, self.settings.max_batch_tokens))

        def run() -> int:
            batch = next(turn)
            self.fed.run(batch)
            return len(batch.rows)

        return timed(run, seconds)

    def model(self, backbone: str) -> None:
        """Loads stock transformers, with torch's own choice of threads."""
        self.tokenizer = AutoTokenizer.from_pretrained(backbone)
        self.stock = AutoModel.from_pretrained(backbone, attn_implementation="sdpa", dtype=torch.float32).eval()

    def forward(self, tokens: int, seconds: float) -> Figures:
        """One forward of one row of so many tokens, tokenized before."""
        inputs = self.tokenizer(" ".join(["the"] * (tokens - 2)), return_tensors="pt")
        if inputs["input_ids"].shape[1] != tokens:
            raise ValueError(f"the text has {inputs['input_ids'].shape[1]} tokens, not {tokens}")

        def run() -> int:
            with torch.inference_mode():
                self.stock(**inputs)
            return 1

        return timed(run, seconds)


def main() -> None:
    """Answers orders until its standard input ends."""
    feeding = Feeding()
    serve({"engine": feeding.engine, "feed": feeding.feed, "model": feeding.model, "forward": feeding.forward})


if __name__ == "__main__":
    main()

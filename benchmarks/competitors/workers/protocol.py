"""The worker's side of the protocol: one JSON object a line in, one out; batches to run, timed in here.

A contender is a function of a batch (its rows' token ids, their tasks, and whether "embedding" or "hidden" is asked for) that
answers one float32 array a row, in the order of the rows: the mean over its tokens [H], or its last hidden state [tokens, H].
All that a contender does with a batch is timed, from the token ids to numpy arrays.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rows:
    """One batch: int64 token ids of each row, and its task."""

    ids: list[Array]
    tasks: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(ids) for ids in self.ids)


Contender = Callable[[Rows, str], list[Array]]
Command = Callable[..., Any]


class Contest:
    """The batches that a worker was given, and the contenders that run them."""

    def __init__(self, contenders: Mapping[str, Contender]) -> None:
        self.contenders = dict(contenders)
        self.draws: dict[str, list[Rows]] = {}

    def take(self, key: str, batches: list[dict[str, Any]]) -> int:
        """Keeps batches under a key: [{"ids": [[...], ...], "tasks": [...]}, ...]. Returns their tokens."""
        made = [Rows([np.array(ids, dtype=np.int64) for ids in one["ids"]], list(one["tasks"])) for one in batches]
        self.draws[key] = made
        return sum(rows.tokens for rows in made)

    def run(self, contender: str, key: str) -> dict[str, float]:
        """Runs the batches of a key, one after the other: seconds on the clock, and of all cores, for all of them."""
        function = self.contenders[contender]
        clock, cpu = time.perf_counter(), time.process_time()
        for rows in self.draws[key]:
            function(rows, "embedding")
        return {"wall": time.perf_counter() - clock, "cpu": time.process_time() - cpu}

    def outputs(self, contender: str, key: str, path: str) -> None:
        """Writes the last hidden states of all rows of all batches of a key to a .npy file, [tokens, H]."""
        np.save(path, np.concatenate([row for rows in self.draws[key] for row in self.contenders[contender](rows, "hidden")]))

    @property
    def commands(self) -> dict[str, Command]:
        """What a worker can be asked for."""
        return {"take": self.take, "run": self.run, "outputs": self.outputs}


def serve(commands: Mapping[str, Command]) -> None:
    """Answers requests until stdin ends. What libraries print goes to stderr, not between the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": commands[request.pop("do")](**request)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def task_name(task: int) -> str:
    """The adapter of a task, as the libraries are told it."""
    return f"task{task}"

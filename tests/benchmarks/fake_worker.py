"""A worker without a model, for the protocol's tests: rows of their token ids, twice for the other contender; and what goes wrong."""

import os
import sys
from functools import partial

import numpy as np

from benchmarks.competitors.workers.protocol import Array, Contest, Rows, serve


def echo(factor: float, rows: Rows, output: str) -> list[Array]:
    """The ids as hidden states [tokens, 1], or their mean."""
    hidden = [factor * ids.astype(np.float32)[:, None] for ids in rows.ids]
    return hidden if output == "hidden" else [row.mean(0) for row in hidden]


def chat(text: str) -> str:
    """Prints where the answers go, as libraries do."""
    print(text)
    os.write(1, b"and past Python\n")
    return text.upper()


def end(code: int) -> None:
    """Ends without an answer."""
    print("the last words", file=sys.stderr)
    os._exit(code)


if __name__ == "__main__":
    contest = Contest({"once": partial(echo, 1.0), "twice": partial(echo, 2.0)})
    serve({"chat": chat, "end": end} | contest.commands)

"""What a batch costs: seconds = a + b * tokens + c * rows, learned while serving. Knows no queue and no engine.

Weighted least squares over batches that fade (each batch makes those before it count `KEEP` as much), of the relative error, so that
a batch of 8 tokens counts as much as one of 8,000. The three costs are never negative (the best of the non-negative solutions, found
by trying which of them are zero), and a faint pull towards equal shares decides what the batches leave open: where all were alike, how
much of it was a. One odd batch is not believed (a first call that compiles, a page fault): what lies far outside of what the batches
before make likely counts once `AGREE` in a row say so, and then the past is forgotten.
"""

import math
from itertools import combinations

import numpy as np
import numpy.typing as npt

KEEP = 0.97  # a memory of about 33 batches
FAR = 3.0  # times more, or less, than is likely
AGREE = 3
SCALE = np.array([1.0, 256.0, 8.0])  # tokens and rows in units of an ordinary batch, so that the pull is even
PULL = 1e-4  # of one batch
FIRST = (0.01, 1e-4, 1e-4)  # what is assumed before the first batch: seconds, seconds per token, seconds per row

Vector = npt.NDArray[np.float64]


class Costs:
    """Learns from `observe`, foretells with `seconds`. Not safe to use from several threads at once."""

    def __init__(self) -> None:
        self._squares = np.zeros((3, 3))
        self._products = np.zeros(3)
        self._costs: Vector | None = np.array(FIRST) * SCALE
        self._per_token = FIRST[1]  # seconds, of whole batches; fades like the rest
        self._seen = (math.inf, 0.0)  # the fewest and the most tokens of a batch
        self._odd = 0  # batches in a row that were far off, negative for those that were faster
        self.batches = 0

    def seconds(self, tokens: int, rows: int, batches: int = 1) -> float:
        """What work takes that runs as so many batches."""
        a, b, c = self._solved() / SCALE
        return float(a * batches + b * tokens + c * rows)

    def observe(self, tokens: int, rows: int, seconds: float) -> None:
        """Takes in a batch that ran."""
        seconds = max(seconds, 1e-6)
        far = self._far(tokens, rows, seconds)
        self._odd = 0 if not far else far + (self._odd if self._odd * far > 0 else 0)
        if far and self.batches and abs(self._odd) < AGREE:
            return
        if far:
            self._squares[:], self._products[:], self._seen = 0, 0, (math.inf, 0.0)
        x = np.array([1.0, tokens, rows]) / SCALE / seconds
        self._squares = KEEP * self._squares + np.outer(x, x)
        self._products = KEEP * self._products + x
        self._costs = None
        rate = seconds / max(tokens, 1)
        self._per_token = rate if far or not self.batches else self._per_token + (1 - KEEP) * (rate - self._per_token)
        self._seen = min(self._seen[0], tokens), max(self._seen[1], tokens)
        self._odd = 0
        self.batches += 1

    def _far(self, tokens: int, rows: int, seconds: float) -> int:
        """1 where a batch took far longer than is likely, -1 where it took far less.

        For a size that was not seen yet a mere share of the others' is as likely as what the fit makes of them.
        """
        likely = [self.seconds(tokens, rows)]
        if not self._seen[0] <= tokens <= self._seen[1]:
            likely = sorted((*likely, self._per_token * tokens))
        return 1 if seconds > FAR * likely[-1] else -1 if seconds * FAR < likely[0] else 0

    def _solved(self) -> Vector:
        """The costs in scaled units."""
        if self._costs is None:
            self._costs = _non_negative(self._squares, self._products)
        return self._costs


def _non_negative(squares: Vector, products: Vector) -> Vector:
    """The x >= 0 that is best for x'Sx/2 - p'x, S with its pull."""
    pull = PULL * float(np.trace(squares)) / 3
    matrix = squares + pull * np.eye(3)
    best, least = np.zeros(3), math.inf
    for size in (3, 2, 1):
        for chosen in combinations(range(3), size):
            some = list(chosen)
            part = np.linalg.solve(matrix[np.ix_(some, some)], products[some])
            if (part >= 0).all():
                value = -float(products[some] @ part)
                if value < least:
                    best, least = np.zeros(3), value
                    best[some] = part
        if size == 3 and least < math.inf:
            break  # the minimum of all is among the non-negative
    return best

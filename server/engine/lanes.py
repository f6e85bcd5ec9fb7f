"""A batch in several lanes at once: on a CPU, threads that each run some of its rows are faster than threads that share every product.

Between two operations that share their work all threads wait for the slowest, some hundred times a forward, and small products are
not worth sharing. Lanes wait for each other once, at the end. A batch of few tokens runs in one lane on all threads, as its time is that
of reading the weights.
"""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Answer = TypeVar("Answer")

MOST = 8  # lanes: each needs the interpreter's lock for some 6% of its time; the threads of more cores are shared out among them
LANE_TOKENS = 128  # tokens from which a lane of its own is faster than one more thread in a lane
UNEVEN = 1.25  # how much longer than the mean the longest lane may be


def split(
    lengths: Sequence[int], keys: Sequence[Hashable], hidden_size: int, lanes: int, lane_tokens: int = LANE_TOKENS
) -> list[list[int]]:
    """Places of rows by lane, in their order, for at most `lanes` of them with about equal work; one lane where that cannot be.

    lane_tokens: what a lane must have on average. Rows of equal keys stay together (they may share layers). A row's work is its tokens
    for the products, 24 H multiply-adds for each number of a token, and 4 x tokens for attention, at about half the rate.
    """
    count = min(lanes, sum(lengths) // lane_tokens)
    together: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        together.setdefault(key, []).append(place)
    count = min(count, len(together))
    if count < 2:
        return [list(range(len(lengths)))]
    work = {key: sum(lengths[place] * (1 + lengths[place] / (3 * hidden_size)) for place in places) for key, places in together.items()}
    filled: list[tuple[float, list[int]]] = [(0.0, []) for _ in range(count)]
    for key in sorted(together, key=lambda key: work[key], reverse=True):  # the longest first, each where there is least
        least = min(range(count), key=lambda lane: filled[lane][0])
        filled[least] = filled[least][0] + work[key], filled[least][1] + together[key]
    if max(done for done, _ in filled) > UNEVEN * sum(work.values()) / count:
        return [list(range(len(lengths)))]
    return [sorted(places) for _, places in filled]


class Lanes:
    """The threads of the lanes. Belongs to the engine thread, which is the first lane's."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count - 1, "turret-lane") if count > 1 else None

    def run(self, parts: int, work: Callable[[int], Answer]) -> list[Answer]:
        """The answers of work(0) .. work(parts - 1), each on a lane of its own."""
        if self._pool is None:
            return [work(part) for part in range(parts)]
        each = max(1, self._threads // parts)

        def on_lane(part: int) -> Answer:
            torch.set_num_threads(each)  # this thread's for torch's operations, all threads' for MKL's
            return work(part)

        others = [self._pool.submit(on_lane, part) for part in range(1, parts)]
        try:
            first = on_lane(0)
        finally:
            failed = [other.exception() for other in others]  # none is left running
        for error in failed:
            if error is not None:
                raise error
        return [first, *(other.result() for other in others)]

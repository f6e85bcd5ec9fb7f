"""The roofline: the machine's own rate at the matrix products of the backbone's linears, and how much of a forward these take.

The products are measured in every way that torch offers on a CPU: `torch.mm`, oneDNN's linear with a prepacked weight, and the latter in
threads that each do their share of the tokens with one thread. A machine's rate is the best of them. The linears' rate comes in two
figures: their multiply-adds over the time of a whole forward, which is what a user gets, and over the time that a profiler finds in the
linears alone (what is computed in the same pass, as bias, GELU or a residual, included), which says whether the products themselves
are slow or what is between them.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel

# The operators that compute a Linear of the backbone, whichever way an engine takes. Adapters' products count as linears, too:
# profile a bare batch.
LINEARS = frozenset(
    {
        "mkldnn::_linear_pointwise",
        "mkl::_mkl_linear",
        "aten::mkldnn_linear",
        "aten::linear",
        "aten::addmm",
        "aten::addmm_",
        "aten::_addmm_activation",
        "aten::mm",
    }
)
PROFILED = 5
MM, PREPACKED, THREADED = (f"matrix products, {how}" for how in ("torch.mm", "prepacked", "prepacked, a thread for each part"))


def linear_shapes(backbone: str) -> list[tuple[int, int]]:
    """(in, out) of every Linear in the layers of an encoder, from stock transformers."""
    layers = AutoModel.from_pretrained(backbone).encoder.layer
    return [(m.in_features, m.out_features) for m in layers.modules() if isinstance(m, nn.Linear)]


class Products:
    """The products of linears of `shapes` [(in, out), ...] alone, without bias, on any number of tokens."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        self._shapes = shapes
        self._inputs: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._weights = [torch.randn(i, o) for i, o in shapes]
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)
        self.kinds = [MM]
        built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if built and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self._packed = [torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), None) for weight in self._weights]
            self.kinds += [PREPACKED, THREADED]

    @property
    def multiply_adds(self) -> int:
        """Of all products, for one token."""
        return sum(i * o for i, o in self._shapes)

    def run(self, kind: str, tokens: int) -> None:
        """All products once. `torch.mm` writes to memory that is there already; oneDNN's linear makes its own."""
        if kind == THREADED:
            counts = [len(part) for part in np.array_split(np.arange(tokens), self._threads) if len(part)]
            list(self._pool.map(lambda part: self._run(PREPACKED, part, 1), enumerate(counts)))
        else:
            self._run(kind, (0, tokens), self._threads)

    @torch.inference_mode()
    def _run(self, kind: str, part: tuple[int, int], threads: int) -> None:
        """The products of one part, (its number, its tokens)."""
        torch.set_num_threads(threads)  # the engine in this process sets it, too
        if part not in self._inputs:
            self._inputs[part] = [(torch.randn(part[1], i), torch.empty(part[1], o)) for i, o in self._shapes]
        pairs = self._inputs[part]
        if kind == MM:
            for (x, y), weight in zip(pairs, self._weights, strict=True):
                torch.mm(x, weight, out=y)
        else:
            for (x, _), weight in zip(pairs, self._packed, strict=True):
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "none")


def linears_profile(run: Callable[[], object]) -> dict[str, Any]:
    """Where one run spends its time, by torch's profiler: milliseconds in the linears and on the clock, and the operators.

    Threads that run linears side by side (the engine's lanes) count as one: the mean of their times. Operators are dearest first.
    """
    run()
    config = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as profiled:
        began = time.perf_counter()
        for _ in range(PROFILED):
            run()
        whole = time.perf_counter() - began
    own: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    lanes = set()
    for event in profiled.events() or ():
        own[event.name] += event.self_cpu_time_total / 1000
        calls[event.name] += 1
        if event.name in LINEARS:
            lanes.add(event.thread)
    runs = PROFILED * max(1, len(lanes))
    found = sorted(own, key=lambda name: -own[name])[:12]
    return {
        "linears ms": sum(ms for name, ms in own.items() if name in LINEARS) / runs,
        "whole ms": whole * 1000 / PROFILED,
        "lanes": len(lanes),
        "operators": [{"name": name, "ms": own[name] / runs, "calls": calls[name] / runs} for name in found],
    }

"""The roofline: the machine's own rate at the matrix products of the backbone's linears, and how much of a forward these take.

The products are measured in both ways that torch offers on a CPU, `torch.mm` and oneDNN's linear with a prepacked weight; a machine's
rate is the better of the two. The linears' rate comes in two figures: their multiply-adds over the time of a whole forward, which
is what a user gets, and over the time that a profiler finds in the linears alone (a GELU that is computed in the same pass
included), which says whether the products themselves are slow or what is between them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
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


def linear_shapes(backbone: str) -> list[tuple[int, int]]:
    """(in, out) of every Linear in the layers of an encoder, from stock transformers."""
    layers = AutoModel.from_pretrained(backbone).encoder.layer
    return [(m.in_features, m.out_features) for m in layers.modules() if isinstance(m, nn.Linear)]


class Products:
    """The products of linears of `shapes` [(in, out), ...] alone, on any number of tokens, into memory that is there already."""

    def __init__(self, shapes: list[tuple[int, int]]) -> None:
        self._shapes = shapes
        self._inputs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._weights = [torch.randn(i, o) for i, o in shapes]
        self.kinds = ["matrix products, torch.mm"]
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self._packed = [torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), None) for weight in self._weights]
            self.kinds.append("matrix products, prepacked")

    @property
    def multiply_adds(self) -> int:
        """Of all products, for one token."""
        return sum(i * o for i, o in self._shapes)

    @torch.inference_mode()
    def run(self, kind: str, tokens: int) -> None:
        """All products once."""
        pairs = self._inputs.setdefault(tokens, [(torch.randn(tokens, i), torch.empty(tokens, o)) for i, o in self._shapes])
        if kind == "matrix products, torch.mm":
            for (x, y), weight in zip(pairs, self._weights, strict=True):
                torch.mm(x, weight, out=y)
        else:
            for (x, _), weight in zip(pairs, self._packed, strict=True):
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "none")


def linears_profile(run: Callable[[], object]) -> dict[str, Any]:
    """Milliseconds of one run in the linears and in all operators by torch's profiler, and the operators, dearest first."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED):
            run()
    found = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    own = {event.key: event.self_cpu_time_total / 1000 / PROFILED for event in found}
    return {
        "linears ms": sum(ms for name, ms in own.items() if name in LINEARS),
        "all ms": sum(own.values()),
        "operators": [{"name": event.key, "ms": own[event.key], "calls": event.count / PROFILED} for event in found[:12]],
    }

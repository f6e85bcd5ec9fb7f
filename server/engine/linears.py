"""The backbone's frozen Linears on the CPU in float32: weights in oneDNN's own layout, laid out once, bias and GELU in the same pass.

y = x W^T + b, and for the feed-forward's first dense GELU(x W^T + b), through the operators that torch.compile's freezing emits.
`prepack` changes how a number is computed, never which: the model without it is the slow twin. Where torch was built without
oneDNN, and on other devices and dtypes, nothing is changed.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from server.engine.families import Family


def prepack(model: nn.Module, family: Family) -> int:
    """Prepacks every Linear of the model's layers, giving up torch's own copy of the weights. Returns how many were."""
    if not _possible(model):
        return 0
    count = 0
    for layer in model.get_submodule(family.layers).children():
        dense, activation = (layer.get_submodule(name) for name in family.feed_forward)
        fused = type(activation) is GELUActivation and activation.act is torch.nn.functional.gelu
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                _replace(module, "gelu" if fused and module is dense else "none")
                count += 1
        if fused:
            activation.forward = _identity
    return count


def _possible(model: nn.Module) -> bool:
    parameter = next(model.parameters())
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    available = built and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and parameter.device.type == "cpu" and parameter.dtype == torch.float32


def _replace(module: nn.Linear, activation: str) -> None:
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), None)
    bias = None if module.bias is None else module.bias.detach()
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise

    def forward(x: Tensor) -> Tensor:
        return product(x, weight, bias, activation, [], "none")

    module.forward = forward  # type: ignore[method-assign, assignment]
    module.weight = None  # type: ignore[assignment]


def _identity(x: Tensor) -> Tensor:
    return x

"""The activations of adapters and heads, by the canonical names of `adapter_store.methods.ACTIVATIONS`."""

from collections.abc import Callable

import torch
from transformers.activations import ACT2FN

Activation = Callable[[torch.Tensor], torch.Tensor]

# In place where torch can: the argument is always a fresh temporary. The rest are transformers' own.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": torch.nn.functional.gelu,
    "leaky_relu": lambda u: torch.nn.functional.leaky_relu(u, inplace=True),
    "linear": lambda u: u,
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "silu": lambda u: torch.nn.functional.silu(u, inplace=True),
    "tanh": torch.tanh_,
} | {
    name: ACT2FN[name] for name in ("gelu_new", "gelu_accurate", "gelu_fast", "gelu_10", "quick_gelu", "laplace", "mish", "relu2", "relu6")
}

"""The backbone's linears: prepacked for the CPU, and tapped so that LoRA and (IA)^3 can act on them.

`prepack` lays the frozen weights out once as oneDNN wants them in float32, bias and GELU in the same pass: y = x W^T + b, and for
the feed-forward's first dense GELU(x W^T + b), through the operators that torch.compile's freezing emits. It changes how a
number is computed, never which: the model without it is the slow twin. Where torch was built without oneDNN, and on other
devices and dtypes, nothing is changed.
`tap` lets rows with a LoRA or an (IA)^3 there change x or y. Between a dense and its fused GELU nothing can act: then the batch
takes the plain product and the GELU comes after.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from transformers.activations import GELUActivation
from transformers.pytorch_utils import Conv1D

from server.engine.grouped import LoRAs
from server.engine.sites import Tokens
from server.methods.lora import LoRAWeights, Node, adapt, scaled_input

if TYPE_CHECKING:
    from server.engine.running import Stage

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class NodeTokens:
    """The tokens of one node at a linear: pieces that each lie together, a row each where an answer depends on the whole row."""

    node: Node
    tokens: tuple[Tokens, ...]
    at_input: bool


@dataclass(frozen=True, slots=True)
class LinearWork:
    """All that a batch has to do at one linear; tokens that are not named are bare. launched: LoRAs that go in one launch each."""

    nodes: tuple[NodeTokens, ...]
    launched: tuple[LoRAs, ...] = ()

    def apply(self, x: Tensor, product: Product) -> Tensor:
        """y [T, out] for x [T, in]."""
        read = self.read(x)
        return self.change(read, product(read.unsqueeze(0))[0])

    def read(self, x: Tensor) -> Tensor:
        """x [T, in] as the linear shall read it: itself, or a copy in which rows are scaled."""
        read = x
        for work in self.nodes:
            if work.at_input:
                read = x.clone() if read is x else read
                for tokens in work.tokens:
                    tokens.put(read, scaled_input(work.node, tokens.take(x)))
        return read

    def change(self, read: Tensor, y: Tensor) -> Tensor:
        """y [T, out], changed in place; it may be columns of a wider product. read [T, in] is what the linear read."""
        for work in self.nodes:
            for tokens in work.tokens:
                if isinstance(work.node, LoRAWeights) and work.node.gate_weight is None and tokens.indices is None:
                    rows = tokens.take(read)
                    tokens.take(y).addmm_(torch.mm(rows, work.node.a.t()), work.node.b.t(), alpha=work.node.scaling)
                else:
                    tokens.put(y, adapt(work.node, tokens.take(read), tokens.take(y)))
        for loras in self.launched:
            loras.add(read, y)
        return y


class Dense:
    """A frozen linear y = W x + b on [.., in], or several that read the same x as one. Prepacked where `prepackable`.

    weight [out, in]; bias [out] or None. GELU and a residual are part of the same product where it is prepacked.
    """

    def __init__(self, *modules: nn.Linear) -> None:
        prepacked = prepackable(modules[0])
        weight = torch.cat([module.weight.detach() for module in modules])
        self._bias = torch.cat([module.bias.detach() for module in modules]) if modules[0].bias is not None else None
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if prepacked else weight
        self._product = torch.ops.mkldnn._linear_pointwise.default if prepacked else None
        self._sum = torch.ops.mkldnn._linear_pointwise.binary if prepacked else None
        for module in modules:
            module.weight = None  # type: ignore[assignment]  # its numbers are here now

    def __call__(self, x: Tensor) -> Tensor:
        """W x + b."""
        return linear(x, self._weight, self._bias) if self._product is None else self._multiply(x, "none")

    def gelu(self, x: Tensor) -> Tensor:
        """GELU(W x + b), the exact one (erf)."""
        return gelu(linear(x, self._weight, self._bias)) if self._product is None else self._multiply(x, "gelu")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """W x + b + residual [T, out], a new tensor."""
        if self._sum is None:
            return linear(x, self._weight, self._bias).add_(residual)
        y: Tensor = self._sum(x, residual, self._weight, self._bias, "add")
        return y

    def _multiply(self, x: Tensor, then: str) -> Tensor:
        assert self._product is not None
        y: Tensor = self._product(x, self._weight, self._bias, then, [], "none")
        return y


def prepack(layer: nn.Module, feed_forward: tuple[str, str] | None) -> int:
    """Prepacks every Linear of a layer, giving up torch's own copy of the weights. Returns how many were."""
    if not prepackable(layer):
        return 0
    dense, activation = (layer.get_submodule(name) for name in feed_forward) if feed_forward else (None, None)
    fused = is_gelu(activation)
    count = 0
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            _replace(module, fused and module is dense)
            count += 1
    if fused and activation is not None:
        activation.forward = _identity
    return count


def is_gelu(activation: nn.Module | None) -> bool:
    """Whether an activation is the GELU that products can be fused with."""
    return isinstance(activation, GELUActivation) and activation.act is gelu


def prepackable(layer: nn.Module) -> bool:
    """Whether oneDNN takes the products of a module on its device and in its dtype."""
    parameter = next(layer.parameters())
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    available = built and hasattr(torch.ops.mkldnn, "_linear_pointwise") and parameter.device.type == "cpu"
    return available and (parameter.dtype == torch.float32 or (parameter.dtype == torch.bfloat16 and multiplies_bfloat16()))


def multiplies_bfloat16() -> bool:
    """Whether oneDNN has products of bfloat16 for this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _replace(module: nn.Linear, fused: bool) -> None:
    dense = Dense(module)
    module.forward = dense.gelu if fused else dense  # type: ignore[method-assign, assignment]
    if fused:
        module.turret_plain = dense  # type: ignore[assignment]


def _identity(x: Tensor) -> Tensor:
    return x


def tap(module: nn.Module, address: str, stage: "Stage") -> None:
    """Lets the work that a batch has at `address` act on a linear; a fused GELU is undone for such a batch."""
    inner: Product = module.forward
    plain: Product | None = getattr(module, "turret_plain", None)

    def forward(x: Tensor) -> Tensor:
        work = stage.now().level.linears.get(address)
        if work is None:
            return inner(x)
        y = work.apply(x[0], plain or inner).unsqueeze(0)
        return y if plain is None else gelu(y)

    module.forward = forward


def dimensions(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear: torch's Linear, or GPT-2's Conv1D, whose weight lies [in, out]."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    assert isinstance(module, Conv1D)
    return module.nx, module.nf

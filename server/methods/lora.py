"""LoRA (Hu et al., arXiv 2106.09685) and (IA)^3 (Liu et al., 2205.05638) at one linear y = W x + b.

    LoRA    y = W x + b + s B A x                (IA)^3   y = l * (W x + b)   or, at an input, y = W (l * x) + b

With a gate g, mean over the row's tokens of sigmoid(G x), in place of the scaling s. Stacks are the library's: each part changes
what the part before it made, and the last one's kind decides how the result meets y:
two LoRAs give W x + b + s2 B2 A2 (s1 B1 A1 x), which is no sum. An average is the weighted mean of the parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """a [r, in], b [out, r]; gate_weight [1, in] and gate_bias [1] where the adapter is gated, [3, in] and [3] for q, k and v in one."""

    a: Tensor
    b: Tensor
    scaling: float
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScaleWeights:
    """scale [out], or [in] where `at_input`; gates as in LoRA."""

    scale: Tensor
    scaling: float = 1.0
    at_input: bool = False
    gate_weight: Tensor | None = None
    gate_bias: Tensor | None = None


Part = LoRAWeights | ScaleWeights


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Parts one after the other."""

    children: tuple["Node", ...]


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """The weighted mean of parts, weights that sum to 1. None is a child without a part here: it leaves y as it is."""

    children: tuple["Node | None", ...]
    weights: tuple[float, ...]


Node = Part | Chain | Mean


def parts(node: Node) -> Iterator[Part]:
    """The parts of a node, first to last."""
    if isinstance(node, Chain | Mean):
        for child in node.children:
            if child is not None:
                yield from parts(child)
    else:
        yield node


def gated(node: Node) -> bool:
    """Whether the answer of a token depends on the other tokens of its row."""
    return any(part.gate_weight is not None for part in parts(node))


def scaled_input(node: Node, x: Tensor) -> Tensor:
    """x [tokens, in] as the linear shall read it."""
    factor = _input_factor(node)
    return x if factor is None else x * factor


def _input_factor(node: Node) -> Tensor | None:
    match node:
        case ScaleWeights(scale, scaling, True):
            return scale * scaling
        case Chain(children):
            factors = [factor for child in children if (factor := _input_factor(child)) is not None]
            return torch.stack(factors).prod(dim=0) if factors else None
        case Mean(children, weights):
            found = [None if child is None else _input_factor(child) for child in children]
            if all(factor is None for factor in found):
                return None
            return sum((w * (1.0 if f is None else f) for w, f in zip(weights, found, strict=True)), torch.zeros(()))  # type: ignore[return-value]
        case _:
            return None


def adapt(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """The linear's output [tokens, out] with the parts in force; x [tokens, in] is one row's input, y its W x + b."""
    made, last = _made(node, x, None)
    if made is None or last is None:
        return y
    return y + made if isinstance(last, LoRAWeights) else y * made


def _made(node: Node, x: Tensor, made: Tensor | None) -> tuple[Tensor | None, Part | None]:
    match node:
        case LoRAWeights():
            out = linear(linear(x if made is None else made, node.a), node.b)
            return out * (_gate(node, x) if node.gate_weight is not None else node.scaling), node
        case ScaleWeights(at_input=True):
            return made, None
        case ScaleWeights():
            out = node.scale if made is None else made * node.scale
            return out * (_gate(node, x) if node.gate_weight is not None else node.scaling), node
        case Chain(children):
            last: Part | None = None
            for child in children:
                made, one = _made(child, x, made)
                last = one or last
            return made, last
        case Mean(children, weights):
            found = [(None, None) if child is None else _made(child, x, made) for child in children]
            last = next((part for _, part in reversed(found) if part is not None), None)
            if last is None:
                return made, None
            neutral = 0.0 if isinstance(last, LoRAWeights) else 1.0  # what leaves y as it is
            total = torch.zeros((), device=x.device, dtype=x.dtype)
            for weight, (change, _) in zip(weights, found, strict=True):
                total = total + weight * (neutral if change is None else change)
            return total, last


def _gate(part: Part, x: Tensor) -> Tensor:
    """[1], or [out] where each third of the outputs has a gate of its own."""
    assert part.gate_weight is not None
    gate = torch.sigmoid(linear(x, part.gate_weight, part.gate_bias)).mean(dim=0)
    outputs = part.b.shape[0] if isinstance(part, LoRAWeights) else part.scale.shape[0]
    return gate if gate.numel() == 1 else gate.repeat_interleave(outputs // gate.numel())

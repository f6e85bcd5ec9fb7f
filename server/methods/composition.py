"""Compositions at a site, step by step, as the `adapters` library composes them (its `adapter_layer_base.py`, 1.3.0).

A node is what is left of a setup at one site once the packages without a module there are gone. `run` is one row's way through
it; the answer is the row's own, as if it ran alone. Where the library errs (`Average` divides by the number of children a second
time) the meaning is kept: the weighted mean with weights that sum to 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adapter_store.methods import Bottleneck, Fusion
from server.methods.bottleneck import BottleneckWeights, Norm, before, single
from server.methods.fusion import FusionWeights, fuse


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One adapter with a module at the site. `digest` is its package."""

    digest: str
    config: Bottleneck
    weights: BottleneckWeights


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """Nodes one after the other."""

    children: tuple["Node", ...]


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """The weighted mean of nodes, weights that sum to 1. None is a child without a module at the site: its output is h as it came."""

    children: tuple["Node | None", ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """AdapterFusion of nodes (adapters, or stacks of them). `number` is its place among the setup's fusions."""

    config: Fusion
    weights: FusionWeights
    children: tuple["Node", ...]
    number: int = 0


Node = Adapter | Stacked | Averaged | Fused


def adapters(node: Node) -> Iterator[Adapter]:
    """The adapters of a node, first to last."""
    if isinstance(node, Adapter):
        yield node
    else:
        for child in node.children:
            if child is not None:
                yield from adapters(child)


def gated(node: Node) -> bool:
    """Whether the answer of a token depends on the other tokens of its row."""
    return any(adapter.config.use_gating for adapter in adapters(node))


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    hidden: Tensor
    x: Tensor
    norm: Norm | None
    residual: Tensor
    up: Tensor | None = None
    last: Bottleneck | None = None


def run(
    node: Node, h: Tensor, x: Tensor, norm: Norm | None, attentions: list[tuple[int, Tensor]] | None = None
) -> tuple[Tensor, Bottleneck]:
    """The output of the adapters of one row at one site, [tokens, H], and the config that decides what comes after it.

    Each fusion's number and attention [tokens, members] are appended to `attentions`.
    """
    top = Stacked((node,)) if isinstance(node, Adapter) else node
    state = _compose(top, _State(h, x, norm, x), attentions)
    assert state.last is not None
    return state.hidden, state.last


def after(last: Bottleneck, out: Tensor, h: Tensor, x: Tensor, norm: Norm | None) -> Tensor:
    """The site's end, governed by the last adapter that ran; without `original_ln_after` the output is left as it is."""
    if last.is_parallel:
        out = out + h
    if not last.original_ln_after:
        return out
    return out + x if norm is None else norm(out + x)


def _compose(node: Node, state: _State, attentions: list[tuple[int, Tensor]] | None) -> _State:
    match node:
        case Adapter():
            return _single(node, state)
        case Stacked(children):
            for child in children:
                prepared = _prepared(child.config, state) if isinstance(child, Adapter) else state
                state = _compose(child, prepared, attentions)
            return state
        case Averaged(children, weights):
            untouched = state
            state = _prepared(next(adapters(node)).config, state)
            states = [untouched if child is None else _compose(child, state, attentions) for child in children]
            mean = sum((weight * child.hidden for weight, child in zip(weights, states, strict=True)), torch.zeros_like(state.hidden))
            return replace(state, hidden=mean, up=None, last=list(adapters(node))[-1].config)
        case Fused(config, weights, children, _):
            last = list(adapters(node))[-1].config
            query = state.x if last.is_parallel else state.hidden
            state = _prepared(last, state)
            if not config.query_before_ln:
                query = state.hidden
            ups = [_compose(child, state, attentions).up for child in children]
            assert all(up is not None for up in ups)
            out, attention = fuse(config, weights, query, torch.stack([up for up in ups if up is not None], dim=1), state.residual)
            if attentions is not None:
                attentions.append((node.number, attention))
            return replace(state, hidden=out, last=last)


def _prepared(config: Bottleneck, state: _State) -> _State:
    z, residual = before(config, state.hidden, state.x, state.norm)
    return replace(state, hidden=z, residual=residual)


def _single(adapter: Adapter, state: _State) -> _State:
    out, up = single(adapter.config, adapter.weights, state.hidden, state.residual)
    return replace(state, hidden=out, up=up, last=adapter.config)

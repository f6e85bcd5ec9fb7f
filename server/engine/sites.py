"""Sites: the places in the backbone where bottleneck adapters and fusions act, and the work that a batch has for each of them.

`install` taps transformers' own modules as the family's row says: the sub-layer's output h, the residual x and, in post-norm
models, the norm, which is where the site does its work there: bare rows get norm(h + x), adapter rows what their program says. In
pre-norm models the layer adds h and x itself, and the site changes h. A site reads the batch's work from the `Stage`, which holds
it for exactly one forward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adapter_store.families import SiteModules
from adapter_store.methods import Bottleneck
from server.engine.bank import Bank, Segment, Taken
from server.engine.transfers import on_device
from server.methods.bottleneck import DeltaInput, Norm
from server.methods.composition import Node, after, run
from server.methods.fusion import Folded

if TYPE_CHECKING:
    from server.engine.running import Stage

Span = tuple[int, int]
Attentions = list[tuple[int, tuple[Span, ...], Tensor]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some tokens of a batch: the spans of the sequences they belong to, and their indices where they do not lie in one piece."""

    spans: tuple[Span, ...]
    indices: Tensor | None

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> "Tokens":
        """The tokens of spans, in their order."""
        whole = all(one[1] == other[0] for one, other in pairwise(spans))
        indices = None if whole else on_device(np.concatenate([np.arange(a, b) for a, b in spans]), device)
        return cls(tuple(spans), indices)

    def take(self, tensor: Tensor) -> Tensor:
        """The tokens' rows of [T, n]: a view where they lie in one piece."""
        return tensor[self.spans[0][0] : self.spans[-1][1]] if self.indices is None else tensor.index_select(0, self.indices)

    def put(self, tensor: Tensor, rows: Tensor) -> None:
        """Writes the tokens' rows of [T, n]."""
        if self.indices is None:
            tensor[self.spans[0][0] : self.spans[-1][1]] = rows
        else:
            tensor.index_copy_(0, self.indices, rows)


# Tokens, their adapters' output, the config that decides what comes after it, and the tokens' own h and x.
Step = tuple[Tokens, Tensor, Bottleneck, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class DeltaWork:
    """The segments of one bank at a site. `taken` is shared by the sites of a batch."""

    bank: Bank
    segments: tuple[Segment, ...]
    taken: Taken


@dataclass(frozen=True, slots=True)
class FoldedWork:
    """The tokens of one folded fusion at a site, and what the fusion reads."""

    folded: Folded
    input: DeltaInput
    tokens: Tokens
    number: int


@dataclass(frozen=True, slots=True)
class NodeWork:
    """The tokens of one composition that goes step by step; `rows` are its sequences where an answer depends on the whole row."""

    node: Node
    tokens: tuple[Tokens, ...]


@dataclass(frozen=True, slots=True)
class SiteWork:
    """All that a batch has to do at one site; tokens that are not named are bare."""

    deltas: tuple[DeltaWork, ...] = ()
    folded: tuple[FoldedWork, ...] = ()
    nodes: tuple[NodeWork, ...] = ()

    @property
    def reads_sublayer(self) -> bool:
        """Whether the sub-layer's own output h is needed, and not only h + x."""
        inputs = [work.bank.shape.input for work in self.deltas] + [work.input for work in self.folded]
        return bool(self.nodes) or "sublayer" in inputs

    def after_norm(self, site: str, h: Tensor | None, x: Tensor, s: Tensor, norm: Norm, explained: Attentions | None) -> Tensor:
        """A post-norm site's output for all tokens, [T, H], from x, s = h + x and, if `reads_sublayer`, h. Overwrites s, a temporary."""
        answers = [
            (tokens, after(last, out, rows, residual, norm)) for tokens, out, last, rows, residual in self._steps(h, x, norm, explained)
        ]
        inputs = self._inputs(h, x, lambda: norm(s))
        self._add(site, inputs, s, explained)
        y = norm(s)
        for tokens, answer in answers:
            tokens.put(y, answer)
        return y

    def before_sum(self, site: str, h: Tensor, x: Tensor, hooked: bool, explained: Attentions | None) -> Tensor:
        """A pre-norm site's h for all tokens, [T, H], to which the layer adds x. Overwrites h, a temporary of the layer."""
        answers = []
        for tokens, out, last, rows, residual in self._steps(h, x, None, explained):
            out = out + rows if last.is_parallel else out
            answers.append((tokens, out if last.original_ln_after or hooked else out - residual))
        inputs = self._inputs(h, x, lambda: h + x)
        self._add(site, inputs, h, explained)
        for tokens, answer in answers:
            tokens.put(h, answer)
        return h

    def _steps(self, h: Tensor | None, x: Tensor, norm: Norm | None, explained: Attentions | None) -> list[Step]:
        """What goes step by step."""
        steps: list[Step] = []
        for work in self.nodes:
            assert h is not None
            for tokens in work.tokens:
                rows, residual = tokens.take(h), tokens.take(x)
                attentions: list[tuple[int, Tensor]] = []
                out, last = run(work.node, rows, residual, norm, None if explained is None else attentions)
                steps.append((tokens, out, last, rows, residual))
                if explained is not None:
                    explained += [(number, tokens.spans, attention) for number, attention in attentions]
        return steps

    def _inputs(self, h: Tensor | None, x: Tensor, normed: Callable[[], Tensor]) -> dict[DeltaInput, Tensor]:
        read = {work.bank.shape.input for work in self.deltas} | {work.input for work in self.folded}
        inputs: dict[DeltaInput, Tensor] = {"residual": x}
        if h is not None:
            inputs["sublayer"] = h
        if "norm" in read:
            inputs["norm"] = normed()
        return inputs

    def _add(self, site: str, inputs: dict[DeltaInput, Tensor], total: Tensor, explained: Attentions | None) -> None:
        """Adds every delta to `total`, in place."""
        for delta in self.deltas:
            delta.bank.add_delta(site, delta.segments, inputs[delta.bank.shape.input], total, delta.taken)
        for work in self.folded:
            z, out = work.tokens.take(inputs[work.input]), work.tokens.take(total)
            attention = work.folded.add(z, out)
            if work.tokens.indices is not None:
                work.tokens.put(total, out)
            if explained is not None:
                explained.append((work.number, work.tokens.spans, attention))


class Site:
    """One site of one layer: takes h and x where they pass by, and does its work."""

    def __init__(self, address: str, stage: "Stage", norm: Norm | None, hooked: bool, swapped: bool) -> None:
        self.address = address
        self._swapped = swapped
        self._stage = stage
        self._norm = norm
        self._hooked = hooked
        self.h: Tensor | None = None
        self.x: Tensor | None = None

    def at_norm(self, s: Tensor) -> Tensor:
        """In place of a post-norm model's norm; s = h + x is [1, T, H]."""
        running = self._stage.now()
        work = running.level.sites.get(self.address)
        h, x, self.h, self.x = self.h, self.x, None, None
        assert self._norm is not None
        if work is None:
            return self._norm(s)
        assert h is not None
        assert x is not None
        h, x = (x, h) if self._swapped else (h, x)
        return work.after_norm(self.address, h[0], x[0], s[0], self._norm, running.noted(self.address)).unsqueeze(0)

    def at_sublayer(self, h: Tensor) -> Tensor:
        """Behind a pre-norm model's sub-layer; h is [1, T, H]."""
        running = self._stage.now()
        work = running.level.sites.get(self.address)
        x, self.x = self.x, None
        if work is None:
            return h
        assert x is not None
        return work.before_sum(self.address, h[0], x[0], self._hooked, running.noted(self.address)).unsqueeze(0)


def install(layer: nn.Module, number: int, sites: Sequence[SiteModules], stage: "Stage", hooked: bool) -> None:
    """Installs the sites of one layer. Addresses are `layers.{number}.{site}`."""
    for modules in sites:
        norm = layer.get_submodule(modules.norm) if modules.norm else None
        site = Site(f"layers.{number}.{modules.site}", stage, None if norm is None else norm.forward, hooked, modules.swapped)
        _tap_output(layer.get_submodule(modules.sublayer), site, changes=norm is None)
        _tap_input(layer.get_submodule(modules.residual) if modules.residual else layer, site)
        if norm is not None:
            norm.forward = site.at_norm


def _tap_output(module: nn.Module, site: Site, changes: bool) -> None:
    inner: Callable[..., Tensor] = module.forward

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        site.h = inner(*args, **kwargs)
        return site.h

    def change(*args: Any, **kwargs: Any) -> Tensor:
        return site.at_sublayer(inner(*args, **kwargs))

    module.forward = change if changes else keep


def _tap_input(module: nn.Module, site: Site) -> None:
    inner: Callable[..., Any] = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        site.x = args[0] if args else kwargs["hidden_states"]
        return inner(*args, **kwargs)

    module.forward = forward

"""Sites: the places in the backbone where adapters act, and the work that a batch has for each of them.

`install` taps transformers' own modules as the family's row says: the sub-layer's output h, the residual x, and the norm,
which is where the site does its work: bare rows get norm(h + x), adapter rows what their program says. A site reads the
batch's work from the `Stage`, which holds it for exactly one forward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from server.engine.bank import Bank, Segment, SiteIndex
from server.engine.families import Family
from server.methods.bottleneck import Acting, Norm, stack


@dataclass(frozen=True, slots=True)
class DeltaWork:
    """The segments of one bank at a site."""

    bank: Bank
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class StackWork:
    """One row [start, end) whose adapters go through the library's order of operations."""

    start: int
    end: int
    adapters: tuple[Acting, ...]


@dataclass(frozen=True, slots=True)
class SiteWork:
    """All that a batch has to do at one site; rows that are not named are bare."""

    deltas: tuple[DeltaWork, ...] = ()
    stacks: tuple[StackWork, ...] = ()

    def apply(self, site: SiteIndex, h: Tensor, x: Tensor, s: Tensor, norm: Norm) -> Tensor:
        """The site's output for all tokens, [T, H], from h, x and s = h + x. Overwrites s, a temporary of the layer."""
        answers = [stack(work.adapters, h[work.start : work.end], x[work.start : work.end], norm) for work in self.stacks]
        inputs: dict[str, Tensor] = {"sublayer": h, "residual": x}
        if any(delta.bank.shape.input == "norm" for delta in self.deltas):
            inputs["norm"] = norm(s)
        for delta in self.deltas:
            delta.bank.add_delta(site, delta.segments, inputs[delta.bank.shape.input], s)
        y = norm(s)
        for work, answer in zip(self.stacks, answers, strict=True):
            y[work.start : work.end] = answer
        return y


Plan = dict[SiteIndex, SiteWork]


class Stage:
    """Holds the plan of the batch that is running. One per backbone; entering it twice is an error."""

    def __init__(self) -> None:
        self.plan: Plan | None = None

    @contextmanager
    def running(self, plan: Plan) -> Iterator[None]:
        """Sets the plan for one forward."""
        if self.plan is not None:
            raise RuntimeError("a forward is already running on this backbone")
        self.plan = plan
        try:
            yield
        finally:
            self.plan = None


class Site:
    """One site of one layer: takes h and x where they pass by, and answers in place of the norm."""

    def __init__(self, index: SiteIndex, stage: Stage, norm: nn.Module) -> None:
        self.index = index
        self._stage = stage
        self._norm: Norm = norm.forward
        self.h: Tensor | None = None
        self.x: Tensor | None = None

    def forward(self, s: Tensor) -> Tensor:
        """norm(s) for bare rows, the adapters' answer for the others; s = h + x is [1, T, H]."""
        if self._stage.plan is None:
            raise RuntimeError("the backbone was called outside of Backbone.forward")
        work = self._stage.plan.get(self.index)
        h, x, self.h, self.x = self.h, self.x, None, None
        if work is None:
            return self._norm(s)
        assert h is not None
        assert x is not None
        return work.apply(self.index, h[0], x[0], s[0], self._norm).unsqueeze(0)


def install(model: nn.Module, family: Family, stage: Stage) -> int:
    """Installs the family's sites in a model's layers and returns how many there are. Site index: layer * sites + site."""
    layers: Sequence[nn.Module] = list(model.get_submodule(family.layers).children())
    for number, layer in enumerate(layers):
        for place, modules in enumerate(family.sites):
            norm = layer.get_submodule(modules.norm)
            site = Site(number * len(family.sites) + place, stage, norm)
            _tap_output(layer.get_submodule(modules.sublayer), site)
            _tap_input(layer.get_submodule(modules.residual) if modules.residual else layer, site)
            norm.forward = site.forward
    return len(layers) * len(family.sites)


def _tap_output(module: nn.Module, site: Site) -> None:
    inner: Callable[..., Tensor] = module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        site.h = inner(*args, **kwargs)
        return site.h

    module.forward = forward


def _tap_input(module: nn.Module, site: Site) -> None:
    inner: Callable[..., Any] = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        site.x = x
        return inner(x, *args, **kwargs)

    module.forward = forward

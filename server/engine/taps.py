"""Taps: where the plan of a batch meets transformers' own modules. Nothing of an architecture is written anew.

`install` wraps the forward of the modules that a family's row names: linears, sub-layers and norms (`sites.py`), attentions, layers,
embeddings. Taps are instance attributes (`module.forward = ...`), and each reads the batch's work from the `Stage`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapter_store.families import Family, Layers
from server.engine import linears, postnorm, sites
from server.engine.attention import Rule
from server.engine.postnorm import PostNormLayer, PostNormWeights
from server.engine.running import Stage


def layers_of(model: nn.Module, layers: Layers) -> list[nn.Module]:
    """The layers of one stack, in order."""
    if "{g}" not in layers.path:
        return list(model.get_submodule(layers.path.removesuffix(".{i}")).children())
    groups, inner = re.split(r"\.\{g\}\.", layers.path.removesuffix(".{i}"))
    return [layer for group in model.get_submodule(groups).children() for layer in group.get_submodule(inner).children()]


def linears_of(layer: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The linears of a layer by canonical name; of alternative paths the one that is there."""
    there = dict(layer.named_modules())
    found = {name: next((path for path in paths.split("|") if path in there), None) for name, paths in layers.linears.items()}
    return {name: there[path] for name, path in found.items() if path is not None}


def prepare(model: nn.Module, family: Family) -> list[PostNormWeights | None]:
    """Lays out the frozen weights for their products, once for all copies of the modules. By layer: what a flat layer needs of it, None
    where transformers' own layer runs.
    """
    flat: list[PostNormWeights | None] = []
    for layers in family.layers:
        for layer in layers_of(model, layers):
            named = linears_of(layer, layers)
            if not family.shared_layers and not family.encoder_decoder and postnorm.fits(layers, named):
                flat.append(postnorm.take(layer, layers, named))
            else:
                linears.prepack(layer, layers.feed_forward)
                flat.append(None)
    return flat


def install(model: nn.Module, family: Family, heads: int, stage: Stage, flat: Sequence[PostNormWeights | None] = ()) -> None:
    """Taps a model. flat: what `prepare` returned; without it the slow twins run."""
    number = 0
    for which, layers in enumerate(family.layers):
        first = number
        for layer in layers_of(model, layers):
            weights = flat[number] if flat else None
            if weights is not None:
                layer.forward = PostNormLayer(weights, number, heads, stage).forward
            else:
                for name, module in linears_of(layer, layers).items():
                    linears.tap(module, f"layers.{number}.{name}", stage)
                sites.install(layer, number, layers.sites, stage, family.hooked)
                _tap_attentions(layer, layers, number, first, family, model, which)
                _tap_norms(layer, layers, number, stage)
            _tap_levels(layer, number, stage)
            number += 1
    if "embedding_projection" in family.linears:
        projection = dict(model.named_modules()).get(family.linears["embedding_projection"])
        if projection is not None:
            linears.tap(projection, "embedding_projection", stage)
    _tap_embeddings(model, family, stage)
    if family.last is not None:
        _tap_last(model.get_submodule(family.last), stage)
    if family.encoder_decoder:
        for stack in ("encoder", "decoder"):
            _tap_norm(model.get_submodule(f"{stack}.final_layer_norm"), f"final.{stack}", stage)


def _tap_attentions(layer: nn.Module, layers: Layers, number: int, first: int, family: Family, model: nn.Module, which: int) -> None:
    """Tells each attention its rule, and hands its input on, for gates on prefixes."""
    for group, path in layers.attentions.items():
        module = layer.get_submodule(path)
        causal = family.causal or (which == 1 and group == "self")
        window = getattr(module, "sliding_window", None)
        bias = _relative_bias(model, layers, path) if family.encoder_decoder and group != "cross" else None
        module.turret_rule = Rule(number, group, causal, None if window is None else window - 1, bias, first)  # type: ignore[assignment]
        module.forward = _attending(module.forward, family.encoder_decoder)


def _attending(inner: Callable[..., Any], relative: bool) -> Callable[..., Any]:
    """An attention's forward that leaves its input with the running state. T5's own position bias, [T, T], is never made."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        kwargs["running"].attention_input = hidden[0]
        if relative:
            kwargs["position_bias"] = hidden
        return inner(*args, **kwargs)

    return forward


def _relative_bias(model: nn.Module, layers: Layers, path: str) -> Callable[[int, int, int], Tensor]:
    """T5's relative positions from the table of the stack's first layer: (queries, keys, first query) -> [heads, queries, keys]."""
    table: Any = layers_of(model, layers)[0].get_submodule(path)
    kept: dict[tuple[int, int, int], Tensor] = {}

    def bias(queries: int, keys: int, first: int) -> Tensor:
        size = (queries, keys, first)
        if size not in kept:
            if len(kept) >= 256:
                kept.clear()
            kept[size] = table.compute_bias(queries, keys, past_seen_tokens=first)[0]
        return kept[size]

    return bias


def _tap_norms(layer: nn.Module, layers: Layers, number: int, stage: Stage) -> None:
    for name, path in layers.norms.items():
        _tap_norm(layer.get_submodule(path), f"layers.{number}.{name}", stage)


def _tap_norm(norm: nn.Module, address: str, stage: Stage) -> None:
    """Lets rows have a weight of their own in a T5LayerNorm (y = x / rms(x) * weight)."""
    inner = norm.forward
    eps: float = norm.variance_epsilon  # type: ignore[assignment]

    def forward(x: Tensor) -> Tensor:
        y: Tensor = inner(x)
        for (start, end), weight in stage.now().level.norms.get(address, ()):
            rows = x[0, start:end].float()
            y[0, start:end] = (rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + eps)).to(weight.dtype) * weight
        return y

    norm.forward = forward


def _tap_levels(layer: nn.Module, number: int, stage: Stage) -> None:
    """Moves to the plan's next level where one begins: the sequences that part there are gathered."""
    inner = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        running = stage.now()
        gather = running.enter(number)
        if gather is not None:
            if args:
                args = (args[0].index_select(1, gather), *args[1:])
            else:
                kwargs["hidden_states"] = kwargs["hidden_states"].index_select(1, gather)
        origin = running.level.origin
        if origin is not None and kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = tuple(t.index_select(1, origin) for t in kwargs["position_embeddings"])
        return inner(*args, **kwargs)

    layer.forward = forward


def _tap_last(module: nn.Module, stage: Stage) -> None:
    """Keeps the whole of the last level's output, of which the model gets as many tokens as it was given."""
    inner = module.forward

    def forward(x: Tensor) -> Tensor:
        y: Tensor = inner(x)
        running = stage.now()
        running.last = y[0]
        return y[:, : len(running.plan.input_ids)]

    module.forward = forward


def _tap_embeddings(model: nn.Module, family: Family, stage: Stage) -> None:
    def after(module: nn.Module, change: Callable[[Any, Tensor], Tensor]) -> None:
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            output: Tensor = inner(*args, **kwargs)
            work = stage.now().plan.embeddings
            return output if work is None else change(work, output[0]).unsqueeze(0)

        module.forward = forward

    if family.words == family.embeddings:
        after(model.get_submodule(family.words), lambda work, output: work.at_embeddings(work.at_words(output)))
        return
    if family.encoder_decoder:  # the encoder's own table is words and embeddings in one
        after(model.get_submodule(family.embeddings), lambda work, output: work.at_embeddings(work.at_words(output)))
        return
    after(model.get_submodule(family.words), lambda work, output: work.at_words(output))
    after(model.get_submodule(family.embeddings), lambda work, output: work.at_embeddings(output))

"""Attention over packed sequences, registered with transformers as `turret_packed`.

q, k, v arrive as [1, heads, T, head size] for T tokens of many sequences in a row. Each sequence attends within itself (or, in a
decoder's cross-attention, to its own encoder tokens): causally, within a sliding window, with T5's relative positions, behind
learned prefixes, as its family and its adapters say. On the CPU, neighbours of equal length and prefix are one SDPA call on a
plain view; `attend_each` is the slow twin, one softmax per sequence. Every forward hands in its `Running` state: stock attention
would silently mix neighbours, so its absence is an error.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from server.core import Ints
from server.engine.varlen import Varlen
from server.methods.prefix import PrefixWeights

NAME = "turret_packed"

# Prefixes of one sequence in one attention, in the order in which they stand before its keys.
Prefixes = tuple[PrefixWeights, ...]
NO_PREFIXES: Mapping[tuple[int, str], Prefixes] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """`count` neighbours of `length` tokens each from `start` on, all with the same prefixes by (layer, group)."""

    start: int
    count: int
    length: int
    prefixes: Mapping[tuple[int, str], Prefixes] = field(default_factory=dict)

    def each(self) -> "Iterator[Run]":
        """The run's sequences, each as a run of its own."""
        for number in range(self.count):
            yield Run(self.start + number * self.length, 1, self.length, self.prefixes)


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the sequences of a batch lie. `memory` gives, for each sequence of a decoder, the span of its encoder tokens.

    varlen: the same for one call, where the device has it and nothing stands before the keys.
    """

    runs: tuple[Run, ...]
    memory: tuple[tuple[int, int], ...] = ()
    varlen: Varlen | None = None

    @classmethod
    def of(cls, cu_seqlens: Ints, prefixes: list[Mapping[tuple[int, str], Prefixes]] | None = None) -> "Packing":
        """Runs of neighbouring equal lengths (and equal prefixes) of a batch, from its cu_seqlens [B+1]."""
        lengths = np.diff(cu_seqlens)
        if prefixes is None:
            edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
            return cls(tuple(Run(int(cu_seqlens[a]), int(b - a), int(lengths[a])) for a, b in pairwise(edges)))
        kinds = list(zip(lengths.tolist(), map(id, prefixes), strict=True))
        starts = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]] + [len(kinds)]
        return cls(tuple(Run(int(cu_seqlens[a]), b - a, int(lengths[a]), prefixes[a]) for a, b in pairwise(starts)))


@dataclass(frozen=True, slots=True)
class Rule:
    """How one attention of a model attends. `bias` is T5's table lookup: (queries, keys, first query) -> [heads, queries, keys].

    first_layer: the layer of the stack that has T5's table.
    """

    layer: int
    group: str
    causal: bool = False
    window: int | None = None
    bias: Callable[[int, int, int], Tensor] | None = None
    first_layer: int = 0


def attend_packed(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing, rule: Rule, x: Tensor) -> Tensor:
    """Attention within each sequence: [T, heads, head size] in and out. x [T, H] is the attention's input, for gated prefixes."""
    if packing.varlen is not None and packing.varlen.covers(rule, query):
        return packing.varlen.attend(query, key, value, scaling, rule)
    outputs: list[Tensor] = []
    for run in packing.runs:
        gated = any(prefix.gate_weight is not None for prefix in run.prefixes.get((rule.layer, rule.group), ()))
        outputs += [_attend(query, key, value, scaling, part, rule, x) for part in (run.each() if gated else (run,))]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, run: Run, rule: Rule, x: Tensor) -> Tensor:
    rows = slice(run.start, run.start + run.count * run.length)
    q, k, v = (t[rows].view(run.count, run.length, *t.shape[1:]).transpose(1, 2) for t in (query, key, value))
    prefixes = run.prefixes.get((rule.layer, rule.group), ())
    k, v = _behind(prefixes, k, v, x[rows])
    mask = _mask(rule, run, k.shape[2], q)
    causal = rule.causal and mask is None
    attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return attended.transpose(1, 2).flatten(0, 1)


def _behind(prefixes: Prefixes, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [count, heads, keys, head size] with the prefixes before them."""
    for prefix in prefixes:
        pk, pv = (t.unsqueeze(0).expand(k.shape[0], -1, -1, -1) for t in prefix.states(k.shape[1], x))
        k, v = torch.cat((pk, k), dim=2), torch.cat((pv, v), dim=2)
    return k, v


def _mask(rule: Rule, run: Run, keys: int, q: Tensor) -> Tensor | None:
    """What may be seen and how it is biased, [queries, keys] or [heads, queries, keys]; None where nothing must be said."""
    length = run.length
    before = keys - length
    window = rule.window is not None and length > rule.window + 1
    if not window and not before and rule.bias is None:
        return None
    if rule.bias is None and not rule.causal and not window:
        return None
    seen = torch.ones(length, keys, dtype=torch.bool, device=q.device)
    places = torch.arange(length, device=q.device)
    if rule.causal:
        seen[:, before:] = places[:, None] >= places[None, :]
    if window and rule.window is not None:
        seen[:, before:] &= (places[:, None] - places[None, :]).abs() <= rule.window
    if rule.bias is None:
        return seen
    lengths = {sum(p.length for p in run.prefixes.get((layer, rule.group), ())) for layer in range(rule.first_layer, rule.layer + 1)}
    if len(lengths) > 1:  # T5's first layer hands its bias on; the library loses it for good where the number of keys changes
        return seen
    shifted = sum(p.length for p in run.prefixes.get((rule.layer, rule.group), ()) if p.shifts)
    bias = rule.bias(length, keys, shifted).to(q.dtype)
    return bias.masked_fill(~seen, float("-inf")) if rule.causal else bias


def attend_each(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing, rule: Rule, x: Tensor) -> Tensor:
    """The slow twin of `attend_packed`: softmax(q k^T * scaling + mask) v, sequence by sequence."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for run in (one for many in packing.runs for one in many.each()):
        rows = slice(run.start, run.start + run.length)
        q, k, v = (t[rows].transpose(0, 1).unsqueeze(0) for t in (query, key, value))
        k, v = _behind(run.prefixes.get((rule.layer, rule.group), ()), k, v, x[rows])
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = q @ k.transpose(2, 3) * scale
        mask = _mask(rule, run, k.shape[2], q)
        if mask is None and rule.causal:
            mask = torch.ones(run.length, run.length, dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        outputs.append((torch.softmax(scores, dim=-1) @ v)[0].transpose(0, 1))
    return torch.cat(outputs)


def attend_across(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing, rule: Rule, x: Tensor) -> Tensor:
    """Cross-attention: each decoder sequence sees its own encoder tokens, key and value [encoder tokens, heads, head size]."""
    outputs = []
    runs = [one for many in packing.runs for one in many.each()]
    for run, (start, end) in zip(runs, packing.memory, strict=True):
        rows = slice(run.start, run.start + run.length)
        q = query[rows].transpose(0, 1).unsqueeze(0)
        k, v = (t[start:end].transpose(0, 1).unsqueeze(0) for t in (key, value))
        k, v = _behind(run.prefixes.get((rule.layer, rule.group), ()), k, v, x[rows])
        outputs.append(scaled_dot_product_attention(q, k, v, scale=scaling)[0].transpose(0, 1))
    return torch.cat(outputs)


def turret_packed(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    running: Any = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, T, head size] in, ([1, T, heads, head size], no weights) out."""
    if running is None:
        raise RuntimeError("turret_packed ran without its packing: the backbone was called outside of Backbone.forward")
    rule: Rule = module.turret_rule  # type: ignore[assignment]
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    attend = attend_across if rule.group == "cross" else attend_packed
    return attend(q, k, v, scaling, running.packing, rule, running.attention_input).unsqueeze(0), None


AttentionInterface.register(NAME, turret_packed)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)

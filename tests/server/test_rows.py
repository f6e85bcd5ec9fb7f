"""A row's answer is its own: alone, in any company, by the fast path and by its slow twin. Banks keep what they hold."""

import gc
import random
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Bottleneck
from adapter_store.package import open_package
from server.core import Average, Fuse, Outputs, Pooling, Readout, Route, Sequence, Setup, Stack, Use, pack
from server.engine.attention import Packing, Rule, attend_each, attend_packed
from server.engine.backbone import Backbone, load_backbone
from server.engine.bank import Bank, BankShape, InSlot
from server.engine.engine import Engine
from server.methods.bottleneck import BottleneckWeights, Dense

TOLERANCE = 1e-5

HEADS: dict[str, Head] = {
    "two": tiny.classifier("yes", "no"),
    "pooled": Head(type="multilabel_classification", use_pooler=True, labels=("a", "b", "c")),
    "tags": Head(type="tagging", labels=("O", "B-X", "I-X")),
}
STACKS = [
    ("pfeiffer", "houlsby"),
    ("parallel", "gated"),
    ("dropped", "pfeiffer"),
    ("channel", "ln_after", "post_add"),
    ("no_ln", "after_ln"),
    ("compacter", "pfeiffer"),
    ("madx", "phm_gated"),
    ("lora", "lora_all"),
    ("lora_gated", "ia3"),
    ("ia3", "ia3_peft", "ia3_gated"),
    ("prefix", "pfeiffer", "lora"),
    ("prefix_mlp", "prefix_shifted", "prefix_gated"),
    ("mam", "unipelt"),
    ("prompt", "houlsby"),
]
AVERAGES = [("pfeiffer", "gated"), ("houlsby", "dropped"), ("lora", "lora_all"), ("ia3", "ia3_peft"), ("parallel", "compacter")]

# Members of fusions, all of which act at the output site of every layer and nowhere else.
MEMBERS = [
    ("pfeiffer", "pfeiffer"),
    ("pfeiffer", "compacter++", "gated"),
    ("full_w", "shared_w"),
    ("parallel", "pfeiffer"),
    ("no_ln", "after_ln"),
]


@dataclass(frozen=True)
class Twins:
    """The same packages in an engine with every fast path, in one that runs batches in several lanes, and in one with neither."""

    fast: Engine
    lanes: Engine
    slow: Engine
    routes: tuple[Route, ...]


def load(engine: Engine, folder: Path, digest: str, data: bytes) -> None:
    path = folder / f"{digest}.safetensors"
    path.write_bytes(data)
    engine.load(digest, engine.read(path, open_package(path).manifest))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(tiny.save_backbone(folder / "backbone")), device="cpu")


@pytest.fixture(scope="module")
def twins(backbone: Backbone, folder: Path) -> Twins:
    """Adapters of every kind, three of each so that banks hold several, with every kind of head, and stacks of them."""
    source = str(folder / "backbone")
    engines = (
        Engine(backbone),
        Engine(load_backbone(source, device="cpu", lanes=3), lane_tokens=8),
        Engine(load_backbone(source, device="cpu", fast=False), fast=False),
    )
    routes = [Route("base")]
    for seed, (kind, config) in enumerate([*tiny.KINDS.items()] * 3):
        name = f"{kind}-{seed}"
        head_name, head = list(HEADS.items())[seed % 3]
        data = tiny.adapter(config, head, seed)
        for engine in engines:
            load(engine, folder, name, data)
        routes.append(Route(f"{name}#{head_name}", name, Use(name), head, name))
    for seed, (kind, methods) in enumerate(tiny.OTHERS.items()):
        head_name, head = list(HEADS.items())[seed % 3]
        data = tiny.package(Manifest(methods=methods, head=head, backbone=tiny.SPEC), seed)
        for engine in engines:
            load(engine, folder, kind, data)
        routes.append(Route(f"{kind}-", kind, Use(kind), head, kind))
    for number, average in enumerate(AVERAGES):
        uses = tuple(next(route.setup for route in routes if route.model.startswith(f"{kind}-")) for kind in average)
        weights = tuple((i + 1) / sum(range(len(uses) + 1)) for i in range(len(uses)))
        routes.append(Route(f"average-{number}", None, Average(tuple(use for use in uses if use), weights)))
    for seed, (kind, fusion) in enumerate(tiny.FUSIONS.items()):
        for number, fused in enumerate(MEMBERS):
            names_ = [[name for name in (f"{kind_}-{i}" for i in range(60)) if name in engines[0].resident] for kind_ in fused]
            children = tuple(Use(found[place % len(found)]) for place, found in enumerate(names_))
            composition = f"fuse[self]({', '.join(f'x@sha256:{0:064x}' for _ in children)})"
            data = tiny.package(Manifest(methods={"fusion": fusion}, composition=composition, backbone=tiny.SPEC), seed, scale=0.05)
            for engine in engines:
                load(engine, folder, f"fusion-{kind}", data)
            routes.append(Route(f"{kind}-{number}", None, Fuse(f"fusion-{kind}", children)))
    inner = next(route.setup for route in routes if isinstance(route.setup, Fuse))
    routes.append(Route("language and fusion", None, Stack((Use("madx"), inner))))
    fused_stacks = Fuse("fusion-dynamic", (Stack((Use("madx"), Use("pfeiffer-0"))), Stack((Use("madx"), Use("gated-5")))))
    routes.append(Route("fused stacks", None, fused_stacks))
    for number, stack in enumerate(STACKS):
        names = tuple(next(route for route in routes if route.model.startswith(f"{kind}-")) for kind in stack)
        setup: Setup = Stack(tuple(route.setup for route in names if route.setup is not None))
        routes.append(Route(f"stack-{number}", None, setup, names[-1].head, names[-1].head_digest))
    return Twins(*engines, tuple(routes))


def a_row(route: Route, chance: random.Random) -> Sequence:
    length = chance.choice([1, 2, 3, 3, 7, 7, 12, 30])
    ids = np.array([chance.randrange(tiny.VOCABULARY) for _ in range(length)])
    types = np.array([0] * (length // 2) + [1] * (length - length // 2))
    pooling: Pooling = chance.choice(["mean", "cls"])
    readouts = [Readout("hidden"), Readout("embedding", pooling, chance.random() < 0.5)]
    return Sequence(route, ids, types, chance.choice(readouts if route.head is None else [*readouts, Readout(), Readout()]))


def run(engine: Engine, rows: list[Sequence]) -> list[Outputs]:
    """One output per row, in the order given."""
    batch, places = pack(rows)
    outputs = engine.run(batch)
    return [outputs[place] for place in places]


def worst(ones: list[Outputs], others: list[Outputs]) -> float:
    assert [{name: a.shape for name, a in one.items()} for one in ones] == [
        {name: a.shape for name, a in other.items()} for other in others
    ]
    return max(float(np.abs(one[name] - other[name]).max()) for one, other in zip(ones, others, strict=True) for name in one)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_alone_equals_the_row_in_any_company(twins: Twins, seed: int) -> None:
    chance = random.Random(seed)
    rows = [a_row(route, chance) for route in twins.routes]
    alone = [run(twins.fast, [row])[0] for row in rows]
    for _ in range(3):
        order = chance.sample(range(len(rows)), chance.randrange(2, len(rows) + 1))
        together = run(twins.fast, [rows[i] for i in order])
        assert worst([alone[i] for i in order], together) <= TOLERANCE


@pytest.mark.parametrize("seed", range(6))
def test_fast_paths_equal_their_slow_twins(twins: Twins, seed: int) -> None:
    chance = random.Random(seed)
    rows = [a_row(route, chance) for route in twins.routes for _ in range(3)]
    chance.shuffle(rows)
    fast = run(twins.fast, rows)
    assert worst(fast, run(twins.slow, rows)) <= TOLERANCE
    assert worst(fast, run(twins.lanes, rows)) <= TOLERANCE


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu"])
def test_prepacked_linears_equal_their_slow_twin(folder: Path, hidden_act: str) -> None:
    source = str(tiny.save_backbone(folder / hidden_act, hidden_act=hidden_act))
    chance = random.Random(hidden_act)
    rows = [a_row(Route("base"), chance) for _ in range(30)]
    fast, slow = (Engine(load_backbone(source, device="cpu", fast=fast)) for fast in (True, False))
    assert worst(run(fast, rows), run(slow, rows)) <= TOLERANCE


def test_what_a_fusion_attended_to_is_told_wherever_rows_part(twins: Twins) -> None:
    """Rows of one text that part above the fusion's first layers: what it attended to there was noted while they were fewer."""
    row = Sequence(twins.routes[0], np.arange(11), np.zeros(11, dtype=np.int64), Readout("hidden", explain=True))
    names = ("base", "lora_all-", "dynamic-0", "static-0", "dropped-4")
    rows = [replace(row, route=route) for route in twins.routes if route.model.startswith(names)]
    fused = [one for one in rows if isinstance(one.route.setup, Fuse)]
    assert len(fused) == 2
    together = run(twins.fast, rows)
    assert worst([run(twins.slow, [one])[0] for one in rows], together) <= TOLERANCE
    assert all(len(one) == 1 + tiny.LAYERS for one in together if len(one) > 1)
    assert sum(len(one) > 1 for one in together) == len(fused)


def test_every_adapter_does_something(twins: Twins) -> None:
    """Else the tests above would hold an idle engine equal to an idle engine."""
    row = replace(
        a_row(twins.routes[0], random.Random(0)), input_ids=np.arange(9), type_ids=np.zeros(9, dtype=np.int64), readout=Readout("hidden")
    )
    outputs = run(twins.fast, [replace(row, route=route) for route in twins.routes])
    for i, one in enumerate(outputs):
        for other in outputs[i + 1 :]:
            assert np.abs(one["hidden"] - other["hidden"]).max() > 1e-2


def test_rows_on_a_golden_backbone(golden: Path, tmp_path: Path) -> None:
    """Rows of RoBERTa, whose positions depend on padding ids: the padding token inside a row counts as the model counts it."""
    engine = Engine(load_backbone(str(golden / "roberta_pfeiffer_cls" / "backbone"), device="cpu"))
    chance = random.Random(1)
    rows = [
        Sequence(
            Route("base"), np.array([chance.randrange(200) for _ in range(length)]), np.zeros(length, dtype=np.int64), Readout("hidden")
        )
        for length in (3, 9, 9, 1, 5, 30)
    ]
    rows.append(replace(rows[1], input_ids=np.array([5, 1, 6, 1, 1, 7, 8, 9, 1])))
    assert worst([run(engine, [row])[0] for row in rows], run(engine, rows)) <= TOLERANCE


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_packed_attention_equals_attention_by_sequence(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    packing = Packing.of(cu_seqlens)
    assert [(run.start, run.count) for run in packing.runs] == [(cu_seqlens[a], b - a) for a, b in pairwise(runs(lengths))]
    q, k, v = (torch.randn(int(cu_seqlens[-1]), 4, 8, generator=generator) for _ in range(3))
    x = torch.empty(int(cu_seqlens[-1]), 0)
    rules = [Rule(0, "self"), Rule(0, "self", causal=True), Rule(0, "self", window=2), Rule(0, "self", causal=True, window=1)]
    for scaling, rule in product((None, 0.5), rules):
        one, other = attend_packed(q, k, v, scaling, packing, rule, x), attend_each(q, k, v, scaling, packing, rule, x)
        assert float((one - other).abs().max()) <= TOLERANCE


def runs(lengths: list[int]) -> list[int]:
    """Where a run of equal lengths begins, and the end."""
    return [0, *(i for i in range(1, len(lengths)) if lengths[i] != lengths[i - 1]), len(lengths)]


def weights_of(seed: int) -> dict[str, BottleneckWeights]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 8), (4,), (8, 4), (8,))

    def at_site() -> BottleneckWeights:
        down, down_bias, up, up_bias = (torch.randn(*shape, generator=generator) for shape in shapes)
        return BottleneckWeights(Dense(down, down_bias), Dense(up, up_bias))

    return {f"layers.{layer}.output": at_site() for layer in (1, 3)}


def same(slot: torch.Tensor, weights: Mapping[str, BottleneckWeights]) -> bool:
    held = InSlot(SHAPE, slot)
    pairs = [(getattr(held[site], name), getattr(w, name)) for site, w in weights.items() for name in ("down", "up")]
    return all(torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias) for one, other in pairs)


def of(seed: int) -> torch.Tensor:
    """An adapter laid out as a slot."""
    slot = torch.empty(SHAPE.numel)
    SHAPE.lay_out(PLAIN, weights_of(seed), slot)
    return slot


PLAIN = Bottleneck(reduction_factor=2)
SHAPE = BankShape.of(PLAIN, weights_of(0)) or pytest.fail("a plain bottleneck has a delta form")


def test_a_bank_keeps_what_its_slots_hold() -> None:
    bank = Bank(SHAPE)
    slots = {seed: bank.put(of(seed)) for seed in range(40)}
    assert sorted(slots.values()) == list(range(40))
    assert all(same(bank._slots[slot], weights_of(seed)) for seed, slot in slots.items())
    bank.free(slots[3])
    bank.free(slots[7])
    assert len(bank) == 38
    assert {bank.put(of(99)), bank.put(of(98))} == {slots[3], slots[7]}, "a number that is free is used again"
    assert same(bank._slots[slots[7]], weights_of(99))
    assert same(bank._slots[slots[4]], weights_of(4))


def test_a_freed_slot_leaves_nothing() -> None:
    bank = Bank(SHAPE)
    slots = [bank.put(of(seed)) for seed in range(3)]
    kept = weakref.ref(bank._slots[slots[1]].untyped_storage())
    assert kept() is not None
    bank.free(slots[1])
    gc.collect()
    assert kept() is None
    for slot in (slots[0], slots[2]):
        bank.free(slot)
    assert len(bank) == 0


def test_unload_and_load_answer_like_a_fresh_engine(backbone: Backbone, tmp_path: Path) -> None:
    """Packages come and go past a bank's capacity; who is there answers as it did alone in an engine of its own."""
    chance = random.Random(7)
    kinds = [tiny.KINDS["pfeiffer"], tiny.KINDS["houlsby"], tiny.KINDS["gated"]]
    data = {f"p{i}": tiny.adapter(kinds[i % 3], tiny.classifier("a", "b"), seed=100 + i) for i in range(36)}
    rows = {name: a_row(Route(name, name, Use(name), tiny.classifier("a", "b"), name), chance) for name in data}
    alone = {}
    for name, package in data.items():
        engine = Engine(backbone)
        load(engine, tmp_path, name, package)
        (alone[name],) = run(engine, [rows[name]])
    engine = Engine(backbone)
    for step in range(120):
        name = chance.choice(list(data))
        if name in engine.resident:
            engine.unload(name)
        else:
            load(engine, tmp_path, name, data[name])
        present = sorted(engine.resident)
        if present and step % 4 == 0:
            assert worst([alone[name] for name in present], run(engine, [rows[name] for name in present])) <= TOLERANCE
    assert len(engine.resident) > 8


def test_loading_twice_does_nothing(backbone: Backbone, tmp_path: Path) -> None:
    engine = Engine(backbone)
    for seed in (0, 1):
        load(engine, tmp_path, "same", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b"), seed))
    row = a_row(Route("same", "same", Use("same"), tiny.classifier("a", "b"), "same"), random.Random(0))
    first = Engine(backbone)
    load(first, tmp_path, "same", tiny.adapter(tiny.KINDS["pfeiffer"], tiny.classifier("a", "b"), 0))
    assert worst(run(engine, [row]), run(first, [row])) == 0.0


def test_the_backbone_cannot_be_called_around_the_packing(backbone: Backbone) -> None:
    with pytest.raises(RuntimeError, match="outside of"):
        backbone.model(input_ids=torch.zeros(1, 3, dtype=torch.int64))

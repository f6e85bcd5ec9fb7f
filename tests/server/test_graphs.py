"""Batches written into the tables of a captured forward answer as without it; on the CPU the forward is run again instead of replayed."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from test_rows import a_row, load, run, worst
from torch import Tensor
from varlen_twin import Reference

from adapter_store.manifest import Manifest
from adapter_store.methods import Fusion
from server.core import Fuse, Readout, Route, Sequence, Stack, Use
from server.engine.backbone import Backbone, load_backbone
from server.engine.engine import Engine
from server.engine.graphs import SEEN, Bucket, repeated, rounded
from server.engine.kernels import Kernels

TOLERANCE = 1e-5


class Counting:
    """Captures by running again, and counts."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        again = repeated(function)

        def replay() -> Tensor:
            self.replays += 1
            return again()

        return replay


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny.save_backbone(tmp_path_factory.mktemp("graphs") / "backbone")), device="cpu", lanes=1)


def engines(backbone: Backbone, capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]]) -> tuple[Engine, Engine]:
    return Engine(backbone, kernels=Kernels(True, Reference(), capture)), Engine(backbone)


def filled(both: tuple[Engine, ...], folder: Path) -> None:
    """Two banks of three adapters each, one of which acts at one site of a layer and the other at two; LoRAs, prefixes and a fusion."""
    head = tiny.classifier("yes", "no")
    for engine in both:
        for seed in range(3):
            for kind in ("pfeiffer", "houlsby", "gated"):
                load(engine, folder, f"{kind}-{seed}", tiny.adapter(tiny.KINDS[kind], head, seed))
        for kind in ("lora", "prefix", "prompt", "madx"):
            load(engine, folder, kind, tiny.package(Manifest(methods=tiny.OTHERS[kind], head=head, backbone=tiny.SPEC), 1))
        composition = f"fuse[self](a@sha256:{0:064x}, b@sha256:{1:064x})"
        manifest = Manifest(methods={"fusion": Fusion()}, composition=composition, backbone=tiny.SPEC)
        load(engine, folder, "fusion", tiny.package(manifest, 1, scale=0.05))


def test_batches_in_tables_answer_as_without(backbone: Backbone, tmp_path: Path) -> None:
    """Of any size and make, one after the other through few buckets, so that each finds the tables as another left them."""
    counting = Counting()
    both = engines(backbone, counting)
    filled(both, tmp_path)
    names = [None, *(f"{kind}-{seed}" for kind in ("pfeiffer", "houlsby") for seed in range(3))]
    chance = random.Random(0)
    for _ in range(60):
        kinds = chance.sample(names, chance.randrange(1, 4))
        routes = [Route(str(kind), None, None if kind is None else Use(kind)) for kind in kinds]
        rows = [a_row(chance.choice(routes), chance) for _ in range(chance.randrange(1, 9))]
        assert worst(*(run(engine, rows) for engine in both)) <= TOLERANCE
    assert 2 <= counting.captures < counting.replays
    assert counting.replays >= 20


@pytest.mark.parametrize("odd", ["gated", "lora", "prefix", "prompt", "madx", "fusion", "stack", "shared", "explained"])
def test_what_does_not_live_in_tables_runs_without(backbone: Backbone, tmp_path: Path, odd: str) -> None:
    counting = Counting()
    both = engines(backbone, counting)
    filled(both, tmp_path)
    setups = {
        "gated": Use("gated-0"),
        "fusion": Fuse("fusion", (Use("pfeiffer-0"), Use("pfeiffer-1"))),
        "stack": Stack((Use("pfeiffer-0"), Use("houlsby-0"))),
        "shared": Use("pfeiffer-2"),
        "explained": Fuse("fusion", (Use("pfeiffer-0"), Use("pfeiffer-1"))),
    }
    chance = random.Random(odd)

    def row(name: str, length: int) -> Sequence:
        ids = np.array([chance.randrange(tiny.VOCABULARY) for _ in range(length)])
        setup = setups.get(name, Use(name)) if name != "base" else None
        return Sequence(Route(name, None, setup), ids, np.zeros_like(ids), Readout("hidden", explain=name == "explained"))

    plain = [row("pfeiffer-0", 9), row("base", 4)]
    strange = [*plain, row(odd, 5)]
    if odd == "shared":  # two rows of one text, of which one's adapter begins above
        strange[1] = Sequence(strange[1].route, strange[2].input_ids, strange[2].type_ids, strange[1].readout)
        load(both[0], tmp_path, "upper", tiny.adapter(tiny.KINDS["pfeiffer"].model_copy(update={"leave_out": (0,)}), None, 3))
        load(both[1], tmp_path, "upper", tiny.adapter(tiny.KINDS["pfeiffer"].model_copy(update={"leave_out": (0,)}), None, 3))
        strange[2] = Sequence(Route("upper", None, Use("upper")), strange[2].input_ids, strange[2].type_ids, strange[2].readout)
    for _ in range(SEEN + 2):
        assert worst(*(run(engine, strange) for engine in both)) <= TOLERANCE
    assert counting.captures == 0
    for _ in range(SEEN + 2):
        assert worst(*(run(engine, plain) for engine in both)) <= TOLERANCE
    assert (counting.captures, counting.replays) == (1, 3)


def test_adapters_that_come_and_go_between_replays(backbone: Backbone, tmp_path: Path) -> None:
    """The tables hold addresses: a slot that was freed and taken by another must not answer."""
    counting = Counting()
    both = engines(backbone, counting)
    chance = random.Random(3)
    row = a_row(Route("it", None, Use("it")), chance)
    for seed in range(8):
        for engine in both:
            load(engine, tmp_path, f"stays-{seed % 2}", tiny.adapter(tiny.KINDS["pfeiffer"], None, 50 + seed % 2))
            load(engine, tmp_path, "it", tiny.adapter(tiny.KINDS["pfeiffer"], None, seed))
        assert worst(*(run(engine, [row]) for engine in both)) <= TOLERANCE
        for engine in both:
            engine.unload("it")
    assert (counting.captures, counting.replays) == (1, 8 - SEEN + 1)


def test_a_forward_that_cannot_be_captured_runs_without(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    def refusing(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    both = engines(backbone, refusing)
    row = a_row(Route("base"), random.Random(0))
    for _ in range(SEEN + 2):
        assert worst(*(run(engine, [row]) for engine in both)) <= TOLERANCE
    assert [record.message for record in caplog.records if "without a graph" in record.message] == [
        "batches of 64 tokens run without a graph: operation not permitted when stream is capturing"
    ]


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_buckets_hold_their_batches(lengths: list[int]) -> None:
    tokens = sum(lengths)
    bucket = Bucket.of(tokens, lengths, {})
    assert tokens <= bucket.tokens <= max(64, tokens + 64, tokens * 9 / 8 + 1)
    assert bucket.longest >= max(lengths)
    padding = -(-(bucket.tokens - tokens) // bucket.longest)
    assert bucket.sequences >= len(lengths) + padding
    assert bucket.tiles >= sum(-(-length // 32) for length in lengths)
    assert rounded(bucket.tokens, 64) == bucket.tokens

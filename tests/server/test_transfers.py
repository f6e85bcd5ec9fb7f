"""Packages that are still on their way when a batch wants them, and a batch's answers in one copy; on the CPU, by twins of CUDA's."""

import gc
import random
import weakref
from collections.abc import Sequence as Rows
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_rows import a_row, load, run, worst
from torch import Tensor

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Fusion
from server.core import Fuse, Outputs, Route, Use
from server.engine.backbone import Backbone, load_backbone
from server.engine.engine import Engine
from server.engine.transfers import Arrival, Named, Transfers, in_one_copy, transfers_for

HEAD = Head(type="tagging", labels=("O", "B-X", "I-X"))


class LateArrival(Arrival):
    """A copy that is made only when it is waited for; until then the buffer holds nothing that could be used."""

    def __init__(self, buffer: Tensor) -> None:
        super().__init__(torch.full_like(buffer, float("nan")))
        self._source: Tensor | None = buffer

    def wait(self) -> None:
        assert self._source is not None, "waited for once"
        self.buffer.copy_(self._source)
        self._source = None


class Late(Transfers):
    """As a side stream at its slowest."""

    def __init__(self) -> None:
        self.uploads: list[weakref.ref[LateArrival]] = []

    def upload(self, buffer: Tensor) -> Arrival:
        arrival = LateArrival(buffer)
        self.uploads.append(weakref.ref(arrival))
        return arrival

    def fetch(self, outputs: Rows[Named]) -> list[Outputs]:
        return in_one_copy(outputs, pinned=False)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny.save_backbone(tmp_path_factory.mktemp("transfers") / "backbone")), device="cpu")


def test_a_batch_waits_for_what_it_uses_and_for_nothing_else(backbone: Backbone, tmp_path: Path) -> None:
    """Every method, a head that another package brings, and a fusion, which is folded from its members when it is first used."""
    late = Late()
    engines = Engine(backbone, transfers=late), Engine(backbone)
    kinds = {kind: {"bottleneck": config} for kind, config in tiny.KINDS.items()} | tiny.OTHERS
    for seed, (kind, methods) in enumerate(kinds.items()):
        for engine in engines:
            load(engine, tmp_path, kind, tiny.package(Manifest(methods=methods, head=HEAD, backbone=tiny.SPEC), seed))
    composition = f"fuse[self](a@sha256:{0:064x}, b@sha256:{1:064x})"
    for engine in engines:
        manifest = Manifest(methods={"fusion": Fusion()}, composition=composition, backbone=tiny.SPEC)
        load(engine, tmp_path, "fusion", tiny.package(manifest, 1, scale=0.05))
        load(engine, tmp_path, "head", tiny.package(Manifest(methods={}, head=HEAD, backbone=tiny.SPEC), 5))
    assert len(engines[0]._arriving) == len(kinds) + 2
    chance = random.Random(0)
    first = a_row(Route("headed", None, Use("pfeiffer"), HEAD, "head"), chance)
    fused = a_row(Route("fused", None, Fuse("fusion", (Use("pfeiffer"), Use("compacter++")))), chance)
    for rows in ([first], [fused, first], [a_row(Route(kind, kind, Use(kind), HEAD, kind), chance) for kind in kinds]):
        answers, wanted = run(engines[0], rows), run(engines[1], rows)
        assert all(np.isfinite(array).all() for one in answers for array in one.values())
        assert worst(answers, wanted) <= 1e-6
        if rows == [first]:
            assert len(engines[0]._arriving) == len(kinds)
    assert not engines[0]._arriving


def test_what_goes_before_it_was_used_leaves_nothing(backbone: Backbone, tmp_path: Path) -> None:
    late = Late()
    engine = Engine(backbone, transfers=late)
    load(engine, tmp_path, "gone", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 1))
    engine.unload("gone")
    gc.collect()
    assert [upload() for upload in late.uploads] == [None]
    load(engine, tmp_path, "gone", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 1))
    row = a_row(Route("gone", "gone", Use("gone"), HEAD, "gone"), random.Random(0))
    assert all(np.isfinite(array).all() for array in run(engine, [row])[0].values())


def test_a_cpu_uses_what_was_staged_where_it_lies(backbone: Backbone, tmp_path: Path) -> None:
    buffer = torch.ones(3)
    assert type(transfers_for(torch.device("cpu"))) is Transfers
    assert Transfers().upload(buffer).buffer is buffer
    engine = Engine(backbone)
    load(engine, tmp_path, "here", tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, 1))
    assert not engine._arriving


def test_answers_in_one_copy() -> None:
    """Of every shape and type, some of them parts of wider tensors; the empty batch."""
    wide = torch.randn(4, 6)
    outputs: list[Named] = [
        {"logits": torch.randn(3, 2), "hidden": torch.randn(2, 5, dtype=torch.bfloat16)},
        {},
        {"start": wide[:, 1], "end": wide[:, 2], "none": torch.empty(0, 3)},
        {"one": torch.tensor(2.5, dtype=torch.float16)},
    ]
    for one, other in zip(in_one_copy(outputs, pinned=False), Transfers().fetch(outputs), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == np.float32
            np.testing.assert_array_equal(one[name], other[name])
    assert in_one_copy([{}, {}], pinned=False) == [{}, {}]

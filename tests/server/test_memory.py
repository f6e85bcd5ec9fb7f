"""What the engine takes is what it says, is known from the manifest alone, and is given back."""

import gc
import random
import tracemalloc
import weakref
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_rows import TOLERANCE, load, run, worst

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Method
from adapter_store.package import TensorData, open_package, write_package
from server.core import Average, Fuse, Readout, Route, Sequence, Setup, Use
from server.engine import programs
from server.engine.backbone import Backbone, load_backbone
from server.engine.engine import Engine
from server.engine.loader import read_tensors
from server.engine.program import FoldedFusion
from server.engine.staging import Staged

BOTTLENECKS: dict[str, dict[str, Method]] = {kind: {"bottleneck": config} for kind, config in tiny.KINDS.items()}
EVERY_KIND = BOTTLENECKS | tiny.OTHERS
HEAD = tiny.classifier("a", "b")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny.save_backbone(tmp_path_factory.mktemp("memory"))), device="cpu")


def staged(engine: Engine, folder: Path, data: bytes) -> tuple[Staged, Manifest]:
    path = folder / "package.safetensors"
    path.write_bytes(data)
    manifest = open_package(path).manifest
    return engine.read(path, manifest), manifest


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_bytes_are_known_from_the_manifest(backbone: Backbone, tmp_path: Path, kind: str, fast: bool) -> None:
    engine = Engine(backbone, fast)
    package, manifest = staged(engine, tmp_path, tiny.package(Manifest(methods=EVERY_KIND[kind], head=HEAD, backbone=tiny.SPEC), 1))
    assert engine.measure(manifest) == (package.host_bytes, package.nbytes)
    assert engine.load("a", package) == package.nbytes == package.buffer.untyped_storage().nbytes()
    kept = [resident.package for resident in engine._residents.values()]
    banks = [(bank._slots, bank._views) for bank in engine._banks.values()]
    held = {id(one.untyped_storage()) for one in tensors([kept, banks])}
    assert held == {id(package.buffer.untyped_storage())}, "nothing that the engine keeps lies elsewhere"


def tensors(value: object) -> list[torch.Tensor]:
    """Every tensor in a value, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = tuple(getattr(value, field.name) for field in fields(value))
    return [tensor for one in value for tensor in tensors(one)] if isinstance(value, tuple | list) else []


def test_what_is_unloaded_is_given_back(backbone: Backbone, tmp_path: Path) -> None:
    engine = Engine(backbone)
    gone = []
    for seed, (kind, methods) in enumerate(EVERY_KIND.items()):
        package, _ = staged(engine, tmp_path, tiny.package(Manifest(methods=methods, head=HEAD, backbone=tiny.SPEC), seed))
        engine.load(kind, package)
        gone.append(weakref.ref(package.buffer.untyped_storage()))
        del package
    rows = [row(Route(kind, kind, Use(kind), HEAD, kind), seed) for seed, kind in enumerate(EVERY_KIND)]
    run(engine, rows)
    gc.collect()
    assert all(storage() is not None for storage in gone)
    for kind in EVERY_KIND:
        engine.unload(kind)
    gc.collect()
    assert [storage() for storage in gone] == [None] * len(gone)
    assert (engine._banks, engine.resident, engine.program_bytes) == ({}, frozenset(), 0)


def row(route: Route, seed: int) -> Sequence:
    ids = np.random.default_rng(seed).integers(0, tiny.VOCABULARY, 3 + seed % 7)
    return Sequence(route, ids, np.zeros_like(ids), Readout("hidden") if route.head is None else Readout())


def test_a_head_that_is_the_backbones_own_is_not_brought(backbone: Backbone, tmp_path: Path) -> None:
    engine = Engine(backbone)
    head = Head(type="masked_lm", layers=2, activation="gelu", norm=True, vocab_size=tiny.VOCABULARY)
    manifest = Manifest(methods={"bottleneck": tiny.KINDS["pfeiffer"]}, head=head, backbone=tiny.SPEC)
    own, _ = staged(engine, tmp_path, tiny.package(manifest, 1))
    values = {name: np.zeros(shape, dtype="<f4") for name, shape in manifest.tensors().items()}
    values["head.decoder.weight"] = backbone.words.detach().numpy().astype("<f4")
    data = write_package(manifest, {name: TensorData("F32", value.shape, value.tobytes()) for name, value in values.items()})
    tied, _ = staged(engine, tmp_path, data)
    assert own.nbytes - tied.nbytes == 4 * tiny.VOCABULARY * tiny.HIDDEN
    assert engine.measure(manifest)[1] == own.nbytes
    engine.load("tied", tied)
    weights = engine._residents["tied"].package.head
    assert weights is not None
    assert weights.tensors["head.decoder.weight"] is backbone.words


def test_a_package_moves_to_another_device_as_it_is(backbone: Backbone, tmp_path: Path) -> None:
    engine = Engine(backbone)
    for kind in ("pfeiffer", "compacter", "gated", "unipelt", "prefix_mlp"):
        package, _ = staged(engine, tmp_path, tiny.package(Manifest(methods=EVERY_KIND[kind], head=HEAD, backbone=tiny.SPEC), 1))
        moved = package.moved(package.buffer.to("meta"))
        pairs = list(zip(tensors(package.package), tensors(moved.package), strict=True))
        assert len(pairs) > 3
        for one, other in pairs:
            assert other.device.type == "meta"
            assert (one.shape, one.stride(), one.storage_offset()) == (other.shape, other.stride(), other.storage_offset())


@pytest.mark.parametrize("budget", [0, 40_000, 200_000])
def test_programs_keep_within_their_budget_and_answer_the_same(backbone: Backbone, tmp_path: Path, budget: int) -> None:
    """Fusions of every two of six members, many in one batch: what does not fit is not folded, and nothing grows."""
    engines = Engine(backbone, program_bytes=budget), Engine(backbone)
    for engine in engines:
        for seed in range(6):
            load(engine, tmp_path, f"m{seed}", tiny.adapter(tiny.KINDS["pfeiffer"], None, seed))
        composition = f"fuse[self](x@sha256:{0:064x}, y@sha256:{1:064x})"
        manifest = Manifest(methods={"fusion": tiny.FUSIONS["dynamic"]}, composition=composition, backbone=tiny.SPEC)
        load(engine, tmp_path, "f", tiny.package(manifest, 7, scale=0.05))
    setups: list[Setup] = [Fuse("f", (Use(f"m{a}"), Use(f"m{b}"))) for a in range(6) for b in range(6) if a != b]
    together = engines[0]._programs.of(setups).values()
    assert sum(one.folded.nbytes for program in together for one in program.sites.values() if isinstance(one, FoldedFusion)) <= budget
    chance = random.Random(0)
    for _ in range(12):
        rows = [row(Route("fused", setup=chance.choice(setups)), seed) for seed in range(chance.choice([1, 8, 30]))]
        assert worst(run(engines[0], rows), run(engines[1], rows)) <= TOLERANCE
        assert engines[0].program_bytes <= budget
    assert engines[1].program_bytes > 200_000, "without a bound there would be more"
    assert (len(engines[0]._programs) == 0) == (budget == 0)
    before = engines[1].program_bytes
    engines[1].unload("m0")
    assert engines[1].program_bytes < before
    engines[1].unload("f")
    assert engines[1].program_bytes == 0


def test_small_programs_are_kept_up_to_a_number(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages by other weights are other setups, and a client can name any number of them."""
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 3)
    engine = Engine(backbone)
    for seed, digest in enumerate(("a", "b")):
        load(engine, tmp_path, digest, tiny.adapter(tiny.KINDS["pfeiffer"], HEAD, seed))
    for number in range(1, 9):
        setup = Average((Use("a"), Use("b")), (number / 10, 1 - number / 10))
        assert engine._programs.of([setup])
        assert len(engine._programs) == min(number, 3)


def test_reading_a_package_keeps_nothing(tmp_path: Path) -> None:
    """safetensors' own reader of files keeps two numbers for each tensor that it read."""
    spec = tiny.SPEC.model_copy(update={"hidden_size": 320, "linears": {}})
    path = tmp_path / "package.safetensors"
    path.write_bytes(tiny.package(Manifest(methods={"bottleneck": tiny.KINDS["houlsby"]}, backbone=spec), 1))
    read_tensors(path)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            read_tensors(path)
        gc.collect()
        kept = (tracemalloc.get_traced_memory()[0] - before) / 200
    finally:
        tracemalloc.stop()
    assert kept < 200, f"{kept} bytes are kept of each reading"

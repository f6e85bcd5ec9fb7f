"""bfloat16 and float16, end to end on the CPU: every method, setup and readout works, and answers about as float32 does."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_rows import a_row, load, run

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Bottleneck
from benchmarks.workload import random_package
from server.core import Average, Fuse, Outputs, Readout, Route, Sequence, Use
from server.engine.backbone import Backbone, load_backbone
from server.engine.engine import Engine
from server.settings import default_backbone

# Against the largest number of the answer. The tiny backbone's weights are ten times as large as a trained one's, and so are the errors.
TOLERANCE = {"bfloat16": 0.1, "float16": 0.015}
COSINE = {"bfloat16": 0.9995, "float16": 0.99999}  # of the default backbone's embeddings to float32's
HEADS = [
    tiny.classifier("yes", "no"),
    Head(type="multilabel_classification", use_pooler=True, labels=("a", "b", "c")),
    Head(type="tagging", labels=("O", "B-X", "I-X")),
    Head(type="question_answering"),
    Head(type="dependency_parsing", labels=("a", "b")),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_backbone(tmp_path_factory.mktemp("half") / "backbone"))


@pytest.fixture(scope="module")
def full(source: str) -> Backbone:
    return load_backbone(source, device="cpu")


def distance(one: Outputs, other: Outputs) -> float:
    """The largest difference, against the largest number and at least 1."""
    assert {name: (array.shape, array.dtype) for name, array in one.items()} == {
        name: (array.shape, array.dtype) for name, array in other.items()
    }
    return max(float(np.abs(one[name] - other[name]).max() / max(1.0, np.abs(other[name]).max())) for name in one)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_method_in_half_numbers(full: Backbone, source: str, tmp_path: Path, dtype: str) -> None:
    """Fast and slow twin, against float32; the answers themselves are float32 arrays."""
    half = load_backbone(source, device="cpu", dtype=dtype)
    engines = Engine(full), Engine(half), Engine(half, fast=False)
    routes = [Route("base")]
    for seed, (kind, methods) in enumerate(({kind: {"bottleneck": one} for kind, one in tiny.KINDS.items()} | tiny.OTHERS).items()):
        head = HEADS[seed % len(HEADS)]
        for engine in engines:
            load(engine, tmp_path, kind, tiny.package(Manifest(methods=methods, head=head, backbone=tiny.SPEC), seed))
        routes.append(Route(kind, kind, Use(kind), head, kind))
    members = Use("pfeiffer"), Use("compacter++")
    for kind, fusion in tiny.FUSIONS.items():
        manifest = Manifest(methods={"fusion": fusion}, composition=f"fuse[self](a@sha256:{0:064x}, b@sha256:{1:064x})", backbone=tiny.SPEC)
        for engine in engines:
            load(engine, tmp_path, f"fusion-{kind}", tiny.package(manifest, 3, scale=0.05))
        routes.append(Route(f"fusion-{kind}", None, Fuse(f"fusion-{kind}", members)))
    for one, other in (("pfeiffer", "gated"), ("lora", "lora_all"), ("ia3", "ia3_peft")):
        routes.append(Route(f"average of {one}", None, Average((Use(one), Use(other)), (0.3, 0.7))))
    chance = random.Random(0)
    rows = []
    for route in routes:
        row = replace(a_row(route, chance), input_ids=np.arange(11), type_ids=np.zeros(11, dtype=np.int64), word_starts=(1, 4, 8, 11))
        readouts = [Readout("hidden", explain=isinstance(route.setup, Fuse)), Readout("embedding")]
        rows += [replace(row, readout=readout) for readout in (readouts if route.head is None else [*readouts, Readout()])]
    wanted, *answers = (run(engine, rows) for engine in engines)
    for answer in answers:
        for row, one, other in zip(rows, answer, wanted, strict=True):
            assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in one.values())
            assert distance(one, other) <= TOLERANCE[dtype], (row.route.model, row.readout.output)
            assert row.readout.output != "hidden" or distance(one, other) > 0, "the numbers are not float32's"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_default_backbone_in_half_numbers(dtype: str) -> None:
    """Embeddings of bare rows and of rows with adapters of trained size."""
    engines = [Engine(load_backbone(default_backbone(), device="cpu", dtype=kind)) for kind in ("float32", dtype)]
    for number in range(4):
        for engine in engines:
            engine.load(f"{number}", random_package(engine.backbone.spec, number, bottleneck=Bottleneck()))
    chance = np.random.default_rng(0)
    setups = [None, None, *(Use(f"{number}") for number in range(4))]
    rows = [
        Sequence(Route("bench", setup=setup), chance.integers(1000, 30000, length), np.zeros(length, dtype=np.int64), Readout("embedding"))
        for setup, length in zip(setups, (3, 20, 20, 9, 64, 5), strict=True)
    ]
    for one, other in zip(*(run(engine, rows) for engine in engines), strict=True):
        assert float(one["embedding"] @ other["embedding"]) >= COSINE[dtype]

"""An engine with the device's kernels answers as one without: Triton in its interpreter, varlen attention by its reference in torch.

One lane, as on a GPU: the interpreter is not for several threads.
"""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rows import a_row, load, run, worst
from transformers import ModernBertConfig, ModernBertForMaskedLM
from varlen_twin import Reference

from adapter_store.manifest import Head, Manifest
from server.core import Route, Use
from server.engine.attention import Packing, Rule, attend_each, attend_packed
from server.engine.backbone import Backbone, load_backbone
from server.engine.engine import Engine
from server.engine.grouped import LowRank
from server.engine.kernels import PLAIN, Kernels, kernels_for
from server.engine.varlen import Varlen

TOLERANCE = 1e-5
CPU = torch.device("cpu")
HEADS: list[Head] = [tiny.classifier("yes", "no"), Head(type="tagging", labels=("O", "B-X", "I-X"))]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny.save_backbone(tmp_path_factory.mktemp("kernels") / "backbone")), device="cpu", lanes=1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tiles of each launch."""
    launches: list[int] = []
    add: Callable[..., None] = LowRank.add
    monkeypatch.setattr(LowRank, "add", lambda self, tiles, z, s: (launches.append(len(tiles.table)), add(self, tiles, z, s))[1])
    return launches


def routes(engines: tuple[Engine, ...], folder: Path) -> list[Route]:
    """Every kind of adapter, three of each so that banks hold several."""
    kinds = {kind: {"bottleneck": config} for kind, config in tiny.KINDS.items()} | tiny.OTHERS
    found = [Route("base")]
    for seed, (kind, methods) in enumerate([*kinds.items()] * 3):
        name, head = f"{kind}-{seed}", HEADS[seed % 2]
        for engine in engines:
            load(engine, folder, name, tiny.package(Manifest(methods=methods, head=head, backbone=tiny.SPEC), seed))
        found.append(Route(name, name, Use(name), head, name))
    return found


def test_an_engine_with_kernels_equals_one_without(backbone: Backbone, tmp_path: Path, counted: list[int]) -> None:
    attend = Reference()
    engines = Engine(backbone, kernels=Kernels(grouped=True, varlen=attend)), Engine(backbone)
    chance = random.Random(0)
    company = routes(engines, tmp_path)
    rows = [a_row(route, chance) for route in company]
    chance.shuffle(rows)
    kernels, plain = (run(engine, rows) for engine in engines)
    assert worst(kernels, plain) <= TOLERANCE
    assert len(counted) > tiny.LAYERS
    assert max(counted) > 3, "several adapters in one launch"
    assert attend.calls == 0, "a batch with a prefix in it goes run by run"
    free = [row for row in rows if not any(word in row.route.model for word in ("prefix", "mam", "unipelt"))]
    kernels, plain = (run(engine, free) for engine in engines)
    assert worst(kernels, plain) <= TOLERANCE
    assert attend.calls >= tiny.LAYERS
    alone = [run(engines[0], [row])[0] for row in free[:10]]
    assert worst(alone, kernels[:10]) <= TOLERANCE


def test_loras_of_a_batch_are_launched_together(backbone: Backbone, tmp_path: Path, counted: list[int]) -> None:
    engines = Engine(backbone, kernels=Kernels(grouped=True)), Engine(backbone)
    found = []
    for seed in range(5):
        data = tiny.package(Manifest(methods=tiny.OTHERS["lora"], head=HEADS[0], backbone=tiny.SPEC), seed)
        for engine in engines:
            load(engine, tmp_path, f"lora-{seed}", data)
        found.append(Route(f"lora-{seed}", f"lora-{seed}", Use(f"lora-{seed}"), HEADS[0], f"lora-{seed}"))
    chance = random.Random(1)
    rows = [a_row(route, chance) for route in found]
    assert worst(run(engines[0], rows), run(engines[1], rows)) <= TOLERANCE
    assert len(counted) == 2 * tiny.LAYERS, "one launch for query, one for value in each layer"


def windowed(folder: Path) -> Path:
    """A ModernBERT whose layers but the first see two neighbours to each side."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": tiny.VOCABULARY}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(**sizes, **ends, local_attention=4, global_attn_every_n_layers=3, max_position_embeddings=40)
    ModernBertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", ["gpt2_pfeiffer_static", "llama_pfeiffer_static", "modernbert", "t5_pfeiffer_static"])
def test_families_by_kernels(golden: Path, tmp_path: Path, case: str) -> None:
    """Causal, grouped heads, sliding windows, and T5, whose biases keep it from varlen attention."""
    source = windowed(tmp_path) if case == "modernbert" else golden / case / "backbone"
    backbone = load_backbone(str(source), device="cpu", lanes=1)
    attend = Reference()
    chance = random.Random(case)
    rows = [a_row(Route("base"), chance) for _ in range(12)]
    engines = Engine(backbone, kernels=Kernels(grouped=True, varlen=attend)), Engine(backbone)
    assert worst(run(engines[0], rows), run(engines[1], rows)) <= TOLERANCE
    assert (attend.calls == 0) == case.startswith("t5")


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_varlen_attention_equals_attention_by_sequence(lengths: list[int], seed: int) -> None:
    """Every rule that it takes, rows in any order, fewer heads of keys than of queries."""
    generator = torch.Generator().manual_seed(seed)
    edges = np.concatenate([[0], np.cumsum(lengths)])
    attend = Reference()
    packing = Packing(Packing.of(edges).runs, varlen=Varlen.of(edges, attend, CPU))
    q, k, v = (torch.randn(int(edges[-1]), heads, 8, generator=generator) for heads in (4, 2, 2))
    x = torch.empty(int(edges[-1]), 0)
    rules = [Rule(0, "self", causal, window) for causal, window in product((False, True), (None, 1, 3))]
    for scaling, rule in product((None, 0.5), rules):
        one, other = attend_packed(q, k, v, scaling, packing, rule, x), attend_each(q, k, v, scaling, packing, rule, x)
        assert float((one - other).abs().max()) <= TOLERANCE
    assert attend.calls == 2 * len(rules)


def test_what_varlen_attention_does_not_cover() -> None:
    query = torch.empty(3, 4, 64)
    assert Varlen.covers(Rule(0, "self"), query)
    assert not Varlen.covers(Rule(0, "self", bias=lambda queries, keys, first: torch.empty(0)), query)
    assert not Varlen.covers(Rule(0, "cross"), query)
    assert not Varlen.covers(Rule(0, "self"), query[..., :60])
    assert not Varlen.covers(Rule(0, "self"), torch.empty(3, 4, 264))


def test_a_cpu_uses_no_kernels_unless_told(backbone: Backbone) -> None:
    assert kernels_for(CPU, torch.bfloat16) == PLAIN
    assert Engine(backbone)._kernels == PLAIN
    assert Engine(backbone, fast=False, kernels=Kernels(grouped=True))._kernels == PLAIN


@pytest.mark.parametrize(
    ("dtype", "capability", "varlen"), [("bfloat16", (9, 0), True), ("float32", (9, 0), False), ("float16", (7, 5), False)]
)
def test_what_a_gpu_uses(monkeypatch: pytest.MonkeyPatch, dtype: str, capability: tuple[int, int], varlen: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    kernels = kernels_for(torch.device("cuda"), getattr(torch, dtype))
    assert kernels.grouped
    assert (kernels.varlen is torch.nn.attention.varlen.varlen_attn) == varlen

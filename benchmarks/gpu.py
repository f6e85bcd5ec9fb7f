"""make bench-gpu: many adapters, fusions and swaps on a GPU, against the bare backbone and the GPU's own matrix products.

Backbones of BERT's two sizes with random weights, built on the spot: speed does not depend on what they have learned. A contender runs
the same rows as every other, 16 batches of 64 (lengths log-normal), one batch after the other, as the engine is fed; contenders in
turn, medians. `share of bare` is the bare backbone's time over the contender's, `share of matrix rate` the time of the linears' matrix
products alone, by torch.mm in the same run, over that of the whole. A swap is what a row waits for whose adapter was not on the device.

--device cpu --quick runs the same code on a small backbone: for the tests, not for figures.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertModel
from transformers.utils import logging

from adapter_store.manifest import Manifest
from adapter_store.methods import Bottleneck, Fusion, LoRA
from adapter_store.package import open_package
from benchmarks.measuring import in_turn, machine, milliseconds
from benchmarks.workload import lengths, package_bytes, random_package, sequences
from server.core import Batch, Fuse, Setup, Use, pack
from server.engine.backbone import Backbone, load_backbone
from server.engine.engine import Engine
from server.engine.graphs import captured, repeated
from server.engine.kernels import kernels_for

RESULTS = Path(__file__).parent / "results" / "gpu.json"
NO_GPU = "There is no GPU here that torch can use; --device cpu --quick runs the same code on a small backbone."
PFEIFFER = Bottleneck()
VOCABULARY = 30522
DRAWN = 16  # packages with weights of their own; the other adapters are copies of them, in memory of their own on a GPU

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """A backbone's size."""

    hidden: int
    layers: int
    heads: int
    inner: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is run: `batches` of `rows` rows; `adapters` is how many there are at most; `swaps` how many are timed."""

    rows: int = 64
    batches: int = 16
    adapters: int = 1000
    swaps: int = 50
    repeats: int = 10


SIZES = {"bert-base": Size(768, 12, 12, 3072), "bert-large": Size(1024, 24, 16, 4096)}
QUICK = {"small": Size(32, 2, 4, 48)}
QUICK_LOAD = Load(rows=4, batches=2, adapters=8, swaps=2, repeats=1)


def backbone(folder: Path, size: Size, device: str, dtype: str) -> Backbone:
    """A BERT of a size, with random weights."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.inner,
    )
    BertModel(config).save_pretrained(folder)
    return load_backbone(str(folder), device, dtype)


def graphed(backbone: Backbone) -> Engine:
    """An engine that replays its forwards as graphs; on a CPU it runs them again."""
    capture = captured if backbone.device.type == "cuda" else repeated
    return Engine(backbone, kernels=replace(kernels_for(backbone.device, backbone.dtype), capture=capture))


def stock(engine: Engine, load: Load, others: bool = True) -> None:
    """Brings all adapters to the device; others: the LoRAs and the fusion too."""
    spec = engine.backbone.spec
    names = tuple(f"layers.{layer}.{name}" for layer in range(spec.num_layers) for name in ("q", "v"))
    pfeiffers = [random_package(spec, seed, bottleneck=PFEIFFER) for seed in range(min(DRAWN, load.adapters))]
    for number in range(load.adapters):
        engine.load(f"pfeiffer-{number}", pfeiffers[number % len(pfeiffers)])
    if not others:
        return
    loras = [random_package(spec, seed, lora=LoRA(modules=names, rank=8, scaling=2.0)) for seed in range(min(DRAWN, load.adapters))]
    for number in range(min(64, load.adapters)):
        engine.load(f"lora-{number}", loras[number % len(loras)])
    composition = f"fuse[self](a@sha256:{0:064x}, b@sha256:{1:064x})"
    engine.load("fusion", random_package(spec, 0, composition=composition, fusion=Fusion()))


def contenders(load: Load, seed: int) -> dict[str, list[Batch]]:
    """The same rows under different adapters."""
    rng = np.random.default_rng(seed)
    tokens = [lengths(rng, load.rows) for _ in range(load.batches)]

    def batches(setup: Callable[[int], Setup | None]) -> list[Batch]:
        random = np.random.default_rng(seed)
        return [
            pack(sequences(random, drawn, [setup(load.rows * number + row) for row in range(load.rows)]))[0]
            for number, drawn in enumerate(tokens)
        ]

    counts = [count for count in (1, 8, 64, 1000) if count <= load.adapters]
    made = {"bare": batches(lambda row: None)}
    made |= {f"{count} pfeiffer": batches(lambda row, count=count: Use(f"pfeiffer-{row % count}")) for count in counts}  # type: ignore[misc]
    made |= {f"{count} lora": batches(lambda row, count=count: Use(f"lora-{row % count}")) for count in counts if count <= 64}  # type: ignore[misc]
    made["half pfeiffer, half lora"] = batches(lambda row: Use(f"{'pfeiffer' if row % 2 else 'lora'}-{row % min(64, load.adapters)}"))
    members = tuple(Use(f"pfeiffer-{member}") for member in range(8))
    made["fusion of 8"] = batches(lambda row: Fuse("fusion", members))
    return made


def run_all(engine: Engine, batches: Sequence[Batch]) -> None:
    """One batch after the other; each ends with its answers on the host."""
    for batch in batches:
        engine.run(batch)


def products(size: Size, tokens: Sequence[int], device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """The linears' matrix products alone, for batches of so many tokens."""
    hidden, inner = size.hidden, size.inner
    shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
    weights = [torch.randn(i, o, device=device, dtype=dtype) for i, o in shapes]
    inputs = [[torch.randn(count, i, device=device, dtype=dtype) for i, _ in shapes] for count in tokens]

    def run() -> None:
        for batch in inputs:
            for _ in range(size.layers):
                for x, weight in zip(batch, weights, strict=True):
                    torch.mm(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def throughput(engine: Engine, graphs: Engine, size: Size, load: Load, seed: int) -> Figures:
    """Median milliseconds of each contender and of the products alone, and what follows; bare and Pfeiffers by graphs as well."""
    made = contenders(load, seed)
    tokens = [batch.tokens for batch in made["bare"]]
    runs: dict[str, Callable[[], object]] = {name: (lambda some=some: run_all(engine, some)) for name, some in made.items()}  # type: ignore[misc]
    live = [name for name in made if name == "bare" or name.endswith(" pfeiffer")]
    runs |= {f"{name}, graphs": (lambda some=made[name]: run_all(graphs, some)) for name in live}  # type: ignore[misc]
    times = in_turn(runs | {"products": products(size, tokens, engine.backbone.device, engine.backbone.dtype)}, load.repeats)
    matrix = times.pop("products")
    multiply_adds = sum(tokens) * size.layers * (4 * size.hidden**2 + 2 * size.hidden * size.inner)
    return {
        "tokens": sum(tokens),
        "matrix ms": matrix * 1000,
        "matrix TFLOP/s": 2 * multiply_adds / matrix / 1e12,
        "contenders": {
            name: {
                "ms": seconds * 1000,
                "tokens/s": sum(tokens) / seconds,
                "share of bare": times["bare"] / seconds,
                "share of matrix rate": matrix / seconds,
            }
            for name, seconds in times.items()
        },
    }


def swaps(engine: Engine, folder: Path, load: Load, seed: int) -> Figures:
    """Milliseconds to the answer of one row of 16 tokens: adapter on the device, staged on the host, and in its file."""
    manifest = Manifest(methods={"bottleneck": PFEIFFER}, backbone=engine.backbone.spec)
    times: dict[str, list[float]] = {"on the device": [], "on the host": [], "in its file": []}
    random = np.random.default_rng(seed)
    for number in range(load.swaps):
        path = folder / f"swap-{number}.safetensors"
        path.write_bytes(package_bytes(manifest, number))
        opened = open_package(path).manifest
        batch = pack(sequences(random, [16], [Use("swap")]))[0]
        staged = engine.read(path, opened)
        ways: dict[str, Callable[[], object]] = {
            "in its file": lambda path=path, opened=opened: engine.load("swap", engine.read(path, opened)),  # type: ignore[misc]
            "on the host": lambda staged=staged: engine.load("swap", staged),  # type: ignore[misc]
        }
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            engine.run(batch)
            times[name].append(time.perf_counter() - began)
            began = time.perf_counter()
            engine.run(batch)
            times["on the device"].append(time.perf_counter() - began)
            engine.unload("swap")
    return {name: milliseconds(values) for name, values in times.items()}


def tables(name: str, figures: Figures) -> list[Table]:
    """The figures of a backbone for people."""
    rate = figures["matrix TFLOP/s"]
    speed = Table("contender", "ms", "tokens/s", "share of bare", "share of matrix rate", title=f"{name}; torch.mm: {rate:.1f} TFLOP/s")
    for contender, one in figures["contenders"].items():
        shares = (f"{one[share]:.3f}" for share in ("share of bare", "share of matrix rate"))
        speed.add_row(contender, f"{one['ms']:.1f}", f"{one['tokens/s']:,.0f}", *shares)
    swap = Table("adapter", "p50 ms", "p99 ms", title=f"{name}: one row of 16 tokens")
    for way, one in figures["swaps"].items():
        swap.add_row(way, f"{one['p50']:.2f}", f"{one['p99']:.2f}")
    return [speed, swap]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark, prints the tables, writes the figures. 2 where there is no GPU to run it on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--quick", action="store_true", help="a small backbone, few rows")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    logging.disable_progress_bar()
    load = QUICK_LOAD if options.quick else Load()
    console, results = Console(width=140), {}
    for name, size in (QUICK if options.quick else SIZES).items():
        with TemporaryDirectory(prefix="turret-bench-") as folder:
            made = backbone(Path(folder) / "backbone", size, options.device, options.dtype)
            engine, graphs = Engine(made), graphed(made)
            stock(engine, load)
            stock(graphs, load, others=False)
            figures = throughput(engine, graphs, size, load, options.seed) | {"swaps": swaps(engine, Path(folder), load, options.seed)}
        results[name] = {"size": asdict(size), **figures}
        for one in tables(name, figures):
            console.print(one)
        del engine, graphs, made
    device = torch.device(options.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    told = {"machine": machine() | {"gpu": gpu}, "dtype": options.dtype, "load": asdict(load), "results": results}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

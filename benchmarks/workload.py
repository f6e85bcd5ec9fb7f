"""What is measured on: rows of mixed lengths as real traffic has them, and adapters with random weights."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Method
from adapter_store.package import TensorData, write_package
from adapter_store.store import Store
from server.core import Readout, Route, Sequence, Setup
from server.engine.loader import LoadedPackage, package_of

LENGTHS = ("log-normal", "16", "128", "512")
TASKS = ("uniform", "zipf", "distinct", "one")
ZIPF = 1.5


def lengths(rng: np.random.Generator, rows: int, median: float = 25.0, sigma: float = 0.8, low: int = 4, high: int = 128) -> list[int]:
    """Log-normal token counts: median about 25, within 4 to 128."""
    drawn = np.exp(rng.normal(np.log(median), sigma, rows)).round().astype(int)
    return [int(n) for n in np.clip(drawn, low, high)]


def mixed(rng: np.random.Generator, rows: int, kind: str) -> list[int]:
    """Token counts of one of `LENGTHS`: "log-normal", or a fixed number."""
    return lengths(rng, rows) if kind == "log-normal" else [int(kind)] * rows


def tasks(rng: np.random.Generator, rows: int, kind: str, count: int) -> list[int]:
    """The task of each row, a number below `count`, by one of `TASKS`.

    "uniform" and "zipf" are drawn (Zipf: task n has a share of 1 / (n + 1) ** 1.5); "distinct" is a different task for each row, in
    random order, and needs as many; "one" is task 0 for all.
    """
    match kind:
        case "one":
            return [0] * rows
        case "distinct":
            if rows > count:
                raise ValueError(f"{rows} rows of distinct tasks need as many tasks, not {count}")
            return [int(task) for task in rng.permutation(count)[:rows]]
        case "uniform":
            return [int(task) for task in rng.integers(0, count, rows)]
        case "zipf":
            shares = 1.0 / np.arange(1, count + 1) ** ZIPF
            return [int(task) for task in rng.choice(count, rows, p=shares / shares.sum())]
    raise ValueError(f"'{kind}' is not one of {', '.join(TASKS)}")


def sequences(rng: np.random.Generator, tokens: list[int], setups: list[Setup | None]) -> list[Sequence]:
    """One row per length with random token ids, on the setup of its place; answers are pooled vectors."""
    return [
        Sequence(Route("bench", setup=setup), rng.integers(1000, 30000, n), np.zeros(n, dtype=np.int64), Readout("embedding"))
        for n, setup in zip(tokens, setups, strict=True)
    ]


def random_package(
    backbone: Backbone, seed: int, head: Head | None = None, composition: str | None = None, scale: float = 0.02, **methods: Method
) -> LoadedPackage:
    """A package with normal random weights of standard deviation `scale`."""
    manifest = Manifest(methods=methods, head=head, composition=composition, backbone=backbone)
    generator = torch.Generator().manual_seed(seed)
    return package_of(manifest, {name: torch.randn(shape, generator=generator) * scale for name, shape in manifest.tensors().items()})


def package_bytes(manifest: Manifest, seed: int, scale: float = 0.02) -> bytes:
    """A package file with normal random weights of standard deviation `scale`."""
    random = np.random.default_rng(seed)
    values = {name: random.standard_normal(shape, dtype=np.float32) * scale for name, shape in manifest.tensors().items()}
    return write_package(manifest, {name: TensorData("F32", value.shape, value.tobytes()) for name, value in values.items()})


def stocked(store: Path, name: str, manifest: Manifest, count: int) -> list[str]:
    """Publishes `count` packages of a kind as `name-0`, `name-1` ... in one commit; returns their names."""
    opened = Store.open(str(store))
    names = [f"{name}-{number}" for number in range(count)]
    with TemporaryDirectory(prefix="turret-bench-") as folder:
        packages = []
        for number, one in enumerate(names):
            path = Path(folder) / one
            path.write_bytes(package_bytes(manifest, number))
            packages.append((one, opened.examine(path, one), path))
        opened.publish_all(packages)
    return names


def sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Texts of the lengths that `lengths` draws, of short words, so that a word is a token."""
    words = ("the", "a", "to", "of", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as", "his", "they")
    return [" ".join(rng.choice(words, max(1, tokens - 2))) for tokens in lengths(rng, count)]

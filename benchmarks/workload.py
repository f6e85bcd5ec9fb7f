"""What is measured on: rows of mixed lengths as real traffic has them, and adapters with random weights."""

import numpy as np
import torch

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Method
from server.core import Readout, Route, Sequence, Setup
from server.engine.loader import LoadedPackage, package_of


def lengths(rng: np.random.Generator, rows: int, median: float = 25.0, sigma: float = 0.8, low: int = 4, high: int = 128) -> list[int]:
    """Log-normal token counts: median about 25, within 4 to 128."""
    drawn = np.exp(rng.normal(np.log(median), sigma, rows)).round().astype(int)
    return [int(n) for n in np.clip(drawn, low, high)]


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

"""What is measured on: rows of mixed lengths as real traffic has them, and adapters with random weights."""

import numpy as np
import torch

from adapter_store.methods import Backbone, Bottleneck
from server.core import Readout, Route, Sequence
from server.engine.bank import SiteIndex
from server.engine.loader import LoadedPackage
from server.methods.bottleneck import BottleneckWeights

SITES = ("mh", "output")


def lengths(rng: np.random.Generator, rows: int, median: float = 25.0, sigma: float = 0.8, low: int = 4, high: int = 128) -> list[int]:
    """Log-normal token counts: median about 25, within 4 to 128."""
    drawn = np.exp(rng.normal(np.log(median), sigma, rows)).round().astype(int)
    return [int(n) for n in np.clip(drawn, low, high)]


def sequences(rng: np.random.Generator, tokens: list[int], adapters: list[tuple[str, ...]]) -> list[Sequence]:
    """One row per length with random token ids, on the stack of adapters of its place; answers are pooled vectors."""
    return [
        Sequence(Route("bench", adapters=stack), rng.integers(1000, 30000, n), np.zeros(n, dtype=np.int64), Readout("embedding"))
        for n, stack in zip(tokens, adapters, strict=True)
    ]


def random_adapter(config: Bottleneck, backbone: Backbone, seed: int, scale: float = 0.02) -> LoadedPackage:
    """A package of one bottleneck with normal random weights of standard deviation `scale`."""
    generator = torch.Generator().manual_seed(seed)
    fields: dict[SiteIndex, dict[str, torch.Tensor]] = {}
    for name, shape in config.tensors(backbone).items():
        _, layer, site, field = name.split(".", 3)
        index = int(layer) * len(SITES) + SITES.index(site)
        fields.setdefault(index, {})[field.replace(".", "_")] = torch.randn(shape, generator=generator) * scale
    return LoadedPackage(((config, {index: BottleneckWeights(**weights) for index, weights in fields.items()}),), None)

"""Turret's engine, fed directly; and the machine's own matrix-product rate, in the same process.

Adapters come through the importers from folders that the other libraries saved, so every contender has the same weights; the
thousand that are only there to be many are random.
"""

import hashlib
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers

from adapter_store.importers import folder_files, import_to_file
from adapter_store.methods import Bottleneck
from benchmarks.competitors.workers.protocol import Array, Command, Contest, Rows, serve
from benchmarks.matrix import Products, linear_shapes, linears_profile
from benchmarks.workload import random_package
from server.core import Batch, Fuse, Readout, Route, Sequence, Setup, Use, pack
from server.engine.backbone import load_backbone
from server.engine.engine import Engine

READOUTS = {"embedding": Readout("embedding", normalize=False), "hidden": Readout("hidden")}


class Model:
    """One engine; `setups` are the kinds of contenders, each with a setup for every task."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.setups: dict[str, list[Setup | None]] = {}
        self.contest = Contest({})
        self.folder = TemporaryDirectory(prefix="turret-bench-")

    def load(self, backbone: str) -> dict[str, Any]:
        """Loads the backbone. Returns the versions and settings."""
        self.engine = Engine(load_backbone(backbone))
        products = Products(linear_shapes(backbone))
        self._add("bare", [None])
        for kind in products.kinds:
            self.contest.contenders[kind] = partial(_products, products, kind)
        return {
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
            "dtype": str(self.engine.backbone.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "products": products.kinds,
            "multiply-adds a token": products.multiply_adds,
        }

    def take_in(self, kind: str, folders: list[str]) -> None:
        """Imports a folder for each task, and runs rows of the kind on them."""
        self._add(kind, [Use(self._imported(folder)) for folder in folders])

    def take_in_fusion(self, kind: str, folder: str, names: list[str], members: str) -> None:
        """Imports the fusion of the first tasks of the kind `members`, whose names in its folder are `names`."""
        uses = [use for use in self.setups[members][: len(names)] if isinstance(use, Use)]
        pins = {name: f"bench/{name}@sha256:{use.digest}" for name, use in zip(names, uses, strict=True)}
        self._add(kind, [Fuse(self._imported(folder, pins), tuple(uses))])

    def crowd(self, kind: str, count: int, reduction_factor: int) -> int:
        """Loads `count` random Pfeiffer adapters; returns their bytes."""
        config = Bottleneck(reduction_factor=reduction_factor)
        spec = self.engine.backbone.spec
        size = sum(self.engine.load(f"{kind}-{n}", random_package(spec, n, bottleneck=config)) for n in range(count))
        self._add(kind, [Use(f"{kind}-{n}") for n in range(count)])
        return int(size)

    def profile(self, kind: str, key: str) -> dict[str, Any]:
        """Where the time of the first batch of a key goes."""
        batch, _ = self._packed(kind, self.contest.draws[key][0], "embedding")
        return linears_profile(lambda: self.engine.run(batch))

    def _imported(self, folder: str, members: dict[str, str] | None = None) -> str:
        path = Path(self.folder.name) / f"{len(list(Path(self.folder.name).iterdir()))}.safetensors"
        manifest = import_to_file(folder_files(Path(folder)), self.engine.backbone.spec, path, members=members).manifest
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.engine.load(digest, self.engine.read(path, manifest))
        return digest

    def _add(self, kind: str, setups: list[Setup | None]) -> None:
        self.setups[kind] = setups
        self.contest.contenders[kind] = partial(self._run, kind)

    def _packed(self, kind: str, rows: Rows, output: str) -> tuple[Batch, list[int]]:
        setups, readout = self.setups[kind], READOUTS[output]
        return pack(
            [
                Sequence(Route("bench", setup=setups[task % len(setups)]), ids, np.zeros_like(ids), readout)
                for ids, task in zip(rows.ids, rows.tasks, strict=True)
            ]
        )

    def _run(self, kind: str, rows: Rows, output: str) -> list[Array]:
        batch, places = self._packed(kind, rows, output)
        answers = self.engine.run(batch)
        return [answers[place][output] for place in places]


def _products(products: Products, kind: str, rows: Rows, output: str) -> list[Array]:
    products.run(kind, rows.tokens)
    return []


if __name__ == "__main__":
    model = Model()
    own = (model.load, model.take_in, model.take_in_fusion, model.crowd, model.profile)
    commands: dict[str, Command] = {command.__name__: command for command in own}
    serve(commands | model.contest.commands)

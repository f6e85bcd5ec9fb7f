"""kill -9 of writers at random moments of publish, alias, rollback, delete and collection: what they did is whole or absent."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from places import Place
from samples import MANIFEST, package
from writers import names_of

from adapter_store.catalog import Catalog
from adapter_store.log import Log
from adapter_store.methods import Backbone, Bottleneck
from adapter_store.package import open_package

ROUNDS = 20


class Nursery:
    """The program that forks writers; it has imported everything, so that a writer starts in milliseconds."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.alive: set[int] = set()
        self.done = folder / "done"
        self.errors = folder / "errors"
        program = Path(__file__).with_name("writers.py")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )

    def start(self, writer: str, seed: int, paths: list[str]) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = {"url": self.url, "writer": writer, "seed": seed, "paths": paths, "done": str(self.done)}
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        self.alive.add(pid)
        return pid

    def kill(self, pid: int) -> None:
        self.alive.remove(pid)
        os.kill(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                time.sleep(0.001)

    def close(self) -> None:
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()

    def told(self) -> int:
        """The last commit that a writer was told of."""
        return max(map(int, self.done.read_text().split()), default=0) if self.done.exists() else 0


@pytest.fixture
def nursery(shared_place: Place, tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path, shared_place.url)
    try:
        yield nursery
    finally:
        nursery.close()


def package_paths(folder: Path) -> list[str]:
    """Packages of a kilobyte, of half a megabyte, and one that an object store takes in parts."""
    paths = []
    for seed, width in enumerate((8, 16, 256, 256, 1088)):
        manifest = MANIFEST.model_copy(
            update={
                "backbone": Backbone(model_type="bert", hidden_size=width, num_layers=1),
                "methods": {"bottleneck": Bottleneck(reduction_factor=1)},
            }
        )
        path = folder / f"package-{seed}.safetensors"
        path.write_bytes(package(manifest, seed=seed))
        paths.append(str(path))
    assert os.path.getsize(paths[-1]) > 8 << 20
    return paths


def check(place: Place, told: int) -> None:
    """The catalogue reads, with and without snapshots; pairs are in step; every version has its bytes."""
    store = place.open()
    try:
        assert store.catalog == Log(place.blobs, 1).follow(Catalog())
        assert store.catalog.n >= told
        for writer in ("one", "other"):
            first, second = (store.catalog.find(name) for name in names_of(writer))
            assert (first is None) == (second is None)
            if first is not None and second is not None:
                assert [record.digest for record in first.versions.values()] == [record.digest for record in second.versions.values()]
                assert (first.versions.keys(), first.aliases, first.last) == (second.versions.keys(), second.aliases, second.last)
        for digest in {record.digest for entry in store.entries() for record in entry.versions.values()}:
            assert open_package(store.path(digest)).digest == digest
    finally:
        store.close()


@pytest.mark.parametrize("writers", [["one"], ["one", "other"]])
def test_kill_9_leaves_whole_or_absent_operations(shared_place: Place, nursery: Nursery, tmp_path: Path, writers: list[str]) -> None:
    rng = random.Random(len(writers))
    paths = package_paths(tmp_path)
    for _ in range(ROUNDS // len(writers)):
        pids = [nursery.start(writer, rng.randrange(1 << 30), paths) for writer in writers]
        time.sleep(rng.uniform(0.02, 0.25))
        for pid in pids:
            nursery.kill(pid)
            time.sleep(rng.uniform(0, 0.05))
        check(shared_place, nursery.told())
    assert nursery.errors.read_text() == ""
    assert nursery.told() > ROUNDS  # they did something
    store = shared_place.open(snapshot_every=8)
    store.publish(Path(paths[0]), "after")
    store.collect(grace=-1)
    store.collect(grace=-1)
    store.blobs.sweep(time.time() + 1)
    referred = {record.digest for entry in store.entries() for record in entry.versions.values()}
    assert len(shared_place.keys("blobs")) == len(referred)
    assert shared_place.keys("staged") == []
    assert 1 <= len(shared_place.keys("snapshots")) <= 3

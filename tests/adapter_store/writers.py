"""Writers that are there to be killed. Run as a program: it forks one for each line on its standard input and prints its pid.

A line is JSON: {"url", "writer", "seed", "paths", "done"}. A writer keeps two names in step (each of its commits changes both alike), draws
its operations from its seed, and appends the number of every commit that it was told of to the file `done`.
"""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from adapter_store.errors import Conflict
from adapter_store.package import Package, open_package
from adapter_store.store import Store
from adapter_store.wishes import AliasWish, DeleteWish, RollbackWish


class Writer:
    """Two names in step, on one store."""

    def __init__(self, store: Store, writer: str, paths: Sequence[Path]) -> None:
        self.store = store
        self.by = writer
        self.names = names_of(writer)
        self.packages: list[tuple[Package, Path]] = [(open_package(path), path) for path in paths]

    def act(self, rng: random.Random) -> None:
        entry = self.store.catalog.find(self.names[0])
        if entry is None or rng.random() < 0.4:
            package, path = rng.choice(self.packages)
            self.store.publish_all([(name, package, path) for name in self.names], by=self.by)
        elif rng.random() < 0.3:
            self.store.change([DeleteWish(name) for name in self.names], self.by)
            self.store.collect(grace=0)
        elif "prod" in entry.aliases and rng.random() < 0.4:
            self.store.change([RollbackWish(name, "prod") for name in self.names], self.by)
        else:
            target = {version: rng.randint(1, 3) for version in rng.sample(sorted(entry.versions), min(2, len(entry.versions)))}
            self.store.change([AliasWish(name, "prod", target) for name in self.names], self.by)


def names_of(writer: str) -> tuple[str, str]:
    return f"{writer}/a", f"{writer}/b"


def work(url: str, writer: str, seed: int, paths: Sequence[str], done: str) -> None:
    """Changes the store for ever."""
    rng = random.Random(seed)
    with open(done, "a", buffering=1) as told:
        acting = Writer(Store.open(url, snapshot_every=8), writer, [Path(path) for path in paths])
        while True:
            try:
                acting.act(rng)
            except Conflict:  # nothing to roll back to
                continue
            told.write(f"{acting.store.catalog.n}\n")


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are not waited for
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.closerange(0, 2)
            try:
                work(**json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    main()

"""make kill-test: kill -9 of a server at random moments of uploads, publishes, alias moves, deletes and collections, then a restart.

Clients note what was acknowledged, and what was asked when the server died. After each restart the catalogue must read, every step
be whole or absent (acknowledged ones are there), every blob that is committed have its digest, nothing half-done lie about, and an
answer be right. With two servers on one store one of them is killed and the other goes on.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np

from adapter_store.store import Store
from benchmarks.serving import Server, start
from server.core import Use
from tests.endurance.fleet import Fleet, Made, made
from tests.endurance.ledger import Held, Step, drawn
from tests.endurance.solo import Solo
from tests.server.tiny import save_backbone

CLIENTS = 4
NAMES = 3
SHARED = "everybodys"
FOCI = ("upload", "publish", "alias", "delete", "delete name", "several", "")
STEPS_BEFORE = 40  # a server dies after 0 to this many steps were acknowledged
PATIENCE = 10  # seconds, or after this time
GOES_ON = 0.4  # seconds that the other server is asked after the kill
TIMEOUT = httpx.Timeout(30)
FLAGS = {"threads": 1, "grace": 0, "poll": 0.1, "log_level": "warning"}


@dataclass(slots=True)
class Client:
    """A client with names of its own: what it knows that they hold, and the step that was on its way when its server died."""

    number: int
    random: Random
    pool: Sequence[Made]
    fresh: Iterator[Made]
    names: dict[str, Held] = field(default_factory=dict)
    unsure: Step | None = None
    shared: dict[str, int] = field(default_factory=dict)  # what it published under the name that all share: acknowledged versions
    shared_unsure: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = {f"client{self.number}/name-{name}": Held() for name in range(NAMES)}

    def work(self, url: str, stop: threading.Event, focus: str) -> None:
        """Steps one after the other until told to stop, or the server dies."""
        with httpx.Client(base_url=url, timeout=TIMEOUT) as http:
            while not stop.is_set() and not self.faults:
                try:
                    if self.random.random() < 0.2:
                        self._publish_shared(http)
                    else:
                        self._step(http, focus)
                except httpx.TransportError:
                    return

    def _step(self, http: httpx.Client, focus: str) -> None:
        step = self.unsure = drawn(self.random, self.names, self.pool, focus)
        answer = http.request(step.method, step.path, params=dict(step.params), **_body(step, self.random))
        if not answer.is_success:
            self.faults.append(f"{step.kind} {step.path}: {answer.status_code} {answer.text[:300]}")
            return
        self.names |= step.after
        self.unsure = None
        self.done[step.kind] += 1

    def _publish_shared(self, http: httpx.Client) -> None:
        """Everybody publishes under one name: versions count up, and none is given twice."""
        package = next(self.fresh)
        self.shared_unsure.add(package.digest)
        answer = http.put(f"/v1/adapters/{SHARED}", content=package.data, params={"alias": "prod"})
        if answer.status_code != 201:
            self.faults.append(f"publish {SHARED}: {answer.status_code} {answer.text[:300]}")
            return
        self.shared_unsure.discard(package.digest)
        self.shared[package.digest] = answer.json()["version"]
        self.done["publish shared"] += 1


def _body(step: Step, random: Random) -> dict[str, Any]:
    if step.package is None:
        return {} if step.json is None else {"json": step.json}
    data = step.package.data
    if not step.slow:
        return {"content": data}
    pause = random.uniform(0, 0.02)

    def pieces() -> Iterator[bytes]:
        for start_ in range(0, len(data), len(data) // 8 + 1):
            yield data[start_ : start_ + len(data) // 8 + 1]
            time.sleep(pause)

    return {"content": pieces()}


@dataclass(slots=True)
class Trial:
    """The servers, the clients and what was found, over all rounds."""

    folder: Path
    backbone: Path
    servers: int
    seed: int
    solo: Solo
    fleet: Fleet
    clients: list[Client]
    running: list[Server] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def start(self, number: int) -> Server:
        return start(self.folder / f"server-{number}", backbone=self.backbone, store=self.store, **FLAGS)

    def round(self, number: int) -> None:
        """Clients work, a server dies, it is started again, everything is looked at."""
        random = Random(f"{self.seed}-{number}")
        victim = random.randrange(self.servers)
        stop = threading.Event()
        focus = FOCI[number % len(FOCI)]
        threads = [
            threading.Thread(target=client.work, args=(self.running[client.number % self.servers].url, stop, focus), daemon=True)
            for client in self.clients
        ]
        for thread in threads:
            thread.start()
        due = self._steps() + random.randrange(STEPS_BEFORE)
        _eventually(lambda: self._steps() >= due, PATIENCE, 0.002)
        time.sleep(random.uniform(0, 0.03))
        self.running[victim].kill()
        if self.servers > 1:
            time.sleep(GOES_ON)
        stop.set()
        for thread in threads:
            thread.join(60)
        if any(thread.is_alive() for thread in threads):
            self.faults.append("a client hangs")
        self.found["kills"] += 1
        self.running[victim] = self.start(victim)
        self.audit()

    def _steps(self) -> int:
        return sum(client.done.total() for client in self.clients)

    def audit(self) -> None:
        """What must hold after a restart."""
        for client in self.clients:
            self.faults += client.faults
            client.faults.clear()
        for server in self.running:
            self._audit_catalogue(server)
        for client in self.clients:
            self._settle(client)
        for server in self.running[1:]:  # the others show the same choice
            self._audit_catalogue(server)
        self._audit_bytes()
        self._audit_answer()
        self._audit_leftovers()

    def _audit_catalogue(self, server: Server) -> None:
        """Every client's names are as they were acknowledged, or as the step on its way would have made them; all servers agree."""
        with httpx.Client(base_url=server.url, timeout=TIMEOUT) as http:
            for client in self.clients:
                possible = [_visible(client.names)]
                if client.unsure is not None:
                    possible.append(_visible(client.names | dict(client.unsure.after)))
                shown: dict[str, Any] = {}

                def agrees(client: Client = client, possible: Any = possible, shown: Any = shown) -> bool:
                    shown.update({name: _shown(http, name) for name in client.names})
                    return shown in possible

                if not _eventually(agrees, 5):
                    self.faults.append(f"client {client.number}: {shown} is neither of {possible} ({client.unsure and client.unsure.kind})")
            self._audit_shared(http)

    def _audit_shared(self, http: httpx.Client) -> None:
        acknowledged = {digest: version for client in self.clients for digest, version in client.shared.items()}
        unsure = set().union(*(client.shared_unsure for client in self.clients))

        def agrees() -> bool:
            shown = _shown(http, SHARED)
            versions = {} if shown is None else {digest: version for version, digest in shown[0].items()}
            return (
                acknowledged.items() <= versions.items()
                and versions.keys() <= acknowledged.keys() | unsure
                and sorted(versions.values()) == list(range(1, len(versions) + 1))
            )

        if not _eventually(agrees, 5):
            self.faults.append(f"{SHARED} shows {_shown(http, SHARED)}; acknowledged {acknowledged}, unsure {unsure}")

    def _settle(self, client: Client) -> None:
        """The step on its way becomes done or not, as the first server shows it."""
        step = client.unsure
        if step is None:
            return
        with httpx.Client(base_url=self.running[0].url, timeout=TIMEOUT) as http:
            shown = {name: _shown(http, name) for name in step.after}
        whole = shown == _visible(dict(step.after))
        self.found[f"{step.kind}: {'whole' if whole else 'absent'}"] += 1
        if whole:
            client.names |= step.after
        client.unsure = None

    def _audit_bytes(self) -> None:
        """Every blob that the catalogue names has its digest, read by an eye of its own."""
        store = Store.open(str(self.store), grace=3600)
        for digest in {record.digest for entry in store.entries() for record in entry.versions.values()}:
            with store.local(digest) as path:
                if f"sha256:{sha256(path.read_bytes()).hexdigest()}" != digest:
                    self.faults.append(f"the blob of {digest} has other bytes")
            self.found["blobs verified"] += 1

    def _audit_answer(self) -> None:
        """Every name answers as its digest does alone."""
        text = "t3 t1 t4 t1 t5"
        for server in self.running:
            with httpx.Client(base_url=server.url, timeout=TIMEOUT) as http:
                for name in [name for client in self.clients for name, held in client.names.items() if held.versions][:6]:
                    answer = http.post("/v1/predict", json={"model": name, "inputs": text, "output": "logits"})
                    if answer.status_code != 200:
                        self.faults.append(f"{name} answers {answer.status_code} {answer.text[:200]}")
                        continue
                    (result,) = answer.json()["results"]
                    expected = self.solo.answer(Use(result["digest"]), result["digest"], text, "logits")
                    if not np.allclose(expected, result["output"]["data"], rtol=0, atol=1e-4):
                        self.faults.append(f"{name} answers {result['output']['data']}, its digest alone {expected}")
                    self.found["answers"] += 1

    def _audit_leftovers(self) -> None:
        """No folder of the dead process, no blob that nobody refers to, and nothing half-written once it is a minute old."""
        for path in (self.store / "staged").glob("*"):
            os.utime(path, (time.time() - 120,) * 2)

        def clean() -> bool:
            return not list(self._leftovers())

        if not _eventually(clean, 10):
            self.faults += list(self._leftovers())

    def _leftovers(self) -> Iterator[str]:
        for server in self.running:
            folders = [path.name for path in (server.folder / "tmp").iterdir()]
            if len(folders) != 1:
                yield f"{server.folder.name} has {folders} in its folder for temporary files"
        held = {digest for client in self.clients for one in client.names.values() for digest in one.versions.values()}
        for path in self.store.rglob("*"):
            if path.is_file() and path.parent.name not in ("log", "snapshots", "sha256"):
                yield f"{path} is half-written"
            if path.parent.name == "sha256" and f"sha256:{path.name.partition('.')[0]}" not in held | self._shared():
                yield f"{path} is referred to by nobody"

    def _shared(self) -> set[str]:
        return {digest for client in self.clients for digest in (*client.shared, *client.shared_unsure)}


def _visible(names: dict[str, Held]) -> dict[str, Any]:
    return {name: held.visible for name, held in names.items()}


def _shown(http: httpx.Client, name: str) -> tuple[dict[int, str], dict[str, dict[int, int]]] | None:
    """What a server shows of a name, as a ledger has it."""
    answer = http.get(f"/v1/adapters/{name}")
    if answer.status_code == 404:
        return None
    answer.raise_for_status()
    shown = answer.json()
    aliases = {alias: target for alias, target in shown["aliases"].items() if alias != "latest"}
    return (
        {record["version"]: record["digest"] for record in shown["versions"]},
        {a: {int(v): w for v, w in t.items()} if isinstance(t, dict) else {t: 1} for a, t in aliases.items()},
    )


def _eventually(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def _fresh(fleet: Fleet, number: int) -> Iterator[Made]:
    """Packages that nobody has published yet, others for each client."""
    return (made(fleet.kinds["pfeiffer-0"], seed) for seed in itertools.count(1_000_000 * (number + 1)))


def kill_test(folder: Path, kills: int, servers: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Runs the rounds with files in `folder`; returns what was counted, and the faults."""
    backbone = save_backbone(folder / "backbone")
    packages: dict[str, Made] = {}
    solo = Solo(str(backbone), packages)
    fleet = Fleet(solo.backbone, 0.1, packages)
    shared = [fleet.make(name) for name in ("compacter-0", "tagging-0")]
    clients = [
        Client(number, Random(f"{seed}-client-{number}"), [*shared, *(fleet.make("pfeiffer-0") for _ in range(6))], _fresh(fleet, number))
        for number in range(CLIENTS)
    ]
    trial = Trial(folder, backbone, servers, seed, solo, fleet, clients)
    try:
        trial.running = [trial.start(number) for number in range(servers)]
        for number in range(kills):
            trial.round(number)
            if trial.faults:
                break
        log = [line for server in trial.running for line in server.log.splitlines() if "Traceback" in line]
    finally:
        for server in trial.running:
            server.stop()
    commits = [json.loads(path.read_bytes()) for path in (folder / "store" / "log").glob("*.json")]
    trial.found["digests collected"] = sum(len(c["digests"]) for commit in commits for c in commit["changes"] if c["type"] == "collect")
    steps = sum((client.done for client in clients), Counter())
    figures = {"servers": servers, "steps": dict(sorted(steps.items())), "found": dict(sorted(trial.found.items()))}
    return figures, [*trial.faults, *log]


def main() -> None:
    """Prints the figures as JSON, and the faults; exit code 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=13)
    options = parser.parse_args()
    faults: list[str] = []
    for servers in options.servers:
        with tempfile.TemporaryDirectory(prefix="turret-kill-") as folder:
            figures, found = kill_test(Path(folder), options.kills, servers, options.seed)
        print(json.dumps(figures, indent=1), flush=True)
        faults += found
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

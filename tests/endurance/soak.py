"""1,000 publish/serve/delete cycles in one process over the real app: what is held after each hundred, to see what grows.

Some adapters stay all the time; in each cycle one comes under one of fifty names, answers, has its alias moved by a second version, and
goes. A measurement waits until what was deleted is collected, so that it counts what is kept and not what is on its way out.

The log grows by design, a file for each commit, and is counted apart from the blobs.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from server.app import create_app
from server.settings import Settings
from tests.endurance.fleet import Fleet, Made
from tests.endurance.solo import Solo
from tests.server.tiny import save_backbone

NAMES = 50
EVERY = 100
SETTLE_SECONDS = 30
Measured = dict[str, float]


@contextmanager
def serving(backbone: Path, folder: Path) -> Iterator[TestClient]:
    """The real app, whose store forgets quickly."""
    settings = Settings(
        backbone=str(backbone), store=str(folder / "store"), scratch=folder / "scratch", threads=1, device="cpu", grace=0, poll=0.05
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def cycle(client: TestClient, fleet: Fleet, number: int) -> None:
    """One adapter comes, answers and goes; every tenth time with a second version, a weighted alias, compositions and a bad package."""
    name = f"cycle-{number % NAMES}"
    kinds = [kind for kind in fleet.kinds if fleet.kinds[kind].head is not None]
    first, second = (_thrown(fleet, kinds[(number + k) % len(kinds)]) for k in range(2))
    _send(client, "PUT", f"/v1/adapters/{name}", 201, content=first.data, params={"alias": "prod"})
    _send(client, "POST", "/v1/predict", 200, json={"model": f"{name}@prod", "inputs": ["t1 t2 t3", "t4"]})
    if number % 10 == 0:
        _send(client, "PUT", f"/v1/adapters/{name}", 201, content=second.data)
        _send(client, "PUT", f"/v1/adapters/{name}/aliases/prod", 200, json={"weights": _both(client, name)})
        models = [name, f"stack(stays-0, {name})", f"average(stays-0:{number + 1}, stays-1:1000)#stays-0"]
        _send(client, "POST", "/v1/predict", 200, json={"requests": [{"model": model, "inputs": "t5 t6"} for model in models]})
        _fused(client, fleet, f"{name}-fused")
        _send(client, "PUT", "/v1/adapters/bad", 422, content=first.data[:-8])
    _send(client, "DELETE", f"/v1/adapters/{name}", 200)


def _fused(client: TestClient, fleet: Fleet, name: str) -> None:
    """A fusion of those that stay comes, answers and goes."""
    members = [(one, _send(client, "GET", f"/v1/adapters/{one}", 200)["versions"][0]["digest"]) for one in ("stays-0", "stays-1")]
    fusion = fleet.fusion(members, leave_out=())
    del fleet.packages[fusion.digest]
    _send(client, "PUT", f"/v1/adapters/{name}", 201, content=fusion.data)
    _send(client, "POST", f"/models/{name}", 200, json={"inputs": "t7 t8"})
    _send(client, "DELETE", f"/v1/adapters/{name}", 200)


def _both(client: TestClient, name: str) -> dict[str, int]:
    versions = [record["version"] for record in _send(client, "GET", f"/v1/adapters/{name}", 200)["versions"]]
    return {str(version): 1 for version in versions}


def _thrown(fleet: Fleet, name: str) -> Made:
    """A package that the fleet does not keep."""
    package = fleet.make(name)
    del fleet.packages[package.digest]
    return package


def _send(client: TestClient, method: str, path: str, expected: int, **rest: Any) -> Any:
    answer = client.request(method, path, **rest)
    assert answer.status_code == expected, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
    return answer.json()


def measured(client: TestClient, folder: Path, staying: int) -> Measured:
    """What is held now, once only the `staying` blobs are left."""
    blobs = folder / "store" / "blobs"
    end = time.monotonic() + SETTLE_SECONDS
    while len(_files(blobs)) > staying and time.monotonic() < end:
        time.sleep(0.05)
    gc.collect()
    residency = client.app.state.services.residency  # type: ignore[attr-defined]
    tiers = residency.occupied()
    store = _files(folder / "store")
    outside = [path for path in store if path.parent.name in ("log", "snapshots")]
    others = [path for path in store if path not in outside]
    return {
        "resident memory": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        **{f"{tier} bytes": occupied.bytes for tier, occupied in tiers.items()},
        **{f"{tier} packages": occupied.packages for tier, occupied in tiers.items()},
        "blobs": len(_files(blobs)),
        "store bytes without the log": sum(path.stat().st_size for path in others),
        "store files without the log": len(others),
        "log files": len([path for path in outside if path.parent.name == "log"]),
        "log bytes": sum(path.stat().st_size for path in outside if path.parent.name == "log"),
        "snapshots": len([path for path in outside if path.parent.name == "snapshots"]),
        "scratch files": len(_files(folder / "scratch")),
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "metric samples": client.get("/metrics").text.count("\n"),
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def soak(folder: Path, cycles: int) -> list[Measured]:
    """Runs the cycles with files in `folder`; what was held after each hundred."""
    backbone = save_backbone(folder / "backbone")
    packages: dict[str, Made] = {}
    fleet = Fleet(Solo(str(backbone), packages).backbone, 0.1, packages)
    held: list[Measured] = []
    with serving(backbone, folder) as client:
        for number in range(3):
            _send(client, "PUT", f"/v1/adapters/stays-{number}", 201, content=_thrown(fleet, "pfeiffer-0").data)
            _send(client, "POST", "/v1/predict", 200, json={"model": f"stays-{number}", "inputs": "t1"})
        for number in range(cycles):
            cycle(client, fleet, number)
            if (number + 1) % EVERY == 0:
                held.append(measured(client, folder, 3))
    return held


def main() -> None:
    """Prints the measurements as JSON, one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turret-soak-") as folder:
        for held in soak(Path(folder), options.cycles):
            print(json.dumps(held))


if __name__ == "__main__":
    main()

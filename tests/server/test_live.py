"""A real server on a socket, in a process of its own, driven by the client package and the `turret` command."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cases import Case
from turret_client import NotFound, RowFailed, Turret, TurretError
from turret_client.cli import app
from typer.testing import CliRunner, Result

from server.__main__ import serve
from server.settings import Settings

ROOT = Path(__file__).parents[2]
CASE = "bert_batchsplit_cls"


@dataclass(frozen=True)
class Live:
    """A running server: its process, where it listens, and its files."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def blobs(self) -> list[Path]:
        return list((self.folder / "store").rglob("*.safetensors"))

    def turret(self, *args: object) -> Result:
        """Runs the `turret` command against the server."""
        result = CliRunner().invoke(app, ["--url", self.url, *map(str, args)], prog_name="turret")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result


@contextmanager
def started(backbone: Path, folder: Path) -> Iterator[Live]:
    """`python -m server` on a free port, once it has said where it listens."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TURRET_")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp")}
    command = [
        sys.executable,
        "-m",
        "server",
        "--port",
        "0",
        "--backbone",
        str(backbone),
        "--store",
        str(folder / "store"),
        "--device",
        "cpu",
        "--grace",
        "0",
        "--poll",
        "0.2",
    ]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                yield Live(process, found[0], folder)
                break
        else:
            pytest.fail(f"the server did not start:\n{(folder / 'log').read_text()}")
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def live(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with started(golden / CASE / "backbone", tmp_path_factory.mktemp("live")) as live:
        yield live


@pytest.fixture(scope="module")
def case(golden: Path) -> Case:
    return Case(golden / CASE)


def adapter(golden: Path, name: str) -> Path:
    return golden / CASE / "safetensors" / "adapters" / name


def eventually(condition: Callable[[], Any]) -> None:
    """Waits up to 10 seconds for a condition."""
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come about within 10 seconds")


def left_in(folder: Path) -> list[Path]:
    """What uploads left behind; the lock of the server's scratch folder is there as long as it runs."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def compare(answer: Any, case: Case, key: str) -> None:
    for row, prediction in enumerate(answer):
        np.testing.assert_allclose(prediction.output.data, case.expected[key][row], rtol=0, atol=1e-4)


def test_push_predict_and_remove_with_the_client(live: Live, golden: Path, case: Case) -> None:
    with Turret(live.url) as server:
        assert server.health().ready
        published = server.push("client", adapter(golden, "nli"), alias="prod")
        assert (published.version, published.is_new) == (1, True)
        compare(server.predict("client@prod", case.texts, output="logits"), case, "alone.nli.logits")
        assert [entry.name for entry in server.list()] == ["client"]
        assert {model.id for model in server.models()} == {"base", "client"}
        assert np.asarray(server.embed(case.texts, "base").vectors).shape == (len(case.texts), 32)
        pulled = server.pull("client", live.folder / "pulled.safetensors")
        assert pulled.digest == published.digest
        again = server.push("copy", live.folder / "pulled.safetensors")
        assert again.digest == published.digest
        failed = server.predict(["client", "nobody"], "t1 t2")[1]
        with pytest.raises(RowFailed):
            _ = failed.output
        for name in ("client", "copy"):
            server.delete(name)
        with pytest.raises(NotFound):
            server.predict("client", "t1")
    eventually(lambda: live.blobs == [])


def test_push_predict_and_remove_with_the_command(live: Live, golden: Path, case: Case) -> None:
    pushed = live.turret("push", "cli", adapter(golden, "sst"), "--alias", "prod")
    assert pushed.exit_code == 0, pushed.stderr
    assert pushed.stdout.startswith("cli@1")
    predicted = live.turret("--json", "predict", "cli", "--output", "logits", *case.texts)
    assert predicted.exit_code == 0, predicted.stderr
    outputs = [result["output"]["data"] for result in json.loads(predicted.stdout)["results"]]
    np.testing.assert_allclose(outputs, case.expected["alone.sst.logits"], rtol=0, atol=1e-4)
    assert "cli" in live.turret("ls").stdout
    assert "prod" in live.turret("show", "cli").stdout
    assert live.turret("rm", "--yes", "cli@1").exit_code == 1, "an alias refers to it"
    assert live.turret("rm", "--yes", "cli").exit_code == 0
    assert "cli" not in live.turret("ls").stdout


def test_a_broken_folder(live: Live, golden: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter.safetensors"):
        data = (adapter(golden, "sst") / name).read_bytes()
        (tmp_path / name).write_bytes(data if name.endswith("json") else data[:-7])
    before = live.turret("--json", "ls").stdout
    refused = live.turret("push", "broken", tmp_path)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "adapter.safetensors" in refused.stderr
    assert live.turret("--json", "ls").stdout == before
    assert left_in(live.folder / "tmp") == []
    assert live.turret("predict", "broken", "t1").exit_code == 1


def send(live: Live, head: str, body: bytes) -> socket.socket:
    port = int(live.url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(head.encode() + b"\r\nhost: x\r\n\r\n" + body)
    return connection


def test_clients_that_hang_up(live: Live, golden: Path, case: Case) -> None:
    """Clients leave while they wait, or halfway through a body; the others are served and nothing stays behind."""
    with Turret(live.url) as server:
        server.push("stays", adapter(golden, "qqp"))
        body = json.dumps({"model": "stays", "inputs": ["t1 t2 t3 " * 13] * 500}).encode()
        for i in range(12):
            part = body if i % 2 else body[: len(body) // 2]
            head = f"POST /v1/predict HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            connection = send(live, head, part)
            if i % 4 == 1:
                time.sleep(0.05)
            connection.close()
        send(live, "PUT /v1/adapters/half HTTP/1.1\r\ncontent-length: 100000", b"x" * 5000).close()
        send(live, "PUT /v1/adapters/half HTTP/1.1\r\ntransfer-encoding: chunked", b"5\r\nabcde\r\n").close()
        send(live, "nonsense", b"").close()
        compare(server.predict("stays", case.texts, output="logits"), case, "alone.qqp.logits")
        eventually(lambda: 'path="/v1/predict",status="499"' in httpx.get(f"{live.url}/metrics").text)
        eventually(lambda: left_in(live.folder / "tmp") == [])
        assert server.health().ready
        assert "half" not in {entry.name for entry in server.list()}
        server.delete("stays")
    assert "Traceback" not in live.log


def test_kill_9_and_restart(live: Live, golden: Path, case: Case) -> None:
    """What was published before the kill serves after it, and what was being uploaded is whole or absent."""
    with Turret(live.url) as server:
        for name in ("sst", "nli"):
            server.push(name, adapter(golden, name), alias="prod")
        stop = threading.Event()
        pushing = threading.Thread(target=push_for_ever, args=(live.url, adapter(golden, "qqp"), stop))
        pushing.start()
        eventually(lambda: len(list(server.list())) > 4)
    live.process.send_signal(signal.SIGKILL)
    live.process.wait(10)
    stop.set()
    pushing.join(10)
    with started(golden / CASE / "backbone", live.folder) as again, Turret(again.url) as server:
        for name in ("sst", "nli"):
            compare(server.predict(f"{name}@prod", case.texts, output="logits"), case, f"alone.{name}.logits")
        names = [entry.name for entry in server.list()]
        assert len(names) > 4
        for name in (names[0], names[-3]):
            assert name.startswith("a-")
            compare(server.predict(name, case.texts, output="logits"), case, "alone.qqp.logits")
        again.process.terminate()
        assert again.process.wait(15) in (0, -signal.SIGTERM)


def push_for_ever(url: str, folder: Path, stop: threading.Event) -> None:
    """Publishes under new names until told to stop, or the server is gone."""
    with Turret(url, max_retries=0) as server:
        for number in range(10_000):
            if stop.is_set():
                return
            try:
                server.push(f"a-{number:05d}", folder)
            except TurretError:
                return


@pytest.mark.parametrize(("flags", "word"), [(["--host", "0.0.0.0"], "--insecure"), (["--port", "99999"], "--port")])
def test_wrong_flags(tmp_path: Path, flags: list[str], word: str) -> None:
    command = [sys.executable, "-m", "server", "--store", str(tmp_path / "store"), *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert word in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_version() -> None:
    ended = subprocess.run([sys.executable, "-m", "server", "--version"], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.fullmatch(r"turret-server (\d+(\.\d+)+|unknown)\n", ended.stdout)


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve(Settings(backbone="nothing", store=str(tmp_path / "store"), port=port)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"turret-server: port {port} of 127.0.0.1 is taken: stop what listens there, or choose another with --port.\n"


@pytest.mark.parametrize("word", ["deberta-v2", "nothing"])
def test_a_backbone_that_cannot_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    (tmp_path / "deberta-v2").mkdir()
    (tmp_path / "deberta-v2" / "config.json").write_text('{"model_type": "deberta-v2"}')
    assert serve(Settings(backbone=str(tmp_path / word), store=str(tmp_path / "store"), port=0)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert word in printed.err


def test_a_store_that_cannot_be_read(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert serve(Settings(backbone=str(golden / CASE / "backbone"), store=str(tmp_path / "file"))) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1

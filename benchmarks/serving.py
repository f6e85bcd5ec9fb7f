"""A real server for measurements and endurance tests: `python -m server` in a process of its own on a free port of the loopback.

Knows how it is started, ended (also with kill -9) and asked for its metrics; not what is sent to it.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

ROOT = Path(__file__).parents[1]
START_SECONDS = 90
STOP_SECONDS = 30
_LISTENS = re.compile(r"http://127\.0\.0\.1:\d+")
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*(?:\{.*\})?) (?P<value>\S+)$")


class NotStarted(Exception):
    """A server that ended, or said nothing for too long, before it listened; the sentence ends with its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its process, where it listens, and the folder of its log and of its temporary files (`tmp`)."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    @property
    def log(self) -> str:
        """What it wrote to its standard error."""
        return (self.folder / "log").read_text()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9: nothing of the server's own code runs any more."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Ends it as an operator would, by SIGTERM; kills it where that does nothing. Returns the exit code."""
        if self.alive:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def memory(self) -> int:
        """Resident bytes of the process (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def metrics(self) -> dict[str, float]:
        """The samples of /metrics by their names, labels included."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return {found["name"]: float(found["value"]) for line in lines if (found := _SAMPLE.match(line))}

    def metric(self, *words: str) -> float:
        """The sum of the samples whose names hold all the words."""
        samples = self.metrics().items()
        return sum(value for name, value in samples if all(word in name for word in words) and "_created" not in name)


def start(folder: Path, **flags: object) -> Server:
    """A server with `flags` (`device_memory=1000` is `--device-memory 1000`), once it listens. Raises NotStarted."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TURRET_")}
    environment |= {"HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, "-m", "server", "--port", "0", "--device", "cpu", *arguments]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    url = _listening(process, process.stdout)
    if url is None:
        process.kill()
        process.wait(STOP_SECONDS)
        raise NotStarted(f"The server did not start; its log: {(folder / 'log').read_text()[-2000:]}")
    return Server(process, url, folder)


@contextmanager
def running(folder: Path, **flags: object) -> Iterator[Server]:
    """A server for as long as it is wanted."""
    server = start(folder, **flags)
    try:
        yield server
    finally:
        server.stop()


def _listening(process: subprocess.Popen[str], stdout: IO[str]) -> str | None:
    """Where the server says that it listens; None if it ends or says nothing in time. Its output is read on, so that it never blocks."""
    found: list[str] = []
    said = threading.Event()

    def read() -> None:
        with contextlib.suppress(ValueError, OSError), stdout:
            for line in stdout:
                if not said.is_set() and (match := _LISTENS.search(line)):
                    found.append(match[0])
                    said.set()
        said.set()

    threading.Thread(target=read, daemon=True).start()
    said.wait(START_SECONDS)
    return found[0] if found else None

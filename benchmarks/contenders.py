"""The services that are compared: how each is started on the loopback with its best settings, asked, and ended.

Settings were chosen for 2 cores by `python -m benchmarks.tuning`, which says what else was tried.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks import serving
from benchmarks.competitors import venvs
from benchmarks.load import ROOT, Request, post
from benchmarks.processes import memory_bytes, tree
from benchmarks.traffic import Question

START_SECONDS = 120
STOP_SECONDS = 20
Target = tuple[str, int]
Settings = dict[str, Any]

FULL_MODELS: Settings = {"threads": 1, "workers": 2, "batch": 0}
FULL_MODELS_BATCHED: Settings = {"threads": 1, "workers": 2, "batch": 32}
FULL_MODELS_APART: Settings = {"threads": 1, "workers": 1, "batch": 0}
LITSERVE: Settings = {"threads": 2, "batch": 32, "wait": 0.002, "part": 16, "workers": 1, "fast_queue": False}
INFINITY: Settings = {"engine": "torch", "batch_size": 32, "dtype": "float32", "bettertransformer": False, "compile": False}
TURRET: Settings = {}


class NotStarted(Exception):
    """A service that ended, or answered nothing for too long; the sentence ends with its log."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A running service: its processes, how a question becomes a request, where an answer's numbers are, and its settings."""

    name: str
    processes: tuple["subprocess.Popen[Any]", ...]
    ask: Callable[[Question], Request]
    path: tuple[str | int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def pids(self) -> tuple[int, ...]:
        """The roots of its process trees."""
        return tuple(process.pid for process in self.processes)

    def requests(self, asked: Sequence[Question]) -> tuple[Request, ...]:
        """The questions as it takes them."""
        return tuple(self.ask(one) for one in asked)

    def pause(self) -> None:
        """Stops all its processes where they stand, so that they use no CPU while others are measured; `resume` goes on."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets paused processes go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for root in self.pids:
            for pid in tree(root):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    @property
    def memory_bytes(self) -> int:
        """Proportional set size of all its processes."""
        return sum(map(memory_bytes, self.pids))

    def stop(self) -> None:
        """Ends it, by SIGTERM, then by SIGKILL to what it started."""
        self.resume()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)
            _kill_group(process.pid)


def turret(folder: Path, store: Path, backbone: Path, task: str, settings: Settings = TURRET, name: str = "turret") -> Contender:
    """Turret on a store. `task` is what a question's number is called in it: `adapter` (embeddings) or `task` (logits)."""
    server = serving.start(folder, store=store, backbone=backbone, log_level="warning", **settings)
    url = httpx.URL(server.url)
    target = (url.host, url.port or 80)

    def embedding(one: Question) -> Request:
        model = "base" if one.task is None else f"adapter-{one.task}"
        return Request(post(target, "/v1/embeddings", {"model": model, "input": one.text}), target, one.right)

    def logits(one: Question) -> Request:
        content = {"model": f"task-{one.task}", "inputs": one.text, "output": "logits"}
        return Request(post(target, "/v1/predict", content), target, one.right)

    ask, path = (logits, ("results", 0, "output", "data")) if task == "task" else (embedding, ("data", 0, "embedding"))
    return Contender(name, (server.process,), ask, path, dict(settings))


def full_models(folder: Path, models: Sequence[Path], apart: bool, settings: Settings | None = None) -> Contender:
    """FastAPI with one full model per task: all in one process, or a process for each."""
    settings = settings or (FULL_MODELS_APART if apart else FULL_MODELS)
    groups = [[model] for model in models] if apart else [list(models)]
    targets: dict[int, Target] = {}
    processes: list[subprocess.Popen[Any]] = []
    for number, group in enumerate(groups):
        target = _free()
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        command = ["-m", "benchmarks.competitors.full_models", *map(str, group), "--port", str(target[1]), *flags]
        processes.append(_starting("transformers", command, folder / f"full-{number}"))
        targets |= {models.index(model): target for model in group}
    for number, process in enumerate(processes):
        try:
            _listens(process, folder / f"full-{number}", targets[models.index(groups[number][0])], "/health")
        except NotStarted:
            for other in processes:
                _kill(other)
            raise

    def ask(one: Question) -> Request:
        assert one.task is not None
        target = targets[one.task]
        return Request(post(target, f"/predict/task-{one.task}", {"inputs": one.text}), target, one.right)

    name = "full models, a process each" if apart else "full models, batched" if settings["batch"] else "full models, one process"
    return Contender(name, tuple(processes), ask, ("logits",), dict(settings))


def litserve(folder: Path, backbone: Path, settings: Settings = LITSERVE) -> Contender:
    """The bare backbone's embeddings behind LitServe."""
    target = _free()
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if not isinstance(value, bool)]
    flags += [f"--{name.replace('_', '-')}" for name, value in settings.items() if value is True]
    command = ["-m", "benchmarks.competitors.lit_embeddings", str(backbone), "--port", str(target[1]), *flags]
    process = _started("litserve", command, folder / "litserve", target, "/health")

    def ask(one: Question) -> Request:
        return Request(post(target, "/predict", {"input": one.text}), target, one.right)

    return Contender("litserve", (process,), ask, ("embedding",), dict(settings))


def infinity(folder: Path, backbone: Path, settings: Settings = INFINITY) -> Contender:
    """The bare backbone's embeddings behind infinity."""
    target = _free()
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    flags += ["--served-model-name", "bare", "--device", "cpu", "--no-model-warmup", "--log-level", "error"]
    command = [
        "-c",
        "from infinity_emb.cli import cli; cli()",
        "v2",
        "--model-id",
        str(backbone),
        "--host",
        target[0],
        "--port",
        str(target[1]),
        *flags,
    ]
    process = _started("infinity", command, folder / "infinity", target, "/health")

    def ask(one: Question) -> Request:
        return Request(post(target, "/embeddings", {"model": "bare", "input": one.text}), target, one.right)

    return Contender("infinity", (process,), ask, ("data", 0, "embedding"), dict(settings))


def _free() -> Target:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return "127.0.0.1", taken.getsockname()[1]


def _started(venv: str, command: Sequence[str], folder: Path, target: Target, health: str) -> "subprocess.Popen[Any]":
    """A process of an environment once it answers at `health`. Raises NotStarted."""
    process = _starting(venv, command, folder)
    _listens(process, folder, target, health)
    return process


def _starting(venv: str, command: Sequence[str], folder: Path) -> "subprocess.Popen[Any]":
    """A process of an environment, in a group of its own, with its log in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "PYTHONPATH"))}
    environment |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "PYTHONPATH": str(ROOT)}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    whole = [str(venvs.make(venv)), *command]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            whole, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd=folder, start_new_session=True
        )


def _listens(process: "subprocess.Popen[Any]", folder: Path, target: Target, health: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://{target[0]}:{target[1]}{health}", timeout=2).is_success:
                return
        time.sleep(0.2)
    _kill(process)
    raise NotStarted(f"a service did not start; its log: {(folder / 'log').read_text()[-2000:]}")


def _kill(process: "subprocess.Popen[Any]") -> None:
    _kill_group(process.pid)
    process.wait(STOP_SECONDS)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)

"""A contender in a process and an environment of its own: started, asked over JSON lines on its stdin and stdout, closed.

While one is asked the others sit blocked on their stdin, so contenders can be run in turn. What they print otherwise goes to a log.
"""

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
LAST_LINES = 20
CLOSE_SECONDS = 30


class WorkerFailed(Exception):
    """A worker that ended, or that a request failed in; the sentence ends with what it said."""


class Worker:
    """A running worker: the module `module`, run by the interpreter `python`, with its log in `folder`."""

    def __init__(self, name: str, python: Path | str, module: str, folder: Path, **environment: str) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        offline = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONUNBUFFERED": "1"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", module],
                cwd=ROOT,
                env=os.environ | offline | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer to one request; raises `WorkerFailed`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait(CLOSE_SECONDS)
            raise WorkerFailed(f"the worker '{self.name}' ended with {code} when it was asked to {do}:\n{self._tail()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"the worker '{self.name}' could not {do}: {answer['error']}")
        return answer["answer"]

    def close(self) -> None:
        """Ends it: its stdin is closed, and it is killed where that does nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LAST_LINES:])

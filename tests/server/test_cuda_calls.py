"""The lines that call torch.cuda, against a stand-in that writes down what is asked of it and in which order. No GPU is needed or used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from server.engine.graphs import captured
from server.engine.transfers import SideStream, transfers_for

GPU = torch.device("cuda", 0)
Log = list[tuple[Any, ...]]


class Stream:
    """A stream by name."""

    def __init__(self, log: Log, name: str) -> None:
        self._log, self.name = log, name

    def wait_event(self, event: "Event") -> None:
        self._log.append((self.name, "waits for", event.recorded_on))

    def wait_stream(self, other: "Stream") -> None:
        self._log.append((self.name, "waits for", other.name))


class Event:
    recorded_on: str | None = None

    def record(self, stream: Stream) -> None:
        self.recorded_on = stream.name


class Buffer:
    """A tensor that only moves."""

    def __init__(self, log: Log, device: torch.device) -> None:
        self._log, self.device = log, device

    def to(self, device: torch.device, non_blocking: bool) -> "Buffer":
        self._log.append(("copy to", device, non_blocking))
        return Buffer(self._log, device)

    def record_stream(self, stream: Stream) -> None:
        self._log.append(("used on", stream.name))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    written: Log = []
    present = [Stream(written, "engine's")]

    @contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        present.append(stream)
        written.append(("on", stream.name))
        yield
        written.append(("off", present.pop().name))

    class Graph:
        def replay(self) -> None:
            written.append(("replay",))

    @contextmanager
    def graph(made: Graph, capture_error_mode: str) -> Iterator[None]:
        written.append(("capture", capture_error_mode))
        yield
        written.append(("captured",))

    for name, stand_in in {
        "Stream": lambda device=None: Stream(written, "side"),
        "Event": Event,
        "stream": entered,
        "current_stream": lambda device=None: present[-1],
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return written


def test_a_package_is_copied_on_the_side_and_waited_for_by_the_engine(log: Log) -> None:
    transfers = transfers_for(GPU)
    assert isinstance(transfers, SideStream)
    arrival = transfers.upload(Buffer(log, torch.device("cpu")))  # type: ignore[arg-type]
    assert log == [("on", "side"), ("copy to", GPU, True), ("off", "side")], "the engine's stream waits for nothing yet"
    log.clear()
    arrival.wait()
    assert log == [("engine's", "waits for", "side"), ("used on", "engine's")]


def test_a_forward_is_warmed_up_on_the_side_and_captured_once(log: Log) -> None:
    output = torch.ones(2)

    def forward() -> torch.Tensor:
        log.append(("forward",))
        return output

    replay = captured(forward)
    warmed = [("side", "waits for", "engine's"), ("on", "side"), ("forward",), ("forward",), ("off", "side")]
    assert log == [*warmed, ("engine's", "waits for", "side"), ("capture", "thread_local"), ("forward",), ("captured",)]
    log.clear()
    assert replay() is output
    assert replay() is output
    assert log == [("replay",), ("replay",)]

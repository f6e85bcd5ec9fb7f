"""What crosses between host and device: packages on their way in, a batch's answers on their way out.

On a CPU nothing moves (`Transfers`). On CUDA (`SideStream`) packages are copied from pinned memory on a stream of their own, beside the
batch that is running, and the engine's stream waits for one only when a batch is about to use it; all answers of a batch cross
in one copy, for which the host waits once.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from server.core import Outputs

Named = dict[str, Tensor]


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, without waiting for what the device is doing."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one, for what asks for none by name."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Arrival:
    """A buffer on the device that may still be on its way: nothing may use it before `wait`."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer

    def wait(self) -> None:
        """Makes whatever the engine asks for next wait for the buffer. Does not make the caller wait."""


class Transfers:
    """For a CPU, whose memory is the host's: a buffer is used where it lies, and an answer is an array already."""

    def upload(self, buffer: Tensor) -> Arrival:
        """Brings a buffer to the device; the same one where it is there."""
        return Arrival(buffer)

    def fetch(self, outputs: Sequence[Named]) -> list[Outputs]:
        """A batch's answers as float32 arrays on the host."""
        return [{name: tensor.float().numpy() for name, tensor in named.items()} for named in outputs]


class SideStream(Transfers):
    """For a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, buffer: Tensor) -> Arrival:
        """Begins the copy and returns; the buffer must be pinned, else the copy is waited for."""
        with torch.cuda.stream(self._stream):
            there = buffer.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return Copied(there, copied)

    def fetch(self, outputs: Sequence[Named]) -> list[Outputs]:
        """In one copy."""
        return in_one_copy(outputs, pinned=True)


class Copied(Arrival):
    """A buffer that a side stream copies; `event` is recorded behind the copy."""

    def __init__(self, buffer: Tensor, event: torch.cuda.Event) -> None:
        super().__init__(buffer)
        self._event = event

    def wait(self) -> None:
        """The current stream waits, and the buffer's memory is not used again before what that stream does with it is done."""
        stream = torch.cuda.current_stream(self.buffer.device)
        stream.wait_event(self._event)
        self.buffer.record_stream(stream)


def transfers_for(device: torch.device) -> Transfers:
    """What a device needs."""
    return SideStream(device) if device.type == "cuda" else Transfers()


def in_one_copy(outputs: Sequence[Named], pinned: bool) -> list[Outputs]:
    """A batch's answers as float32 arrays that share one piece of host memory."""
    tensors = [tensor for named in outputs for tensor in named.values()]
    if not tensors:
        return [{} for _ in outputs]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).float()
    host = torch.empty(flat.shape, pin_memory=pinned)
    host.copy_(flat)  # waits for the device
    parts = iter(torch.split(host, [tensor.numel() for tensor in tensors]))
    return [{name: next(parts).view(tensor.shape).numpy() for name, tensor in named.items()} for named in outputs]

"""Which kernels of the device an engine uses, chosen once when it is made; a test may choose them on the CPU too."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from server.engine import grouped
from server.engine.varlen import Attend

FLASH = (8, 0)  # the first compute capability that torch's varlen attention runs on


@dataclass(frozen=True, slots=True)
class Kernels:
    """grouped: adapters of many slots in one launch (`grouped.py`); varlen: a batch's attention in one call, or None (`varlen.py`).

    capture: how forwards become graphs, None to launch every kernel by itself (`graphs.py`).
    """

    grouped: bool = False
    varlen: Attend | None = None
    capture: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None


PLAIN = Kernels()


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels:
    """What there is for a backbone's device and numbers. On the CPU nothing: there loops over plain products are as fast."""
    if device.type != "cuda":
        return PLAIN
    half = dtype in (torch.bfloat16, torch.float16)
    varlen = varlen_attn if half and torch.cuda.get_device_capability(device) >= FLASH else None
    return Kernels(grouped.available(), varlen)

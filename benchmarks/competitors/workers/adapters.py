"""The `adapters` library (AdapterHub): Pfeiffer adapters one task at a time and by BatchSplit, and AdapterFusion.

The model is transformers' own with SDPA attention, in eval mode, under torch.inference_mode.
"""

from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters.composition import BatchSplit, Fuse
from torch import Tensor

from benchmarks.competitors.workers.padding import by_task, chunked, whole
from benchmarks.competitors.workers.protocol import Contest, serve, task_name


class Model:
    """One model with an adapter for each task, and fusions of the first ones."""

    def __init__(self) -> None:
        self.model: Any = None
        self.contest = Contest({})

    def load(self, backbone: str) -> dict[str, Any]:
        """Loads the backbone. Returns the versions and settings."""
        self.model = transformers.AutoModel.from_pretrained(backbone, attn_implementation="sdpa", dtype=torch.float32)
        adapters.init(self.model)
        self.model.eval()
        self.contest.contenders |= {
            "bare": partial(whole, self.bare),
            "bare, chunked": partial(chunked, self.bare),
            "per task group": partial(by_task, self.one_task),
            "BatchSplit": partial(whole, self.split),
            "BatchSplit, chunked": partial(chunked, self.split),
        }
        return {
            "versions": {"adapters": adapters.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
            "attention": type(self.model.encoder.layer[0].attention.self).__name__,
            "threads": torch.get_num_threads(),
        }

    def make(self, folder: str, tasks: int, reduction_factor: int, deviation: float, seed: int) -> None:
        """Adds a Pfeiffer adapter for each task, with normal random weights, up-projections too, and saves each to `folder`."""
        generator = torch.Generator().manual_seed(seed)
        for task in range(tasks):
            name = task_name(task)
            self.model.add_adapter(name, config=adapters.SeqBnConfig(reduction_factor=reduction_factor))
            with torch.no_grad():
                for parameter_name, parameter in self.model.named_parameters():
                    if f".{name}." in parameter_name:
                        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
            path = Path(folder) / name
            path.mkdir(parents=True)
            self.model.save_adapter(str(path), name, with_head=False, use_safetensors=True)
        self.model.eval()

    def fuse(self, folder: str, members: int, deviation: float, seed: int) -> list[str]:
        """Adds the fusion of the first `members` tasks, random as the adapters (values near the identity), and saves it to `folder`."""
        generator = torch.Generator().manual_seed(seed)
        names = [task_name(task) for task in range(members)]
        self.model.add_adapter_fusion(names, "dynamic")
        with torch.no_grad():
            for parameter_name, parameter in self.model.named_parameters():
                if f"adapter_fusion_layer.{','.join(names)}." in parameter_name:
                    noise = torch.randn(parameter.shape, generator=generator) * deviation
                    parameter.copy_(noise + torch.eye(len(parameter)) if ".value." in parameter_name else noise)
        Path(folder).mkdir()
        self.model.save_adapter_fusion(folder, names, use_safetensors=True)
        self.model.eval()
        self.contest.contenders[f"fusion of {members}"] = partial(whole, partial(self.fused, names))
        return names

    def bare(self, ids: Tensor, mask: Tensor, tasks: list[int]) -> Tensor:
        """Without adapters."""
        self.model.active_adapters = None
        return self._hidden(ids, mask)

    def one_task(self, ids: Tensor, mask: Tensor, tasks: list[int]) -> Tensor:
        """All rows are of one task."""
        self.model.set_active_adapters(task_name(tasks[0]))
        return self._hidden(ids, mask)

    def split(self, ids: Tensor, mask: Tensor, tasks: list[int]) -> Tensor:
        """Rows of a task stand together."""
        runs = [(task_name(task), len(list(rows))) for task, rows in groupby(tasks)]
        self.model.active_adapters = BatchSplit(*(name for name, _ in runs), batch_sizes=[count for _, count in runs])
        return self._hidden(ids, mask)

    def fused(self, names: list[str], ids: Tensor, mask: Tensor, tasks: list[int]) -> Tensor:
        """All rows on one fusion."""
        self.model.active_adapters = Fuse(*names)
        return self._hidden(ids, mask)

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden


if __name__ == "__main__":
    model = Model()
    serve({"load": model.load, "make": model.make, "fuse": model.fuse} | model.contest.commands)

"""PEFT: mixed batches by `adapter_names`, LoRA on query and value; and stock transformers, padded, as the bare model.

The models are transformers' own with SDPA attention, in eval mode, under torch.inference_mode.
"""

from functools import partial
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from benchmarks.competitors.workers.padding import chunked, whole
from benchmarks.competitors.workers.protocol import Contest, serve, task_name


class Model:
    """One stock model, and one with a LoRA for each task."""

    def __init__(self) -> None:
        self.model: Any = None
        self.stock: Any = None
        self.contest = Contest({})

    def load(self, backbone: str) -> dict[str, Any]:
        """Loads the backbone, twice. Returns the versions and settings."""
        self.stock, self.model = (
            transformers.AutoModel.from_pretrained(backbone, attn_implementation="sdpa", dtype=torch.float32).eval() for _ in range(2)
        )
        self.contest.contenders |= {"bare": partial(whole, self.bare), "bare, chunked": partial(chunked, self.bare)}
        return {
            "versions": {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
            "attention": self.model.config._attn_implementation,
            "threads": torch.get_num_threads(),
        }

    def make(self, folder: str, tasks: int, rank: int, deviation: float, seed: int) -> None:
        """Adds a LoRA for each task, with normal random weights, B too, and saves them all to `folder`."""
        generator = torch.Generator().manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=["query", "value"])
        names = [task_name(task) for task in range(tasks)]
        self.model = peft.get_peft_model(self.model, config, adapter_name=names[0])
        for name in names[1:]:
            self.model.add_adapter(name, config)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if ".lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
        self.model.save_pretrained(folder)
        self.model.eval()
        self.contest.contenders |= {"adapter_names": partial(whole, self.mixed), "adapter_names, chunked": partial(chunked, self.mixed)}

    def bare(self, ids: Tensor, mask: Tensor, tasks: list[int]) -> Tensor:
        """Stock transformers."""
        hidden: Tensor = self.stock(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden

    def mixed(self, ids: Tensor, mask: Tensor, tasks: list[int]) -> Tensor:
        """Each row on the LoRA of its task."""
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask, adapter_names=[task_name(task) for task in tasks]).last_hidden_state
        return hidden


if __name__ == "__main__":
    model = Model()
    serve({"load": model.load, "make": model.make} | model.contest.commands)

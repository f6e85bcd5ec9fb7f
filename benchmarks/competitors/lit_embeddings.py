"""The bare backbone's embeddings behind LitServe, batched. Runs in the environment `litserve`, not in Turret's.

Texts that wait are a batch (`--batch`, `--wait` seconds for it to fill); it is sorted by length and run in parts of `--part` texts, each
padded to its longest. The answer is the mean of the tokens' last hidden states, of length 1.
"""

import argparse
from typing import Any

import litserve
import torch
from transformers import AutoModel, AutoTokenizer


class Embeddings(litserve.LitAPI):  # type: ignore[misc]
    """{"input": text} -> {"embedding": [numbers]}"""

    def __init__(self, folder: str, threads: int, part: int, **options: Any) -> None:
        super().__init__(**options)
        self.folder, self.threads, self.part = folder, threads, part

    def setup(self, device: str) -> None:
        """Loads the backbone in a worker."""
        torch.set_num_threads(self.threads)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModel.from_pretrained(self.folder, attn_implementation="sdpa", dtype=torch.float32).eval()

    def decode_request(self, request: dict[str, str]) -> str:
        """The text."""
        return request["input"]

    def predict(self, texts: list[str]) -> list[list[float]]:
        """One vector per text, in order."""
        encoded = self.tokenizer(texts, truncation=True)
        order = sorted(range(len(texts)), key=lambda place: len(encoded["input_ids"][place]))
        vectors: list[list[float]] = [[]] * len(texts)
        with torch.inference_mode():
            for start in range(0, len(order), self.part):
                places = order[start : start + self.part]
                padded = self.tokenizer.pad(
                    {name: [column[place] for place in places] for name, column in encoded.items()}, return_tensors="pt"
                )
                hidden = self.model(**padded).last_hidden_state
                mask = padded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
                for place, vector in zip(places, pooled.tolist(), strict=True):
                    vectors[place] = vector
        return vectors

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """The answer."""
        return {"embedding": output}


class Single(Embeddings):
    """Without batching: one text a call."""

    def predict(self, text: str) -> list[float]:  # type: ignore[override]
        """The text's vector."""
        return super().predict([text])[0]


def main() -> None:
    """Serves on the loopback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait", type=float, default=0.002)
    parser.add_argument("--part", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fast-queue", action="store_true")
    options = parser.parse_args()
    kind = Embeddings if options.batch > 1 else Single
    batching = {"max_batch_size": options.batch, "batch_timeout": options.wait} if options.batch > 1 else {}
    api = kind(options.folder, options.threads, options.part, **batching)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=options.workers, timeout=False, fast_queue=options.fast_queue, max_payload_size=None
    )
    server.run(
        host="127.0.0.1", port=options.port, num_api_servers=1, log_level="warning", generate_client_file=False, timeout_keep_alive=600,
        access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()

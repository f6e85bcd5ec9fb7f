"""What a route answers alone: an engine of this process, one row at a time, adapters step by step (no banks, nothing folded)."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.app import model_ids
from server.core import Readout, Route, Sequence, Setup, pack, setup_digests
from server.engine.backbone import load_backbone, load_tokenizer
from server.engine.engine import Engine
from server.errors import ApiError
from server.tasks.encode import Encoder, Text
from tests.endurance.fleet import Made, Output

Floats = npt.NDArray[np.float32]


class Solo:
    """Answers of packages by digest, computed from their bytes; each is computed once."""

    def __init__(self, backbone: str, packages: Mapping[str, Made]) -> None:
        loaded = load_backbone(backbone, "cpu", "float32", "")
        self.backbone = loaded.spec
        self._engine = Engine(loaded, fast=False)
        self._encoder = Encoder(load_tokenizer(backbone), loaded.max_tokens, model_ids(loaded.config, loaded.spec))
        self._packages = packages
        self._known: dict[tuple[Setup, str, str, Output], Floats] = {}

    def answer(self, setup: Setup, head: str, text: str, output: Output) -> Floats:
        """Class probabilities ("decoded"), raw numbers of the head, or the vector of an embedding."""
        key = (setup, head, text, output)
        if key not in self._known:
            self._known[key] = self._computed(*key)
        return self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def _computed(self, setup: Setup, head: str, text: str, output: Output) -> Floats:
        for digest in {*setup_digests(setup), head}:
            self._load(digest)
        (encoded,) = self._encoder.encode([Text(text)])
        assert not isinstance(encoded, ApiError)
        spec = self._packages[head].manifest.head
        route = Route("solo", head, setup, None if output == "embedding" else spec, head)
        readout = Readout("embedding", "mean", True) if output == "embedding" else Readout()
        (named,) = self._engine.run(pack([Sequence(route, encoded.input_ids, encoded.type_ids, readout)])[0])
        if output == "embedding":
            return named["embedding"]
        return softmax(named["logits"]) if output == "decoded" else named["logits"]

    def _load(self, digest: str) -> None:
        if digest in self._engine.resident:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "package.safetensors"
            path.write_bytes(self._packages[digest].data)
            self._engine.load(digest, self._engine.read(path, self._packages[digest].manifest))


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)

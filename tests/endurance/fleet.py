"""What the endurance tests publish and ask: packages of every kind for one backbone, made on the spot, and the requests for them.

Knows shapes and references; no server and no engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

import numpy as np

from adapter_store.manifest import Head, Manifest
from adapter_store.methods import Backbone, Bottleneck, Fusion, LoRA, Method
from adapter_store.package import TensorData, write_package
from server.core import Average, Fuse, Setup, Stack, Use

LABELS = ("red", "green", "blue")
CLASSIFY = Head(type="classification", labels=LABELS)
TAG = Head(type="tagging", labels=("O", "B-X", "I-X"))
EMBED = Head(type="embedding", layers=0, pooling="mean", normalize=True)
PFEIFFER = Bottleneck()
BOTTLENECKS: dict[str, Bottleneck] = {
    "pfeiffer": PFEIFFER,
    "houlsby": Bottleneck(mh_adapter=True, original_ln_before=False, non_linearity="silu"),
    "compacter": Bottleneck(phm_layer=True, reduction_factor=8, non_linearity="gelu"),
}
WORDS = [
    "please",
    "book",
    "me",
    "a",
    "flight",
    "to",
    "Paris",
    "for",
    "tomorrow",
    "and",
    "tell",
    "Anna",
    "that",
    "the",
    "train",
    "from",
    "Berlin",
    "was",
    "late",
    "again",
]
# How many names of each kind a fleet of size 1 has; `fused` is one always.
COUNTS = {"pfeiffer": 12, "houlsby": 10, "compacter": 12, "lora": 8, "tagging": 10, "embedding": 10, "language": 6}
PAIR = ("pair-a", "pair-b")
FUSED = "fused"

Output = Literal["decoded", "logits", "embedding"]


@dataclass(frozen=True, slots=True)
class Made:
    """A package made on the spot."""

    digest: str
    manifest: Manifest
    data: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """A reference in a request that exists all the time: a name and an alias (`latest` for none)."""

    name: str
    alias: str = "latest"

    def __str__(self) -> str:
        return self.name if self.alias == "latest" else f"{self.name}@{self.alias}"


@dataclass(frozen=True, slots=True)
class Target:
    """One model string: what it refers to, in the order in which an answer names the digests, and what they compute together."""

    model: str
    parts: tuple[Part, ...]
    setup: Callable[[Sequence[str]], Setup]
    head: int = 0  # which of the parts has the head
    output: Output = "decoded"


def texts(count: int, seed: int = 5) -> list[str]:
    """Sentences of 3 to 40 words, all different."""
    random = np.random.default_rng(seed)
    return [f"{number} {' '.join(random.choice(WORDS, random.integers(2, 40)))}" for number in range(count)]


def made(manifest: Manifest, seed: int, scale: float = 0.06) -> Made:
    """A package of normal random weights, strong enough that another version answers otherwise."""
    random = np.random.default_rng(seed)
    values = {name: (random.standard_normal(shape, dtype=np.float32) * scale) for name, shape in manifest.tensors().items()}
    data = write_package(manifest, {name: TensorData("F32", value.shape, value.tobytes()) for name, value in values.items()})
    return Made(f"sha256:{sha256(data).hexdigest()}", manifest, data)


@dataclass(slots=True)
class Fleet:
    """Names of many kinds for one backbone, and every package that was made for them, by digest."""

    backbone: Backbone
    size: float = 1.0
    packages: dict[str, Made] = field(default_factory=dict)
    kinds: dict[str, Manifest] = field(default_factory=dict)
    _seed: int = 1000

    def __post_init__(self) -> None:
        for kind, count in COUNTS.items():
            manifest = self._manifest(kind)
            self.kinds |= {f"{kind}-{number}": manifest for number in range(max(1, round(count * self.size)))}
        self.kinds |= dict.fromkeys(PAIR, self._manifest("pfeiffer"))

    def make(self, name: str) -> Made:
        """A new version of a name."""
        return self._kept(self.kinds[name])

    def fusion(self, members: Sequence[tuple[str, str]], leave_out: tuple[int, ...] | None = None) -> Made:
        """A fusion of published adapters, given by name and digest, which acts where they do: not in the lower layers by default."""
        pinned = ", ".join(f"{name}@{digest}" for name, digest in members)
        return self._kept(
            Manifest(
                methods={"fusion": Fusion(leave_out=self._lower if leave_out is None else leave_out)},
                head=CLASSIFY,
                composition=f"fuse[self]({pinned})",
                backbone=self.backbone,
            )
        )

    def names(self, kind: str) -> list[str]:
        """The names of a kind."""
        return [name for name in self.kinds if name.startswith(f"{kind}-")]

    def single(self, part: Part) -> Target:
        """A request for one name, with the output that suits its head."""
        head = self.kinds[part.name].head
        outputs: dict[str, Output] = {"classification": "decoded", "tagging": "logits", "embedding": "embedding"}
        return Target(str(part), (part,), lambda digests: Use(digests[0]), 0, outputs[head.type if head else "embedding"])

    def stack(self, below: Part, above: Part) -> Target:
        """A classifier on top of an adapter without a head."""
        return Target(f"stack({below}, {above})", (below, above), lambda digests: Stack(tuple(map(Use, digests))), 1)

    def average(self, first: Part, second: Part, weight: float) -> Target:
        """The weighted mean of two, read by the first one's head."""
        text = f"average({first}:{weight}, {second}:{1 - weight})#{first}"
        return Target(text, (first, second), lambda digests: Average(tuple(map(Use, digests)), (weight, 1 - weight)))

    def fused(self, members: Sequence[str]) -> Target:
        """The published fusion of members given by digest."""
        return Target(FUSED, (Part(FUSED),), lambda digests: Fuse(digests[-1], tuple(map(Use, members))))

    @property
    def _lower(self) -> tuple[int, ...]:
        """The layers in which what is fused does not act, so that a fusion is not larger than the device."""
        return tuple(range(self.backbone.num_layers - 2))

    def _manifest(self, kind: str) -> Manifest:
        layers = range(self.backbone.num_layers)
        lora = LoRA(modules=tuple(f"layers.{layer}.{name}" for layer in layers for name in ("q", "v")), rank=8, scaling=2.0)
        language = Bottleneck(leave_out=self._lower)
        bottleneck = language if kind == "language" else BOTTLENECKS.get(kind, PFEIFFER)
        methods: dict[str, Method] = {"lora": lora} if kind == "lora" else {"bottleneck": bottleneck}
        heads = {"tagging": TAG, "embedding": EMBED, "language": None}
        return Manifest(methods=methods, head=heads.get(kind, CLASSIFY), backbone=self.backbone)

    def _kept(self, manifest: Manifest) -> Made:
        self._seed += 1
        package = made(manifest, self._seed)
        self.packages[package.digest] = package
        return package


def bad(package: Made, which: int) -> bytes:
    """A package that must be refused: cut off, with a number that is none, of another header, or nothing at all."""
    data = package.data
    nan = np.array([np.nan], dtype="<f4").tobytes()
    return (data[: len(data) // 2], data[:-4] + nan, b"\xff" * 8 + data[8:], b"", data + b"0000")[which % 5]

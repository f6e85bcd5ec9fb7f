"""The manifest: what a package says of itself. It travels in the safetensors `__metadata__` under the key `turret`, as JSON.

`Manifest.tensors()` is the shape law of the whole package: the only tensors that its file may and must hold.
"""

import json
from typing import Literal

from pydantic import Field, field_validator, model_validator

from adapter_store.composition import parse, references
from adapter_store.methods import Backbone, Frozen, Method, Shape, activation
from adapter_store.names import DIGEST

METADATA_KEY = "turret"
MAX_LABELS = 65536
MAX_LABEL_LENGTH = 256
MAX_CARD = 65536

HeadType = Literal["classification", "multilabel_classification", "regression", "tagging", "embedding"]

# Head type -> the task that the wire names (Hugging Face's pipeline names).
TASKS: dict[str, str] = {
    "classification": "text-classification",
    "multilabel_classification": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
    "embedding": "feature-extraction",
}


class Head(Frozen):
    """A task's prediction layer.

    classification, multilabel_classification, regression: `layers` Linear layers with `activation` between them, on the
    first token or on the backbone's pooler output. tagging: the same on every token. embedding: no tensors; `pooling` over
    the row's tokens, then L2-normalised if `normalize`.
    Tensors: `head.{l}.weight` and `head.{l}.bias`, l = 0 .. layers-1; inner layers are [H, H] with a bias, the last is
    [labels, H] with one if `bias`.
    """

    type: HeadType
    layers: int = Field(default=1, ge=0, le=8)
    activation: str | None = None
    use_pooler: bool = False
    bias: bool = True
    labels: tuple[str, ...] = ()
    pooling: Literal["mean", "cls"] | None = None
    normalize: bool = False

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, value: str | None) -> str | None:
        return None if value is None else activation(value)

    @field_validator("labels")
    @classmethod
    def _sound_labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > MAX_LABELS:
            raise ValueError(f"{len(value)} labels, at most {MAX_LABELS} are allowed")
        if any(not label or len(label) > MAX_LABEL_LENGTH for label in value):
            raise ValueError(f"every label must have 1 to {MAX_LABEL_LENGTH} characters")
        if len(set(value)) != len(value):
            raise ValueError("labels must be different from each other")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Head":
        if self.type == "embedding":
            if self.pooling is None or self.labels or self.layers or self.use_pooler:
                raise ValueError("an embedding head has a pooling and neither layers, labels nor a pooler (set layers to 0)")
            return self
        if self.layers < 1:
            raise ValueError(f"a {self.type} head needs at least one layer")
        if self.pooling is not None or self.normalize:
            raise ValueError("pooling and normalize belong to embedding heads only")
        if not self.labels:
            raise ValueError(f"a {self.type} head needs its labels")
        if self.type == "regression" and len(self.labels) != 1:
            raise ValueError("a regression head has exactly one label, the name of its value")
        if self.type == "tagging" and self.use_pooler:
            raise ValueError("a tagging head reads every token and cannot use the pooler")
        return self

    @property
    def task(self) -> str:
        """The task's name on the wire."""
        return TASKS[self.type]

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """Names and shapes of the head's tensors."""
        hidden = backbone.hidden_size
        shapes: dict[str, Shape] = {}
        for layer in range(self.layers):
            last = layer == self.layers - 1
            rows = len(self.labels) if last else hidden
            shapes[f"head.{layer}.weight"] = (rows, hidden)
            if self.bias or not last:
                shapes[f"head.{layer}.bias"] = (rows,)
        return shapes


class Manifest(Frozen):
    """What one package holds and what it was made for.

    `composition` is a model string in which `self` is the package's own adapter and every other member is pinned by digest;
    None means the package's own adapter alone.
    """

    format: Literal["turret/1"] = "turret/1"
    name: str = Field(default="", max_length=129)
    methods: dict[str, Method] = Field(default_factory=dict, max_length=8)
    composition: str | None = Field(default=None, max_length=2048)
    head: Head | None = None
    backbone: Backbone
    license: str = Field(default="", max_length=256)
    card: str = Field(default="", max_length=MAX_CARD)
    source: dict[str, str] = Field(default_factory=dict, max_length=32)

    @field_validator("methods")
    @classmethod
    def _sound_parts(cls, value: dict[str, Method]) -> dict[str, Method]:
        for part in value:
            if not (part.isidentifier() and part.isascii() and part != "head" and len(part) <= 32):
                raise ValueError("the parts of a package must be plain words other than 'head'")
        return value

    @field_validator("composition")
    @classmethod
    def _pinned(cls, value: str | None) -> str | None:
        if value is None:
            return None
        composition = parse(value)
        if composition.head is not None:
            raise ValueError("a package's composition cannot take another package's head")
        for reference in references(composition.root):
            if reference.name != "self" and not DIGEST.fullmatch(reference.selector):
                raise ValueError(f"the composition must pin '{reference.name}' by digest (name@sha256:...), so that it never changes")
        return value

    @model_validator(mode="after")
    def _not_empty(self) -> "Manifest":
        if not self.methods and self.head is None and self.composition is None:
            raise ValueError("the package has neither an adapter nor a head nor a composition")
        return self

    @property
    def task(self) -> str | None:
        """The task's name on the wire; None for a package without a head."""
        return None if self.head is None else self.head.task

    def tensors(self) -> dict[str, Shape]:
        """Names and shapes of all tensors that the package's file must hold, and no others."""
        shapes = {f"{part}.{name}": shape for part, method in self.methods.items() for name, shape in method.tensors(self.backbone).items()}
        if self.head is not None:
            shapes |= self.head.tensors(self.backbone)
        return shapes

    def to_json(self) -> str:
        """Canonical JSON (sorted keys, defaults left out), so that equal manifests give equal bytes and digests."""
        fields = self.model_dump(mode="json", exclude_defaults=True) | {"format": self.format}
        fields["methods"] = {
            part: {"method": method.method} | method.model_dump(mode="json", exclude_defaults=True) for part, method in self.methods.items()
        }
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

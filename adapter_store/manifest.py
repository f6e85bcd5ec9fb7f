"""The manifest: what a package says of itself. It travels in the safetensors `__metadata__` under the key `turret`, as JSON.

`Manifest.tensors()` is the shape law of the whole package: the only tensors that its file may and must hold.
"""

import json
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from adapter_store.composition import MAX_LENGTH, Adapter, Fuse, Parallel, parse, references, walk
from adapter_store.golden import MAX_EXAMPLES, Example
from adapter_store.methods import Backbone, Frozen, Method, Shape, activation
from adapter_store.names import DIGEST

METADATA_KEY = "turret"
MAX_LABELS = 65536
MAX_LABEL_LENGTH = 256
MAX_CARD = 65536
MAX_SOURCE = 4096

HeadType = Literal[
    "classification",
    "multilabel_classification",
    "regression",
    "tagging",
    "embedding",
    "question_answering",
    "multiple_choice",
    "dependency_parsing",
    "masked_lm",
    "causal_lm",
    "seq2seq_lm",
]

# Head type -> the task that the wire names (Hugging Face's pipeline names).
TASKS: dict[str, str] = {
    "classification": "text-classification",
    "multilabel_classification": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
    "embedding": "feature-extraction",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "dependency_parsing": "dependency-parsing",
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
    "seq2seq_lm": "text2text-generation",
}

LM_HEADS = frozenset({"masked_lm", "causal_lm", "seq2seq_lm"})
SENTENCE_HEADS = frozenset({"classification", "multilabel_classification", "regression", "multiple_choice"})
TOKEN_HEADS = frozenset({"tagging", "question_answering"})
SPAN_LABELS = ("start", "end")
MAX_VOCABULARY = 1 << 21


class Head(Frozen):
    """A task's prediction layer.

    classification, multilabel_classification, regression, multiple_choice (one output, a row per choice): `layers` Linear
    layers with `activation` between them, on the token that the backbone's family classifies by (the first, a decoder's last), or
    with `pooling` "mean" on the mean of the row's tokens, through the backbone's pooler if `use_pooler`, or through the head's
    own if `own_pooler`. tagging and question_answering (outputs "start" and "end"): the same on every
    token, each through the pooler if `use_pooler` (ModernBERT's prediction head).
    dependency_parsing: biaffine attention (arXiv 1611.01734) over words, the labels are the relations.
    embedding: no tensors; `pooling` over the row's tokens, then L2-normalised if `normalize`.
    last_token: where a decoder's last token is in a row that holds padding tokens: behind as many as are no padding, or the
    rightmost that is none. scaled: reads the last hidden state as T5 scales it for its tied language-model head.
    Tensors: `head.{l}.weight` and `head.{l}.bias`, l = 0 .. layers-1; inner layers are [H, H] with a bias, the last is
    [labels, H] with one if `bias`. `head.pooler.weight` [H, H], `head.pooler.bias` and, a norm behind its activation,
    `head.pooler.norm.weight` [H]. `head.arcs` [1, H+1, H], `head.relations` [R, H+1, H+1].

    masked_lm, causal_lm, seq2seq_lm: `layers` 0 is the backbone's own language-model head, without tensors; 1 a decoder alone;
    2 `head.dense` [E, H], activation, `head.norm` if `norm`, then the decoder. A head of its own with `invert` has the inverse of the
    row's invertible adapter before its decoder: `head.decoder.weight` [V, E], and `.bias` [V] if `bias`.
    """

    type: HeadType
    layers: int = Field(default=1, ge=0, le=8)
    activation: str | None = None
    use_pooler: bool = False
    own_pooler: bool = False
    pooler_activation: str = "tanh"
    pooler_bias: bool = True
    pooler_norm: bool = False
    bias: bool = True
    labels: tuple[str, ...] = Field(default=(), fail_fast=True)
    pooling: Literal["mean", "cls"] | None = None
    normalize: bool = False
    vocab_size: int | None = Field(default=None, ge=1, le=MAX_VOCABULARY)
    embedding_size: int | None = Field(default=None, ge=1, le=65536)
    norm: bool = False
    invert: bool = False
    last_token: Literal["counted", "rightmost"] = "counted"
    scaled: bool = False

    @field_validator("activation", "pooler_activation")
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
        if any("\ud800" <= character <= "\udfff" for label in value if not label.isascii() for character in label):
            raise ValueError("a label holds half of a surrogate pair, which is no Unicode")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Head":
        if self.type == "embedding":
            if self.pooling is None or self.labels or self.layers or self.use_pooler:
                raise ValueError("an embedding head has a pooling and neither layers, labels nor a pooler (set layers to 0)")
        elif self.type in LM_HEADS:
            self._check_lm()
        elif self.layers < 1:
            raise ValueError(f"a {self.type} head needs at least one layer")
        elif not self.labels and self.type not in ("multiple_choice", "question_answering"):
            raise ValueError(f"a {self.type} head needs its labels")
        if self.type not in LM_HEADS and (self.vocab_size or self.embedding_size or self.norm or self.invert):
            raise ValueError("vocab_size, embedding_size, norm and invert belong to language-model heads only")
        if self.type == "regression" and len(self.labels) != 1:
            raise ValueError("a regression head has exactly one label, the name of its value")
        if self.type == "question_answering" and self.labels not in ((), SPAN_LABELS):
            raise ValueError("a question_answering head has the labels start and end")
        if self.type not in SENTENCE_HEADS | TOKEN_HEADS and (self.use_pooler or self.own_pooler):
            raise ValueError(f"a {self.type} head cannot use the pooler")
        if self.type not in SENTENCE_HEADS:
            if self.type != "embedding" and (self.pooling is not None or self.normalize):
                raise ValueError("pooling belongs to embedding and sentence heads, normalize to embedding heads only")
        elif self.normalize:
            raise ValueError("normalize belongs to embedding heads only")
        if self.own_pooler and not self.use_pooler:
            raise ValueError("a head with a pooler of its own uses the pooler (set use_pooler)")
        return self

    def _check_lm(self) -> None:
        if self.layers > 2 or self.labels:
            raise ValueError(f"a {self.type} head has at most two layers and no labels")
        if (self.layers == 0) != (self.vocab_size is None):
            raise ValueError("a language-model head of its own needs its vocab_size (and the backbone's, with 0 layers, has none)")
        if self.layers < 2 and (self.norm or self.embedding_size):
            raise ValueError("norm and embedding_size belong to language-model heads of two layers")
        if self.layers < 1 and self.invert:
            raise ValueError("the backbone's own language-model head is never behind an inverse (invert)")

    @property
    def task(self) -> str:
        """The task's name on the wire."""
        return TASKS[self.type]

    @property
    def outputs(self) -> int:
        """Number of outputs of the last linear of a head that has linears."""
        return {"question_answering": 2, "multiple_choice": 1}.get(self.type, len(self.labels))

    def tensors(self, backbone: Backbone) -> dict[str, Shape]:
        """Names and shapes of the head's tensors."""
        hidden = backbone.hidden_size
        if self.type in LM_HEADS:
            return self._lm_tensors(hidden)
        if self.type == "dependency_parsing":
            return {"head.arcs": (1, hidden + 1, hidden), "head.relations": (len(self.labels), hidden + 1, hidden + 1)}
        shapes: dict[str, Shape] = {}
        if self.own_pooler:
            shapes["head.pooler.weight"] = (hidden, hidden)
            shapes |= {"head.pooler.bias": (hidden,)} if self.pooler_bias else {}
            shapes |= {"head.pooler.norm.weight": (hidden,)} if self.pooler_norm else {}
        for layer in range(self.layers):
            last = layer == self.layers - 1
            rows = self.outputs if last else hidden
            shapes[f"head.{layer}.weight"] = (rows, hidden)
            if self.bias or not last:
                shapes[f"head.{layer}.bias"] = (rows,)
        return shapes

    def _lm_tensors(self, hidden: int) -> dict[str, Shape]:
        if self.vocab_size is None:
            return {}
        size = self.embedding_size or hidden
        shapes: dict[str, Shape] = {"head.decoder.weight": (self.vocab_size, size)}
        if self.bias:
            shapes["head.decoder.bias"] = (self.vocab_size,)
        if self.layers == 2:
            shapes["head.dense.weight"], shapes["head.dense.bias"] = (size, hidden), (size,)
            if self.norm:
                shapes["head.norm.weight"], shapes["head.norm.bias"] = (size,), (size,)
        return shapes


class Manifest(Frozen):
    """What one package holds and what it was made for.

    `composition` is a model string in which `self` is the package's own adapter and every other member is pinned by digest;
    None means the package's own adapter alone.
    """

    format: Literal["turret/1"] = "turret/1"
    name: str = Field(default="", max_length=129)
    methods: dict[str, Method] = Field(default_factory=dict, max_length=8)
    composition: str | None = Field(default=None, max_length=MAX_LENGTH)
    head: Head | None = None
    backbone: Backbone
    license: str = Field(default="", max_length=256)
    card: str = Field(default="", max_length=MAX_CARD)
    source: dict[Annotated[str, Field(max_length=MAX_SOURCE)], Annotated[str, Field(max_length=MAX_SOURCE)]] = Field(
        default_factory=dict, max_length=32
    )
    examples: tuple[Example, ...] = Field(default=(), max_length=MAX_EXAMPLES, fail_fast=True)

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
    def _consistent(self) -> "Manifest":
        if not self.methods and self.head is None and self.composition is None:
            raise ValueError("the package has neither an adapter nor a head nor a composition")
        blocks = [] if self.composition is None else list(walk(parse(self.composition).root))
        fused = any(isinstance(block, Fuse) and block.fusion.name == "self" for block in blocks)
        has_fusion = any(method.method == "fusion" for method in self.methods.values())
        if fused != has_fusion:
            raise ValueError(
                "the composition fuses with the package's own weights (fuse[self]), but it has none of the method fusion"
                if fused
                else "the package has fusion weights, but its composition does not say what they fuse (fuse[self](...))"
            )
        alone = all(method.method == "fusion" for method in self.methods.values())
        if alone and any(isinstance(block, Adapter) and block.reference.name == "self" for block in blocks):
            raise ValueError("the composition names the package's own adapter (self), but it has none")
        if self.head is not None and any(isinstance(block, Parallel) for block in blocks):
            raise ValueError("a parallel composition answers with the heads of its members and cannot have one of its own")
        counts = [method.method for method in self.methods.values()]
        if len(set(counts)) != len(counts):
            raise ValueError("the package holds two parts of one method: publish them apart and stack them")
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

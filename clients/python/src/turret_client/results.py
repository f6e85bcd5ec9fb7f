"""What the server answers, as typed values: inference and health. `catalogue.py` has what it tells of what is published.

Fields that a newer server adds are kept (`model_extra`), not refused.
"""

from collections.abc import Iterator
from typing import Any, overload

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr

from turret_client.errors import RowFailed


class Answer(BaseModel):
    """Base of all results: immutable, tolerant of new fields."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Label(Answer):
    """One label of a text classification, or the value of a regression (`score` is then raw, not a probability)."""

    label: str
    score: float


class Entity(Answer):
    """One span or token of a token classification; `start` and `end` count characters of the input.

    Aggregated spans carry `entity_group`; single tokens (aggregation_strategy "none") carry `entity` and `index`.
    """

    score: float
    word: str
    start: int | None = None
    end: int | None = None
    entity_group: str | None = None
    entity: str | None = None
    index: int | None = None

    @property
    def name(self) -> str:
        """The entity's type, by whichever key the answer carries it."""
        return self.entity_group or self.entity or ""


class Array(Answer):
    """A raw array: `output="logits"` or `"hidden"` ([tokens, hidden]). `data` is nested lists of `shape`."""

    shape: list[int]
    data: Any


Output = list[Label] | list[Entity] | list[float] | Array | JsonValue


def typed_output(value: Any) -> Output:
    """The typed form of a row's output, told by its shape; what no row of this function knows stays plain JSON."""
    if isinstance(value, dict) and {"shape", "data"} <= value.keys():
        return Array.model_validate(value)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        keys = value[0].keys()
        if {"label", "score"} <= keys:
            return [Label.model_validate(item) for item in value]
        if {"word", "score"} <= keys and keys & {"entity", "entity_group"}:
            return [Entity.model_validate(item) for item in value]
    plain: JsonValue = value
    return plain


class Usage(Answer):
    """What a row cost; `truncated` tells that the text was cut to the model's limit."""

    input_tokens: int = 0
    truncated: bool = False


class Timing(Answer):
    """Where the time of a request went, in milliseconds."""

    tokenization_ms: float | None = None
    queue_ms: float | None = None
    inference_ms: float | None = None
    total_ms: float | None = None


class RowError(Answer):
    """Why one row has no output."""

    message: str
    type: str | None = None
    param: str | None = None
    code: str | None = None


class Prediction(Answer):
    """One row's answer: an output, or that row's `error`. `model` names the version that answered (spam@4).

    digest   the package that was named; None for a composition written in the request and for the bare backbone
    digests  of a composition: all packages that took part
    """

    model: str = ""
    digest: str | None = None
    digests: tuple[str, ...] = ()
    task: str | None = None
    raw: Any = Field(default=None, alias="output")
    usage: Usage | None = None
    error: RowError | None = None
    _output: Output = PrivateAttr(default=None)

    def model_post_init(self, context: object) -> None:
        """Types the output while the answer is parsed, so that a malformed one fails there and not where it is read."""
        self._output = typed_output(self.raw)

    @property
    def output(self) -> Output:
        """The row's output: list[Label], list[Entity], list[float] or Array, by task. Raises RowFailed if the row is an error."""
        if self.error is not None:
            raise RowFailed(self.error.message, code=self.error.code, type=self.error.type, param=self.error.param)
        return self._output


class Predictions(Answer):
    """The rows of one predict answer, in the order they were asked; it is indexed, counted and iterated like a tuple of them."""

    results: tuple[Prediction, ...]
    timing: Timing = Timing()

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...

    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Prediction]:  # type: ignore[override]  # a plain model iterates its fields
        return iter(self.results)

    @property
    def errors(self) -> tuple[RowError, ...]:
        """The errors among the rows."""
        return tuple(row.error for row in self.results if row.error is not None)


class Embeddings(Answer):
    """Vectors in the order of the inputs."""

    model: str = ""
    vectors: tuple[list[float], ...]
    prompt_tokens: int = 0


class ModelInfo(Answer):
    """One entry of the OpenAI model list; an adapter's `parent` is its backbone."""

    id: str
    created: int | None = None
    owned_by: str | None = None
    root: str | None = None
    parent: str | None = None


class Health(Answer):
    """`alive`: the process answers. `ready`: it can serve now; if not, `detail` says why."""

    alive: bool
    ready: bool
    detail: str = ""

"""How an input is read and its answer shaped. Names and meanings are those of Hugging Face's inference API."""

from pydantic import ConfigDict, Field

from server.core import Pooling
from server.tasks import decode
from server.tasks.bounded import Body, FastTuple


class Parameters(Body):
    """The parameters of a call; each concerns some tasks and is ignored by the others."""

    model_config = ConfigDict(frozen=True)

    top_k: int | None = Field(default=5, ge=1, description="answers, best first; null for all labels; question answering: 1 by default")
    function_to_apply: decode.Function | None = Field(default=None, description="overrides the task's own")
    aggregation_strategy: decode.Aggregation = Field(default="simple", description="how tokens become entities")
    ignore_labels: FastTuple[str] = Field(default=("O",), description="labels that are no entities")
    truncate: bool = Field(default=False, description="cut an input that is too long instead of refusing it")
    pooling: Pooling = Field(default="mean", description="of an embedding without an embedding head")
    normalize: bool = Field(default=True, description="scale such an embedding to length 1")
    explain: bool = Field(default=False, description="add what each fusion attended to, per layer, site and token")
    targets: FastTuple[str] | None = Field(default=None, description="fill-mask: only these words", max_length=1024)
    doc_stride: int | None = Field(default=None, ge=0, description="question answering: tokens that windows of a context share")
    max_seq_len: int = Field(default=384, ge=8, le=8192, description="question answering: tokens of a window")
    max_question_len: int = Field(default=64, ge=1, le=8192, description="question answering: tokens of the question")
    max_answer_len: int = Field(default=15, ge=1, le=512, description="question answering: tokens of an answer")
    handle_impossible_answer: bool = Field(default=False, description="question answering: allow an empty answer")
    align_to_words: bool = Field(default=True, description="question answering: widen an answer to whole words")

    @property
    def answers(self) -> int:
        """How many answers question answering gives."""
        return (self.top_k or 1) if "top_k" in self.model_fields_set else 1


DEFAULTS = Parameters()

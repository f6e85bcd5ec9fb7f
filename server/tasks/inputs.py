"""What an input may be on the wire, for every convention that takes more than plain texts.

Read by hand, so that a fault is one sentence about the place where it is, and not one for each thing that it might have been.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from server.errors import ApiError
from server.tasks.bounded import Body, FastList
from server.tasks.rows import Source


class _Strict(Body):
    model_config = ConfigDict(strict=True)


class TextInput(_Strict):
    """A text, maybe with a second one (as for inference tasks), or token ids; for encoder-decoders what the decoder is given."""

    text: str | None = None
    text_pair: str | None = None
    input_ids: FastList[int] | None = None
    decoder_text: str | None = Field(default=None, description="without special tokens; the start token is put in front")
    decoder_input_ids: FastList[int] | None = Field(default=None, description="as they are")
    word_starts: FastList[int] | None = Field(
        default=None, description="dependency parsing: first token of each word, then the end of the last"
    )

    @model_validator(mode="after")
    def _one(self) -> "TextInput":
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("needs either 'text' or 'input_ids'")
        if self.text_pair is not None and self.text is None:
            raise ValueError("has a 'text_pair', which goes with a 'text' only")
        if self.decoder_text is not None and self.decoder_input_ids is not None:
            raise ValueError("needs either 'decoder_text' or 'decoder_input_ids'")
        return self

    def source(self) -> Source:
        return Source(
            text=self.text,
            pair=self.text_pair,
            token_ids=_ids(self.input_ids),
            decoder_text=self.decoder_text,
            decoder_ids=_ids(self.decoder_input_ids),
            word_starts=_ids(self.word_starts),
        )


class QuestionInput(_Strict):
    """A question and the text that holds its answer."""

    question: str
    context: str

    def source(self) -> Source:
        return Source(question=self.question, context=self.context)


class ChoicesInput(_Strict):
    """Options to choose from, all texts or all token ids; with a text each is read behind it."""

    text: str | None = None
    choices: FastList[str] | FastList[FastList[int]] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _of_one_kind(cls, value: Any) -> Any:
        choices = value["choices"]
        texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
        if not texts and not (isinstance(choices, list) and all(is_token_ids(choice) for choice in choices)):
            raise ValueError("needs 'choices' that are a list of texts, or of lists of token ids")
        if not choices:
            raise ValueError("needs at least one choice")
        if not texts and value.get("text") is not None:
            raise ValueError("has choices as token ids, which stand alone: leave out 'text', or send the choices as texts")
        return value

    def source(self) -> Source:
        return Source(text=self.text, choices=tuple(choice if isinstance(choice, str) else tuple(choice) for choice in self.choices))


class SimilarityInput(_Strict):
    """A sentence and those that it is compared with."""

    source_sentence: str
    sentences: FastList[str] = Field(min_length=1)


# A field that tells the kind of an object -> the kind; without any of them it is a text.
KINDS: dict[str, type[QuestionInput] | type[ChoicesInput]] = {
    "question": QuestionInput,
    "context": QuestionInput,
    "choices": ChoicesInput,
}

_ONE: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": "array", "items": {"type": "integer"}, "title": "token ids"},
    *(kind.model_json_schema() for kind in (TextInput, QuestionInput, ChoicesInput)),
]
ONE_SCHEMA = {"anyOf": _ONE}
SCHEMA = {"anyOf": [*_ONE, {"type": "array", "items": ONE_SCHEMA, "title": "a batch"}]}

# What a body holds before it is read by the functions below; the schema is for the documentation.
Input = Annotated[Any, WithJsonSchema(ONE_SCHEMA)]
Inputs = Annotated[Any, WithJsonSchema(SCHEMA)]


def is_token_ids(value: Any) -> bool:
    """Whether a value is a list of integers, and of nothing else. An empty list is none."""
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def is_batch(inputs: Any) -> bool:
    """Whether `inputs` is a list of inputs; a list of integers is one, token ids."""
    return isinstance(inputs, list) and not (inputs and type(inputs[0]) is int)


def sources(inputs: Any, where: str = "inputs") -> list[Source]:
    """The inputs of a batch, or the one that `inputs` is. Raises ApiError (invalid_request) with the place of the fault."""
    if is_batch(inputs):
        return [source(one, f"{where}[{number}]") for number, one in enumerate(inputs)]
    return [source(inputs, where)]


def source(value: Any, where: str = "inputs") -> Source:
    """An input of the wire as the task layer takes it."""
    if isinstance(value, str):
        return Source(value)
    if is_token_ids(value):
        return Source(token_ids=tuple(value))
    if isinstance(value, dict):
        kind = next((kind for field, kind in KINDS.items() if field in value), TextInput)
        read: TextInput | QuestionInput | ChoicesInput = validated(kind, value, where)
        return read.source()
    if value == []:
        raise ApiError(422, "empty_input", f"'{where}' is an empty list: send at least one token id.", where)
    if isinstance(value, list):
        raise ApiError(422, "invalid_request", f"'{where}' must be one input: a list stands for token ids and holds integers only.", where)
    raise ApiError(422, "invalid_request", f"'{where}' must be a text, token ids or an object, not {_shown(value)}.", where)


def validated(kind: type[Any], value: Any, where: str) -> Any:
    """The object as its kind, or its first fault as one sentence."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        match first["type"]:
            case "extra_forbidden":
                sentence = f"'{where}' has no field '{str(first['loc'][-1])[:80]}': it may have {', '.join(kind.model_fields)}."
            case "missing":
                sentence = f"'{where}' needs '{first['loc'][-1]}'."
            case "value_error":
                sentence = f"'{where}' {str(first['msg']).removeprefix('Value error, ')}."
            case _:
                sentence = f"'{where}{place}': {first['msg']}."
        raise ApiError(422, "invalid_request", sentence, f"{where}{place}"[:200]) from error


def _shown(value: Any) -> str:
    return {type(None): "null", bool: "a truth value", int: "a number", float: "a number"}.get(type(value), type(value).__name__)


def _ids(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)

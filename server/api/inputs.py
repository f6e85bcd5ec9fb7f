"""What an input may be on the wire, for every convention that takes more than plain texts."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.tasks.rows import Source


class TextInput(BaseModel):
    """A text, maybe with a second one (as for inference tasks), or token ids; for encoder-decoders what the decoder is given."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    text_pair: str | None = None
    input_ids: list[int] | None = None
    decoder_text: str | None = Field(default=None, description="without special tokens; the start token is put in front")
    decoder_input_ids: list[int] | None = Field(default=None, description="as they are")
    word_starts: list[int] | None = Field(
        default=None, description="dependency parsing: first token of each word, then the end of the last"
    )

    @model_validator(mode="after")
    def _one(self) -> "TextInput":
        if (self.text is None) == (self.input_ids is None):
            raise ValueError("give either 'text' or 'input_ids'")
        if self.text_pair is not None and self.text is None:
            raise ValueError("'text_pair' goes with 'text'")
        if self.decoder_text is not None and self.decoder_input_ids is not None:
            raise ValueError("give either 'decoder_text' or 'decoder_input_ids'")
        return self


class QuestionInput(BaseModel):
    """A question and the text that holds its answer."""

    model_config = ConfigDict(extra="forbid")

    question: str
    context: str


class ChoicesInput(BaseModel):
    """Options to choose from, as texts or token ids; with a text each is read behind it."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    choices: list[str | list[int]] = Field(min_length=1, max_length=1024)


Input = str | TextInput | QuestionInput | ChoicesInput | list[int]


def is_batch(inputs: Any) -> bool:
    """Whether `inputs` is a list of inputs; a list of integers is one, token ids."""
    return isinstance(inputs, list) and not (inputs and isinstance(inputs[0], int))


def as_source(value: Input) -> Source:
    """An input of the wire as the task layer takes it."""
    match value:
        case str():
            return Source(value)
        case TextInput():
            return Source(
                text=value.text,
                pair=value.text_pair,
                token_ids=_ids(value.input_ids),
                decoder_text=value.decoder_text,
                decoder_ids=_ids(value.decoder_input_ids),
                word_starts=_ids(value.word_starts),
            )
        case QuestionInput():
            return Source(question=value.question, context=value.context)
        case ChoicesInput():
            choices = tuple(choice if isinstance(choice, str) else tuple(choice) for choice in value.choices)
            return Source(text=value.text, choices=choices)
        case _:
            return Source(token_ids=tuple(value))


def _ids(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)

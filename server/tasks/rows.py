"""From one input to the rows that the engine runs: what each task asks of its input, as a table.

Most inputs are one row. A question is a row for each window of its context, choices are a row each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from adapter_store.manifest import LM_HEADS, SENTENCE_HEADS, TOKEN_HEADS, Head
from server.core import Ints, Output, Readout, Route
from server.errors import ApiError
from server.tasks import words
from server.tasks.encode import Encoded, Encoder, Text, WindowRules
from server.tasks.parameters import Parameters

AskedOutput = Literal["decoded", "logits", "hidden", "encoder_hidden", "embedding"]
Kind = Literal["text", "question", "choices"]

# Kind of input -> how it is written.
WRITTEN: dict[Kind, str] = {"text": "a text", "question": '{"question", "context"}', "choices": '{"text", "choices": [...]}'}

# Head type -> the kind of input that its answers are about; of all others a text.
TAKES: dict[str, Kind] = {"question_answering": "question", "multiple_choice": "choices"}

# Words that one fill-mask input may be answered with, over all of its masks; answers that a question may have.
MAX_FILLED = 4096
MAX_ANSWERS = 1000


@dataclass(frozen=True, slots=True)
class Source:
    """One input of the wire. Of `text`, `token_ids`, `question` (with its context) and `choices` (a text may stand before) one is given."""

    text: str | None = None
    pair: str | None = None
    token_ids: tuple[int, ...] | None = None
    question: str | None = None
    context: str = ""
    choices: tuple["str | tuple[int, ...]", ...] | None = None
    decoder_text: str | None = None
    decoder_ids: tuple[int, ...] | None = None
    word_starts: tuple[int, ...] | None = None

    @property
    def kind(self) -> Kind:
        return "question" if self.question is not None else "choices" if self.choices is not None else "text"

    @property
    def has_decoder(self) -> bool:
        """Whether it says what the decoder is given."""
        return self.decoder_text is not None or self.decoder_ids is not None

    @property
    def characters(self) -> int:
        """Characters that are tokenized; a text before choices counts with each of them."""
        if self.kind == "text" and self.decoder_text is None:
            return len(self.text or "") + len(self.pair or "")
        texts = len(self.text or "") * (1 if self.choices is None else len(self.choices))
        choices = sum(len(choice) for choice in self.choices or () if isinstance(choice, str))
        return texts + choices + sum(len(one or "") for one in (self.pair, self.question, self.context, self.decoder_text))

    def texts(self, truncate: bool, reserved: int) -> list[Text]:
        """What is tokenized as a whole: one text, or one for each choice. A question is cut in windows instead."""
        if self.question is not None:
            return []
        if self.choices is None:
            return [Text(self.text or "", self.pair, self.token_ids, truncate, reserved)]
        return [self._choice(choice, truncate, reserved) for choice in self.choices]

    def _choice(self, choice: "str | tuple[int, ...]", truncate: bool, reserved: int) -> Text:
        """A choice behind the text, if there is one; token ids are taken as they are."""
        if isinstance(choice, tuple):
            return Text(token_ids=choice, truncate=truncate, reserved=reserved)
        if self.text is None:
            return Text(choice, truncate=truncate, reserved=reserved)
        return Text(self.text, choice, truncate=truncate, reserved=reserved)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An input's rows: the tokens of each and of its decoder (None without), and where the words begin.

    values: how many numbers are read from the rows.
    """

    encoded: tuple[Encoded, ...]
    readout: Readout
    decoder_ids: tuple[Ints | None, ...]
    word_starts: tuple[int, ...] = ()
    values: int = 0


def prepare(
    encoder: Encoder,
    route: Route,
    source: Source,
    output: AskedOutput,
    parameters: Parameters,
    encoded: Sequence[Encoded],
    max_rows: int,
) -> Prepared:
    """The rows of an input whose texts are tokenized; raises ApiError where the input does not fit the task."""
    readout = readout_of(route, output, parameters, source.has_decoder)
    head = route.head if readout.output == "logits" else None
    _check_kind(route, head, source, output)
    if source.has_decoder and not encoder.ids.encoder_decoder:
        raise ApiError(400, "no_decoder", "The backbone has no decoder: leave out decoder_text and decoder_input_ids.", "inputs")
    if source.question is not None:
        if parameters.answers > MAX_ANSWERS:
            raise ApiError(422, "too_many_answers", f"A question has at most {MAX_ANSWERS} answers: lower top_k.", "parameters.top_k")
        limit = min(parameters.max_seq_len, encoder.max_tokens - route.reserved)
        rules = WindowRules(limit, parameters.doc_stride, parameters.max_question_len, max_rows)
        encoded = raised(encoder.windows(source.question, source.context, rules))
    decoder_ids = _decoder_ids(encoder, head, readout, source, encoded)
    starts = _word_starts(source, encoded[0]) if head is not None and head.type == "dependency_parsing" else ()
    if head is not None and head.type == "masked_lm" and output == "decoded":
        readout = replace(readout, positions=_masks(encoder, encoded[0], parameters))
    return Prepared(tuple(encoded), readout, decoder_ids, starts, _values(encoder, head, readout, encoded, decoder_ids, starts))


def raised(value: Any) -> Any:
    """The value, unless it is an ApiError."""
    if isinstance(value, ApiError):
        raise value
    return value


def readout_of(route: Route, output: AskedOutput, parameters: Parameters, has_decoder: bool) -> Readout:
    """What the engine reads out for an ask; raises ApiError where the route has no such output."""
    head, explain = route.head, parameters.explain
    if explain and not route.fusion_members:
        raise ApiError(
            400, "no_fusion", f"'{route.model}' has no fusion whose attention could be explained: leave out 'explain'.", "parameters"
        )
    if output in ("hidden", "encoder_hidden"):
        chosen: Output = "hidden" if output == "hidden" and has_decoder else "encoder_hidden"
        return Readout(chosen, explain=explain)
    if output == "embedding" or (output == "decoded" and head is not None and head.type == "embedding"):
        if head is not None and head.type == "embedding" and head.pooling is not None:
            return Readout("embedding", head.pooling, head.normalize, explain=explain)
        return Readout("embedding", parameters.pooling, parameters.normalize, explain=explain)
    if head is None:
        raise ApiError(
            400,
            "no_head",
            f"'{route.model}' has no head: ask for output 'hidden' or 'embedding', or append '#' and the name of a package with a head.",
            "model",
        )
    if head.type == "embedding":
        raise ApiError(
            400, "no_logits", f"'{route.model}' makes embeddings and has no logits: ask for output 'decoded' or 'hidden'.", "output"
        )
    if output == "decoded" and head.type in ("causal_lm", "seq2seq_lm"):
        raise ApiError(400, "no_generation", "Generation is not served by this version: ask for output 'logits'.", "output")
    return Readout("logits", explain=explain)


def _check_kind(route: Route, head: Head | None, source: Source, output: AskedOutput) -> None:
    """Raises ApiError for an input of another task than the route's."""
    kind = source.kind
    if head is None:
        if kind != "text":
            sentence = f"Output '{output if output != 'decoded' else 'embedding'}' is of one text: send a text, not {WRITTEN[kind]}."
            raise ApiError(400, "wrong_task", sentence, "inputs")
        return
    taken = TAKES.get(head.type, "text")
    if kind == taken or (kind == "text" and output == "logits"):
        return
    sentence = f"The task of '{route.model}' is {route.task}: send {WRITTEN[taken]}"
    if kind == "text":
        raise ApiError(400, f"no_{taken}", f"{sentence}, or ask for output 'logits'.", "inputs")
    raise ApiError(400, "wrong_task", f"{sentence}, not {WRITTEN[kind]}.", "inputs")


def _decoder_ids(
    encoder: Encoder, head: Head | None, readout: Readout, source: Source, encoded: Sequence[Encoded]
) -> tuple[Ints | None, ...]:
    """What the decoder of an encoder-decoder is given in each row: what the input says, else what the head reads."""
    if not encoder.ids.encoder_decoder or readout.output not in ("logits", "hidden"):
        return (None,) * len(encoded)
    if source.has_decoder or (head is not None and head.type == "seq2seq_lm"):
        given = raised(encoder.decoder_ids(source.decoder_text, source.decoder_ids))
        decoders: tuple[Ints, ...] = (given,) * len(encoded)
    else:
        decoders = tuple(encoder.shifted(one.input_ids) for one in encoded)
    if head is not None and head.type in SENTENCE_HEADS and head.pooling != "mean":
        for one, decoder in zip(encoded, decoders, strict=True):
            _check_end(encoder, one.input_ids, decoder)
    return decoders


def _check_end(encoder: Encoder, ids: Ints, decoder: Ints) -> None:
    """A sentence head of an encoder-decoder reads the decoder at the place of the input's last end token."""
    end = encoder.ids.eos_token_id
    places = np.flatnonzero(ids == end).tolist() if end is not None else []
    if not places:
        raise ApiError(
            422,
            "no_end_token",
            "The input must hold the model's end token, which this head reads at: send a text, or ids with it.",
            "inputs",
        )
    if places[-1] >= len(decoder):
        raise ApiError(
            422,
            "decoder_too_short",
            f"The decoder is given {len(decoder)} tokens, and this head reads it at token {places[-1] + 1}, where the input ends: "
            "give it more, or nothing.",
            "inputs",
        )


def _word_starts(source: Source, encoded: Encoded) -> tuple[int, ...]:
    starts = source.word_starts
    if starts is None:
        if encoded.encoding is None:
            raise ApiError(400, "no_words", "Token ids do not tell where words begin: send word_starts beside them.", "inputs")
        starts = words.word_starts(encoded.encoding)
    sound = all(a < b for a, b in pairwise(starts)) and (not starts or (starts[0] >= 0 and starts[-1] <= len(encoded.input_ids)))
    if len(starts) < 2 or not sound:
        raise ApiError(
            422, "invalid_words", "word_starts must rise from the first word's first token to the token behind the last word.", "inputs"
        )
    return starts


def _masks(encoder: Encoder, encoded: Encoded, parameters: Parameters) -> tuple[int, ...]:
    """Where the masks of a fill-mask input are; only these tokens are read."""
    places: tuple[int, ...] = raised(words.masks(encoded.input_ids, encoder.mask_token, encoder.mask_token_id))
    each = encoder.vocabulary if parameters.targets is None else len(parameters.targets)
    each = each if parameters.top_k is None else min(each, parameters.top_k)
    if len(places) * each > MAX_FILLED:
        raise ApiError(
            422,
            "too_many_answers",
            f"{len(places)} masks with {each} words each are more than {MAX_FILLED} answers: lower top_k.",
            "parameters.top_k",
        )
    return places


def _values(
    encoder: Encoder,
    head: Head | None,
    readout: Readout,
    encoded: Sequence[Encoded],
    decoder_ids: Sequence[Ints | None],
    word_starts: tuple[int, ...],
) -> int:
    """Numbers that are read from the rows."""
    tokens = sum(len(one.input_ids if decoder is None else decoder) for one, decoder in zip(encoded, decoder_ids, strict=True))
    if readout.output != "logits" or head is None:
        return tokens * encoder.ids.hidden_size if "hidden" in readout.output else len(encoded) * encoder.ids.hidden_size
    if head.type in LM_HEADS:
        return (tokens if readout.positions is None else len(readout.positions)) * (head.vocab_size or encoder.vocabulary)
    if head.type == "dependency_parsing":
        words = max(0, len(word_starts) - 1)
        return words * (words + 1) * (1 + head.outputs)
    return (tokens if head.type in TOKEN_HEADS else len(encoded)) * head.outputs

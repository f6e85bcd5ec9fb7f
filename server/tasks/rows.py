"""From one input to the rows that the engine runs, and back to one answer: what each task asks of its input, as a table.

Most inputs are one row. A question is a row for each window of its context, a choice is a row for each option.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from adapter_store.manifest import SENTENCE_HEADS, Head
from server.core import Array, Ints, Output, Outputs, Readout, Route
from server.errors import ApiError
from server.tasks import decode, spans, words
from server.tasks.encode import Encoded, Encoder, Text, WindowRules
from server.tasks.parameters import Parameters


@dataclass(frozen=True, slots=True)
class Source:
    """One input of the wire. Of `text`, `token_ids`, `question` (with its context) and `choices` one is given."""

    text: str | None = None
    pair: str | None = None
    token_ids: tuple[int, ...] | None = None
    question: str | None = None
    context: str = ""
    choices: tuple["str | tuple[int, ...]", ...] | None = None
    decoder_text: str | None = None
    decoder_ids: tuple[int, ...] | None = None
    word_starts: tuple[int, ...] | None = None

    def texts(self, truncate: bool, reserved: int) -> list[Text]:
        """What is tokenized as a whole: one text, or one for each choice. A question is cut in windows instead."""
        if self.question is not None:
            return []
        if self.choices is None:
            return [Text(self.text or "", self.pair, self.token_ids, truncate, reserved)]
        texts = []
        for choice in self.choices:
            if isinstance(choice, tuple):
                texts.append(Text(token_ids=choice, truncate=truncate, reserved=reserved))
            else:
                texts.append(
                    Text(choice if self.text is None else self.text, None if self.text is None else choice, None, truncate, reserved)
                )
        return texts


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An input's rows: their tokens, and the decoder's, the words' and the masks' places where the task has such."""

    encoded: tuple[Encoded, ...]
    readout: Readout
    decoder_ids: Ints | None = None
    word_starts: tuple[int, ...] = ()


def prepare(
    encoder: Encoder, route: Route, source: Source, encoded: Sequence[Encoded], readout: Readout, parameters: Parameters
) -> Prepared:
    """The rows of an input whose texts are tokenized; raises ApiError where the input does not fit the task."""
    head = route.head if readout.output == "logits" else None
    check_source(route, head, source)
    if source.question is not None:
        limit = min(parameters.max_seq_len, encoder.max_tokens - route.reserved)
        rules = WindowRules(limit, parameters.doc_stride, parameters.max_question_len)
        encoded = _raised(encoder.windows(source.question, source.context, rules))
    decoder = None
    if source.decoder_text is not None or source.decoder_ids is not None:
        decoder = _raised(encoder.decoder_ids(source.decoder_text, source.decoder_ids))
    elif encoder.ids.encoder_decoder and head is not None and head.type != "embedding":
        if head.type in SENTENCE_HEADS:
            _check_end(encoder, encoded[0].input_ids)
        decoder = encoder.shifted(encoded[0].input_ids) if head.type != "seq2seq_lm" else _raised(encoder.decoder_ids("", None))
    starts: tuple[int, ...] = ()
    if head is not None and head.type == "dependency_parsing":
        starts = _word_starts(source, encoded[0])
    return Prepared(tuple(encoded), readout, decoder, starts)


def check_source(route: Route, head: Head | None, source: Source) -> None:
    """Raises ApiError for an input of another task than the route's."""
    wanted = {"question_answering": "a question and its context", "multiple_choice": "choices"}
    for given, kind, words_ in (
        (source.question is not None, "question_answering", "a question"),
        (source.choices is not None, "multiple_choice", "choices"),
    ):
        if given and (head is None or head.type != kind):
            does = f"its task is {route.task}" if route.task and head is not None else "it is not asked for logits or answers"
            raise ApiError(
                400,
                "wrong_task",
                f"'{route.model}' does not take {words_}: {does}; send {wanted.get(head.type if head else '', 'a text')}.",
                "inputs",
            )


def _check_end(encoder: Encoder, ids: Ints) -> None:
    if encoder.ids.eos_token_id not in ids:
        raise ApiError(
            422,
            "no_end_token",
            "The input must hold the model's end token, which this head reads at: send a text, or ids with it.",
            "inputs",
        )


def _word_starts(source: Source, encoded: Encoded) -> tuple[int, ...]:
    starts = source.word_starts
    if starts is None:
        if encoded.encoding is None:
            raise ApiError(400, "no_words", "Token ids do not tell where words begin: send word_starts beside them.", "inputs")
        starts = words.word_starts(encoded)
    sound = all(a < b for a, b in pairwise(starts)) and (not starts or (starts[0] >= 0 and starts[-1] <= len(encoded.input_ids)))
    if len(starts) < 2 or not sound:
        raise ApiError(
            422, "invalid_words", "word_starts must rise from the first word's first token to the token behind the last word.", "inputs"
        )
    return starts


def _raised(value: Any) -> Any:
    if isinstance(value, ApiError):
        raise value
    return value


def readout_of(route: Route, output: str, parameters: Parameters, has_decoder: bool) -> Readout:
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


def at_masks(encoder: Encoder, prepared: Prepared) -> Prepared:
    """A fill-mask input, of which only the mask tokens are read; raises ApiError."""
    places = _raised(words.masks(prepared.encoded[0].input_ids, encoder.mask_token, encoder.mask_token_id))
    return replace(prepared, readout=replace(prepared.readout, positions=places))


# Answers

Named = Outputs | Array


def raw(route: Route, source: Source, outputs: Sequence[Outputs], output: str, windows: Sequence[Encoded]) -> Any:
    """The arrays of an ask that wants numbers: one, or named ones; of several windows a list of them."""
    if output in ("hidden", "encoder_hidden"):
        return outputs[0]["hidden"]
    if output == "embedding" or "embedding" in outputs[0]:
        return outputs[0]["embedding"]
    if source.choices is not None:
        return np.concatenate([one["logits"] for one in outputs])
    shown = [_named(one) for one in outputs]
    if source.question is None or len(shown) == 1:
        return shown[0]
    return [one | {"offsets": window.encoding.offsets if window.encoding else None} for one, window in zip(shown, windows, strict=True)]


def _named(outputs: Outputs) -> Any:
    arrays = {name: array for name, array in outputs.items() if not name.startswith("attention.")}
    return arrays["logits"] if list(arrays) == ["logits"] else arrays


Decoder = Callable[[Encoder, Head, Source, Prepared, Sequence[Outputs], Parameters], Any]


def _classified(
    encoder: Encoder, head: Head, source: Source, prepared: Prepared, outputs: Sequence[Outputs], parameters: Parameters
) -> Any:
    return decode.classify(head, outputs[0]["logits"], parameters.function_to_apply, parameters.top_k)


def _tagged(encoder: Encoder, head: Head, source: Source, prepared: Prepared, outputs: Sequence[Outputs], parameters: Parameters) -> Any:
    encoded = prepared.encoded[0]
    if encoded.encoding is None:
        raise ApiError(400, "no_text", "Entities point into a text and token ids have none: ask for output 'logits'.", "inputs")
    strategy, ignored = parameters.aggregation_strategy, parameters.ignore_labels
    return decode.tag(head, outputs[0]["logits"], source.text or "", encoded, strategy, ignored)


def _answered(encoder: Encoder, head: Head, source: Source, prepared: Prepared, outputs: Sequence[Outputs], parameters: Parameters) -> Any:
    if source.question is None:
        raise ApiError(400, "no_question", 'Send inputs {"question", "context"}, or ask for output \'logits\'.', "inputs")
    rules = spans.SpanRules(parameters.answers, parameters.max_answer_len, parameters.handle_impossible_answer, parameters.align_to_words)
    found = spans.answers(prepared.encoded, outputs, source.context, rules)
    if not found:
        raise ApiError(422, "empty_context", "The context has no tokens an answer could be taken from: send some text.", "inputs")
    return found[0] if parameters.answers == 1 else found


def _chosen(encoder: Encoder, head: Head, source: Source, prepared: Prepared, outputs: Sequence[Outputs], parameters: Parameters) -> Any:
    if source.choices is None:
        raise ApiError(400, "no_choices", 'Send inputs {"text", "choices": [...]}, or ask for output \'logits\'.', "inputs")
    names = [choice if isinstance(choice, str) else f"choice {number}" for number, choice in enumerate(source.choices)]
    return words.choose(head, np.concatenate([one["logits"] for one in outputs]), names)


def _parsed(encoder: Encoder, head: Head, source: Source, prepared: Prepared, outputs: Sequence[Outputs], parameters: Parameters) -> Any:
    return words.parse(head, outputs[0], prepared.word_starts, prepared.encoded[0], source.text or "")


def _filled(encoder: Encoder, head: Head, source: Source, prepared: Prepared, outputs: Sequence[Outputs], parameters: Parameters) -> Any:
    places = prepared.readout.positions or ()
    encoded = prepared.encoded[0]
    return _raised(words.fill(encoder, encoded, places, outputs[0]["logits"], parameters.top_k, parameters.targets))


# Head type -> how its numbers become an answer.
DECODERS: dict[str, Decoder] = {
    "classification": _classified,
    "multilabel_classification": _classified,
    "regression": _classified,
    "tagging": _tagged,
    "question_answering": _answered,
    "multiple_choice": _chosen,
    "dependency_parsing": _parsed,
    "masked_lm": _filled,
}

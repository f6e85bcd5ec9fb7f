"""From the arrays of an input's rows to one answer: how each task decodes, as a table, and the arrays as they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_store.manifest import Head
from server.core import Outputs, Route
from server.errors import ApiError
from server.tasks import decode, spans, words
from server.tasks.encode import Encoder
from server.tasks.parameters import Parameters
from server.tasks.rows import AskedOutput, Prepared, Source, raised


@dataclass(frozen=True, slots=True)
class Reading:
    """All that an answer is made of: an input with its rows, and what the engine read from each."""

    encoder: Encoder
    route: Route
    source: Source
    output: AskedOutput
    parameters: Parameters
    prepared: Prepared
    outputs: Sequence[Outputs]

    @property
    def head(self) -> Head:
        """The head of a route that has one."""
        assert self.route.head is not None
        return self.route.head

    @property
    def decoded(self) -> bool:
        """Whether labels, entities, words are asked for and not numbers."""
        return self.output == "decoded" and self.prepared.readout.output == "logits"

    @property
    def slow(self) -> bool:
        """Whether making the answer takes long enough to be done beside the event loop."""
        return self.decoded and self.head.type in SLOW


def answer_of(reading: Reading) -> Any:
    """The answer of an input: plain values, or one array, named arrays or a list of them (`raw`). Raises ApiError."""
    return DECODERS[reading.head.type](reading) if reading.decoded else raw(reading)


def raw(reading: Reading) -> Any:
    """The arrays of an ask that wants numbers: one, or named ones.

    Of choices one array [choices]; of a context in several windows a list, where "offsets" are each token's characters in the
    context, None for tokens outside of it.
    """
    outputs, name = reading.outputs, reading.prepared.readout.output
    if name != "logits":
        return outputs[0]["embedding" if name == "embedding" else "hidden"]
    if reading.source.choices is not None:
        return np.concatenate([one["logits"] for one in outputs])
    shown = [_named(one) for one in outputs]
    if reading.source.question is None or len(shown) == 1:
        return shown[0]
    return [one | {"offsets": spans.offsets(window)} for one, window in zip(shown, reading.prepared.encoded, strict=True)]


def _named(outputs: Outputs) -> Any:
    arrays = {name: array for name, array in outputs.items() if not name.startswith("attention.")}
    return arrays["logits"] if list(arrays) == ["logits"] else arrays


def attention(reading: Reading) -> list[dict[str, Any]]:
    """What each fusion attended to, by layer, site and members; of an input of several rows with the number of the row."""
    members, outputs = reading.route.fusion_members, reading.outputs
    if len(outputs) == 1:
        return words.attention(outputs[0], members)
    return [{"row": row, **entry} for row, one in enumerate(outputs) for entry in words.attention(one, members)]


def _classified(reading: Reading) -> Any:
    parameters = reading.parameters
    return decode.classify(reading.head, reading.outputs[0]["logits"], parameters.function_to_apply, parameters.top_k)


def _tagged(reading: Reading) -> Any:
    encoded, parameters = reading.prepared.encoded[0], reading.parameters
    if encoded.encoding is None:
        raise ApiError(400, "no_text", "Entities point into a text and token ids have none: ask for output 'logits'.", "inputs")
    strategy, ignored = parameters.aggregation_strategy, parameters.ignore_labels
    return decode.tag(reading.head, reading.outputs[0]["logits"], reading.source.text or "", encoded, strategy, ignored)


def _answered(reading: Reading) -> Any:
    asked = reading.parameters
    rules = spans.SpanRules(asked.answers, asked.max_answer_len, asked.handle_impossible_answer, asked.align_to_words)
    found = spans.answers(reading.prepared.encoded, reading.outputs, reading.source.context, rules)
    return found[0] if asked.answers == 1 else found


def _chosen(reading: Reading) -> Any:
    return words.choose(reading.head, np.concatenate([one["logits"] for one in reading.outputs]), reading.source.choices or ())


def _parsed(reading: Reading) -> Any:
    prepared = reading.prepared
    return words.parse(reading.head, reading.outputs[0], prepared.word_starts, prepared.encoded[0], reading.source.text or "")


def _filled(reading: Reading) -> Any:
    encoded, places = reading.prepared.encoded[0], reading.prepared.readout.positions or ()
    parameters = reading.parameters
    return raised(words.fill(reading.encoder, encoded, places, reading.outputs[0]["logits"], parameters.top_k, parameters.targets))


# Head type -> how its numbers become an answer.
DECODERS: dict[str, Callable[[Reading], Any]] = {
    "classification": _classified,
    "multilabel_classification": _classified,
    "regression": _classified,
    "tagging": _tagged,
    "question_answering": _answered,
    "multiple_choice": _chosen,
    "dependency_parsing": _parsed,
    "masked_lm": _filled,
}
SLOW = frozenset({"question_answering", "dependency_parsing", "masked_lm"})

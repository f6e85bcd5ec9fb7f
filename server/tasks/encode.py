"""Texts to token ids. One tokenizer pass for all texts of a request, off the event loop (`encode_batch` releases the GIL)."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from server.core import Ints
from server.errors import ApiError


@dataclass(frozen=True, slots=True)
class ModelIds:
    """The tokens that mean something to the backbone."""

    decoder_start_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    encoder_decoder: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """One input: a text, maybe with a second one (pair), or token ids that are taken as they are.

    reserved: tokens of the backbone's limit that the route's own adapters take (prefixes, prompts).
    """

    text: str = ""
    pair: str | None = None
    token_ids: tuple[int, ...] | None = None
    truncate: bool = False
    reserved: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One tokenized input. `encoding` (offsets, words) is None for token ids; `truncated` says whether anything was cut."""

    input_ids: Ints
    type_ids: Ints
    encoding: Encoding | None = None
    truncated: bool = False

    @classmethod
    def of(cls, encoding: Encoding, truncated: bool = False) -> "Encoded":
        """An encoding of the tokenizer."""
        return cls(np.array(encoding.ids, dtype=np.int64), np.array(encoding.type_ids, dtype=np.int64), encoding, truncated)


class Encoder:
    """A tokenizer with a limit on the tokens of one input, special tokens included."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, ids: ModelIds | None = None) -> None:
        self.max_tokens = max_tokens
        self.ids = ids or ModelIds()
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.get_vocab_size()
        self.mask_token, self.mask_token_id = _mask(tokenizer)
        self._cutting: dict[tuple[int, int], Tokenizer] = {}
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[Text]) -> list[Encoded | ApiError]:
        """Every text as an Encoded, or as the ApiError that says why it cannot be one."""
        places = [i for i, text in enumerate(texts) if text.token_ids is None]
        pairs = [(t.text, t.pair) if t.pair is not None else t.text for t in (texts[i] for i in places)]
        answers: dict[int, Encoded | ApiError] = {}
        for place, encoding in zip(places, self.tokenizer.encode_batch(pairs) if pairs else (), strict=True):
            answers[place] = self._checked(texts[place], encoding)
        return [answers[i] if i in answers else self._from_ids(text) for i, text in enumerate(texts)]

    def windows(self, question: str, context: str, max_tokens: int, stride: int, max_question_tokens: int) -> list[Encoded] | ApiError:
        """A question with each piece of its context that fits, neighbours overlapping by `stride` tokens."""
        asked = self.tokenizer.encode(question, add_special_tokens=False)
        if len(asked.ids) > max_question_tokens:
            question = question[: asked.offsets[max_question_tokens - 1][1]]
        taken = len(self.tokenizer.encode(question, "").ids)
        if max_tokens - taken <= stride:
            return ApiError(
                422,
                "window_too_small",
                f"A window of {max_tokens} tokens leaves {max(0, max_tokens - taken)} for the context, which must be more than "
                f"the doc_stride {stride}: raise max_seq_len, or lower doc_stride.",
                "parameters",
            )
        with self._lock:  # a tokenizer's truncation is a state of its own
            cutting = self._cutter(max_tokens, stride)
            first = cutting.encode(question, context)
        return [Encoded.of(encoding) for encoding in (first, *first.overflowing)]

    def decoder_ids(self, text: str | None, ids: tuple[int, ...] | None) -> Ints | ApiError:
        """A decoder's input: ids as they are, or a text without special tokens behind the backbone's start token."""
        start = self.ids.decoder_start_token_id
        if ids is None:
            ids = tuple(self.tokenizer.encode(text or "", add_special_tokens=False).ids)
            if start is not None and ids[:1] != (start,):
                ids = (start, *ids)
        if len(ids) > self.max_tokens:
            return self._too_long(len(ids), self.max_tokens)
        return self._unsound(ids) or np.array(ids, dtype=np.int64)

    def shifted(self, input_ids: Ints) -> Ints:
        """The decoder's input of a sentence head: the input's own tokens, shifted right behind the start token."""
        start = self.ids.decoder_start_token_id or 0
        return np.concatenate([np.array([start], dtype=np.int64), input_ids[:-1]])

    def _checked(self, text: Text, encoding: Encoding) -> Encoded | ApiError:
        limit = self.max_tokens - text.reserved
        truncated = len(encoding.ids) > limit
        if truncated:
            if not text.truncate:
                return self._too_long(len(encoding.ids), limit)
            with self._lock:
                encoding = self._cutter(limit, 0).encode(text.text, text.pair)
        if not encoding.ids:
            return ApiError(422, "empty_input", "The input has no tokens: send some text.", "inputs")
        return Encoded.of(encoding, truncated)

    def _from_ids(self, text: Text) -> Encoded | ApiError:
        ids = text.token_ids or ()
        fault = self._unsound(ids)
        if fault is not None:
            return fault
        limit = self.max_tokens - text.reserved
        truncated = len(ids) > limit
        if truncated and not text.truncate:
            return self._too_long(len(ids), limit)
        array = np.array(ids[:limit], dtype=np.int64)
        return Encoded(array, np.zeros_like(array), None, truncated)

    def _unsound(self, ids: tuple[int, ...]) -> ApiError | None:
        if not ids:
            return ApiError(422, "empty_input", "The input has no tokens: send at least one token id.", "inputs")
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            return ApiError(422, "invalid_token", f"Token ids must lie between 0 and {self.vocabulary - 1}.", "inputs")
        return None

    def _cutter(self, limit: int, stride: int) -> Tokenizer:
        cutter = self._cutting.get((limit, stride))
        if cutter is None:
            if len(self._cutting) >= 16:
                self._cutting.clear()
            cutter = self._cutting[limit, stride] = Tokenizer.from_str(self.tokenizer.to_str())
            cutter.enable_truncation(limit, stride=stride, strategy="only_second" if stride else "longest_first")
        return cutter

    def _too_long(self, tokens: int, limit: int) -> ApiError:
        return ApiError(
            422,
            "input_too_long",
            f"The input has {tokens} tokens and the limit is {limit}: shorten it, or send parameters.truncate = true.",
            "inputs",
        )


def _mask(tokenizer: Tokenizer) -> tuple[str | None, int | None]:
    """The mask token of a tokenizer, by the names that models give it."""
    for token in ("[MASK]", "<mask>"):
        number = tokenizer.token_to_id(token)
        if number is not None:
            return token, number
    return None, None

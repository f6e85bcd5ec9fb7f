"""Texts to token ids. One tokenizer pass for all texts of a request, off the event loop (`encode_batch` releases the GIL).

A tokenizer's own truncation is a state that threads would share, so texts are cut here: `_bare` tokenizes without special tokens,
the pieces are cut, and the tokenizer's post-processor puts them together.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from tokenizers import Encoding, Tokenizer

from server.core import Ints
from server.errors import ApiError

GROUP = 1 << 17  # characters
# Characters of a request that are tokenized where it stands: about 0.2 ms, where going to another thread and back costs 0.04 to 0.2
# (docs/decisions/0014). The GIL is kept meanwhile, as letting it go may cost a busy process 5 ms.
INLINE = 512


@dataclass(frozen=True, slots=True)
class ModelIds:
    """The tokens that mean something to the backbone, and how wide its hidden states are."""

    decoder_start_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    encoder_decoder: bool = False
    hidden_size: int = 0


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

    @property
    def characters(self) -> int:
        """Characters that are tokenized."""
        return len(self.text) + (0 if self.pair is None else len(self.pair))


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


@dataclass(frozen=True, slots=True)
class WindowRules:
    """How a context that is too long is cut: tokens of a window, of the question, and shared by neighbours (None: what fits well)."""

    max_tokens: int = 384
    stride: int | None = None
    max_question_tokens: int = 64
    max_windows: int = 1024


class Encoder:
    """A tokenizer with a limit on the tokens of one input, special tokens included. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, ids: ModelIds | None = None) -> None:
        self.max_tokens = max_tokens
        self.ids = ids or ModelIds()
        self.tokenizer = tokenizer
        self.vocabulary = tokenizer.get_vocab_size()
        self.mask_token, self.mask_token_id = _mask(tokenizer)
        self._bare = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"post_processor": None}))

    def encode(self, texts: Sequence[Text]) -> list[Encoded | ApiError]:
        """Every text as an Encoded, or as the ApiError that says why it cannot be one."""
        if sum(text.characters for text in texts) <= INLINE:
            return [self._one(text) for text in texts]
        answers: dict[int, Encoded | ApiError] = {}
        for places in _groups(texts):
            pairs = [(t.text, t.pair) if t.pair is not None else t.text for t in (texts[i] for i in places)]
            for place, encoding in zip(places, self.tokenizer.encode_batch(pairs), strict=True):
                answers[place] = self._checked(texts[place], encoding)
        return [answers[i] if i in answers else self._from_ids(text) for i, text in enumerate(texts)]

    def _one(self, text: Text) -> Encoded | ApiError:
        """A text by itself; the same as `encode_batch` of it."""
        return self._from_ids(text) if text.token_ids is not None else self._checked(text, self.tokenizer.encode(text.text, text.pair))

    def windows(self, question: str, context: str, rules: WindowRules) -> list[Encoded] | ApiError:
        """A question with each piece of its context that fits; the tokenizer's own `only_second` truncation with a stride."""
        asked, read = self._bare.encode(question), self._bare.encode(context)
        truncated = len(asked.ids) > rules.max_question_tokens
        if truncated:
            (asked,) = _pieces(asked, [(0, rules.max_question_tokens)])
        if not asked.ids:
            return ApiError(422, "empty_input", "The question has no tokens: send some text.", "inputs")
        if not read.ids:
            return ApiError(422, "empty_context", "The context has no tokens an answer could be taken from: send some text.", "inputs")
        count, room = len(read.ids), rules.max_tokens - len(asked.ids) - self.tokenizer.num_special_tokens_to_add(True)
        pieces = [read]
        if count > room:
            stride = rules.stride
            if stride is None:
                stride = min(rules.max_tokens // 2, 128)
                stride = stride if stride < room else max(0, room // 2)
            fault = self._unfit(count, room, stride, rules)
            if fault is not None:
                return fault
            starts = range(0, count - stride, room - stride)
            pieces = _pieces(read, [(start, min(start + room, count)) for start in starts])
        return [Encoded.of(self.tokenizer.post_process(asked, piece), truncated) for piece in pieces]

    @staticmethod
    def _unfit(tokens: int, room: int, stride: int, rules: WindowRules) -> ApiError | None:
        """What is wrong with cutting a context into windows of `room` tokens, said before any is made."""
        if room <= stride:
            return ApiError(
                422,
                "window_too_small",
                f"A window of {rules.max_tokens} tokens leaves {max(0, room)} for the context, which must be more than the doc_stride "
                f"{stride}: raise max_seq_len, shorten the question, or lower doc_stride.",
                "parameters",
            )
        windows = -(-(tokens - room) // (room - stride)) + 1
        if windows > rules.max_windows:
            return ApiError(
                422,
                "too_many_rows",
                f"The context makes {windows} windows and the limit is {rules.max_windows} rows: shorten it, or lower doc_stride.",
                "inputs",
            )
        return None

    def decoder_ids(self, text: str | None, ids: tuple[int, ...] | None) -> Ints | ApiError:
        """A decoder's input: ids as they are, or a text without special tokens behind the backbone's start token."""
        start = self.ids.decoder_start_token_id
        if ids is None:
            ids = tuple(self._bare.encode(text or "").ids)
            if start is not None and ids[:1] != (start,):
                ids = (start, *ids)
        if len(ids) > self.max_tokens:
            return self._too_long(len(ids), self.max_tokens)
        return self._unsound(ids) or np.array(ids, dtype=np.int64)

    def shifted(self, input_ids: Ints) -> Ints:
        """The decoder's input of a head that reads the input itself: the input's tokens, shifted right behind the start token."""
        start = self.ids.decoder_start_token_id or 0
        return np.concatenate([np.array([start], dtype=np.int64), input_ids[:-1]])

    def first_token(self, word: str) -> int | None:
        """The vocabulary's number of a word, or of the first piece of one that is not in it whole; None for nothing."""
        number = self.tokenizer.token_to_id(word)
        return number if number is not None else next(iter(self._bare.encode(word).ids), None)

    def _checked(self, text: Text, encoding: Encoding) -> Encoded | ApiError:
        limit = self.max_tokens - text.reserved
        truncated = len(encoding.ids) > limit
        if truncated:
            cut = self._cut(text, limit) if text.truncate else None
            if cut is None:
                return self._too_long(len(encoding.ids), limit)
            encoding = cut
        if not encoding.ids:
            return ApiError(422, "empty_input", "The input has no tokens: send some text.", "inputs")
        return Encoded.of(encoding, truncated)

    def _cut(self, text: Text, limit: int) -> Encoding | None:
        """The text in `limit` tokens, of a pair the longer one cut first; None where special tokens leave no room."""
        first = self._bare.encode(text.text)
        second = None if text.pair is None else self._bare.encode(text.pair)
        room = limit - self.tokenizer.num_special_tokens_to_add(second is not None)
        if room < 1:
            return None
        sizes = _longest_first(len(first.ids), 0 if second is None else len(second.ids), room)
        (first,) = _pieces(first, [(0, sizes[0])])
        if second is not None:
            (second,) = _pieces(second, [(0, sizes[1])])
        return self.tokenizer.post_process(first, second)

    def _from_ids(self, text: Text) -> Encoded | ApiError:
        ids = text.token_ids or ()
        fault = self._unsound(ids)
        if fault is not None:
            return fault
        limit = self.max_tokens - text.reserved
        truncated = len(ids) > limit
        if truncated and not (text.truncate and limit > 0):
            return self._too_long(len(ids), limit)
        array = np.array(ids[:limit], dtype=np.int64)
        return Encoded(array, np.zeros_like(array), None, truncated)

    def _unsound(self, ids: tuple[int, ...]) -> ApiError | None:
        if not ids:
            return ApiError(422, "empty_input", "The input has no tokens: send at least one token id.", "inputs")
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            return ApiError(422, "invalid_token", f"Token ids must lie between 0 and {self.vocabulary - 1}.", "inputs")
        return None

    def _too_long(self, tokens: int, limit: int) -> ApiError:
        if limit < 1:
            return ApiError(
                422,
                "no_room",
                f"The model's prefixes and prompts take all of the {self.max_tokens} tokens that an input may have.",
                "model",
            )
        return ApiError(
            422,
            "input_too_long",
            f"The input has {tokens} tokens and the limit is {limit}: shorten it, or send parameters.truncate = true.",
            "inputs",
        )


def _groups(texts: Sequence[Text]) -> Iterator[list[int]]:
    """The places of texts that are tokenized at once: as many as have `GROUP` characters, so that those too long are not held in crowds."""
    group: list[int] = []
    characters = 0
    for place, text in enumerate(texts):
        if text.token_ids is not None:
            continue
        group.append(place)
        characters += text.characters
        if characters >= GROUP:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _pieces(encoding: Encoding, spans: Sequence[tuple[int, int]]) -> list[Encoding]:
    """Parts of an encoding without special tokens, by [start, end) of its tokens.

    `Encoding.truncate` would keep all that it cuts off, and post-processing a pair of such combines every rest of one text with
    every rest of the other: minutes for two long texts. So the parts are made of their columns, in the form that pickle uses.
    """
    columns: dict[str, list[Any]] = {
        "ids": encoding.ids,
        "tokens": encoding.tokens,
        "words": encoding.word_ids,
        "offsets": encoding.offsets,
    }
    pieces = []
    for start, end in spans:
        state: dict[str, Any] = {name: column[start:end] for name, column in columns.items()}
        zeros = [0] * (end - start)
        state |= {"type_ids": zeros, "special_tokens_mask": zeros, "attention_mask": [1] * (end - start)}
        piece = Encoding()
        piece.__setstate__(orjson.dumps(state | {"overflowing": [], "sequence_ranges": {}}))
        pieces.append(piece)
    return pieces


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Sizes of two texts that together fit `room`: the longer is cut to the shorter's size, then both alike."""
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if first > second else (short, long)


def _mask(tokenizer: Tokenizer) -> tuple[str | None, int | None]:
    """The mask token of a tokenizer, by the names that models give it."""
    for token in ("[MASK]", "<mask>"):
        number = tokenizer.token_to_id(token)
        if number is not None:
            return token, number
    return None, None

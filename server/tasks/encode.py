"""Texts to token ids. One tokenizer pass for all texts of a request, off the event loop (`encode_batch` releases the GIL)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from server.core import Ints
from server.errors import ApiError


@dataclass(frozen=True, slots=True)
class Text:
    """One input: a text, maybe with a second one (pair), or token ids that are taken as they are."""

    text: str = ""
    pair: str | None = None
    token_ids: tuple[int, ...] | None = None
    truncate: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One tokenized input. `encoding` (offsets, words) is None for token ids; `truncated` says whether anything was cut."""

    input_ids: Ints
    type_ids: Ints
    encoding: Encoding | None = None
    truncated: bool = False


class Encoder:
    """A tokenizer with a limit on the tokens of one input, special tokens included."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.vocabulary = tokenizer.get_vocab_size()
        self._whole = tokenizer
        self._cutting = Tokenizer.from_str(tokenizer.to_str())
        self._cutting.enable_truncation(max_tokens)

    def encode(self, texts: Sequence[Text]) -> list[Encoded | ApiError]:
        """Every text as an Encoded, or as the ApiError that says why it cannot be one."""
        places = [i for i, text in enumerate(texts) if text.token_ids is None]
        pairs = [(t.text, t.pair) if t.pair is not None else t.text for t in (texts[i] for i in places)]
        answers: dict[int, Encoded | ApiError] = {}
        for place, encoding in zip(places, self._whole.encode_batch(pairs) if pairs else (), strict=True):
            answers[place] = self._checked(texts[place], encoding)
        return [answers[i] if i in answers else self._from_ids(text) for i, text in enumerate(texts)]

    def _checked(self, text: Text, encoding: Encoding) -> Encoded | ApiError:
        truncated = len(encoding.ids) > self.max_tokens
        if truncated:
            if not text.truncate:
                return self._too_long(len(encoding.ids))
            encoding = self._cutting.encode(text.text, text.pair)
        if not encoding.ids:
            return ApiError(422, "empty_input", "The input has no tokens: send some text.", "inputs")
        return Encoded(np.array(encoding.ids, dtype=np.int64), np.array(encoding.type_ids, dtype=np.int64), encoding, truncated)

    def _from_ids(self, text: Text) -> Encoded | ApiError:
        ids = text.token_ids or ()
        if not ids:
            return ApiError(422, "empty_input", "The input has no tokens: send at least one token id.", "inputs")
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            return ApiError(422, "invalid_token", f"Token ids must lie between 0 and {self.vocabulary - 1}.", "inputs")
        truncated = len(ids) > self.max_tokens
        if truncated and not text.truncate:
            return self._too_long(len(ids))
        array = np.array(ids[: self.max_tokens], dtype=np.int64)
        return Encoded(array, np.zeros_like(array), None, truncated)

    def _too_long(self, tokens: int) -> ApiError:
        return ApiError(
            422,
            "input_too_long",
            f"The input has {tokens} tokens and the limit is {self.max_tokens}: shorten it, or send parameters.truncate = true.",
            "inputs",
        )

"""Golden examples: what a package says that it answers, and where an answer differs from it.

Pure values: knows neither the server nor how an example is run. Inputs, parameters and answers are JSON as on the wire.
"""

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from adapter_store.methods import Frozen
from adapter_store.names import shown

MAX_EXAMPLES = 64
MAX_JSON_DEPTH = 16
MAX_JSON_VALUES = 65536
MAX_JSON_CHARACTERS = 1 << 18
_MAX_PLACE = 200
_INTEGERS = range(-(1 << 63), 1 << 63)

KINDS = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number", type(None): "null"}


def bounded_json(value: Any) -> Any:
    """`value` as JSON values alone (tuples become lists), which canonical JSON writes and reads back to the same bytes.

    Raises ValueError for what JSON has no room for (numbers that are not finite or wider than 64 bits, texts that are no Unicode)
    and for more than `MAX_JSON_VALUES` values, `MAX_JSON_CHARACTERS` characters or `MAX_JSON_DEPTH` levels.
    """
    return _Walk().value(value, 1)


# Any JSON value of bounded size.
Json = Annotated[Any, BeforeValidator(bounded_json)]


class _Walk:
    """One walk through a value, which counts what it has met."""

    def __init__(self) -> None:
        self.values = 0
        self.characters = 0

    def value(self, value: Any, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_JSON_VALUES:
            raise ValueError(f"it holds more than {MAX_JSON_VALUES} values")
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
        match value:
            case None | bool():
                return value
            case str():
                return self.text(value)
            case int():
                if value not in _INTEGERS:
                    raise ValueError("it holds an integer of more than 64 bits")
                return int(value)
            case float():
                if not math.isfinite(value):
                    raise ValueError("it holds a number that is not finite")
                return float(value)
            case list() | tuple():
                return [self.value(item, depth + 1) for item in value]
            case dict():
                return {self.text(key): self.value(item, depth + 1) for key, item in value.items()}
        raise ValueError(f"it holds a {type(value).__name__}, which is no JSON value")

    def text(self, text: Any) -> str:
        if not isinstance(text, str):
            raise ValueError(f"it holds an object with the key {shown(str(text))}, which is no text")
        self.characters += len(text)
        if self.characters > MAX_JSON_CHARACTERS:
            raise ValueError(f"its texts have more than {MAX_JSON_CHARACTERS} characters")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("it holds a text with half of a surrogate pair, which is no Unicode")
        return text


class Example(Frozen):
    """One input with the answer that the package gives to it; a server runs it before it publishes the package.

    `inputs`, `parameters` and `output` are those of a row of POST /v1/predict, `expected` is what its "output" must be:
    `differences` says what is compared. `tolerance` is absolute.
    """

    inputs: Json
    parameters: Annotated[dict[str, Any], BeforeValidator(bounded_json)] = Field(default_factory=dict)
    output: Literal["decoded", "logits", "hidden", "encoder_hidden", "embedding"] = "decoded"
    expected: Json
    tolerance: float = Field(default=1e-3, gt=0)


def differences(expected: Any, answer: Any, tolerance: float) -> str | None:
    """The first place where an answer is not what was expected, as a sentence's beginning; None where there is none.

    Numbers may differ by `tolerance`, texts, truth values and nulls must be equal, lists as long as each other; an object must hold
    every key that is expected and may hold others. Arrays and numbers of numpy count as lists and numbers.
    """
    return _differences(expected, answer, tolerance, "expected")


def _differences(expected: Any, answer: Any, tolerance: float, place: str) -> str | None:
    expected, answer = _plain(expected), _plain(answer)
    match expected, answer:
        case dict(), dict():
            for key, value in expected.items():
                inner = _inside(place, f".{key}" if key.isidentifier() and len(key) <= 40 else f"[{shown(key, 40)}]")
                if key not in answer:
                    return f"{inner} is {_shown(value)} and the answer has no such key"
                if (found := _differences(value, answer[key], tolerance, inner)) is not None:
                    return found
            return None
        case list(), list():
            if len(expected) != len(answer):
                return f"{place} is a list of {len(expected)} and the answer has one of {len(answer)}"
            for number, (value, other) in enumerate(zip(expected, answer, strict=True)):
                if (found := _differences(value, other, tolerance, _inside(place, f"[{number}]"))) is not None:
                    return found
            return None
        case (bool(), _) | (_, bool()):
            same = expected is answer
        case (int() | float(), int() | float()):
            if abs(expected - answer) <= tolerance:
                return None
            return f"{place} is {_shown(expected)} and the answer has {_shown(answer)}, more than {tolerance:g} away"
        case _:
            same = type(expected) is type(answer) and expected == answer
    return None if same else f"{place} is {_shown(expected)} and the answer has {_shown(answer)}"


def _plain(value: Any) -> Any:
    """Numpy's values and tuples as JSON's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _inside(place: str, step: str) -> str:
    """A place one level deeper, its middle left out where it is long."""
    place += step
    return place if len(place) <= _MAX_PLACE else f"{place[: _MAX_PLACE // 2]}…{place[-_MAX_PLACE // 3 :]}"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict | list):
        return KINDS[type(value)]
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else f"{value:.9g}"

"""Compositions: which adapters act and how, as frozen values, with the grammar of the model string.

    model  = ( "base" | block ) [ "#" reference ]                        "#": take the head of another package
    block  = reference | "stack(" block, ... ")" | "average(" block ":" weight, ... ")"
           | "fuse[" reference "](" block, ... ")" | "parallel(" block, ... ")"

Stack, Fuse, Average and Parallel are the composition blocks of the `adapters` library (AdapterHub).
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adapter_store.errors import InvalidName
from adapter_store.names import Reference, parse_reference, shown

MAX_LENGTH = 8192
MAX_DEPTH = 8
MAX_CHANNELS = 256
MAX_WEIGHT = 1e9


@dataclass(frozen=True, slots=True)
class Adapter:
    """One package's own adapter."""

    reference: Reference


@dataclass(frozen=True, slots=True)
class Stack:
    """Adapters one after the other; the output of each is the input of the next."""

    children: tuple["Block", ...]


@dataclass(frozen=True, slots=True)
class Average:
    """The weighted mean of the children's outputs; weights sum to 1."""

    children: tuple["Block", ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fuse:
    """AdapterFusion of the children with the fusion weights of one package."""

    fusion: Reference
    children: tuple["Block", ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Each child on its own copy of the input; one answer per child."""

    children: tuple["Block", ...]


Block = Adapter | Stack | Average | Fuse | Parallel


@dataclass(frozen=True, slots=True)
class Composition:
    """A whole model string. `root` None is the bare backbone; `head` None is the composition's own head."""

    root: Block | None
    head: Reference | None = None


def references(block: Block | None) -> Iterator[Reference]:
    """Every reference of a block, members before fusions, in the order of the text."""
    match block:
        case None:
            return
        case Adapter(reference):
            yield reference
        case Fuse(fusion, children):
            for child in children:
                yield from references(child)
            yield fusion
        case Stack(children) | Average(children, _) | Parallel(children):
            for child in children:
                yield from references(child)


def walk(block: Block | None) -> Iterator[Block]:
    """A block and all blocks inside it, outermost first."""
    if block is None:
        return
    yield block
    if not isinstance(block, Adapter):
        for child in block.children:
            yield from walk(child)


def replaced(composition: Composition, by: Callable[[Reference], Reference]) -> Composition:
    """The composition with each of its references replaced by what `by` makes of it."""

    def inside(block: Block) -> Block:
        match block:
            case Adapter(reference):
                return Adapter(by(reference))
            case Stack(children):
                return Stack(tuple(map(inside, children)))
            case Average(children, weights):
                return Average(tuple(map(inside, children)), weights)
            case Fuse(fusion, children):
                return Fuse(by(fusion), tuple(map(inside, children)))
            case Parallel(children):
                return Parallel(tuple(map(inside, children)))

    root = None if composition.root is None else inside(composition.root)
    return Composition(root, None if composition.head is None else by(composition.head))


def channels(block: Block) -> list[Block]:
    """The blocks that a block with `parallel(...)` in it stands for, each answering by itself; the block alone if it has none.

    A parallel inside a stack is that stack once for each of its children, as the `adapters` library means it. Raises InvalidName for
    a parallel inside a fuse or an average, which have one output.
    """
    match block:
        case Parallel(children):
            return [channel for child in children for channel in channels(child)]
        case Stack(children):
            stacks: list[tuple[Block, ...]] = [()]
            for child in children:
                stacks = [(*before, channel) for before in stacks for channel in channels(child)]
                if len(stacks) > MAX_CHANNELS:
                    raise InvalidName(f"The model string stands for more than {MAX_CHANNELS} answers.")
            return [Stack(stack) for stack in stacks]
        case Fuse() | Average() if any(isinstance(inner, Parallel) for inner in walk(block)):
            raise InvalidName(f"{type(block).__name__.lower()}(...) has one output and cannot hold parallel(...).")
        case _:
            return [block]


def format_block(block: Block) -> str:
    """The block as a model string; `parse(format_block(b)).root == b`."""
    match block:
        case Adapter(reference):
            return str(reference)
        case Stack(children):
            return f"stack({', '.join(map(format_block, children))})"
        case Parallel(children):
            return f"parallel({', '.join(map(format_block, children))})"
        case Fuse(fusion, children):
            return f"fuse[{fusion}]({', '.join(map(format_block, children))})"
        case Average(children, weights):
            return f"average({', '.join(f'{format_block(c)}:{w!r}' for c, w in zip(children, weights, strict=True))})"


def format_composition(composition: Composition) -> str:
    """The composition as a model string; `parse` reads it back."""
    text = "base" if composition.root is None else format_block(composition.root)
    return text if composition.head is None else f"{text}#{composition.head}"


def parse(text: str) -> Composition:
    """A model string as a Composition; raises InvalidName with the place of the fault."""
    if len(text) > MAX_LENGTH:
        raise InvalidName(f"The model string has {len(text)} characters; at most {MAX_LENGTH} are allowed.")
    return _Parser(text).composition()


_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z0-9][A-Za-z0-9._/-]*(?:@(?:sha256:[0-9a-f]{64}|[A-Za-z0-9._-]+))?)|(?P<mark>[()\[\],:#]))")
_FUNCTIONS = ("stack", "average", "parallel", "fuse")


class _Parser:
    """Recursive descent over the tokens of one model string."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        position = 0
        stripped = text.rstrip()
        while position < len(stripped):
            match = _TOKEN.match(stripped, position)
            if match is None:
                raise InvalidName(f"{shown(text)} is not a model string: unexpected {shown(stripped[position:].strip()[:1])}.")
            self.tokens.append(match["word"] or match["mark"])
            position = match.end()
        self.next = 0

    def peek(self) -> str:
        return self.tokens[self.next] if self.next < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            wanted = f"'{expected}'" if expected else "a name"
            raise InvalidName(f"{shown(self.text)} is not a model string: expected {wanted}, found {shown(token) if token else 'its end'}.")
        self.next += 1
        return token

    def composition(self) -> Composition:
        if self.peek() == "base" and self.tokens[1:2] != ["("]:
            self.take()
            root = None
        else:
            root = self.block(depth=1)
        head = None
        if self.peek() == "#":
            self.take()
            head = parse_reference(self.take())
        if self.peek():
            raise InvalidName(f"{shown(self.text)} is not a model string: unexpected {shown(self.peek())}.")
        return Composition(root, head)

    def block(self, depth: int) -> Block:
        if depth > MAX_DEPTH:
            raise InvalidName(f"The model string nests more than {MAX_DEPTH} blocks.")
        word = self.take()
        opens = "[" if word == "fuse" else "("
        if self.peek() == "(" and (word not in _FUNCTIONS or word == "fuse"):
            raise InvalidName(
                f"{shown(self.text)} is not a model string: expected stack(...), average(...), parallel(...) or fuse[FUSION](...), "
                f"found {shown(word + '(')}."
            )
        if word not in _FUNCTIONS or self.peek() != opens:
            return Adapter(parse_reference(word))
        fusion = None
        if word == "fuse":
            self.take("[")
            fusion = parse_reference(self.take())
            self.take("]")
        children, weights = self.arguments(depth, weighted=word == "average")
        match word:
            case "stack":
                return Stack(children)
            case "parallel":
                return Parallel(children)
            case "average":
                return Average(children, _normalised(weights))
            case _:
                assert fusion is not None
                return Fuse(fusion, children)

    def arguments(self, depth: int, weighted: bool) -> tuple[tuple[Block, ...], list[float]]:
        self.take("(")
        children: list[Block] = []
        weights: list[float] = []
        while True:
            children.append(self.block(depth + 1))
            if weighted and self.peek() == ":":
                self.take()
                weights.append(_weight(self.take()))
            elif weighted:
                weights.append(1.0)
            if self.peek() != ",":
                break
            self.take()
        self.take(")")
        return tuple(children), weights


def _weight(word: str) -> float:
    try:
        weight = float(word)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        raise InvalidName(f"{shown(word)} is not a weight: use a number from 0 to {MAX_WEIGHT:.0f}.")
    return weight


def _normalised(weights: list[float]) -> tuple[float, ...]:
    total = math.fsum(weights)
    if total <= 0:
        raise InvalidName("The weights of average(...) sum to 0: give at least one a positive weight.")
    return tuple(weight / total for weight in weights)

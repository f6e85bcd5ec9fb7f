"""Model strings: parse and format are inverse, and whatever is not a model string is refused in bounded time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_store.composition import (
    MAX_DEPTH,
    Adapter,
    Average,
    Block,
    Composition,
    Fuse,
    Parallel,
    Stack,
    format_composition,
    parse,
    references,
)
from adapter_store.errors import InvalidName
from adapter_store.names import Reference

short_names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,5}(?:/[a-z0-9]{1,3})?", fullmatch=True).filter(lambda name: name != "base")
refs = st.builds(Reference, short_names, st.sampled_from(["latest", "1", "42", "prod", "sha256:" + "0" * 64]))


def averages(children: st.SearchStrategy[Block]) -> st.SearchStrategy[Average]:
    # Powers of two, so that normalised weights are exact and stay so when they are normalised again.
    return st.lists(children, min_size=2, max_size=2).map(lambda two: Average(tuple(two), (0.25, 0.75)))


def lists(children: st.SearchStrategy[Block]) -> st.SearchStrategy[tuple[Block, ...]]:
    return st.lists(children, min_size=1, max_size=3).map(tuple)


blocks: st.SearchStrategy[Block] = st.recursive(
    st.builds(Adapter, refs),
    lambda inner: st.one_of(
        st.builds(Stack, lists(inner)), st.builds(Parallel, lists(inner)), st.builds(Fuse, refs, lists(inner)), averages(inner)
    ),
    max_leaves=6,
)


def depth(block: Block) -> int:
    return 1 if isinstance(block, Adapter) else 1 + max(map(depth, block.children))


@given(st.builds(Composition, st.one_of(st.none(), blocks), st.one_of(st.none(), refs)))
def test_round_trip(composition: Composition) -> None:
    text = format_composition(composition)
    if len(text) > 2048 or (composition.root is not None and depth(composition.root) > MAX_DEPTH):
        return
    assert parse(text) == composition
    assert parse(text.replace(", ", " ,\t")) == composition


def test_shapes() -> None:
    assert parse("base") == Composition(None)
    assert parse("base#spam@2") == Composition(None, Reference("spam", "2"))
    assert parse(" stack( lang-de,ner ) # ner@prod ").head == Reference("ner", "prod")
    average = parse("average(a:0.7, b:0.3)").root
    assert isinstance(average, Average)
    assert math.isclose(sum(average.weights), 1)
    assert parse("average(a, b)").root == Average((Adapter(Reference("a")), Adapter(Reference("b"))), (0.5, 0.5))
    assert [str(reference) for reference in references(parse("fuse[f](a, stack(b, c@2))").root)] == ["a", "b", "c@2", "f"]


@pytest.mark.parametrize("text", ["stack", "fuse", "average@2", "parallel"])
def test_functions_are_names_where_no_bracket_follows(text: str) -> None:
    assert isinstance(parse(text).root, Adapter)


@pytest.mark.parametrize(
    "text",
    ["", " ", "(", "stack()", "stack(a", "stack(a,)", "stack(a b)", "a b", "a,b", "a#", "a##b", "fuse(a)", "fuse[](a)", "fuse[f]()",
     "average(a:x)",
     "average(a:-1)", "average(a:nan)", "average(a:0, b:0)", "average(a:)", "nope(a)", "a(b)", "base(a)", "A", "../a", "a\0",
     "average(a:1e999)", "stack(" * 9 + "a" + ")" * 9, "a" * 3000],
)  # fmt: skip
def test_not_model_strings(text: str) -> None:
    with pytest.raises(InvalidName) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["fuse(a, b)", "sum(a, b)", "stack(a, base(b))"])
def test_an_unknown_function_is_answered_with_those_that_there_are(text: str) -> None:
    with pytest.raises(InvalidName, match=r"expected stack\(...\), average\(...\), parallel\(...\) or fuse\[FUSION\]\(...\), found"):
        parse(text)


@given(st.text(alphabet="ab1@:.,#()[] stackfuseaverage", max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        composition = parse(text)
    except InvalidName:
        return
    assert parse(format_composition(composition)).head == composition.head

"""Names, aliases and references: what is allowed, and that hostile ones never pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import check_sentence

from adapter_store.errors import InvalidName
from adapter_store.names import NAME, Reference, check_alias, check_name, parse_reference, shown

names = st.from_regex(NAME, fullmatch=True)
selectors = st.one_of(
    st.integers(1, 999_999_999).map(str),
    st.from_regex(r"[a-z][a-z0-9._-]{0,63}", fullmatch=True),
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
)


@given(names, selectors)
def test_references_round_trip(name: str, selector: str) -> None:
    reference = Reference(name, selector)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("name", ["spam", "a", "0", "acme/spam", "a.b_c-d/e", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Spam",
        "-a",
        ".",
        "..",
        "a/..",
        "../a",
        "a/../b",
        "/a",
        "a/",
        "a//b",
        "a/b/c",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "x" * 65,
        "base",
        "self",
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize("alias", ["latest", "3", "3x", "", "Prod", "a/b", "sha256:00", "x" * 65, "prod\n"])
def test_bad_aliases(alias: str) -> None:
    with pytest.raises(InvalidName):
        check_alias(alias)


@pytest.mark.parametrize(
    "text", ["spam@", "spam@0", "spam@1234567890", "spam@sha256:12", "spam@@1", "@1", "spam@PROD", "spam@sha256:" + "A" * 64]
)
def test_bad_references(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_reference(text)


@given(st.text())
def test_any_text_is_a_name_or_an_error(text: str) -> None:
    try:
        assert NAME.fullmatch(check_name(text))
    except InvalidName as error:
        check_sentence(error)


def test_shown_is_bounded() -> None:
    assert len(shown("x" * 10_000)) < 100

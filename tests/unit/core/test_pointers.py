"""JSON Pointers: the tables of RFC 6901, and what finds nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.pointers import below, follow, shown, tokens_of, why_nothing
from support.values import JSON_VALUES

#: The document of RFC 6901, section 5, and what its pointers find there.
DOCUMENT = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8}
EVALUATED = {
    "": DOCUMENT,
    "/foo": ["bar", "baz"],
    "/foo/0": "bar",
    "/": 0,
    "/a~1b": 1,
    "/c%d": 2,
    "/e^f": 3,
    "/g|h": 4,
    "/i\\j": 5,
    '/k"l': 6,
    "/ ": 7,
    "/m~0n": 8,
}


@pytest.mark.parametrize("pointer", EVALUATED)
def test_the_pointers_of_the_standard_find_what_it_says(pointer: str) -> None:
    tokens = tokens_of(pointer)
    assert follow(DOCUMENT, tokens) == (len(tokens), EVALUATED[pointer])


def test_an_escaped_tilde_is_not_the_escape_of_what_follows() -> None:
    assert tokens_of("/~01/~10/~00") == ("~1", "/0", "~0")


@pytest.mark.parametrize("pointer", ["a", "a/b", " /a", "#/a", "/~", "/a~", "/~2", "/a/~a/b", "/~ 1"])
def test_what_is_not_a_pointer_is_refused(pointer: str) -> None:
    with pytest.raises(ValueError, match=r"must begin|is written"):
        tokens_of(pointer)


@pytest.mark.parametrize("token", ["2", "-", "-1", "00", "01", "+1", "1.0", "1e0", " 1", "1 ", "", "length", "٠", "²"])
def test_what_is_not_the_index_of_an_item_finds_nothing(token: str) -> None:
    assert follow(["a", "b"], (token,)) == (0, ["a", "b"])


def test_an_index_of_thousands_of_digits_finds_nothing() -> None:
    assert follow(["a"], ("9" * 10_000,)) == (0, ["a"])


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "text", [], {}])
def test_there_is_nothing_within_what_has_no_members(value: Any) -> None:
    for token in ("", "0", "a"):
        assert follow({"v": value}, ("v", token, "more")) == (1, value)


def test_a_member_may_be_named_like_an_index() -> None:
    assert follow({"0": {"-": "a"}}, ("0", "-")) == (2, "a")


SEALED = {"$sealed": {"key": "k", "from": "1/params", "data": "eA=="}}


def test_there_is_no_way_into_a_sealed_value() -> None:
    assert follow({"card": SEALED}, ("card",)) == (1, SEALED)
    assert follow({"card": SEALED}, ("card", "$sealed", "data")) == (1, SEALED)
    only_like_one = {"$sealed": "k"}
    assert follow({"card": only_like_one}, ("card", "$sealed")) == (2, "k")


@pytest.mark.parametrize(
    ("value", "token", "text"),
    [
        ({}, "total", "has no member total"),
        ({}, "a b\n", r"has no member 'a b\n'"),
        ({}, "x" * 100, f"has no member '{'x' * 64}'"),
        ([1, 2], "2", "has 2 items, and the index 2 is too high"),
        ([1, 2], "-", "is a list, and - is not an index"),
        ([1, 2], "01", "is a list, and 01 is not an index"),
        (None, "a", "is null"),
        (False, "a", "is a boolean"),
        (0, "a", "is a number"),
        (0.5, "a", "is a number"),
        ("secret", "a", "is a text"),
    ],
)
def test_why_there_is_nothing_is_said_without_what_is_there(value: Any, token: str, text: str) -> None:
    assert why_nothing(value, token) == text


def test_a_text_does_not_quote_a_pointer_without_end() -> None:
    assert shown("/input/total") == "/input/total"
    assert len(shown("/x" * 1000)) == 129


def _all_in(value: Any, pointer: str = "") -> list[tuple[str, Any]]:
    """Each value in a value, with its pointer."""
    found = [(pointer, value)]
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for token, member in members:
        found += _all_in(member, below(pointer, token))
    return found


@given(JSON_VALUES)
def test_every_value_is_found_by_its_pointer(value: Any) -> None:
    for pointer, inner in _all_in(value):
        tokens = tokens_of(pointer)
        count, found = follow(value, tokens)
        assert count == len(tokens)
        assert found is inner


@given(JSON_VALUES, st.lists(st.text(max_size=3)).map(tuple))
def test_where_a_pointer_ends_that_finds_nothing_can_be_told(value: Any, tokens: tuple[str, ...]) -> None:
    count, there = follow(value, tokens)
    assert follow(value, tokens[:count]) == (count, there)
    if count < len(tokens):
        assert why_nothing(there, tokens[count])

"""Entries of streams, and what the quarantine keeps of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.broker.entries import Entry
from support.worst import cpu_ms


def an_entry(fields: dict[bytes, bytes]) -> Entry:
    return Entry(stream="saga:{0}:replies", id=b"1700000000000-7", fields=fields)


def test_an_entry_was_added_when_its_id_says() -> None:
    assert an_entry({}).added_ms == 1_700_000_000_000


def test_what_is_set_aside_says_why_where_it_stood_and_what_it_was() -> None:
    entry = an_entry({b"body": b'{"a":1}', b"unknown": b"1", b"request_id": b"me-1"})
    assert entry.quarantined("not JSON") == {
        "reason": "not JSON",
        "stream": "saga:{0}:replies",
        "entry_id": b"1700000000000-7",
        "body": b'{"a":1}',
        "fields": '{"unknown": "1", "request_id": "me-1"}',
    }


def test_an_entry_without_a_body_is_set_aside_with_none() -> None:
    kept = an_entry({b"x": b"y"}).quarantined("why")
    assert (kept["body"], kept["fields"]) == (b"", '{"x": "y"}')


def test_of_thousands_of_fields_little_is_kept_and_the_whole_body() -> None:
    fields = {b"field%d" % n: b"x" * 100 for n in range(5000)} | {b"body": b"y" * 10_000}
    kept = an_entry(fields).quarantined("why")
    assert len(kept) == 5
    assert kept["body"] == b"y" * 10_000
    assert len(str(kept["fields"])) <= 4096


def test_of_one_field_that_is_very_long_the_beginning_is_kept() -> None:
    kept = an_entry({b"x" * 1_000_000: b"y" * 1_000_000}).quarantined("why")
    assert str(kept["fields"]).startswith('cut: {"xxx')
    assert len(str(kept["fields"])) <= 4096


def a_command(**fields: bytes) -> Entry:
    return an_entry({b"body": b"{}", b"attempt": b"1"} | {name.encode(): value for name, value in fields.items()})


def test_the_large_fields_of_a_command_are_kept_as_they_were() -> None:
    """Of everything else, and by releases that do not look at them, it is told that they were cut."""
    large = {name: f'"{name}é{chr(34)}'.encode() * 100_000 for name in ("params", "result", "undo", "input")}
    kept = a_command(**large).quarantined("why", is_command=True)
    assert {name: kept.pop(f"field:{name}") for name in (*large, "attempt")} == large | {"attempt": b"1"}
    assert kept == a_command(**large).quarantined("why")
    assert str(kept["fields"]).startswith("cut: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"input": b"x" * 100},  # `fields` has room for it
        {"input": b"x" * (5 << 20)},
        {f"field{number}": b"x" * 1000 for number in range(20)},
        {"é": b"x" * 5000},
        {"input": b"x" * 5000, "body": b"y" * ((1 << 20) + 1)},  # it cannot be put back anyway
    ],
    ids=lambda fields: f"{len(fields)} {next(iter(fields))}",
)
def test_no_more_is_kept_than_a_command_has(fields: dict[str, bytes]) -> None:
    assert a_command(**fields).quarantined("why", is_command=True) == a_command(**fields).quarantined("why")


@pytest.mark.parametrize("text", [b"\xff\x00", b"\x1b[2J", "\u202e😀".encode(), b'"', b"\xed\xa0\x80"])
def test_whatever_bytes_a_field_has_what_is_kept_is_plain_json(text: bytes) -> None:
    fields = str(an_entry({text: text}).quarantined("why")["fields"])
    assert fields.isascii()
    assert fields.isprintable()
    assert len(json.loads(fields)) == 1


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=20), max_size=8))
def test_whatever_an_entry_holds_it_can_be_set_aside(fields: dict[bytes, bytes]) -> None:
    kept = an_entry(fields).quarantined("why")
    assert kept["body"] == fields.get(b"body", b"")
    assert all(isinstance(value, str | bytes | int) for value in kept.values())


@pytest.mark.parametrize("what", ["one field of 50 MB", "100,000 fields"])
def test_an_entry_of_any_size_is_quarantined_at_little_cost(what: str) -> None:
    many = {b"%d" % number: b"\x1b" * 100 for number in range(100_000)}
    entry = an_entry({b"x": b"\xff" * 50_000_000} if what == "one field of 50 MB" else many)
    assert cpu_ms(lambda: entry.quarantined("why", is_command=True), enough_ms=45) < 50

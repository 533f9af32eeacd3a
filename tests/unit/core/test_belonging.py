"""To which sagas an entry belongs: a message to the one that it names, everything else to each whose id is in it."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.broker.entries import Entry
from sagastream.core.belonging import Belonging
from sagastream.core.strict_json import MAX_BYTES
from support.worst import cpu_ms

SAGAS = Belonging(["o-1", "a"])


def set_aside(fields: dict[bytes, bytes], *, is_command: bool = False) -> dict[bytes, bytes]:
    """The entry as the quarantine keeps it."""
    entry = Entry(stream="saga:{0}:replies:till", id=b"1-0", fields=fields)
    kept = entry.quarantined("a reason, of o-1 too", is_command=is_command)
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in kept.items()}


@pytest.mark.parametrize(
    ("body", "owners"),
    [
        (b'{"saga_id":"o-1","note":"a"}', {"o-1"}),
        (b'{"saga_id":"b","note":"o-1"}', set()),
        (rb'{"saga_id":"\u006f-1"}', {"o-1"}),
        (b'{"saga_id":"o-10"}', set()),
        # It is not a message that can be read.
        (b"{saga_id:o-1}", {"o-1", "a"}),
        (b"an order-1o-1.", {"o-1", "a"}),
        (b"x-o-1_", {"o-1"}),
        (b'{"saga_id":"b","saga_id":"o-1"}', {"o-1", "a"}),
        (b'{"saga_id":"o-1","saga_id":"b"}', {"o-1", "a"}),
        (b'{"saga_id":["o-1"]}', {"o-1", "a"}),
        (b'{"saga_id":" o-1"}', {"o-1", "a"}),
        (b'[{"saga_id":"o-1"}]', {"o-1", "a"}),
        (b'"o-1"', {"o-1"}),
        (b'{"saga_id":"b","x":1e999,"y":"o-1"', {"o-1", "a"}),
        (b'{"saga_id":"o-1","d":[' + b"1," * 150_000 + b"1]}", {"o-1", "a"}),
        (rb'{"saga_id":"\u006F-1","d":[' + b"1," * 150_000 + b"1]}", {"o-1", "a"}),
        (b'{"saga_id":"o-1","x":"' + b"y" * 1_048_600 + b'"}', {"o-1", "a"}),
        ('{"saga_id":"o-1"}'.encode("utf-16"), {"o-1", "a"}),
        ('{"saga_id":"o-1"}'.encode("utf-16-be"), {"o-1", "a"}),
        ('{"saga_id":"o-1"}'.encode("utf-32"), {"o-1", "a"}),
        (b"\xff\xfeo-1", {"o-1"}),
        (b"", set()),
        (b"nothing", set()),
    ],
)
def test_a_body_belongs_to_whom_it_names(body: bytes, owners: set[str]) -> None:
    assert SAGAS.of_message({b"body": body}) == owners
    assert SAGAS.of_quarantined(set_aside({b"body": body})) == owners


@pytest.mark.parametrize(
    "fields",
    [
        {b"data": b'{"saga_id": "o-1"}'},
        {b"data": rb'{"saga_id": "\u006f-1"}'},
        {b"data": '{"saga_id": "o-1"}'.encode("utf-16")},
        {b"saga_id": b"o-1"},
        {b"o-1": b"x"},
        {b"body": b"{", b"of": b"o-1"},
        {b"body": b"{}", b"of": b"o-1"},
    ],
)
def test_of_an_entry_without_a_message_every_field_counts(fields: dict[bytes, bytes]) -> None:
    only = Belonging(["o-1", "o-2"])
    assert only.of_message(fields) == {"o-1"}
    assert only.of_quarantined(set_aside(fields)) == {"o-1"}


def test_what_sagastream_writes_about_an_entry_does_not_count() -> None:
    """A short id would be found there by chance, in the number of an entry or in the reason."""
    aside = set_aside({b"body": b"{"})
    assert Belonging(["1", "o-1", "till", "reason"]).of_quarantined(aside) == set()
    event = {b"kind": b"done", b"saga_id": b"b", b"body": b'{"type":"done","text":"of o-1"}'}
    assert SAGAS.of_event(event) == set()
    assert SAGAS.of_event(event | {b"saga_id": b"o-1"}) == {"o-1"}


def test_whatever_stands_in_an_entry_the_search_takes_time_in_proportion() -> None:
    for text in (b"\\" * MAX_BYTES, b"\\u00" * (MAX_BYTES // 4), b"[" * MAX_BYTES, b"o-" * (MAX_BYTES // 2)):
        assert cpu_ms(lambda text=text: SAGAS.of_message({b"body": text})) < 200  # type: ignore[misc]


def test_of_an_entry_that_was_cut_it_is_told_that_it_may_be_anybodys() -> None:
    large = b'{"x":"' + b"y" * MAX_BYTES
    for fields, is_undecided in (
        ({b"body": large + b'","saga_id":"o-1"}'}, True),
        ({b"data": large}, True),
        ({b"body": b"{", b"data": large}, True),
        ({b"body": large + b'"', b"data": b"of o-1"}, False),  # it is known to be
        ({b"body": b'{"saga_id":"b"}', b"data": large}, False),
        ({b"body": b"{"}, False),
    ):
        assert Belonging(["o-1"]).is_undecided(set_aside(fields)) is is_undecided


def test_large_fields_that_are_kept_are_looked_through() -> None:
    for fields, owners in (
        ({b"body": b"{", b"input": b"x" * 5000 + b"o-1"}, {"o-1"}),
        ({b"body": b"{", b"input": b"x" * 5000}, set()),
        ({b"body": b'{"saga_id":"b"}', b"input": b"x" * 5000 + b"o-1"}, set()),
    ):
        aside = set_aside(fields, is_command=True)
        assert Belonging(["o-1"]).of_quarantined(aside) == owners
        assert not Belonging(["o-1"]).is_undecided(aside)


IDS = st.text("ab-1.:_", min_size=1, max_size=4)


@given(IDS, st.dictionaries(st.text(max_size=5), st.text() | st.integers(0, 9), max_size=3))
def test_each_message_belongs_to_its_saga_alone(saga_id: str, others: dict[str, Any]) -> None:
    body = orjson.dumps(others | {"saga_id": saga_id})
    assert Belonging([saga_id, f"{saga_id}x", "a"]).of_message({b"body": body}) == {saga_id}
    escaped = "".join(f"\\u{ord(character):04x}" for character in saga_id)
    body = body.replace(b'"saga_id":"%b"' % saga_id.encode(), b'"saga_id":"%b"' % escaped.encode())
    assert Belonging([saga_id]).of_message({b"body": body}) == {saga_id}


@given(
    IDS, st.text("ab-1. ,", max_size=9), st.text("ab-1. ,", max_size=9), st.sampled_from(["utf-8", "utf-16", "utf-32"])
)
def test_no_text_with_the_id_is_missed(saga_id: str, before: str, after: str, encoding: str) -> None:
    text = ("{" + before + saga_id + after).encode(encoding)
    assert Belonging([saga_id]).of_message({b"body": text}) == {saga_id}
    assert Belonging([saga_id]).of_quarantined(set_aside({b"data": text})) == {saga_id}

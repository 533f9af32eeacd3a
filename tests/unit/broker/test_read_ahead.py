"""Entries that a reader has before it needs them."""

import pytest

from sagastream.broker import read_ahead
from sagastream.broker.entries import Entry
from sagastream.broker.portions import BYTES
from sagastream.broker.read_ahead import ReadAhead


def entries(count: int, size: int = 1) -> list[Entry]:
    return [Entry(stream="s", id=b"%d-0" % number, fields={b"body": bytes(size)}) for number in range(count)]


def test_what_was_read_ahead_is_taken_once() -> None:
    ahead, found = ReadAhead(lease_ms=5000), entries(3)
    ahead.begins()
    ahead.has(found)
    assert [bool(ahead), ahead.is_stale] == [True, False]
    assert ahead.taken() == found
    assert [bool(ahead), ahead.taken()] == [False, []]


def test_what_is_too_much_for_a_turn_is_left_for_the_next() -> None:
    ahead, found = ReadAhead(lease_ms=5000), entries(3, BYTES // 2)
    assert ahead.for_a_turn(found) == found[:2]
    assert ahead.taken() == found[2:]


def test_what_waited_for_too_long_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = ReadAhead(lease_ms=5000)
    monkeypatch.setattr(read_ahead, "_FRESH_S", 0.0)
    stale = [ahead.is_stale]  # there is nothing yet
    ahead.begins()
    ahead.has(entries(1))
    stale.append(ahead.is_stale)
    ahead.forget()
    assert [*stale, ahead.is_stale] == [False, True, False]

"""Entries that a reader has before it needs them, or that are on their way."""

from typing import cast

import pytest

from sagastream.broker import read_ahead
from sagastream.broker.entries import Entry
from sagastream.broker.exchange import Exchange
from sagastream.broker.portions import BYTES
from sagastream.broker.read_ahead import ReadAhead
from sagastream.broker.wire import Later


def entries(count: int, size: int = 1) -> list[Entry]:
    return [Entry(stream="s", id=b"%d-0" % number, fields={b"body": bytes(size)}) for number in range(count)]


class OneByOne:
    """Answers that come when the test says so."""

    def __init__(self, *answers: list[Entry]) -> None:
        self.has_come = False
        self._answers = list(answers)

    def are_there(self, within_s: float) -> bool:
        return self.has_come

    def taken(self) -> list[list[Entry]]:
        return self._answers

    give_up = taken


def reading() -> Exchange[list[Entry]]:
    found: list[Entry]
    (found,) = yield [("XREADGROUP",)]
    return found


def on_the_way(found: list[Entry]) -> tuple[ReadAhead, OneByOne]:
    """A reading that was sent ahead, and will bring these."""
    ahead, later, one = ReadAhead(lease_ms=5000), OneByOne(found), reading()
    next(one)
    ahead.begins()
    ahead.comes(one, cast("Later", later))
    return ahead, later


def test_what_was_asked_for_ahead_comes_once() -> None:
    found = entries(3)
    ahead, later = on_the_way(found)
    assert [ahead.came(0), ahead.is_coming] == [None, True]
    later.has_come = True
    assert [ahead.came(0), ahead.is_coming] == [found, False]


def test_what_is_read_again_as_what_is_held_is_waited_for_and_left() -> None:
    ahead, _ = on_the_way(entries(1))
    ahead.finish()
    assert [ahead.is_coming, ahead.taken()] == [False, []]


def test_what_is_too_much_for_a_turn_is_left_for_the_next() -> None:
    ahead, found = ReadAhead(lease_ms=5000), entries(3, BYTES // 2)
    assert ahead.for_a_turn(found) == found[:2]
    assert ahead.taken() == found[2:]


def test_what_waited_for_too_long_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = ReadAhead(lease_ms=5000)
    monkeypatch.setattr(read_ahead, "_FRESH_S", 0.0)
    stale = [ahead.is_stale]  # there is nothing yet
    ahead.for_a_turn(entries(2, BYTES))
    stale.append(ahead.is_stale)
    ahead.forget()
    stale.append(ahead.is_stale)
    ahead, _ = on_the_way(entries(1))
    stale.append(ahead.is_stale)
    ahead.give_up()
    assert [*stale, ahead.is_stale] == [False, True, False, True, False]

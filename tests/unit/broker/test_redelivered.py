"""What a consumer group gives as new, and has given before."""

from typing import Any

import pytest

from sagastream.broker.entries import entries_of
from sagastream.broker.redelivered import EntryId, Redelivered


def page(*ids: str, stream: str = "a") -> Any:
    return [[stream.encode(), [[entry_id.encode(), [b"body", b"{}"]] for entry_id in ids]]]


def again(known: Redelivered, *ids: str, now_ms: int, seen: EntryId | None = None) -> list[str]:
    """Which of these the reader takes for delivered before."""
    answer = page(*ids)
    before = known.before({} if seen is None else {"a": seen})
    looked = known.looked_at([answer, None], entries_of(answer), now_ms, before)
    assert [entry.id.decode() for entry in looked] == list(ids)
    return [entry.id.decode() for entry in looked if entry.again]


def test_what_comes_in_its_order_is_new() -> None:
    known = Redelivered()
    assert again(known, "5-0", "5-1", now_ms=5) == []
    assert again(known, "5-2", "10-0", now_ms=10) == []
    assert known.looked_at([page("1-0", stream="b")], entries_of(page("1-0", stream="b")), 10, {})[0].again is False


def test_all_that_stood_in_a_stream_when_its_group_was_set_back_was_delivered_before() -> None:
    known = Redelivered()
    again(known, "5-0", now_ms=5)
    assert again(known, "5-0", "6-0", now_ms=20) == ["5-0", "6-0"]  # another reader may have had 6-0
    assert again(known, "20-0", "21-0", now_ms=21) == ["20-0"]
    assert again(known, "22-0", now_ms=22) == []


def test_a_reader_that_was_given_nothing_knows_how_far_others_were() -> None:
    assert again(Redelivered(), "5-0", now_ms=20, seen=(7, 0)) == ["5-0"]
    assert again(Redelivered(), "5-0", now_ms=20, seen=(4, 9)) == []


def test_a_reading_that_was_sent_before_another_one_of_the_same_process_came_is_new() -> None:
    known = Redelivered()
    before = known.before({})
    assert again(known, "6-0", now_ms=6) == []
    answer = page("5-0")
    assert not known.looked_at([answer], entries_of(answer), 6, before)[0].again


@pytest.mark.parametrize("stream", ["a", "b"])
def test_all_that_stood_in_a_stream_whose_group_was_deleted_was_delivered_before(stream: str) -> None:
    known = Redelivered()
    known.all_until([stream], 10)
    assert again(known, "5-0", "10-3", "11-0", now_ms=12) == (["5-0", "10-3"] if stream == "a" else [])
    assert again(known, "12-0", now_ms=12) == []


def test_a_group_that_is_set_back_while_the_clock_is_behind_its_entries_is_noticed_too() -> None:
    known = Redelivered()
    again(known, "5000-0", now_ms=5000)
    assert again(known, "4000-0", now_ms=100) == ["4000-0"]

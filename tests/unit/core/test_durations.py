"""Durations and days as people read them; days are compared with the calendar of Python."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.durations import MOST_MS, day, exact, written


@given(st.dates(date(1970, 1, 1), date(9999, 12, 31)), st.integers(0, 86_399_999))
def test_a_day_is_that_of_the_calendar(of: date, ms: int) -> None:
    assert day((of - date(1970, 1, 1)) // timedelta(milliseconds=1) + ms) == of.isoformat()


def test_a_day_begins_at_midnight_in_utc() -> None:
    midnight = int(datetime(2028, 2, 29, tzinfo=UTC).timestamp() * 1000)
    assert [day(midnight - 1), day(midnight), day(midnight + 86_400_000)] == ["2028-02-28", "2028-02-29", "2028-03-01"]


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0 ms"), (1, "1 ms"), (1500, "1500 ms"), (90_000, "90 s"), (3_600_000, "1 h"), (172_800_000, "2 d")],
)
def test_an_exact_duration_is_not_rounded(ms: int, text: str) -> None:
    assert exact(ms) == text


@pytest.mark.parametrize(
    ("text", "ms"),
    [("0s", 0), ("500ms", 500), ("90s", 90_000), ("1h30m", 5_400_000), ("1w", 604_800_000), ("1m1ms", 60_001)],
)
def test_people_write_durations_in_one_unit_or_in_several(text: str, ms: int) -> None:
    assert written(text) == ms


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1h ", "30m1h", "1.5h", "\u0663h", "1y", "1h1h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration like 500ms, 90s, 30m, 1h, 2d, 1w or 1h30m"):
        written(text)


def test_a_duration_has_an_end() -> None:
    assert written(f"{MOST_MS}ms") == MOST_MS
    for text in (f"{MOST_MS + 1}ms", "9" * 40 + "d"):
        with pytest.raises(ValueError, match="is too long: at most 1157407d"):
            written(text)

"""Durations and days as people read them; days are compared with the calendar of Python."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.durations import day, exact


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

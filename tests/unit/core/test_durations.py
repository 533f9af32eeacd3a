"""Days as people read them, compared with the calendar of Python."""

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.durations import day


@given(st.dates(date(1970, 1, 1), date(9999, 12, 31)), st.integers(0, 86_399_999))
def test_a_day_is_that_of_the_calendar(of: date, ms: int) -> None:
    assert day((of - date(1970, 1, 1)) // timedelta(milliseconds=1) + ms) == of.isoformat()


def test_a_day_begins_at_midnight_in_utc() -> None:
    midnight = int(datetime(2028, 2, 29, tzinfo=UTC).timestamp() * 1000)
    assert [day(midnight - 1), day(midnight), day(midnight + 86_400_000)] == ["2028-02-28", "2028-02-29", "2028-03-01"]

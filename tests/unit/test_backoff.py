"""Retry delays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.backoff import FIRST_S, LONGEST_S, delay


def test_delays_double_up_to_the_longest() -> None:
    assert [delay(n, first_s=0.5, longest_s=3.0) for n in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_the_first_failure_is_followed_by_the_first_delay() -> None:
    assert delay(1) == FIRST_S


@given(st.integers(1, 10**9))
def test_no_delay_is_shorter_than_the_first_or_longer_than_the_longest(attempt: int) -> None:
    assert FIRST_S <= delay(attempt) <= delay(attempt + 1) <= LONGEST_S


@pytest.mark.parametrize("attempt", [1, 2, 1_000_000_000])
def test_a_delay_is_a_float(attempt: int) -> None:
    assert type(delay(attempt, first_s=1, longest_s=10)) is float

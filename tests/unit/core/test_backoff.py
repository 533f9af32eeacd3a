"""Retry delays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.backoff import FIRST_S, LONGEST_MS, LONGEST_S, delay, step_delay_ms


def test_delays_double_up_to_the_longest() -> None:
    assert [delay(n, longest_s=0.3) for n in (1, 2, 3, 4, 5)] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 0.3, 0.3]


@given(st.integers(1, 10**9))
def test_no_delay_is_shorter_than_the_first_or_longer_than_the_longest(attempt: int) -> None:
    assert FIRST_S <= delay(attempt) <= delay(attempt + 1) <= LONGEST_S


@pytest.mark.parametrize("attempt", [1, 2, 1_000_000_000])
def test_a_delay_is_a_float(attempt: int) -> None:
    assert type(delay(attempt, longest_s=10)) is float


def test_the_delays_of_a_step_double_up_to_a_minute() -> None:
    delays = [step_delay_ms(n, first_ms=1000, jitter=1.0) for n in (1, 2, 3, 6, 7, 8, 1000)]
    assert delays == [1000, 2000, 4000, 32_000, LONGEST_MS, LONGEST_MS, LONGEST_MS]


def test_a_step_that_asks_for_longer_delays_than_a_minute_gets_them() -> None:
    assert [step_delay_ms(n, first_ms=300_000, jitter=1.0) for n in (1, 2)] == [300_000, 300_000]


@given(st.integers(1, 1000), st.integers(1, 24 * 3600 * 1000), st.floats(0, 1))
def test_jitter_takes_off_up_to_the_half_of_a_delay(attempt: int, first_ms: int, jitter: float) -> None:
    whole = step_delay_ms(attempt, first_ms=first_ms, jitter=1.0)
    assert whole / 2 - 1 <= step_delay_ms(attempt, first_ms=first_ms, jitter=jitter) <= whole

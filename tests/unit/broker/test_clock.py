"""Whether the broker's clock was set back."""

import pytest

from sagastream.broker.clock import AHEAD_MS, BrokerClock


def test_a_clock_that_goes_on_was_not_set_back() -> None:
    clock = BrokerClock()
    assert [clock.is_now(ms) for ms in (5_000_000, 5_000_000, 5_000_001, 9_000_000)] == [0, 0, 0, 0]
    assert clock.set_back == 0


@pytest.mark.parametrize("back_ms", [AHEAD_MS + 1, 3_600_000])
def test_a_clock_that_is_set_back_is_noticed_once(back_ms: int) -> None:
    clock = BrokerClock()
    clock.is_now(5_000_000)
    assert clock.is_now(5_000_000 - back_ms) == back_ms
    assert [clock.is_now(5_000_000 - back_ms + ms) for ms in (0, 10)] == [0, 0]
    assert clock.set_back == 1
    assert clock.is_now(10) > 0
    assert clock.set_back == 2


def test_a_clock_that_is_adjusted_a_little_was_not_set_back() -> None:
    clock = BrokerClock()
    clock.is_now(5_000_000)
    assert clock.is_now(5_000_000 - AHEAD_MS) == 0


def test_a_time_that_was_written_before_counts_as_seen() -> None:
    clock = BrokerClock()
    clock.saw(5_000_000)
    clock.saw(7)
    assert clock.is_now(5_000_000 - 2 * AHEAD_MS) == 2 * AHEAD_MS

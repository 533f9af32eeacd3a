"""Whether the broker's clock was set back, or went forward."""

import pytest

from sagastream.broker.clock import AHEAD_MS, BrokerClock, ahead_s
from sagastream.core.clock import Jump, Watch

HOUR_MS = 3_600_000


def test_a_clock_that_goes_on_was_not_set_back() -> None:
    clock = BrokerClock()
    assert [clock.is_now(ms) for ms in (5_000_000, 5_000_000, 5_000_001, 9_000_000)] == [0, 0, 0, 0]
    assert clock.changes == 0


@pytest.mark.parametrize("back_ms", [AHEAD_MS + 1, 3_600_000])
def test_a_clock_that_is_set_back_is_noticed_once(back_ms: int) -> None:
    clock = BrokerClock()
    clock.is_now(5_000_000)
    assert clock.is_now(5_000_000 - back_ms) == back_ms
    assert [clock.is_now(5_000_000 - back_ms + ms) for ms in (0, 10)] == [0, 0]
    assert clock.changes == 1
    assert clock.is_now(10) > 0
    assert clock.changes == 2


def test_a_clock_that_is_adjusted_a_little_was_not_set_back() -> None:
    clock = BrokerClock()
    clock.is_now(5_000_000)
    assert clock.is_now(5_000_000 - AHEAD_MS) == 0


def test_a_clock_that_goes_on_as_this_process_does_has_not_jumped() -> None:
    clock = BrokerClock()
    for second in (0, 1, 3600, 3601):
        # A reading that waits, and a process that is stopped before it sees the answer.
        assert clock.is_now(5_000_000 + second * 1000, second - 0.4, second + 30) == 0
    assert (clock.changes, clock.watch) == (0, Watch(since_ms=5_000_000))


def test_a_clock_that_goes_forward_at_once_is_noticed_once() -> None:
    clock = BrokerClock()
    clock.is_now(5_000_000, 10.0, 10.5)
    assert clock.is_now(5_000_000 + HOUR_MS + 2_000, 12.0, 12.5) == -(HOUR_MS + 500)  # at most
    assert clock.is_now(5_000_000 + HOUR_MS + 3_000, 13.0, 13.5) == 0
    assert clock.changes == 1
    [jump] = clock.watch.jumps
    assert jump == Jump(until_ms=5_002_500, by_ms=HOUR_MS + 500)


def test_what_others_have_written_since_does_not_hide_a_jump() -> None:
    clock = BrokerClock()
    clock.is_now(5_000_000, 10.0, 10.1)
    clock.saw(5_000_000 + HOUR_MS)
    assert clock.is_now(5_000_000 + HOUR_MS, 10.1, 10.2) < 0


def test_a_clock_that_is_set_right_undoes_the_jump() -> None:
    clock = BrokerClock()
    clock.is_now(5_000_000, 10.0, 10.0)
    clock.is_now(5_000_000 + HOUR_MS, 10.0, 10.0)
    assert clock.is_now(5_000_000 + HOUR_MS // 4, 10.0, 10.0) == HOUR_MS * 3 // 4
    assert [jump.by_ms for jump in clock.watch.jumps] == [HOUR_MS // 4]
    clock.is_now(5_000_000, 10.0, 10.0)
    assert clock.watch.jumps == ()
    clock.is_now(4_000_000, 10.0, 10.0)
    assert clock.watch.since_ms == 4_000_000  # what is written from now on is written before its eyes


def test_a_time_that_was_written_before_counts_as_seen() -> None:
    clock = BrokerClock()
    clock.saw(5_000_000)
    clock.saw(7)
    assert clock.is_now(5_000_000 - 2 * AHEAD_MS) == 2 * AHEAD_MS


def test_an_answer_that_is_read_late_does_not_set_the_clock_back() -> None:
    first = ahead_s(None, told_s=1500.0, asked_s=999.9, answered_s=1000.0)
    assert first == pytest.approx(500.1)  # it may have told its time at once, and its answer may have come late
    known = ahead_s(first, told_s=1501.0, asked_s=1001.0, answered_s=1001.01)
    assert known == pytest.approx(500.0)
    stopped_meanwhile = ahead_s(known, told_s=1502.5, asked_s=1002.0, answered_s=1032.0)
    assert stopped_meanwhile == known
    assert ahead_s(known, told_s=1440.0, asked_s=1040.0, answered_s=1040.1) == pytest.approx(400.0)  # it was set back
    assert ahead_s(known, told_s=1640.0, asked_s=1039.9, answered_s=1040.0) == pytest.approx(600.0)  # and forward

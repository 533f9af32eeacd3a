"""By which time a deadline is judged, if the broker's clock has jumped forward."""

import pytest

from sagastream.core.clock import STEADY, Jump, Watch, for_deadline


@pytest.mark.parametrize(
    ("deadline_ms", "judged_by_ms"),
    [
        (80_000, 100_000),  # it was past before the clock went forward
        (120_000, 100_000),  # the clock has jumped over it
        (390_000, 100_000),
        (401_000, 400_000),  # nobody can tell when it was set
    ],
)
def test_a_deadline_that_the_clock_has_jumped_over_comes_as_much_later(deadline_ms: int, judged_by_ms: int) -> None:
    watch = Watch(jumps=(Jump(until_ms=100_000, by_ms=300_000),))
    assert for_deadline(deadline_ms, 400_000, watch) == judged_by_ms
    assert for_deadline(deadline_ms, 400_000, STEADY) == 400_000


def test_every_jump_since_a_deadline_was_set_counts() -> None:
    watch = Watch(jumps=(Jump(until_ms=100_000, by_ms=50_000), Jump(until_ms=200_000, by_ms=60_000)))
    assert [for_deadline(ms, 300_000, watch) for ms in (149_000, 155_000, 261_000)] == [190_000, 240_000, 300_000]

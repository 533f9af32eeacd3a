"""Retry delays. Pure: who waits, on what clock, and where chance comes from is the caller's business."""

from typing import Final

#: The first delay and the longest, in seconds, of whoever waits for a broker or restarts a process.
FIRST_S: Final = 0.05
LONGEST_S: Final = 2.0
#: The longest delay between two attempts of a step that names no longer one itself, in milliseconds.
LONGEST_MS: Final = 60_000


def delay(attempt: int, *, longest_s: float = LONGEST_S) -> float:
    """Seconds to wait after the `attempt`th failure (counted from 1): doubling, up to `longest_s`."""
    return float(min(longest_s, FIRST_S * 2.0 ** min(attempt - 1, 30)))


def step_delay_ms(attempt: int, *, first_ms: int, jitter: float) -> int:
    """Milliseconds to wait after the `attempt`th failure of a step (counted from 1): doubling, up to a minute or to
    `first_ms` if that is longer; of that the half, and as much of the other half as `jitter` (0 to 1) says, so that
    what failed together does not come back together."""
    whole: int = min(max(LONGEST_MS, first_ms), first_ms * 2 ** min(attempt - 1, 30))
    return round(whole * (0.5 + jitter / 2))

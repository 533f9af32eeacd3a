"""Retry delays. Pure: who waits, and on what clock, is the caller's business."""

from typing import Final

#: The first delay and the longest, in seconds, of whoever waits for a broker or restarts a process.
FIRST_S: Final = 0.05
LONGEST_S: Final = 2.0


def delay(attempt: int, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> float:
    """Seconds to wait after the `attempt`th failure (counted from 1): doubling, up to `longest_s`."""
    return float(min(longest_s, first_s * 2.0 ** min(attempt - 1, 30)))

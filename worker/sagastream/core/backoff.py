"""Retry delays. Pure: the caller brings the clock and the chance, and waits."""

from collections.abc import Callable
from typing import Final
from zlib import crc32

#: The first and the longest delay, in seconds, before a broker is asked or a process is started again.
FIRST_S: Final = 0.05
LONGEST_S: Final = 2.0
#: The longest delay between two attempts of a step, in milliseconds, unless the step asks for a longer one.
LONGEST_MS: Final = 60_000


#: From the id of a saga to the share of the random part of its delays that counts, from 0 to 1.
Jitter = Callable[[str], float]


def jitter(seed: int) -> Jitter:
    """Random, but always the same for one saga: so one random number serves many sagas. `seed`: 32 random bits."""
    return lambda saga_id: crc32(saga_id.encode(), seed) / 0xFFFF_FFFF


def whole(_: str) -> float:
    """Nothing is taken off."""
    return 1.0


def delay(attempt: int, *, longest_s: float = LONGEST_S) -> float:
    """Seconds to wait after the `attempt`th failure (counted from 1): doubling, up to `longest_s`."""
    return float(min(longest_s, FIRST_S * 2.0 ** min(attempt - 1, 30)))


def step_delay_ms(attempt: int, *, first_ms: int, jitter: float) -> int:
    """Milliseconds to wait after the `attempt`th failure of a step (counted from 1).

    The delay doubles with each, up to a minute or to `first_ms` if that is longer. Of it one half always counts, and
    `jitter` (0 to 1) of the other half, so that steps that failed at the same time are not all tried again at once.
    """
    whole: int = min(max(LONGEST_MS, first_ms), first_ms * 2 ** min(attempt - 1, 30))
    return round(whole * (0.5 + jitter / 2))

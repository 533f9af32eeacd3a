"""The broker's clock, as one process sees it: whether it was set back, or went forward all at once.

Redis keeps times by its own clock: when an entry was delivered, when a saga is due. If the clock is set back, whatever
has such a time would wait until the clock gets there a second time. If it goes forward, it would wait for too short.
"""

import time
from typing import Final

from msgspec.structs import replace

from sagastream.core.clock import STEADY, Jump, Watch

#: If a time is more than this ahead of the clock, in milliseconds, the clock was set back since. If the clock went on
#: by so much more than this process's own, it was set forward.
AHEAD_MS: Final = 1_000
#: Counts while the machine sleeps, too. It cannot be set.
_OWN: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def own_s() -> float:
    """The clock of this process, in seconds."""
    return time.clock_gettime(_OWN)


def ahead_s(known_s: float | None, *, told_s: float, asked_s: float, answered_s: float) -> float:
    """How far another clock is ahead of `own_s`, now that it was asked: it told `told_s` at some moment between the
    question and the answer. A process that was stopped meanwhile reads the answer long after that moment.

    `known_s`: what this was before; None: the clock was never asked. What is known stays as it is if it may be right:
    else the time would go back and forth by a moment.
    """
    at_least_s, at_most_s = told_s - answered_s, told_s - asked_s
    return at_most_s if known_s is None else min(max(known_s, at_least_s), at_most_s)


class BrokerClock:
    """The newest time that was seen, and how often the clock was found to be behind it, or to have gone forward."""

    def __init__(self) -> None:
        self.changes = 0  # how often it was found to be set back, or to have gone forward
        self.watch: Watch = STEADY
        self._newest_ms = 0
        self._last: tuple[int, float, float] | None = None  # the last time that was asked for: see `is_now`

    def saw(self, ms: int) -> None:
        """This time was written by the clock, in milliseconds."""
        self._newest_ms = max(self._newest_ms, ms)

    def is_now(self, now_ms: int, asked_s: float | None = None, answered_s: float = 0.0) -> int:
        """The clock says this. Returns by how much it was set back since it was last asked, in ms; less than 0: by how
        much it went forward; 0: it just went on.

        `asked_s`, `answered_s`: when this process asked, and had the answer, by `own_s`. Without them, only a clock
        that was set back is noticed.
        """
        if not self.watch.since_ms:
            self.watch = Watch(since_ms=now_ms)
        back_ms, self._newest_ms = self._newest_ms - now_ms, now_ms
        last, self._last = self._last, None if asked_s is None else (now_ms, asked_s, answered_s)
        if back_ms > AHEAD_MS:
            self.changes += 1
            # A saga with an earlier time than this changes after it.
            jumps = _less(self.watch.jumps, back_ms)
            self.watch = Watch(since_ms=min(self.watch.since_ms, now_ms), jumps=jumps)
            return back_ms
        if last is None or asked_s is None:
            return 0
        last_ms, last_asked_s, last_answered_s = last
        # The broker took the time somewhere between question and answer.
        at_most_ms = int((answered_s - last_asked_s) * 1000)
        if now_ms - last_ms - at_most_ms <= AHEAD_MS:
            return 0
        self.changes += 1
        at_least_ms = int(max(asked_s - last_answered_s, 0.0) * 1000)
        jump = Jump(until_ms=last_ms + at_most_ms, by_ms=now_ms - last_ms - at_least_ms)
        self.watch = replace(self.watch, jumps=(*self.watch.jumps, jump)[-_JUMPS:])
        return -jump.by_ms


#: At most so many jumps are remembered. Each is told to all sagas soon after it.
_JUMPS: Final = 16


def _less(jumps: tuple[Jump, ...], back_ms: int) -> tuple[Jump, ...]:
    """What is left of them after the clock was set back, which undoes the newest first."""
    left: list[Jump] = []
    for jump in reversed(jumps):
        undone_ms = min(jump.by_ms, back_ms)
        back_ms -= undone_ms
        if jump.by_ms > undone_ms:
            left.append(jump._replace(by_ms=jump.by_ms - undone_ms))
    return tuple(reversed(left))

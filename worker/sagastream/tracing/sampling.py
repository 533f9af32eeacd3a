"""Which traces are recorded that begin in a process whose environment names no sampler."""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult

#: How many traces a process records in a second; and of what has failed, as many again. A recorded saga of
#: three steps costs about half a millisecond in all processes together, its export included. So this is half a percent
#: of a core at most, at any load. Whoever tries something out sees all of it.
PER_S: Final = 10


def default() -> Sampler:
    """A trace that has begun elsewhere is recorded if it is sampled; of those that begin here, some are."""
    return ParentBased(SomeTraces())


class SomeTraces(Sampler):
    """At most `per_s` traces a second; and as many of what has failed.

    Rejected: a share of them, as TraceIdRatioBased has it. It costs most when there is most to do, and somebody who
    tries out one saga sees nothing.
    """

    def __init__(self, per_s: int = PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._usual, self._failed = _Allowance(per_s, clock), _Allowance(per_s, clock)

    def should_sample(self, *asked: Any, **named: Any) -> SamplingResult:
        # Of all that the SDK passes, the attributes count, which come fifth.
        attributes = named["attributes"] if "attributes" in named else asked[4] if len(asked) > 4 else None
        has_failed = attributes is not None and "error.type" in attributes
        allowance = self._failed if has_failed else self._usual
        if not allowance.take():
            return _DROPPED
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        return f"SomeTraces{{{self._per_s}/s}}"


_DROPPED: Final = SamplingResult(Decision.DROP)


class _Allowance:
    """At most `per_s` a second. What the last second left may be taken at once. Safe for several threads."""

    def __init__(self, per_s: int, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._left = float(per_s)
        self._at_s = clock()

    def take(self) -> bool:
        now_s = self._clock()
        with self._lock:
            self._left = min(self._per_s, self._left + max(0.0, now_s - self._at_s) * self._per_s)
            self._at_s = now_s
            if self._left < 1.0:
                return False
            self._left -= 1.0
            return True

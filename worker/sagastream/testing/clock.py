"""A clock that jumps to the next moment at which something happens."""

import heapq
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

#: Every test begins at this time, so that a test sees the same times each day. It is in the future, so that a handler
#: that compares its deadline with the real clock has time left.
START: Final = datetime(2100, 1, 1, tzinfo=UTC)


class Clock:
    """The time of a test. It passes only when `Sagas` lets it pass."""

    def __init__(self) -> None:
        self._start_ms = self._now_ms = round(START.timestamp() * 1000)
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._entered = 0

    @property
    def now_ms(self) -> int:
        """The time of the test, in milliseconds since the epoch."""
        return self._now_ms

    @property
    def elapsed_ms(self) -> int:
        """Milliseconds since the test began."""
        return self._now_ms - self._start_ms

    @property
    def elapsed_s(self) -> float:
        """Seconds since the test began."""
        return self.elapsed_ms / 1000

    def now(self) -> datetime:
        """The time of the test, in UTC. Give this method to handlers that need a clock."""
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    def call_in(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Call `action` when `delay_ms` milliseconds of the test's time have passed. Actions that are due at the same
        time are called in the order in which they were entered."""
        self._entered += 1
        heapq.heappush(self._agenda, (self._now_ms + delay_ms, self._entered, action))

    @property
    def next_ms(self) -> int | None:
        """When the next action is due, in milliseconds since the epoch; None: no action is entered."""
        return self._agenda[0][0] if self._agenda else None

    def do_next(self) -> None:
        """Go to the time of the next action, and call it."""
        at_ms, _, action = heapq.heappop(self._agenda)
        self.go_to(at_ms)
        action()

    def go_to(self, at_ms: int) -> None:
        """Set the time to `at_ms`, unless it is later already."""
        self._now_ms = max(self._now_ms, at_ms)

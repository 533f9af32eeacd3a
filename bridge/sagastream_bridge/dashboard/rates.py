"""How many sagas ended or were parked in each stretch of the last minutes. Pure."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from msgspec import Struct

#: How long a stretch is, in milliseconds, and how many of them are kept: a quarter of an hour.
STRETCH_MS: Final = 10_000
KEPT: Final = 90


class What(StrEnum):
    """What is counted."""

    COMPLETED = "completed"
    ABORTED = "aborted"
    PARKED = "parked"


class Stretch(Struct, frozen=True):
    """What happened from `from_ms` on, for STRETCH_MS."""

    from_ms: int
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Rates:
    """Counts what happens by the broker's clock. Threads may read it while one counts."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}
        self._newest = 0

    def count(self, happened: Iterable[tuple[int, What]]) -> None:
        """`happened`: what happened, and when, in ms."""
        counts = dict(self._counts)
        for at_ms, what in happened:
            number = at_ms // STRETCH_MS
            counts[number] = counts.get(number, Counter()) + Counter({what: 1})
            self._newest = max(self._newest, number)
        # All at once, for those who read it.
        self._counts = {number: one for number, one in counts.items() if self._newest - number < KEPT}

    def stretches(self, now_ms: int) -> list[Stretch]:
        """The last KEPT stretches, the oldest first; the last one still goes on."""
        counts, last = self._counts, now_ms // STRETCH_MS
        return [
            Stretch(number * STRETCH_MS, {what: counts.get(number, Counter())[what] for what in What})
            for number in range(last - KEPT + 1, last + 1)
        ]

    def a_minute(self, now_ms: int) -> dict[str, int]:
        """How many there were in the last minute that is over, about."""
        per_minute = 60_000 // STRETCH_MS
        last = self.stretches(now_ms)[-per_minute - 1 : -1]
        return {what: sum(one.counts[what] for one in last) for what in What}

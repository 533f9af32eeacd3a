"""Entries that a reader has before it needs them: read ahead, or too much for one turn."""

import time
from collections.abc import Sequence
from typing import Final

from sagastream.broker.entries import BATCH, Entry
from sagastream.broker.portions import Portion

#: How long entries may wait here, in seconds; at most a quarter of the lease. It is far more than the next reading
#: needs to come.
_FRESH_S: Final = 1.0
#: One reading takes at most this many entries, of all streams, if they are small.
_MOST_AT_ONCE: Final = 8 * BATCH


class ReadAhead:
    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        #: How much the next reading takes.
        self.portion = Portion(_MOST_AT_ONCE)
        self._entries: list[Entry] = []
        self._asked_at = 0.0  # by time.monotonic

    def __bool__(self) -> bool:
        """Whether entries are left for the next turn."""
        return bool(self._entries)

    def begins(self) -> None:
        """Entries are asked for now."""
        self._asked_at = time.monotonic()

    def has(self, entries: list[Entry]) -> None:
        """These were read ahead."""
        self._entries = entries

    def forget(self) -> None:
        self._entries = []

    @property
    def is_stale(self) -> bool:
        """Whether the process has slept since then: others may have taken them over."""
        return bool(self._entries) and time.monotonic() - self._asked_at >= min(_FRESH_S, self._lease_ms / 4000)

    def for_a_turn(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of these entries that one turn takes. The others are kept for the next."""
        taken = self.portion.saw(entries)
        if taken < len(entries):
            self.begins()
            self._entries = list(entries[taken:])
            return list(entries[:taken])
        return list(entries)

    def taken(self) -> list[Entry]:
        """What is here for the next turn."""
        entries, self._entries = self._entries, []
        return self.for_a_turn(entries)

"""Entries that a reader has before it needs them, or that are on their way: it asked for them ahead, or they were too
much for one turn."""

import time
from collections.abc import Sequence
from typing import Final

from sagastream.broker.entries import BATCH, Entry
from sagastream.broker.exchange import Exchange
from sagastream.broker.portions import Portion
from sagastream.broker.wire import Later

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
        # A reading that was asked for ahead, and what is to come of it.
        self._coming: tuple[Exchange[list[Entry]], Later] | None = None

    def __bool__(self) -> bool:
        """Whether entries are left for the next turn."""
        return bool(self._entries)

    def begins(self) -> None:
        """Entries are asked for now."""
        self._asked_at = time.monotonic()

    def comes(self, reading: Exchange[list[Entry]], later: Later) -> None:
        """This reading was sent, and its answers are to come."""
        self._coming = reading, later

    @property
    def is_coming(self) -> bool:
        """Whether the answers of a reading are still to come."""
        return self._coming is not None

    def came(self, within_s: float) -> list[Entry] | None:
        """What that reading brings; None: it brings nothing within so many seconds, and may later."""
        assert self._coming is not None
        reading, later = self._coming
        if not self._has_come(later, within_s):
            self.begins()  # nothing has come until now
            return None
        self._coming = None
        try:
            reading.send(later.taken())
        except StopIteration as end:
            found: list[Entry] = end.value
            return found
        raise AssertionError("a reading is one round trip")

    def finish(self) -> None:
        """Wait for that reading, if there is one, and leave what it brings: it is read again as what is held."""
        if self._coming is not None:
            (_, later), self._coming = self._coming, None
            later.taken()

    def forget(self) -> None:
        """Leave what is here: it is read again as what is held."""
        self._entries = []

    def give_up(self) -> None:
        """The same, and do without the reading whose answers are to come: the connection may be broken."""
        self.forget()
        if self._coming is not None:
            (_, later), self._coming = self._coming, None
            later.give_up()

    @property
    def is_stale(self) -> bool:
        """Whether the process has slept since then: others may have taken over what came."""
        has_any = bool(self._entries) or self._coming is not None
        return has_any and time.monotonic() - self._asked_at >= min(_FRESH_S, self._lease_ms / 4000)

    def _has_come(self, later: Later, within_s: float) -> bool:
        try:
            return later.are_there(within_s)
        except BaseException:
            self._coming = None
            raise

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

"""How many entries a reading takes, of which streams, and how many of them a turn: by their bytes, since Redis counts
entries only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sagastream.broker.entries import BATCH, Entry

#: What one turn takes at most, in bytes, if no single entry is larger.
BYTES: Final = 8 << 20
#: How many entries the first reading takes: nobody has seen how large they are. Each may have a megabyte.
_FIRST: Final = 16


#: Of the streams that a reader reads, at most how many new entries of each.
Counts = Callable[[Sequence[str]], Mapping[str, int]]


def in_all(count: int) -> Counts:
    """At most about so many entries in all, of all streams."""

    def counts(streams: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(streams, -(-count // len(streams)))

    return counts


def batches(streams: Sequence[str]) -> Mapping[str, int]:
    return dict.fromkeys(streams, BATCH)


class InTurn:
    """Takes one entry of some of several streams, each time of others."""

    def __init__(self) -> None:
        self._first = 0  # which stream is read first

    def of(self, streams: Sequence[str], count: int) -> Mapping[str, int]:
        """`count`: of how many streams; there are more."""
        self._first = (self._first + count) % len(streams)
        return dict.fromkeys([*streams, *streams][self._first : self._first + count], 1)


class Portion:
    """How many entries the next reading takes. It grows while entries are small, and shrinks at once if they are large.
    So a backlog of large entries, which is there when a process starts, never fills its memory."""

    def __init__(self, most: int) -> None:
        """`most`: how many at most, however small they are."""
        self.count = min(_FIRST, most)
        self._most = most
        self._in_turn = InTurn()

    @property
    def is_full(self) -> bool:
        """Whether as many entries are taken as at most."""
        return self.count == self._most

    def saw(self, entries: Sequence[Entry]) -> int:
        """These were read. Returns how many of them, from the first, one turn takes."""
        if not entries:
            return 0
        sizes = [entry.size for entry in entries]
        total = sum(sizes)
        self.count = min(self._most, 2 * self.count, max(1, BYTES * len(entries) // max(1, total)))
        if total <= BYTES:
            return len(entries)
        taken = 0
        for number, size in enumerate(sizes):
            taken += size
            if taken > BYTES:
                return max(1, number)
        return len(entries)

    def share(self, streams: int, most: int) -> int:
        """How many entries of each of so many streams, at least one and at most `most`."""
        return max(1, min(most, self.count // max(1, streams)))

    def of(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        """How many new entries the next reading takes of these streams: fewer than are wanted if the last were large.
        If there are more streams than entries, it takes one of some streams, each time of others."""
        room = self.count
        if self.is_full or sum(wanted.values()) <= room:
            return wanted
        if len(wanted) <= room:
            return {stream: self.share(len(wanted), count) for stream, count in wanted.items()}
        return self._in_turn.of(list(wanted), room)

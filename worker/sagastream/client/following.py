"""Up to which event of each partition a watcher has read; and which partitions cannot be read, as their nodes are away.

A partition is in place if all that is not known yet of its sagas comes after the last event that was read of it.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import redis

from sagastream.broker.entries import Entry, is_possible
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_outage
from sagastream.broker.wire import or_raise
from sagastream.store import events
from sagastream.store.keys import Partition

#: How often partitions are tried that are away, in seconds, if others can be read: whether a node that hangs is back
#: takes a moment to see, and the others wait for that.
_TRY_EVERY_S: Final = 2.0


class Following:
    """All by the numbers of the partitions."""

    def __init__(self) -> None:
        #: The last events that were read.
        self.after: dict[int, bytes] = {}
        #: Why partitions cannot be read now.
        self.away: dict[int, redis.RedisError] = {}
        self._in_place: set[int] = set()
        self._again_s = 0.0  # when to try those again that are away, by time.monotonic
        self._portion = events.portion()

    def is_in_place(self, partition: Partition) -> bool:
        return partition.number in self._in_place

    def lose_place(self, partition: Partition, why: redis.RedisError | None = None) -> None:
        """Its events may be others than before. `why`: its node is away."""
        self._in_place.discard(partition.number)
        if why is not None:
            self.away[partition.number] = why

    def lose_all(self) -> None:
        self._in_place.clear()

    def take_place(self, partitions: Collection[Partition]) -> Exchange[list[Partition]]:
        """Find out from where to read those that are not in place. Returns those that are by now. Raises why if none of
        all these is."""
        now_s = time.monotonic()
        left = [one for one in partitions if one.number not in self._in_place]
        if now_s < self._again_s and self._in_place:
            left = [one for one in left if one.number not in self.away]
        else:
            self._again_s = now_s + _TRY_EVERY_S
        answers = (yield [events.words_of_newest(one) for one in left]) if left else []
        placed = []
        for partition, answer in zip(left, answers, strict=True):
            if isinstance(answer, redis.RedisError) and is_outage(answer):
                self.away[partition.number] = answer
                continue
            newest = events.newest_in(or_raise(answer))
            # It may have lost its last events.
            known = self.after.get(partition.number, newest)
            self.after[partition.number] = min(known, newest, key=events.sort_key)
            self.away.pop(partition.number, None)
            placed.append(partition)
        self._in_place.update(one.number for one in placed)
        self.check(partitions)
        return placed

    def check(self, partitions: Collection[Partition]) -> None:
        """Raises why none of these can be read, if that is so."""
        if partitions and not any(one.number in self._in_place for one in partitions):
            raise next(self.away[one.number] for one in partitions if one.number in self.away)

    def read(self, partitions: Iterable[Partition], block_ms: int) -> Exchange[list[Entry]]:
        """The next events of those that are in place; waits for them up to `block_ms`, which is at least 1."""
        those: Sequence[Partition] = [one for one in partitions if one.number in self._in_place]
        if not those:
            return []
        place = tuple(self.after[one.number] for one in those)
        entries = yield from events.after(those, place, block_ms, self._portion)
        for partition, at in zip(those, events.moved(those, place, entries), strict=True):
            self.after[partition.number] = at
            if not is_possible(at):  # the events come to lie before this place when the stream is mended
                self._in_place.discard(partition.number)
        return entries

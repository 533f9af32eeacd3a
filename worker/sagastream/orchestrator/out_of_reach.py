"""Which partitions of the store one worker cannot reach for now, since nodes are away or keys damaged.

It says so once, and once that they are back.
"""

import time
from collections.abc import Iterable
from typing import Final

import redis

from sagastream.broker.failures import brief, is_cluster_down
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.reach import ranges
from sagastream.telemetry import Log, Observer

#: A partition counts as back if it answers and has not failed for so long, in seconds: a part of what is asked may be
#: answered all the time.
_QUIET_S: Final = 1.0


class _Away:
    """A partition that does not answer."""

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self.failed_s = now_s  # when it was last seen to fail


class OutOfReach:
    """The partitions that one worker cannot reach."""

    def __init__(self, who: str, observer: Observer | None) -> None:
        """`who`: the name of the worker, as its log records have it."""
        self._log = Log("broker", who)
        self._observer = observer
        self._of = 1  # how many partitions the store has
        self._away: dict[int, _Away] = {}  # by the number of the partition
        #: Those that are not told of yet: the error of one of them, and the numbers of all, by what is away.
        self._new: dict[str, tuple[redis.RedisError, list[int]]] = {}

    def join(self, keys: StoreKeys) -> None:
        """They are those of this store from now on."""
        self._of = len(keys.tags)

    @property
    def is_empty(self) -> bool:
        """Whether it can reach all partitions."""
        return not self._away

    def lost(self, partition: Partition, error: redis.RedisError) -> None:
        """This partition does not answer."""
        now_s = time.monotonic()
        if (away := self._away.get(partition.number)) is None:
            self._away[partition.number] = _Away(now_s)
            self._new.setdefault(brief(error).partition(" (")[0], (error, []))[1].append(partition.number)
        else:
            away.failed_s = now_s

    def answered(self, partitions: Iterable[Partition]) -> None:
        """These partitions answer. Says what has changed."""
        if not self._away:
            return
        some_go_on = len(self._away) < self._of and not any(is_cluster_down(error) for error, _ in self._new.values())
        rest = ". The others go on" if some_go_on else ""
        for error, lost in self._new.values():
            self._log.warning(f"{self._named(lost)} cannot be reached: {brief(error)}{rest}")
        now_s = time.monotonic()
        numbers = [one.number for one in partitions]
        back = {
            number: away
            for number in numbers
            if (away := self._away.get(number)) is not None and now_s - away.failed_s >= _QUIET_S
        }
        for number in back:
            del self._away[number]
        if back:
            took_s = now_s - min(away.since_s for away in back.values())
            self._log.warning(f"{self._named(back)} can be reached again, after {took_s:.1f} s")
        if back or self._new:
            self._tell()
        self._new.clear()

    def are_only(self, partitions: Iterable[Partition]) -> None:
        """The worker asks only these from now on: of others it will not see whether they are back, and says so."""
        if not self._away:
            return
        numbers = {one.number for one in partitions}
        new = {number for _, lost in self._new.values() for number in lost}
        if told := self._away.keys() - numbers - new:
            is_one = len(told) == 1
            text = f"this worker could not reach {self._named(told)}. "
            text += "Another worker has it now" if is_one else "Other workers have them now"
            self._log.warning(f"{text}, so this one will not report when {'it is' if is_one else 'they are'} back")
        self._away = {number: away for number, away in self._away.items() if number in numbers}
        left = {what: (error, [one for one in lost if one in numbers]) for what, (error, lost) in self._new.items()}
        self._new = {what: (error, lost) for what, (error, lost) in left.items() if lost}
        self._tell()

    def _named(self, numbers: Iterable[int]) -> str:
        if self._of == 1:
            return "the store"
        those = set(numbers)
        return f"partition{'s' if len(those) > 1 else ''} {ranges(those)} of the store"

    def _tell(self) -> None:
        if self._observer is not None:
            self._observer.partitions_away(numbers=tuple(sorted(self._away)))

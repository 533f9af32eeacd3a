"""What a service remembers of its commands, as one process reads and counts it; see core/service_rules.py.

The records stand in hashes that anybody may damage. A field that makes no sense counts as none. If the key of a hash
holds something else, nothing can be recorded there, and its commands go into the quarantine.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import redis

from sagastream.broker import nodes, partial, scripting, wire
from sagastream.broker.clock import BrokerClock, ahead_s, own_s
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.wire import or_raise, round_trip
from sagastream.core.clock import Watch
from sagastream.service.delivery import Delivery
from sagastream.store.keys import DONE_KEPT_S, StoreKeys

#: The first answer tells the time if it takes no longer, in seconds. Later ones only set right what is known.
_EXACT_S: Final = 0.5
#: The most that a count can have come to: far more than a command is tried. What is above was not counted.
_MOST_COUNTED: Final = 999_999
#: What HINCRBY says of a field that cannot be a counter.
_NO_COUNTER: Final = ("not an integer", "overflow")


class Records:
    """The records of one service. All of it raises redis.RedisError."""

    def __init__(self, client: "redis.Redis") -> None:
        self._client = client
        self._recall = scripting.Script("recall")
        self._call_of: Mapping[int, int] = {}  # by the number of a partition: in which call its records are looked up
        self._ahead_s: float | None = None  # how far the broker's clock is ahead of `own_s`; None: it was never asked
        self._told_s = 0.0  # when the broker was asked that last, by `own_s`
        self._clock = BrokerClock()
        self._lock = threading.Lock()  # of these three

    @property
    def now_s(self) -> float:
        """The time by the broker's clock, as this process computes it since it was last told."""
        return own_s() + (self._ahead_s or 0.0)

    @property
    def knows_time(self) -> bool:
        """Whether `now_s` is right."""
        return self._ahead_s is not None

    @property
    def watch(self) -> Watch:
        """What was seen of the broker's clock."""
        return self._clock.watch

    def has_asked_since(self, moment_s: float) -> bool:
        """Whether the broker was asked for the time since this moment, by `own_s`."""
        return self._told_s >= moment_s

    def ask(self) -> None:
        """Ask the broker what time it is: on a cluster the node that has the keys of the whole store. While that is
        away, this process goes on by its own clock."""
        nodes.wants_time(self._client)
        asked_s = own_s()
        self._answered(partial.ran(self._client, _time()), asked_s)

    def _answered(self, time: Any, asked_s: float) -> None:
        """The broker was asked for the time, and this came of it."""
        if isinstance(time, redis.RedisError):
            return
        answered_s = own_s()
        if not self.knows_time and answered_s - asked_s > _EXACT_S:
            # Rather behind than ahead: so nothing counts as too late that is not.
            asked_s = answered_s
        self.set_clock(wire.milliseconds(time), asked_s, answered_s)

    def set_clock(self, now_ms: int, asked_s: float, answered_s: float) -> None:
        """The broker's clock was `now_ms` at some moment between the question and the answer, by `own_s`."""
        if self._ahead_s is None and answered_s - asked_s > _EXACT_S:
            return  # a reading that has waited: a look-up asks again
        with self._lock:
            if asked_s > self._told_s:
                self._clock.is_now(now_ms, asked_s, answered_s)
                self._ahead_s = ahead_s(self._ahead_s, told_s=now_ms / 1000, asked_s=asked_s, answered_s=answered_s)
                self._told_s = asked_s

    def join(self, keys: StoreKeys) -> None:
        """Look up in this store from now on."""
        together = keys.in_calls(keys.partitions)
        self._call_of = {one.number: number for number, those in enumerate(together) for one in those}

    def look_up(self, deliveries: Sequence[Delivery]) -> tuple[dict[int, tuple[bytes | None, int]], set[int]]:
        """What is known of each command, by its 1-based index: the record, and whether there is a tombstone. A command
        of which nothing is known is left out. And the indexes of those whose node of a cluster is away."""
        calls: dict[int, list[int]] = {}  # the indexes of the commands of each call
        for index, delivery in enumerate(deliveries, 1):
            calls.setdefault(self._call_of[delivery.partition.number], []).append(index)
        asked = [self._asked([deliveries[index - 1] for index in those]) for those in calls.values()]
        # Usually a reading has told the time. Rejected: the time that recall.lua returns. Of a cluster, it is that of
        # the node of the command.
        asking = [] if self.knows_time else [_time()]
        known: dict[int, tuple[bytes | None, int]] = {}
        away: set[int] = set()
        asked_s = own_s()
        answers = partial.run_all(self._client, [*asked, *asking])
        for time in answers[len(asked) :]:
            self._answered(time, asked_s)
        for those, answer in zip(calls.values(), answers, strict=False):
            if isinstance(answer, redis.RedisError):
                away.update(those)
                continue
            _, *found = answer
            known |= {those[index - 1]: (record, tombstone) for index, record, tombstone in found}
        return known, away

    def _asked(self, deliveries: Sequence[Delivery]) -> Exchange[list[Any]]:
        hashes: dict[str, int] = {}
        args: list[str | int] = [DONE_KEPT_S]
        for delivery in deliveries:
            index = hashes.setdefault(delivery.done, len(hashes) + 1)
            args += (index, delivery.record, delivery.tombstone, int(delivery.command.compensating))
        return self._recall.call(list(hashes), args)

    def count(self, key: str, field: str, by: int) -> int:
        """What stands in a counter now that so many were added."""
        counting = scripting.even_if_full(key, "HINCRBY", key, field, by)
        times, _ = round_trip(self._client, [counting, ("EXPIRE", key, DONE_KEPT_S)])
        if is_wrong_type(times):
            return max(by, 0)  # that nothing can be recorded there is found out when the command is answered
        if isinstance(times, redis.ResponseError) and any(text in str(times) for text in _NO_COUNTER):
            times = -1
        if isinstance(times, Exception):
            raise times
        if not max(by, 0) <= times <= _MOST_COUNTED:  # it was damaged, which counts as none
            times = max(by, 0)
            or_raise(*round_trip(self._client, [scripting.even_if_full(key, "HSET", key, field, times)]))
        return int(times)

    def counted(self, fields: Iterable[tuple[str, Sequence[str]]]) -> list[int | None]:
        """For each key the highest of its counters in these fields; None: its node of a cluster is away."""
        found: list[int | None] = []
        for answer in round_trip(self._client, [("HMGET", key, *names) for key, names in fields]):
            if partial.passes_over(self._client, answer):
                found.append(None)
            else:
                found.append(0 if is_wrong_type(answer) else max(map(_number, or_raise(answer))))
        return found

    def unusable(self, deliveries: Iterable[Delivery], error: redis.ResponseError) -> set[str]:
        """Of the keys of the records of these commands, those that hold something else than a hash. Raises the error,
        with which a look-up or an answer failed, if that is not the reason."""
        unusable = self._no_hashes({delivery.done for delivery in deliveries}) if is_wrong_type(error) else set()
        if not unusable:
            raise error
        return unusable

    def _no_hashes(self, keys: Iterable[str]) -> set[str]:
        asked = sorted(keys)
        kinds = map(or_raise, round_trip(self._client, [("TYPE", key) for key in asked]))
        return {key for key, kind in zip(asked, kinds, strict=True) if kind not in (b"hash", b"none")}


def _time() -> Exchange[Any]:
    (time,) = yield [("TIME",)]
    return or_raise(time)


def _number(counted: bytes | None) -> int:
    return int(counted) if counted is not None and counted.isdigit() and len(counted) <= 6 else 0

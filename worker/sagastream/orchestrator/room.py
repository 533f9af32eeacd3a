"""Whether the store has room for more sagas. A worker looks along with its heartbeat, and says so if there is none.

Near its maxmemory, a store must drain: replies, timers and operators' requests go on, requests to begin sagas are left
unread, and clients are told (`begin.lua` looks at the key `full`).

Unread requests fill the memory, too, and only to read them takes them away. So they do not count: what counts is the
rest. It gets less by itself, since ended sagas and records expire, so begins are never left for ever. What the server
says of the size of a stream is an estimate, so a few begins are taken now and then all the same, unless the server is
far over its maxmemory.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import redis

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway, is_wrong_type
from sagastream.broker.scripting import even_if_full
from sagastream.broker.server import facts
from sagastream.broker.wire import or_raise
from sagastream.store.keys import FULL_KEPT_MS, Partition, StoreKeys
from sagastream.telemetry import Log

#: From this share of maxmemory on, without unread requests, no saga begins …
FULL_AT: Final = 0.8
#: … until it is less than this. In between it stays as it is, so that it does not change with each saga that ends.
ROOM_AT: Final = 0.7
#: How many unread requests a partition may have before clients are told to wait, unless a worker is told otherwise.
MOST_UNREAD: Final = 100_000
#: While there is no room, a few begins are taken once in so many seconds, up to this share of maxmemory.
_A_FEW_EVERY_S: Final = 10.0
_A_FEW_UNTIL: Final = 1.25
#: What PTTL says of a key that does not expire.
_FOR_EVER: Final = -1
#: How many nodes of a stream the server looks at to tell its size: it takes a millisecond for so many.
_SAMPLES: Final = 10_000


class Room:
    """The room of the store, as one worker sees it."""

    def __init__(self, who: str, most_unread: int = MOST_UNREAD) -> None:
        """`who`: the name of the worker, as its log records have it. `most_unread`: how many unread requests to begin
        sagas a partition may have."""
        self._log = Log("worker", who)
        self._most_unread = most_unread
        self._keys: StoreKeys | None = None
        self.most_bytes = 0  # maxmemory; 0: there is no limit
        self._used_bytes = 0
        self._take_at = 0.0  # when to take a few begins all the same
        #: Whether there is none for more sagas.
        self.is_full = False

    def join(self, keys: StoreKeys) -> None:
        """Look at this store from now on."""
        self._keys = keys

    def takes_a_few(self) -> bool:
        """Whether a few begins are to be taken now, although there is no room. It says so once."""
        now = time.monotonic()
        if now < self._take_at or self._used_bytes > _A_FEW_UNTIL * self.most_bytes:
            return False
        self._take_at = now + _A_FEW_EVERY_S
        return True

    def look(self, preferred: frozenset[int] | None = None) -> Exchange[None]:
        """Look, and tell clients if there is no room. If this user may not look, there is room.

        `preferred`: the numbers of the partitions whose clients this worker tells; None: of all.
        """
        assert self._keys is not None
        partitions = self._keys.partitions
        if preferred is not None:
            partitions = tuple(one for one in partitions if one.number in preferred)
        lengths: list[wire.Words] = [("XLEN", one.requests) for one in partitions]
        left: list[wire.Words] = [("PTTL", one.full) for one in partitions]
        info, *answers = yield [("INFO", "memory"), *lengths, *left]
        unread, left_ms = answers[: len(partitions)], answers[len(partitions) :]
        if not isinstance(info, NodeAway):  # a node of a cluster: another one tells it next time
            self._measured({} if isinstance(info, redis.ResponseError) else facts(info))
        rest = self._used_bytes
        if self.most_bytes and rest >= ROOM_AT * self.most_bytes:
            everywhere = self._keys.partitions
            sizes = yield [("MEMORY", "USAGE", one.requests, "SAMPLES", _SAMPLES) for one in everywhere]
            rest -= sum(size for size in sizes if isinstance(size, int))
        self._judge(rest)
        if told := [*_outlived(partitions, left_ms), *self._told(partitions, unread)]:
            for answer in (yield told):
                if not is_wrong_type(answer):
                    or_raise(answer)

    def _measured(self, memory: Mapping[str, str]) -> None:
        """`memory`: what INFO says of it. What replicas and the append-only file wait for does not count."""
        self.most_bytes = int(memory.get("maxmemory", 0))
        self._used_bytes = int(memory.get("used_memory", 0)) - int(memory.get("mem_not_counted_for_evict", 0))

    def _judge(self, rest: int) -> None:
        """`rest`: how many bytes are used, without unread requests."""
        share = rest / self.most_bytes if self.most_bytes else 0.0
        if share >= FULL_AT and not self.is_full:
            self.is_full = True
            self._take_at = time.monotonic() + _A_FEW_EVERY_S
            self._log.warning(
                f"the store is full: {share:.0%} of maxmemory is used, without requests to begin sagas. These stay "
                f"unread until it is less than {ROOM_AT:.0%}, and what has begun goes on; see sagastream doctor"
            )
        elif share < ROOM_AT and self.is_full:
            self.is_full = False
            self._log.warning("the store has room again: sagas begin again")

    def _told(self, partitions: tuple[Partition, ...], unread: list[Any]) -> Iterator[wire.Words]:
        """What tells clients that there is no room, for each partition that has none."""
        used = f"{self._used_bytes / (self.most_bytes or 1):.0%} of maxmemory is used"
        for partition, number in zip(partitions, unread, strict=True):
            waiting = number if isinstance(number, int) else 0
            at_most = f"at most {self._most_unread} may (sagastream worker --max-unread)"
            why = used if self.is_full else f"{waiting} requests to begin sagas wait, and {at_most}"
            if self.is_full or waiting > self._most_unread:
                yield even_if_full(partition.full, "SET", partition.full, why, "PX", FULL_KEPT_MS)


def _outlived(partitions: tuple[Partition, ...], left_ms: list[Any]) -> Iterator[wire.Words]:
    """Deletes what tells clients for longer than a worker ever says it: the server's clock was set back since, or its
    expiry was taken away."""
    for partition, left in zip(partitions, left_ms, strict=True):
        if isinstance(left, int) and (left == _FOR_EVER or left > FULL_KEPT_MS):
            yield "DEL", partition.full

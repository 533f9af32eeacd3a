"""What a worker repairs after the store has gone on from another moment: a failover, a restart, a restored file.

It looks at all sagas and their places, as `sagastream doctor --repair` does, one small page each time. What is wrong is
set right and told.

A failover of one server throws all of a partition back to one moment, and a commit is whole or not there. So there is
usually nothing to set right. But nobody should have to rely on that: a file may be restored in part, and a saga that is
in no timer would stand still for ever, and be in no list.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import redis

from sagastream.broker.exchange import run
from sagastream.broker.failures import is_outage
from sagastream.core.messages import is_id
from sagastream.errors import CorruptSaga
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.places import examined, strays, waited_for_in_vain, without
from sagastream.store.keys import Partition, StoreKeys
from sagastream.telemetry import Log

#: At most how many sagas one step looks at; and how long a step may take before the next one is smaller, in seconds.
#: The server reads the sagas of a step in one transaction, while nobody else gets an answer: 64 sagas of 50 steps take
#: it 1.3 ms, and this process ten times as long.
PAGE: Final = 64
_LONG_S: Final = 0.01
#: About how many names of keys, or members of an index, one step looks at.
_LOOKED_AT: Final = 256
#: For how long a worker also looks at what it has left to others, if that becomes its own, in seconds: they may have
#: died before they looked at it.
_TAKES_OVER_S: Final = 600.0
_STRAY: Final = "was in an index where it does not belong"
_IN_VAIN: Final = "was waited for, and is gone"
_UNLISTED: Final = "was in no index"
_NO_ID: Final = "was waited for, and is not the id of a saga"
_UNREADABLE: Final = "cannot be read"


class Repair:
    """The repair of one worker. It does nothing until it is asked to begin."""

    def __init__(self, client: "redis.Redis", store: Store, who: str, *, lease_ms: int) -> None:
        """`who`: the name of the worker, as its log records have it. `lease_ms`: for how long it leases what is due."""
        self._client = client
        self._store = store
        self._log = Log("worker", who)
        self._lease_ms = lease_ms
        self._steps: Iterator[None] | None = None  # None: there is nothing to do
        self._keys: StoreKeys | None = None
        self._partitions: frozenset[Partition] = frozenset()  # at which it looks
        self._left: set[Partition] = set()  # of those, some of which it has left to others
        self._takes_over_until = 0.0
        self._preferred: frozenset[int] = frozenset()  # the numbers of those that are its own now
        self._size = PAGE  # of the next page
        self._looked_at = 0
        self._mended: Counter[str] = Counter()  # how often what was set right
        self._cannot: Counter[str] = Counter()  # … and what was not
        self._indexes: list[tuple[Partition, str]] = []  # those that _sagas has found

    def begin(self, keys: StoreKeys) -> None:
        """Look at all sagas. If a repair is under way, begin anew."""
        self._takes_over_until = time.monotonic() + _TAKES_OVER_S
        self._look_at(keys, frozenset(keys.partitions))

    def _look_at(self, keys: StoreKeys, partitions: frozenset[Partition]) -> None:
        self._keys = keys
        self._partitions = partitions
        self._left = set()
        self._looked_at = 0
        self._mended.clear()
        self._cannot.clear()
        self._indexes = []
        self._steps = self._pages()

    def step(self, preferred: Collection[Partition]) -> bool:
        """Look at the next page, if there is one. Returns whether there is another one.

        Raises redis.RedisError for an outage; then the next call begins anew. What the server refuses for another
        reason ends the repair, and nothing else: this user may not do it.

        Args:
            preferred: the partitions that are this worker's now. It leaves the others to other workers.
        """
        self._preferred = frozenset(partition.number for partition in preferred)
        if self._steps is None:
            if not self._left or time.monotonic() > self._takes_over_until:
                return False
            if not (mine := self._left.intersection(preferred)):
                return False
            assert self._keys is not None
            left = self._left - mine
            self._look_at(self._keys, frozenset(mine))
            self._left = left
        assert self._keys is not None
        assert self._steps is not None
        try:
            if next(self._steps, self) is self:
                self._steps = None
                self._tell()
        except redis.RedisError as error:
            self._look_at(self._keys, self._partitions | self._left)
            if is_outage(error) or not isinstance(error, redis.ResponseError):
                raise
            self._steps = None
            text = f"cannot check whether each saga stands where it should: {error}"
            self._log.warning(f"{text}; sagastream doctor --repair does it")
        return self._steps is not None

    def _is_mine(self, partition: Partition) -> bool:
        """Whether to look at this now. If it is another worker's, notes that something of it was left out."""
        if partition not in self._partitions:
            return False
        if partition.number in self._preferred:
            return True
        self._left.add(partition)
        return False

    def _pages(self) -> Iterator[None]:
        yield from self._sagas()
        for partition in self._partitions:
            for members in self._members(partition.timers) if self._is_mine(partition) else ():
                self._in_vain(partition, members)
                yield
        for partition, name in [*((one, None) for one in self._partitions), *self._indexes]:
            if not self._is_mine(partition):
                continue
            key = partition.begun if name is None else partition.index(name)
            for members in self._members(key):
                if found := run(self._client, strays(partition, key, name, members)):
                    self._take_out(partition, key, name, found)
                yield

    def _sagas(self) -> Iterator[None]:
        """Look at all sagas, and note which indexes there are: one SCAN names both."""
        assert self._keys is not None
        collected: dict[Partition, list[str]] = {}  # a page of SCAN has sagas of all partitions, a few of each
        cursor, has_more = 0, True
        while has_more:
            page: Any = self._client.scan(cursor, match=f"{self._keys.prefix}:{{*}}:[si]*", count=_LOOKED_AT)
            cursor, names = page
            has_more = cursor != 0
            for name in dict.fromkeys(key.decode(errors="backslashreplace") for key in names):
                partition = self._keys.partition_of(name)
                if partition is None or not self._is_mine(partition):
                    continue
                if name.startswith(partition.index("")):
                    self._indexes.append((partition, name.removeprefix(partition.index(""))))
                elif name.startswith(partition.saga("")) and is_id(saga_id := partition.saga_id(name)):
                    collected.setdefault(partition, []).append(saga_id)
            yield
            for partition, saga_ids in collected.items():
                while len(saga_ids) >= self._size or (saga_ids and not has_more):
                    some = saga_ids[: self._size]
                    del saga_ids[: self._size]
                    self._timed_page(partition, some)
                    yield
        self._indexes = list(dict.fromkeys(self._indexes))

    def _timed_page(self, partition: Partition, saga_ids: Sequence[str]) -> None:
        """Look at these. If that takes long, the next page is smaller."""
        began = time.monotonic()
        self._page(partition, saga_ids)
        is_long = time.monotonic() - began > _LONG_S
        self._size = max(1, len(saga_ids) // 2) if is_long else min(2 * self._size, PAGE)

    def _page(self, partition: Partition, saga_ids: Sequence[str]) -> None:
        now_ms, page = run(self._client, examined(partition, saga_ids, self._lease_ms))
        self._looked_at += len(page)
        self._cannot[_UNREADABLE] += sum(isinstance(one.found, CorruptSaga) for one in page)
        if mends := [one.mend for one in page if one.mend is not None]:
            lost, stuck = self._store.commit(mends, now_ms)
            not_written = {id(change) for change in (*lost, *stuck)}
            for one in page:
                if one.mend is not None and id(one.mend) not in not_written:  # else it has moved, and is right by now
                    self._mended.update(one.wrong or (_UNLISTED,))

    def _in_vain(self, partition: Partition, members: Sequence[bytes]) -> None:
        no_ids, missing = run(self._client, waited_for_in_vain(partition, members))
        if no_ids:
            self._client.zrem(partition.timers, *no_ids)
            self._mended[_NO_ID] += len(no_ids)
        if missing:
            lost, _ = self._store.commit(missing, 0)
            self._mended[_IN_VAIN] += len(missing) - len(lost)

    def _take_out(self, partition: Partition, key: str, name: str | None, found: Sequence[bytes]) -> None:
        assert self._keys is not None
        changes, no_ids, now_ms = run(self._client, without(self._keys, partition, name, found))
        lost, _ = self._store.commit(changes, now_ms)
        if no_ids:
            self._client.zrem(key, *no_ids)
        self._mended[_STRAY] += len(changes) - len(lost) + len(no_ids)

    def _members(self, key: str) -> Iterator[list[bytes]]:
        cursor, has_more = 0, True
        while has_more:
            try:
                page: Any = self._client.zscan(key, cursor, count=_LOOKED_AT)
            except redis.ResponseError:
                return  # it is no zset: `sagastream doctor` says so
            cursor, found = page
            has_more = cursor != 0
            yield list(dict.fromkeys(member for member, _ in found))

    def _tell(self) -> None:
        looked_at = f"looked at {self._looked_at:,} sagas, since the store has another history"
        mended, cannot = +self._mended, +self._cannot
        if mended:
            self._log.warning(f"{looked_at}; set right: {_listed(mended)}")
        if cannot:
            self._log.error(f"{looked_at}; not set right: {_listed(cannot)}; see sagastream doctor")
        if not (mended or cannot):
            self._log.info(f"{looked_at}: each stands where it should")


def _listed(counted: Counter[str]) -> str:
    return "; ".join(f"{number:,} (each {what})" for what, number in counted.items())

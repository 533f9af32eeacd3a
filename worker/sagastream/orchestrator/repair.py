"""What a worker repairs after the store has gone on from another moment: a failover, a restart, a restored file.

It looks at all sagas and their places, as `sagastream doctor --repair` does, one small page each time. What is wrong is
set right and told.

A failover of one server throws all of a partition back to one moment, and a commit is whole or not there. So there is
usually nothing to set right. But nobody should have to rely on that: a file may be restored in part, and a saga that is
in no timer would stand still for ever, and be in no list.

On one server a round looks at all partitions: one SCAN finds the sagas of all. On a cluster it looks at one: others may
have gone on without a break, and the node of one may be away while those of others are not.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import redis
from msgspec import Struct, field

from sagastream.broker import wire
from sagastream.broker.exchange import run
from sagastream.broker.failures import is_outage
from sagastream.broker.partial import passes_over
from sagastream.broker.wire import or_raise
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
#: After how many seconds it tries again to look at a partition of a cluster whose node was away.
_TRY_AGAIN_S: Final = 1.0
#: For how long a worker also looks at what it has left to others, if that becomes its own, in seconds: they may have
#: died before they looked at it.
_TAKES_OVER_S: Final = 600.0
_STRAY: Final = "was in an index where it does not belong"
_IN_VAIN: Final = "was waited for, and is gone"
_UNLISTED: Final = "was in no index"
_NO_ID: Final = "was waited for, and is not the id of a saga"
_UNREADABLE: Final = "cannot be read"


class _Found(Struct):
    """What was found, of one round or of several."""

    looked_at: int = 0
    mended: Counter[str] = field(default_factory=Counter)  # how often what was set right
    cannot: Counter[str] = field(default_factory=Counter)  # … and what was not

    def add(self, other: "_Found") -> None:
        self.looked_at += other.looked_at
        self.mended += other.mended
        self.cannot += other.cannot


class _Round(Struct):
    """A look at all sagas of some partitions."""

    partitions: frozenset[Partition]
    left: set[Partition] = field(default_factory=set)  # of those, some of which it has left to others
    found: _Found = field(default_factory=_Found)
    indexes: dict[tuple[Partition, str], None] = field(default_factory=dict)  # those that _sagas has found
    steps: Iterator[None] = iter(())


class Repair:
    """The repair of one worker. It does nothing until it is asked to begin."""

    def __init__(self, client: "redis.Redis", store: Store, who: str, *, lease_ms: int) -> None:
        """`who`: the name of the worker, as its log records have it. `lease_ms`: for how long it leases what is due."""
        self._client = client
        self._store = store
        self._log = Log("worker", who)
        self._lease_ms = lease_ms
        self._keys: StoreKeys | None = None
        #: The partitions at which it has still to look, if they are its own; and when the next round may look at each.
        self._owed: dict[Partition, float] = {}
        self._takes_over_until = 0.0
        self._round: _Round | None = None  # None: none is under way
        self._found = _Found()  # by all rounds since it last told of them
        self._preferred: frozenset[int] = frozenset()  # the numbers of the partitions that are its own now
        self._size = PAGE  # of the next page

    @property
    def is_under_way(self) -> bool:
        """Whether a round has begun."""
        return self._round is not None

    def begin(self, keys: StoreKeys, partitions: Sequence[Partition]) -> None:
        """Look at all sagas of these partitions. If a repair of them is under way, begin anew."""
        self._keys = keys
        self._takes_over_until = time.monotonic() + _TAKES_OVER_S
        self._owed |= dict.fromkeys(partitions, 0.0)
        if self._round is not None and not self._round.partitions.isdisjoint(partitions):
            self._round = None

    def step(self, preferred: Collection[Partition]) -> bool:
        """Look at the next page, if there is one. Returns whether there is another one.

        Raises redis.RedisError for an outage; then the next call begins anew. On a cluster it looks at the others
        meanwhile. What the server refuses for another reason ends the repair, and nothing else: this user may not do
        it.

        Args:
            preferred: the partitions that are this worker's now. It leaves the others to other workers.
        """
        self._preferred = frozenset(partition.number for partition in preferred)
        one = self._round = self._round or self._next_round()
        if one is None:
            return False
        try:
            if next(one.steps, self) is self:
                self._round = None
                self._finished(one)
        except redis.RedisError as error:
            self._round = None
            self._failed(one, error)
        return self._round is not None or self._is_any_mine()

    def _next_round(self) -> _Round | None:
        now_s = time.monotonic()
        mine = {partition: at_s for partition, at_s in self._owed.items() if partition.number in self._preferred}
        if now_s > self._takes_over_until:
            self._owed = mine.copy()  # the others have looked at theirs
        assert self._keys is not None or not mine
        if self._keys is not None and self._keys.apart:
            mine = dict.fromkeys([one for one, at_s in mine.items() if at_s <= now_s][:1], 0.0)
        if not mine:
            return None
        one = _Round(frozenset(mine))
        one.steps = self._pages(one)
        return one

    def _is_any_mine(self) -> bool:
        return any(partition.number in self._preferred for partition in self._owed)

    def _finished(self, one: _Round) -> None:
        self._found.add(one.found)
        for partition in one.partitions - one.left:
            self._owed.pop(partition, None)
        if not self._is_any_mine():
            self._tell()

    def _failed(self, one: _Round, error: redis.RedisError) -> None:
        if passes_over(self._client, error):
            self._owed |= dict.fromkeys(one.partitions, time.monotonic() + _TRY_AGAIN_S)
            return
        if is_outage(error) or not isinstance(error, redis.ResponseError):
            raise error
        for partition in one.partitions:
            self._owed.pop(partition, None)
        text = f"cannot check whether each saga stands where it should: {error}"
        self._log.warning(f"{text}; sagastream doctor --repair does it")

    def _is_mine(self, one: _Round, partition: Partition) -> bool:
        """Whether to look at this now. If it is another worker's, notes that something of it was left out."""
        if partition not in one.partitions:
            return False
        if partition.number in self._preferred:
            return True
        one.left.add(partition)
        return False

    def _pages(self, one: _Round) -> Iterator[None]:
        assert self._keys is not None
        if self._keys.apart:
            (partition,) = one.partitions
            node = self._node_of(partition)
            yield from self._sagas(one, f"{partition.base}[si]*")
            if self._node_of(partition) != node:  # the SCAN was of two nodes, half of each
                one.left.add(partition)
                return
        else:
            yield from self._sagas(one, f"{self._keys.prefix}:{{*}}:[si]*")
        for partition in one.partitions:
            for members in self._members(partition.timers) if self._is_mine(one, partition) else ():
                self._in_vain(one, partition, members)
                yield
        for partition, name in [*((each, None) for each in one.partitions), *one.indexes]:
            if not self._is_mine(one, partition):
                continue
            key = partition.begun if name is None else partition.index(name)
            for members in self._members(key):
                if found := run(self._client, strays(partition, key, name, members)):
                    self._take_out(one, partition, key, name, found)
                yield

    def _node_of(self, partition: Partition) -> bytes:
        """The id of the node of a cluster that holds this partition; empty: this user may not ask."""
        asked: list[wire.Words] = [("EXISTS", partition.timers), ("CLUSTER", "MYID")]
        wire.round_trip(self._client, asked[:1])  # if it has moved, its own node answers from now on
        there, node = wire.round_trip(self._client, asked)
        or_raise(there)
        return node if isinstance(node, bytes) else b""

    def _sagas(self, one: _Round, pattern: str) -> Iterator[None]:
        """Look at all sagas, and note which indexes there are: one SCAN names both."""
        assert self._keys is not None
        collected: dict[Partition, list[str]] = {}  # a page of SCAN has sagas of all partitions, a few of each
        cursor, has_more = 0, True
        while has_more:
            page: Any = self._client.scan(cursor, match=pattern, count=_LOOKED_AT)
            cursor, names = page
            has_more = cursor != 0
            for name in dict.fromkeys(key.decode(errors="backslashreplace") for key in names):
                partition = self._keys.partition_of(name)
                if partition is None or not self._is_mine(one, partition):
                    continue
                if name.startswith(partition.index("")):
                    one.indexes[partition, name.removeprefix(partition.index(""))] = None
                elif name.startswith(partition.saga("")) and is_id(saga_id := partition.saga_id(name)):
                    collected.setdefault(partition, []).append(saga_id)
            yield
            for partition, saga_ids in collected.items():
                while len(saga_ids) >= self._size or (saga_ids and not has_more):
                    some = saga_ids[: self._size]
                    del saga_ids[: self._size]
                    self._timed_page(one, partition, some)
                    yield

    def _timed_page(self, one: _Round, partition: Partition, saga_ids: Sequence[str]) -> None:
        """Look at these. If that takes long, the next page is smaller."""
        began = time.monotonic()
        self._page(one, partition, saga_ids)
        is_long = time.monotonic() - began > _LONG_S
        self._size = max(1, len(saga_ids) // 2) if is_long else min(2 * self._size, PAGE)

    def _page(self, one: _Round, partition: Partition, saga_ids: Sequence[str]) -> None:
        now_ms, page = run(self._client, examined(partition, saga_ids, self._lease_ms))
        one.found.looked_at += len(page)
        one.found.cannot[_UNREADABLE] += sum(isinstance(each.found, CorruptSaga) for each in page)
        if mends := [each.mend for each in page if each.mend is not None]:
            lost, stuck = self._store.commit(mends, now_ms)
            not_written = {id(change) for change in (*lost, *stuck)}
            for each in page:
                if each.mend is not None and id(each.mend) not in not_written:  # else it has moved, and is right by now
                    one.found.mended.update(each.wrong or (_UNLISTED,))

    def _in_vain(self, one: _Round, partition: Partition, members: Sequence[bytes]) -> None:
        no_ids, missing = run(self._client, waited_for_in_vain(partition, members))
        if no_ids:
            self._client.zrem(partition.timers, *no_ids)
            one.found.mended[_NO_ID] += len(no_ids)
        if missing:
            lost, _ = self._store.commit(missing, 0)
            one.found.mended[_IN_VAIN] += len(missing) - len(lost)

    def _take_out(self, one: _Round, partition: Partition, key: str, name: str | None, found: Sequence[bytes]) -> None:
        assert self._keys is not None
        changes, no_ids, now_ms = run(self._client, without(self._keys, partition, name, found))
        lost, _ = self._store.commit(changes, now_ms)
        if no_ids:
            self._client.zrem(key, *no_ids)
        one.found.mended[_STRAY] += len(changes) - len(lost) + len(no_ids)

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
        found, self._found = self._found, _Found()
        looked_at = f"looked at {found.looked_at:,} sagas, since the store has another history"
        mended, cannot = +found.mended, +found.cannot
        if mended:
            self._log.warning(f"{looked_at}; set right: {_listed(mended)}")
        if cannot:
            self._log.error(f"{looked_at}; not set right: {_listed(cannot)}; see sagastream doctor")
        if not (mended or cannot):
            self._log.info(f"{looked_at}: each stands where it should")


def _listed(counted: Counter[str]) -> str:
    return "; ".join(f"{number:,} (each {what})" for what, number in counted.items())

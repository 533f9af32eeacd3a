"""Sets right what workers of an earlier release leave wrong in the indexes.

Such a worker begins, moves and sweeps sagas, and knows nothing of indexes. The heartbeat shows it. So do numbers: each
saga is in `begun`, and in `timers` or `ended`; if the numbers differ, `begun` has too few or too many. While either
shows such a worker, and once after that, this worker goes through the live sagas and those that ended lately. Each call
does a bounded part of that, between two turns.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import redis

from sagastream.broker.exchange import run
from sagastream.broker.partial import passes_over
from sagastream.broker.wire import execute
from sagastream.core.messages import is_id
from sagastream.orchestrator.change import gone
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.places import examined
from sagastream.orchestrator.sweeping import slices
from sagastream.store import heartbeat
from sagastream.store.heartbeat import Kind
from sagastream.store.keys import Partition, StoreKeys

#: About how many members of a zset one step looks at.
_LOOKED_AT: Final = 500
#: How many hashes one step reads.
_READ: Final = 50
#: For how long a worker of an earlier release counts after it was last heard, in milliseconds: it may have been killed.
_HEARD_MS: Final = 60_000
#: A worker that starts beside one of an earlier release also looks at sagas that ended this long before, in
#: milliseconds: others of this release may have put them into indexes, and died.
_BEFORE_MS: Final = 3_600_000
#: … and in this time before its last look: a commit takes a moment, and has the time of its turn.
_MARGIN_MS: Final = 60_000


class _Count(NamedTuple):
    """How many sagas there are, by their places."""

    kept: int  # in timers and ended
    begun: int


class Mending:
    """What one worker sets right."""

    def __init__(self, client: "redis.Redis", store: Store, *, lease_ms: int) -> None:
        """`lease_ms`: for how long a worker leases what is due."""
        self._client = client
        self._store = store
        self._lease_ms = lease_ms
        self._passes: dict[Partition, Iterator[None]] = {}  # those under way
        #: How many were still missing after a pass, or too many, and would be after the next one.
        self._cannot: dict[Partition, int] = {}
        self._lost: dict[Partition, int] = {}  # how many had moved when the pass under way wrote them
        #: Where live sagas may be in wrong indexes, and those that have ended since this time, ms.
        self._unsure: dict[Partition, int] = {}

    def forget(self, partitions: Sequence[Partition]) -> None:
        """What was found of these partitions is of another moment."""
        for partition in partitions:
            for known in (self._passes, self._cannot, self._lost, self._unsure):
                known.pop(partition, None)

    @property
    def goes_on(self) -> bool:
        """Whether there is more to do at once."""
        return bool(self._passes)

    def look(self, keys: StoreKeys, partitions: Sequence[Partition], now_ms: int) -> None:
        """Look whether something may be wrong in these partitions. `now_ms`: the broker's time."""
        is_beside = self._is_beside(keys)
        for partition in partitions:
            if is_beside:
                self._unsure.setdefault(partition, now_ms - _BEFORE_MS)
            if partition in self._passes:
                continue
            count, cannot = self._count(partition), self._cannot.get(partition, 0)
            parts: list[Iterator[None]] = []
            if (missing := count.kept - count.begun) > max(cannot, 0):
                parts.append(self._fill(partition))
                if count.begun:  # else no worker of this release has ever moved a saga of this store
                    self._unsure.setdefault(partition, 0)
            elif missing < min(cannot, 0):
                parts.append(self._find_expired(partition))
            if (since_ms := self._unsure.pop(partition, None)) is not None:
                parts.append(self._check(partition, since_ms))
                if is_beside:
                    self._unsure[partition] = now_ms - _MARGIN_MS
            if parts:
                self._passes[partition] = chain(*parts)

    def step(self) -> None:
        """Do the next part, of one partition."""
        partition = next(iter(self._passes))
        steps = self._passes.pop(partition)
        if next(steps, self) is not self:
            self._passes[partition] = steps  # the others come first
            return
        count, lost = self._count(partition), self._lost.pop(partition, 0)
        self._cannot[partition] = count.kept - count.begun - lost

    def _is_beside(self, keys: StoreKeys) -> bool:
        """Whether a worker of an earlier release runs, or has just run."""
        try:
            processes = heartbeat.processes(self._client, keys)
        except redis.RedisError as error:
            if passes_over(self._client, error):
                return False  # the node is away that knows; an earlier release knows no cluster
            raise
        return any(
            one.kind == Kind.WORKER and not one.writes_indexes and abs(one.silent_ms) <= _HEARD_MS for one in processes
        )

    def _count(self, partition: Partition) -> _Count:
        """A full Redis refuses what MULTI queues, even to read; then there is no room for more in the indexes anyway:
        none are missing."""
        pipeline = self._client.pipeline(transaction=True)  # a commit changes two of them
        for key in (partition.timers, partition.ended, partition.begun):
            pipeline.zcard(key)
        try:
            live, ended, begun = execute(pipeline)
        except (redis.OutOfMemoryError, redis.exceptions.ExecAbortError):
            return _Count(0, 0)
        return _Count(live + ended, begun)

    # --- what a pass does

    def _fill(self, partition: Partition) -> Iterator[None]:
        """Put those in that are in no index."""
        for key in (partition.timers, partition.ended):
            for saga_ids in self._members(key, _LOOKED_AT):
                scores: Any = self._client.zmscore(partition.begun, saga_ids) if saga_ids else []
                missing = [saga_id for saga_id, score in zip(saga_ids, scores, strict=True) if score is None]
                for some in slices(missing):
                    self._set_right(partition, some)
                yield

    def _check(self, partition: Partition, since_ms: int) -> Iterator[None]:
        """Set right the live ones, and those that have ended since this time."""
        try:
            yield from self._checked(partition, since_ms)
        except redis.RedisError:
            self._unsure.setdefault(partition, since_ms)  # what it had still to look at
            raise
        if self._lost.get(partition):
            self._unsure.setdefault(partition, since_ms)

    def _checked(self, partition: Partition, since_ms: int) -> Iterator[None]:
        for saga_ids in self._members(partition.timers, _READ):
            for at in range(0, len(saga_ids), _READ):
                self._set_right(partition, saga_ids[at : at + _READ])
                yield
        for saga_ids in self._ended_since(partition, since_ms):
            self._set_right(partition, saga_ids)
            yield

    def _find_expired(self, partition: Partition) -> Iterator[None]:
        """Put those of begun that have no hash into `ended` again, for the next sweep: a worker of an earlier release
        has swept them out of `ended` alone."""
        for saga_ids in self._members(partition.begun, _LOOKED_AT):
            pipeline = self._client.pipeline(transaction=False)
            for saga_id in saga_ids:
                pipeline.exists(partition.saga(saga_id))
            expired = [one for one, is_there in zip(saga_ids, execute(pipeline), strict=True) if not is_there]
            for some in slices(expired):
                self._store.commit([gone(partition, saga_id) for saga_id in some], 0)
            yield

    def _members(self, key: str, count: int) -> Iterator[list[str]]:
        cursor, has_more = 0, True
        while has_more:
            page: Any = self._client.zscan(key, cursor, count=count)
            cursor, found = page
            has_more = cursor != 0
            yield [text for member, _ in found if is_id(text := member.decode(errors="backslashreplace"))]

    def _ended_since(self, partition: Partition, since_ms: int) -> Iterator[list[str]]:
        """The last first. If more end meanwhile, some come twice."""
        first, has_more = 0, True
        while has_more:
            page: Any = self._client.zrevrange(partition.ended, first, first + _READ - 1, withscores=True)
            recent = [member.decode(errors="backslashreplace") for member, score in page if score >= since_ms]
            yield [saga_id for saga_id in recent if is_id(saga_id)]
            first += len(page)
            has_more = len(recent) == _READ

    def _set_right(self, partition: Partition, saga_ids: Sequence[str]) -> None:
        """Put these sagas into all their indexes, and take them out of others, unless all that is so already."""
        if not saga_ids:
            return
        now_ms, page = run(self._client, examined(partition, saga_ids, self._lease_ms))
        changes = [one.mend for one in page if one.mend is not None]
        if changes:
            # One that has moved meanwhile is set right by the next pass.
            lost, _ = self._store.commit(changes, now_ms)
            self._lost[partition] = self._lost.get(partition, 0) + len(lost)

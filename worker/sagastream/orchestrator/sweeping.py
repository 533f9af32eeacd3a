"""What a worker does about the indexes now and then: it takes out sagas that have expired, and puts in those that an
earlier release has begun. Each call does a bounded part of it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import redis

from sagastream.broker import exchange
from sagastream.broker.scripting import Script
from sagastream.broker.wire import execute
from sagastream.core.messages import is_id
from sagastream.core.saga import SagaState
from sagastream.orchestrator.change import filled, gone, swept
from sagastream.orchestrator.commit import Store
from sagastream.store import sagas
from sagastream.store.indexes import names_in
from sagastream.store.keys import Partition, StoreKeys

#: How many ended sagas one round trip looks at, and how many round trips there are at most each time.
_PAGE: Final = 500
_PAGES: Final = 40
#: How many sagas are changed in one call.
_AT_ONCE: Final = 100
#: How many members of an index one step of filling looks at, about.
_LOOKED_AT: Final = 500
_SWEEP: Final = Script("sweep")


class Sweep:
    """Takes expired sagas out of the indexes."""

    def __init__(self, client: "redis.Redis", store: Store) -> None:
        self._client = client
        self._store = store
        #: How many ended sagas of each partition, from the oldest, are known to be there still.
        self._there: dict[Partition, int] = {}

    def sweep(self, keys: StoreKeys) -> None:
        """Take out the sagas whose hash has expired. If there are many, each call looks at some of them."""
        _, now_ms = sagas.read(self._client, keys, [])
        for partition in keys.partitions:
            self._sweep(partition, now_ms)

    def _sweep(self, partition: Partition, now_ms: int) -> None:
        there = self._there.get(partition, 0)
        until_ms = now_ms - self._store.least_kept_ms
        for _ in range(_PAGES):
            page: Any = self._client.zrangebyscore(partition.ended, "-inf", until_ms, there, _PAGE)
            saga_ids = [saga_id.decode(errors="backslashreplace") for saga_id in page]
            if strangers := [member for member, text in zip(page, saga_ids, strict=True) if not is_id(text)]:
                self._client.zrem(partition.ended, *strangers)  # sagastream did not write them there
            saga_ids = [saga_id for saga_id in saga_ids if is_id(saga_id)]
            if saga_ids:
                there += self._swept(partition, saga_ids, now_ms)
            if len(page) < _PAGE:
                there = 0
                break
        self._there[partition] = there

    def _swept(self, partition: Partition, saga_ids: Sequence[str], now_ms: int) -> int:
        """Returns how many are left in `ended`: they are there still, or were begun again meanwhile."""
        names = [partition.ended, partition.begun, partition.indexed, *map(partition.saga, saga_ids)]
        there, left = exchange.run(self._client, _SWEEP.call(names, list(saga_ids)))
        changes = [
            swept(partition, saga_id.decode(), names_in(told))
            for saga_id, told in zip(left[::2], left[1::2], strict=True)
        ]
        lost = 0
        for some in _slices(changes):
            lost += len(self._store.commit(some, now_ms)[0])
        return int(there) + lost


class Filling:
    """Puts sagas into the indexes that are in none, because a worker of an earlier release has begun them; and finds
    those whose hash has expired, and that such a worker has swept out of `ended` alone. Each saga is in timers or
    ended, and in begun: if the numbers of members differ, all are looked at once."""

    def __init__(self, client: "redis.Redis", store: Store) -> None:
        self._client = client
        self._store = store
        self._passes: dict[Partition, Iterator[None]] = {}  # those under way
        #: How many were still missing after a pass, or too many, and would be after the next one.
        self._cannot: dict[Partition, int] = {}
        self._lost: dict[Partition, int] = {}  # how many had moved when the pass under way wrote them

    @property
    def goes_on(self) -> bool:
        """Whether there is more to do at once."""
        return bool(self._passes)

    def look(self, keys: StoreKeys) -> None:
        """Look whether sagas are missing, or too many."""
        for partition in keys.partitions:
            if partition in self._passes:
                continue
            missing, cannot = self._missing(partition), self._cannot.get(partition, 0)
            if missing > max(cannot, 0):
                self._passes[partition] = self._fill(keys, partition)
            elif missing < min(cannot, 0):
                self._passes[partition] = self._find_expired(partition)

    def step(self) -> None:
        """Do the next part, of each partition in which sagas are missing."""
        for partition, steps in list(self._passes.items()):
            if next(steps, self) is self:
                del self._passes[partition]
                self._cannot[partition] = self._missing(partition) - self._lost.pop(partition, 0)

    def _missing(self, partition: Partition) -> int:
        """How many sagas are missing. A full Redis refuses what MULTI queues, even to read; then there is no room for
        more in the indexes anyway."""
        pipeline = self._client.pipeline(transaction=True)  # a commit changes two of them
        for key in (partition.timers, partition.ended, partition.begun):
            pipeline.zcard(key)
        try:
            live, ended, begun = pipeline.execute()
        except (redis.OutOfMemoryError, redis.exceptions.ExecAbortError):
            return 0
        return int(live + ended - begun)

    def _fill(self, keys: StoreKeys, partition: Partition) -> Iterator[None]:
        for key in (partition.timers, partition.ended):
            for saga_ids in self._members(key):
                self._put_in(keys, partition, saga_ids)
                yield

    def _find_expired(self, partition: Partition) -> Iterator[None]:
        """Put those of begun that have no hash into `ended` again, for the next sweep."""
        for saga_ids in self._members(partition.begun):
            pipeline = self._client.pipeline(transaction=False)
            for saga_id in saga_ids:
                pipeline.exists(partition.saga(saga_id))
            expired = [one for one, is_there in zip(saga_ids, execute(pipeline), strict=True) if not is_there]
            for some in _slices(expired):
                self._store.commit([gone(partition, saga_id) for saga_id in some], 0)
            yield

    def _members(self, key: str) -> Iterator[list[str]]:
        cursor, has_more = 0, True
        while has_more:
            page: Any = self._client.zscan(key, cursor, count=_LOOKED_AT)
            cursor, found = page
            has_more = cursor != 0
            yield [text for member, _ in found if is_id(text := member.decode(errors="backslashreplace"))]

    def _put_in(self, keys: StoreKeys, partition: Partition, saga_ids: Sequence[str]) -> None:
        if not saga_ids:
            return
        scores: Any = self._client.zmscore(partition.begun, list(saga_ids))
        missing = [saga_id for saga_id, score in zip(saga_ids, scores, strict=True) if score is None]
        for some in _slices(missing):
            states, now_ms = sagas.read(self._client, keys, some)
            changes = [filled(partition, state) for state in states.values() if isinstance(state, SagaState)]
            if changes:
                # One that has moved meanwhile is put in by the next pass.
                lost, _ = self._store.commit(changes, now_ms)
                self._lost[partition] = self._lost.get(partition, 0) + len(lost)


def _slices(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE))

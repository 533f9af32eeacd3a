"""Takes expired sagas out of the indexes, now and then. Each call does a bounded part of it."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import redis

from sagastream.broker import exchange
from sagastream.broker.scripting import Script
from sagastream.core.messages import is_id
from sagastream.orchestrator.change import swept
from sagastream.orchestrator.commit import Store
from sagastream.store import sagas
from sagastream.store.indexes import names_in
from sagastream.store.keys import Partition, StoreKeys

#: How many ended sagas one round trip looks at, and how many round trips there are at most each time.
_PAGE: Final = 500
_PAGES: Final = 40
#: How many sagas are changed in one call.
AT_ONCE: Final = 100
_SWEEP: Final = Script("sweep")


class Sweep:
    """Takes expired sagas out of the indexes."""

    def __init__(self, client: "redis.Redis", store: Store) -> None:
        self._client = client
        self._store = store
        #: How many ended sagas of each partition, from the oldest, are known to be there still.
        self._there: dict[Partition, int] = {}

    def forget(self, partitions: Sequence[Partition]) -> None:
        """Look at all of these partitions again."""
        for partition in partitions:
            self._there.pop(partition, None)

    def sweep(self, keys: StoreKeys, partitions: Sequence[Partition]) -> None:
        """Take out of these partitions the sagas whose hash has expired. If there are many, each call looks at some of
        them."""
        _, now_ms = sagas.read(self._client, keys, [])
        for partition in partitions:
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
        for some in slices(changes):
            lost += len(self._store.commit(some, now_ms)[0])
        return int(there) + lost


def slices(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """These items, as many at once as one call changes."""
    return (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))

"""What a worker does for the store beside its work, each time a bounded part.

It takes expired sagas out of the indexes, sets right what workers of an earlier release leave wrong in them, trims
streams, and repairs what a failover may have left.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import redis

from sagastream.broker.failures import is_wrong_type
from sagastream.broker.partial import passes_over
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.mending import Mending
from sagastream.orchestrator.repair import Repair
from sagastream.orchestrator.report import TurnReport
from sagastream.orchestrator.sweeping import Sweep
from sagastream.store.keys import Partition, StoreKeys

#: How often a worker takes sagas that are no longer kept out of the indexes, in seconds.
_TIDY_EVERY_S: Final = 10.0
#: The least time between two steps of mending the indexes, in seconds.
_MEND_EVERY_S: Final = 0.25


class Upkeep:
    """The upkeep of a store, by one worker."""

    def __init__(self, client: "redis.Redis", store: Store, report: TurnReport, who: str, *, lease_ms: int) -> None:
        """`who` and `lease_ms`: as for Repair."""
        self._client = client
        self._store = store
        self._report = report
        self._repair = Repair(client, store, who, lease_ms=lease_ms)
        self._sweep = Sweep(client, store)
        self._mending = Mending(client, store, lease_ms=lease_ms)
        self._tidy_at = self._mend_at = 0.0

    def begin_anew(self, keys: StoreKeys, partitions: Sequence[Partition]) -> None:
        """These partitions go on from another moment: forget how far they were seen to, and look at all of them."""
        self._sweep.forget(partitions)
        self._mending.forget(partitions)
        self._tidy_at = self._mend_at = 0.0
        self._repair.begin(keys, partitions)

    def look(self, keys: StoreKeys, partitions: Sequence[Partition], now_ms: int, maxmemory: int) -> bool:
        """Do the next part in these partitions, if it is time. `now_ms`: the broker's time. `maxmemory`: as for
        `Store.trim`. Returns whether there is more to do soon."""
        now = time.monotonic()
        is_repairing = self._repair.step(partitions)
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_EVERY_S
            for some in _in_turn(keys, partitions):
                with self._passing_over():
                    self._tidy_each(keys, some, now_ms, maxmemory, mends=not is_repairing)
        if self._mending.goes_on and now >= self._mend_at and not is_repairing:
            self._mend_at = now + _MEND_EVERY_S
            with self._passing_over():
                self._mending.step()
        return is_repairing

    def _tidy_each(
        self, keys: StoreKeys, partitions: Sequence[Partition], now_ms: int, maxmemory: int, *, mends: bool
    ) -> None:
        try:
            self._tidy(keys, partitions, now_ms, maxmemory, mends=mends)
        except redis.ResponseError as error:
            if len(partitions) == 1 or not is_wrong_type(error):
                raise
            for one in partitions:  # one of them is damaged
                with self._passing_over():
                    self._tidy(keys, [one], now_ms, maxmemory, mends=mends)

    def _tidy(
        self, keys: StoreKeys, partitions: Sequence[Partition], now_ms: int, maxmemory: int, *, mends: bool
    ) -> None:
        """`mends`: not while a repair looks at all that mending would look at."""
        self._sweep.sweep(keys, partitions)
        if mends:
            self._mending.look(keys, partitions, now_ms)
        self._report.trimmed(keys, self._store.trim(keys, partitions, maxmemory))

    @contextmanager
    def _passing_over(self) -> Iterator[None]:
        """Within this, what cannot be reached of a cluster is passed over, and so is a partition that is damaged: its
        turn comes again."""
        try:
            yield
        except redis.RedisError as error:
            if not passes_over(self._client, error, or_damaged=True):
                raise


def _in_turn(keys: StoreKeys, partitions: Sequence[Partition]) -> Iterator[Sequence[Partition]]:
    """On a cluster each by itself: the node of one may be away."""
    return ([partition] for partition in partitions) if keys.apart else iter([partitions])

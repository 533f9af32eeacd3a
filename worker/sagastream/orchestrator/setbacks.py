"""What a worker does if it can do nothing in a partition for now: a node of a cluster is away, or a key is damaged."""

from collections.abc import Sequence

import redis

from sagastream.broker import partial
from sagastream.broker.group_reader import GroupReader
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Refused
from sagastream.orchestrator.damaged import DamagedPartitions
from sagastream.orchestrator.ends import Ends
from sagastream.orchestrator.out_of_reach import OutOfReach
from sagastream.orchestrator.state_cache import StateCache
from sagastream.orchestrator.streams import Streams
from sagastream.store.keys import Partition


class Setbacks:
    """Those of one worker. What it holds of such a partition is read again later; the others go on."""

    def __init__(
        self,
        client: "redis.Redis",
        inbox: GroupReader,
        *,
        cache: StateCache,
        ends: Ends,
        away: OutOfReach,
        damaged: DamagedPartitions,
    ) -> None:
        self._client = client
        self._inbox = inbox
        self._cache = cache
        self._ends = ends
        self._away = away
        self._damaged = damaged

    def lost(self, partition: Partition, error: redis.RedisError, streams: Streams) -> None:
        """Nothing can be done in a partition. Raises the error if it concerns all of them."""
        if not partial.passes_over(self._client, error):
            raise error
        self._away.lost(partition, error)
        self._inbox.renew_later(streams.of(partition))

    def unknown(self, changes: Sequence[Change], error: redis.RedisError, streams: Streams) -> None:
        """Nobody knows whether these were written."""
        self._cache.keep(changes, changes)
        self._ends.note(changes)
        for partition in {change.partition.number: change.partition for change in changes}.values():
            self.lost(partition, error, streams)

    def without_refused(self, changes: list[Change], refused: Refused, streams: Streams) -> list[Change]:
        """These changes without those that were not written, since a key of their partition has another type."""
        unwritten = [change for change in changes if change.partition in refused]
        self._cache.keep(unwritten, unwritten)
        for partition, error in refused.items():
            self._away.lost(partition, self._damaged.found(partition, error))
            self._inbox.renew_later(streams.of(partition))
        return [change for change in changes if change.partition not in refused]

"""What a worker tells the store after it has gone on from another moment: what only the workers may still know."""

from collections.abc import Mapping, Sequence

import redis

from sagastream.broker.exchange import run
from sagastream.broker.partial import passes_over
from sagastream.orchestrator.ends import Ends
from sagastream.orchestrator.services import KnownServices
from sagastream.store.keys import Partition, StoreKeys


class Aftermath:
    """What one worker has still to tell. True while there is anything."""

    def __init__(self, client: "redis.Redis", services: KnownServices, ends: Ends) -> None:
        self._client = client
        self._services = services
        self._ends = ends
        self._owes_services = False
        self._since: list[Mapping[int | None, int | None]] = []  # see Lineage.taken

    def __bool__(self) -> bool:
        return self._owes_services or bool(self._since)

    def owes(self, partitions: Sequence[Partition], since: Mapping[int | None, int | None]) -> None:
        """These partitions go on from another moment. `since`: see Lineage.taken."""
        # The keys of the whole store are with the first one.
        self._owes_services |= any(partition.number == 0 for partition in partitions)
        if since:
            self._since.append(since)

    def tell(self, keys: StoreKeys) -> None:
        """Tell it. On a cluster, the node may be away that keeps this; then it is told later, and work goes on."""
        try:
            if self._owes_services:
                self._services.tell_again()
                self._owes_services = False
            while self._since:
                run(self._client, self._ends.keep(keys, self._since[0]))
                del self._since[0]
        except redis.RedisError as error:
            if not passes_over(self._client, error):
                raise

"""The keys of a store as a test's first process lays it out: with one partition, and the usual prefix."""

from collections.abc import Sequence
from typing import Final

from sagastream.orchestrator.commit import Store
from sagastream.store.keys import Partition, StoreKeys

KEYS: Final = StoreKeys("saga", ["0"])
#: Its only partition.
ONLY: Final[Partition] = KEYS.partitions[0]


def due(store: Store, count: int, lease_ms: int, passed_over: Sequence[str] = ()) -> tuple[list[str], int | None]:
    """The ids of the sagas that are due in the only partition, and how long it is until the next one is."""
    found, wait_ms = store.due(KEYS.partitions, count, lease_ms, passed_over)
    return [saga_id for _, saga_id in found], wait_ms

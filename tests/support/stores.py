"""The keys of a store as a test's first process lays it out, with one partition and the usual prefix; and stores of
several partitions."""

import itertools
from collections.abc import Sequence
from typing import Final

from sagastream.broker import exchange
from sagastream.broker.connection import Broker
from sagastream.orchestrator.commit import Store
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.layout import Layout

KEYS: Final = StoreKeys("saga", ["0"])
#: Its only partition.
ONLY: Final[Partition] = KEYS.partitions[0]


def due(store: Store, count: int, lease_ms: int, passed_over: Sequence[str] = ()) -> tuple[list[str], int | None]:
    """The ids of the sagas that are due in the only partition, and how long it is until the next one is. Raises the
    error if its timers have another type."""
    found, wait_ms, away = store.due([KEYS.partitions], count, lease_ms, passed_over)
    for error in away.values():
        raise error
    return [saga_id for _, saga_id in found], wait_ms


def divided(broker: Broker, partitions: int = 3) -> StoreKeys:
    """Make a store with several partitions."""
    return exchange.run(broker.client, Layout(broker.prefix, partitions).opened())


def in_each(keys: StoreKeys, name: str = "s") -> list[str]:
    """One id of a saga for each partition, in their order."""
    ids = (f"{name}{number}" for number in itertools.count())
    found: dict[int, str] = {}
    while len(found) < len(keys.partitions):
        saga_id = next(ids)
        found.setdefault(keys.of(saga_id).number, saga_id)
    return [found[number] for number in range(len(keys.partitions))]

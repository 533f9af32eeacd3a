"""A node of a cluster comes back without what it had accepted: that is noticed of its partitions, and of no others."""

import pytest

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.store import layout, lineage
from sagastream.store.keys import StoreKeys
from sagastream.store.lineage import Lineage
from support.clusters import Cluster
from support.servers import KINDS

pytestmark = pytest.mark.both_in_soak

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "3")


class Looking:
    """A process that looks how far the partitions are, when it is told to."""

    def __init__(self, broker: Broker, keys: StoreKeys) -> None:
        self._broker, self._keys = broker, keys
        self.lineage = Lineage("worker w", area="worker")

    def __call__(self) -> list[int]:
        """Look. Returns the numbers of the partitions that go on from another moment."""
        before = self.lineage.changes
        run(self._broker.client, self.lineage.look(self._keys, b"w", None))
        return [partition.number for partition in self.lineage.changed_since(before, self._keys)]


def test_slots_that_move_are_no_loss_and_nobody_looks_at_them(cluster: Cluster) -> None:
    broker = cluster.broker()
    keys = layout.check(broker)
    look = Looking(broker, keys)
    assert [look(), look()] == [[], []]
    partition = keys.partitions[1]
    source = cluster.node_of(partition.timers)
    target = next(node for node in cluster.nodes if node is not source)
    try:
        cluster.move_slots([partition.timers], target)
        assert [look(), look()] == [[], []]
        assert lineage.losses(broker.client, keys) == []
    finally:
        cluster.move_slots([partition.timers], source)

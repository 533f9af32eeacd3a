"""A node of a cluster loses what it had accepted: that is noticed of its partitions, and of those alone."""

import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.outage import Outage
from sagastream.client.blocking import SagaClient
from sagastream.orchestrator.worker import Orchestrator
from sagastream.store import heartbeat, layout, lineage, told
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.lineage import Lineage
from sagastream_bridge.inspection import after_failover
from sagastream_bridge.inspection.after_failover import AfterFailover
from support import tills
from support.clusters import Cluster, Node
from support.failovers import OneOfCluster, all_at_work, replication, steps
from support.processes import Commands
from support.servers import KINDS
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

kinds = pytest.mark.parametrize("kind", KINDS)
PARTITIONS = 3


@pytest.fixture(autouse=True)
def partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", str(PARTITIONS))


@contextmanager
def made(kind: str, folder: Path, replicas: int = 1, *, gates: bool = False) -> Iterator[Cluster]:
    cluster = Cluster(kind, folder, 3, replicas, gates=gates)
    try:
        yield cluster
    finally:
        cluster.stop()


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

    def until_changed(self) -> list[int]:
        return until(self, what="it has seen that a partition goes on from another moment")


def moves_without_a_loss(cluster: Cluster, move: Callable[[Cluster, Iterable[int | str | bytes], Node], None]) -> None:
    broker = cluster.broker()
    keys = layout.check(broker)
    look = Looking(broker, keys)
    assert [look(), look()] == [[], []]
    partition = keys.partitions[1]
    source = cluster.node_of(partition.timers)
    target = next(node for node in cluster.nodes if node is not source)
    try:
        move(cluster, [partition.timers], target)
        assert [look(), look()] == [[], []]
        assert look.lineage._traces[1].node == target.node_id
        assert lineage.losses(broker.client, keys) == []
    finally:
        cluster.move_slots([partition.timers], source)


def test_slots_that_move_are_no_loss_and_nobody_looks_at_them(cluster: Cluster) -> None:
    moves_without_a_loss(cluster, Cluster.move_slots)


def test_slots_that_the_nodes_move_by_themselves_are_no_loss(valkey_cluster: Cluster) -> None:
    valkey_cluster.clear()
    moves_without_a_loss(valkey_cluster, Cluster.migrate_slots)


@kinds
def test_a_node_that_has_loaded_an_older_file_has_lost_what_came_after(kind: str, tmp_path: Path) -> None:
    with made(kind, tmp_path, 0) as cluster:
        broker = cluster.broker()
        keys = layout.check(broker)
        look = Looking(broker, keys)
        assert [look(), look()] == [[], []]
        node = cluster.node_of(keys.partitions[2].timers)
        shutil.copytree(node.folder, older := node.folder.with_name("older"))
        assert look() == []
        node.kill()
        assert look() == []  # what is away is looked at later, and the others now
        away, workers = AfterFailover(broker, since_ms=0).examine()
        assert (away.level, away.about, workers.about) == ("problem", "cluster", "workers")
        assert "partition 2 of 3 is left out; look again when it is back" in away.text
        shutil.rmtree(node.folder)
        older.rename(node.folder)
        node.start()
        cluster.wait_ok()
        assert look.until_changed() == [2]
        (loss,) = lineage.losses(broker.client, keys)
        assert (loss.partitions, loss.certain) == ((2,), True)
        assert "the store has lost what was written in partition 2 after 20" in loss.text


@kinds
def test_what_a_node_accepts_that_is_parted_from_the_others_is_lost_once_it_comes_back(
    kind: str, tmp_path: Path
) -> None:
    with made(kind, tmp_path, gates=True) as cluster:
        broker = cluster.broker()
        keys = layout.check(broker)
        look = Looking(broker, keys)
        assert [look(), look()] == [[], []]
        node = cluster.node_of(keys.partitions[1].timers)
        (replica,) = cluster.replicas_of(node)
        cluster.wait_for_replicas(node)
        with cluster.parted(node, clients=False):
            look()  # it accepts this heartbeat
            until(lambda: replication(replica)["role"] == "master", what="the replica takes over")
        cluster.wait_ok()
        assert look.until_changed() == [1]
        (loss,) = lineage.losses(broker.client, keys)
        assert (loss.partitions, loss.certain) == ((1,), True)


@kinds
def test_a_planned_switch_loses_nothing_and_nobody_stops_at_the_former_master(kind: str, tmp_path: Path) -> None:
    with made(kind, tmp_path) as cluster:
        broker = cluster.broker()
        keys = layout.check(broker)
        look = Looking(broker, keys)
        assert [look(), look()] == [[], []]
        node = cluster.node_of(keys.partitions[1].timers)
        (replica,) = cluster.replicas_of(node)
        replica.ask("CLUSTER", "FAILOVER")
        until(lambda: replication(replica)["role"] == "master", what="the replica takes over")
        cluster.wait_ok()
        assert layout.check(broker, keys).tags == keys.tags  # it has not heard of the switch yet
        assert look.until_changed() == [1]
        assert lineage.losses(broker.client, keys) == []


class Shop:
    """A worker in a thread, and clients whose sagas all wait for a service that is not there."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.broker = cluster.broker()
        self.client = SagaClient(self.broker)
        self.keys = layout.check(self.broker)
        self.worker = Orchestrator(cluster.broker(), stop := threading.Event())
        self._stop = stop
        self._thread = threading.Thread(target=self.worker.run)
        self._begun = 0
        self.patiently = Outage(self.broker, "a client", stop).patiently

    @contextmanager
    def open(self) -> Iterator["Shop"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def begin(self, partition: Partition) -> str:
        """Begin a saga there, and wait until it has begun."""
        names = (f"saga-{n}" for n in range(self._begun, 1 << 20))
        saga_id = next(name for name in names if self.keys.of(name) is partition)
        self._begun = int(saga_id.partition("-")[2]) + 1

        self.patiently(lambda: self.client.begin(saga_id, steps("nobody")))
        until(lambda: self.is_kept(saga_id), what="it has begun")
        return saga_id

    def is_kept(self, saga_id: str) -> bool:
        return self.patiently(lambda: self.client.get(saga_id)) is not None

    def node_of(self, number: int) -> Node:
        return self.cluster.node_of(self.keys.partitions[number].timers)


LOOKED = "looked at {} sagas, since the store has another history: each stands where it should"


@kinds
def test_a_failover_is_noticed_and_looked_at_in_the_partitions_of_its_node_alone(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with made(kind, tmp_path) as cluster, Shop(cluster).open() as shop:
        kept = [shop.begin(partition) for partition in shop.keys.partitions for _ in range(partition.number + 2)]
        failing = OneOfCluster(cluster, shop.keys.partitions[1].timers)
        assert failing.master is not shop.node_of(0)
        failing.wait()
        failing.cut()
        lost = shop.begin(shop.keys.partitions[1])
        failing.promote()
        (loss,) = until(lambda: lineage.losses(shop.broker.client, shop.keys), what="the loss is told")
        assert loss.partitions == (1,)
        until(lambda: LOOKED.format(3) in caplog.text, what="the worker has looked at the sagas of this partition")
        assert [shop.is_kept(one) for one in (*kept, lost)] == [*[True] * len(kept), False]
        for partition in shop.keys.partitions:
            shop.begin(partition)
        failing.master.start()
        cluster.wait_ok()
        # Nobody notices anything when the former master is a replica; and the next failover loses nothing.
        cluster.wait_for_replicas(failing.replica)
        failing.replica.kill()
        cluster.wait_ok()
        until(lambda: LOOKED.format(4) in caplog.text, what="the worker has looked at them again")
        assert lineage.losses(shop.broker.client, shop.keys) == [loss]
        findings = shop.patiently(lambda: list(AfterFailover(shop.broker, since_ms=0).examine()))
        assert [one.text for one in findings if one.about == "failover"] == [f"{loss.text}: {loss.evidence}"]
    assert caplog.text.count("lost what was written") == 1
    assert caplog.text.count("since the store has another history") == 2


@kinds
def test_what_was_lost_between_two_looks_is_noticed_although_the_worker_writes_on(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(kind, tmp_path) as cluster, Shop(cluster).open() as shop:
        store, keys = shop.broker.client, shop.keys
        partition, beat = keys.partitions[1], shop.worker._services._heartbeat
        shop.begin(partition)
        monkeypatch.setattr(heartbeat, "_BEAT_EVERY_S", 3600.0)
        until(lambda: beat.due_s > 1000, what="it does not look for long")
        failing = OneOfCluster(cluster, partition.timers)
        failing.wait()
        failing.cut()
        lost = shop.begin(partition)
        end = told.End(lost, "COMPLETED", 4 * 10**12)
        shop.worker._ends._ends.append(end)
        failing.promote()
        for _ in range(20):
            shop.begin(partition)  # the worker writes this to the new master
        assert not shop.is_kept(lost)
        assert lineage.losses(store, keys) == []
        monkeypatch.undo()
        beat._beat_at = 0.0
        until(lambda: heartbeat.worker_is_alive(store, keys), what="it is heard again")
        findings = [*AfterFailover(shop.broker, since_ms=0).examine()]  # which waits until the worker has looked
        (loss,) = lineage.losses(store, keys)
        assert (loss.certain, loss.partitions) == (True, (1,))
        assert f"saga {lost} was at version" in loss.evidence
        assert told.kept(store, keys) == [end]
        (found,) = [one for one in findings if one.about == f"saga {lost}"]
        assert found.text.startswith("it may have been told to have ended COMPLETED, and there is no such saga")
        assert [one.about for one in findings if one.about.startswith("worker ")] == []


@kinds
def test_what_only_processes_know_is_told_again_if_the_node_of_the_whole_store_has_lost_it(
    kind: str, tmp_path: Path, commands: Commands
) -> None:
    with made(kind, tmp_path) as cluster, Shop(cluster).open() as shop:
        store, keys = shop.broker.client, shop.keys
        shop.begin(keys.partitions[0])
        failing = OneOfCluster(cluster, keys.alive)
        failing.wait()
        failing.cut()
        (folder := tmp_path / "tills").mkdir()
        env = {"REDIS_URL": cluster.url, "TILLS": str(folder), "PYTHONPATH": str(Path(tills.__file__).parents[1])}
        commands.quiet("service", "support.tills:early", env=env)
        until(lambda: store.hget(keys.published("early"), "Do"), what="the service has published its commands")
        until(lambda: "early" in shop.worker._services.names, what="the worker knows it")
        failing.promote()
        losses = until(lambda: shop.patiently(lambda: lineage.losses(store, keys)), what="the loss is told")
        assert [0 in (one.partitions or ()) for one in losses] == [True]
        until(lambda: store.hget(keys.published("early"), "Do"), what="it has published them again")
        until(lambda: store.sismember(keys.services, "early"), what="its name is there again")
        until(lambda: heartbeat.worker_is_alive(store, keys), what="the worker is heard", timeout_s=15)
        texts = [one.text for one in AfterFailover(shop.broker, since_ms=0).examine() if one.about == "failover"]
        assert texts == [f"{losses[0].text}: {losses[0].evidence}", after_failover._OF_PEOPLE]


@kinds
def test_what_is_owed_to_a_node_that_is_away_is_done_once_it_is_back(kind: str, tmp_path: Path) -> None:
    with made(kind, tmp_path, 0) as cluster, Shop(cluster).open() as shop:
        store, keys = shop.broker.client, shop.keys
        first, *others = keys.partitions
        end = told.End(shop.begin(others[0]), "COMPLETED", 1)
        for partition in keys.partitions:
            store.zrem(partition.timers, shop.begin(partition))
        shop.worker._ends._ends.append(end)
        node = shop.node_of(0)
        node.kill()
        shop.worker._lineage.has_changed()

        def waiting() -> list[int]:
            return [store.zcard(partition.timers) for partition in others]

        until(lambda: waiting() == [2, 1], what="the worker has repaired those of the other nodes")
        (*_, nothing) = AfterFailover(shop.broker, since_ms=0).examine()
        assert (nothing.level, "nothing can be compared" in nothing.text) == ("problem", True)
        node.start()
        cluster.wait_ok()
        until(lambda: shop.patiently(lambda: store.zcard(first.timers)), what="it has repaired those of this node")
        until(lambda: told.kept(store, keys) == [end], what="it has noted which ends it had written")


@pytest.mark.slow
@kinds
@pytest.mark.parametrize(
    ("how", "partition", "rate"),
    [
        ("killed", 1, 1),
        ("stopped", 0, 1),
        pytest.param("killed", 0, 20, marks=pytest.mark.soak),
        pytest.param("stopped", 1, 20, marks=pytest.mark.soak),
    ],
)
def test_while_all_is_at_work_every_saga_is_listed_that_was_told_or_done_otherwise(
    kind: str, *, how: str, partition: int, rate: int, tmp_path: Path, commands: Commands
) -> None:
    with made(kind, tmp_path) as cluster:
        keys = layout.check(cluster.broker())
        all_at_work(OneOfCluster(cluster, keys.partitions[partition].timers), how, rate, commands, tmp_path / "tills")

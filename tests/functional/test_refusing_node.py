"""One node of a cluster refuses what the others take: its partitions wait, and all else goes on. Without most of its
masters a cluster takes nothing, and each process says that once."""

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

from sagastream import Context, SagaClient, Service, StepRequest
from sagastream.broker.failures import NodeRefuses
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store.keys import Partition
from support.clusters import Cluster, Node
from support.stores import divided, in_each
from support.waiting import takes_less_than, until

STEPS: list[StepRequest] = [{"transaction": "Do", "service": "work", "params": 1}]


class Stage:
    """A worker and the service `work`, on a cluster with a partition on each node."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.keys = divided(cluster.broker(), 3)
        self.client = SagaClient(cluster.broker())
        self.failed: list[BaseException] = []
        self._stop = threading.Event()
        service = Service("work", concurrency=2)

        @service.command("Do", compensation="Undo")
        def do(params: Any, context: Context) -> Any:
            return params

        @service.compensation("Undo")
        def undo(params: Any, context: Context) -> None: ...

        runs = [
            Orchestrator(cluster.broker(), self._stop).run,
            ServiceRunner(cluster.broker(), service, self._stop).run,
        ]
        self._threads = [threading.Thread(target=self._guarded, args=[run]) for run in runs]
        for thread in self._threads:
            thread.start()

    def _guarded(self, run: Any) -> None:
        try:
            run()
        except BaseException as error:
            self.failed.append(error)
            raise

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def node_of(self, partition: Partition) -> Node:
        return self.cluster.node_of(partition.timers)

    def does(self, name: str, *partitions: Partition) -> None:
        """Sagas of these partitions are begun, and end."""
        ids = [self._begun(name, one) for one in partitions]
        for saga_id in ids:
            assert self.client.wait(saga_id, timeout_s=60).status == "COMPLETED"

    def at_work(self, caplog: pytest.LogCaptureFixture) -> Sequence[Partition]:
        """The partitions, of each of which a saga has ended. From now on the log is looked at."""
        self.does("a", *self.keys.partitions)
        caplog.set_level(logging.WARNING)
        return self.keys.partitions

    def takes(self, name: str, partition: Partition) -> bool:
        """Whether a saga of this partition can be begun."""
        try:
            self._begun(name, partition)
        except redis.RedisError:
            return False
        return True

    def _begun(self, name: str, partition: Partition) -> str:
        saga_id = in_each(self.keys, name)[partition.number]
        self.client.begin(saga_id, STEPS)
        return saga_id


@pytest.fixture
def stage(cluster: Cluster) -> Iterator[Stage]:
    made = Stage(cluster)
    try:
        yield made
    finally:
        made.close()
    assert made.failed == []


def _kick(admin: redis.Redis) -> None:
    """Have all others log in again."""
    admin.client_kill_filter(_type="normal", skipme=True)


def said(caplog: pytest.LogCaptureFixture, *parts: str) -> list[str]:
    """The lines of the log that have all these parts."""
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if all(part in line for part in parts)]


def test_a_login_that_one_node_refuses_stops_only_its_partitions(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = stage.at_work(caplog)
    node = stage.node_of(second)
    who = f"the node 127.0.0.1:{node.port} of the cluster"
    with node.connect() as admin:
        admin.config_set("requirepass", "secret")
        try:
            _kick(admin)
            stage.does("b", first, third)
            with takes_less_than(2), pytest.raises(NodeRefuses, match=f"^{who} wants a password"):
                stage.does("c", second)
            with takes_less_than(2), pytest.raises(NodeRefuses, match=f"^{who} wants a password"):
                stage.client.wait(in_each(stage.keys, "a")[1], timeout_s=60)
            until(lambda: said(caplog, "partition 1 of the store cannot be reached", who), what="the worker says it")
        finally:
            admin.config_set("requirepass", "")
    until(lambda: stage.takes("d", second), what="the client is let in")
    stage.does("e", first, second, third)
    until(lambda: said(caplog, "partition 1 of the store can be reached again"), what="the worker says it")
    assert len(said(caplog, who, "the others go on")) <= 4  # once each process, and the client
    assert said(caplog, who, "is back")


def test_a_command_that_one_node_denies_stops_only_its_partitions(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = stage.at_work(caplog)
    node = stage.node_of(second)
    denies = f"the node 127.0.0.1:{node.port} of the cluster denies this to the user in REDIS_URL"
    node.ask("ACL", "SETUSER", "default", "-evalsha", "-eval", "-xreadgroup")
    try:
        until(lambda: said(caplog, "partition 1 of the store cannot be reached", denies), what="the worker says it")
        until(lambda: len(said(caplog, denies, "others go on")) == 3, what="each process says it")
        stage.does("b", first, third)
        with takes_less_than(2), pytest.raises(redis.ResponseError, match=f"127.0.0.1:{node.port} of the cluster"):
            stage.does("c", second)
    finally:
        node.ask("ACL", "SETUSER", "default", "+@all")
    stage.does("d", first, second, third)
    until(lambda: len(said(caplog, "does not refuse that any more")) == 2, what="each process says it")
    until(lambda: said(caplog, "partition 1 of the store can be reached again"), what="the worker says it")
    assert len(said(caplog, "partition 1 of the store")) == 2


def test_a_slot_that_stays_half_moved_is_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = stage.at_work(caplog)
    with stage.cluster.half_moved(second.requests, stage.node_of(third)):
        until(lambda: said(caplog, "partition 1 of the store cannot be reached", "on its way"), what="it is said")
        until(lambda: len(said(caplog, "slot", "on its way", "others go on")) >= 2, what="each process says it")
        stage.does("b", first, third)
    assert said(caplog, "slot", "on its way")[0].startswith("slot ")
    stage.does("c", first, second, third)
    until(lambda: said(caplog, "partition 1 of the store can be reached again"), what="the worker says it")


def test_without_most_of_its_masters_a_cluster_takes_nothing_and_each_process_says_so_once(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = stage.at_work(caplog)
    dead = [stage.node_of(one) for one in others]
    takes_nothing = "the cluster takes nothing: too many of its masters are away"
    for node in dead:
        node.kill()
    try:
        until(lambda: len(said(caplog, takes_nothing)) == 2, what="the worker and the service say it")
        assert not stage.takes("b", first)
    finally:
        for node in dead:
            node.start()
    stage.cluster.wait_ok()
    until(lambda: len(said(caplog, "the cluster takes commands again")) == 2, what="each says that it is over")
    stage.does("c", first, *others)
    (line,) = set(said(caplog, takes_nothing))
    assert all(f"127.0.0.1:{node.port}" in line for node in dead)
    assert said(caplog, "slot") == said(caplog, "says that the cluster is down") == []

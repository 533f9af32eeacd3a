"""A cluster, one of whose nodes has another clock than the others: what waits for a time ends in time, in all
partitions, and no command counts as too late that is not."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream.broker import cluster_time, nodes
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner, Worked
from sagastream.store import layout
from sagastream.store.keys import Partition
from support.clock import ServerClock
from support.clusters import Cluster
from support.processes import Commands
from support.scenes import Effects, do
from support.stores import in_each
from support.waiting import until

#: A pause, and then a command that nobody answers.
STEPS: list[Any] = [
    {"id": "pause", "wait_ms": 1500},
    {"transaction": "Do", "service": "nobody", "timeout_ms": 1500, "attempts": 1, "compensation": None},
]


@pytest.mark.own_server
@pytest.mark.parametrize(("number", "behind_ms"), [(0, 300_000), (0, -5_000), (1, 5_000), (1, -300_000)])
def test_what_waits_for_a_time_ends_in_time_whatever_the_clock_of_one_node(
    number: int, behind_ms: int, tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`number`: of the partition whose node has that clock. That of partition 0 has the keys of the whole store."""
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "3")
    cluster = Cluster("valkey", tmp_path, 3, 0)
    try:
        keys = layout.check(cluster.broker())
        ServerClock(cluster.node_of(keys.partitions[number].timers), behind_ms=behind_ms)
        cluster.wait_ok()
        with (tmp_path / "log").open("wb") as log:
            for _ in range(2):
                commands.start("worker", env={"REDIS_URL": cluster.url}, stderr=log)
        with SagaClient(cluster.url) as client:
            ids = [next(name for name in map(str, range(999)) if keys.of(name) is one) for one in keys.partitions]
            client.begin("first", [{"wait_ms": 1}])  # the workers are there
            assert client.wait("first", 30).status is SagaStatus.COMPLETED
            began_s = time.monotonic()
            for saga_id in ids:
                client.begin(saga_id, STEPS)
            for saga_id in ids:
                assert client.wait(saga_id, 20).status is SagaStatus.ABORTED
            assert 3 <= time.monotonic() - began_s < 10
        said = (tmp_path / "log").read_text()
        assert "clock" not in said, said
    finally:
        cluster.stop()


class Sender:
    """A cluster, and a worker and a service in the process of the test. Each has a broker of its own, as if it were a
    process."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster("valkey", folder, 3, 0)
        self.broker = self.cluster.broker()
        self.keys = layout.check(self.broker)
        self.redis: redis.Redis = self.cluster.broker().client
        self.effects = Effects()
        self.worker, self.runner = self.another_worker(), self.another_runner()
        self.client = SagaClient(self.cluster.url)

    def another_worker(self) -> Orchestrator:
        return Orchestrator(self.cluster.broker(), threading.Event())

    def another_runner(self) -> ServiceRunner:
        self.broker = self.cluster.broker()
        return ServiceRunner(self.broker, self.effects.service, threading.Event())

    def send(self, saga_id: str) -> tuple[Partition, bytes]:
        """Have the worker send a command. Returns where it stands."""
        partition = self.keys.of(saga_id)
        self.client.begin(saga_id, [do(1, timeout_ms=30_000, attempts=1)])

        def sent() -> Any:
            self.worker.turn(block_ms=1)
            return self.redis.xrange(partition.commands("work"))

        return partition, until(sent, what="the command is sent")[0][0]

    def is_done(self, saga_id: str) -> bool:
        """Whether the service does the command that it gets. Waits for its answer."""
        replies = self.keys.of(saga_id).replies("work")

        def answered() -> bool:
            self.runner.turn(block_ms=1)
            return self.redis.xlen(replies) > 0

        until(answered, what="the command is answered")
        self.redis.delete(replies)
        return f"{saga_id}/1/transaction" in self.effects.done

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop()


@pytest.fixture
def sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sender]:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "3")
    made = Sender(tmp_path)
    yield made
    made.stop()


@pytest.mark.own_server
def test_no_command_is_too_late_because_one_process_hears_sooner_that_the_clock_was_set(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ServerClock(sender.cluster.node_of(sender.keys.alive))
    sender.cluster.wait_ok()
    back, forth, *_ = in_each(sender.keys)
    sender.runner.turn(block_ms=1)
    monkeypatch.setattr(cluster_time, "_ASK_EVERY_S", 3600.0)
    sender.runner.turn(block_ms=1)
    clock.set_back(300_000)
    sender.worker = sender.another_worker()  # which hears it; the service has not asked since
    sender.send(back)
    assert sender.is_done(back)
    clock.set_back(-300_000)
    sender.send(forth)
    nodes.wants_time(sender.broker.client)  # now the service hears it first
    assert sender.is_done(forth)


@pytest.mark.own_server
def test_services_go_by_the_clock_of_the_cluster_in_a_partition_whose_node_has_another_one(
    sender: Sender, node_sample: Path, tmp_path: Path
) -> None:
    ids = in_each(sender.keys)
    node = sender.cluster.node_of(sender.keys.of(ids[1]).timers)
    assert node is not sender.cluster.node_of(sender.keys.alive)
    ServerClock(node, behind_ms=-600_000)
    sender.cluster.wait_ok()
    # An RQ job: it takes a single command that another process holds.
    sender.runner.turn(block_ms=1)
    partition, entry_id = sender.send(ids[1])
    sender.redis.xreadgroup("work", "holder", {partition.commands("work"): ">"})
    assert sender.another_runner().work_on(entry_id, partition.number, again=False) is Worked.DONE
    assert sender.effects.done == [f"{ids[1]}/1/transaction"]
    # A service in JavaScript.
    with (tmp_path / "said").open("wb") as said:
        env = os.environ | {"REDIS_URL": sender.cluster.url}
        service = subprocess.Popen(["node", "notification.mjs"], cwd=node_sample, env=env, stderr=said)
    try:
        step = do({"to": "ann@example.org", "text": "x"}, "SendNotification", "notification", timeout_ms=30_000)
        sagas = in_each(sender.keys, "js")
        for saga_id in sagas:
            sender.client.begin(saga_id, [step | {"attempts": 1}])

        def ended() -> bool:
            sender.worker.turn(block_ms=1)
            found = [sender.client.get(saga_id) for saga_id in sagas]
            return all(state is not None and state.ended for state in found)

        until(ended, what="the sagas end")
        assert [sender.client.wait(saga_id, 5).status for saga_id in sagas] == [SagaStatus.COMPLETED] * 3
    finally:
        service.kill()
        service.wait()

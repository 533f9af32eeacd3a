"""A service on a cluster of which a node is away: the commands of the other partitions are done, and answered."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from sagastream import Context, Service
from sagastream.service.runner import ServiceRunner
from sagastream.store.keys import Partition
from support.clusters import Cluster, Node
from support.stores import divided
from support.waiting import takes_less_than, until


class Work:
    """A service in a thread, and whoever sends it commands."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client: redis.Redis = cluster.broker().client
        self.keys = divided(cluster.broker(), 3)
        assert len({self.node_of(one) for one in self.keys.partitions}) == 3
        self.calls: Counter[str] = Counter()
        self.may_end = threading.Event()
        self.may_end.set()
        self._stop = threading.Event()
        self._sent = 0
        service = Service("work", concurrency=4)

        @service.command("Do", compensation="Undo")
        def do(params: Any, context: Context) -> Any:
            self.calls[context.saga_id] += 1
            assert self.may_end.wait(60)
            return params

        @service.compensation("Undo")
        def undo(params: Any, context: Context) -> None:
            self.calls[f"not {context.saga_id}"] += 1

        self.runner = ServiceRunner(cluster.broker(), service, self._stop, grace_s=30)
        self._thread = threading.Thread(target=self.runner.run)
        self._thread.start()

    def node_of(self, partition: Partition) -> Node:
        return self.cluster.node_of(partition.commands("work"))

    def send(self, *partitions: Partition) -> list[str]:
        """A command in each of these. Returns their sagas."""
        sagas = []
        for partition in partitions:
            self._sent += 1
            sagas.append(f"s{self._sent}")
            body = {"type": "Do", "saga_id": sagas[-1], "step": 1, "params": self._sent}
            self.client.xadd(partition.commands("work"), {"body": json.dumps(body), "begun_ms": 1})
        return sagas

    def answered(self, partition: Partition) -> set[str]:
        """The sagas whose command is answered there, if the node can be asked."""
        try:
            found: Any = self.client.xrange(partition.replies("work"))
        except redis.RedisError:
            return set()
        return {json.loads(fields[b"body"])["saga_id"] for _, fields in found}

    def until_answered(self, partition: Partition, *sagas: str) -> None:
        until(lambda: self.answered(partition) >= set(sagas), what=f"{sagas} are answered", timeout_s=60)

    def end(self) -> None:
        self.may_end.set()
        self._stop.set()
        self._thread.join()


@pytest.fixture
def work(mortal: Cluster) -> Iterator[Work]:
    made = Work(mortal)
    yield made
    for node in mortal.nodes:
        if not node.is_live:
            node.start()
    mortal.wait_ok()
    made.end()
    mortal.close_brokers()
    mortal.clear()


def test_what_was_done_while_a_node_is_away_is_answered_once_it_is_back(work: Work) -> None:
    first, second, third = work.keys.partitions
    work.may_end.clear()
    here, there = work.send(second, third)
    until(lambda: work.calls.total() == 2, what="both run")
    work.node_of(second).kill()
    work.may_end.set()
    work.until_answered(third, there)
    for _ in range(3):
        more = work.send(first, third)
        with takes_less_than(2):
            work.until_answered(first, more[0])
            work.until_answered(third, more[1])
    work.node_of(second).start()
    work.until_answered(second, here)
    work.until_answered(second, *work.send(second))
    assert set(work.calls.values()) == {1}


def test_what_was_read_when_a_node_went_away_is_done_once_it_is_back(work: Work) -> None:
    first, second, _ = work.keys.partitions
    work.may_end.clear()
    running = work.send(first, first, first, first)
    until(lambda: work.calls.total() == 4, what="no more may begin")
    waiting = work.send(*[second] * 8)
    node = work.node_of(second)
    node.kill()
    work.may_end.set()
    work.until_answered(first, *running)
    work.until_answered(first, *work.send(first))
    node.start()
    work.until_answered(second, *waiting)
    assert set(work.calls.values()) == {1}


def test_a_service_that_ends_waits_for_the_node_to_which_it_owes_answers(work: Work) -> None:
    first, second, _ = work.keys.partitions
    work.may_end.clear()
    here, there = work.send(first, second)
    until(lambda: work.calls.total() == 2, what="both run")
    node = work.node_of(second)
    node.kill()
    ending = threading.Thread(target=work.end)
    ending.start()
    work.until_answered(first, here)
    assert ending.is_alive()
    node.start()
    ending.join()
    assert work.answered(second) == {there}
    assert set(work.calls.values()) == {1}

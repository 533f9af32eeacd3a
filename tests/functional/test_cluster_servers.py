"""The clusters of the tests do to servers what tests need of them."""

import threading
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from support.clusters import SLOTS, Cluster, slot_of
from support.servers import KINDS
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

kinds = pytest.mark.parametrize("kind", KINDS)


def test_a_shared_cluster_is_whole_and_empty(cluster: Cluster) -> None:
    assert cluster.masters == cluster.nodes
    assert sum(len(cluster.slots_of(node)) for node in cluster.nodes) == SLOTS
    assert [cluster.node_of(slot) for slot in (0, SLOTS // 2, SLOTS - 1)] == cluster.nodes
    assert cluster.all_keys() == set()
    keys = {b"key-%d" % n for n in range(9)}
    for key in keys:
        cluster.node_of(key).ask("SET", key, "x")
    assert cluster.all_keys() == keys
    with pytest.raises(redis.exceptions.MovedError):
        next(node for node in cluster.nodes if node is not cluster.node_of("key-1")).ask("GET", "key-1")
    cluster.clear()
    assert cluster.all_keys() == set()


class Counting:
    """A client counts a key up, in a thread, and goes to the node that it is sent to."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self._node = cluster.node_of(key).connect()
        self._key = key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.counted = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.counted = int(self._node.incr(self._key))
            except redis.exceptions.MovedError as error:
                self._node.close()
                self._node = redis.Redis(port=error.port)
            except redis.exceptions.AskError as error:
                with redis.Redis(port=error.port) as other:
                    _, counted = other.pipeline(transaction=False).execute_command("ASKING").incr(self._key).execute()
                self.counted = int(counted)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._node.close()


@kinds
@pytest.mark.soak  # other tests use all of this, too
def test_slots_move_while_they_are_used_and_nodes_come_and_go(kind: str, tmp_path: Path) -> None:
    cluster = Cluster(kind, tmp_path)
    try:
        first, second, third = cluster.nodes
        key, keys = "count", {b"key-%d" % n for n in range(30)}
        for one in keys:
            cluster.node_of(one).ask("SET", one, "x")
        with Counting(cluster, key) as counting:
            until(lambda: counting.counted, what="it counts")
            fourth = cluster.add_node()
            assert cluster.slots_of(fourth) == []
            cluster.move_slots([key, *range(100)], fourth)
            assert cluster.node_of(key) is fourth
            assert len(cluster.slots_of(fourth)) == len({slot_of(key), *range(100)})
            cluster.empty_node(second)
            cluster.wait_ok()
            assert set(cluster.masters) == {first, third, fourth}
            counted = counting.counted
            until(lambda: counting.counted > counted, what="it goes on")
        assert int(cluster.node_of(key).ask("GET", key)) == counting.counted
        assert cluster.all_keys() == {*keys, key.encode()}
    finally:
        cluster.stop()


@kinds
@pytest.mark.soak  # other tests use all of this, too
def test_a_replica_takes_over_from_a_master_that_dies_or_hangs(kind: str, tmp_path: Path) -> None:
    cluster = Cluster(kind, tmp_path, 3, 1)
    try:
        master = cluster.nodes[0]
        (replica,) = cluster.replicas_of(master)
        key = next(key for n in range(99) if cluster.node_of(key := f"key-{n}") is master)
        master.ask("SET", key, "kept")
        cluster.wait_for_replicas(master)
        with cluster.falling_behind(master):
            master.ask("SET", key, "lost")
            master.kill()
        cluster.wait_ok()
        assert cluster.node_of(key) is replica
        assert replica.ask("GET", key) == b"kept"
        master.start()
        cluster.wait_ok()
        assert cluster.replicas_of(replica) == [master]
        replica.pause()
        cluster.wait_ok()
        assert cluster.node_of(key) is master
        replica.resume()
        cluster.wait_ok()
        assert cluster.replicas_of(master) == [replica]
    finally:
        cluster.stop()


@kinds
@pytest.mark.soak  # other tests use all of this, too
def test_a_master_that_is_parted_from_the_others_loses_what_it_accepts(kind: str, tmp_path: Path) -> None:
    cluster = Cluster(kind, tmp_path, 3, 1, gates=True)
    try:
        master = cluster.nodes[0]
        (replica,) = cluster.replicas_of(master)
        key = next(key for n in range(99) if cluster.node_of(key := f"key-{n}") is master)
        soon: Any = {"socket_timeout": 0.3}
        with redis.Redis.from_url(master.url, **soon) as client, redis.Redis.from_url(replica.url, **soon) as other:
            client.set(key, "kept")
            cluster.wait_for_replicas(master)
            with cluster.parted(master, clients=False):
                client.set(key, "lost")
                until(lambda: _says(client, key) == "CLUSTERDOWN", what="it finds that it is alone")
                until(lambda: _says(other, key) == b"kept", what="its replica takes over")
            cluster.wait_ok()
            assert cluster.replicas_of(replica) == [master]
            assert _says(client, key) == "MOVED"
            with cluster.parted(replica, clients=True), pytest.raises(redis.TimeoutError):
                other.get(key)
            assert _says(other, key) == b"kept"
    finally:
        cluster.stop()


def _says(client: redis.Redis, key: str) -> object:
    """The value of a key, or why the node does not tell it."""
    try:
        return client.get(key)
    except redis.exceptions.MovedError:
        return "MOVED"
    except redis.exceptions.ClusterDownError:
        return "CLUSTERDOWN"

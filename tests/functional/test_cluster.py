"""A store on a cluster of real nodes: all of sagastream works there, and what happens to a node stops only its own
partitions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sagastream.client.blocking import SagaClient
from support.cluster_world import ClusterWorld, world_on
from support.clusters import Cluster, Node
from support.processes import Commands
from support.servers import KINDS
from support.stores import in_each
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: Why messages are quarantined that a failover has made senseless.
AFTER_A_LOSS = ("too late", "was not sent yet", "there is no saga", "does not answer it")

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.slow
def test_sagas_run_and_are_seen_in_all_partitions(cluster: Cluster, commands: Commands) -> None:
    world = ClusterWorld(cluster, commands)
    partitions = world.keys.partitions
    assert {cluster.node_of(one.timers) for one in partitions} == set(cluster.nodes)
    world.start(workers=2)
    with world.fed():
        world.goes_on(by=12)
    world.verdict()
    assert set(world.figures) >= {"COMPLETED", "ABORTED"}

    env: dict[str, Any] = {"REDIS_URL": cluster.url}
    listed = commands.run("list", "--limit", "1000", "--json", **env)
    assert listed.stderr.endswith(f"0 live and {world.accepted()} ended in the store\n")
    sagas = [json.loads(line) for line in listed.stdout.splitlines()[:-1]]
    assert Counter(one["status"] for one in sagas) == {one: world.figures[one] for one in ("COMPLETED", "ABORTED")}
    assert len({cluster.node_of(world.keys.saga(one["saga_id"])) for one in sagas}) == 3
    ids = in_each(world.keys, "waits")
    with SagaClient(cluster.url) as client:
        for saga_id in ids:
            client.begin(saga_id, [{"transaction": "Do", "service": "nobody"}])
        until(lambda: all(client.get(saga_id) for saga_id in ids), what="they have begun")
        for saga_id, partition in zip(ids, partitions, strict=True):
            assert client.why(saga_id)[-1].kind == "no_service"
            world.redis.xadd(partition.requests, {"body": f"{{{saga_id}"})
        until(lambda: all(world.redis.xlen(one.quarantine) for one in partitions), what="they are set aside")
    shown = commands.run("show", ids[1], **env).stdout
    assert "no process of service nobody is listening" in shown
    set_aside = commands.run("quarantine", "list", **env)
    assert set_aside.stderr == "6 shown of 6\n"
    doctor = commands.run("doctor", **env)
    assert "6 live" in doctor.stdout
    assert "quarantine" in doctor.stdout
    with SagaClient(cluster.url) as client:
        for saga_id in ids:
            assert client.cancel(saga_id, "enough", 60).cancelling
    processes = [process.now for process in (*world.workers, *world.services)]
    for process in processes:
        process.terminate()
    assert [process.wait(60) for process in processes] == [0] * len(processes)
    assert "is away" not in world.said()


@kinds
@pytest.mark.slow
def test_slots_move_and_nodes_come_and_go_and_nothing_is_lost(kind: str, tmp_path: Path, commands: Commands) -> None:
    with world_on(Cluster(kind, tmp_path), commands) as world:
        cluster, partitions = world.cluster, world.keys.partitions
        world.start()
        with world.fed():
            world.goes_on()
            fourth = cluster.add_node()
            cluster.move_slots([*(one.timers for one in partitions[:3]), *range(200)], fourth)
            assert world.partitions_of(fourth) == list(partitions[:3])
            world.goes_on()
            cluster.empty_node(fourth)
            assert world.partitions_of(fourth) == []
            world.goes_on()
            if kind == "valkey":
                cluster.migrate_slots([one.timers for one in partitions], cluster.nodes[0])
                assert world.partitions_of(cluster.nodes[0]) == list(partitions)
                world.goes_on()
        world.verdict()


@kinds
@pytest.mark.slow
@pytest.mark.parametrize("how", ["paused", "parted"])
def test_a_replica_that_is_behind_takes_over(kind: str, how: str, tmp_path: Path, commands: Commands) -> None:
    """Sagas of one node fall back. Nothing is done twice, and clients begin again what nobody knows of."""
    with world_on(Cluster(kind, tmp_path, 3, 1, gates=how == "parted"), commands) as world:
        world.store_forgets = True
        world.may_end_otherwise()
        world.start()
        victim = world.cluster.nodes[1]
        its = world.partitions_of(victim)
        others = [one for one in world.keys.partitions if one not in its]
        with world.fed(), SagaClient(world.cluster.broker()) as client:
            world.goes_on(by=5)
            taken_over(world, victim, how)
            world.goes_on(others)
            world.begin_again(client)
            world.goes_on()
        world.settle()
        with SagaClient(world.cluster.broker()) as client:
            world.begin_again(client)
            world.settle()
            world.retry_parked(client)
        world.verdict(unfit=AFTER_A_LOSS)
        assert world.figures["forgotten and begun again"] > 0


def taken_over(world: ClusterWorld, victim: Node, how: str) -> None:
    """Have the replica of this node take over, and lose what came after some moment."""
    cluster, its = world.cluster, world.partitions_of(victim)
    if how == "parted":
        with cluster.parted(victim, clients=False):
            until(lambda: not world.partitions_of(victim), what="it is taken over")
    else:
        with cluster.falling_behind(victim):
            world.goes_on(its, by=5)
            victim.pause()
        cluster.wait_ok()
        victim.resume()
    cluster.wait_ok()

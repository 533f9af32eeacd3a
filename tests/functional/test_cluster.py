"""A store on a cluster of real nodes: all of sagastream works there, and what happens to a node stops only its own
partitions."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from sagastream.broker.failures import is_outage
from sagastream.client.blocking import SagaClient
from support.cluster_world import ClusterWorld, world_on
from support.clusters import Cluster, Node
from support.processes import Commands
from support.servers import KINDS
from support.stores import in_each
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: How many nodes die, hang or are parted in a long run.
ROUNDS: Final = max(6, int(os.environ.get("SAGASTREAM_SOAK_SAGAS", "3000")) // 300)

#: Why messages are quarantined that a failover has made senseless.
AFTER_A_LOSS: Final = ("too late", "was not sent yet", "there is no saga", "does not answer it")

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
@pytest.mark.soak
def test_six_nodes_have_a_partition_each_and_one_more(kind: str, tmp_path: Path, commands: Commands) -> None:
    with world_on(Cluster(kind, tmp_path, 6), commands, partitions=7) as world:
        assert {world.cluster.node_of(one.timers) for one in world.keys.partitions} == set(world.cluster.nodes)
        world.start(workers=3)
        with world.fed():
            world.goes_on(by=50)
        world.verdict()


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
@pytest.mark.parametrize("how", ["killed", "paused"])
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_node_that_is_away_stops_only_its_own(
    kind: str, how: str, number: int, tmp_path: Path, commands: Commands
) -> None:
    """The last node has the keys of the whole store, too."""
    with world_on(Cluster(kind, tmp_path), commands) as world:
        victim = world.cluster.nodes[number]
        assert (world.cluster.node_of(world.keys.alive) is victim) is (number == 2)
        its = world.partitions_of(victim)
        others = [one for one in world.keys.partitions if one not in its]
        world.start()
        with world.fed():
            world.goes_on(by=10)
            before = world.rate(others, 2)
            if how == "killed":
                victim.kill()
            else:
                victim.pause()
            world.goes_on(others)  # each process notices it once
            # Beside other tests, one second is enough in which nobody else had the machine.
            rates = (world.rate(others, 1) for _ in range(10))
            is_enough = any(rate >= before / 2 for rate in rates) if number == 1 else sum(rates) / 10 >= before / 2
            if how == "killed":
                victim.start()
            else:
                victim.resume()
            world.goes_on()
        world.verdict()
        assert is_enough


@kinds
@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", pytest.param("paused", marks=pytest.mark.soak), "parted"])
def test_a_replica_that_is_behind_takes_over(kind: str, how: str, tmp_path: Path, commands: Commands) -> None:
    """Sagas of one node fall back. Nothing is done twice, and clients begin again what nobody knows of."""
    with world_on(Cluster(kind, tmp_path, 3, 1, gates=how == "parted"), commands) as world:
        world.may_lose_writes()
        world.start()
        with world.fed(), SagaClient(world.cluster.broker()) as client:
            world.goes_on(by=5)
            taken_over(world, world.cluster.nodes[0], how, client)
        lost = world.figures["forgotten and begun again"]
        end(world)
        assert lost > 0


@kinds
@pytest.mark.soak
def test_nodes_die_hang_and_part_in_turn(kind: str, tmp_path: Path, commands: Commands) -> None:
    chance = random.Random(20241130)
    with world_on(Cluster(kind, tmp_path, 3, 1, gates=True), commands) as world:
        cluster = world.cluster
        world.may_lose_writes()
        world.start(workers=3, services=2)
        with world.fed(), SagaClient(cluster.broker()) as client:
            for number in range(ROUNDS):
                world.goes_on(by=5)
                victim = chance.choice(cluster.masters)
                taken_over(world, victim, ("killed", "paused", "parted")[number % 3], client)
                cluster.move_slots([chance.choice(world.keys.partitions).timers], chance.choice(cluster.masters))
        end(world)


def taken_over(world: ClusterWorld, victim: Node, how: str, client: SagaClient) -> None:
    """Have the replica of this node take over, and lose what came after some moment. Then the node is its replica."""
    cluster, its = world.cluster, world.partitions_of(victim)
    others = [one for one in world.keys.partitions if one not in its]
    if how == "parted":
        with cluster.parted(victim, clients=False):
            until(lambda: victim not in cluster.masters, what="it is taken over")
            until(lambda: _begins_again(world, client), what="the client finds the side that counts")
            world.goes_on()
    else:
        with cluster.falling_behind(victim):
            world.goes_on(its, by=5)
            if how == "killed":
                victim.kill()
            else:
                victim.pause()
        cluster.wait_ok()
        world.goes_on(others)
        if how == "killed":
            victim.start()
        else:
            victim.resume()
    cluster.wait_ok()
    assert cluster.replicas_of(victim) == []
    world.begin_again(client)
    world.goes_on()


def _begins_again(world: ClusterWorld, client: SagaClient) -> bool:
    try:
        world.begin_again(client)
    except redis.RedisError as error:
        if not is_outage(error):
            raise
        return False
    return True


def end(world: ClusterWorld) -> None:
    """Settle, as operators and clients do after a loss, and judge."""
    world.settle()
    with SagaClient(world.cluster.broker()) as client:
        world.begin_again(client)
        world.settle()
        world.retry_parked(client)
    world.verdict(unfit=AFTER_A_LOSS)

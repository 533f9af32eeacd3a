"""The clients on a real cluster of three nodes, with two partitions on each: all that they can be asked for; and what
holds for the others while one node is away."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagastream import Accepted, AsyncSagaClient, NotReplicated, SagaClient, SagaRequest, Unsettled
from sagastream.broker.failures import NodeAway, is_refusal
from sagastream.client.beginning import BATCH
from sagastream.store.keys import StoreKeys
from support.clusters import Cluster, Node
from support.stores import divided, in_each

pytestmark = pytest.mark.both_in_soak

STEPS: Any = [{"transaction": "Do", "service": "nobody"}]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose nodes the test may kill."""
    made = Cluster("valkey", tmp_path)
    yield made
    made.stop()


def shared_out(cluster: Cluster) -> tuple[StoreKeys, list[str], Node, set[str]]:
    """A store of six partitions, and a saga of each; a node that has not the keys of the whole store, and which of the
    sagas are there."""
    keys = divided(cluster.broker(), 6)
    ids = in_each(keys)
    node = next(one for one in cluster.nodes if one is not cluster.node_of(keys.alive) and one.url != cluster.url)
    there = {saga_id for saga_id in ids if cluster.node_of(keys.saga(saga_id)) is node}
    assert len(there) == 2
    return keys, ids, node, there


def requested(cluster: Cluster, keys: StoreKeys, number: int) -> int:
    """How many sagas of a partition were asked for."""
    return int(cluster.node_of(keys.partitions[number].requests).ask("XLEN", keys.partitions[number].requests))


def saga(saga_id: str) -> SagaRequest:
    return {"saga_id": saga_id, "steps": STEPS}


# --- begin


def test_begins_of_a_node_that_is_away_are_unsettled_and_the_others_accepted(own: Cluster) -> None:
    keys, ids, node, there = shared_out(own)
    client = SagaClient(own.broker())
    client.begin("first", STEPS)
    node.kill()
    answers = client.begin_many(map(saga, ids))
    assert {one.saga_id for one in answers if isinstance(one, Accepted)} == {*ids} - there
    lost = [one for one in answers if isinstance(one, Unsettled)]
    assert {one.saga_id for one in lost} == there
    assert all(isinstance(one.error, NodeAway) for one in lost)
    for saga_id in ids:
        if saga_id in there:
            with pytest.raises(NodeAway) as raised:
                client.begin(saga_id, STEPS)
            assert is_refusal(raised.value)  # by now it is not even tried
        else:
            client.begin(saga_id, STEPS)
    many = [f"m{number}" for number in range(3 * BATCH)]
    away = {saga_id for saga_id in many if keys.of(saga_id).number in {keys.of(one).number for one in there}}
    told = client.begin_many(map(saga, many))
    assert [one.saga_id for one in told] == many
    assert {one.saga_id for one in told if isinstance(one, Accepted)} == {*many} - away
    assert not any(one.sent for one in told if isinstance(one, Unsettled))

    async def in_loop() -> None:
        async with AsyncSagaClient(own.broker()) as client:
            told = await client.begin_many(map(saga, many))
            assert {one.saga_id for one in told if isinstance(one, Accepted)} == {*many} - away
            node.start()
            await asyncio.to_thread(own.wait_ok)
            deadline = time.monotonic() + 20
            while any(isinstance(one, Unsettled) for one in await client.begin_many(map(saga, ids))):
                assert time.monotonic() < deadline, "the node is reached again"
                await asyncio.sleep(0.05)

    asyncio.run(in_loop())
    assert all(requested(own, keys, number) for number in range(6))


def test_each_node_is_asked_for_its_own_replicas(tmp_path: Path) -> None:
    cluster = Cluster("valkey", tmp_path, 3, 1)
    try:
        keys, ids, node, there = shared_out(cluster)
        client = SagaClient(cluster.broker())
        assert all(isinstance(one, Accepted) for one in client.begin_many(map(saga, ids), durable="replica"))
        (replica,) = cluster.replicas_of(node)
        replica.pause()
        began = time.monotonic()
        more = [*ids, *(f"m{number}" for number in range(60))]
        answers = client.begin_many(map(saga, more), durable="replica")
        assert time.monotonic() - began < 3
        behind = {keys.of(saga_id) for saga_id in there}
        unsure = [one for one in answers if isinstance(one, Unsettled)]
        assert {one.saga_id for one in unsure} == {one for one in more if keys.of(one) in behind}
        assert all(isinstance(one.error, NotReplicated) and one.sent for one in unsure)
        assert sum(isinstance(one, Accepted) for one in answers) == len(more) - len(unsure)
    finally:
        cluster.stop()

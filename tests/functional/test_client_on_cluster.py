"""The clients on a real cluster of three nodes, with two partitions on each: all that they can be asked for; and what
holds for the others while one node is away."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream import Accepted, AsyncSagaClient, NotReplicated, SagaClient, SagaRequest, UnreadableSaga, Unsettled
from sagastream.broker.cluster_map import slot_of
from sagastream.broker.failures import NodeAway, is_outage, is_refusal
from sagastream.broker.wire import Words, or_raise, round_trip
from sagastream.client.beginning import BATCH
from sagastream.client.requests import to_begin
from sagastream.core.causes import CauseKind
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.store.keys import StoreKeys
from sagastream.store.quarantine import Newest
from sagastream.store.saga_hash import changed_fields
from support.clusters import Cluster, Node
from support.stores import divided, in_each
from support.waiting import slowness, until

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


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_knows_whose_clock_counts_in_one_loop_after_another(cluster: Cluster) -> None:
    keys, client = divided(cluster.broker(), 3), AsyncSagaClient(cluster.broker())

    async def use() -> int | None:
        assert await client.get("nobody") is None
        slot: int | None = client._pool.connection_kwargs["nodes"].map.time.slot
        return slot

    assert [asyncio.run(use()) for _ in range(2)] == [slot_of(keys.alive)] * 2
    asyncio.run(client.close())
    gc.collect()  # the connections of the loop that nobody closed


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


# --- wait


def end(client: SagaClient, keys: StoreKeys, saga_id: str) -> None:
    """End a saga as a worker does: hash and event at once."""
    (definition,) = to_begin(saga(saga_id)).steps
    step = Step(definition=definition, phase=Phase.COMPLETED, attempt=1, sent_ms=1)
    ended = SagaState(
        saga_id=saga_id, status=SagaStatus.COMPLETED, current_step=1, steps=(step,), begun_ms=1, updated_ms=2, version=1
    )
    words: list[Words] = [
        ("HSET", keys.saga(saga_id), *changed_fields(None, ended)),
        ("XADD", keys.of(saga_id).events, "*", "kind", "outcome", "saga_id", saga_id),
    ]
    for answer in round_trip(client._redis, [("MULTI",), *words, ("EXEC",)]):
        or_raise(answer)


def asked_of(cluster: Cluster) -> int:
    """How many commands the live nodes have had, besides those of this test and of each other."""
    stats = [node.ask("INFO", "commandstats") for node in cluster.live]
    others = ("info", "ping", "publish", "cluster")
    return sum(
        one["calls"]
        for found in stats
        for name, one in found.items()
        if name.removeprefix("cmdstat_").partition("|")[0] not in others
    )


def test_an_end_wakes_whoever_waits_in_whichever_partition_and_waiting_is_cheap(cluster: Cluster) -> None:
    keys, ids, _, _ = shared_out(cluster)
    worker = SagaClient(cluster.broker())
    took: list[float] = []

    def waits(saga_ids: list[str]) -> None:
        for state in SagaClient(cluster.broker()).as_completed(saga_ids, 60):
            took.append(time.monotonic() - ended[state.saga_id])

    ended: dict[str, float] = {}
    for together in ([*ids], in_each(keys, "t")[3:4]):
        ended.clear()
        took.clear()
        waiting = threading.Thread(target=waits, args=[together])
        waiting.start()
        time.sleep(0.8)
        before = asked_of(cluster)
        time.sleep(2)
        per_s = (asked_of(cluster) - before) / 2
        assert per_s <= (16 if len(together) > 1 else 7)
        for saga_id in together:
            ended[saga_id] = time.monotonic()
            end(worker, keys, saga_id)
            time.sleep(0.03)
        waiting.join()
        assert sorted(took)[len(took) // 2] < 0.05 * slowness()
        assert max(took) < 0.3 * slowness()


def test_waits_of_the_other_nodes_go_on_while_one_is_away_and_its_own_are_over_when_it_is_back(own: Cluster) -> None:
    keys, ids, node, there = shared_out(own)
    more = in_each(keys, "t")
    blocking: dict[str, float] = {}
    looped: dict[str, float] = {}
    killed = threading.Event()

    def waits() -> None:
        with SagaClient(own.broker()) as client:
            for state in client.as_completed([*ids, *more], 120):
                blocking[state.saga_id] = time.monotonic()

    async def wait_all() -> None:
        async with AsyncSagaClient(own.broker()) as client:

            async def wait(saga_id: str) -> None:
                await client.wait(saga_id, 120)
                looped[saga_id] = time.monotonic()

            early = [asyncio.create_task(wait(saga_id)) for saga_id in ids]
            await asyncio.to_thread(killed.wait)
            await asyncio.gather(*early, *(wait(saga_id) for saga_id in more))

    worker = SagaClient(own.broker())
    threads = [threading.Thread(target=waits), threading.Thread(target=lambda: asyncio.run(wait_all()))]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    node.kill()
    killed.set()
    reached = [saga_id for saga_id in (*ids, *more) if own.node_of(keys.saga(saga_id)) is not node]
    for number, saga_id in enumerate(reached, 1):
        began = time.monotonic()
        end(worker, keys, saga_id)
        until(partial(_are_told, reached[:number], blocking, looped), what=f"{saga_id} is told")
        assert max(blocking[saga_id], looped[saga_id]) - began < 1.5 * slowness()
    assert {*blocking} == {*looped} == {*reached}
    with pytest.raises(TimeoutError, match="away"):
        SagaClient(own.broker()).wait(there.copy().pop(), 0.2)
    node.start()
    own.wait_ok()
    for saga_id in {*ids, *more} - {*reached}:
        until(partial(_ended, worker, keys, saga_id), what="the node is reached")
    for thread in threads:
        thread.join(60)
    assert {*blocking} == {*looped} == {*ids, *more}


def _are_told(saga_ids: Sequence[str], *told: Mapping[str, float]) -> bool:
    return all({*one} == {*saga_ids} for one in told)


def _ended(client: SagaClient, keys: StoreKeys, saga_id: str) -> bool:
    try:
        end(client, keys, saga_id)
    except redis.RedisError as error:
        if not is_outage(error):
            raise
        return False
    return True


# --- look


def id_of(found: SagaState | UnreadableSaga) -> str:
    assert isinstance(found, SagaState)
    return found.saga_id


def test_what_is_there_is_listed_found_and_erased_and_what_is_away_is_named(own: Cluster) -> None:
    keys, ids, node, there = shared_out(own)
    client = SagaClient(own.broker())
    for number, saga_id in enumerate(ids):
        end(client, keys, saga_id)
        partition = keys.of(saga_id)
        for index in (partition.begun, partition.index("status=COMPLETED")):
            client._redis.zadd(index, {saga_id: number})
        client._redis.xadd(partition.commands("nobody"), {"body": "{}"})
    client._redis.sadd(keys.services, "nobody")
    assert {one.saga_id for one in client.list() if isinstance(one, SagaState)} == {*ids}
    assert (client.find(status="COMPLETED").total, client.find().partitions_away) == (6, ())
    node.kill()
    left = [saga_id for saga_id in reversed(ids) if saga_id not in there]
    numbers = tuple(sorted(keys.of(saga_id).number for saga_id in there))
    listed: list[str] = []
    with pytest.raises(redis.ConnectionError, match=r"partitions .* of 6 are left out"):
        listed.extend(map(id_of, client.list()))
    assert listed == left
    assert [id_of(one) for one in client.list(limit=4)] == left  # there were enough
    page = client.find(status="COMPLETED")
    assert [one.saga_id for one in page.sagas] == left
    assert (page.total, page.total_is_exact, page.partitions_away) == (4, False, numbers)
    with pytest.raises(NodeAway):
        client.get(there.copy().pop())
    assert client.why(left[0]) == ()
    mine = in_each(keys, "mine")
    client.begin(waiting := next(one for one in mine if keys.of(one).number not in numbers), STEPS)
    assert [cause.kind for cause in client.why(waiting)] == [CauseKind.NO_WORKER, CauseKind.QUEUED]
    bulk = client.begin_bulk("cancel", reason="no more", status="PENDING")
    assert not bulk.total_is_exact
    erased = client.erase_many(ids, "asked for")
    assert erased.hashes == 4
    assert not erased.is_complete
    assert any(all(saga_id in text for saga_id in there) for text in erased.left)

    async def in_loop() -> list[str]:
        async with AsyncSagaClient(own.broker()) as client:
            assert (await client.find()).partitions_away == numbers
            listing = client.list()
            found = [id_of(await anext(listing)) for _ in left]
            with pytest.raises(redis.ConnectionError):
                await anext(listing)
            return found

    assert asyncio.run(in_loop()) == left
    node.start()
    own.wait_ok()
    until(lambda: not client.find().partitions_away, what="the node is reached")
    again = client.erase_many(ids, "asked for")
    assert (again.hashes, again.left, again.refused) == (2, [], {})


def test_what_was_set_aside_is_listed_as_far_as_it_can_be_read(own: Cluster) -> None:
    keys, _, node, _ = shared_out(own)
    client = SagaClient(own.broker())
    client._redis.sadd(keys.services, "till")
    message: Any = {"reason": "odd", "stream": "x", "entry_id": "1-1", "body": "{}"}
    for partition in keys.partitions:
        for stream in (partition.quarantine, partition.quarantine_of("till")):
            client._redis.xadd(stream, message)
    assert (len(found := client.quarantined()), found.partitions_away) == (12, ())
    for gone, services in ((node, {"", "till"}), (own.node_of(keys.partitions[0].timers), {""})):
        gone.kill()
        numbers = {one.number for one in keys.partitions if own.node_of(one.timers) is gone}
        found = client.quarantined()
        assert found.partitions_away == tuple(sorted(numbers))
        ids = {(one.set_aside_by, int(one.id.partition("@")[2] or 0)) for one in found}
        assert ids == {(by, one.number) for one in keys.partitions if one.number not in numbers for by in services}
        assert asyncio.run(in_loop_of(own)).partitions_away == found.partitions_away
        gone.start()
        own.wait_ok()
        until(lambda: not client.quarantined().partitions_away, what="the node is reached")


async def in_loop_of(cluster: Cluster) -> Newest:
    async with AsyncSagaClient(cluster.broker()) as client:
        return await client.quarantined()

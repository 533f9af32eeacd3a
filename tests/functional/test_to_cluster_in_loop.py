"""The connections of a client in an event loop to a real cluster: round trips, looks that wait, nodes that are away."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import ConnectionPool

from sagastream.broker.connection import connect_async
from sagastream.broker.exchange import Exchange, run_async
from sagastream.broker.failures import NodeAway, NoNode
from sagastream.broker.wire import Words, or_raise
from support.clusters import Cluster, free_ports
from support.waiting import slowness

pytestmark = pytest.mark.both_in_soak

#: One in the slots of each of three nodes.
ONE, TWO, THREE = "s{3}", "s{1}", "s{0}"
STREAMS = (ONE, TWO, THREE)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose nodes the test may kill."""
    made = Cluster("valkey", tmp_path)
    yield made
    made.stop()


def in_loop(to: Cluster | str, use: Callable[[ConnectionPool], Coroutine[Any, Any, None]]) -> None:
    """After it, no task may be left."""

    async def main() -> None:
        pool = connect_async(to if isinstance(to, str) else to.url)
        try:
            await use(pool)
        finally:
            await pool.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def ask(pool: ConnectionPool, *commands: Words) -> list[Any]:
    def exchange() -> Exchange[list[Any]]:
        return (yield commands)

    return await run_async(pool, exchange())


async def look(pool: ConnectionPool, after: dict[str, Any], block_ms: int) -> list[str]:
    """The streams in which there is something; `after` is moved on."""
    (found,) = await ask(pool, ("XREAD", "COUNT", 9, "BLOCK", block_ms, "STREAMS", *after, *after.values()))
    for stream, page in or_raise(found) or []:
        after[stream.decode()] = page[-1][0]
    return [stream.decode() for stream, _ in found or []]


def test_round_trips_go_to_all_nodes_and_answers_come_in_order(cluster: Cluster) -> None:
    async def use(pool: ConnectionPool) -> None:
        sets = [("SET", key, key) for key in STREAMS]
        answers = await ask(pool, *sets, ("TIME",), *(("GET", key) for key in STREAMS), ("EXISTS", *STREAMS))
        assert answers[:3] == [b"OK"] * 3
        assert len(answers[3]) == 2
        assert answers[4:] == [ONE.encode(), TWO.encode(), THREE.encode(), 3]
        many = await asyncio.gather(*(ask(pool, ("GET", STREAMS[number % 3])) for number in range(60)))
        assert [one for (one,) in many] == [STREAMS[number % 3].encode() for number in range(60)]

    in_loop(cluster, use)


def test_a_url_of_several_nodes_needs_one_that_answers(cluster: Cluster) -> None:
    dead, other = free_ports(2)

    async def use(pool: ConnectionPool) -> None:
        assert await ask(pool, *(("SET", key, key) for key in STREAMS)) == [b"OK"] * 3

    in_loop(f"redis://127.0.0.1:{dead},127.0.0.1:{cluster.nodes[1].port}", use)

    async def nobody(pool: ConnectionPool) -> None:
        with pytest.raises(NoNode, match=f"127.0.0.1:{dead} .*, 127.0.0.1:{other} "):
            await ask(pool, ("GET", ONE))

    in_loop(f"redis://127.0.0.1:{dead},127.0.0.1:{other}", nobody)


def test_a_look_wakes_at_once_and_asks_seldom_while_nothing_comes(cluster: Cluster) -> None:
    async def use(pool: ConnectionPool) -> None:
        after: dict[str, Any] = dict.fromkeys(STREAMS, "0")
        assert await look(pool, after, 50) == []
        for number in range(12):
            stream = STREAMS[number % 3]
            looking = asyncio.create_task(look(pool, after, 5000))
            await asyncio.sleep(0.02)
            began = time.monotonic()
            await ask(pool, ("XADD", stream, "*", "n", 1))
            assert await looking == [stream]
            assert time.monotonic() - began < 0.3 * slowness()
        before = asked_of(cluster)
        for _ in range(10):
            assert await look(pool, after, 100) == []
        assert asked_of(cluster) - before <= 3 * 2
        looking = asyncio.create_task(look(pool, after, 5000))
        await asyncio.sleep(0.02)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await ask(pool, ("XADD", TWO, "*", "n", 1))
        assert await look(pool, after, 5000) == [TWO]

    in_loop(cluster, use)


def asked_of(cluster: Cluster) -> int:
    """How often the nodes were asked for entries."""
    stats = [node.ask("INFO", "commandstats") for node in cluster.nodes]
    return sum(one["cmdstat_xread"]["calls"] for one in stats if "cmdstat_xread" in one)


def test_a_node_that_is_away_is_told_in_its_place_and_the_others_go_on(own: Cluster) -> None:
    async def use(pool: ConnectionPool) -> None:
        after: dict[str, Any] = dict.fromkeys(STREAMS, "0")
        await ask(pool, *(("SET", f"k{key}", 1) for key in STREAMS))
        assert await look(pool, after, 10) == []
        node = own.node_of(ONE)
        node.kill()
        first, second, third = await ask(pool, *(("GET", f"k{key}") for key in STREAMS))
        assert isinstance(first, NodeAway)
        assert (second, third) == (b"1", b"1")
        looking = asyncio.create_task(look(pool, after, 5000))
        await asyncio.sleep(0.05)
        await ask(pool, ("XADD", TWO, "*", "n", 1))
        assert await looking == [TWO]
        node.start()
        own.wait_ok()
        deadline = time.monotonic() + 20
        while isinstance((await ask(pool, ("XADD", ONE, "*", "n", 1)))[0], NodeAway):
            assert time.monotonic() < deadline, "it is reached again"
            await asyncio.sleep(0.05)
        assert await look(pool, after, 5000) == [ONE]

    in_loop(own, use)

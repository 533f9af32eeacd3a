"""What becomes of a round trip in an event loop that is cancelled, at whichever moment."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import ConnectionPool

from sagastream import AsyncSagaClient
from sagastream.broker.connection import connect_async
from sagastream.broker.exchange import Exchange, run_async
from sagastream.broker.wire import Words
from support.clusters import Cluster
from support.servers import Server

pytestmark = pytest.mark.both_in_soak

#: More than a round trip takes, even one that makes its connections first.
_STEPS = 60


async def ask(pool: ConnectionPool, *commands: Words) -> list[Any]:
    def exchange() -> Exchange[list[Any]]:
        return (yield commands)

    return await run_async(pool, exchange())


async def cancelled_at_each_step(url: str, *, is_new: bool) -> int:
    """How often a round trip was cancelled. It ends so each time, and the next one gets its own answers. `is_new`:
    whether its connections are."""
    pool = connect_async(url)
    cancelled = 0
    await ask(pool, ("SET", "{3}", "x"))
    for steps in range(_STEPS):
        if is_new:
            await pool.disconnect()
        asking = asyncio.create_task(ask(pool, ("GET", "{3}"), ("TIME",)))
        for _ in range(steps):
            await asyncio.sleep(0)
        if asking.cancel():
            cancelled += 1
            await asyncio.wait([asking])
            assert asking.cancelled(), f"it goes on if cancelled after {steps} steps of the loop"
        assert await ask(pool, ("GET", "{3}"), ("STRLEN", "{3}")) == [b"x", 1]
    await pool.aclose()
    return cancelled


def test_no_cancellation_of_a_round_trip_is_lost(server: Server) -> None:
    assert asyncio.run(cancelled_at_each_step(server.url, is_new=False)) > 3
    assert asyncio.run(cancelled_at_each_step(server.url, is_new=True)) > 3


def test_no_cancellation_is_lost_on_a_cluster(cluster: Cluster) -> None:
    assert asyncio.run(cancelled_at_each_step(cluster.url, is_new=False)) > 3
    assert asyncio.run(cancelled_at_each_step(cluster.url, is_new=True)) > 3


def test_a_wait_ends_when_its_time_is_up_whatever_it_does_then(server: Server) -> None:
    async def main() -> None:
        async with AsyncSagaClient(server.url) as client:
            await client.begin("o-1", [{"transaction": "Do", "service": "nobody"}])
            waits = [wait(client, number / 10_000) for number in range(1, 150)]
            await asyncio.wait_for(asyncio.gather(*waits), 20)

    async def wait(client: AsyncSagaClient, limit_s: float) -> None:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.wait("o-1"), limit_s)

    asyncio.run(main())

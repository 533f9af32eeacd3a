"""A planned switch of the master, and reads that the server ends: an outage of a moment for every process and client.

Connections stay open all the while, and lead to a server that is a replica by then.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream import AsyncSagaClient, SagaClient, SagaState
from sagastream.broker.connection import Broker
from support.processes import Commands, Talk
from support.scenes import do
from support.switches import SWITCHES, Pair
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.both_in_soak]

#: A service whose command `Wait` waits for the test; with a command that is done by jobs.
SHOP = """
from sagastream import Service, connect

service = Service("shop", concurrency=4, lease_ms=2000)


@service.command("Do", compensation=None)
def do(params, context):
    return params


@service.command("Job", compensation=None, via="rq", queue="steps")
def job(params, context):
    return params
"""


@pytest.fixture(params=["valkey", "redis"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with Pair(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=[*SWITCHES, "CLIENT UNBLOCK"])
def disturbed(request: pytest.FixtureRequest, pair: Pair) -> Callable[[], None]:
    """Does it: the master changes, or all that wait in a read get an error."""

    def disturb() -> None:
        if request.param == "CLIENT UNBLOCK":
            assert pair.unblock()
        else:
            pair.switch(request.param)

    return disturb


def readers(client: redis.Redis, command: str) -> int:
    """How many clients wait in this command."""
    return sum(bool(one["cmd"] == command and "b" in one["flags"]) for one in client.client_list())


def test_processes_go_on(pair: Pair, disturbed: Callable[[], None], commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SHOP)
    env = {"REDIS_URL": pair.url}
    workers = [commands.start("worker", env=env, stdout=-3) for _ in range(2)]
    services = [commands.start("service", "shop:service", env=env, stdout=-3) for _ in range(2)]
    on_rq = commands.start("rq-worker", "shop:service", env=env, stdout=-3)
    bridge = Talk(commands.start("bridge", "--outcomes", env=env))
    steps = [do(1, service="shop"), do(2, name="Job", service="shop")]
    bridge.say("c1", {"type": "saga_begin", "msg_id": 1, "saga_id": "before", "steps": steps})
    assert bridge.hear()[2]["type"] == "saga_completed"
    until(lambda: readers(pair.master, "xreadgroup") >= 4, what="workers and services wait for more")
    until(lambda: readers(pair.master, "xread") == 1, what="the bridge waits for events")
    disturbed()
    for number in range(3):
        saga_id = f"after{number}"
        bridge.say("c1", {"type": "saga_begin", "msg_id": 2, "saga_id": saga_id, "steps": steps})
        told = bridge.hear()[2]
        assert (told["type"], told["saga_id"]) == ("saga_completed", saga_id), told
    assert [one.poll() for one in (*workers, *services, on_rq, bridge.process)] == [None] * 6
    assert bridge.finish()[0] == 0


def test_those_who_wait_go_on(pair: Pair, disturbed: Callable[[], None], commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SHOP)
    env = {"REDIS_URL": pair.url}
    client = SagaClient(pair.url)
    sagas = ("waited", "one", "two", "awaited", "begun", "cancelled", "async")
    for saga_id in sagas[:4]:
        client.begin(saga_id, [do(1, service="shop")])
    for saga_id in sagas[5:]:
        client.begin(saga_id, [do(1, service="late")])
    body = json.dumps({"saga_id": "begun", "steps": [do(1, service="shop")]})
    (commands.folder / "begun.json").write_text(body)
    begin = commands.start("begin", "begun.json", "--wait", env=env)

    def in_a_loop(use: Callable[[AsyncSagaClient], Any]) -> SagaState:
        async def main() -> Any:
            async with AsyncSagaClient(pair.url) as one:
                return await use(one)

        return asyncio.run(main())  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as threads:
        waits: list[Future[Any]] = [
            threads.submit(lambda: SagaClient(pair.url).wait("waited", 60)),
            threads.submit(lambda: list(SagaClient(pair.url).as_completed(["one", "two"], 60))),
            threads.submit(in_a_loop, lambda one: one.wait("awaited", 60)),
            threads.submit(lambda: SagaClient(pair.url).cancel("cancelled", "why", 60)),
            threads.submit(in_a_loop, lambda one: one.cancel("async", "why", 60)),
        ]
        until(lambda: readers(pair.master, "xread") == 6, what="all wait for events")
        disturbed()
        commands.quiet("worker", env=env)
        commands.quiet("service", "shop:service", env=env)
        assert [type(wait.result()) for wait in waits] == [SagaState, list, SagaState, SagaState, SagaState]
    assert {client.wait(saga_id, 60).status for saga_id in sagas[:5]} == {"COMPLETED"}
    assert begin.communicate(timeout=60)[0] == b"begun COMPLETED\n"


@pytest.mark.parametrize("how", SWITCHES)
def test_an_idle_client_whose_master_has_changed_is_refused_once(pair: Pair, how: str) -> None:
    broker = Broker(pair.url)
    client = SagaClient(broker)
    barrier = threading.Barrier(4)

    def begin(number: int) -> None:  # each thread opens a connection of its own
        barrier.wait()
        client.begin(f"before{number}", [do(1)])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(begin, range(4)))
    pair.switch(how)
    with pytest.raises(redis.ReadOnlyError):
        client.begin("s1", [do(1)])
    for number in range(8):
        client.begin(f"after{number}", [do(1)])
    broker.close()

    async def main() -> None:
        async with AsyncSagaClient(pair.url) as one:
            await asyncio.gather(*(one.begin(f"async{number}", [do(1)]) for number in range(4)))
            pair.switch("REPLICAOF")
            with pytest.raises(redis.ReadOnlyError):
                await one.begin("s2", [do(1)])
            await asyncio.gather(*(one.begin(f"after-async{number}", [do(1)]) for number in range(4)))

    asyncio.run(main())

"""The clients on real servers: what a begin costs and returns, what waits see, what outages and forks do."""

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import redis
from msgspec.structs import replace

from sagastream import (
    Accepted,
    AsyncSagaClient,
    CorruptSaga,
    MalformedMessage,
    Refused,
    RequestRefused,
    SagaAborted,
    SagaClient,
    SagaParked,
    SagaRequest,
    SagaState,
    SagaStatus,
    UnreadableSaga,
    Unsettled,
)
from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run_async
from sagastream.client.beginning import BATCH
from sagastream.client.requests import to_begin
from sagastream.core.decision import decide
from sagastream.core.indexing import index_names
from sagastream.core.phases import Phase
from sagastream.core.transitions import Moment
from sagastream.errors import BrokerError, StoreFull
from sagastream.store import saga_hash
from sagastream.telemetry import Observer
from support.observers import Notes
from support.processes import Commands
from support.proxy import CuttingProxy
from support.scenes import Scene, do
from support.servers import OwnServer, Server
from support.stores import ONLY
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.both_in_soak

T = TypeVar("T")

#: A service that does what its params say. Its compensation never works.
TILL = """
from sagastream import Reject, Service

service = Service("till")


@service.command("Do", compensation=None)
def do(params, context):
    if params == "fail":
        raise Reject("no money")
    return params


@service.command("Charge", compensation="Refund")
def charge(params, context):
    return params


@service.compensation("Refund")
def refund(params, context):
    raise Reject("the bank is closed")
"""
PARKS = [do(1, "Charge", "till", compensation_attempts=1), do("fail", service="till")]


def a_saga(saga_id: str, *steps: Any) -> SagaRequest:
    return {"saga_id": saga_id, "steps": list(steps) or [do(1, service="till")]}


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


@pytest.fixture
def client(server: Server) -> SagaClient:
    return SagaClient(server.broker())


@pytest.fixture
def running(server: Server, commands: Commands) -> Server:
    """A server with a worker and the service."""
    (commands.folder / "till.py").write_text(TILL)
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    commands.quiet("service", "till:service", env=env)
    return server


def in_loop(
    server: Server, use: Callable[[AsyncSagaClient], Coroutine[Any, Any, T]], *, observer: Observer | None = None
) -> T:
    """The result of a coroutine function that gets an open client. After it, no task may be left."""

    async def main() -> T:
        async with AsyncSagaClient(server.broker(), observer=observer) as client:
            result = await use(client)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(main())


def calls(client: SagaClient) -> Counter[str]:
    """How often each command was called on the server."""
    stats: Any = client._redis.info("commandstats")
    return Counter({name: one["calls"] for name, one in stats.items()})


# --- begin


def test_a_begin_is_one_round_trip(client: SagaClient) -> None:
    client.begin("warm", [do(1)])
    before = calls(client)
    client.begin("s1", [do(1)])
    # The calls inside the script count too: it looks whether the store is full, reads the hash, and appends.
    inside = {"cmdstat_get": 1, "cmdstat_hgetall": 1, "cmdstat_xadd": 1}
    assert calls(client) - before == Counter({"cmdstat_evalsha": 1, "cmdstat_info": 1} | inside)


def test_many_begins_are_one_round_trip_a_batch(client: SagaClient) -> None:
    client.begin("warm", [do(1)])
    before = calls(client)
    answers = client.begin_many(a_saga(f"s{n}") for n in range(2 * BATCH + 1))
    assert [type(answer) for answer in answers] == [Accepted] * (2 * BATCH + 1)
    assert (calls(client) - before)["cmdstat_evalsha"] == 3
    assert client._redis.xlen(ONLY.requests) == 2 * BATCH + 2


def test_nothing_is_begun_of_no_sagas(client: SagaClient) -> None:
    assert client.begin_many([]) == []


def test_a_server_that_forgot_the_script_is_given_it_again(client: SagaClient) -> None:
    client.begin("s1", [do(1)])
    client._redis.script_flush()
    client.begin("s2", [do(1)])
    assert client._redis.xlen(ONLY.requests) == 2


def test_what_was_begun_before_is_accepted_and_not_asked_for_again(scene: Scene) -> None:
    scene.client.begin("s1", [do({"a": 1, "b": 2})])
    scene.play("s1")
    scene.client.begin("s1", [do({"b": 2, "a": 1})])
    assert scene.redis.xlen(ONLY.requests) == 0


def test_each_saga_of_many_has_its_answer_in_its_place(scene: Scene) -> None:
    scene.client.begin("taken", [do(1)])
    scene.play("taken")
    scene.redis.set(ONLY.saga("damaged"), "x")
    scene.redis.hset(ONLY.saga("garbled"), "status", "?")
    malformed: Any = {"saga_id": "malformed", "steps": [do(1), do(1, colour="red")]}
    begun = [a_saga("new"), a_saga("taken", do(2)), malformed, a_saga("damaged"), a_saga("taken", do(1))]
    answers = scene.client.begin_many([*begun, a_saga("garbled")])
    assert [answer.saga_id for answer in answers] == ["new", "taken", "malformed", "damaged", "taken", "garbled"]
    errors = [answer.error if isinstance(answer, Refused) else None for answer in answers]
    told = [type(error) for error in errors]
    assert told == [type(None), RequestRefused, MalformedMessage, CorruptSaga, type(None), CorruptSaga]
    what = "it began with 1 as params of step 1; this request has 2"
    assert str(errors[1]) == f"another saga has the id taken: {what}"
    assert str(errors[2]) == "step 2 has an unknown member 'colour'"
    # Requests that were refused, or were known, were not sent.
    assert scene.redis.xlen(ONLY.requests) == 1


def test_one_begin_raises_what_many_tell(scene: Scene) -> None:
    scene.redis.set(ONLY.saga("damaged"), "x")
    with pytest.raises(CorruptSaga, match="the key of saga damaged holds no hash"):
        scene.client.begin("damaged", [do(1)])
    with pytest.raises(MalformedMessage, match=r"steps must be a list of 1 to 100"):
        scene.client.begin("s1", [])
    assert scene.redis.xlen(ONLY.requests) == 0


def test_a_fault_is_raised_not_told_as_an_outage(client: SagaClient) -> None:
    client._redis.set(ONLY.requests, "x")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.begin_many([a_saga("s1")])


def test_a_full_server_refuses_a_batch(client: SagaClient) -> None:
    client.begin("warm", [do(1)])
    client._redis.config_set("maxmemory", 1)
    answers = client.begin_many(a_saga(f"s{n}") for n in range(3))
    client._redis.config_set("maxmemory", 0)
    refused = [answer.error for answer in answers if isinstance(answer, Refused)]
    assert [(error.code, error.retry_after_s) for error in refused if isinstance(error, StoreFull)] == [(11, 5.0)] * 3
    assert client._redis.xlen(ONLY.requests) == 1


@pytest.mark.own_server
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_broker_that_dies_in_the_middle_leaves_it_known_what_to_begin_again(server: OwnServer, kind: str) -> None:
    def sagas() -> Iterator[SagaRequest]:
        for number in range(3 * BATCH):
            if number == BATCH + 5:  # the first batch is sent when the first saga of the next one is read
                server.kill()
            yield a_saga(f"s{number}", do(number))

    def begun(again: list[SagaRequest] | None = None) -> list[Accepted | Refused | Unsettled]:
        given = sagas() if again is None else again
        if kind == "async":
            return in_loop(server, lambda client: client.begin_many(given))
        return SagaClient(server.broker()).begin_many(given)

    answers = begun()
    assert [type(answer) for answer in answers] == [Accepted] * BATCH + [Unsettled] * 2 * BATCH
    assert [answer.sent for answer in answers if isinstance(answer, Unsettled)] == [True] * BATCH + [False] * BATCH
    server.start()
    again = [a_saga(answer.saga_id, do(n)) for n, answer in enumerate(answers) if isinstance(answer, Unsettled)]
    assert {type(answer) for answer in begun(again)} == {Accepted}
    # All of them are begun again, as by a client that has forgotten which were: each runs once.
    assert {type(answer) for answer in begun([a_saga(f"s{n}", do(n)) for n in range(3 * BATCH)])} == {Accepted}
    scene = Scene(server.broker())

    def all_ended() -> bool:
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        return bool(scene.redis.zcard(ONLY.ended) == 3 * BATCH)

    until(all_ended, what="all have ended")
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    assert sorted(Counter(scene.effects.done).values()) == [1] * 3 * BATCH


# --- wait


def test_every_way_of_ending_is_a_value_or_an_error_if_asked(running: Server) -> None:
    client = SagaClient(running.broker())
    assert client.wait(client.begin("good", [do(1, service="till")]), 60, check=True).status == "COMPLETED"
    bad = client.wait(client.begin("bad", [do("fail", service="till")]), 60)
    assert (bad.status, bad.reason) == ("ABORTED", "Step 1 failed: no money")
    with pytest.raises(SagaAborted, match=r"saga bad was aborted: Step 1 failed: no money \(step 1, Do of till\)"):
        client.wait("bad", 60, check=True)
    parked = client.wait(client.begin("parked", PARKS), 60)
    assert (parked.status, parked.parked) == ("COMPENSATING", "Refund of step 1 failed: the bank is closed")
    with pytest.raises(SagaParked, match=r"saga parked is parked: .* \(step 1, Refund of till\)"):
        client.wait("parked", 60, check=True)
    assert client.abandon("parked", "it does not matter", 60).status == "ABORTED"
    with pytest.raises(RequestRefused, match="saga parked has ended, ABORTED"):
        client.retry("parked", "once more", 60)
    with pytest.raises(RequestRefused, match="there is no saga nobody"):
        client.cancel("nobody", "why", 60)


def test_the_async_client_tells_the_same(running: Server) -> None:
    async def use(client: AsyncSagaClient) -> None:
        assert await client.get("good") is None
        accepted = await client.begin("good", [do(1, service="till")], deadline_ms=60_000)
        assert (await client.wait(accepted, 60, check=True)).status == "COMPLETED"
        assert (await client.wait("good", 0)).status == "COMPLETED"
        answers = await client.begin_many([a_saga("bad", do("fail", service="till")), a_saga("parked", *PARKS)])
        bad, parked = await asyncio.gather(*(client.wait(answer.saga_id, 60) for answer in answers))
        assert (bad.reason, parked.parked) == ("Step 1 failed: no money", "Refund of step 1 failed: the bank is closed")
        with pytest.raises(SagaAborted):
            await client.wait("bad", 60, check=True)
        with pytest.raises(SagaParked):
            await client.wait("parked", 60, check=True)
        with pytest.raises(RequestRefused, match="another saga has the id good"):
            await client.begin("good", [do(2, service="till")])
        listed = [saga.saga_id async for saga in client.list() if isinstance(saga, SagaState)]
        assert listed == ["parked", "bad", "good"]
        assert (await client.abandon("parked", "it does not matter", 60)).status == "ABORTED"
        with pytest.raises(RequestRefused, match="saga parked has ended, ABORTED"):
            await client.retry("parked", "once more", 60)
        with pytest.raises(RequestRefused, match="there is no saga nobody"):
            await client.cancel("nobody", "why", 60)
        with pytest.raises(RequestRefused, match="saga bad has ended"):
            await client.skip("bad", "why", 60)
        with pytest.raises(ValueError, match="status must be one of"):
            client.list("GONE")  # type: ignore[arg-type]

    in_loop(running, use)


def test_many_are_waited_for_together_and_come_as_they_end(running: Server) -> None:
    client = SagaClient(running.broker())
    never = client.begin("never", [do(1, service="nobody")])
    answers = client.begin_many(a_saga(f"s{n}", do("fail" if n % 3 == 0 else n, service="till")) for n in range(60))
    accepted = [answer for answer in answers if isinstance(answer, Accepted)]
    found = [one for one in client.as_completed(accepted, 60) if isinstance(one, SagaState)]
    assert Counter(one.status for one in found) == {"COMPLETED": 40, "ABORTED": 20}
    assert sorted(one.saga_id for one in found) == sorted(f"s{n}" for n in range(60))
    waiting = client.as_completed([never, *accepted[:3], "unheard of"], 0.3)
    assert {one.saga_id for one in [next(waiting) for _ in range(3)]} == {"s0", "s1", "s2"}
    with pytest.raises(
        TimeoutError, match=r"saga never and 1 more have not ended within 0\.3 s: there is no saga unheard of yet$"
    ):
        next(waiting)


def test_of_two_begins_that_no_worker_has_read_the_second_is_told_that_it_was_refused(scene: Scene) -> None:
    first, second = scene.client.begin("s1", [do(1)]), scene.client.begin("s1", [do(2)])
    with ThreadPoolExecutor(2) as threads:
        waits = [threads.submit(scene.client.wait, accepted, 60) for accepted in (first, second)]
        scene.play("s1")
        assert waits[0].result().status == "COMPLETED"
        with pytest.raises(RequestRefused, match="another saga has the id s1"):
            waits[1].result()
    (told,) = scene.client.as_completed([second], 60)
    assert isinstance(told, Refused)


@pytest.mark.parametrize("timeout_s", [0, 0.2])
def test_a_wait_is_no_longer_than_asked_for(server: Server, timeout_s: float) -> None:
    client = SagaClient(server.broker())

    async def use(client: AsyncSagaClient) -> None:
        with pytest.raises(
            TimeoutError, match=f"saga nobody has not ended within {timeout_s} s: there is no saga nobody yet$"
        ):
            await client.wait("nobody", timeout_s)
        with pytest.raises(TimeoutError, match="no worker has taken the cancel of saga nobody"):
            await client.cancel("nobody", "why", timeout_s)

    with takes_less_than(5 * timeout_s + 2):
        with pytest.raises(
            TimeoutError, match=f"saga nobody has not ended within {timeout_s} s: there is no saga nobody yet$"
        ):
            client.wait("nobody", timeout_s)
        with pytest.raises(TimeoutError, match="no worker has taken the cancel of saga nobody"):
            client.cancel("nobody", "why", timeout_s)
        accepted = client.begin("unread", [do(1)])
        with pytest.raises(TimeoutError, match=r"saga unread has not ended within .*: no worker has begun unread yet$"):
            client.wait(accepted, timeout_s)
        in_loop(server, use)
    assert client._redis.xlen(ONLY.requests) == 1
    assert client._redis.xlen(ONLY.interventions) == 2  # the cancels are in the store too


def test_a_wait_whose_news_were_lost_ends_all_the_same(server: Server) -> None:
    """Events are lost if the stream is capped, or in a failover. The hash is the truth."""
    store = server.broker().client
    with ThreadPoolExecutor(2) as threads:
        waits = [
            threads.submit(SagaClient(server.broker()).wait, "s1", 60),
            threads.submit(in_loop, server, lambda client: client.wait("s1", 60)),
        ]
        until(lambda: len(readers(store)) == 2, what="both read the events")
        put(store, "s1", SagaStatus.COMPLETED)
        assert [wait.result().status for wait in waits] == ["COMPLETED", "COMPLETED"]


# --- waits and outages


@pytest.mark.own_server
def test_waits_go_on_through_a_restart_of_the_broker(
    running: OwnServer, commands: Commands, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    accepted = SagaClient(running.broker()).begin("s1", [do(1, service="later")])
    blocking, in_a_loop = Notes(), Notes()
    with ThreadPoolExecutor(2) as threads:
        waits = [
            threads.submit(SagaClient(running.broker(), observer=blocking).wait, accepted, 60),
            threads.submit(in_loop, running, lambda client: client.wait(accepted, 60), observer=in_a_loop),
        ]
        store = running.broker().client
        until(lambda: len(readers(store)) == 2, what="both read the events")
        killed_s = time.monotonic()
        running.kill()
        until(lambda: caplog.text.count("the broker is away") == 2, what="both log it")
        running.start()
        (commands.folder / "later.py").write_text(TILL.replace('"till"', '"later"'))
        commands.quiet("service", "later:service", env={"REDIS_URL": running.url})
        assert [wait.result().status for wait in waits] == ["COMPLETED", "COMPLETED"]
        took_s = time.monotonic() - killed_s
    assert caplog.text.count("the broker is back") == caplog.text.count("the broker is away")
    assert {(record.name, record.__dict__["source"]) for record in caplog.records} == {
        ("sagastream.broker", "sagastream client")
    }
    assert capfd.readouterr().err == ""
    for notes in (blocking, in_a_loop):
        assert notes.points[:2] == ["outage_began", "outage_ended"]
        assert isinstance(notes.of("outage_began")[0]["error"], redis.ConnectionError)
        assert 0 < notes.of("outage_ended")[0]["duration_s"] < took_s


@pytest.mark.own_server
def test_a_wait_that_times_out_while_the_broker_is_away_says_so(server: OwnServer) -> None:
    client = SagaClient(server.broker())
    client.begin("s1", [do(1)])

    async def use(client: AsyncSagaClient) -> None:
        with pytest.raises(TimeoutError, match=r"saga s1 has not ended within 0\.3 s \(the broker is away: .+\)"):
            await client.wait("s1", 0.3)
        with pytest.raises(redis.ConnectionError):
            await client.cancel("s1", "why", 1)

    server.kill()
    with pytest.raises(TimeoutError, match=r"saga s1 has not ended within 0\.3 s \(the broker is away: .+\)"):
        client.wait("s1", 0.3)
    with pytest.raises(redis.ConnectionError):
        client.cancel("s1", "why", 1)
    in_loop(server, use)


def test_a_fault_ends_every_wait(server: Server) -> None:
    client = SagaClient(server.broker())
    client._redis.set(ONLY.events, "x")

    async def use(client: AsyncSagaClient) -> None:
        waits = (client.wait(f"s{n}", 60) for n in range(3))
        errors = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(error) for error in errors] == [redis.ResponseError] * 3

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.wait("s1", 60)
    in_loop(server, use)


def test_clients_come_through_a_network_that_cuts_everywhere(server: Server) -> None:
    """It cuts before a request, in it, before its answer and in the answer. Each saga is run once, and each wait
    ends."""
    scene = Scene(server.broker())
    threads = [threading.Thread(target=run) for run in (scene.worker.run, scene.runner.run)]
    for thread in threads:
        thread.start()
    try:
        with CuttingProxy(server.url.removeprefix("unix://"), seed=1) as proxy:
            proxy.cut = 0.1
            assert asyncio.run(begun_and_waited_for(proxy.url, 100)) == {"COMPLETED": 66, "ABORTED": 34}
            client = SagaClient(Broker(proxy.url))
            left = [a_saga(f"many{n}", do(n)) for n in range(10 * BATCH)]
            while left:
                answers = client.begin_many(left)
                left = [saga for saga, answer in zip(left, answers, strict=True) if isinstance(answer, Unsettled)]
            found = client.as_completed([f"many{n}" for n in range(10 * BATCH)], 200)
            assert Counter(one.status for one in found if isinstance(one, SagaState)) == {"COMPLETED": 10 * BATCH}
            client.close()
            assert proxy.cuts.total() > 10
    finally:
        scene.stop.set()
        for thread in threads:
            thread.join()
    assert set(Counter(scene.effects.done).values()) == {1}
    assert len(scene.effects.done) == 10 * BATCH + 66 * 2 + 34


async def begun_and_waited_for(url: str, count: int) -> Counter[str]:
    """Begin so many sagas, of which every third fails, and wait for all side by side: how they ended."""

    async def one(client: AsyncSagaClient, number: int) -> str:
        while True:
            with contextlib.suppress(redis.RedisError):
                accepted = await client.begin(f"s{number}", [do(number), do("fail" if number % 3 == 0 else number)])
                break
        if number % 5 == 0:
            gives_up = asyncio.create_task(client.wait(accepted))
            await asyncio.sleep(number / 1000)
            gives_up.cancel()
            await asyncio.wait([gives_up])
        return (await client.wait(accepted, 60)).status

    async with AsyncSagaClient(Broker(url)) as client:
        statuses = await asyncio.gather(*(one(client, number) for number in range(count)))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return Counter(statuses)


# --- many coroutines


def readers(store: "redis.Redis") -> list[Any]:
    """The connections that wait for events."""
    return [one for one in store.client_list() if one["cmd"] == "xread" and "b" in one["flags"]]


def test_a_thousand_coroutines_wait_on_one_connection(running: Server) -> None:
    store = running.broker().client
    most = Counter[str]()

    async def use(client: AsyncSagaClient) -> list[SagaState]:
        waits = [asyncio.create_task(client.wait(f"s{n}", 60)) for n in range(1000)]
        await asyncio.sleep(0)
        while not readers(store):
            await asyncio.sleep(0.01)
        most.update(readers=len(readers(store)), connections=len(client._pool._in_use_connections))
        await client.begin_many(a_saga(f"s{n}") for n in range(1000))
        return await asyncio.gather(*waits)

    before = calls(SagaClient(running.broker()))
    states = in_loop(running, use)
    assert Counter(state.status for state in states) == {"COMPLETED": 1000}
    assert most == {"readers": 1, "connections": 1}
    assert (calls(SagaClient(running.broker())) - before)["cmdstat_xread"] < 1000


def test_a_cancelled_wait_leaves_no_task_and_no_connection_behind(server: Server) -> None:
    store = server.broker().client

    async def use(client: AsyncSagaClient) -> None:
        others = asyncio.all_tasks()
        for wait_s in (0, 0.05, 0.1):  # at different points of the cycle
            wait = asyncio.create_task(client.wait("s1"))
            await asyncio.sleep(wait_s)
            wait.cancel()
            with pytest.raises(asyncio.CancelledError):
                await wait
        deadline = time.monotonic() + 60
        while asyncio.all_tasks() != others:
            assert time.monotonic() < deadline, "a task is left"
            await asyncio.sleep(0.01)
        assert not client._pool._in_use_connections
        assert not readers(store)

    in_loop(server, use)
    until(lambda: len(store.client_list()) == 1, what="the connections are closed")


def test_a_client_that_is_closed_ends_the_waits(server: Server) -> None:
    async def main() -> None:
        client = AsyncSagaClient(server.broker())
        wait = asyncio.create_task(client.wait("s1"))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(BrokerError, match="the client was closed"):
            await wait

    asyncio.run(main())


def test_a_client_is_closed_even_if_a_cancellation_is_lost_on_the_way(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = 0

    async def loses_one(*args: Any) -> Any:
        nonlocal lost
        try:
            return await run_async(*args)
        except asyncio.CancelledError:
            if lost:
                raise
            lost = 1
            return ()

    async def main() -> None:
        client = AsyncSagaClient(server.broker())
        monkeypatch.setattr("sagastream.client.loop_watcher.run_async", loses_one)
        wait = asyncio.create_task(client.wait("s1"))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(BrokerError, match="the client was closed"):
            await wait

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_may_be_used_in_one_loop_after_another(running: Server) -> None:
    """As by tests that run each in a loop of its own, and share a client."""
    client = AsyncSagaClient(running.broker())

    async def use(number: int) -> str:
        assert await client.get("nobody") is None
        accepted = await client.begin(f"s{number}", [do(1, service="till")])
        state = await client.wait(accepted, 60)
        return str(state.status)

    assert [asyncio.run(use(number)) for number in range(3)] == ["COMPLETED"] * 3
    asyncio.run(client.close())
    gc.collect()  # the connections of the loops that nobody closed


def test_a_client_of_another_loop_that_is_open_is_refused(running: Server) -> None:
    first = asyncio.new_event_loop()
    client = AsyncSagaClient(running.broker())
    accepted = first.run_until_complete(client.begin("s1", [do(1, service="till")]))

    async def refused() -> None:
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
            lambda: client.get("s1"),
            lambda: client.wait(accepted),
            lambda: client.begin("s2", [do(1)]),
            lambda: client.begin_many([a_saga("s3")]),
            lambda: client.cancel("s1", "why"),
            client.close,
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match=r"^this AsyncSagaClient belongs to another event loop: "):
                await call()
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await anext(aiter(client.list()))

    asyncio.run(refused())
    assert first.run_until_complete(client.wait(accepted, 60)).status == "COMPLETED"
    first.run_until_complete(client.close())
    first.close()


def test_a_client_waits_again_after_nobody_did(running: Server) -> None:
    async def use(client: AsyncSagaClient) -> None:
        for number in range(3):
            assert (await client.wait(await client.begin(f"s{number}", [do(1, service="till")]), 60)).ended
            while client._watcher._task is None or not client._watcher._task.done():
                await asyncio.sleep(0.01)

    in_loop(running, use)


# --- threads and forks


def test_a_client_of_a_url_closes_what_it_has_opened_and_no_broker_of_another(server: Server) -> None:
    async def use() -> None:
        async with contextlib.aclosing(AsyncSagaClient(server.url)) as client:
            assert await client.get("s1") is None
            assert [saga async for saga in client.list()] == []

    broker = server.broker()
    with SagaClient(server.url) as mine, SagaClient(broker) as anothers:
        assert mine.get("s1") is anothers.get("s1") is None
    asyncio.run(use())
    pools = [mine._redis.connection_pool, broker.client.connection_pool]
    lent = [[*pool._available_connections, *pool._in_use_connections] for pool in pools]
    assert [any(one.is_connected for one in those) for those in lent] == [False, True]


def test_threads_may_share_a_client(running: Server) -> None:
    client = SagaClient(running.broker())

    with ThreadPoolExecutor(16) as threads:
        ended = list(threads.map(lambda n: client.wait(client.begin(f"s{n}", [do(n, service="till")]), 60), range(64)))
    assert [(one.saga_id, one.status, one.steps[0].result) for one in ended] == [
        (f"s{n}", "COMPLETED", str(n).encode()) for n in range(64)
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_process_and_those_that_it_forks_may_share_a_client(running: Server) -> None:
    """RQ does this for every job."""
    client = SagaClient(running.broker())
    client.wait(client.begin("before", [do(0, service="till")]), 60)  # its connections are open
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                state = client.wait(client.begin(f"child{number}", [do(number, service="till")]), 60)
                code = 0 if state.steps[0].result == str(number).encode() else 2
            finally:
                os._exit(code)
        children.append(child)
    for number in range(10):
        state = client.wait(client.begin(f"parent{number}", [do(number, service="till")]), 60)
        assert state.steps[0].result == str(number).encode()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


# --- list


#: What its only step is doing, by the saga's status and whether the saga is parked.
_PHASES = {
    (SagaStatus.PENDING, False): Phase.OUT,
    (SagaStatus.PENDING, True): Phase.PARKED,
    (SagaStatus.COMPENSATING, False): Phase.UNDO_OUT,
    (SagaStatus.COMPENSATING, True): Phase.UNDO_PARKED,
    (SagaStatus.COMPLETED, False): Phase.COMPLETED,
    (SagaStatus.ABORTED, False): Phase.COMPENSATED,
}


def put(
    store: "redis.Redis",
    saga_id: str,
    status: SagaStatus,
    *,
    parked: bool = False,
    score: float = 0,
    at_ms: int = 1_700_000_000_000,
) -> None:
    """Write a saga into the store without telling anybody."""
    state = decide(None, to_begin(a_saga(saga_id)), Moment(now_ms=at_ms, published={})).state
    assert isinstance(state, SagaState)
    step = replace(state.step, phase=_PHASES[status, parked], parked="why" if parked else None)
    state = replace(state, status=status, steps=(replace(step, compensation="Undo"),))
    words: list[Any] = saga_hash.changed_fields(None, state)
    with store.pipeline() as transaction:
        transaction.hset(ONLY.saga(saga_id), items=words)
        transaction.zadd(ONLY.ended if state.ended else ONLY.timers, {saga_id: float("inf") if parked else score})
        for key in (ONLY.begun, *map(ONLY.index, index_names(state))):
            transaction.zadd(key, {saga_id: state.begun_ms})
        transaction.execute()


def listed(found: Iterator[SagaState | UnreadableSaga]) -> list[str]:
    return [one.saga_id if isinstance(one, SagaState) else str(one) for one in found]


def test_a_list_has_those_first_that_began_last(client: SagaClient) -> None:
    store = client._redis
    put(store, "s1", SagaStatus.COMPLETED, at_ms=1)
    put(store, "s4", SagaStatus.ABORTED, at_ms=4)
    put(store, "s6", SagaStatus.PENDING, score=9, at_ms=6)
    put(store, "s2", SagaStatus.COMPENSATING, score=3, at_ms=2)
    put(store, "s5", SagaStatus.COMPENSATING, parked=True, at_ms=5)
    put(store, "s3", SagaStatus.PENDING, parked=True, at_ms=3)
    assert listed(client.list()) == ["s6", "s5", "s4", "s3", "s2", "s1"]
    assert listed(client.list(limit=3)) == ["s6", "s5", "s4"]
    assert listed(client.list(limit=0)) == []
    assert listed(client.list(status="PARKED")) == ["s5", "s3"]
    assert listed(client.list(status=SagaStatus.PENDING)) == ["s6", "s3"]
    assert listed(client.list(status="COMPENSATING")) == ["s5", "s2"]
    assert listed(client.list(status="COMPLETED")) == ["s1"]
    assert listed(client.list(status="ABORTED", limit=5)) == ["s4"]
    with pytest.raises(ValueError, match=r"status must be one of PENDING, .*, PARKED, not 'GONE'"):
        client.list(status="GONE")  # type: ignore[arg-type]


def test_what_is_damaged_or_gone_stops_no_list(client: SagaClient) -> None:
    for saga_id in ("a", "b", "c", "d"):
        put(client._redis, saga_id, SagaStatus.PENDING)
    client._redis.delete(ONLY.saga("b"))
    client._redis.delete(ONLY.saga("c"))
    client._redis.set(ONLY.saga("c"), "x")
    assert listed(client.list()) == ["d", "a", "the key of saga c holds no hash"]


@pytest.mark.parametrize("status", ["PARKED", "PENDING", "COMPLETED"])
def test_a_long_list_comes_whole_and_a_page_at_a_time(client: SagaClient, status: Any) -> None:
    kind = SagaStatus.PENDING if status == "PARKED" else SagaStatus(status)
    for number in range(450):
        # Many have the same score: if a page ends among them, the next one begins there.
        put(client._redis, f"s{number}", kind, parked=status == "PARKED", at_ms=1_700_000_000_000 + number // 300)
    before = calls(client)
    first = next(client.list(status))
    assert isinstance(first, SagaState)
    assert (calls(client) - before)["cmdstat_hgetall"] <= 201  # one for the layout of the store
    assert sorted(listed(client.list(status))) == sorted(f"s{number}" for number in range(450))


def test_all_parked_sagas_are_met_though_each_is_taken_away_meanwhile(client: SagaClient) -> None:
    for number in range(450):
        put(client._redis, f"s{number}", SagaStatus.COMPENSATING, parked=True)
    met = 0
    for saga in client.list(status="PARKED"):
        assert isinstance(saga, SagaState)
        client._redis.zrem(ONLY.index("status=PARKED"), saga.saga_id)  # as a retry does
        met += 1
    assert met == 450


def test_ended_sagas_that_come_meanwhile_shift_nothing(client: SagaClient) -> None:
    for number in range(450):
        put(client._redis, f"s{number}", SagaStatus.COMPLETED, at_ms=1 + number)
    met = []
    for number, saga in enumerate(client.list(status="COMPLETED")):
        assert isinstance(saga, SagaState)
        met.append(saga.saga_id)
        if number % 2:
            put(client._redis, f"late{number}", SagaStatus.COMPLETED, at_ms=1000 + number)
    assert met == [f"s{number}" for number in reversed(range(450))]


def test_a_wait_that_times_out_says_why_the_saga_waits(server: Server, commands: Commands) -> None:
    commands.quiet("worker", env={"REDIS_URL": server.url})
    client = SagaClient(server.broker())
    accepted = client.begin("s1", [do(1, service="tlli")])
    until(lambda: client.get("s1"), what="the saga is begun")
    says = r"no process of service tlli is listening, and none ever was"

    async def use(client: AsyncSagaClient) -> None:
        with pytest.raises(TimeoutError, match=rf"saga s1 has not ended within 0\.3 s: {says}"):
            await client.wait("s1", 0.3)

    with pytest.raises(TimeoutError, match=rf"saga s1 has not ended within 0\.3 s: {says}"):
        client.wait(accepted, 0.3)
    with pytest.raises(TimeoutError, match=rf"saga s1 and 1 more have not ended within 0\.3 s; s1: {says}"):
        list(client.as_completed([accepted, "s1"], 0.3))
    in_loop(server, use)

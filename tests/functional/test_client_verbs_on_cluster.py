"""All that a client can be asked for, on a real cluster of three nodes with two partitions on each: from a client that
blocks, and from one in an event loop."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sagastream import (
    AsyncSagaClient,
    Definition,
    DroppedCommands,
    MalformedMessage,
    SagaClient,
    SagaState,
    UnknownSaga,
)
from support.clusters import Cluster
from support.processes import Commands
from support.stores import divided, in_each

pytestmark = pytest.mark.both_in_soak

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
DO: Any = {"transaction": "Do", "service": "till", "params": 1}
CHARGE: Any = {"transaction": "Charge", "service": "till", "params": 1, "compensation_attempts": 1}
PARKS: Any = [CHARGE, DO | {"params": "fail"}]
WAITS: Any = [{"wait": "go", "timeout_ms": 600_000}, DO]

#: Calls a method of the client, whichever it is.
Ask = Callable[..., Awaitable[Any]]


def test_both_clients_do_on_a_cluster_what_they_do_on_a_server(cluster: Cluster, commands: Commands) -> None:
    keys = divided(cluster.broker(), 6)
    (commands.folder / "till.py").write_text(TILL)
    env = {"REDIS_URL": cluster.url}
    commands.quiet("worker", env=env)
    commands.quiet("service", "till:service", env=env)

    async def both() -> None:
        client = SagaClient(cluster.broker())
        async with AsyncSagaClient(cluster.broker()) as in_loop:
            for name, one in (("a", client), ("b", in_loop)):

                async def ask(verb: str, *args: Any, one: Any = one, **named: Any) -> Any:
                    result = getattr(one, verb)(*args, **named)
                    return await result if inspect.isawaitable(result) else result

                await _is_begun_and_ends(ask, in_each(keys, name))
                await _is_parked_and_settled(ask, in_each(keys, f"{name}p"))
                await _is_signalled_and_cancelled(ask, in_each(keys, f"{name}w"))
                await _of_the_store(ask, name)
            listed = {_id(one) for one in client.list()}
            assert listed == {_id(one) async for one in in_loop.list()}
            assert len(listed) == 2 * (6 + 6 + 6 + 1)
            ended = [state.saga_id for state in client.as_completed(in_each(keys, "a"), 60) if _id(state)]
            assert sorted(ended) == sorted(in_each(keys, "a"))

    asyncio.run(both())


def _id(found: Any) -> str:
    assert isinstance(found, SagaState)
    return found.saga_id


async def _is_begun_and_ends(ask: Ask, ids: list[str]) -> None:
    await ask("begin", ids[0], [DO])
    answers = await ask("begin_many", [{"saga_id": saga_id, "steps": [DO]} for saga_id in ids])
    assert [type(one).__name__ for one in answers] == ["Accepted"] * 6
    for saga_id in ids:
        assert (await ask("wait", saga_id, 60, check=True)).status == "COMPLETED"
        assert (await ask("get", saga_id)).steps[0].result == b"1"
        assert [event.kind for event in await ask("history", saga_id)][-1] == "ENDED"
        assert await ask("why", saga_id) == ()
    found = await ask("find", status="COMPLETED")
    assert {*ids} <= {one.saga_id for one in found.sagas}
    erased = await ask("erase", ids[0], "asked for")
    assert (erased.hashes, erased.records, erased.events, erased.left) == (1, 1, 1, [])
    assert (await ask("erase_many", ids, "asked for")).hashes == 5
    with pytest.raises(UnknownSaga):
        await ask("why", f"{ids[0]}-none")
    with pytest.raises(MalformedMessage):
        await ask("begin", ids[0], [])


async def _is_parked_and_settled(ask: Ask, ids: list[str]) -> None:
    for saga_id in ids:
        await ask("begin", saga_id, PARKS)
    for saga_id in ids:
        assert (await ask("wait", saga_id, 60)).parked
    assert [cause.kind for cause in await ask("why", ids[0])] == ["parked"]
    assert (await ask("retry", ids[0], "again", 60)).status == "COMPENSATING"
    assert (await ask("wait", ids[0], 60)).parked
    assert (await ask("skip", ids[0], "no need", 60)).status == "ABORTED"
    assert (await ask("abandon", ids[1], "no use", 60)).status == "ABORTED"
    bulk = await ask("begin_bulk", "skip", reason="all of them", parked="Refund")
    for saga_id in ids[2:]:
        while not (state := await ask("get", saga_id)).ended:
            await asyncio.sleep(0.05)
        assert state.status == "ABORTED"
    while (await ask("bulk", bulk.bulk_id)).state != "DONE":
        await asyncio.sleep(0.05)
    assert {one.saga_id for one in await ask("bulk_results", bulk.bulk_id)} == {*ids[2:]}
    assert bulk.bulk_id in {one.bulk_id for one in await ask("bulks")}


async def _is_signalled_and_cancelled(ask: Ask, ids: list[str]) -> None:
    for saga_id in ids:
        await ask("begin", saga_id, WAITS)
    for saga_id in ids[:3]:
        await ask("signal", saga_id, "go", {"by": "me"}, 60)
        assert (await ask("wait", saga_id, 60)).status == "COMPLETED"
    for saga_id in ids[3:]:
        assert (await ask("cancel", saga_id, "no more", 60)).status == "ABORTED"


async def _of_the_store(ask: Ask, name: str) -> None:
    heard = await ask("pause", "till", reason="a break", actor=name)
    assert len(heard.known) == 1
    assert [one.actor for one in await ask("paused")] == [name]
    assert (await ask("resume", "till", reason="go on")).pause.name == "till"
    assert [one.verb for one in await ask("operations", 2)] == ["resume", "pause"]
    definition = Definition(f"order-{name}", version=1)
    definition.step("Do", service="till", params=1)
    assert await ask("deploy", definition) is None
    assert [one.current for one in await ask("definitions") if one.name == f"order-{name}"] == [1]
    await ask("begin", await ask("definition", f"order-{name}"), saga_id=f"defined-{name}")
    assert (await ask("wait", f"defined-{name}", 60)).status == "COMPLETED"
    assert await ask("quarantined") == []
    assert await ask("drop_commands", "nobody") == DroppedCommands(dropped=0)

"""`durable="replica"`, on a real master and its replica: what was accepted is there after a failover, and what no
replica has is not accepted."""

import asyncio
import json
import threading
from typing import Any

import pytest

from sagastream import AsyncSagaClient, NotReplicated, Refused, SagaClient, SagaRequest, Unsettled
from sagastream.broker.connection import connect
from sagastream.client.answers import Accepted
from sagastream.store.roles import Role
from support.processes import Commands, Talk
from support.replicas import Pair
from support.servers import Server
from support.stores import ONLY
from support.users import Users
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.both_in_soak

STEPS: Any = [{"transaction": "Do", "service": "nobody"}]


def requested(url: str) -> set[str]:
    """The sagas that were asked for, and that no worker has begun."""
    with connect(url) as store:
        entries: Any = store.xrange(ONLY.requests)
    return {json.loads(fields[b"body"])["saga_id"] for _, fields in entries}


def test_what_was_accepted_is_there_after_a_failover(pair: Pair) -> None:
    many: list[SagaRequest] = [{"saga_id": f"m{number}", "steps": STEPS} for number in range(5)]
    with SagaClient(pair.url) as client:
        client.begin("plain", STEPS)
        client.begin("s1", STEPS, durable="replica")
        with connect(pair.url) as store:
            store.script_flush()  # so the first round trip begins nothing
        client.begin("s2", STEPS, durable="replica")
        assert all(isinstance(one, Accepted) for one in client.begin_many(many, durable="replica"))

    async def begin() -> None:
        async with AsyncSagaClient(pair.url) as client:
            await client.begin("a1", STEPS, durable="replica")

    asyncio.run(begin())
    SagaClient(Users(pair.master).broker(Role.BEGIN_ONLY)).begin("b1", STEPS, durable="replica")
    pair.promote()
    assert requested(pair.url) >= {"s1", "s2", "a1", "b1", *(f"m{number}" for number in range(5))}


def test_what_no_replica_has_is_not_accepted_and_begins_all_the_same(pair: Pair, commands: Commands) -> None:
    commands.quiet("worker", env={"REDIS_URL": pair.url})
    pair.cut()
    file = commands.folder / "saga.json"
    with SagaClient(pair.url) as client:
        client.begin("known", STEPS)
        until(lambda: client.get("known"), what="it has begun")
        for saga_id in ("known", "s1"):
            # A connection that has written nothing yet: of a saga that is known, the begin writes nothing either.
            with (
                SagaClient(pair.url) as another,
                pytest.raises(NotReplicated, match=f"saga {saga_id}: the broker has accepted it") as raised,
            ):
                another.begin(saga_id, STEPS, durable="replica")
            assert raised.value.saga_id == saga_id
        other: Any = [{"transaction": "Other", "service": "nobody"}]
        sagas: list[SagaRequest] = [{"saga_id": "s2", "steps": STEPS}, {"saga_id": "known", "steps": other}]
        unsettled, refused = client.begin_many(sagas, durable="replica")
        assert isinstance(unsettled, Unsettled)
        assert isinstance(unsettled.error, NotReplicated)
        assert isinstance(refused, Refused)
        file.write_text(json.dumps({"type": "saga_begin", "saga_id": "s3", "steps": STEPS}))
        done = commands.run("begin", str(file), "--durable", "replica", REDIS_URL=pair.url)
        assert (done.returncode, "no replica is connected to it" in done.stderr) == (1, True)
        assert "Traceback" not in done.stderr
        until(lambda: all(client.get(saga_id) for saga_id in ("s1", "s2", "s3")), what="all have begun")


def test_where_no_replica_is_connected_the_answer_comes_at_once(server: Server) -> None:
    many: list[SagaRequest] = [{"saga_id": f"m{number}", "steps": STEPS} for number in range(1000)]
    with SagaClient(server.broker()) as client, takes_less_than(1.5):
        for saga_id in ("s1", "s1"):  # the first one brings the script, too
            with pytest.raises(NotReplicated, match=f"saga {saga_id}: .* but no replica is connected to it; begin it"):
                client.begin(saga_id, STEPS, durable="replica")
        found = client.begin_many(many, durable="replica")
    assert {str(one.error).partition("but ")[2] for one in found if isinstance(one, Unsettled)} == {
        "no replica is connected to it; begin it again with the same id"
    }
    assert requested(server.url) == {"s1", *(one["saga_id"] for one in many)}


def test_a_replica_that_hangs_is_waited_for_and_confirms_once_it_goes_on(pair: Pair) -> None:
    with SagaClient(pair.url) as client:
        client.begin("s1", STEPS, durable="replica")
        pair.replica.pause()
        with pytest.raises(NotReplicated, match="no replica has confirmed it within 1000 ms"):
            client.begin("s2", STEPS, durable="replica")
        timer = threading.Timer(0.3, pair.replica.resume)
        timer.start()
        client.begin("s3", STEPS, durable="replica")
        timer.join()
    pair.promote()
    assert requested(pair.url) == {"s1", "s2", "s3"}


def test_a_line_is_answered_once_a_replica_has_its_saga(pair: Pair, commands: Commands) -> None:
    talk = Talk(commands.start("bridge", env={"REDIS_URL": pair.url}))

    def ask(**members: Any) -> dict[str, Any]:
        talk.say("me", body | members)
        return talk.hear()[2]

    body = {"type": "saga_begin", "saga_id": "s1", "steps": STEPS, "durable": "replica"}
    told = ask(msg_id=1)
    assert (told["type"], told["in_reply_to"], told["saga_id"]) == ("saga_begin_ok", 1, "s1")
    wrong = ask(durable="disk", msg_id=2)
    assert (wrong["code"], wrong["text"]) == (12, 'durable must be "replica"')
    pair.cut()
    lost = ask(saga_id="s2", msg_id=3)
    assert lost["code"] == 11
    assert "no replica is connected to it" in lost["text"]
    assert requested(pair.url) == {"s1", "s2"}

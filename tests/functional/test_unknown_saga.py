"""A saga that nobody has begun: each client and each command says so, in the same words."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from sagastream import AsyncSagaClient, RequestRefused, SagaClient, UnknownSaga
from sagastream.broker import wire
from sagastream.broker.exchange import Exchange
from sagastream.client import looking
from sagastream.store.keys import StoreKeys
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

Look = Callable[[StoreKeys, str], Exchange[Any]]

#: What can be asked about a saga, and needs one.
ASKED: dict[str, Callable[[Any], Any]] = {
    "why": lambda client: client.why("nobody"),
    "history": lambda client: client.history("nobody"),
    "cancel": lambda client: client.cancel("nobody", "x", 20),
    "retry": lambda client: client.retry("nobody", "x", 20),
    "skip": lambda client: client.skip("nobody", "x", 20),
    "abandon": lambda client: client.abandon("nobody", "x", 20),
    "signal": lambda client: client.signal("nobody", "go", None, 20),
}


def is_told(error: UnknownSaga) -> None:
    assert (str(error), error.saga_id, error.code) == ("there is no saga nobody", "nobody", 20)
    assert isinstance(error, RequestRefused)


def test_clients_raise_the_same_error_for_a_saga_that_nobody_has_begun(server: Server, commands: Commands) -> None:
    commands.quiet("worker", env={"REDIS_URL": server.url})
    with SagaClient(server.broker()) as client:
        for ask in ASKED.values():
            with pytest.raises(UnknownSaga) as told:
                ask(client)
            is_told(told.value)
        assert client.get("nobody") is None

    async def in_a_loop() -> list[BaseException]:
        async with AsyncSagaClient(server.broker()) as client:
            found = await asyncio.gather(*(ask(client) for ask in ASKED.values()), return_exceptions=True)
            return [one for one in found if isinstance(one, BaseException)]

    found = asyncio.run(in_a_loop())
    assert len(found) == len(ASKED)
    for error in found:
        assert isinstance(error, UnknownSaga)
        is_told(error)


def test_a_saga_that_is_not_begun_yet_or_has_ended_is_not_unknown(server: Server) -> None:
    scene = Scene(server.broker())
    scene.begin("s1", do(1))
    assert scene.client.history("s1") == []
    assert [cause.kind for cause in scene.client.why("s1")] == ["no_worker", "queued"]
    scene.play("s1")
    assert scene.client.why("s1") == ()
    assert [event.kind for event in scene.client.history("s1")] == ["BEGUN", "SENT", "DONE", "ENDED"]


@pytest.mark.parametrize("look", [looking.causes, lambda keys, saga_id: looking.events(keys, saga_id, None)])
def test_a_saga_that_begins_while_it_is_looked_for_is_not_unknown(server: Server, look: Look) -> None:
    """It was not there at the first look, and its request is no longer there at the next one."""
    scene = Scene(server.broker())
    keys = scene.client._opened()
    for round_trips in range(1, 6):
        saga_id = f"s{round_trips}"
        scene.begin(saga_id, do(1))
        looked = look(keys, saga_id)
        commands = next(looked)
        try:
            for number in count(1):
                answers = wire.round_trip(scene.redis, commands)
                if number == round_trips:
                    scene.turns_until(lambda: scene.redis.xlen(keys.partitions[0].requests) == 0)
                commands = looked.send(answers)
        except StopIteration as end:
            assert round_trips > 1 or end.value  # noqa: PT017 - what it returns


def test_commands_say_it_in_the_same_words_with_the_same_code(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", env=env)
    until(lambda: server.broker().client.zcard("saga:alive"), what="the worker is there")
    told = f"Error: there is no saga nobody in the store {server.url}\n"
    for words in (
        ("show", "nobody"),
        ("show", "nobody", "--json"),
        ("show", "nobody", "--history", "--json"),
        ("show", "nobody", "--watch"),
        ("cancel", "nobody", "--reason", "x"),
        ("signal", "nobody", "go"),
    ):
        done = commands.run(*words, **env)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", told), words

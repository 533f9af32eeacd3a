"""Streams written anew, on real servers: no byte of what was deleted is left. Readers and writers notice
nothing."""

import threading
from typing import Any

import pytest
import redis

from sagastream.broker import exchange
from sagastream.store.keys import copy_of
from sagastream.store.rewriting import rewritten
from support.servers import Server
from support.stored import dump, keys_with_bytes
from support.stores import ONLY
from support.waiting import until

#: What was deleted.
SECRET = "mei.tanaka@example.org"


def holders(client: "redis.Redis") -> list[str]:
    return keys_with_bytes(client, SECRET.encode())


def entries(client: "redis.Redis", stream: str) -> Any:
    return client.xrange(stream)


def facts(client: "redis.Redis", stream: str) -> Any:
    """All of a stream that must stay: its entries, its newest id, its groups and what they hold."""
    about: Any = client.xinfo_stream(stream)
    groups: Any = client.xinfo_groups(stream)
    held = [client.xpending_range(stream, group["name"], "-", "+", 100) for group in groups]
    return (
        client.xrange(stream),
        [about[name] for name in ("last-generated-id", "entries-added", "max-deleted-entry-id")],
        [{name: word for name, word in group.items() if name not in ("consumers", "lag")} for group in groups],
        [[(one["message_id"], one["consumer"], one["times_delivered"]) for one in page] for page in held],
    )


def test_the_readers_of_a_stream_that_is_written_anew_notice_nothing(server: Server) -> None:
    client = server.broker().client
    stream, group = ONLY.commands("work"), "work"
    client.xgroup_create(stream, group, "0", mkstream=True)
    for number in range(20):
        client.xadd(stream, {"body": SECRET if number % 5 == 3 else f"c{number}"})
    client.xreadgroup(group, "one", {stream: ">"}, count=4)
    client.xreadgroup(group, "two", {stream: ">"}, count=4)
    read: Any = client.xrange(stream)
    client.xclaim(stream, group, "two", 0, [read[0][0]], idle=3_600_000)
    deleted = [entry_id for entry_id, fields in read if fields[b"body"] == SECRET.encode()]
    client.xack(stream, group, *deleted)
    client.xdel(stream, *deleted)
    assert holders(client) == [stream]

    taken: list[Any] = []
    reader = server.broker().client
    client.xreadgroup(group, "three", {stream: ">"})  # it has all there is, so that it waits now
    before = facts(client, stream)
    waiting = threading.Thread(
        target=lambda: taken.append(reader.xreadgroup(group, "three", {stream: ">"}, block=20_000))
    )
    waiting.start()
    until(lambda: client.info("clients")["blocked_clients"] == 1, what="a reader waits")
    assert exchange.run(client, rewritten(stream)) is None
    assert facts(client, stream) == before
    assert holders(client) == []
    idle: Any = client.xpending_range(stream, group, "-", "+", 1)
    assert idle[0]["time_since_delivered"] >= 3_600_000
    assert client.ttl(stream) == -1
    client.xadd(stream, {"body": "new"})
    waiting.join(60)
    assert taken[0][0][1][0][1] == {b"body": b"new"}


class Copying:
    """A stream of some megabytes, which is being copied."""

    def __init__(self, client: "redis.Redis", stream: str) -> None:
        self.client: Any = client
        for number in range(600):
            client.xadd(stream, {"body": SECRET if number == 300 else "x" * 10_000}, id=f"{1000 + number}-0")
        client.xdel(stream, "1300-0")
        self.exchange = rewritten(stream)
        self.request = next(self.exchange)
        self.calls = 0

    def step(self) -> None:
        """One call of the script."""
        pipeline = self.client.pipeline(transaction=False)
        for words in self.request:
            pipeline.execute_command(*words)
        self.calls += 1
        self.request = self.exchange.send(pipeline.execute(raise_on_error=False))

    def finish(self) -> "str | None":
        while True:
            try:
                self.step()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


def test_a_large_stream_is_copied_in_portions_while_others_use_it(server: Server) -> None:
    client = server.broker().client
    copying = Copying(client, ONLY.events)
    while not client.exists(copy_of(ONLY.events)):
        copying.step()
    client.xadd(ONLY.events, {"body": "new"}, id="2000-0")
    client.xtrim(ONLY.events, maxlen=550, approximate=False)
    expected = entries(client, ONLY.events)
    assert copying.finish() is None
    assert copying.calls > 5
    assert entries(client, ONLY.events) == expected
    assert holders(client) == []
    assert not client.exists(copy_of(ONLY.events))
    assert client.ttl(ONLY.events) == -1


def test_what_is_deleted_while_its_stream_is_copied_does_not_come_back(server: Server) -> None:
    client = server.broker().client
    copying = Copying(client, ONLY.quarantine)
    while not client.exists(copy_of(ONLY.quarantine)):
        copying.step()
    client.xdel(ONLY.quarantine, "1005-0")
    expected = entries(client, ONLY.quarantine)
    assert copying.finish() is None
    assert entries(client, ONLY.quarantine) == expected
    assert holders(client) == []


def test_a_copy_that_another_process_makes_is_left_alone(server: Server) -> None:
    client = server.broker().client
    copying = Copying(client, ONLY.quarantine)
    while not client.exists(copy_of(ONLY.quarantine)):
        copying.step()
    assert 0 < client.pttl(copy_of(ONLY.quarantine)) <= 30_000
    other = exchange.run(client, rewritten(ONLY.quarantine))
    assert other is not None
    assert "somebody else writes it anew" in other
    assert copying.finish() is None
    assert holders(client) == []


@pytest.mark.parametrize("how", ["a deleted entry", "many", "long"])
def test_a_stream_that_cannot_be_copied_stays_as_it_is(server: Server, how: str) -> None:
    client = server.broker().client
    stream, group = ONLY.commands("work"), "work"
    client.xgroup_create(stream, group, "0", mkstream=True)
    for number in range(1200):
        client.xadd(stream, {"body": SECRET if number == 3 else f"c{number}"}, id=f"{1 + number}-0")
    client.xreadgroup(group, "one", {stream: ">"}, count=1100 if how == "many" else 10)
    client.xdel(stream, "4-0")
    if how != "a deleted entry":
        client.xack(stream, group, "4-0")
    if how == "long":
        client.xadd(stream, {f"f{number}": "" for number in range(5000)})
    before = facts(client, stream)
    left = exchange.run(client, rewritten(stream))
    assert left is not None
    assert ("very many fields" if how == "long" else "its readers hold") in left
    assert facts(client, stream) == before
    assert not client.exists(copy_of(stream))


@pytest.mark.parametrize("kind", ["none", "string", "empty", "full"])
def test_what_need_not_be_written_anew_is_not(server: Server, kind: str) -> None:
    client = server.broker().client
    if kind == "string":
        client.set(ONLY.events, "x")
    elif kind != "none":
        for number in (1, 2):
            client.xadd(ONLY.events, {"body": "x"}, id=f"{number}-0")
    if kind == "empty":
        client.xdel(ONLY.events, "1-0", "2-0")
    if kind == "full":  # its id is the greatest that there is
        client.xdel(ONLY.events, "1-0")
        client.xadd(ONLY.events, {"body": "y"}, id=f"{2**64 - 1}-{2**64 - 1}")
    before = dump(client)
    assert exchange.run(client, rewritten(ONLY.events)) is None
    assert dump(client) == before

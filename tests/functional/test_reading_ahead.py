"""What a reader asks for ahead, along with another exchange: it comes once, whatever happens meanwhile."""

import time
from typing import Any

import pytest
import redis

from sagastream.broker import read_ahead
from sagastream.broker.exchange import Exchange, run
from sagastream.broker.group_reader import GroupReader
from support.servers import Server
from support.stores import ONLY
from support.waiting import until

WORK = ONLY.commands("work")
GROUP = "work"


@pytest.fixture
def client(server: Server) -> redis.Redis:
    return server.broker().client


@pytest.fixture
def reader(client: redis.Redis) -> GroupReader:
    one = a_reader(client, "me")
    assert one.read(1) == []
    return one


def a_reader(client: redis.Redis, consumer: str, *, lease_ms: int = 9000) -> GroupReader:
    return GroupReader(client, group=GROUP, consumer=consumer, lease_ms=lease_ms, on_join=lambda: [WORK])


def ping() -> Exchange[Any]:
    (answer,) = yield [("PING",)]
    return answer


def ask_ahead(client: redis.Redis, reader: GroupReader, *, count: int = 1, block_ms: int = 500) -> None:
    assert run(client, reader.read_along(ping(), lambda _: {WORK: count}, block_ms)) == b"PONG"


def held(client: redis.Redis) -> list[tuple[str, bytes]]:
    """Who holds which entry."""
    found: Any = client.xpending_range(WORK, GROUP, "-", "+", 10)
    return [(one["consumer"].decode(), one["message_id"]) for one in found]


def test_a_reading_that_was_asked_for_ahead_waits_and_the_client_is_free_meanwhile(
    client: redis.Redis, reader: GroupReader
) -> None:
    ask_ahead(client, reader)
    began_s = time.monotonic()
    assert [reader.read(1), client.ping()] == [[], True]
    assert time.monotonic() - began_s < 0.3  # it did not wait for what was asked for ahead
    added = client.xadd(WORK, {"n": 1})
    assert held(client) == [("me", added)]  # before anybody asks again
    assert [entry.id for entry in reader.read(1)] == [added]
    assert reader.read(1) == []


def test_a_reading_ahead_that_finds_nothing_in_its_time_is_followed_by_others(
    client: redis.Redis, reader: GroupReader
) -> None:
    ask_ahead(client, reader, block_ms=1)
    assert reader.read(200) == []
    added = client.xadd(WORK, {"n": 1})
    assert [entry.id for entry in reader.read(1)] == [added]


def test_what_comes_ahead_to_a_reader_that_leaves_is_left_to_others(client: redis.Redis, reader: GroupReader) -> None:
    ask_ahead(client, reader)
    added = client.xadd(WORK, {"n": 1})
    reader.leave()
    assert held(client) == [("me", added)]
    another = a_reader(client, "another")
    until(lambda: [entry.id for entry in another.read(1)] == [added], what="another has it")


def test_a_reading_ahead_whose_connection_breaks_is_an_outage_that_passes(
    client: redis.Redis, reader: GroupReader
) -> None:
    ask_ahead(client, reader)
    client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(redis.ConnectionError):
        reader.read(1)
    added = client.xadd(WORK, {"n": 1})
    reader.recover()
    assert [entry.id for entry in reader.read(1)] == [added]


def test_what_comes_ahead_is_read_where_only_what_is_held_of_other_streams_is_read_again(client: redis.Redis) -> None:
    other = ONLY.commands("other")
    reader = GroupReader(client, group=GROUP, consumer="me", lease_ms=9000, on_join=lambda: [WORK, other])
    assert reader.read(1) == []
    assert run(client, reader.read_along(ping(), lambda _: {WORK: 1, other: 1}, 500)) == b"PONG"
    added = client.xadd(WORK, {"n": 1})
    reader.renew_later([other])
    until(lambda: bool(reader._own), what="it is time to read them")
    assert [entry.id for entry in reader.read(1)] == [added]


def test_what_comes_ahead_is_read_once_where_all_that_is_held_is_read_again(
    client: redis.Redis, reader: GroupReader
) -> None:
    ask_ahead(client, reader)
    added = client.xadd(WORK, {"n": 1})
    reader.renew()
    assert [(entry.id, entry.again) for entry in reader.read(1)] == [(added, True)]
    assert reader.read(1) == []


def test_what_came_along_is_not_lost_where_more_would_come_along(client: redis.Redis) -> None:
    reader = a_reader(client, "me")
    assert reader.read(1) == []
    added = [client.xadd(WORK, {"n": n}) for n in (1, 2)]
    assert [run(client, reader.read_along(ping(), lambda _: {WORK: 1}, 1)) for _ in added] == [b"PONG"] * 2
    assert [reader.read(1)[0].id for _ in added] == added


def test_what_a_dead_reader_held_is_taken_over_where_there_is_always_something_to_read_ahead(
    client: redis.Redis,
) -> None:
    reader = a_reader(client, "me", lease_ms=100)
    assert reader.read(1) == []
    client.xadd(WORK, {"held": "1"})
    client.xreadgroup(GROUP, "victim", {WORK: ">"})

    def is_taken_over() -> bool:
        client.xadd(WORK, {"new": "1"})
        ask_ahead(client, reader)
        return any(entry.taken_over and b"held" in entry.fields for entry in reader.read(1))

    until(is_taken_over, what="it is taken over")


def test_what_was_read_ahead_long_ago_is_asked_for_anew_for_others_may_have_it_by_now(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = a_reader(client, "me")
    assert reader.read(1) == []
    taken, kept = (client.xadd(WORK, {"n": n}) for n in (1, 2))
    ask_ahead(client, reader, count=2)
    client.xclaim(WORK, GROUP, "another", 0, [taken])
    monkeypatch.setattr(read_ahead, "_FRESH_S", 0.0)
    assert [(entry.id, entry.again) for entry in reader.read(1)] == [(kept, True)]

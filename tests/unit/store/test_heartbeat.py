"""Who is alive: the table of thresholds, and what is read from the heartbeat and from consumers."""

import contextlib
import json
import math
from typing import Any

import pytest
import redis
from msgspec.structs import replace

from sagastream.broker.connection import BLOCK_MS
from sagastream.broker.failures import NodeAway
from sagastream.store import heartbeat
from sagastream.store.heartbeat import ALIVE_WITHIN, Heartbeat, Kind, Process, look
from sagastream.store.keys import StoreKeys
from sagastream.store.preference import MOST_SHARERS
from support.stores import KEYS

NOW_MS = 1_700_000_000_000
TIME = [b"1700000000", b"0"]
#: Where the member stands in the call of beat.lua: after its name, the number of keys and the keys.
MEMBER = 5
NO_GROUP = redis.ResponseError("NOGROUP No such consumer group")


def a_process(kind: str = Kind.WORKER, silent_ms: int = 0, *, beats: bool = True) -> Process:
    return Process(name="p-1", kind=kind, silent_ms=silent_ms, beats=beats)


def a_member(**changes: Any) -> bytes:
    member = {"name": "p-1", "kind": "worker", "formats": [1, 2], "partitions": [0], "started": "2026-01-01T00:00:00Z"}
    return json.dumps(member | changes).encode()


def looked(*answers: Any, services: tuple[str, ...] = ()) -> list[Process]:
    """What is found if the broker gives this answer: the members and scores of the zset, then the consumers of each
    group."""
    exchange = look(KEYS, services)
    asked = next(exchange)
    assert len(asked) == 1 + len(answers)
    with pytest.raises(StopIteration) as end:
        exchange.send([TIME, *answers])
    found: list[Process] = end.value.value
    return found


@pytest.mark.parametrize(
    ("kind", "beats", "within_ms"),
    [
        (Kind.WORKER, True, 2_000),
        (Kind.WORKER, False, 5_000),
        (Kind.SERVICE, True, 15_000),
        (Kind.SERVICE, False, 15_000),
        ("of a newer release", True, 15_000),
    ],
)
def test_a_process_is_alive_that_was_heard_within_the_time_of_its_kind(kind: str, beats: bool, within_ms: int) -> None:
    assert a_process(kind, within_ms, beats=beats).is_alive
    assert not a_process(kind, within_ms + 1, beats=beats).is_alive


def test_one_that_was_heard_in_the_future_is_not_alive_once_it_is_far() -> None:
    assert a_process(silent_ms=-1_000).is_alive
    assert not a_process(silent_ms=-3_600_000).is_alive


def test_one_that_has_left_is_not_alive() -> None:
    assert not a_process(Kind.LEFT).is_alive


def test_a_worker_that_waits_for_entries_beats_twice_before_it_counts_as_dead() -> None:
    readings = math.ceil(heartbeat._BEAT_EVERY_S * 1000 / BLOCK_MS)
    assert 2 * readings * BLOCK_MS <= ALIVE_WITHIN[Kind.WORKER].beat_ms


def joined(heartbeat: Heartbeat) -> Heartbeat:
    heartbeat.join(KEYS)
    return heartbeat


def test_what_a_process_writes_of_itself_is_what_is_read() -> None:
    [words] = next(joined(Heartbeat("p-1", Kind.SERVICE, "till")).beat())
    [found] = looked([words[MEMBER], b"%d" % (NOW_MS - 700)], [])
    assert (found.name, found.kind, found.service) == ("p-1", Kind.SERVICE, "till")
    assert (found.formats, found.partitions) == ((1, 2), (0,))
    assert (found.silent_ms, found.beats, found.is_alive) == (700, True, True)
    assert found.started is not None


def test_a_person_can_read_it() -> None:
    [words] = next(joined(Heartbeat("p-1", Kind.WORKER)).beat())
    written: Any = words[MEMBER]
    member = json.loads(written)
    assert list(member) == ["name", "kind", "formats", "partitions", "pauses", "started"]
    assert member["started"].endswith("Z")


def test_a_reader_without_a_heartbeat_is_heard_when_its_consumer_last_asked() -> None:
    consumers = [[b"name", b"former-1", b"pending", 0, b"idle", 1200, b"inactive", 1200]]
    [found] = looked([], consumers)
    assert found == Process(name="former-1", kind=Kind.WORKER, silent_ms=1200, beats=False)
    assert found.formats == (1,)


def test_a_reader_with_a_heartbeat_is_told_once_and_judged_by_it() -> None:
    consumers = [[b"name", b"p-1", b"pending", 0, b"idle", 10]]
    [found] = looked([a_member(), b"%d" % (NOW_MS - 9_000)], consumers)
    assert (found.beats, found.is_alive) == (True, False)


def test_the_readers_of_services_are_told_of_those_services() -> None:
    theirs = [[b"name", b"js-1", b"pending", 2, b"idle", 14_000]]
    found = looked([], NO_GROUP, theirs, redis.ResponseError("WRONGTYPE"), services=("till", "odd"))
    assert [(process.name, process.service, process.is_alive) for process in found] == [("js-1", "till", True)]


@pytest.mark.parametrize(
    "member",
    [b"", b"\xff", b"p-1", b"[]", a_member(name=7), a_member(formats="1"), b'{"name":"p-1"}', a_member(partitions={})],
)
def test_what_is_no_member_of_the_heartbeat_is_passed_over(member: bytes) -> None:
    assert looked([member, b"%d" % NOW_MS], NO_GROUP) == []


def test_what_a_newer_release_says_besides_is_passed_over() -> None:
    [found] = looked([a_member(load=0.5, formats=[1, 2], kind="rq-worker"), b"%d" % NOW_MS], [])
    assert (found.kind, found.formats, found.is_alive) == ("rq-worker", (1, 2), True)


def test_where_something_else_stands_at_its_key_consumers_are_read() -> None:
    consumers = [[b"name", b"former-1", b"pending", 0, b"idle", 1]]
    assert [process.name for process in looked(redis.ResponseError("WRONGTYPE"), consumers)] == ["former-1"]


def test_an_error_that_says_nothing_of_the_group_is_raised() -> None:
    with pytest.raises(redis.ResponseError, match="NOPERM"):
        looked([], redis.ResponseError("NOPERM"))


def test_a_process_of_a_service_says_what_it_has() -> None:
    beating = Heartbeat("p-1", Kind.SERVICE, "till", commands=["Refund", "Charge"])
    member = json.loads(joined(beating)._member)
    assert member["commands"] == ["Charge", "Refund"]
    [process] = looked([beating._member, b"1700000000000"], NO_GROUP)
    assert (process.service, process.commands) == ("till", ("Charge", "Refund"))


def test_a_process_that_does_not_say_what_it_has_may_have_anything() -> None:
    [process] = looked([a_member(kind="service", service="till"), b"1700000000000"], NO_GROUP)
    assert process.commands is None


def test_a_worker_that_holds_no_consumer_shares_with_nobody() -> None:
    """Whoever may write a heartbeat may write one of a worker that nobody runs."""
    written = (a_member(), b"%d" % NOW_MS)
    for consumers, seen in (
        ([[b"name", b"p-1", b"pending", 0, b"idle", 700]], True),
        ([[b"name", b"p-1", b"pending", 0, b"idle", 1_501]], False),
        ([[b"name", b"p-2", b"pending", 0, b"idle", 700]], False),
        ([], False),
    ):
        process = next(one for one in looked([*written], consumers) if one.name == "p-1")
        assert (process.is_alive, process.shares) == (True, seen)
    [process] = looked([a_member(kind="service", service="till"), b"%d" % NOW_MS], [])
    assert process.shares  # its own user may make consumers, too


def test_of_more_processes_than_can_share_each_prefers_all() -> None:
    def of(number: int) -> list[Process]:
        one = Process(name="", kind=Kind.WORKER, silent_ms=0, beats=True, unseen_ms=0)
        return [replace(one, name=f"p{which}") for which in range(number)]

    assert len(heartbeat.preferred(of(MOST_SHARERS), 4)) == MOST_SHARERS
    assert heartbeat.preferred(of(MOST_SHARERS + 1), 4) == {}


@pytest.mark.parametrize("error", [NodeAway("away", was_sent=True), redis.exceptions.ClusterDownError("down")])
def test_partitions_stay_shared_out_for_a_while_if_nobody_can_be_heard(
    error: redis.RedisError, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = Heartbeat("p-1", Kind.SERVICE, "till")
    beat.join(StoreKeys("saga", ["0", "1a", "2b"], "0"))
    other = a_member(name="p-2", kind="service", service="till")

    def beats(answer: Any) -> frozenset[int] | None:
        beating = beat.beat()
        next(beating)
        with contextlib.suppress(StopIteration, redis.RedisError):
            beating.send([answer])
        return beat.preference.numbers

    shared = beats([NOW_MS, other, b"%d" % NOW_MS])
    assert shared is not None
    assert beats(error) == shared
    monkeypatch.setattr(heartbeat, "_STANDS_S", -1.0)
    assert beats(error) is None  # that is all
    assert beats([NOW_MS, other, b"%d" % NOW_MS]) == shared
    assert beats(redis.ResponseError("refused")) is None

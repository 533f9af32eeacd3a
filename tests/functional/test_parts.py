"""A turn of many messages is committed in parts, and is one turn all the same."""

import re
from typing import Any

import pytest

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Due
from sagastream.orchestrator.folding import _PART, parts_of
from sagastream.orchestrator.streams import _QUIET, Input
from sagastream.store import sagas
from support.scenes import Scene, do
from support.servers import Server
from support.stores import ONLY, divided
from support.streams import append_requests
from support.waiting import until

IDS = [f"s{number}" for number in range(3 * _PART)]


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def bring_to_the_second_step(scene: Scene, second: dict[str, Any]) -> None:
    """Sagas whose first step is done. The worker has not read the replies yet."""
    steps = [do(1), second]
    append_requests(scene.redis, [parse_begin({"saga_id": one, "steps": steps}, request_id=one) for one in IDS])
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == len(IDS))
    while scene.redis.xlen(ONLY.commands("work")):
        scene.runner.turn(block_ms=1)


def read_the_replies(scene: Scene) -> None:
    while not scene.worker.turn(block_ms=1):
        pass


def calls(scene: Scene) -> int:
    """How many scripts were called, without heartbeats: how many of those there are depends on the time that passes."""
    found: Any = scene.redis.info("commandstats")
    # Only beat.lua counts the members of a zset, once each time.
    heartbeats = int(found.get("cmdstat_zcard", {"calls": 0})["calls"])
    return int(found["cmdstat_evalsha"]["calls"]) - heartbeats


def test_it_is_committed_in_parts(scene: Scene) -> None:
    bring_to_the_second_step(scene, do(2))
    before = calls(scene)
    read_the_replies(scene)
    assert calls(scene) - before in (3, 4)  # and perhaps one call that looks for due sagas


def test_the_parts_are_as_large_if_there_are_many_partitions(server: Server) -> None:
    broker = server.broker()
    partitions = divided(broker, 16).partitions
    scene = Scene(broker)
    for one in IDS:
        scene.client.begin(one, [do(1), do(2)])

    def all_of(name: str) -> int:
        return sum(scene.redis.xlen(getattr(one, name)("work")) for one in partitions)

    scene.turns_until(lambda: all_of("commands") == len(IDS))
    until(lambda: scene.hold_more() == len(IDS), what="the service holds all commands")
    before = calls(scene)
    scene.runner.turn(block_ms=1)
    assert all_of("commands") == 0
    assert calls(scene) - before <= 3  # one, unless the handlers take very long
    before = calls(scene)
    scene.turns_until(lambda: all_of("replies") == 0)
    assert calls(scene) - before in (3, 4)
    assert all_of("commands") == len(IDS)


def test_what_lost_the_comparison_in_any_part_is_decided_again_at_once(scene: Scene) -> None:
    bring_to_the_second_step(scene, do(2))
    for one in IDS:
        scene.redis.hincrby(ONLY.saga(one), "version", 1)
    read_the_replies(scene)
    assert scene.redis.xlen(ONLY.replies("work")) == 0
    assert scene.redis.xlen(ONLY.commands("work")) == len(IDS)


def test_what_is_stuck_in_any_part_is_not_taken_for_written(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.redis.set(ONLY.commands("broken"), "no stream")
    bring_to_the_second_step(scene, do(2, service="broken"))
    read_the_replies(scene)
    assert "commands:broken is not a stream" in caplog.text
    assert not scene.worker._cache._states
    scene.redis.delete(ONLY.commands("broken"))
    scene.worker._inbox.renew()
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0)
    assert scene.redis.xlen(ONLY.commands("broken")) == len(IDS)


def test_what_any_part_has_written_is_remembered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the answers to it are decided on without a read of the hash."""
    bring_to_the_second_step(scene, do(2))
    read_the_replies(scene)
    while scene.redis.xlen(ONLY.commands("work")):
        scene.runner.turn(block_ms=1)
    monkeypatch.setattr(sagas, "read", None)
    read_the_replies(scene)
    assert scene.redis.zcard(ONLY.ended) == len(IDS)


def test_what_is_quarantined_in_any_part_is_told_of(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for one in IDS:
        scene.redis.xadd(ONLY.replies("work"), {"body": f'{{"type":"Do_ok","saga_id":"{one}","step":1}}'})
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0)
    told = [line for line in caplog.messages if "quarantined" in line]
    more = [int(found[1]) for line in told if (found := re.search(r"and (\d+) more", line))]
    assert len(told) < len(IDS)
    assert len(told) + sum(more) == len(IDS)


def test_messages_of_one_saga_are_in_one_part() -> None:
    inputs: list[Input] = [(None, Due(saga_id=f"s{number % 50}")) for number in range(200)]
    parts = parts_of([(ONLY, inputs)])
    ids = [{event.saga_id for _, those in part for _, event in those} for part in parts]
    assert len(parts) > 1
    assert sum(map(len, ids)) == len(set().union(*ids)) == 50
    assert sum(len(those) for part in parts for _, those in part) == 200


def readings(scene: Scene) -> int:
    found: Any = scene.redis.info("commandstats")
    return int(found["cmdstat_xreadgroup"]["calls"])


def test_if_one_message_comes_at_a_time_nothing_is_read_along(scene: Scene) -> None:
    def turn(many: int) -> int:
        """Have a turn read so many entries. Returns how many readings it has needed."""
        before = readings(scene)
        until(lambda: scene.worker.turn(block_ms=1) == many, what="the entries are read")
        return readings(scene) - before

    scene.begin("long", *[do(number) for number in range(_QUIET)])
    scene.play("long")
    scene.begin("alone", do(1))
    scene.worker.turn(block_ms=500)
    scene.runner.turn(block_ms=500)
    assert turn(1) == 1
    for saga_id in ("one", "two"):
        scene.begin(saga_id, do(1))
    assert turn(2) == 3  # now it reads along, in two readings: begins, and as many replies again

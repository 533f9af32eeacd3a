"""A store near its maxmemory drains: what is under way ends, and no saga begins until there is room."""

import contextlib
import itertools
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from sagastream.broker import exchange, wire
from sagastream.client import requests
from sagastream.client.answers import Accepted, Refused
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.causes import CauseKind
from sagastream.core.messages import Verb
from sagastream.core.saga import SagaStatus
from sagastream.errors import StoreFull
from sagastream.orchestrator.room import Memory, Room
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import PROBLEM
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until


@pytest.fixture
def scene(server: Server) -> Iterator[Scene]:
    scene = Scene(server.broker())
    yield scene
    scene.redis.config_set("maxmemory", 0)


def fill(scene: Scene) -> None:
    """From now on the server refuses every plain command that needs memory."""
    scene.redis.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        scene.redis.set("more", "x")


def test_in_a_full_store_what_is_under_way_ends(scene: Scene) -> None:
    scene.begin("good", do(1), do(2))
    scene.begin("bad", do(1), do(2), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 2)
    fill(scene)
    assert scene.play("good").status is SagaStatus.COMPLETED
    assert scene.play("bad").status is SagaStatus.ABORTED
    assert sorted(scene.effects.undone) == ["bad/1/transaction", "bad/2/transaction"]


def test_in_a_full_store_processes_can_start_and_stop(scene: Scene) -> None:
    """A deploy must not be what stops a store from draining. The processes are new, and so is a group that is gone."""
    scene.begin("s1", do(1), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.worker._inbox.leave()
    scene.redis.xgroup_destroy(ONLY.commands("work"), "work")
    fill(scene)
    scene.worker, scene.runner = scene.another_worker(), scene.another_runner()
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert scene.effects.undone == ["s1/1/transaction"]


def test_in_a_full_store_the_samples_can_start(scene: Scene) -> None:
    scene.redis.sadd(KEYS.samples, "work")  # else the samples would not join it
    fill(scene)
    assert published.claim_for_samples(scene.redis, KEYS, ["payment"]) is None
    assert scene.redis.smembers(KEYS.samples) == {b"payment", b"work"}


def test_in_a_full_store_an_operator_can_act(scene: Scene) -> None:
    scene.begin("s1", do(1, service="elsewhere", compensation=None))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("elsewhere")) == 1)
    fill(scene)
    request = requests.to_intervene(Verb.CANCEL, "s1", "the store is full", now=True)
    exchange.run(scene.redis, requests.append(KEYS, [request]))
    assert scene.play("s1").status is SagaStatus.ABORTED


def test_in_a_full_store_a_command_that_others_held_is_counted_and_done(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.redis.xgroup_create(ONLY.commands("work"), "work", id="0")
    found: Any = scene.redis.xreadgroup("work", "dead", {ONLY.commands("work"): ">"})
    entry_id = found[0][1][0][0]
    scene.redis.xclaim(ONLY.commands("work"), "work", "dead", 0, [entry_id], idle=86_400_000)
    fill(scene)
    scene.runner = ServiceRunner(scene.broker, scene.effects.service, scene.stop)
    assert scene.play("s1").status is SagaStatus.COMPLETED


# --- begins


def room_is_seen(scene: Scene, *, full: bool) -> None:
    scene.turns_until(lambda: bool(scene.worker._room.full) is full)


def test_a_full_store_leaves_begins_unread_until_there_is_room(scene: Scene) -> None:
    scene.begin("early", do(1), do(2))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.begin("late", do(1))
    fill(scene)
    scene.worker, before = scene.another_worker(), scene.worker
    before._inbox.leave()
    assert scene.play("early").status is SagaStatus.COMPLETED
    assert scene.client.get("late") is None
    group = scene.redis.xinfo_groups(ONLY.requests)[0]
    assert (group["pending"], scene.redis.xlen(ONLY.requests)) == (0, 1)
    scene.redis.config_set("maxmemory", 0)
    room_is_seen(scene, full=False)
    assert scene.play("late").status is SagaStatus.COMPLETED


def test_a_worker_that_leaves_begins_unread_waits_for_the_rest(scene: Scene) -> None:
    """It neither turns round and round, nor misses a reply."""
    scene.worker.turn(block_ms=1)
    fill(scene)
    room_is_seen(scene, full=True)
    calls = scene.redis.info("commandstats")["cmdstat_xreadgroup"]["calls"]
    end = time.monotonic() + 1
    while time.monotonic() < end:
        scene.worker.turn()
    assert scene.redis.info("commandstats")["cmdstat_xreadgroup"]["calls"] - calls < 10


def test_unread_requests_that_fill_the_memory_are_read(scene: Scene) -> None:
    """They do not count: only to read them makes room."""
    scene.redis.flushall()
    scene.worker.turn(block_ms=1)
    scene.worker._inbox.leave()
    used = scene.redis.info("memory")["used_memory"]
    scene.redis.config_set("maxmemory", used + (8 << 20))
    number = 0
    with contextlib.suppress(redis.OutOfMemoryError):
        while True:
            scene.begin(f"s{number}", do("x" * 50_000))
            number += 1
    assert number > 50
    scene.worker = scene.another_worker()
    assert scene.play("s0").status is SagaStatus.COMPLETED


def test_what_a_worker_may_not_look_at_leaves_no_begin_unread(scene: Scene) -> None:
    scene.redis.acl_setuser("nosy", enabled=True, nopass=True, commands=["+@all", "-info", "-xlen"], keys=["*"])
    fill(scene)
    wire.round_trip(scene.redis, [("AUTH", "nosy", "x")])
    try:
        room = Room("worker w")
        room.join(KEYS)
        exchange.run(scene.redis, room.look())
        assert not room.full
    finally:
        wire.round_trip(scene.redis, [("AUTH", "default", "")])
        scene.redis.acl_deluser("nosy")


def test_the_rest_counts_and_changes_with_some_slack() -> None:
    room = Room("worker w")
    room.join(KEYS)

    def look(used: int, requests: int = 0) -> bool:
        looking = room.look()
        next(looking)
        with contextlib.suppress(StopIteration):
            looking.send([5, -2, f"maxmemory:1000\r\nused_memory:{used}\r\n".encode()])
            looking.send([requests])
            looking.send([b"OK"])
        return bool(room.full)

    assert not look(790)
    assert not look(1000, 300)
    assert look(1000, 100)
    assert look(790)
    assert look(2000, 1250)
    assert not look(2000, 1350)
    assert not look(790)


def test_a_few_begins_are_taken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the server says that requests are smaller than they are, begins must not be left for ever."""
    room = Room("worker w")
    room.memory = Memory(1000, 1250)
    assert room.takes_a_few()
    assert not room.takes_a_few()
    monkeypatch.setattr("sagastream.orchestrator.room._A_FEW_EVERY_S", 0.0)
    room._take_at = 0.0
    assert room.takes_a_few()
    assert room.takes_a_few()
    room.memory = Memory(1000, 1251)
    assert not room.takes_a_few()


# --- clients


def test_a_client_is_refused_while_there_is_no_room(scene: Scene) -> None:
    """Before the server is full: a worker has said so. What is begun already is not refused."""
    scene.client.begin("s0", [do(1)])
    scene.play("s0")
    most = scene.redis.info("memory")["used_memory"] * 10 // 9
    scene.redis.config_set("maxmemory", most)
    room_is_seen(scene, full=True)
    with pytest.raises(
        StoreFull, match=r"begin saga s1 was not taken, the store is full: \d\d% of maxmemory is used; begin it again"
    ) as caught:
        scene.client.begin("s1", [do(1)])
    assert (caught.value.code, caught.value.retry_after_s) == (11, 5.0)
    scene.client.begin("s0", [do(1)])
    assert scene.redis.xlen(ONLY.requests) == 0
    scene.redis.config_set("maxmemory", 0)
    until(lambda: not scene.redis.exists(ONLY.full), what="nobody says so any more")
    scene.client.begin("s1", [do(1)])
    assert scene.play("s1").status is SagaStatus.COMPLETED


def test_a_saga_that_is_known_is_not_refused_though_the_server_takes_nothing(scene: Scene) -> None:
    """To begin it again is how a client finds out that it has begun."""
    scene.client.begin("s1", [do(1)])
    scene.play("s1")
    fill(scene)
    answers = scene.client.begin_many(
        [{"saga_id": "s1", "steps": [do(1)]}, {"saga_id": "s2", "steps": [do(1)]}, {"saga_id": "s1", "steps": [do(2)]}]
    )
    accepted, *refused = answers
    assert isinstance(accepted, Accepted)
    errors = [answer.error for answer in refused if isinstance(answer, Refused)]
    assert isinstance(errors[0], StoreFull)
    assert "another saga has the id s1" in str(errors[1])


def test_one_who_looks_for_a_saga_is_told_that_there_is_no_room(scene: Scene) -> None:
    scene.client.begin("s1", [do(1)])
    scene.redis.set(ONLY.full, "85% of maxmemory is used", px=60_000)
    assert [cause.kind for cause in scene.client.why("s1")] == [CauseKind.BROKER_FULL, CauseKind.QUEUED]
    assert "the store is full: 85% of maxmemory is used" in scene.client.why("s1")[0].text


def test_a_client_is_refused_while_too_many_requests_wait(scene: Scene) -> None:
    for number in range(200):
        scene.begin(f"s{number}", do(1))
    scene.worker = Orchestrator(scene.broker, scene.stop, max_unread=100)
    scene.worker.turn(block_ms=1)
    with pytest.raises(StoreFull, match="200 requests to begin sagas wait, and at most 100 may"):
        scene.client.begin("more", [do(1)])
    assert scene.play("s199").status is SagaStatus.COMPLETED  # the worker reads on
    until(lambda: not scene.redis.exists(ONLY.full), what="nobody says so any more")
    scene.client.begin("more", [do(1)])


@pytest.mark.parametrize("left_ms", [3_600_000, None])
def test_what_was_said_before_the_clock_was_set_back_refuses_nobody(scene: Scene, left_ms: int | None) -> None:
    scene.redis.set(ONLY.full, "all of maxmemory is used", px=left_ms)
    with pytest.raises(StoreFull):
        scene.client.begin("s1", [do(1)])
    scene.turns_until(lambda: not scene.redis.exists(ONLY.full))
    scene.client.begin("s1", [do(1)])


def test_whatever_stands_in_place_of_what_a_worker_says_refuses_nobody(scene: Scene) -> None:
    scene.redis.hset(ONLY.full, "a", "b")
    scene.client.begin("s1", [do(1)])
    assert scene.play("s1").status is SagaStatus.COMPLETED


# --- all of it


@pytest.mark.both_in_soak
def test_a_flood_of_begins_into_a_small_server_never_sticks(server: Server) -> None:
    """Begins come as fast as they can, past all refusals, too. All that was taken ends, and then sagas begin again.

    Results are small: those in records fill the store for days.
    """
    scene = Scene(server.broker())
    scene.effects.service.command("Take", compensation="Undo")(
        lambda _, context: scene.effects.done.append(context.key)
    )
    scene.worker = Orchestrator(scene.broker, scene.stop, retention_ms=2_000)
    scene.redis.config_set("maxmemory", 32 << 20)
    threads = [threading.Thread(target=scene.worker.run), threading.Thread(target=scene.runner.run)]
    try:
        for thread in threads:
            thread.start()
        taken = flood(scene)
        until(lambda: scene.redis.xlen(ONLY.requests) == 0, timeout_s=120, what="all requests are taken")
        until(lambda: scene.redis.zcard(ONLY.timers) == 0, what="all that has begun has ended")
        assert len(scene.effects.done) == len(set(scene.effects.done)) == taken
        until(lambda: begins(scene, "after"), what="sagas begin again")
        assert scene.client.wait("after", 60).status is SagaStatus.COMPLETED
        assert scene.redis.xlen(ONLY.quarantine) == 0
    finally:
        scene.stop.set()
        for thread in threads:
            thread.join()
        scene.redis.config_set("maxmemory", 0)


def flood(scene: Scene) -> int:
    """Requests come faster than a worker takes them, until the server has refused plain ones and a client was told to
    send its own later. Returns how many were taken."""
    numbers = itertools.count()
    taken = refused = told = 0

    def has_refused_both() -> bool:
        nonlocal taken, refused, told
        with scene.redis.pipeline(transaction=False) as pipeline:
            for number in itertools.islice(numbers, 50):
                body = {"saga_id": f"raw{number}", "steps": [do("x" * 40_000) | {"transaction": "Take"}]}
                fields: dict[Any, Any] = parse_begin(body, request_id=f"r{number}").fields()
                pipeline.xadd(ONLY.requests, fields)
            answers = pipeline.execute(raise_on_error=False)
        added = sum(isinstance(answer, bytes) for answer in answers)
        taken, refused = taken + added, refused + len(answers) - added
        if refused and begins(scene, f"asked{next(numbers)}"):
            taken += 1
        elif refused:
            told += 1
        return told > 0

    until(has_refused_both, what="the server has refused requests, and a client is told to wait")
    return taken


def begins(scene: Scene, saga_id: str) -> bool:
    try:
        scene.client.begin(saga_id, [do(1)])
    except StoreFull:
        return False
    return True


def test_the_doctor_says_what_fills_a_store(scene: Scene) -> None:
    scene.client.begin("s1", [do("x" * 100_000)])
    scene.play("s1")
    scene.begin("s2", do("y" * 300_000))
    fill(scene)
    told = next(one for one in Doctor(scene.broker).examine() if one.about == "memory")
    assert told.level == PROBLEM
    for text in (
        r"% of maxmemory \(0 MiB\) is used: sagas begin again below 70%",
        r" requests [23]\d\d KiB, ended sagas [12]\d\d KiB",
        r", records of services (9|1\d)\d KiB, .*, all else \d+ KiB$",
    ):
        assert re.search(text, told.text), told.text
    assert re.fullmatch(r"raise it: CONFIG SET maxmemory \dmb", told.do[0])

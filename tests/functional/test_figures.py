"""The figures of a store, on real servers: each says what is there, and reading them is bounded work."""

from typing import Any

import pytest

from sagastream.broker.entries import time_of
from sagastream.broker.exchange import run
from sagastream.core.begin_parsing import parse_begin
from sagastream.store.roles import Role
from sagastream_bridge.inspection import figures
from sagastream_bridge.inspection.figures import Figures, FiguresReader, ParkedAt, ServiceFigures, look
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY, divided
from support.streams import append_requests
from support.users import Users
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def read(scene: Scene) -> Figures:
    return run(scene.redis, look(KEYS))


def of(found: Figures, service: str) -> ServiceFigures:
    (one,) = [one for one in found.services if one.name == service]
    return one


def begin_graph(scene: Scene, saga_id: str, *steps: dict[str, Any]) -> None:
    body = {"saga_id": saga_id, "format": 2, "input": {}, "steps": list(steps)}
    append_requests(scene.redis, [parse_begin(body, request_id=f"begin-{saga_id}")])


def test_an_empty_store_has_no_figures_but_its_memory(scene: Scene) -> None:
    scene.redis.flushall()
    found = read(scene)
    assert (found.live.total, found.live.oldest_ms, found.live.is_exact) == (0, None, True)
    assert found.live.by_status == {"PENDING": 0, "COMPENSATING": 0, "PARKED": 0}
    assert (found.ended, found.requests, found.timer_lag_ms, found.workers, found.services) == (0, 0, 0, 0, ())
    assert found.memory_bytes > 100_000
    assert found.memory_limit_bytes is None
    assert found.oldest_live_ms is None


def test_sagas_count_by_what_they_do_and_parked_ones_by_where(scene: Scene) -> None:
    scene.begin("forward", do(1, service="elsewhere"))
    scene.begin("done", do(1))
    scene.begin("undo", do(1, compensation="Nope", compensation_attempts=1), do("fail"))
    # In a graph one branch is parked while the other goes on.
    pivot = do("paid", "DoForGood", kind="pivot", compensation=None)
    stopped = do("fail", "DoForGood", id="told", kind="retriable", attempts=1, after=[1])
    begin_graph(scene, "graph", pivot, do("x", id="away", service="away", kind="retriable", after=[1]), stopped)
    scene.play("done")
    scene.play("undo")

    def is_parked() -> bool:
        scene.runner.turn(block_ms=1)
        state = scene.client.get("graph")
        return state is not None and state.parked is not None

    scene.turns_until(is_parked)
    found = read(scene)
    assert found.live.total == 3
    assert found.live.by_status == {"PENDING": 1, "COMPENSATING": 0, "PARKED": 2}
    assert found.live.parked_at == {ParkedAt("work", "Nope"): 1, ParkedAt("work", "DoForGood"): 1}
    assert found.live.is_exact
    assert found.ended == 1
    first = scene.client.get("forward")
    assert first is not None
    assert found.live.oldest_ms == first.begun_ms
    assert found.oldest_live_ms == found.at_ms - first.begun_ms


def test_a_saga_that_goes_back_counts_so(scene: Scene) -> None:
    scene.begin("s1", do(1), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    for _ in range(2):
        scene.runner.turn(block_ms=1)
        scene.worker.turn(block_ms=1)
    assert read(scene).live.by_status == {"PENDING": 0, "COMPENSATING": 1, "PARKED": 0}


def test_more_sagas_than_are_looked_at_are_shares_of_those(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        scene.begin(f"s{number}", do(1, service="elsewhere"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("elsewhere")) == 6)
    monkeypatch.setattr(figures, "_LOOKED_AT", 2)
    live = read(scene).live
    assert (live.total, live.is_exact) == (6, False)
    assert live.by_status == {"PENDING": 6, "COMPENSATING": 0, "PARKED": 0}


def test_of_more_sagas_than_are_looked_at_the_indexes_count(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        scene.begin(f"forward{number}", do(1, service="elsewhere"))
    for number in range(3):
        scene.begin(f"back{number}", do(1, compensation="Nope", compensation_attempts=1), do("fail"))
        scene.play(f"back{number}")
    monkeypatch.setattr(figures, "_LOOKED_AT", 1)
    live = read(scene).live
    assert (live.total, live.is_exact) == (7, False)
    assert live.by_status == {"PENDING": 4, "COMPENSATING": 0, "PARKED": 3}
    assert live.parked_at == {ParkedAt("work", "Nope"): 3}
    # Of sagas that an earlier release has begun, no index knows: then the shares of those that were seen count.
    scene.redis.delete(ONLY.index("status=PARKED"), ONLY.index("status=COMPENSATING"))
    assert read(scene).live.by_status == {"PENDING": 4, "COMPENSATING": 0, "PARKED": 3}


def test_what_is_paused_and_how_many_sagas_are_held(scene: Scene) -> None:
    scene.redis.hset(KEYS.paused, mapping={"elsewhere": '{"reason":"moved","since_ms":1000}', "work/Nope": "{}"})
    scene.begin("s1", do(1, service="elsewhere"))
    scene.begin("s2", do(1, service="elsewhere"))
    scene.begin("s3", do(1))
    scene.turns_until(lambda: scene.redis.zcard(ONLY.index("held=elsewhere")) == 2)
    found = read(scene)
    assert [(one.service, one.command, one.since_ms) for one in found.pauses] == [
        ("elsewhere", None, 1000),
        ("work", "Nope", 0),
    ]
    assert found.held_sagas == {"elsewhere": 2, "work": 0}


def test_what_waits_for_a_service_and_who_works_for_it(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.begin("s2", do(1, service="elsewhere"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("elsewhere")) == 1)
    # Without heartbeat or group: as of a service that nobody has started yet.
    unread = read(scene)
    assert (of(unread, "elsewhere").unread, of(unread, "elsewhere").held) == (1, 0)
    assert (of(unread, "work").unread, of(unread, "work").processes) == (1, 0)
    assert unread.workers == 1
    scene.redis.xgroup_create(ONLY.commands("work"), "work", "0")
    scene.redis.xreadgroup("work", "somebody", {ONLY.commands("work"): ">"})
    entries: Any = scene.redis.xrange(ONLY.commands("work"))
    sent_ms = time_of(entries[0][0])
    scene.redis.xadd(ONLY.replies("work"), {"body": "x"})
    scene.redis.xadd(ONLY.quarantine_of("work"), {"body": "x"})
    scene.redis.xadd(ONLY.quarantine, {"body": "x"})
    scene.redis.xadd(ONLY.interventions, {"body": "x"})
    held = read(scene)
    work = of(held, "work")
    assert (work.unread, work.held, work.replies, work.quarantined) == (0, 1, 1, 1)
    assert work.processes == 1  # it has asked for entries a moment ago
    assert work.oldest_command_ms == held.at_ms - sent_ms
    assert (held.quarantined, held.all_quarantined, held.interventions) == (1, 2, 1)


def test_a_timer_that_nobody_attends_to_lags(scene: Scene) -> None:
    scene.begin("s1", do(1, service="elsewhere"))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    assert read(scene).timer_lag_ms == 0
    scene.redis.zadd(ONLY.timers, {"s1": read(scene).at_ms - 7_000})
    assert 7_000 <= read(scene).timer_lag_ms < 67_000


def test_what_is_of_another_type_counts_as_nothing(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    for key in (ONLY.commands("work"), ONLY.timers, ONLY.saga("s1"), KEYS.losses, ONLY.quarantine, KEYS.running):
        scene.redis.set(key, "in the way")
    found = read(scene)
    assert (found.live.total, found.quarantined, of(found, "work").unread, found.losses) == (0, 0, 0, 0)


def test_a_damaged_saga_is_left_out(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    scene.redis.hset(ONLY.saga("s1"), "current_step", "x")
    found = read(scene)
    assert (found.live.total, found.live.by_status["PENDING"], found.live.is_exact) == (1, 0, False)


def test_an_inspector_may_read_them_all(scene: Scene, server: Server) -> None:
    scene.begin("s1", do(1, service="elsewhere"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("elsewhere")) == 1)
    users = Users(server)
    assert run(users.broker(Role.INSPECTOR).client, look(KEYS)).live == read(scene).live
    assert users.refused() == []


def test_of_several_partitions_all_count(server: Server) -> None:
    broker = server.broker()
    keys = divided(broker, 3)
    for partition in keys.partitions:
        broker.client.xadd(partition.commands("till"), {"body": "x"})
        broker.client.zadd(partition.ended, {"s": 1})
    broker.client.sadd(keys.services, "till")
    found = FiguresReader(broker).now()
    assert (of(found, "till").unread, found.ended) == (3, 3)


def test_a_reader_reads_again_after_a_while_only(scene: Scene) -> None:
    reader = FiguresReader(scene.broker, kept_s=0.2)
    first = reader.now()
    assert reader.now() is first
    until(lambda: reader.now() is not first, what="it reads again")
    assert reader.now().at_ms > first.at_ms


@pytest.mark.own_server
def test_a_large_store_takes_few_commands_and_none_over_5_ms(server: Server) -> None:
    scene = Scene(server.broker())
    pipeline = scene.redis.pipeline(transaction=False)
    for number in range(20_000):
        pipeline.zadd(ONLY.timers, {f"s{number}": number if number % 2 else float("inf")})
        if number < 4_000:
            words: dict[Any, Any] = {
                "status": "PENDING",
                "current_step": 1,
                "begun_at": "2026-01-01T00:00:00.000Z",
                "parked": "x" * 99,
            }
            pipeline.hset(ONLY.saga(f"s{number}"), mapping=words | {"step1.service": "work"})
    pipeline.execute()
    scene.redis.config_set("slowlog-log-slower-than", 5_000)
    scene.redis.config_resetstat()
    read(scene)
    stats: Any = scene.redis.info("commandstats")
    assert sum(one["calls"] for one in stats.values()) < 3_200  # of 20,000 sagas

    def is_quick() -> bool:  # on a busy machine a server may be interrupted during any command
        scene.redis.slowlog_reset()
        read(scene)
        return scene.redis.slowlog_get() == []

    until(is_quick, what="no command takes 5 ms")

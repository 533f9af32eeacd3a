"""The heartbeat on real servers: who writes it, what it costs, and that all who report who is alive agree."""

import contextlib
import json
import logging
import signal
import threading
import time
from typing import Any

import pytest
import redis

from sagastream import Context, Service
from sagastream.broker import exchange
from sagastream.broker.scripting import Script
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import heartbeat, keys, layout
from sagastream.store.heartbeat import Kind, Process
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.streams import add_reply
from support.waiting import takes_less_than, until


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def found(scene: Scene, worker: Orchestrator | ServiceRunner, *services: str) -> Process | None:
    """What is known about this process."""
    known = heartbeat.processes(scene.redis, KEYS, services)
    return next((process for process in known if worker.name.endswith(process.name)), None)


def known(scene: Scene, worker: Orchestrator | ServiceRunner) -> Process:
    process = found(scene, worker)
    assert process is not None
    return process


def beats(scene: Scene) -> int:
    """How often a heartbeat was written, by any process."""
    stats: Any = scene.redis.info("commandstats")
    return int(stats.get("cmdstat_zadd", {"calls": 0})["calls"])


def test_a_worker_and_a_service_that_read_are_in_it(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    scene.runner.turn(block_ms=1)
    worker, service = known(scene, scene.worker), known(scene, scene.runner)
    assert (worker.kind, worker.service, worker.formats) == (Kind.WORKER, None, (1, 2))
    assert (service.kind, service.service, service.formats) == (Kind.SERVICE, "work", (1, 2))
    assert worker.is_alive
    assert service.is_alive
    assert heartbeat.worker_is_alive(scene.redis, KEYS)
    members: Any = scene.redis.zrange(KEYS.alive, 0, -1)
    assert {json.loads(member)["kind"] for member in members} == {"worker", "service"}


def test_it_is_written_before_the_process_has_a_consumer(scene: Scene) -> None:
    """A consumer without a heartbeat is taken for a process of a release that writes none."""
    scene.worker._inbox._join()
    assert found(scene, scene.worker) is not None
    consumers: Any = scene.redis.xinfo_consumers(ONLY.requests, keys.ORCHESTRATOR_GROUP)
    assert consumers == []


def test_it_costs_no_round_trip_and_is_written_about_once_a_second(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    before, began, turns, took_s = beats(scene), time.monotonic(), 0, 0.0
    while took_s < 3.0 or turns <= 15:
        scene.worker.turn(block_ms=5)
        turns += 1
        took_s = time.monotonic() - began
    assert 2 <= beats(scene) - before <= took_s + 1


def test_a_worker_with_more_to_do_than_it_can_is_heard_as_well(scene: Scene) -> None:
    """Then it reads along with its commits, and takes over, page by page, what others held."""
    layout.check(scene.broker)
    for number in range(400):
        scene.begin(f"s{number}", do(1, service="elsewhere"))
    scene.redis.xgroup_create(ONLY.requests, keys.ORCHESTRATOR_GROUP, id="0")
    scene.redis.xreadgroup(keys.ORCHESTRATOR_GROUP, "dead", {ONLY.requests: ">"}, count=200)
    scene.worker._inbox.leases._lease_ms = 1
    began_s, longest_s = time.monotonic(), 0.0
    while time.monotonic() - began_s < 2.5 or scene.redis.xlen(ONLY.requests):
        turn_s = time.monotonic()
        scene.worker.turn(block_ms=1)
        silent_ms = known(scene, scene.worker).silent_ms
        longest_s = max(longest_s, time.monotonic() - turn_s)
        # Once a second, along with what the turn does anyway: a busy machine takes longer for a turn.
        assert silent_ms < 1_200 + 3 * longest_s * 1000


def test_a_service_whose_handlers_take_long_is_heard(server: Server) -> None:
    scene = Scene(server.broker())
    runs: list[str] = []
    service = Service("slow", concurrency=1)

    @service.command("Do", compensation=None)
    def handler(params: Any, context: Context) -> None:
        runs.append(context.key)
        until(scene.stop.is_set, what="the test is through", timeout_s=240)

    runner = ServiceRunner(scene.broker, service, scene.stop)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        scene.begin("s1", do(1, service="slow"))
        scene.turns_until(lambda: bool(runs))
        began = time.monotonic()
        while time.monotonic() - began < 6.0:
            assert known(scene, runner).silent_ms < 4500
            time.sleep(0.1)
    finally:
        scene.stop.set()
        thread.join()


def test_who_ends_in_order_is_taken_out(scene: Scene) -> None:
    for process in (scene.worker, scene.runner):
        process.turn(block_ms=1)
    scene.worker._inbox.leave()
    scene.runner._inbox.reader.leave()
    assert scene.redis.zcard(KEYS.alive) == 0
    assert not heartbeat.worker_is_alive(scene.redis, KEYS)


def test_who_ends_while_it_holds_something_is_known_to_have_left(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin("s1", do(1))
    assert scene.worker._inbox.read(1)
    scene.worker._inbox.leave()
    process = known(scene, scene.worker)
    assert (process.kind, process.is_alive) == (Kind.LEFT, False)
    assert not heartbeat.worker_is_alive(scene.redis, KEYS)


def test_the_dead_are_swept_out_by_the_living(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    time_now: Any = scene.redis.time()
    now_ms = time_now[0] * 1000
    old, future = now_ms - keys.ALIVE_KEPT_MS - 2000, now_ms + keys.ALIVE_KEPT_MS + 10_000
    scene.redis.zadd(KEYS.alive, {"dead": old, "before the clock was set back": future, "fresh": now_ms})

    def is_swept() -> bool:
        scene.worker.turn(block_ms=1)
        return scene.redis.zscore(KEYS.alive, "dead") is None

    until(is_swept, what="it is swept out")
    assert scene.redis.zscore(KEYS.alive, "before the clock was set back") is None
    assert scene.redis.zscore(KEYS.alive, "fresh") is not None


def test_a_dead_worker_does_not_come_back_to_life_with_its_consumer(scene: Scene) -> None:
    """A restart of the broker sets the idle time of every consumer to nothing."""
    scene.worker.turn(block_ms=1)
    process = known(scene, scene.worker)
    members: Any = scene.redis.zrange(KEYS.alive, 0, -1)
    (member,) = members
    time_now: Any = scene.redis.time()
    scene.redis.zadd(KEYS.alive, {member: time_now[0] * 1000 - 2 * 3600 * 1000})
    scene.runner.turn(block_ms=1)  # whoever lives sweeps
    consumers: Any = scene.redis.xinfo_consumers(ONLY.requests, keys.ORCHESTRATOR_GROUP)
    (consumer,) = consumers
    assert consumer["name"].decode() == process.name
    assert consumer["idle"] < heartbeat.ALIVE_WITHIN[Kind.WORKER].asked_ms
    assert found(scene, scene.worker) is None
    assert not heartbeat.worker_is_alive(scene.redis, KEYS)


def test_of_very_many_processes_those_are_kept_that_were_heard_last(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "ALIVE_KEPT", 3)
    time_now: Any = scene.redis.time()
    now_ms = time_now[0] * 1000
    scene.redis.zadd(KEYS.alive, {f"p{number}": now_ms - 1000 * number for number in range(1, 6)})
    scene.worker.turn(block_ms=1)
    kept: Any = scene.redis.zrange(KEYS.alive, 0, -1)
    assert kept[:2] == [b"p2", b"p1"]
    assert json.loads(kept[2])["kind"] == "worker"


@pytest.mark.parametrize(
    ("member", "score"),
    [
        (b'{"name":"\xff","kind":"worker"}', "now"),
        (b'{"name":"a","kind":"worker"}', "+inf"),
        (b'{"name":"a","kind":"worker"}', "-inf"),
        (b'{"kind":"worker","more":' + b"[" * 5000 + b"]" * 5000 + b"}", "now"),
        (b'{"name":1,"kind":"worker"}', "now"),
        (b"\xff\xfe", "now"),
        (b"[]", "now"),
        (b"", "now"),
    ],
    ids=["not UTF-8", "never", "always", "deep", "a number", "not text", "a list", "empty"],
)
def test_a_member_that_sagastream_did_not_write_hides_nobody(scene: Scene, member: bytes, score: str) -> None:
    scene.worker.turn(block_ms=1)
    time_now: Any = scene.redis.time()
    at = time_now[0] * 1000 if score == "now" else float(score)
    scene.redis.zadd(KEYS.alive, {member: at})
    assert [process.name for process in heartbeat.processes(scene.redis, KEYS)] == [known(scene, scene.worker).name]


def test_a_member_that_is_too_long_for_a_process_is_told_to_nobody(scene: Scene) -> None:
    seconds, _ = scene.redis.time()
    now_ms = seconds * 1000
    text = '{"name":"%s","kind":"worker"}'
    members = {text % ("x" * 32_768): now_ms, text % "other": now_ms}
    scene.redis.zadd(KEYS.alive, members)
    asks: list[bytes | str | int] = [text % "own", 60_000, 100, "own", "", '"kind":"worker"', 60_000, 9]
    _, *told = exchange.run(scene.redis, Script("beat").call([KEYS.alive, KEYS.running], asks))
    assert [json.loads(member)["name"] for member in told[::2]] == ["other", "own"]


def test_of_very_many_processes_none_is_told(scene: Scene) -> None:
    seconds, _ = scene.redis.time()
    scene.redis.zadd(KEYS.alive, {f'"kind":"worker"{number}': seconds * 1000 for number in range(8)})
    asks: list[bytes | str | int] = ['"kind":"worker"', 60_000, 100, "own", "", '"kind":"worker"', 60_000]
    for most, told in ((9, 9), (8, 0)):
        _, *found = exchange.run(scene.redis, Script("beat").call([KEYS.alive, KEYS.running], [*asks, most]))
        assert len(found) == 2 * told


def test_a_worker_whose_store_was_emptied_is_heard_again_at_once(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    scene.redis.flushall()
    scene.worker.turn(block_ms=1)
    scene.worker.turn(block_ms=1)
    assert known(scene, scene.worker).is_alive


@pytest.mark.own_server  # the rights of whose user it changes
@pytest.mark.parametrize("why", ["something else stands at its key", "the user may not write it"])
def test_where_it_is_refused_all_goes_on_and_the_reader_says_so_once(
    scene: Scene, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    if why.startswith("something"):
        scene.redis.set(KEYS.alive, "x")
    else:
        scene.redis.acl_setuser(
            "default", keys=["%R~*", "~saga:{*", "~saga:services*", "~saga:store"], reset_keys=True, enabled=True
        )
    try:
        with caplog.at_level(logging.WARNING, "sagastream"):
            scene.begin("s1", do(1))
            assert scene.play("s1").status == "COMPLETED"
            for _ in range(3):
                scene.worker._services._heartbeat._beat_at = 0.0
                scene.worker.turn(block_ms=1)
            add_reply(scene.redis, "newcomer", {"body": "x"})  # … the worker hears of new services all the same
            scene.worker._services._heartbeat._beat_at = 0.0
            scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("newcomer")) == 0)
        refused = [one for one in caplog.records if "does not take the heartbeat" in one.getMessage()]
        sources = sorted(getattr(one, "source", "").rpartition(" ")[0] for one in refused)
        assert sources == ["service work", "worker"]  # each with its process
        assert heartbeat.worker_is_alive(scene.redis, KEYS)  # … known by its consumer
    finally:
        scene.redis.acl_setuser("default", keys=["*"], reset_keys=True, enabled=True)


def test_a_full_store_takes_it(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    scene.redis.config_set("maxmemory", 1)
    try:
        until(lambda: known(scene, scene.worker).silent_ms > 1000, what="it is silent for a while")
        with contextlib.suppress(redis.OutOfMemoryError):  # … of what comes after it
            scene.worker.turn(block_ms=1)
        assert known(scene, scene.worker).silent_ms < 1000
    finally:
        scene.redis.config_set("maxmemory", 0)


def test_all_who_tell_of_a_worker_that_hangs_agree(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    client = server.broker().client
    worker = commands.quiet("worker", env=env)
    body = json.dumps({"saga_id": "s1", "steps": [do(1, service="elsewhere")]})
    begun = commands.run("begin", "-", given=body, **env)
    assert "no worker" not in begun.stderr
    until(lambda: client.exists(ONLY.saga("s1")), what="it is begun")
    worker.send_signal(signal.SIGSTOP)
    try:
        with takes_less_than(5.0):
            until(lambda: not heartbeat.worker_is_alive(client, KEYS), what="it counts as dead")
        assert "no worker is running" in commands.run("show", "s1", **env).stdout
        assert "; no worker is running" in commands.run("list", **env).stderr
        doctor = commands.run("doctor", **env).stdout
        assert "problem   workers       no worker is running that answers: " in doctor
        assert "no worker is running" in commands.run("begin", "-", given=body.replace("s1", "s2"), **env).stderr
    finally:
        worker.send_signal(signal.SIGCONT)
    with takes_less_than(5.0):
        until(lambda: heartbeat.worker_is_alive(client, KEYS), what="it is heard again")
    assert "no worker" not in commands.run("show", "s1", **env).stdout
    assert "at work: 1;" in commands.run("doctor", **env).stdout

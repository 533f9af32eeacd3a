"""A failover to a replica that lacks what the master had accepted: it is noticed, told and, where it can be, mended."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream.broker import wire
from sagastream.broker.connection import connect
from sagastream.broker.exchange import run
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaState
from sagastream.core.steps import STANDING
from sagastream.orchestrator.last_written import Written, missing
from sagastream.store import heartbeat, lineage, published
from sagastream.store import told as ends
from sagastream.store.keys import ORCHESTRATOR_GROUP
from sagastream_bridge.inspection import after_failover, evidence, workers_looked
from sagastream_bridge.inspection.after_failover import AfterFailover
from sagastream_bridge.inspection.evidence import NoAnswer, Questions, Where
from sagastream_bridge.inspection.reconcile import Effect
from support import tills
from support.clock import ServerClock
from support.failovers import SAGAS, Tills, all_at_work, differing, listed, steps
from support.processes import Commands
from support.replicas import Pair
from support.scenes import Scene, do
from support.servers import OwnServer, Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


@pytest.fixture
def clock(server: OwnServer) -> ServerClock:
    return ServerClock(server)


def begin(client: SagaClient, saga_id: str) -> None:
    client.begin(saga_id, steps("nobody"))
    until(lambda: client.get(saga_id), what="it has begun")


def lose_one(pair: Pair) -> None:
    """The replica has the saga `kept`, and not the saga `lost`."""
    with SagaClient(pair.url) as client:
        begin(client, "kept")
        pair.wait()
        pair.cut()
        begin(client, "lost")


def said_at_its_end(process: "subprocess.Popen[bytes]") -> str:
    """All that a process has said, once it has ended."""
    _, err = process.communicate(timeout=60)
    return err.decode()


def test_a_worker_that_saw_what_is_lost_says_so_and_doctor_and_show_tell_it(pair: Pair, commands: Commands) -> None:
    with (log := commands.folder / "log").open("w") as stderr:
        worker = commands.start("worker", env={"REDIS_URL": pair.url}, stderr=stderr)
    lose_one(pair)
    pair.promote()
    with connect(pair.url) as store:
        (loss,) = until(lambda: lineage.losses(store, KEYS), what="the loss is told")
    assert loss.since_ms is not None
    told = commands.run("doctor", REDIS_URL=pair.url)
    assert told.returncode == 1
    assert "problem   failover      the store has lost what was written after 20" in told.stdout
    assert "sagastream doctor --after-failover" in told.stdout
    assert "the store has lost what was written after" in commands.run("show", "kept", REDIS_URL=pair.url).stdout
    assert commands.run("doctor", "--settled", REDIS_URL=pair.url).returncode == 0
    assert "has lost" not in commands.run("doctor", REDIS_URL=pair.url).stdout
    mended = "since the store has another history: each stands where it should"
    until(lambda: mended in log.read_text(), what="the worker has looked at all sagas")
    worker.terminate()
    worker.wait(60)
    said = log.read_text()
    assert said.count("the store has lost what was written after") == 1
    assert said.count(mended) == 1


def test_a_switch_that_loses_nothing_is_no_loss(pair: Pair, commands: Commands) -> None:
    worker = commands.start("worker", env={"REDIS_URL": pair.url})
    with SagaClient(pair.url) as client:
        begin(client, "kept")
        worker.send_signal(signal.SIGSTOP)
        pair.wait()
        pair.promote()
        worker.send_signal(signal.SIGCONT)
        begin(client, "more")
    worker.terminate()
    assert "has lost" not in said_at_its_end(worker)
    with connect(pair.url) as store:
        assert lineage.losses(store, KEYS) == []


def both_look(heard: Any) -> None:
    """Wait until a worker and a bridge have looked how far the store is. Only the bridge seeks the newest heartbeat."""
    looked = {"ZSCORE saga:alive": 0, "ZRANGE saga:alive": 0}
    while not looked["ZSCORE saga:alive"] > looked["ZRANGE saga:alive"] > 0:
        what = " ".join(heard.next_command()["command"].split()[:2])
        if what in looked:
            looked[what] += 1


def test_what_sentinels_write_while_the_former_master_refuses_all_else_is_no_loss(
    pair: Pair, commands: Commands
) -> None:
    """As in a planned switch: they tell the former master last, and until then each publishes a message there."""
    with connect(pair.master.url) as old, connect(pair.replica.url) as new, SagaClient(pair.url) as client:
        processes = [commands.start(one, env={"REDIS_URL": pair.url}) for one in ("worker", "bridge")]
        begin(client, "kept")
        until(lambda: looks(old) > 4, what="both know how far the store is")
        old.config_set("min-replicas-to-write", 1)
        pair.wait()
        new.replicaof("NO", "ONE")
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            old.set("support:refused", "1")
        with old.monitor() as heard:
            old.publish("__sentinel__:hello", "127.0.0.1,26379,mymaster")
            both_look(heard)
        pair.promote()
        assert pair.lost_bytes > 0
        with new.monitor() as heard:
            both_look(heard)
        begin(client, "more")
        assert lineage.losses(new, KEYS) == []
    for process in processes:
        process.terminate()
        said = said_at_its_end(process)
        assert "lost what was written" not in said
        assert f"{pair.lost_bytes} bytes that came later are not there" in said


def test_a_service_that_saw_what_is_lost_says_so(pair: Pair, commands: Commands, tmp_path: Path) -> None:
    support = str(Path(tills.__file__).parents[1])
    env = {"REDIS_URL": pair.url, "TILLS": str(tmp_path), "PYTHONPATH": support}
    worker = commands.quiet("worker", env=env)
    service = commands.start("service", "support.tills:early", env=env)
    with SagaClient(pair.url) as client:
        client.begin("kept", steps("early"))
        client.wait("kept", 60)
        pair.wait()
        pair.cut()
        client.begin("lost", steps("early"))
        client.wait("lost", 60)
    worker.kill()  # it would say so, too, and would be the first one to keep it
    pair.promote()
    with connect(pair.url) as store:
        (loss,) = until(lambda: lineage.losses(store, KEYS), what="the loss is told")
    assert loss.found_by.startswith("service early ")
    service.terminate()
    assert "the store has lost what was written after 20" in said_at_its_end(service)


def looks(store: redis.Redis) -> int:
    """How often processes have looked how far the store is."""
    stats: Any = store.info("commandstats")
    return int(stats.get("cmdstat_xinfo|groups", {"calls": 0})["calls"])


def test_a_bridge_that_saw_what_is_lost_says_so(pair: Pair, commands: Commands) -> None:
    bridge = commands.start("bridge", env={"REDIS_URL": pair.url})
    worker = commands.quiet("worker", env={"REDIS_URL": pair.url})
    lose_one(pair)
    worker.kill()
    with connect(pair.url) as store:
        before = looks(store)
        until(lambda: looks(store) > before + 1, what="the bridge has looked")
    pair.promote()
    with connect(pair.url) as store:
        (loss,) = until(lambda: lineage.losses(store, KEYS), what="the loss is told")
    assert loss.found_by == "sagastream bridge"
    assert "the store has lost what was written after 20" in said_at_its_end(bridge)


@pytest.mark.own_server
def test_a_server_that_has_loaded_an_older_file_has_lost_what_came_after(server: OwnServer, commands: Commands) -> None:
    """So it is after a power cut with appendfsync everysec."""
    commands.quiet("worker", env={"REDIS_URL": server.url})
    client = SagaClient(server.broker())
    begin(client, "kept")
    shutil.copytree(server.folder, older := server.folder.with_name("older"))
    begin(client, "lost")
    server.kill()
    shutil.rmtree(server.folder)
    older.rename(server.folder)
    server.start()
    (loss,) = until(lambda: lineage.losses(server.broker().client, KEYS), what="the loss is told")
    assert "lost" in loss.text
    assert client.get("lost") is None


@pytest.mark.own_server
def test_a_server_that_has_only_started_again_has_lost_nothing(server: OwnServer, commands: Commands) -> None:
    worker = commands.start("worker", env={"REDIS_URL": server.url})
    client = SagaClient(server.broker())
    begin(client, "before")
    server.kill()
    server.start()
    begin(client, "after")
    worker.terminate()
    assert "has lost" not in said_at_its_end(worker)
    assert lineage.losses(server.broker().client, KEYS) == []


@pytest.fixture
def early(server: OwnServer, commands: Commands, tmp_path: Path) -> Iterator[OwnServer]:
    """A service has done the step of one saga. It alone could find a loss."""
    env = {"REDIS_URL": server.url, "TILLS": str(tmp_path), "PYTHONPATH": str(Path(tills.__file__).parents[1])}
    worker = commands.quiet("worker", env=env)
    service = commands.start("service", "support.tills:early", env=env)
    with SagaClient(server.broker()) as client:
        client.begin("kept", steps("early"))
        client.wait("kept", 60)
    yield server
    looked = looks(server.broker().client)
    until(lambda: looks(server.broker().client) > looked + 2, what="the service has looked twice since")
    worker.kill()
    service.terminate()
    assert "has lost" not in said_at_its_end(service)
    assert lineage.losses(server.broker().client, KEYS) == []


def idle(store: redis.Redis) -> None:
    """The worker and the service have looked how far the store is, each twice."""
    before = looks(store)
    until(lambda: looks(store) > before + 4, what="they have looked")


def start_again(server: OwnServer) -> None:
    server.kill()
    server.start()


@pytest.mark.own_server
def test_records_that_have_expired_before_a_restart_are_no_loss(early: OwnServer) -> None:
    store = early.broker().client
    for key in store.keys(ONLY.records("early")):
        store.pexpire(key, 1)
    idle(store)
    start_again(early)


@pytest.mark.own_server
def test_records_that_expire_while_the_server_is_down_are_no_loss(
    server: OwnServer, clock: ServerClock, early: OwnServer
) -> None:
    server.kill()
    clock.set_back(-2 * 24 * 3600 * 1000)
    server.start()


@pytest.mark.own_server
def test_the_record_of_a_question_is_deleted_and_that_is_no_loss(early: OwnServer, commands: Commands) -> None:
    assert commands.run("doctor", "--after-failover", REDIS_URL=early.url).returncode == 0
    start_again(early)


def test_what_a_person_sets_back_by_hand_is_no_loss(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BEAT_EVERY_S", 0.0)
    scene = Scene(server.broker())
    scene.begin("s1", do(1))
    scene.play("s1")
    scene.redis.xgroup_setid(ONLY.requests, ORCHESTRATOR_GROUP, "0")
    beats: Any = scene.redis.zrange(KEYS.alive, 0, -1, withscores=True)
    scene.redis.zadd(KEYS.alive, {member: score - 5000 for member, score in beats})
    for _ in range(3):
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
    assert lineage.losses(scene.redis, KEYS) == []


def test_an_emptied_store_is_a_loss(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_BEAT_EVERY_S", 0.0)
    scene = Scene(server.broker())
    scene.begin("s1", do(1))
    scene.play("s1")
    scene.redis.flushall()
    scene.turns_until(lambda: bool(lineage.losses(scene.redis, KEYS)))


def told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    monkeypatch.setattr(after_failover, "_PAUSE_S", 0.0)
    monkeypatch.setattr(workers_looked, "_WITHIN_S", 0.0)
    scene.worker.turn(block_ms=1)  # it is heard
    findings = [(one.level, one.about, one.text) for one in AfterFailover(scene.broker, since_ms=0).examine()]
    # The scene's worker does not go on meanwhile; another, that has just been started, may not have looked yet.
    silent = [one for one in findings if one[1].startswith("worker ")]
    assert silent
    for level, _, text in silent:
        assert level == "problem"
        assert "It may know of ends that the store has lost. Run this again when the worker runs" in text
    return [one for one in findings if one not in silent]


def test_a_service_that_says_nothing_is_judged_by_its_records(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(server.broker())
    for n in range(4):
        scene.begin(f"s{n}", do(n), do("fail" if n == 3 else n))
        scene.play(f"s{n}")
    (service,) = told(scene, monkeypatch)
    assert service[:2] == ("warning", "service work")
    assert "it has no command sagastream_effects" in service[2]
    (hour,) = scene.redis.scan_iter(f"{ONLY.done('work', 0)[:-1]}*")
    scene.redis.hset(hour, "s0/1/transaction/Do", 'failed "no"')
    scene.redis.delete(ONLY.saga("s1"))
    scene.redis.hset(ONLY.saga("s2"), "status", "no status")
    scene.redis.hdel(hour, "s3/1/transaction/(void)")
    assert [one[:2] for one in told(scene, monkeypatch)] == [
        ("warning", "service work"),
        ("problem", "saga s0"),
        ("problem", "saga s1"),
        ("problem", "saga s1"),
        ("problem", "saga s3"),
    ]


def test_a_service_that_does_not_answer_is_a_problem(
    server: Server, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "_TIMEOUT_MS", 500)
    scene = Scene(server.broker())
    published.publish(scene.redis, KEYS, "gone", {"sagastream_effects": None})
    commands.quiet("worker", env={"REDIS_URL": server.url})
    found = told(scene, monkeypatch)
    assert [one[:2] for one in found[:2]] == [("problem", "service gone"), ("warning", "service work")]
    assert "it did not say which of its effects stand: Step 1" in found[0][2]


def test_a_service_that_answers_no_more_is_judged_by_what_it_said(
    server: Server, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by that alone: what it cannot confirm is not told as undone."""
    scene = Scene(server.broker())
    published.publish(scene.redis, KEYS, "work", {STANDING: None})
    scene.begin("s1", do("fail"))
    scene.play("s1")
    said = {Where("s1", 1): Effect.DONE}
    answers = [said]

    def of(_: Questions, steps: list[Where]) -> dict[Where, Effect]:
        if not answers:
            raise NoAnswer("it has gone")
        return answers.pop()

    monkeypatch.setattr(Questions, "since", lambda _, since_ms: iter([said]))
    monkeypatch.setattr(Questions, "of", of)
    monkeypatch.setattr(after_failover, "_UNDONE_WITHIN_S", 0.0)
    monkeypatch.setattr(after_failover, "_PAUSE_S", 0.0)
    scene.worker.turn(block_ms=1)
    monkeypatch.setattr(workers_looked, "_WITHIN_S", 0.0)
    _, *found = AfterFailover(scene.broker, since_ms=0, repair=True).examine()
    assert [(one.level, one.about) for one in found] == [("ok", "service work"), ("problem", "saga s1")]


def test_an_end_that_may_have_been_told_is_compared_with_the_saga(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(server.broker())
    scene.begin("aborted", do("fail"))
    scene.begin("completed", do(1))
    for saga_id in ("aborted", "completed"):
        scene.play(saga_id)
    scene.begin("live", do(1, service="nobody"))
    # What the worker has written last is kept, if the store goes on from another moment.
    scene.worker._lineage.has_changed(since_ms=4 * 10**12)
    scene.worker.turn(block_ms=1)
    assert ends.kept(scene.redis, KEYS) == []
    scene.worker._lineage.has_changed()
    scene.worker.turn(block_ms=1)
    assert [(one.saga_id, one.status) for one in ends.kept(scene.redis, KEYS)] == [
        ("aborted", "ABORTED"),
        ("completed", "COMPLETED"),
    ]
    assert [one for one in told(scene, monkeypatch) if one[1].startswith("saga ")] == []
    run(scene.redis, ends.keep(KEYS, [ends.End(name, "COMPLETED", 1) for name in ("aborted", "live", "gone")]))
    scene.redis.hset(KEYS.told, mapping={"x": 1, "a b c": 1, "a COMPLETED": "x", b"\xff COMPLETED": 1})
    assert [one for one in told(scene, monkeypatch) if one[1].startswith("saga ")] == [
        ("problem", "saga aborted", OTHERWISE.format("has ended ABORTED; tell whoever relies on that")),
        ("problem", "saga gone", OTHERWISE.format(f"there is no such saga; {after_failover._GONE}")),
        ("warning", "saga live", OTHERWISE.format("goes on from an earlier state; look again when it has ended")),
    ]
    lineage.settle(scene.redis, KEYS)
    assert ends.kept(scene.redis, KEYS) == []
    scene.redis.set(KEYS.told, "x")
    assert ends.kept(scene.redis, KEYS) == []
    scene.worker._lineage.has_changed()
    scene.worker.turn(block_ms=1)


def test_a_saga_that_has_begun_and_ended_in_the_lost_time_is_missing_until_it_may_have_expired(server: Server) -> None:
    scene = Scene(server.broker())
    scene.begin("s-1", do(1))
    scene.play("s-1")
    written = scene.worker._written._written.all(None)
    state = written[-1]

    def gone(after_ms: int) -> list[str]:
        return run(scene.redis, missing(written, state.updated_ms + after_ms, 1_000))

    assert gone(0) == []
    scene.redis.delete(ONLY.saga("s-1"))
    assert gone(999) == [f"saga s-1 was at version {state.version}, and is at 0"]
    assert gone(1_000) == []


def test_a_saga_that_was_written_once_more_at_an_earlier_version_has_gone_back(server: Server) -> None:
    redis = server.broker().client
    redis.hset(ONLY.saga("s-1"), mapping={"version": 9, "updated_at": "later"})
    first = Written(ONLY.saga("s-1"), "s-1", version=5, updated_ms=10, ended=False, asks=False)
    for second, expected in [
        (first._replace(version=4, updated_ms=20), ["saga s-1 was at version 5, and was written at 4 then"]),
        (first._replace(updated_ms=20), ["saga s-1 was at version 5, and was written at 5 then"]),
        (first._replace(version=6, updated_ms=20), []),
        (first, []),
    ]:
        assert run(redis, missing([first, second], 30, 1_000)) == expected


OTHERWISE = "it may have been told to have ended COMPLETED, and {}"


@pytest.mark.own_server
def test_an_end_whose_writing_was_not_answered_may_have_been_told(
    server: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(server.broker())
    scene.begin("s1", do(1))

    def is_done() -> bool:
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        return bool(scene.effects.done)

    until(is_done, what="it is done")
    send = wire.send

    def sends_and_dies(connection: Any, commands: Any) -> None:
        send(connection, commands)
        if scene.worker._store._commit._sha in commands[0]:
            server.kill()

    monkeypatch.setattr(wire, "send", sends_and_dies)
    with pytest.raises(redis.ConnectionError):
        until(lambda: scene.worker.turn(block_ms=1) < 0, what="it has died")
    assert [(one.saga_id, one.status) for one in scene.worker._ends._ends] == [("s1", "COMPLETED")]


def test_without_a_worker_nobody_can_be_asked(server: Server, commands: Commands) -> None:
    with SagaClient(server.broker()) as client:
        client.begin("s1", steps("nobody"))
    done = commands.run("doctor", "--after-failover", REDIS_URL=server.url)
    assert (done.returncode, "no worker is running" in done.stdout) == (1, True)


def test_what_somebody_else_has_written_where_losses_are_kept_ends_nothing(server: Server, commands: Commands) -> None:
    store = server.broker().client
    store.set(KEYS.losses, "x")
    assert lineage.losses(store, KEYS) == []
    store.delete(KEYS.losses)
    store.hset(KEYS.losses, mapping={"a": b"\xff", "b": "[]", "c": '{"since_ms": 1e99}', "d": "[" * 100_000})
    assert lineage.losses(store, KEYS) == []
    assert "Traceback" not in commands.run("doctor", REDIS_URL=server.url).stderr


@pytest.mark.slow
@pytest.mark.parametrize("partitions", ["1", "3"])
def test_every_saga_that_says_other_than_what_was_done_is_listed_and_none_is_missed(
    pair: Pair, commands: Commands, tmp_path: Path, partitions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", partitions)
    scene = Tills(pair, commands, tmp_path / "tills")
    with SagaClient(pair.url) as client:
        saga_ids = scene.fail_over(pair, client)
        # One service is not there yet: so the cancel comes before the answer of the second step.
        scene.start("early", "choosy")
        for n in range(SAGAS):
            assert client.cancel(f"completed-{n}", "too late", 60).cancelling
        scene.start("late")
        states: dict[str, SagaState | None] = {
            saga_id: None if saga_id.startswith("lost") else client.wait(saga_id, 60) for saga_id in saga_ids
        }
        wanted = differing(scene.folder, states)
        assert len(wanted) == 3 * SAGAS
        found, code = listed(commands, pair.url)
        assert (sorted(set(found["problem"])), code) == (wanted, 1)
        assert found["ok service"] == ["choosy", "early", "late"]

        found, code = listed(commands, pair.url, "--repair")
        mended = sorted(f"completed-{n}" for n in range(SAGAS))
        assert found["repaired"] == mended
        assert sorted(set(found["problem"])) == sorted(set(wanted) - set(mended)) == differing(scene.folder, states)
        assert "quarantine" not in commands.run("doctor", REDIS_URL=pair.url).stdout
        # The client of the lost ones begins them again: they end as what was done.
        for n in range(SAGAS):
            client.begin(f"lost-{n}", steps("early", "late", "early"))
        for n in range(SAGAS):
            assert client.wait(f"lost-{n}", 60).status == "COMPLETED"
        found, code = listed(commands, pair.url)
        assert sorted(set(found["problem"])) == sorted(f"aborted-{n}" for n in range(SAGAS))
    with connect(pair.url) as store:
        assert not [key for key in store.scan_iter("*") if b"sagastream.effects" in key]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("rate", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_while_all_is_at_work_every_saga_is_listed_that_was_told_or_done_otherwise(
    pair: Pair, commands: Commands, tmp_path: Path, how: str, rate: int
) -> None:
    all_at_work(pair, how, rate, commands, tmp_path / "tills")

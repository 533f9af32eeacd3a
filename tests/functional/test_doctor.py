"""The doctor on real servers: it reports a healthy store as healthy, and finds every fault, and mends it if that is
possible."""

import contextlib
import json
import logging
from typing import Any

import pytest
import redis

from sagastream import DroppedCommands, MalformedMessage, RequestRefused
from sagastream.broker import scripting
from sagastream.broker.connection import Broker
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Intervene, Verb
from sagastream.orchestrator import repair
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.repair import Repair
from sagastream.orchestrator.worker import Orchestrator
from sagastream.store import keys
from sagastream.store.roles import Role
from sagastream_bridge.inspection import indexes, streams
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import OK
from sagastream_bridge.inspection.holes import holes
from sagastream_bridge.inspection.server_check import SECURITY
from support.newer import FORMAT, newer
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY, due
from support.streams import append_requests
from support.users import Users
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def found(scene: Scene, *, repair: bool = False) -> list[str]:
    """The findings that are not good. Holes of the server that this machine has are left out: see below."""
    findings = [one for one in Doctor(scene.broker, repair=repair).examine() if one.about != SECURITY]
    return [f"{finding.level}: {finding.line}" for finding in findings if finding.level != OK]


def live(scene: Scene) -> None:
    scene.begin("s1", do(1, service="elsewhere"))
    scene.turns_until(lambda: scene.client.get("s1") is not None)


def ended(scene: Scene) -> None:
    scene.begin("s1", do(1))
    assert scene.play("s1").ended


def parked(scene: Scene) -> None:
    scene.begin("s1", do(1, compensation="Nope", compensation_attempts=1), do("fail"))
    assert scene.play("s1").parked


def test_of_a_store_at_work_all_is_well(scene: Scene) -> None:
    scene.begin("s0", do(1))
    scene.play("s0")
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    assert found(scene) == []


def test_holes_of_the_server_are_named(scene: Scene) -> None:
    info: Any = scene.redis.info("server")
    kind, version = ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    told = [one for one in Doctor(scene.broker).examine() if one.about == SECURITY]
    assert [(one.level, one.text) for one in told] == [("warning", holes(kind, version))] * bool(holes(kind, version))


def test_an_empty_store_is_well(scene: Scene) -> None:
    assert found(scene) == []


def test_parked_sagas_and_quarantined_messages_are_told_of(scene: Scene) -> None:
    parked(scene)
    scene.redis.xadd(ONLY.requests, {"body": "{"})
    scene.turns_until(lambda: scene.redis.xlen(ONLY.quarantine) == 1)
    assert found(scene) == [
        "warning: parked, waiting for a person: 1; see sagastream list --status parked",
        "warning: messages that were set aside: 1; see sagastream quarantine list",
    ]


#: What may happen to the indexes -> (the saga that is affected, what the doctor says about it).
ILLS: dict[str, tuple[Any, Any, str]] = {
    "a timer is lost": (
        live,
        lambda r: r.zrem(ONLY.timers, "s1"),
        "saga s1 is live, and nobody would look at it again: it is in no timer",
    ),
    "a timer is wrong": (
        live,
        lambda r: r.zadd(ONLY.timers, {"s1": 9e15}),
        "saga s1 is live, and its timer is not the time that its hash says",
    ),
    "a live saga has no time": (
        live,
        lambda r: r.zadd(ONLY.timers, {"s1": float("inf")}),
        "saga s1 is live, and its timer is not the time that its hash says",
    ),
    "a live saga would expire": (
        live,
        lambda r: r.expire(ONLY.saga("s1"), 1000),
        "saga s1 is live, and its hash would expire",
    ),
    "a parked saga has a time": (
        parked,
        lambda r: r.zadd(ONLY.timers, {"s1": 9e15}),
        "saga s1 is parked, and has a timer",
    ),
    "an ended saga is waited for": (
        ended,
        lambda r: r.zadd(ONLY.timers, {"s1": 9e15}),
        "saga s1 has ended, and is still waited for",
    ),
    "an ended saga is in no list": (
        ended,
        lambda r: r.zrem(ONLY.ended, "s1"),
        "saga s1 has ended, and is not in the list of ended sagas",
    ),
    "an ended saga is kept": (
        ended,
        lambda r: r.persist(ONLY.saga("s1")),
        "saga s1 has ended, and would be kept forever",
    ),
    "a hash is gone": (
        live,
        lambda r: r.delete(ONLY.saga("s1")),
        "saga s1 is waited for, and is gone: somebody has deleted its hash",
    ),
}


@pytest.mark.parametrize("ill", ILLS)
def test_what_is_wrong_in_the_indexes_is_found_and_set_right(scene: Scene, ill: str) -> None:
    begin, happens, says = ILLS[ill]
    begin(scene)
    before = [text for text in found(scene) if "saga s1" in text]
    assert before == []
    happens(scene.redis)
    assert [text for text in found(scene) if "saga s1" in text] == [
        f"problem: {says}; sagastream doctor --repair sets it right"
    ]
    assert [text for text in found(scene, repair=True) if "saga s1" in text] == [f"repaired: {says}; set right"]
    assert [text for text in found(scene) if "saga s1" in text] == []
    happens(scene.redis)
    if ill == "a hash is gone":  # so is the timer since then
        scene.redis.zadd(ONLY.timers, {"s1": 9e15})
    assert begun_anew(scene)[0].startswith("WARNING: looked at ")
    assert [text for text in found(scene) if "saga s1" in text] == []


class Said(logging.Handler):
    """What a worker has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


def begun_anew(scene: Scene) -> list[str]:
    """The worker hears that the store has another history. What it says until it has looked at all sagas."""
    said, log = Said(), logging.getLogger("sagastream.worker")
    log.addHandler(said)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        scene.worker._lineage.has_changed()
        scene.turns_until(lambda: any(" looked at " in f" {line}" for line in said.lines))
        scene.worker.turn(block_ms=1)
    finally:
        log.removeHandler(said)
        log.setLevel(level)
    return [line for line in said.lines if "looked at" in line]


def test_a_worker_that_begins_anew_looks_at_all_sagas_page_by_page(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "PAGE", 2)
    live(scene)
    for number in range(5):
        scene.begin(f"e{number}", do(number))
        scene.play(f"e{number}")
    (line,) = begun_anew(scene)
    assert line.startswith("INFO: looked at 6 sagas")
    scene.redis.zrem(ONLY.timers, "s1")
    scene.redis.zadd(ONLY.timers, {"a b": 9e15, "none": 9e15, "e0": 9e15})
    scene.redis.zadd(ONLY.index("customer=x"), {"e1": 1, "lost": 1, "a b": 1})
    scene.redis.zadd(ONLY.begun, {"never": 1})
    scene.redis.zrem(ONLY.begun, "e2")
    scene.redis.hset(ONLY.saga("e3"), "version", "x")
    scene.redis.set(ONLY.saga("e4"), "x")
    warning, error = begun_anew(scene)
    for what in (
        "1 (each is live, and nobody would look at it again: it is in no timer)",
        "1 (each has ended, and is still waited for)",
        "1 (each was in no index)",
        "1 (each was waited for, and is not the id of a saga)",
        "1 (each was waited for, and is gone)",
        "4 (each was in an index where it does not belong)",
    ):
        assert what in warning
    assert error.endswith("not set right: 2 (each cannot be read); see sagastream doctor")
    left = [text for text in found(scene) if not any(name in text for name in ("saga e3", "saga e4", "elsewhere"))]
    assert left == []
    assert not scene.redis.exists(ONLY.index("customer=x"))
    assert begun_anew(scene)[0].startswith("ERROR")  # nothing else is left


def test_a_worker_that_begins_anew_forgets_what_it_remembers_and_tells_its_services_again(scene: Scene) -> None:
    live(scene)
    assert scene.worker._cache._states
    scene.redis.delete(KEYS.services)
    begun_anew(scene)
    assert not scene.worker._cache._states
    assert b"elsewhere" in scene.redis.smembers(KEYS.services)


def test_what_a_worker_leaves_to_another_it_looks_at_once_that_is_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "3")
    scene = Scene(server.broker())
    for number in range(9):
        scene.client.begin(f"s{number}", [do(1, service="elsewhere")])
    scene.turns_until(lambda: all(scene.client.get(f"s{number}") for number in range(9)))
    keys = scene.worker._opened
    for partition in keys.partitions:
        scene.redis.delete(partition.timers)
    first, *others = keys.partitions
    looking = Repair(scene.redis, Store(scene.redis), "worker w", lease_ms=5000)

    def repaired() -> list[int]:
        return [scene.redis.zcard(partition.timers) for partition in keys.partitions]

    looking.begin(keys, keys.partitions)
    while looking.step([first]):
        assert repaired()[1:] == [0, 0]
    assert repaired()[0] > 0
    assert not looking.step([first])
    while looking.step(others):
        pass
    assert sum(repaired()) == 9
    assert not looking.step(keys.partitions)  # all is done


def test_a_worker_that_may_not_look_at_all_keys_goes_on(server: Server) -> None:
    """As its user is that an earlier release has made."""
    url = Users(server).url(Role.WORKER)
    admin: Any = server.broker().client  # its execute_command has no types
    admin.execute_command("ACL", "SETUSER", "worker", "-scan")
    broker = Broker(url)
    server.brokers.append(broker)
    scene = Scene(server.broker())
    scene.worker = Orchestrator(broker, scene.stop)
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    scene.worker._lineage.has_changed()
    scene.worker.turn(block_ms=1)
    scene.turns_until(lambda: not scene.worker._upkeep._repair.is_under_way)
    assert scene.play("s1").ended


def test_a_worker_removes_a_member_of_timers_that_is_no_id_once_it_is_due(scene: Scene) -> None:
    scene.redis.zadd(ONLY.timers, {b"\xff\xfe": 1, b"a b": 1, b"later": 9e15})
    scene.turns_until(lambda: scene.redis.zcard(ONLY.timers) == 1)
    scene.begin("s1", do(1))
    assert scene.play("s1").ended


@pytest.mark.parametrize("score", [1, "+inf"])
def test_a_member_of_timers_that_is_no_id_is_named_and_removed(scene: Scene, score: Any) -> None:
    ended(scene)
    says = f"b'\\xff\\xfe' is a member of {ONLY.timers} and no id of a saga: something else has written there"
    scene.redis.zadd(ONLY.timers, {b"\xff\xfe": score})
    assert found(scene) == [f"problem: {says}; sagastream doctor --repair sets it right"]
    assert found(scene, repair=True) == [f"repaired: {says}; set right"]
    assert scene.redis.zcard(ONLY.timers) == 0
    assert found(scene) == []


def test_a_key_that_no_saga_can_have_is_told_of(scene: Scene) -> None:
    scene.redis.hset(ONLY.saga("").encode() + b"\xff", "a", "b")
    assert found(scene) == ["problem: \\xff stands at a key that no saga has"]


def test_of_a_store_that_is_full_is_told_what_can_be(scene: Scene) -> None:
    live(scene)
    scene.redis.config_set("maxmemory", "1mb")
    texts = found(scene)
    assert any("of maxmemory (1 MiB) is used" in text for text in texts)
    assert not any("saga s1" in text for text in texts)


def test_after_all_timers_were_lost_every_saga_moves_again(scene: Scene) -> None:
    """This happens after a failover to a replica that lagged, or a DEL by hand."""
    for number in range(30):
        scene.begin(f"s{number}", do(number, timeout_ms=500, attempts=50, backoff_ms=1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 30)
    scene.redis.delete(ONLY.timers, ONLY.commands("work"))
    problems = [text for text in found(scene) if "in no timer" in text]
    assert len(problems) == 11
    assert problems[-1] == (
        "problem: … and 20 more: each is live, and nobody would look at it again: it is in no timer"
    )
    found(scene, repair=True)
    for number in range(30):
        assert scene.play(f"s{number}").ended
    assert sorted(scene.effects.done) == sorted(f"s{number}/1/transaction" for number in range(30))
    assert found(scene) == []


def test_damaged_sagas_are_told_of(scene: Scene) -> None:
    live(scene)
    scene.redis.hset(ONLY.saga("s1"), "version", "x")
    scene.redis.set(ONLY.saga("other"), "x")
    texts = sorted(text for text in found(scene, repair=True) if text.startswith("problem: saga "))
    assert texts[0].startswith("problem: saga other stands at a key that holds no hash")
    assert texts[1].startswith("problem: saga s1 stands still until its fields are repaired")


def test_a_key_of_another_type_is_told_of_and_nothing_else_can_be(scene: Scene) -> None:
    scene.redis.set(ONLY.timers, "x")
    [text] = found(scene)
    assert text == f"problem: {ONLY.timers} is a string, not a zset: something else has written there"


def test_a_services_commands_that_are_no_stream_are_told_of(scene: Scene) -> None:
    live(scene)
    scene.redis.delete(ONLY.commands("elsewhere"))
    scene.redis.set(ONLY.commands("elsewhere"), "x")
    assert found(scene) == [
        f"problem: {ONLY.commands('elsewhere')} is a string, not a stream: something else has written there"
    ]


def test_sagas_that_nobody_sees_to_are_told_of(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "LATE_MS", 0)
    scene.begin("s1", do(1, timeout_ms=1))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    until(lambda: any("should have moved" in text for text in found(scene)), what="it is late")


def test_a_saga_that_a_worker_has_leased_is_well(scene: Scene) -> None:
    scene.begin("s1", do(1, timeout_ms=1))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    assert until(lambda: due(scene.worker._store, 10, 5000)[0], what="its time comes") == ["s1"]
    assert not any("saga s1" in text for text in found(scene))


def test_a_repair_leaves_a_saga_alone_that_has_moved_meanwhile(scene: Scene) -> None:
    live(scene)
    state = scene.client.get("s1")
    scene.redis.hset(ONLY.saga("s1"), "version", 9)
    change = Change(partition=ONLY, saga_id="s1", before=state, after=state, rearm=True)
    scene.redis.expire(ONLY.saga("s1"), 1000)
    assert Store(scene.redis).commit([change], 1)[0] == [change]
    assert scene.redis.ttl(ONLY.saga("s1")) > 0


# --- entries that nobody reads


def lost(scene: Scene) -> list[str]:
    return [text for text in found(scene) if "nobody will read" in text]


def test_an_entry_whose_consumer_was_deleted_is_put_back(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.redis.xgroup_create(ONLY.commands("work"), "work", id="0")
    scene.redis.xreadgroup("work", "gone", {ONLY.commands("work"): ">"})
    assert lost(scene) == []  # somebody has it
    scene.redis.xgroup_delconsumer(ONLY.commands("work"), "work", "gone")
    [text] = lost(scene)
    assert text.startswith("problem: entries that nobody will read: 1 (")
    assert text.endswith("sagastream doctor --repair puts them back")
    assert any("put back: 1" in one for one in found(scene, repair=True))
    assert lost(scene) == []
    assert scene.play("s1").ended
    assert scene.effects.done == ["s1/1/transaction"]


@pytest.mark.parametrize("to", ["$", "9999999999999-0"])
def test_entries_that_a_group_was_set_past_are_put_back_and_so_are_those_that_follow(scene: Scene, to: str) -> None:
    stream = ONLY.commands("work")
    scene.redis.xgroup_create(stream, "work", id="0", mkstream=True)
    for number in range(60):
        scene.begin(f"s{number}", do(number))
    scene.turns_until(lambda: scene.redis.xlen(stream) == 60)
    scene.redis.xgroup_setid(stream, "work", to)
    assert any("entries that nobody will read: 60" in text for text in found(scene))
    assert any("put back: 60" in text for text in found(scene, repair=True))
    assert lost(scene) == []
    scene.begin("later", do(1))
    for saga_id in [*(f"s{number}" for number in range(60)), "later"]:
        assert scene.play(saga_id).ended
    assert len(scene.effects.done) == 61


@pytest.mark.parametrize("stream", [ONLY.requests, ONLY.replies("work")])
def test_requests_and_replies_that_nobody_will_read_are_put_back_too(scene: Scene, stream: str) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin("s1", do(1))
    if stream != ONLY.requests:
        scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
        scene.runner.turn(block_ms=1)
    scene.redis.xgroup_setid(stream, keys.ORCHESTRATOR_GROUP, "$")
    assert len(lost(scene)) == 1
    found(scene, repair=True)
    assert scene.play("s1").ended
    assert scene.effects.done == ["s1/1/transaction"]


def test_what_is_answered_while_it_is_looked_at_is_not_put_back(scene: Scene) -> None:
    """The script looks again."""
    stream = ONLY.commands("work")
    scene.redis.xgroup_create(stream, "work", id="0", mkstream=True)
    ids: Any = [scene.redis.xadd(stream, {"body": "{}"}) for _ in range(3)]
    held, gone, unread = ids
    scene.redis.xreadgroup("work", "one", {stream: ">"}, count=2)
    scene.redis.xack(stream, "work", gone)
    scene.redis.xdel(stream, gone)
    put_back = scripting.load(scene.redis, "put_back")
    assert put_back(keys=[stream], args=["work", held, gone, unread, "7-7"]) == 0
    entries: Any = scene.redis.xrange(stream)
    assert [entry_id for entry_id, _ in entries] == [held, unread]
    with pytest.raises(redis.ResponseError, match="NOGROUP"):
        put_back(keys=[stream], args=["others", held])


# --- services that do not run


def test_commands_of_a_service_that_never_was_are_dropped_when_no_saga_waits(
    scene: Scene, server: Server, commands: Commands
) -> None:
    env = {"REDIS_URL": server.url}
    for saga_id in ("s1", "s2"):
        scene.begin(saga_id, do(1, service="wrok", attempts=1, timeout_ms=86_400_000))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("wrok")) == 2)
    [text] = [text for text in found(scene) if "wrok" in text]
    assert text.startswith("problem: no process of service wrok is listening, and none ever was")
    assert "sagas that wait for Do: 2 (" in text
    assert scene.client.drop_commands("wrok") == DroppedCommands(dropped=0, awaited=("s1", "s2"))
    kept = commands.run("drop-commands", "wrok", **env)
    assert (kept.returncode, kept.stdout) == (1, "0 dropped\n")
    assert "2 kept: sagas wait for them: s1, s2" in kept.stderr
    for saga_id in ("s1", "s2"):
        append_requests(scene.redis, [Intervene(verb=Verb.CANCEL, saga_id=saga_id, reason="misspelt", now=True)])
    scene.turns_until(lambda: all((s := scene.client.get(one)) is not None and s.parked for one in ("s1", "s2")))
    for saga_id in ("s1", "s2"):
        append_requests(scene.redis, [Intervene(verb=Verb.ABANDON, saga_id=saga_id, reason="misspelt")])
    scene.turns_until(lambda: all((s := scene.client.get(one)) is not None and s.ended for one in ("s1", "s2")))
    assert not any("wrok" in text for text in found(scene))  # given up, so their commands were deleted unread
    for saga_id in ("s1", "s2"):  # as a worker sends them that has not heard of it
        body = f'{{"type":"Do","saga_id":"{saga_id}","step":1,"params":null}}'
        scene.redis.xadd(ONLY.commands("wrok"), {"body": body})
    [text] = [text for text in found(scene) if "wrok" in text]
    assert text == (
        "warning: no process of service wrok is listening, and none ever was; is it a misspelling of work?; commands "
        "that no saga is known to wait for: 2; sagastream drop-commands wrok  # drops 2 of them"
    )
    dropped = commands.run("drop-commands", "wrok", **env)
    assert (dropped.returncode, dropped.stdout, dropped.stderr) == (0, "2 dropped\n", "")
    assert not scene.redis.exists(ONLY.commands("wrok"))
    assert not scene.redis.sismember(KEYS.services, "wrok")
    assert not any("wrok" in text for text in found(scene))


def test_commands_that_a_process_may_have_read_are_kept(scene: Scene, server: Server, commands: Commands) -> None:
    stream = ONLY.commands("till")
    scene.redis.sadd(KEYS.services, "till")
    scene.redis.xgroup_create(stream, "till", id="0", mkstream=True)
    body: Any = {"body": '{"type":"Do","saga_id":"gone","step":1}'}
    scene.redis.xadd(stream, body)
    scene.redis.xreadgroup("till", "dead", {stream: ">"})
    scene.redis.xadd(stream, body | {"replayed": "1"})
    scene.redis.xadd(stream, body)
    assert "is at work" in commands.run("drop-commands", "till", REDIS_URL=server.url).stderr  # it asked a moment ago
    with pytest.raises(RequestRefused, match="service till is at work"):
        scene.client.drop_commands("till")

    def dropped() -> DroppedCommands | None:
        with contextlib.suppress(RequestRefused):
            return scene.client.drop_commands("till", reason="never again", actor="ada")
        return None

    assert until(dropped, what="it counts as dead") == DroppedCommands(dropped=1, kept=1)
    (noted,) = scene.client.operations()
    assert (noted.verb, noted.what, noted.actor) == ("drop-commands", "1 of service till", "ada")
    with pytest.raises(MalformedMessage, match="no name of a service"):
        scene.client.drop_commands("a/b")
    assert scene.redis.xlen(stream) == 2
    assert any("no process of service till is listening" in text for text in found(scene))


# --- the clock


def test_a_clock_that_was_set_back_is_told_of(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    now: Any = scene.redis.time()
    scene.redis.xadd(ONLY.replies("work"), {"body": "{}"}, id=f"{(now[0] + 3600) * 1000}-0")
    text = "problem: the newest entry of a stream is 60 m ahead of the broker's clock: the clock was set back. "
    assert any(one.startswith(text) for one in found(scene))


def test_nobody_at_work_is_told_of(scene: Scene) -> None:
    live(scene)
    for stream, group in ((ONLY.requests, keys.ORCHESTRATOR_GROUP), (ONLY.replies("work"), keys.ORCHESTRATOR_GROUP)):
        consumers: Any = scene.redis.xinfo_consumers(stream, group)
        for consumer in consumers:
            scene.redis.xgroup_delconsumer(stream, group, consumer["name"])
    scene.redis.delete(KEYS.alive)
    texts = found(scene)
    assert ("problem: no worker is running; requests that wait: 0; sagastream worker  # starts one") in texts
    assert (
        "problem: no process of service elsewhere is listening, and none ever was; sagas that wait for Do: 1 (s1); "
        "sagastream service MODULE:NAME  # starts one"
    ) in texts


def test_workers_that_do_not_know_a_format_that_others_know_are_told_of(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    assert found(scene) == []
    scene.redis.xgroup_createconsumer(ONLY.requests, keys.ORCHESTRATOR_GROUP, "former-1")
    of_graphs = "warning: no saga of format 2 begins while workers run that do not know it: former-1"
    assert found(scene) == [of_graphs]
    with newer():
        another = scene.another_worker()
        another.turn(block_ms=1)
    first, text = found(scene)
    assert first == of_graphs
    old = scene.worker.name.removeprefix("worker ")
    text, _, names = text.partition("do not know it: ")
    assert text == "warning: no saga of format 9 begins while workers run that "
    assert sorted(names.split(", ")) == sorted(["former-1", old])


def test_sagas_of_a_newer_format_are_counted_and_no_more_is_said_of_them(scene: Scene) -> None:
    with newer():
        another = scene.another_worker()
        for saga_id in ("n1", "n2"):
            body = {"format": FORMAT, "saga_id": saga_id, "steps": [do(1, service="nobody")]}
            append_requests(scene.redis, [parse_begin(body)])
        scene.turns_until(lambda: scene.redis.zcard(ONLY.timers) == 2, another)

    def of_sagas() -> list[str]:
        return [text for text in found(scene, repair=True) if "saga" in text and "service" not in text]

    assert of_sagas() == []
    another._inbox.leave()
    scene.worker.turn(block_ms=1)
    text = "problem: sagas of format 9: 2; only a newer release can tell more of them, and no worker of it is running"
    assert of_sagas() == [f"{text}: start one"]


def test_entries_that_somebody_has_held_for_long_are_told_of(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_HELD_MS", 0)
    scene.begin("s1", do(1))
    assert scene.another_worker()._inbox.read(1)
    assert any("was held by" in text and "delivered 1 times" in text for text in found(scene))


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        (
            "maxmemory-policy",
            "allkeys-lru",
            "problem: maxmemory-policy is allkeys-lru: it may drop sagas; set noeviction",
        ),
        ("appendonly", "no", "problem: appendonly is off: a crash loses what was accepted; set appendonly yes"),
        (
            "appendfsync",
            "everysec",
            "warning: appendfsync is everysec: a power cut loses what was accepted last; set always",
        ),
    ],
)
def test_settings_that_lose_sagas_are_told_of(scene: Scene, setting: str, value: str, says: str) -> None:
    scene.redis.config_set(setting, value)
    assert found(scene) == [says]


def test_the_exit_code_says_whether_there_is_a_problem(scene: Scene, server: Server, commands: Commands) -> None:
    live(scene)
    scene.redis.delete(ONLY.timers)
    env = {"REDIS_URL": server.url}
    commands.quiet("service", "sagastream_stubs.inventory:service", env=env)
    done = commands.run("doctor", **env)
    assert done.returncode == 1
    assert "problem   sagas         saga s1 is live, and nobody would look at it again" in done.stdout
    assert "repaired" in commands.run("doctor", "--repair", **env).stdout
    lines = commands.run("doctor", "--json", **env).stdout.splitlines()
    assert {
        "level": "ok",
        "about": "durability",
        "text": "appendonly with appendfsync always",
        "do": [],
        "kind": None,
    } in map(json.loads, lines)


def test_a_stream_that_grows_is_told_of(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    live(scene)
    monkeypatch.setattr(streams, "_LARGE_BYTES", 1 << 20)
    assert not [text for text in found(scene) if "MiB of memory" in text]
    for stream in (ONLY.commands("work"), ONLY.quarantine):
        for _ in range(3):
            scene.redis.xadd(stream, {"body": "x" * (1 << 20)})
    told = [text for text in found(scene) if "MiB of memory with" in text]
    assert len(told) == 2

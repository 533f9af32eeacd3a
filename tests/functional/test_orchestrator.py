"""Workers on real servers: sagas of every shape, crashes, races, damaged messages."""

import json
import logging
import signal
from collections.abc import Callable
from typing import Any

import pytest
import redis

from sagastream.broker.entries import Entry
from sagastream.client.answers import Accepted
from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Reply, ok
from sagastream.core.decision import decide
from sagastream.core.messages import Intervene, Verb
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.transitions import Moment
from sagastream.errors import CorruptSaga, RequestRefused
from sagastream.orchestrator import commit, streams, worker
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.store import sagas
from sagastream.store.quarantine import Quarantine
from support.processes import SAMPLES, Commands
from support.scenes import Scene, do
from support.servers import OwnServer, Server
from support.stores import KEYS, ONLY
from support.streams import append_requests, last_event, read_events
from support.waiting import until


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def pending(scene: Scene, stream: str, group: str) -> int:
    summary: Any = scene.redis.xpending(stream, group)
    return int(summary["pending"])


def nothing_is_left_over(scene: Scene) -> None:
    """No entry waits anywhere, and the indexes agree with the hashes."""
    for stream, group in (
        (ONLY.requests, "orchestrator"),
        (ONLY.replies("work"), "orchestrator"),
        (ONLY.commands("work"), "work"),
    ):
        assert scene.redis.xlen(stream) == 0, stream
        assert pending(scene, stream, group) == 0, stream
    assert scene.redis.zcard(ONLY.timers) == 0


@pytest.mark.parametrize("length", [1, 3, 20])
def test_a_saga_completes_each_step_once(scene: Scene, length: int) -> None:
    scene.begin("s1", *[do(n) for n in range(length)])
    state = scene.play("s1")
    assert state.status is SagaStatus.COMPLETED
    assert scene.effects.done == [f"s1/{n}/transaction" for n in range(1, length + 1)]
    assert scene.effects.undone == []
    assert [step.result for step in state.steps] == [b"%d" % n for n in range(length)]
    nothing_is_left_over(scene)


@pytest.mark.parametrize(("length", "failing"), [(1, 1), (3, 1), (3, 2), (20, 20)])
def test_a_failed_step_undoes_those_before_it_in_reverse(scene: Scene, length: int, failing: int) -> None:
    scene.begin("s1", *[do("fail" if n == failing else n) for n in range(1, length + 1)])
    state = scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert state.reason == f"Step {failing} failed: as asked"
    assert scene.effects.undone == [f"s1/{n}/transaction" for n in range(failing - 1, 0, -1)]
    assert state.compensating_steps == tuple(range(failing - 1, 0, -1))
    nothing_is_left_over(scene)


def test_a_step_without_compensation_is_skipped_in_the_undo(scene: Scene) -> None:
    scene.begin("s1", do(1), do(2, "DoForGood"), do(3, compensation=None), do("fail"))
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert scene.effects.undone == ["s1/1/transaction"]


def test_a_compensation_that_nobody_knows_parks_the_saga(scene: Scene) -> None:
    scene.runner.turn(block_ms=1)
    scene.redis.hdel(KEYS.published("work"), "Do")
    scene.begin("s1", do(1), do("fail"))
    state = scene.play("s1")
    assert state.status is SagaStatus.COMPENSATING
    assert state.parked is not None
    assert "nobody knows what undoes Do of step 1" in state.parked
    assert scene.redis.zscore(ONLY.timers, "s1") == float("inf")


def test_a_service_that_starts_later_finds_its_commands(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    assert scene.play("s1").status is SagaStatus.COMPLETED


def test_begun_again_with_the_same_body_nothing_is_done_twice(scene: Scene) -> None:
    scene.begin("s1", do({"a": 1, "b": 2}))
    scene.play("s1")
    before: Any = scene.redis.hgetall(ONLY.saga("s1"))
    after = last_event(scene.redis)
    again = scene.begin("s1", do({"b": 2, "a": 1}))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    [event] = read_events(scene.redis, after, 1)
    assert event.fields[b"kind"] == b"outcome"
    assert event.fields[b"request_id"] == again.encode()
    assert scene.redis.hgetall(ONLY.saga("s1")) == before
    assert scene.effects.done == ["s1/1/transaction"]


def test_begun_again_with_another_body_it_is_refused_and_nothing_changes(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.play("s1")
    before: Any = scene.redis.hgetall(ONLY.saga("s1"))
    with pytest.raises(RequestRefused):
        scene.client.begin("s1", [do(2)])
    after = last_event(scene.redis)
    other = parse_begin({"saga_id": "s1", "steps": [do(2)]}, request_id="r2")
    append_requests(scene.redis, [other])
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    [event] = read_events(scene.redis, after, 1)
    assert (event.fields[b"kind"], event.fields[b"saga_id"], event.fields[b"request_id"]) == (b"refused", b"s1", b"r2")
    assert json.loads(event.fields[b"body"])["code"] == 22
    with pytest.raises(RequestRefused):
        scene.client.wait(Accepted(begin=other), 1)
    assert scene.redis.hgetall(ONLY.saga("s1")) == before


def test_a_saga_that_was_accepted_and_refused_later_is_set_aside_and_told_of(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """No worker has read the first request yet, so the second one is accepted, and its sender may be gone."""
    scene.client.begin("s1", [do(1)])
    scene.client.begin("s1", [do(2)])
    scene.client.begin("s1", [do(1)])
    with caplog.at_level(logging.WARNING):
        scene.play("s1")
        scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    why = "another saga has the id s1: it began with 1 as params of step 1; this request has 2"
    [aside] = Quarantine(scene.redis, KEYS).newest_first()
    assert (aside.reason, aside.saga_id, aside.stream) == (why, "s1", ONLY.requests)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records if why in record.getMessage()] == [why]
    assert scene.effects.done == ["s1/1/transaction"]


def test_a_request_delivered_twice_is_one_request(scene: Scene) -> None:
    scene.begin("s1", do(1), request_id="r")
    scene.begin("s1", do(1), request_id="r")
    scene.play("s1")
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    assert scene.effects.done == ["s1/1/transaction"]
    kinds = [event.fields[b"kind"] for event in read_events(scene.redis, b"0-0", 1)]
    assert kinds == [b"outcome"]


def test_a_commit_decided_on_an_old_version_is_refused_whole(scene: Scene) -> None:
    scene.begin("s1", do(1), do(2))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    store = Store(scene.redis)
    states, now_ms = sagas.read(scene.redis, KEYS, ["s1"])
    state = states["s1"]
    assert isinstance(state, SagaState)
    # Both the worker and a slower one decide on the same state.
    reply = Reply(type=ok("Do"), saga_id="s1", step=1, result=b"1")
    zombie = Change(partition=ONLY, saga_id="s1", before=state, after=state)
    entry = Entry(stream=ONLY.replies("work"), id=b"1-1", fields={})
    zombie.add(entry, decide(state, reply, Moment(now_ms=now_ms, published={})))
    scene.redis.xadd(ONLY.replies("work"), {"body": reply.body()})
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0)
    everything = dump(scene)
    assert store.commit([zombie], now_ms) == ([zombie], [])
    assert dump(scene) == everything


def dump(scene: Scene) -> dict[bytes, Any]:
    """All that is stored, except who read a stream when."""
    found: dict[bytes, Any] = {}
    keys_there: Any = scene.redis.keys()
    for key in keys_there:
        is_stream = scene.redis.type(key) == b"stream"
        found[key] = scene.redis.xrange(key) if is_stream else scene.redis.dump(key)
    return found


def test_a_saga_that_one_worker_runs_is_never_read(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    scene.runner.turn(block_ms=1)  # it reads how the store is laid out
    scene.begin("s1", do(1), do(2), do(3))
    scene.redis.config_resetstat()

    def has_ended() -> bool:
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        return scene.redis.zcard(ONLY.ended) == 1

    until(has_ended, what="it has ended")
    calls: Any = scene.redis.info("commandstats")
    assert calls["cmdstat_hset"]["calls"] >= 4
    assert "cmdstat_hgetall" not in calls


def test_what_another_worker_has_done_to_a_saga_is_seen_by_the_one_that_remembers_it(scene: Scene) -> None:
    """The reply is the one for which the saga waits, as far as the first worker knows."""
    first, other = scene.another_worker(), scene.another_worker()
    scene.begin("s1", do(1), do(2))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1, first)
    cancel = Intervene(verb=Verb.CANCEL, saga_id="s1", reason="changed my mind")
    scene.redis.xadd(ONLY.interventions, cancel.fields())  # type: ignore[arg-type]
    scene.turns_until(lambda: scene.redis.xlen(ONLY.interventions) == 0, other)
    assert scene.redis.hget(ONLY.saga("s1"), "cancelling")
    scene.runner.turn(block_ms=1)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0, first)
    assert scene.redis.hget(ONLY.saga("s1"), "status") == b"COMPENSATING"
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert (scene.effects.done, scene.effects.undone) == (["s1/1/transaction"], ["s1/1/transaction"])
    nothing_is_left_over(scene)


@pytest.mark.parametrize("kind", ["compensatable", "pivot"])
def test_a_saga_that_is_cancelled_now_in_the_turn_in_which_it_begins_is_undone(scene: Scene, kind: str) -> None:
    """Its service publishes what undoes it, and so the saga is not parked."""
    scene.begin("s1", do(1, kind=kind))
    cancel = Intervene(verb=Verb.CANCEL, saga_id="s1", reason="changed my mind", now=True)
    append_requests(scene.redis, [cancel])
    scene.turns_until(lambda: scene.redis.xlen(ONLY.interventions) == 0)
    state = scene.client.get("s1")
    assert state is not None
    assert (state.parked, state.status) == (None, SagaStatus.COMPENSATING)
    assert scene.play("s1").status is SagaStatus.ABORTED
    nothing_is_left_over(scene)


def test_a_saga_that_was_deleted_and_begun_again_is_not_taken_for_the_one_that_is_remembered(scene: Scene) -> None:
    """The new saga has the same versions, and waits for the same reply."""
    first, other = scene.another_worker(), scene.another_worker()
    scene.begin("s1", do(1), do("before"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1, first)
    before = scene.client.get("s1")
    assert before is not None
    scene.redis.delete(ONLY.saga("s1"), ONLY.timers)
    until(lambda: sagas.read(scene.redis, KEYS, [])[1] > before.updated_ms, what="a millisecond passes")
    scene.begin("s1", do(1), do("after"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 2, other)
    again = scene.client.get("s1")
    assert again is not None
    assert (again.version, again.current_step) == (before.version, before.current_step)
    reply = Reply(type=ok("Do"), saga_id="s1", step=1, result=b"1", attempt=1)
    scene.redis.xadd(ONLY.replies("work"), reply.fields())  # type: ignore[arg-type]
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0, first)
    commands: Any = scene.redis.xrange(ONLY.commands("work"))
    assert json.loads(commands[-1][1][b"body"])["params"] == "after"


def test_a_batch_commits_the_sagas_that_win_and_reports_those_that_lose(scene: Scene) -> None:
    for saga_id in ("s1", "s2"):
        scene.begin(saga_id, do(1), do(2))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 2)
    store = Store(scene.redis)
    states, now_ms = sagas.read(scene.redis, KEYS, ["s1", "s2"])
    changes = []
    for saga_id, state in states.items():
        assert isinstance(state, SagaState)
        change = Change(partition=ONLY, saga_id=saga_id, before=state, after=state)
        reply = Reply(type=ok("Do"), saga_id=saga_id, step=1)
        change.add(
            Entry(stream=ONLY.replies("work"), id=b"1-1", fields={}),
            decide(state, reply, Moment(now_ms=now_ms, published={})),
        )
        changes.append(change)
    scene.redis.hset(ONLY.saga("s2"), "version", 99)
    assert store.commit(changes, now_ms) == (changes[1:], [])
    assert scene.redis.hget(ONLY.saga("s1"), "current_step") == b"2"
    assert scene.redis.hget(ONLY.saga("s2"), "current_step") == b"1"
    assert scene.redis.xlen(ONLY.commands("work")) == 3


def test_a_dead_workers_entries_are_taken_over(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LEASE_MS", 50)
    dead, heir = scene.another_worker(), scene.another_worker()
    scene.begin("s1", do(1))
    assert len(dead._inbox.read(1)) == 1  # the worker dies here
    scene.turns_until(lambda: scene.client.get("s1") is not None, heir)
    assert scene.play("s1").status is SagaStatus.COMPLETED
    nothing_is_left_over(scene)


def test_entries_whose_delivery_got_lost_are_read_again(scene: Scene) -> None:
    scene.begin("s1", do(1))
    assert len(scene.worker._inbox.read(1)) == 1  # the answer never arrives
    scene.worker._inbox.recover()
    scene.worker.turn(block_ms=1)
    assert scene.client.get("s1") is not None


@pytest.mark.both_in_soak
def test_each_answer_of_the_broker_may_be_lost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker and a process of a service that have just started lose one answer: the first, the second, and so on,
    until a whole saga takes no more answers. Each time they come back, and the saga ends."""
    read_answer = redis.Connection.read_response
    left = 0

    def lose_one(connection: Any, *args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            connection.disconnect()
            raise redis.ConnectionError("lost")
        return read_answer(connection, *args, **options)

    def turned(turn: Callable[..., object], recover: Callable[[], None]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(redis.connection.AbstractConnection, "read_response", lose_one)
            try:
                turn(block_ms=1)
            except redis.ConnectionError:
                recover()

    def is_still() -> bool:
        turned(orchestrator.turn, orchestrator._inbox.recover)
        turned(runner.turn, runner._recover)
        return not scene.redis.xlen(ONLY.requests) and not scene.redis.zcard(ONLY.timers)

    number = 0
    while left <= 0:
        left = number = number + 1
        orchestrator, runner = scene.another_worker(), scene.another_runner()
        scene.begin(f"s{number}", do(number), do("fail"))
        until(is_still, what=f"the saga ends for which answer {number} is lost")
        state = scene.client.get(f"s{number}")
        assert state is not None
        assert state.status is SagaStatus.ABORTED
        orchestrator._inbox.leave()
        runner._inbox.reader.leave()
    assert number > 40  # it has lost more than what a process reads when it joins
    assert scene.effects.undone == [f"s{n}/1/transaction" for n in range(1, number + 1)]
    nothing_is_left_over(scene)


def test_a_deleted_group_or_stream_is_made_anew(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.worker.turn(block_ms=1)
    scene.redis.xgroup_destroy(ONLY.requests, "orchestrator")
    scene.redis.delete(ONLY.replies("work"))
    scene.begin("s1", do(1))
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert "created it again" in caplog.text


GARBAGE = [
    b"", b"{", b"[]", b"null", b'"text"', b"NaN", b'{"type":1}', b"\xff\xfe", b"[" * 100_000,
    b'{"type":"ReserveInventory_ok"}', b'{"type":"Do_ok","saga_id":"nobody","step":1}',
    b'{"type":"Do_ok","saga_id":"s1","step":2}', b'{"type":"Do_ok","saga_id":"s1","step":true}',
    b'{"type":"Do_ok","type":"Do_ok","saga_id":"s1","step":1}', b'{"type":"Other_ok","saga_id":"s1","step":1}',
    b'{"type":"saga_begin","saga_id":"s\\n1","steps":[]}', b'{"type":"saga_begin","saga_id":"s2","steps":[]}',
    b'{"type":"saga_delete","saga_id":"s1"}',
]  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "quarantine"),
    [
        (ONLY.requests, ONLY.quarantine),
        (ONLY.interventions, ONLY.quarantine),
        (ONLY.replies("work"), ONLY.quarantine),
        (ONLY.commands("work"), ONLY.quarantine_of("work")),
    ],
)
def test_an_entry_with_thousands_of_fields_stops_nobody(scene: Scene, stream: str, quarantine: str) -> None:
    scene.begin("s1", do(1))
    scene.redis.xadd(stream, {f"field{n}": "x" * 100 for n in range(9000)})
    assert scene.play("s1").status is SagaStatus.COMPLETED
    nothing_is_left_over(scene)
    quarantined: Any = scene.redis.xrange(quarantine)
    assert [len(fields) for _, fields in quarantined] == [5]


def test_what_many_dead_workers_held_is_taken_over_in_turns(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that got all of it at once would fail halfway."""
    monkeypatch.setattr(worker, "LEASE_MS", 1)
    count = 5000
    begins = [parse_begin({"saga_id": f"s{n}", "steps": [do(n)]}, request_id=f"r{n}") for n in range(count)]
    append_requests(scene.redis, begins)
    scene.worker.turn(block_ms=1)
    while scene.redis.xreadgroup("orchestrator", "the dead", {ONLY.requests: ">"}, count=1000):
        pass
    heir = scene.another_worker()
    read: list[int] = []

    def all_are_begun() -> bool:
        read.append(heir.turn(block_ms=1))
        return scene.redis.xlen(ONLY.requests) == 0

    until(all_are_begun, what="all are begun")
    assert max(read) <= 128
    assert scene.redis.zcard(ONLY.timers) == scene.redis.xlen(ONLY.commands("work")) == count


@pytest.mark.parametrize("stream", [ONLY.requests, ONLY.replies("work")])
def test_garbage_is_quarantined_with_a_reason_and_stops_nobody(scene: Scene, stream: str) -> None:
    scene.begin("s1", do(1), do(2), do(3))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    for body in GARBAGE:
        scene.redis.xadd(stream, {"body": body})
    scene.redis.xadd(stream, {"no": "body"})
    assert scene.play("s1").status is SagaStatus.COMPLETED
    nothing_is_left_over(scene)
    quarantined: Any = scene.redis.xrange(ONLY.quarantine)
    assert sorted(fields[b"body"] for _, fields in quarantined) == sorted([*GARBAGE, b""])
    assert [fields[b"fields"] for _, fields in quarantined if b"no" in fields[b"fields"]] == [b'{"no": "body"}']
    assert all(fields[b"reason"] and fields[b"stream"] == stream.encode() for _, fields in quarantined)
    assert scene.effects.done == [f"s1/{n}/transaction" for n in (1, 2, 3)]


def test_a_refused_request_is_answered_where_somebody_asked(scene: Scene) -> None:
    scene.redis.xadd(ONLY.requests, {"body": b'{"type":"saga_begin"}', "request_id": "r1"})
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    [event] = read_events(scene.redis, b"0-0", 1)
    assert event.fields[b"request_id"] == b"r1"
    assert json.loads(event.fields[b"body"]) == {
        "type": "error", "code": 12, "text": "the body: saga_id is missing"
    }  # fmt: skip
    assert scene.redis.xlen(ONLY.quarantine) == 0


def test_a_damaged_saga_is_told_of_and_stops_nobody(scene: Scene) -> None:
    scene.redis.set(ONLY.saga("s1"), "not a hash")
    scene.redis.hset(ONLY.saga("s2"), "status", "ODD")
    for saga_id in ("s1", "s2", "s3"):
        scene.begin(saga_id, do(1))
    assert scene.play("s3").status is SagaStatus.COMPLETED
    nothing_is_left_over(scene)
    assert scene.redis.get(ONLY.saga("s1")) == b"not a hash"
    assert scene.redis.hgetall(ONLY.saga("s2")) == {b"status": b"ODD"}
    refused = [e.fields for e in read_events(scene.redis, b"0-0", 1) if e.fields[b"kind"] == b"refused"]
    assert [(e[b"saga_id"], json.loads(e[b"body"])["code"]) for e in refused] == [(b"s1", 13), (b"s2", 13)]
    scene.redis.xadd(ONLY.replies("work"), {"body": '{"type":"Do_ok","saga_id":"s1","step":1}'})
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0)
    assert scene.redis.xlen(ONLY.quarantine) == 1
    for saga_id in ("s1", "s2"):
        with pytest.raises(CorruptSaga, match=saga_id):
            scene.client.get(saga_id)


@pytest.mark.parametrize("key", [ONLY.timers, ONLY.ended, ONLY.events])
def test_a_key_of_the_wrong_type_leaves_all_as_it_was(scene: Scene, key: str) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin("s1", do(1))
    scene.redis.delete(key)
    scene.redis.set(key, "in the way")
    before = dump(scene)
    scene.worker.turn(block_ms=1)
    assert dump(scene) == before
    assert pending(scene, ONLY.requests, "orchestrator") == 1
    scene.redis.delete(key)
    assert scene.play("s1").status is SagaStatus.COMPLETED


def test_a_stream_that_is_none_holds_up_its_own_sagas_only(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "LEASE_MS", 1)
    scene.redis.set(ONLY.commands("void"), "in the way")
    scene.begin("s1", do(1, service="void"))
    scene.begin("s2", do(1))
    assert scene.play("s2").status is SagaStatus.COMPLETED
    assert scene.client.get("s1") is None
    assert caplog.text.count("saga:{0}:commands:void is not a stream: sagas that need it stand still") == 1
    scene.redis.delete(ONLY.commands("void"))
    heir = scene.another_worker()
    scene.turns_until(lambda: scene.client.get("s1") is not None, heir)
    assert scene.redis.xlen(ONLY.commands("void")) == 1


def test_what_is_published_wrongly_parks_a_saga_and_stops_nobody(scene: Scene) -> None:
    scene.runner.turn(block_ms=1)
    for n, value in enumerate((b"\xff", b"a b", b"\x1b[2J")):
        scene.redis.hset(KEYS.published("work"), "Do", value)
        scene.begin(f"s{n}", do(1), do("fail"))
        assert scene.play(f"s{n}").parked
    scene.redis.delete(KEYS.published("work"))
    scene.redis.set(KEYS.published("work"), "in the way")
    scene.begin("s9", do(1), do("fail"))
    assert scene.play("s9").parked


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "01"),
        ("version", " 1"),
        ("compensating_steps", "5"),
        ("begun_at", "9999-12-31T23:59:59-12:00"),
        ("step1.sent_at", "0001-01-01T00:00:00+12:00"),
        ("step1.params", "{"),
        ("step1.service", "a b"),
    ],
)
def test_a_hash_damaged_in_one_field_stops_nobody(scene: Scene, field: str, value: str) -> None:
    scene.begin("s1", do(1), do(2))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.redis.hset(ONLY.saga("s1"), field, value)
    scene.begin("s1", do(1), do(2))
    scene.begin("s2", do(1), do("fail"))
    assert scene.play("s2").status is SagaStatus.ABORTED
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0)
    quarantined: Any = scene.redis.xrange(ONLY.quarantine)
    assert b"the hash of saga s1 is damaged" in quarantined[0][1][b"reason"]


def test_scripts_that_the_server_forgot_are_loaded_again(scene: Scene) -> None:
    scene.begin("s1", do(1), do(2))
    scene.worker.turn(block_ms=1)
    scene.redis.script_flush()
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert scene.effects.done == ["s1/1/transaction", "s1/2/transaction"]


def test_a_worker_that_is_to_stop_reads_nothing_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_REQUESTS", 1)
    for number in range(3):
        scene.begin(f"s{number}", do(1))
    scene.stop.set()
    scene.turns_until(lambda: scene.redis.exists(ONLY.saga("s0")) == 1)
    assert pending(scene, ONLY.requests, "orchestrator") == 0


def test_a_turn_of_more_than_a_script_takes_is_committed_in_pieces(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.redis.config_set("proto-max-bulk-len", 1 << 20)
    monkeypatch.setattr(commit, "_LONGEST", 1 << 20)
    for number in range(5):
        scene.begin(f"s{number}", do("x" * 200_000))
    scene.turns_until(lambda: scene.redis.zcard(ONLY.timers) == 5)
    assert scene.redis.xlen(ONLY.commands("work")) == 5
    assert pending(scene, ONLY.requests, "orchestrator") == 0


def test_sigterm_ends_a_worker_cleanly(server: Server, commands: Commands) -> None:
    worker = commands.start("worker", env={"REDIS_URL": server.url})
    assert worker.stderr is not None
    assert b"started" in worker.stderr.readline()
    client = server.broker().client
    until(
        lambda: client.exists(ONLY.requests) and client.xinfo_consumers(ONLY.requests, "orchestrator"), what="it reads"
    )
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert worker.stderr.read() == b""
    assert client.xinfo_consumers(ONLY.requests, "orchestrator") == []


@pytest.mark.slow
@pytest.mark.both_in_soak
def test_5000_sagas_end_right_though_two_of_four_workers_are_killed(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    workers = [commands.quiet("worker", env=env) for _ in range(4)]
    for where in SAMPLES:
        commands.quiet("service", where, env=env)
    client = SagaClient(server.broker())
    count = 5000
    with client._redis.pipeline(transaction=False) as pipeline:
        for n in range(count):
            pipeline.xadd(
                ONLY.requests, {"body": json.dumps({"type": "saga_begin", "saga_id": f"s{n}", "steps": order(n)})}
            )
        pipeline.execute()
    until(lambda: client._redis.zcard(ONLY.ended) > count / 10, what="some have ended")
    for process in workers[:2]:
        process.kill()
    assert client._redis.zcard(ONLY.ended) < count / 2, "the kills came too late to matter"
    until(lambda: client._redis.zcard(ONLY.ended) == count, what="all have ended", timeout_s=180)
    assert client._redis.zcard(ONLY.timers) == 0
    charged = 0
    for n in range(count):
        state = client.get(f"s{n}")
        assert state is not None
        assert state.status is (SagaStatus.ABORTED if n % 3 == 0 else SagaStatus.COMPLETED)
        charged += n % 3 != 0
    # The services' own data agree: every charge once, every reservation of an aborted saga given back.
    left: Any = client._redis.hgetall("stubs:{payment}:left")
    assert len(left) == charged
    assert set(left.values()) == {b"999500"}
    assert client._redis.hget("stubs:{inventory}:left", "abc123") == str(1_000_000 - charged).encode()


def order(n: int) -> list[dict[str, Any]]:
    amount = 99999 if n % 3 == 0 else 5
    return [
        do({"sku": "abc123", "quantity": 1}, "ReserveInventory", "inventory"),
        do({"user_id": f"user{n}", "amount": amount}, "ChargePayment", "payment"),
        do({"order_id": f"o{n}"}, "CreateShipment", "shipping"),
    ]


@pytest.mark.own_server
def test_a_worker_waits_for_a_broker_that_restarts(server: OwnServer, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    worker = commands.start("worker", env=env)
    assert worker.stderr is not None
    worker.stderr.readline()
    server.kill()
    assert b"the broker is away" in worker.stderr.readline()
    server.start()
    assert b"the broker is back" in worker.stderr.readline()
    client = SagaClient(server.broker())
    client.begin("s1", [do(1)])
    until(lambda: client.get("s1"), what="the saga is begun")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"partitions": "1"}, "saga:store was made by an earlier release"),
        ({"protocol": "3", "partitions": "1", "tags": "0"}, "saga:store has protocol '3', and this release knows 2"),
        ({"protocol": "2", "partitions": "2", "tags": "0"}, "saga:store is damaged: it says '2' partitions"),
        ({"protocol": "2", "partitions": "2", "tags": "0 0"}, "saga:store is damaged"),
        ({"protocol": "2", "partitions": "1", "tags": "}{"}, "saga:store is damaged"),
        ({"protocol": "2"}, "saga:store is damaged"),
    ],
)
def test_a_store_of_another_layout_is_refused_in_one_line_and_nothing_in_it_is_changed(
    server: Server, commands: Commands, fields: dict[str, str], said: str
) -> None:
    client = server.broker().client
    client.hset(KEYS.store, mapping=fields)  # type: ignore[arg-type]
    before = client.hgetall(KEYS.store)
    done = commands.run("worker", REDIS_URL=server.url)
    assert done.returncode == 1
    assert f"Error: {said}" in done.stderr.splitlines()[-1]
    assert client.keys() == [KEYS.store.encode()]
    assert client.hgetall(KEYS.store) == before


def test_two_workers_on_one_saga_never_send_a_command_twice(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hold the same reply, as after a pause longer than the lease."""
    monkeypatch.setattr(worker, "LEASE_MS", 1)
    slow, quick = scene.another_worker(), scene.another_worker()
    scene.begin("s1", do(1), do(2))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.runner.turn(block_ms=1)
    held = until(lambda: slow._inbox.read(1), what="the slow one holds the reply")
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1, quick)
    monkeypatch.setattr(slow._inbox, "read", lambda *_, **__: held)
    slow.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.commands("work")) == 1
    state = scene.client.get("s1")
    assert state is not None
    assert (state.current_step, state.duplicates) == (2, 1)


def test_a_worker_says_what_it_sets_aside_one_line_a_turn(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        scene.redis.xadd(ONLY.replies("work"), {"body": f'{{"type":"Do_ok","saga_id":"nobody{number}","step":1}}'})
    scene.turns_until(lambda: scene.redis.xlen(ONLY.quarantine) == 3)
    [line] = [line for line in caplog.messages if "quarantined" in line]
    assert line.endswith(f"of {ONLY.replies('work')}: there is no saga nobody0, and 2 more")


# --- commands that nobody waits for any more


def test_commands_of_attempts_that_were_given_up_do_not_pile_up(scene: Scene) -> None:
    """Ten begins of 1 MB for a service that nobody runs grew to 172 MB in 45 s."""
    void = ONLY.commands("void")
    few: dict[str, Any] = {"timeout_ms": 30, "backoff_ms": 1, "attempts": 4, "compensation_attempts": 2}
    for number in range(5):
        scene.begin(f"s{number}", do("x" * 100_000, service="void", compensation="Undo", **few))
    most = 0

    def parked() -> bool:
        nonlocal most
        most = max(most, scene.redis.xlen(void))
        states = [scene.client.get(f"s{number}") for number in range(5)]
        return all(state is not None and state.parked for state in states)

    scene.turns_until(parked)
    assert 0 < most <= 5
    assert scene.redis.xlen(void) == 0


def test_a_saga_that_is_cancelled_at_once_leaves_only_the_undo(scene: Scene) -> None:
    scene.begin("s1", do(1, service="void", compensation="Undo"))
    scene.begin("s2", do(1, service="void", compensation="Undo"))
    void = ONLY.commands("void")
    scene.turns_until(lambda: scene.redis.xlen(void) == 2)
    append_requests(scene.redis, [Intervene(verb=Verb.CANCEL, saga_id="s1", reason="x", now=True)])
    scene.turns_until(lambda: (state := scene.client.get("s1")) is not None and state.status == "COMPENSATING")
    entries: Any = scene.redis.xrange(void)
    assert [json.loads(fields[b"body"])["type"] for _, fields in entries] == ["Do", "Undo"]
    assert json.loads(entries[0][1][b"body"])["saga_id"] == "s2"


def test_a_command_that_a_process_has_read_stays_until_it_is_answered(scene: Scene) -> None:
    """The process may have had an effect: whoever takes the entry over undoes it."""
    scene.begin("s1", do(1, timeout_ms=30, attempts=1))
    work = ONLY.commands("work")
    scene.turns_until(lambda: scene.redis.xlen(work) == 1)
    scene.redis.xgroup_create(work, "work", "0")
    assert scene.redis.xreadgroup("work", "gone", {work: ">"})
    scene.turns_until(lambda: (state := scene.client.get("s1")) is not None and state.status == "COMPENSATING")
    entries: Any = scene.redis.xrange(work)
    assert [json.loads(fields[b"body"])["type"] for _, fields in entries] == ["Do", "Undo"]
    assert pending(scene, work, "work") == 1


@pytest.mark.parametrize("stream", ["events", "quarantine"])
def test_events_and_quarantine_are_bounded_by_bytes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: str
) -> None:
    """Of events of a megabyte each, 100,000 do not fit into any memory."""
    name = getattr(ONLY, stream)
    monkeypatch.setitem(commit.MOST_BYTES, stream, 8 << 20)
    scene.worker.turn(block_ms=1)
    pipeline = scene.redis.pipeline(transaction=False)
    for number in range(32):
        pipeline.xadd(name, {"n": number, "body": "x" * (1 << 20)})
    pipeline.execute()
    scene.worker._upkeep._tidy_at = 0.0
    scene.turns_until(lambda: scene.redis.xlen(name) < 9)
    entries: Any = scene.redis.xrange(name)
    assert len(entries) > 4
    assert entries[-1][1][b"n"] == b"31"
    assert ("of the oldest messages were dropped" in caplog.text) == (stream == "quarantine")

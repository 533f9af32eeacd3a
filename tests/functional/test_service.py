"""Services on real servers: what is done once, what is done again, and what is answered."""

import json
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import orjson
import pytest
import redis
from msgspec.structs import replace

from sagastream import Context, Reject, Service
from sagastream.broker.entries import Entry
from sagastream.broker.wire import milliseconds
from sagastream.client.blocking import SagaClient
from sagastream.core.commands import ok, reply_to
from sagastream.core.saga import SagaStatus
from sagastream.core.service_actions import RUN, Answer
from sagastream.core.service_rules import MAX_TAKEOVERS, MAX_UNDOS, NEW_MS
from sagastream.errors import ServiceError
from sagastream.service import publication
from sagastream.service import runner as running
from sagastream.service.delivery import Delivery
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from sagastream.store.quarantine import Quarantine
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import OwnServer, Server
from support.stores import KEYS, ONLY
from support.values import a_command
from support.waiting import until


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def sent(scene: Scene, saga_id: str, *steps: dict[str, Any]) -> None:
    """Begin a saga. Its first command waits for the service."""
    scene.begin(saga_id, *steps)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) >= 1)


def replies(scene: Scene) -> list[dict[str, Any]]:
    entries: Any = scene.redis.xrange(ONLY.replies("work"))
    return [json.loads(fields[b"body"]) for _, fields in entries]


def runner(scene: Scene, service: Service) -> ServiceRunner:
    return ServiceRunner(scene.broker, service, threading.Event())


def test_a_command_sent_again_is_answered_from_the_record(scene: Scene) -> None:
    sent(scene, "s1", do("a"))
    sent_entries: Any = scene.redis.xrange(ONLY.commands("work"))
    scene.runner.turn(block_ms=1)
    scene.redis.xadd(ONLY.commands("work"), sent_entries[0][1] | {b"attempt": b"2"})
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == ["s1/1/transaction"]
    assert replies(scene) == [{"type": "Do_ok", "saga_id": "s1", "step": 1, "result": "a"}] * 2


def impatient() -> Service:
    """The service `work`, with a lease so short that others take over at once what a process holds. No declared lease
    is as short."""
    service = Service("work")
    service.lease_ms = 1
    return service


def test_what_was_answered_first_stays_the_answer(scene: Scene) -> None:
    """Two processes hold the same command, as happens after a pause longer than the lease."""
    sent(scene, "s1", do("a"))
    [held] = scene.runner._inbox.read(1)
    other = impatient()
    other.command("Do", compensation=None)(lambda params, context: "other")
    heir = runner(scene, other)

    def heir_answers() -> bool:
        heir.turn(block_ms=1)
        return scene.redis.xlen(ONLY.replies("work")) > 0

    until(heir_answers, what="the heir answers")
    late = reply_to(held.command, ok("Do"), result=b'"late"')
    scene.runner._inbox.outbox.answer(held, Answer(late, "ok"))
    scene.runner._inbox.outbox.send()
    assert [reply["result"] for reply in replies(scene)] == ["other", "other"]
    assert scene.play("s1").steps[0].result == b'"other"'


def test_an_exception_is_tried_again_and_the_effect_counts(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    service = Service("work")
    calls: list[str] = []

    @service.command("Do", compensation=None)
    def flaky(params: Any, context: Context) -> str:
        calls.append(context.key)
        if len(calls) < 3:
            raise ValueError("no luck \x1b[31m")
        return "done"

    sent(scene, "s1", do())
    works_until(runner(scene, service), lambda: bool(replies(scene)))
    assert calls == ["s1/1/transaction"] * 3
    assert replies(scene) == [{"type": "Do_ok", "saga_id": "s1", "step": 1, "result": "done"}]
    assert "Do of saga s1, step 1, attempt 1, raised ValueError: no luck \\x1b[31m (try 1 of 3)" in caplog.messages
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    "result", [float("nan"), 2**64, object(), "x" * 2_000_000], ids=["nan", "big", "object", "long"]
)
def test_a_step_whose_outcome_is_unknown_is_undone_first(scene: Scene, result: object) -> None:
    """The handler had its effect and then returned something that is not JSON: the library must not guess whether it
    was done."""
    service = scene.effects.service
    service.command("Odd", compensation="Undo")(lambda params, context: result)
    scene.runner = runner(scene, service)
    scene.begin("s1", do(1), do(2, "Odd"), do(3))
    state = scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert scene.effects.undone == ["s1/2/transaction", "s1/1/transaction"]
    assert state.steps[1].unknown
    assert (state.reason or "").startswith("Step 2 failed: the result of Odd is unusable: ")


@dataclass
class Charge:
    amount: Decimal
    at: datetime


def test_a_dataclass_is_a_result_and_its_compensation_is_told_it(scene: Scene) -> None:
    told: list[Any] = []
    service = Service("work")
    charge = Charge(Decimal("19.990"), datetime(2026, 1, 2, tzinfo=UTC))
    service.command("Do", compensation="Undo")(lambda params, context: charge)
    service.command("Fail", compensation=None)(lambda params, context: {1, 2})
    service.compensation("Undo")(lambda params, context: told.append(context.result))
    scene.runner = runner(scene, service)
    scene.begin("s1", do(), do(None, "Fail"))
    state = scene.play("s1")
    assert told == [{"amount": "19.990", "at": "2026-01-02T00:00:00+00:00"}]
    assert state.results[0] == told[0]
    assert state.reason is not None
    assert "the result of Fail is unusable: not JSON: it is a set (handler " in state.reason


def test_a_command_that_the_service_does_not_know_fails(scene: Scene) -> None:
    scene.begin("s1", do(1), do(2, "Fly"))
    state = scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert state.reason == "Step 2 failed: unknown_command: service work has no command Fly"


def test_a_compensation_is_told_the_params_and_the_result(scene: Scene) -> None:
    told: list[Any] = []
    service = Service("work")
    service.command("Do", compensation="Undo")(lambda params, context: {"id": 7})
    service.command("Fail", compensation=None)(lambda params, context: 1 / 0)
    service.compensation("Undo")(lambda params, context: told.append((params, context.result, context.key)))
    scene.runner = runner(scene, service)
    scene.begin("s1", do({"a": [1]}), do(None, "Fail"))
    scene.play("s1")
    assert told == [({"a": [1]}, {"id": 7}, "s1/1/compensation")]


def test_malformed_commands_are_quarantined_and_the_others_answered(scene: Scene) -> None:
    sent(scene, "s1", do(1))
    for body in (b"", b"{", b'{"type":"Do"}', b'{"type":"Do","saga_id":"s","step":0}'):
        scene.redis.xadd(ONLY.commands("work"), {"body": body})
    scene.redis.xadd(ONLY.commands("work"), {"body": b'{"type":"Do","saga_id":"s","step":1}', "attempt": "x"})
    while scene.redis.xlen(ONLY.commands("work")):
        scene.runner.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.quarantine_of("work")) == 5
    assert scene.redis.xlen(ONLY.commands("work")) == 0
    assert scene.effects.done == ["s1/1/transaction"]


LARGE = orjson.dumps({"text": 'é"\\' * 60_000})


@pytest.mark.parametrize(
    "large",
    [
        {"input": LARGE, "definition": "order"},
        {"compensating": True, "params": LARGE, "result": LARGE},  # of a plain saga, too
        {"compensating": True, "params": LARGE, "result": LARGE, "undo": LARGE, "input": LARGE},
    ],
    ids=["transaction", "plain compensation", "compensation"],
)
def test_a_command_with_large_fields_is_put_back_whole(scene: Scene, large: dict[str, Any]) -> None:
    name = "Undo" if "compensating" in large else "Do"
    command = replace(a_command(), **({"service": "work", "type": name} | large))
    fields: Any = command.fields() | {"attempt": "x"}
    scene.redis.xadd(ONLY.commands("work"), fields)
    scene.runner.turn(block_ms=1)
    quarantine = Quarantine(scene.redis, KEYS)
    [message] = quarantine.newest_first()
    quarantine.replay(message.id)
    entries: Any = scene.redis.xrange(ONLY.commands("work"))
    [(_, again)] = entries
    assert again == {encoded(name): encoded(value) for name, value in (fields | {"replayed": 1}).items()}
    assert not len(quarantine)


def encoded(word: str | bytes | int) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


def waiting(scene: Scene, *saga_ids: str, **fields: Any) -> None:
    """A command for each of these sagas."""
    for saga_id in saga_ids:
        body = json.dumps({"type": "Do", "saga_id": saga_id, "step": 1})
        entry: dict[Any, Any] = {"body": body} | fields
        scene.redis.xadd(ONLY.commands("work"), entry)


def test_what_waits_for_long_behind_a_slow_handler_is_handed_to_others(scene: Scene) -> None:
    service = Service("work", lease_ms=1_500)
    done: list[str] = []

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Context) -> None:
        if context.saga_id == "slow":
            began_s = time.monotonic()

            def others_do_the_rest() -> bool:
                slow._maintenance.turn()
                other.turn(block_ms=1)
                return len(done) >= 2 and time.monotonic() - began_s > 1.8

            until(others_do_the_rest, what="the lease is over, and another process has done what waited here")
        done.append(context.saga_id)

    slow, other = runner(scene, service), runner(scene, service)
    slow._prefetch._command_s = 0.01
    waiting(scene, "slow", "s1", "s2", not_after_ms=10**13)
    slow.turn(block_ms=1)
    # Once each: the lease of what runs was renewed, though the handler took longer than the lease.
    assert done == ["s1", "s2", "slow"]
    assert nothing_is_pending(scene)


def test_a_handler_may_take_longer_than_the_lease_while_its_answer_is_waited_for(scene: Scene) -> None:
    """After the deadline it is given up for dead: a handler that hangs must not hold its command without end."""
    service = Service("work", lease_ms=1_000)  # it is renewed every quarter of that: a busy machine keeps it
    service.command("Do", compensation=None)(lambda params, context: None)
    slow, other = runner(scene, service), runner(scene, service)
    deadline_ms = int(time.time() * 1000) + 1_500
    waiting(scene, "s1", not_after_ms=deadline_ms)
    [delivery] = slow._inbox.read(1)
    slow._executor.hold([delivery])
    assert slow._in_flight.begin(time.monotonic()) is not None
    taken_over: list[Delivery] = []

    def other_has_it() -> bool:
        slow._maintenance.turn()
        taken_over.extend(other._inbox.read(1))
        return bool(taken_over)

    until(other_has_it, what="another takes it over")
    assert other._inbox.now_ms > deadline_ms


def test_the_lease_on_more_than_a_script_takes_at_once_is_renewed(scene: Scene) -> None:
    scene.runner.turn(block_ms=1)
    pipeline = scene.redis.pipeline()
    for _ in range(8_200):
        pipeline.xadd(ONLY.commands("work"), {"body": "{}"})
    pipeline.execute()
    reader = scene.runner._inbox.reader
    stream: Any = {ONLY.commands("work"): ">"}
    found: Any = scene.redis.xreadgroup("work", reader._consumer, stream, count=9_000)
    entries = [Entry(stream=ONLY.commands("work"), id=entry_id, fields=fields) for entry_id, fields in found[0][1]]
    assert len(entries) == 8_200
    assert reader.leases.renew(entries) == set()


def held_by(scene: Scene, service: ServiceRunner) -> int:
    """How many entries this process has read and not answered."""
    pending: Any = scene.redis.xpending_range(ONLY.commands("work"), "work", "-", "+", 1000)
    return sum(one["consumer"].decode() in service.name for one in pending)


def reader(scene: Scene, service: Service, monkeypatch: pytest.MonkeyPatch, *, count: int) -> ServiceRunner:
    """A process that reads so many commands at once. It has looked for entries that others hold, so its next read
    brings new ones."""
    process = runner(scene, service)
    monkeypatch.setattr(process._prefetch, "count", lambda: count)
    assert process._inbox.read(1) == []
    return process


def test_under_load_the_next_commands_come_along_with_the_answers_and_none_is_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = reader(scene, scene.effects.service, monkeypatch, count=2)
    waiting(scene, *(f"s{number}" for number in range(7)))
    service.turn(block_ms=1)
    assert (len(scene.effects.done), held_by(scene, service)) == (2, 2)
    # An answer of the broker is lost, with the entries that came along: they are among this process's own pending
    # entries.
    service._recover()
    works_until(service, lambda: len(scene.effects.done) == 4)
    # The process is to stop: the entries that came along go to others at once.
    service.turn(block_ms=1)
    left = held_by(scene, service)
    service._inbox.reader.leave()
    other = runner(scene, scene.effects.service)
    works_until(other, lambda: len(replies(scene)) == 7)
    assert left > 0
    assert sorted(scene.effects.done) == [f"s{number}/1/transaction" for number in range(7)]


def test_what_came_along_with_an_answer_that_was_overruled_is_in_hand_while_that_is_undone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LINGER_S", 60.0)  # on a busy machine too, no answer is sent before all are there
    service, in_hand = Service("work"), []

    @service.command("Do", compensation="Undo")
    def do(params: Any, context: Context) -> None:
        if context.saga_id == "s0":  # meanwhile its compensation comes
            scene.redis.hset(ONLY.done("work", begun_ms), "s0/1/transaction/(void)", 1)

    @service.compensation("Undo")
    def undo(params: Any, context: Context) -> None:
        in_hand.append(len(process._in_flight._count))

    begun_ms = 1
    process = reader(scene, service, monkeypatch, count=2)
    waiting(scene, "s0", "s1", "s2", "s3", begun_ms=begun_ms)
    works_until(process, lambda: len(replies(scene)) == 4)
    assert in_hand == [3]


def test_where_commands_come_one_by_one_the_next_is_not_asked_for_with_the_answer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = reader(scene, scene.effects.service, monkeypatch, count=1)
    waiting(scene, "s1", "s2")
    service.turn(block_ms=1)
    assert (len(scene.effects.done), held_by(scene, service)) == (1, 0)


def test_what_others_took_over_while_a_process_slept_is_not_begun_by_it(scene: Scene) -> None:
    sleeper = runner(scene, scene.effects.service)
    waiting(scene, "s1")
    [delivery] = sleeper._inbox.read(1)
    group: Any = scene.redis.xclaim(ONLY.commands("work"), "work", "other", 0, [delivery.entry.id], justid=True)
    assert group == [delivery.entry.id]
    assert sleeper._inbox.renew([delivery]) == {delivery.entry.at}
    sleeper._inbox.hand_back([delivery])
    [pending] = cast(Any, scene.redis.xpending_range(ONLY.commands("work"), "work", "-", "+", 10))
    assert (pending["consumer"], pending["time_since_delivered"] < 60_000) == (b"other", True)


def test_a_compensation_without_a_handler_is_told_of_at_the_start(scene: Scene) -> None:
    service = Service("work")
    service.command("Do", compensation="Undo")(lambda params, context: None)
    with pytest.raises(ServiceError, match=r'@service\.compensation\("Undo"\)'):
        runner(scene, service)


SHOP = textwrap.dedent("""
    import os, signal
    from sagastream import Service, connect

    service = Service("work", lease_ms=2_000)

    @service.command("Do", compensation=None)
    def do(params, context):
        redis = connect()
        if redis.incr("calls:" + context.key) == 1 and params == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        redis.sadd("effects", context.key)
""")


def test_a_killed_services_commands_are_taken_over(server: Server, commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SHOP)
    env = {"REDIS_URL": server.url}
    services = [commands.quiet("service", "shop:service", env=env) for _ in range(2)]
    commands.quiet("worker", env=env)
    client = SagaClient(server.broker())
    accepted = client.begin("s1", [do(1), do("die"), do(3)])
    assert client.wait(accepted, 60).status is SagaStatus.COMPLETED
    assert client._redis.get("calls:s1/2/transaction") == b"2"
    assert [client._redis.get(f"calls:s1/{n}/transaction") for n in (1, 3)] == [b"1", b"1"]
    until(lambda: -signal.SIGKILL in [s.poll() for s in services], what="one of them was killed")


def begin_and_die(victim: ServiceRunner, delivery: Delivery) -> None:
    """A process takes a command over, and dies before its handler is called."""
    victim._executor.hold([delivery])
    held = victim._in_flight.begin(time.monotonic())
    assert held is not None
    assert victim._executor._before_call(held) is RUN


def test_a_command_that_kills_whoever_works_on_it_is_given_up(scene: Scene) -> None:
    service = impatient()
    service.command("Do", compensation=None)(lambda params, context: None)
    sent(scene, "s1", do(1, attempts=1))
    for _ in range(MAX_TAKEOVERS):
        victim = runner(scene, service)
        [held] = until(lambda victim=victim: victim._inbox.read(1), what="it takes the command")  # type: ignore[misc]
        begin_and_die(victim, held)
    heir = runner(scene, service)

    def answered() -> bool:
        heir.turn(block_ms=1)
        return scene.redis.xlen(ONLY.replies("work")) == 1

    until(answered, what="the next one answers")
    state = scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert state.steps[0].unknown
    assert state.reason == "Step 1 failed: 5 processes took Do and did not live to answer it"


def test_what_one_process_holds_for_long_is_no_sign_of_death(scene: Scene) -> None:
    """It reads the command again, to renew the lease or after an outage, and the broker counts that as a delivery."""
    sent(scene, "s1", do(1))
    patient = runner(scene, scene.effects.service)
    for _ in range(3 * MAX_TAKEOVERS):
        assert patient._inbox.read(1)
        patient._inbox.reader.recover()
    patient.turn(block_ms=1)
    assert scene.effects.done == ["s1/1/transaction"]
    assert scene.play("s1").status is SagaStatus.COMPLETED


def test_a_handler_that_cannot_reach_its_data_waits_for_them(scene: Scene) -> None:
    """The service's own Redis is away: that says nothing about the step."""
    service = Service("work")
    away = [redis.ConnectionError("away"), redis.ConnectionError("away")]

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Context) -> str:
        if away:
            raise away.pop()
        return "done"

    sent(scene, "s1", do(1))
    works_until(runner(scene, service), lambda: bool(replies(scene)))
    assert away == []
    assert replies(scene) == [{"type": "Do_ok", "saga_id": "s1", "step": 1, "result": "done"}]


def a_service_that_answers(outcomes: list[Any]) -> Service:
    """A service whose command Do has these outcomes, one after the other."""
    service = Service("work")

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Context) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Reject):
            raise outcome
        return outcome

    return service


def test_a_failure_that_is_tried_again_is_not_recorded(scene: Scene) -> None:
    service = a_service_that_answers([Reject("no"), "yes"])
    body = '{"type":"Do","saga_id":"s1","step":1}'
    process = runner(scene, service)
    for attempt in (1, 2, 3, 1):
        fields: dict[Any, Any] = {"body": body, "attempt": attempt, "begun_ms": 1, "retried": 1}
        scene.redis.xadd(ONLY.commands("work"), fields)
        process.turn(block_ms=1)
    assert [reply.get("result", reply.get("error")) for reply in replies(scene)] == ["no", "yes", "yes", "yes"]


def test_a_refusal_stands_though_its_command_comes_again_and_could_be_done_now(scene: Scene) -> None:
    service = a_service_that_answers(outcomes := [Reject("no money"), "paid", "paid"])
    process = runner(scene, service)
    process._prefetch._command_s = 0.01
    for _ in range(2):  # first in one batch, then in another
        for _ in range(2):
            scene.redis.xadd(ONLY.commands("work"), {"body": '{"type":"Do","saga_id":"s1","step":1}', "begun_ms": 1})
        process.turn(block_ms=1)
    assert [reply["error"] for reply in replies(scene)] == ["no money"] * 4
    assert len(outcomes) == 2


def test_a_command_that_its_worker_looked_up_a_moment_ago_is_not_looked_up_again(scene: Scene) -> None:
    sent(scene, "s1", do("a"))
    entries: Any = scene.redis.xrange(ONLY.commands("work"))
    (entry_id, fields), *_ = entries
    assert fields[b"unrecorded_ms"] == entry_id.partition(b"-")[0]
    before = hash_reads(scene)
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == ["s1/1/transaction"]
    assert hash_reads(scene) == before + 1  # by answer.lua
    # A copy of the entry, which nothing but its id tells from it, is looked up.
    scene.redis.xadd(ONLY.commands("work"), fields)
    works_until(scene.runner, lambda: len(replies(scene)) == 2)
    assert scene.effects.done == ["s1/1/transaction"]


def test_an_entry_that_comes_twice_as_new_is_looked_up_the_second_time(scene: Scene) -> None:
    """As on a cluster, where a reading that waited at a node that hung has got it, too."""
    sent(scene, "s1", do("a"))
    entries: Any = scene.redis.xrange(ONLY.commands("work"))
    entry = Entry(stream=ONLY.commands("work"), id=entries[0][0], fields=entries[0][1])
    scene.runner.turn(block_ms=1)
    assert scene.runner._inbox.take([entry]) == []  # it is answered from its record
    assert scene.effects.done == ["s1/1/transaction"]


def hash_reads(scene: Scene) -> int:
    """How often the server has looked up fields of a hash."""
    stats: Any = scene.redis.info("commandstats")
    return int(stats["cmdstat_hmget"]["calls"])


def now_ms(scene: Scene) -> int:
    return milliseconds(scene.redis.time())


def test_of_a_command_that_has_a_record_or_whose_records_are_damaged_the_worker_says_nothing(scene: Scene) -> None:
    records = ONLY.done("work", now_ms(scene))
    scene.redis.hset(records, mapping={"s1/1/transaction/Do": "unknown 1", "s2/1/transaction/(void)": "1"})
    scene.begin("s1", do("a"))
    scene.begin("s2", do("a"))
    scene.redis.set(ONLY.done("damaged", now_ms(scene)), "no hash")
    scene.begin("s3", do("a", service="damaged"))
    scene.turns_until(lambda: all(scene.redis.exists(ONLY.saga(f"s{number}")) for number in (1, 2, 3)))
    entries: Any = [*scene.redis.xrange(ONLY.commands("work")), *scene.redis.xrange(ONLY.commands("damaged"))]  # type: ignore[misc]
    assert len(entries) == 3
    assert not any(b"unrecorded_ms" in fields for _, fields in entries)


@pytest.mark.parametrize("ago_ms", [0, NEW_MS + 5_000])
def test_a_command_whose_worker_looked_it_up_long_ago_is_looked_up(scene: Scene, ago_ms: int) -> None:
    """What was recorded since then counts: here a rejection."""
    fields: dict[Any, Any] = {"body": '{"type":"Do","saga_id":"s1","step":1}', "begun_ms": 1, "attempt": 1}
    added_ms = now_ms(scene) - ago_ms
    fields |= {"not_after_ms": now_ms(scene) + 60_000, "unrecorded_ms": added_ms}
    scene.redis.hset(ONLY.done("work", 1), "s1/1/transaction/Do", 'failed "no"')
    scene.runner.turn(block_ms=1)
    scene.redis.xadd(ONLY.commands("work"), fields, id=f"{added_ms}-1")
    works_until(scene.runner, lambda: nothing_is_pending(scene))
    assert replies(scene) == [{"type": "Do_failed", "saga_id": "s1", "step": 1, "error": "no"}]
    # Without a look-up the handler runs. Its answer is overruled then, and what it has done is undone.
    assert scene.effects.done == ([] if ago_ms else ["s1/1/transaction"])


def test_a_stray_command_does_not_answer_for_the_real_one(scene: Scene) -> None:
    scene.redis.xadd(ONLY.commands("work"), {"body": '{"type":"Nope","saga_id":"s1","step":1}'})
    scene.runner.turn(block_ms=1)
    scene.begin("s1", do(1))
    assert scene.play("s1").status is SagaStatus.COMPLETED


# --- undone before, or while, it is done


def deliver(scene: Scene, name: str, *, attempt: int = 1, compensating: bool = False) -> None:
    """A command for step 1 of the saga s1."""
    body = {"type": name, "saga_id": "s1", "step": 1} | ({"compensating": True} if compensating else {})
    fields: dict[Any, Any] = {"body": json.dumps(body), "attempt": attempt, "begun_ms": 1}
    scene.redis.xadd(ONLY.commands("work"), fields)


def answers(scene: Scene) -> list[str]:
    return [f"{reply['type']} {reply.get('error', '')}".rstrip() for reply in replies(scene)]


def nothing_is_pending(scene: Scene) -> bool:
    summary: Any = scene.redis.xpending(ONLY.commands("work"), "work")
    return summary["pending"] == 0 and scene.redis.xlen(ONLY.commands("work")) == 0


def works_until(process: ServiceRunner, condition: Callable[[], bool]) -> None:
    def turned() -> bool:
        process.turn(block_ms=1)
        return condition()

    until(turned, what="the service gets there")


REFUSED = "Do_failed cancelled: Do came after its compensation"


def test_a_command_that_comes_after_its_compensation_is_refused(scene: Scene) -> None:
    deliver(scene, "Undo", compensating=True)
    scene.runner.turn(block_ms=1)
    deliver(scene, "Do")
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == []
    assert answers(scene) == ["Undo_ok", REFUSED]
    assert nothing_is_pending(scene)


@pytest.mark.parametrize("outcome", ["an answer", "an exception"])
def test_a_handler_that_was_at_it_when_its_step_was_undone_is_undone_itself(scene: Scene, outcome: str) -> None:
    events: list[str] = []
    service = Service("work")

    @service.command("Do", compensation="Undo")
    def do_it(params: Any, context: Context) -> None:
        if not events:
            # Another process undoes the step meanwhile.
            deliver(scene, "Undo", compensating=True)
            other.turn(block_ms=1)
        events.append("done")
        if outcome == "an exception":
            raise RuntimeError("after the effect")

    @service.compensation("Undo")
    def undo_it(params: Any, context: Context) -> None:
        events.append(f"undone {context.transaction_key}")

    slow, other = runner(scene, service), runner(scene, service)
    deliver(scene, "Do")
    works_until(slow, lambda: nothing_is_pending(scene))
    times = 1 if outcome == "an answer" else 3
    assert events == ["undone s1/1/transaction", *["done"] * times, "undone s1/1/transaction"]
    assert answers(scene) == ["Undo_ok", REFUSED]
    assert nothing_is_pending(scene)


def test_a_handler_that_was_at_it_when_another_attempt_failed_is_undone(scene: Scene) -> None:
    events: list[str] = []
    service = Service("work")

    @service.command("Do", compensation="Undo")
    def do_it(params: Any, context: Context) -> None:
        if context.attempt == 2:
            raise Reject("no")
        deliver(scene, "Do", attempt=2)
        other.turn(block_ms=1)
        events.append("done")

    service.compensation("Undo")(lambda params, context: events.append("undone"))
    slow, other = runner(scene, service), runner(scene, service)
    deliver(scene, "Do")
    slow.turn(block_ms=1)
    assert events == ["done", "undone"]
    assert answers(scene) == ["Do_failed no", "Do_failed no"]
    assert nothing_is_pending(scene)


def test_what_undoes_a_handler_that_was_overruled_is_what_its_step_says(scene: Scene) -> None:
    events: list[str] = []
    service = Service("work")

    @service.command("Do", compensation=None)
    def do_it(params: Any, context: Context) -> None:
        if not events:
            scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 2)  # it timed out, and is undone
            other.turn(block_ms=1)
        events.append(f"done {context.key}")

    @service.compensation("UndoSo")
    def undo_it(params: Any, context: Context) -> None:
        events.append(f"undone {context.transaction_key}")

    slow, other = runner(scene, service), runner(scene, service)
    sent(scene, "s1", do(1, compensation="UndoSo", timeout_ms=1_500, attempts=1))
    slow.turn(block_ms=1)
    assert events == ["undone s1/1/transaction", "done s1/1/transaction", "undone s1/1/transaction"]
    scene.turns_until(lambda: (state := scene.client.get("s1")) is not None and state.ended)


def test_who_waits_behind_a_command_that_kills_does_not_share_its_fate(scene: Scene) -> None:
    service = impatient()
    service.command("Do", compensation=None)(lambda params, context: None)
    for number in (1, 2):
        scene.begin(f"s{number}", do(number, attempts=1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 2)
    for _ in range(MAX_TAKEOVERS):
        victim = runner(scene, service)
        first, _second = until(
            lambda victim=victim: len(held := victim._inbox.read(1)) == 2 and held,  # type: ignore[misc]
            what="it takes both commands",
        )
        begin_and_die(victim, first)
    works_until(runner(scene, service), lambda: nothing_is_pending(scene))
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert scene.play("s2").status is SagaStatus.COMPLETED


def a_victim_of_its_own_effect(scene: Scene) -> Service:
    """The process died after the effect, and the step was undone before anybody noticed."""
    service = impatient()
    service.command("Do", compensation="Undo")(scene.effects._do)
    service.compensation("Undo")(scene.effects._undo)
    deliver(scene, "Do")
    assert runner(scene, service)._inbox.read(1)  # its effect happens, and the process dies here
    deliver(scene, "Undo", compensating=True)
    scene.runner.turn(block_ms=1)
    assert scene.effects.undone == ["s1/1/transaction"]
    return service


def test_whoever_takes_over_a_command_whose_step_was_undone_undoes_it_again(scene: Scene) -> None:
    service = a_victim_of_its_own_effect(scene)
    heir = runner(scene, service)
    works_until(heir, lambda: nothing_is_pending(scene))
    assert scene.effects.done == []
    assert scene.effects.undone == ["s1/1/transaction"] * 2
    assert answers(scene) == ["Undo_ok", REFUSED]


def test_an_effect_that_cannot_be_undone_is_tried_again_and_then_left_to_a_person(scene: Scene) -> None:
    service = a_victim_of_its_own_effect(scene)
    broken = impatient()
    broken.command("Do", compensation="Undo")(scene.effects._do)
    tries: list[str] = []

    @broken.compensation("Undo")
    def undo(params: Any, context: Context) -> None:
        tries.append(context.key)
        raise Reject("bank is closed")

    heir = runner(scene, broken)
    works_until(heir, lambda: nothing_is_pending(scene))
    assert len(tries) == MAX_UNDOS - 1
    assert answers(scene) == ["Undo_ok"]
    [message] = Quarantine(scene.redis, KEYS).newest_first()
    assert "may have been done after it was refused" in message.reason
    # Put back once the bank is open, it is undone and not done.
    Quarantine(scene.redis, KEYS).replay(message.id)
    runner(scene, service).turn(block_ms=1)
    assert (scene.effects.done, len(scene.effects.undone)) == ([], 2)
    assert answers(scene) == ["Undo_ok", REFUSED]


def test_a_service_that_leaves_hands_back_what_it_holds(scene: Scene) -> None:
    sent(scene, "s1", do(1))
    leaver = runner(scene, scene.effects.service)
    assert leaver._inbox.read(1)
    leaver._inbox.reader.leave()
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == ["s1/1/transaction"]
    consumers: Any = scene.redis.xinfo_consumers(ONLY.commands("work"), "work")
    assert sorted(c["pending"] for c in consumers) == [0, 0]
    leaver._inbox.reader.leave()
    consumers = scene.redis.xinfo_consumers(ONLY.commands("work"), "work")
    assert [c["name"].decode() for c in consumers] == [scene.runner.name.split()[-1]]


def test_an_effect_is_left_to_a_person_where_no_process_has_what_undoes_it(scene: Scene) -> None:
    """The step names a compensation that the service does not have."""
    service = impatient()
    service.command("Do", compensation=None)(lambda params, context: None)
    body = json.dumps({"type": "Do", "saga_id": "s1", "step": 1})
    entry: dict[Any, Any] = {"body": body, "begun_ms": 1, "compensation": "UndoSo"}
    scene.redis.xadd(ONLY.commands("work"), entry)
    assert runner(scene, service)._inbox.read(1)  # its effect happens, and the process dies here
    deliver(scene, "Undo", compensating=True)
    scene.runner.turn(block_ms=1)
    works_until(runner(scene, service), lambda: nothing_is_pending(scene))
    [message] = Quarantine(scene.redis, KEYS).newest_first()
    assert "may have been done after it was refused" in message.reason


def test_a_command_that_some_release_undoes_is_undone_whatever_another_one_says(scene: Scene) -> None:
    """As two releases publish side by side, or a deploy drops a compensation: sagas of the other are under way."""

    def says(undo: str | None) -> dict[str, str | None]:
        published.publish(scene.redis, KEYS, "till", {"Charge": undo}, commands=["Charge"])
        return dict(published.read(scene.redis, KEYS, ["till"])["till"])

    assert says(None) == {"Charge": None}
    assert says("Refund") == {"Charge": "Refund"}
    for undo in (None, "Refund", None):
        assert says(undo) == {"Charge": "Refund"}
    scene.redis.hset(KEYS.published("till"), "Charge", published.UNSAID)
    assert says(None) == {"Charge": None}
    scene.redis.hset(KEYS.published("till"), "Charge", "not a name!")
    assert says(None) == {"Charge": None}


def test_a_command_that_is_said_to_undo_itself_is_one_of_which_nobody_knows_the_undo(scene: Scene) -> None:
    """A repeated `_ok` of the command would count as that of its undo."""
    scene.redis.hset(KEYS.published("till"), mapping={"Set": "Set", "Charge": "Refund"})
    assert published.read(scene.redis, KEYS, ["till"]) == {"till": {"Charge": "Refund"}}
    published.publish(scene.redis, KEYS, "till", {"Set": None})
    assert published.read(scene.redis, KEYS, ["till"]) == {"till": {"Charge": "Refund", "Set": None}}


def test_what_an_older_release_published_stays(scene: Scene) -> None:
    published.publish(scene.redis, KEYS, "till", {"Charge": "Refund", "Old": "UndoOld"})
    published.publish(scene.redis, KEYS, "till", {"Charge": "Refund2", "Remind": None})
    assert published.read(scene.redis, KEYS, ["till"]) == {
        "till": {"Charge": "Refund2", "Old": "UndoOld", "Remind": None}
    }


def test_what_a_service_publishes_comes_back_when_somebody_has_deleted_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "_PUBLISH_EVERY_S", 0.0)
    scene.runner.turn(block_ms=1)
    scene.redis.delete(KEYS.published("work"))
    scene.runner._maintenance.turn()
    assert scene.redis.hget(KEYS.published("work"), "Do") == b"Undo"


def test_a_service_publishes_at_once_if_the_store_has_gone_on_from_another_moment(scene: Scene) -> None:
    """As after a FLUSHALL, which closes no connection."""
    scene.runner.turn(block_ms=1)
    scene.redis.delete(KEYS.published("work"), KEYS.services)
    scene.runner._maintenance.turn()
    assert not scene.redis.exists(KEYS.published("work"))
    scene.runner._inbox._lineage.has_changed()
    scene.runner._maintenance.turn()
    assert scene.redis.hget(KEYS.published("work"), "Do") == b"Undo"
    assert scene.redis.sismember(KEYS.services, "work")


@pytest.mark.own_server
def test_a_service_publishes_again_after_a_restart_of_the_broker_that_it_did_not_notice(
    scene: Scene, server: OwnServer
) -> None:
    """The restart falls between two commands: the next one goes over a new connection, and nothing fails. With
    `appendfsync everysec` the store may have forgotten the last second."""
    scene.runner.turn(block_ms=1)
    server.kill()
    server.start()
    server.broker().client.delete(KEYS.published("work"))
    scene.runner.turn(block_ms=1)
    scene.runner._maintenance.turn()
    assert scene.redis.hget(KEYS.published("work"), "Do") == b"Undo"


def test_after_the_store_was_emptied_a_service_publishes_again(scene: Scene) -> None:
    scene.runner.turn(block_ms=1)
    scene.redis.flushall()
    scene.begin("s1", do(1), do("fail"))
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert scene.effects.undone == ["s1/1/transaction"]


def test_sigterm_lets_a_service_answer_what_it_has_in_hand(server: Server, commands: Commands) -> None:
    (commands.folder / "slow.py").write_text(
        textwrap.dedent("""
        from sagastream import Service, connect

        service = Service("work")

        @service.command("Do", compensation=None)
        def do(params, context):
            connect().rpush("started", context.key)
            while not connect().blpop("go on", 1):
                pass
    """)
    )
    process = commands.start("service", "slow:service", env={"REDIS_URL": server.url})
    client = server.broker().client
    client.xadd(ONLY.commands("work"), {"body": '{"type":"Do","saga_id":"s1","step":1}'})
    until(lambda: client.llen("started"), what="the handler runs")
    process.send_signal(signal.SIGTERM)
    client.rpush("go on", 1)
    assert process.wait(60) == 0
    assert client.xlen(ONLY.replies("work")) == 1
    assert client.xlen(ONLY.commands("work")) == 0


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("no_such_module:service", "cannot import no_such_module"),
        ("json:loads", "loads in json is not a sagastream.Service"),
        ("broken:service", "cannot import broken: SyntaxError"),
    ],
)
def test_a_service_that_cannot_be_loaded_is_told_of_in_one_line(
    server: Server, commands: Commands, where: str, complaint: str
) -> None:
    (commands.folder / "broken.py").write_text("def\n")
    done = commands.run("service", where, REDIS_URL=server.url)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1

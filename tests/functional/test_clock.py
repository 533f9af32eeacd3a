"""The broker's clock is set back, on real servers: what waits for a time, or is held by the dead, waits no longer."""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from sagastream import Context, Service
from sagastream.broker.entries import Entry, time_of
from sagastream.broker.group_reader import GroupReader
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.parsing import parse_intervene, parse_signal
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from sagastream.store.keys import ORCHESTRATOR_GROUP
from support.clock import ServerClock
from support.scenes import Scene, do
from support.servers import OwnServer
from support.stores import KEYS, ONLY
from support.streams import append_requests
from support.waiting import until

HOUR_MS = 3600 * 1000

pytestmark = [pytest.mark.own_server, pytest.mark.both_in_soak]


@pytest.fixture
def clock(server: OwnServer) -> ServerClock:
    return ServerClock(server)


@pytest.fixture
def scene(clock: ServerClock, server: OwnServer) -> Scene:
    return Scene(server.broker())


def unanswered(timeout_ms: int = 300, **more: Any) -> Any:
    """A step that nobody does."""
    return do(service="nobody", attempts=1, timeout_ms=timeout_ms, compensation=None) | more


def saga(scene: Scene, saga_id: str = "s1") -> SagaState:
    state = scene.client.get(saga_id)
    assert state is not None
    return state


def is_out(scene: Scene, saga_id: str = "s1") -> bool:
    state = scene.client.get(saga_id)
    return state is not None and state.times_out_ms is not None


def turns_until(condition: Callable[[], bool], worker: Orchestrator) -> None:
    """The worker works, as it does through an outage. Valkey keeps what its clock said for some milliseconds, so
    it may compute by an old time when a blocking read is to end. Then that read ends with the time-out of the
    connection."""

    def turned() -> bool:
        try:
            worker.turn(block_ms=1)
        except redis.TimeoutError:
            worker._inbox.recover()
        return condition()

    until(turned, what="the worker gets there")


def test_a_step_times_out_when_it_should(scene: Scene, clock: ServerClock, caplog: pytest.LogCaptureFixture) -> None:
    began_s = time.monotonic()
    scene.begin("s1", unanswered())
    scene.turns_until(lambda: is_out(scene))
    clock.set_back(HOUR_MS)
    with caplog.at_level(logging.WARNING):
        turns_until(lambda: saga(scene).ended, scene.worker)
    took_s = time.monotonic() - began_s
    assert saga(scene).status is SagaStatus.ABORTED
    # An hour, less the time in which nothing was read: a reading may have ended with its time-out, see `turns_until`.
    [told_s] = re.findall(r"the broker's clock was set back by (\d+) s", caplog.text)
    assert 3600 - took_s - 1 <= int(told_s) <= 3600
    assert caplog.text.count("was set back") == 1


def test_a_worker_that_starts_afterwards_sees_it_too(scene: Scene, clock: ServerClock) -> None:
    scene.begin("s1", unanswered())
    scene.turns_until(lambda: is_out(scene))
    clock.set_back(HOUR_MS)
    turns_until(lambda: saga(scene).ended, scene.another_worker())


def test_so_do_an_attempt_that_backs_off_and_a_deadline(scene: Scene, clock: ServerClock) -> None:
    scene.begin("s1", unanswered(attempts=2, backoff_ms=2_000))
    scene.begin("s2", unanswered(timeout_ms=24 * HOUR_MS), deadline_ms=800, deadline="hard")
    scene.turns_until(lambda: is_out(scene) and is_out(scene, "s2"))
    scene.turns_until(lambda: saga(scene).send_again_ms is not None)
    clock.set_back(HOUR_MS)
    turns_until(lambda: saga(scene).ended and saga(scene, "s2").ended, scene.worker)
    assert saga(scene, "s2").reason == "The deadline, 800 ms after the begin, has passed"


def test_sagas_that_another_worker_leased_and_did_not_live_to_move_are_due_again(
    scene: Scene, clock: ServerClock
) -> None:
    scene.begin("s1", unanswered(timeout_ms=50))
    scene.turns_until(lambda: is_out(scene))
    until(lambda: scene.worker._store.due([KEYS.partitions], 1, 24 * HOUR_MS)[0], what="another worker leases it")
    clock.set_back(HOUR_MS)
    turns_until(lambda: saga(scene).ended, scene.worker)


@pytest.mark.parametrize("joined", ["before", "afterwards"])
def test_what_a_dead_process_held_is_taken_over_after_the_lease(
    scene: Scene, clock: ServerClock, server: OwnServer, joined: str
) -> None:
    done: list[str] = []
    service = Service("till", lease_ms=500)

    @service.command("Pay", compensation=None)
    def pay(params: Any, context: Context) -> None:
        done.append(context.key)

    published.publish(scene.redis, KEYS, "till", service.publishes())
    stream = KEYS.partitions[0].commands("till")
    scene.begin("s1", do(1, "Pay", "till"))
    scene.turns_until(lambda: scene.redis.xlen(stream) == 1)
    scene.redis.xgroup_create(stream, "till", id="0")
    scene.redis.xreadgroup("till", "victim", {stream: ">"})
    runner = ServiceRunner(server.broker(), service, threading.Event())
    if joined == "before":
        runner.turn(block_ms=1)
    clock.set_back(HOUR_MS)

    def takes() -> bool:
        try:
            runner.turn(block_ms=1)
        except redis.TimeoutError:  # as in `turns_until`
            runner._recover()
        return bool(done)

    until(takes, what="the command is taken over")
    turns_until(lambda: saga(scene).ended, scene.worker)
    assert saga(scene).status is SagaStatus.COMPLETED


def test_a_command_that_was_sent_before_the_clock_went_forward_is_not_too_late(
    scene: Scene, clock: ServerClock, caplog: pytest.LogCaptureFixture
) -> None:
    scene.runner.turn(block_ms=1)
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    clock.set_back(-HOUR_MS)
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == ["s1/1/transaction"]
    # Nor is a handler overdue that runs since then.
    scene.begin("s3", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    assert scene.hold_more() == 1
    held = scene.runner._in_flight.begin(time.monotonic())
    assert held is not None
    clock.set_back(-HOUR_MS)
    assert scene.runner._inbox.read(1) == []
    assert scene.runner._in_flight.to_renew(time.monotonic(), scene.runner._inbox.time_for) == [held]
    scene.runner._hangs.look(time.monotonic())
    assert "deadline" not in caplog.text
    assert scene.runner._executor._clock_of(held.command)() < (held.not_after_ms or 0) / 1000
    scene.runner._executor.run(held)
    scene.runner.turn(block_ms=1)
    assert scene.effects.done.pop() == "s3/1/transaction"
    # What was late before still is.
    fields: dict[Any, Any] = {"body": '{"type":"Do","saga_id":"s2","step":1}', "begun_ms": 1, "attempt": 1}
    scene.redis.xadd(ONLY.commands("work"), fields | {"not_after_ms": now_ms(scene) - 2 * HOUR_MS - 5_000})
    scene.runner.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.commands("work")) == 0
    assert scene.effects.done == ["s1/1/transaction"]


def test_a_command_that_was_sent_after_the_clock_was_set_back_is_not_too_late(scene: Scene, clock: ServerClock) -> None:
    """An entry that is taken over from another process brings no time along."""
    scene.runner.turn(block_ms=1)
    clock.set_back(HOUR_MS)
    scene.begin("s1", do(1))
    stream = ONLY.commands("work")
    turns_until(lambda: scene.redis.xlen(stream) == 1, scene.worker)
    entries: Any = scene.redis.xrange(stream)
    ((entry_id, fields),) = entries
    scene.redis.xreadgroup("work", "victim", {stream: ">"})
    assert scene.runner._inbox.now_ms > now_ms(scene) + HOUR_MS // 2
    taken = scene.runner._inbox.take([Entry(stream=stream, id=entry_id, fields=fields, again=True)])
    scene.runner._executor.hold(taken)
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == ["s1/1/transaction"]


def test_nothing_is_taken_over_from_the_living_because_the_clock_went_forward(scene: Scene, clock: ServerClock) -> None:
    def reader(name: str) -> GroupReader:
        return GroupReader(scene.redis, group="group", consumer=name, lease_ms=1_000, on_join=lambda: ["work"])

    holder, other = reader("holder"), reader("other")
    assert other.read(1) == []
    scene.redis.xadd("work", {"body": "1"})
    (held,) = holder.read(1)
    clock.set_back(-HOUR_MS)
    began_s = time.monotonic()
    while time.monotonic() - began_s < 0.9:
        other.leases.look_soon()
        assert other.read(1) == []
    assert holder.leases.renew([held]) == set()
    (taken,) = until(lambda: other.read(1), what="it is taken over from one that is dead by now")
    assert (taken.at, taken.taken_over) == (held.at, True)


def test_all_that_many_dead_processes_held_is_taken_over(scene: Scene, clock: ServerClock) -> None:
    pipeline = scene.redis.pipeline()
    for number in range(1500):
        pipeline.xadd("work", {"body": str(number)})
    pipeline.xgroup_create("work", "group", id="0")
    for number in range(30):
        pipeline.xreadgroup("group", f"victim-{number}", {"work": ">"}, count=50)
    pipeline.execute()
    reader = GroupReader(scene.redis, group="group", consumer="heir", lease_ms=500, on_join=lambda: ["work"])
    assert reader.read(1) == []
    clock.set_back(HOUR_MS)
    taken: set[bytes] = set()

    def takes() -> bool:
        try:
            taken.update(entry.id for entry in reader.read(1))
        except redis.TimeoutError:
            reader.recover()
        return len(taken) == 1500

    until(takes, what="all are taken over")
    held: Any = scene.redis.xpending("work", "group")
    assert held["consumers"] == [{"name": b"heir", "pending": 1500}]


def test_what_a_dead_worker_held_is_taken_over_too(
    scene: Scene, clock: ServerClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastream.orchestrator.worker.LEASE_MS", 500)
    worker = Orchestrator(scene.broker, scene.stop)
    worker.turn(block_ms=1)
    scene.begin("s1", unanswered())
    requests = KEYS.partitions[0].requests
    scene.redis.xreadgroup("orchestrator", "victim", {requests: ">"})
    clock.set_back(HOUR_MS)
    turns_until(lambda: scene.client.get("s1") is not None, worker)


# --- set right again


def waits(scene: Scene, saga_id: str, deadline_ms: int = 3_000, **step: Any) -> float:
    """A saga that nobody answers, and that is cancelled when its deadline comes. Returns when it began."""
    began_s = time.monotonic()
    scene.begin(saga_id, unanswered(timeout_ms=24 * HOUR_MS, **step), deadline_ms=deadline_ms, deadline="hard")
    scene.turns_until(lambda: is_out(scene, saga_id))
    return began_s


def test_what_was_set_back_and_is_set_right_comes_when_it_was_asked_for(
    scene: Scene, clock: ServerClock, caplog: pytest.LogCaptureFixture
) -> None:
    began_s = waits(scene, "s1")
    scene.begin("s2", unanswered(timeout_ms=HOUR_MS // 2))
    scene.turns_until(lambda: is_out(scene, "s2"))
    clock.set_back(HOUR_MS)
    turns_until(lambda: saga(scene).set_back_ms > 0 and saga(scene, "s2").set_back_ms > 0, scene.worker)
    with caplog.at_level(logging.WARNING):
        clock.set_back(-HOUR_MS)
        turns_until(lambda: saga(scene).set_forward_ms > 0 and saga(scene, "s2").set_forward_ms > 0, scene.worker)
    assert "the broker's clock went forward by 3600 s at once" in caplog.text
    assert saga(scene, "s2").steps[0].attempt == 1
    turns_until(lambda: saga(scene).ended, scene.worker)
    assert time.monotonic() - began_s >= 3
    assert saga(scene).reason == "The deadline, 3000 ms after the begin, has passed"
    seconds, micros = scene.redis.time()
    left_ms = (saga(scene, "s2").times_out_ms or 0) - (seconds * 1000 + micros // 1000)
    assert HOUR_MS // 2 - (time.monotonic() - began_s) * 1000 - 1000 <= left_ms <= HOUR_MS // 2 + 5_000


def test_a_clock_that_jumps_forward_and_is_set_right_lets_no_time_come_early(scene: Scene, clock: ServerClock) -> None:
    began_s = waits(scene, "s1")
    clock.set_back(-HOUR_MS)
    turns_until(lambda: saga(scene).set_forward_ms > 0, scene.worker)
    clock.set_back(HOUR_MS)
    turns_until(lambda: saga(scene).set_back_ms > 0, scene.worker)
    turns_until(lambda: saga(scene).ended, scene.worker)
    assert time.monotonic() - began_s >= 3


def test_a_clock_that_was_set_right_while_no_worker_ran_lets_no_time_come_early(
    scene: Scene, clock: ServerClock
) -> None:
    began_s = waits(scene, "s1")
    clock.set_back(HOUR_MS)
    turns_until(lambda: saga(scene).set_back_ms > 0, scene.worker)
    clock.set_back(-HOUR_MS)
    turns_until(lambda: saga(scene).ended, scene.another_worker())
    assert time.monotonic() - began_s >= 3


def test_a_signal_in_time_is_waited_for_though_its_id_is_ahead_of_the_clock(scene: Scene, clock: ServerClock) -> None:
    """Redis gives no lower ids than before. A worker has read the signal and died, so the wait is over before that."""
    append_requests(scene.redis, [parse_signal({"type": "saga_signal", "saga_id": "nobody", "name": "go"})])
    turns_until(lambda: scene.redis.xlen(ONLY.quarantine) == 1, scene.worker)
    clock.set_back(HOUR_MS)
    steps: Any = [{"wait": "go", "timeout_ms": 1000}]
    append_requests(scene.redis, [parse_begin({"saga_id": "s1", "input": {}, "steps": steps})])
    turns_until(lambda: scene.redis.hget(ONLY.saga("s1"), "step1.phase") == b"AWAITING", scene.worker)
    signal = parse_signal({"type": "saga_signal", "saga_id": "s1", "name": "go", "payload": 1})
    append_requests(scene.redis, [signal])
    held: Any = scene.redis.xreadgroup(ORCHESTRATOR_GROUP, "dead", {ONLY.interventions: ">"})
    [[_, [[entry_id, _]]]] = held
    due_ms = saga(scene).due_ms or 0
    assert time_of(entry_id) > due_ms
    until(lambda: now_ms(scene) > due_ms, what="the wait is over")
    turns_until(lambda: saga(scene).ended, scene.worker)
    assert (saga(scene).status, saga(scene).results) == (SagaStatus.COMPLETED, [1])


def test_a_cancel_waits_for_a_begin_whose_id_is_ahead_of_the_clock(scene: Scene, clock: ServerClock) -> None:
    """Another worker has read the begin, which was added before, and died."""
    append_requests(scene.redis, [parse_begin({"saga_id": "s0", "steps": [do(1)]})])
    turns_until(lambda: is_out(scene, "s0"), scene.worker)
    clock.set_back(HOUR_MS)
    append_requests(scene.redis, [parse_begin({"saga_id": "s1", "steps": [do(1)]})])
    scene.redis.xreadgroup(ORCHESTRATOR_GROUP, "dead", {ONLY.requests: ">"})
    cancel = parse_intervene({"type": "saga_cancel", "saga_id": "s1", "reason": "x", "now": True})
    append_requests(scene.redis, [cancel])
    turns_until(lambda: scene.client.get("s1") is not None and bool(saga(scene).interventions), scene.worker)
    assert scene.redis.xlen(ONLY.quarantine) == 0


def now_ms(scene: Scene) -> int:
    seconds, micros = scene.redis.time()
    return int(seconds) * 1000 + int(micros) // 1000

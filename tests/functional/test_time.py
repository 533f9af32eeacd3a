"""Timeouts, attempts, deadlines and retention, on real servers."""

import uuid
from typing import Any

import pytest

from sagastream import Context, Service
from sagastream.broker import leases, read_ahead
from sagastream.core.commands import Reply, ok
from sagastream.core.parsing import parse_intervene
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import RequestRefused
from sagastream.orchestrator import streams, sweeping, upkeep, worker
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import keys, sagas
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY, due
from support.streams import last_event, read_events
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


#: Within this time, in milliseconds, a busy machine too has a command carried out. A test that waits for it to pass
#: takes as long, so only those have it whose step is to time out once, and to be answered another time.
ANSWERABLE_MS = 1_500


def quick(params: Any = None, **more: Any) -> Any:
    """A step with a short timeout."""
    return do(params, **{"timeout_ms": 40, "backoff_ms": 1, "attempts": 2, "compensation_attempts": 2} | more)


def lost(scene: Scene, attempt: int = 1) -> None:
    """This attempt of the command is sent, and nobody gets it."""

    def arrives() -> bool:
        entries: Any = scene.redis.xrange(ONLY.commands("work"))
        for entry_id, fields in entries:
            if fields[b"attempt"] == b"%d" % attempt:
                return bool(scene.redis.xdel(ONLY.commands("work"), entry_id))
        return False

    scene.turns_until(arrives)


def saga(scene: Scene, saga_id: str = "s1") -> SagaState:
    state = scene.client.get(saga_id)
    assert state is not None
    return state


def ask(scene: Scene, verb: str, saga_id: str = "s1", reason: str = "because") -> SagaState:
    """Let a worker do what an operator asks for. Raises RequestRefused."""
    body = {"type": f"saga_{verb}", "saga_id": saga_id, "reason": reason}
    request = parse_intervene(body, request_id=uuid.uuid4().hex)
    after = last_event(scene.redis)
    fields: dict[Any, Any] = request.fields()
    scene.redis.xadd(ONLY.interventions, fields)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.interventions) == 0)
    for event in read_events(scene.redis, after, 1):
        if event.fields[b"kind"] == b"refused":
            raise RequestRefused(22, event.fields[b"body"].decode())
    return saga(scene, saga_id)


def test_a_lost_command_is_sent_again_and_done_once(scene: Scene) -> None:
    scene.begin("s1", quick(1, timeout_ms=ANSWERABLE_MS), do(2))
    lost(scene)
    state = scene.play("s1")
    assert state.status is SagaStatus.COMPLETED
    assert scene.effects.done == ["s1/1/transaction", "s1/2/transaction"]
    assert [step.attempt for step in state.steps] == [2, 1]


def test_what_came_while_a_worker_slept_is_read_before_a_step_is_held_to_have_timed_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds too for a worker that had read something ahead before it slept."""
    monkeypatch.setattr(streams, "_REQUESTS", 1)
    monkeypatch.setattr(read_ahead, "_FRESH_S", 0.0)
    scene.begin("s1", quick(1, attempts=1, timeout_ms=ANSWERABLE_MS))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.begin("s2", do(1))
    scene.begin("s3", do(1))
    scene.worker.turn(block_ms=1)
    assert scene.worker._inbox._ahead
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == ["s1/1/transaction"]
    until(lambda: sagas.read(scene.redis, KEYS, [])[1] > (saga(scene).times_out_ms or 0), what="it times out")
    assert scene.play("s1").status is SagaStatus.COMPLETED


def test_a_step_that_nobody_answers_is_undone_first_and_then_those_before_it(scene: Scene) -> None:
    scene.begin("s1", do(1), quick(2, attempts=1, compensation_attempts=1_000))
    scene.turns_until(lambda: saga_exists(scene))
    scene.runner.turn(block_ms=1)
    lost(scene)
    state = scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert state.reason == "Step 2 failed: no answer within 40 ms"
    assert state.compensating_steps == (2, 1)
    assert scene.effects.undone == ["s1/2/transaction", "s1/1/transaction"]


def saga_exists(scene: Scene) -> bool:
    return scene.client.get("s1") is not None


def test_a_lost_reply_is_no_second_effect(scene: Scene) -> None:
    scene.begin("s1", quick(1, timeout_ms=ANSWERABLE_MS))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.runner.turn(block_ms=1)
    entries: Any = scene.redis.xrange(ONLY.replies("work"))
    assert scene.redis.xdel(ONLY.replies("work"), entries[0][0]) == 1
    state = scene.play("s1")
    assert (state.status, state.steps[0].attempt) == (SagaStatus.COMPLETED, 2)
    assert scene.effects.done == ["s1/1/transaction"]


def test_a_compensation_that_nobody_answers_parks_the_saga_and_retry_goes_on(scene: Scene) -> None:
    scene.begin("s1", quick(1, timeout_ms=ANSWERABLE_MS), do("fail"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.runner.turn(block_ms=1)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.runner.turn(block_ms=1)
    for attempt in (1, 2):
        lost(scene, attempt)
    after = last_event(scene.redis)
    scene.turns_until(lambda: saga(scene).parked is not None)
    state = saga(scene)
    assert (state.status, state.parked) == (
        SagaStatus.COMPENSATING,
        f"Undo of step 1 failed 2 times: no answer within {ANSWERABLE_MS} ms",
    )
    assert scene.redis.zscore(ONLY.timers, "s1") == float("inf")
    [event] = read_events(scene.redis, after, 1)
    assert event.fields[b"kind"] == b"parked"
    ask(scene, "retry", reason="it is back")
    state = scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert scene.effects.undone == ["s1/1/transaction"]
    assert [(done.verb, done.reason) for done in state.interventions] == [("retry", "it is back")]


def test_an_unknown_saga_and_one_in_another_state_refuse_the_operator(scene: Scene) -> None:
    scene.begin("s1", do(1))
    scene.turns_until(lambda: saga_exists(scene))
    before: Any = scene.redis.hgetall(ONLY.saga("s1"))
    for verb in ("retry", "skip", "abandon"):
        with pytest.raises(RequestRefused, match="is not parked"):
            ask(scene, verb)
    assert scene.redis.hgetall(ONLY.saga("s1")) == before
    scene.play("s1")
    with pytest.raises(RequestRefused, match="has ended, COMPLETED"):
        ask(scene, "cancel")


def test_a_cancelled_saga_goes_back_when_its_step_is_answered(scene: Scene) -> None:
    scene.begin("s1", do(1), do(2))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    assert ask(scene, "cancel", reason="changed my mind").status is SagaStatus.PENDING
    state = scene.play("s1")
    assert (state.status, state.reason) == (SagaStatus.ABORTED, "Cancelled: changed my mind")
    assert (scene.effects.done, scene.effects.undone) == (["s1/1/transaction"], ["s1/1/transaction"])


def test_past_its_pivot_a_saga_only_goes_forward(scene: Scene) -> None:
    scene.begin("s1", do(1, kind="pivot"), quick(2, kind="retriable", attempts=1_000), deadline_ms=1)
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.runner.turn(block_ms=1)
    lost(scene)
    with pytest.raises(RequestRefused, match="is past its pivot"):
        ask(scene, "cancel")
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert scene.effects.undone == []


def test_a_deadline_cancels(scene: Scene) -> None:
    scene.begin("s1", do(1, service="nobody", attempts=1, timeout_ms=60, compensation=None), deadline_ms=20)
    state = scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert state.reason == "The deadline, 20 ms after the begin, has passed"


def test_what_a_worker_had_leased_when_it_died_comes_up_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LEASE_MS", 100)
    scene.begin("s1", quick(1, attempts=1, compensation=None))
    lost(scene)
    leased = until(lambda: due(scene.worker._store, 10, 100)[0], what="its time comes")
    assert leased == ["s1"]  # the worker dies here
    scene.turns_until(lambda: saga(scene).ended, scene.another_worker())


def test_replies_that_wait_are_read_before_anything_has_timed_out(scene: Scene) -> None:
    """This happens after a time in which no worker ran."""
    scene.begin("s1", quick(1, attempts=1), quick(2, timeout_ms=10_000))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    for number in range(300):
        fields: dict[Any, Any] = Reply(type=ok("Do"), saga_id=f"other{number}", step=1).fields()
        scene.redis.xadd(ONLY.replies("work"), fields)
    awaited: dict[Any, Any] = Reply(type=ok("Do"), saga_id="s1", step=1).fields()
    scene.redis.xadd(ONLY.replies("work"), awaited)
    until(lambda: saga(scene).due_ms is not None and now_ms(scene) > (saga(scene).due_ms or 0), what="it is due")
    scene.turns_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0, scene.another_worker())
    assert saga(scene).current_step == 2


def now_ms(scene: Scene) -> int:
    seconds, micros = scene.redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


def test_a_command_that_nobody_waits_for_is_not_begun(scene: Scene) -> None:
    scene.begin("s1", quick(1, attempts=1, compensation=None))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    until(lambda: now_ms(scene) > (saga(scene).due_ms or 0), what="its time has passed")
    scene.runner.turn(block_ms=1)
    assert scene.effects.done == []
    assert scene.play("s1").status is SagaStatus.ABORTED


# --- how long things are kept


#: For so long an ended saga is kept, in milliseconds, if a test sees it before it goes: a busy machine looks that soon.
SEEN_MS = 1_500


def test_an_ended_saga_expires_and_a_live_one_does_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_TIDY_EVERY_S", 0.0)
    scene = Scene(server.broker())
    scene.worker = Orchestrator(scene.broker, scene.stop, retention_ms=SEEN_MS)
    scene.begin("live", do(1, service="nobody"))
    scene.begin("s1", do(1))
    scene.play("s1")
    assert scene.redis.pttl(ONLY.saga("live")) == -1
    assert 0 < int(scene.redis.pttl(ONLY.saga("s1"))) <= SEEN_MS
    scene.turns_until(lambda: not saga_exists(scene) and scene.redis.zcard(ONLY.ended) == 0)
    assert scene.client.get("live") is not None


def test_aborted_sagas_may_be_kept_for_a_time_of_their_own(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_TIDY_EVERY_S", 0.0)
    monkeypatch.setattr(sweeping, "_PAGE", 3)
    monkeypatch.setattr(sweeping, "_PAGES", 1)
    scene = Scene(server.broker())
    scene.worker = Orchestrator(scene.broker, scene.stop, retention_ms=SEEN_MS, aborted_retention_ms=3_600_000)
    for n in range(8):
        scene.begin(f"s{n}", do("fail" if n % 2 else 1))
        scene.play(f"s{n}")
    aborted = [f"s{n}" for n in range(8) if n % 2]
    assert 3_500_000 < int(scene.redis.pttl(ONLY.saga("s1"))) <= 3_600_000
    scene.turns_until(lambda: scene.redis.zrange(ONLY.ended, 0, -1) == [saga_id.encode() for saga_id in aborted])
    assert [scene.redis.exists(ONLY.saga(f"s{n}")) for n in range(8)] == [n % 2 for n in range(8)]


def test_under_steady_load_the_store_does_not_grow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_TIDY_EVERY_S", 0.0)
    scene = Scene(server.broker())
    scene.worker = Orchestrator(scene.broker, scene.stop, retention_ms=1)
    sizes = []
    for number in range(3):
        for n in range(100):
            scene.begin(f"s{number}-{n}", do(1), do("fail" if n % 3 == 0 else 2))
        scene.turns_until(lambda: settled(scene))
        sizes.append(sizes_of(scene))
    assert sizes[1] == sizes[2]
    assert int(scene.redis.ttl(done_keys(scene)[0])) > 0


def settled(scene: Scene) -> bool:
    scene.runner.turn(block_ms=1)
    waiting = scene.redis.xlen(ONLY.requests) or scene.redis.zcard(ONLY.timers)
    return not waiting and scene.redis.zcard(ONLY.ended) == 0


def done_keys(scene: Scene) -> list[bytes]:
    return sorted(scene.redis.scan_iter(ONLY.done("work", 0).rpartition(":")[0] + ":*"))


def sizes_of(scene: Scene) -> dict[bytes, int]:
    """The size of each key, except the events, which are capped, and the records, which expire."""
    found: dict[bytes, int] = {}
    for key in scene.redis.scan_iter():
        if key != ONLY.events.encode() and key not in done_keys(scene):
            kind = scene.redis.type(key)
            redis = scene.redis
            sizes = {b"stream": redis.xlen, b"zset": redis.zcard, b"hash": redis.hlen, b"set": redis.scard}
            found[key] = sizes[kind](key)  # type: ignore[index]
    return found


def test_readers_that_are_gone_are_forgotten_and_nothing_that_they_held_is(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LEASE_MS", 100_000)
    monkeypatch.setattr(leases, "_FORGET_EVERY_S", 0.0)
    monkeypatch.setattr(leases, "_GONE_MS", 50)
    idle, holder, heir = scene.another_worker(), scene.another_worker(), scene.another_worker()
    idle.turn(block_ms=1)
    scene.begin("s1", do(1))
    assert len(holder._inbox.read(1)) == 1
    scene.turns_until(lambda: len(consumers(scene)) == 2, heir)
    assert sorted(int(consumer["pending"]) for consumer in consumers(scene)) == [0, 1]


def consumers(scene: Scene) -> list[dict[str, Any]]:
    found: Any = scene.redis.xinfo_consumers(ONLY.requests, keys.ORCHESTRATOR_GROUP)
    return list(found)


def test_a_store_that_knows_no_timeouts_yet_gets_them(scene: Scene) -> None:
    """The hash of a saga that an earlier release has begun says nothing about them."""
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.redis.hdel(ONLY.saga("s1"), "times_out_at")
    scene.redis.zadd(ONLY.timers, {"s1": 1})
    scene.turns_until(lambda: saga(scene).times_out_ms is not None, scene.another_worker())
    assert scene.play("s1").status is SagaStatus.COMPLETED


def test_a_bug_that_is_mended_undoes_nothing_by_default(scene: Scene) -> None:
    """With the defaults, a handler that raises at once is called again until it is mended."""
    service, broken = Service("work"), [True]

    @service.command("Book", compensation="Cancel")
    def book(params: Any, context: Context) -> str:
        if broken[0]:
            raise KeyError("a bug")
        return "booked"

    service.compensation("Cancel")(lambda params, context: pytest.fail("it is undone"))
    scene.runner = ServiceRunner(scene.broker, service, scene.stop)
    scene.client.begin("s1", [{"transaction": "Book", "service": "work", "backoff_ms": 1}])

    def tried_often() -> bool:
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        return saga(scene).steps[0].attempt > 5

    until(tried_often, what="it is tried more often than it ever was by default")
    assert saga(scene).steps[0].attempts == 20
    broken[0] = False
    assert scene.play("s1").status is SagaStatus.COMPLETED

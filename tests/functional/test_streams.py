"""Who may say what: identity comes from the stream on which an entry stands, never from what the entry says."""

import json
import time
from typing import Any

import pytest

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Intervene, Verb
from sagastream.core.saga import SagaStatus
from sagastream.errors import QuarantineError
from sagastream.orchestrator import services, streams
from sagastream.store.quarantine import Quarantine
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.streams import add_reply, append_requests
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def reasons(scene: Scene) -> list[str]:
    return [message.reason for message in Quarantine(scene.redis, KEYS).newest_first()]


def under_way(scene: Scene, *steps: dict[str, Any]) -> None:
    """The saga s1, whose first command is out."""
    scene.begin("s1", *(steps or (do(1), do(2))))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)


# --- replies


@pytest.mark.parametrize("kind", ["Do_ok", "Do_failed", "Undo_ok", "Fly_ok"])
def test_no_service_answers_for_another(scene: Scene, kind: str) -> None:
    under_way(scene)
    add_reply(scene.redis, "intruder", {"body": json.dumps({"type": kind, "saga_id": "s1", "step": 1}), "attempt": "1"})
    scene.turns_until(lambda: len(reasons(scene)) == 1)
    assert reasons(scene) == ["step 1 is one of work: the service intruder cannot answer for it"]
    state = scene.client.get("s1")
    assert state is not None
    assert (state.current_step, state.status, state.duplicates) == (1, SagaStatus.PENDING, 0)
    assert scene.play("s1").status is SagaStatus.COMPLETED


def test_a_forged_undo_is_not_believed_and_a_late_forged_answer_is_not_kept(scene: Scene) -> None:
    under_way(scene, do(1, timeout_ms=50, attempts=1), do(2))
    scene.turns_until(lambda: bool((state := scene.client.get("s1")) and state.status is SagaStatus.COMPENSATING))
    for kind in ("Do_ok", "Undo_ok"):
        add_reply(scene.redis, "intruder", {"body": json.dumps({"type": kind, "saga_id": "s1", "step": 1})})
    scene.turns_until(lambda: len(reasons(scene)) == 2)
    state = scene.client.get("s1")
    assert state is not None
    assert (state.status, state.steps[0].late_ms) == (SagaStatus.COMPENSATING, None)


def test_a_worker_reads_the_replies_of_a_service_that_is_new(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    add_reply(scene.redis, "newcomer", {"body": '{"type":"Do_ok","saga_id":"nobody","step":1}'})
    scene.turns_until(lambda: reasons(scene) == ["there is no saga nobody"])


def test_a_service_that_says_nothing_of_itself_is_known_once_a_command_is_sent_to_it(scene: Scene) -> None:
    scene.begin("s1", do(1, "Charge", "silent", compensation=None))
    other = scene.another_worker()
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("silent")) == 1)
    assert scene.redis.sismember(KEYS.services, "silent")
    scene.redis.xadd(ONLY.replies("silent"), {"body": '{"type":"Charge_ok","saga_id":"s1","step":1}'})
    scene.turns_until(lambda: bool(scene.redis.zscore(ONLY.ended, "s1")), other)


def test_one_stream_of_replies_that_is_none_stops_the_others_not(scene: Scene) -> None:
    scene.redis.set(ONLY.replies("broken"), "x")
    scene.redis.sadd(KEYS.services, "broken", "a:b", "\x00", "")
    scene.begin("s1", do(1), do("fail"))
    assert scene.play("s1").status is SagaStatus.ABORTED
    # … and not one that becomes none while the worker reads it.
    add_reply(scene.redis, "later", {"body": "x"})
    scene.turns_until(lambda: len(reasons(scene)) == 1)
    scene.redis.set(ONLY.replies("later"), "x")
    scene.begin("s2", do(1), do("fail"))
    assert scene.play("s2").status is SagaStatus.ABORTED
    # Once its key is free again, it is read.
    scene.redis.delete(ONLY.replies("broken"))
    add_reply(scene.redis, "broken", {"body": "y"})
    scene.worker._inbox.leases._next_forget = 0.0
    scene.turns_until(lambda: len(reasons(scene)) == 2)


# --- operators' requests


def cancelling(saga_id: str, request_id: str | None = "op-1") -> Intervene:
    return Intervene(verb=Verb.CANCEL, saga_id=saga_id, reason="why", request_id=request_id)


def fields(request: Any) -> dict[Any, Any]:
    return dict(request.fields())


def test_a_request_on_the_wrong_stream_is_set_aside_and_does_nothing(scene: Scene) -> None:
    under_way(scene)
    scene.redis.xadd(ONLY.requests, fields(cancelling("s1")))
    begin = parse_begin({"saga_id": "s2", "steps": [do(1)]}, request_id="me")
    scene.redis.xadd(ONLY.interventions, fields(begin))
    scene.turns_until(lambda: len(reasons(scene)) == 2)
    assert sorted(reasons(scene)) == [
        f"a request about a saga that is there belongs into {ONLY.interventions}",
        f"a saga_begin belongs into {ONLY.requests}",
    ]
    state = scene.client.get("s1")
    assert state is not None
    assert state.cancelling is None
    assert scene.client.get("s2") is None
    events: Any = scene.redis.xrange(ONLY.events)
    assert [entry for entry in events if entry[1][b"kind"] == b"refused"] == []


def test_an_operators_request_does_not_wait_behind_begins(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way(scene)
    begins = [parse_begin({"saga_id": f"b{number}", "steps": [do(1)]}) for number in range(500)]
    append_requests(scene.redis, begins)
    append_requests(scene.redis, [cancelling("s1")])
    monkeypatch.setattr(streams, "_REQUESTS", 1)
    assert scene.worker._streams is not None
    scene.worker._streams._busy = 1  # many replies were read: no begins are taken
    scene.worker.turn(block_ms=1)
    scene.worker._streams._busy = 1
    scene.worker.turn(block_ms=1)
    state = scene.client.get("s1")
    assert state is not None
    assert state.cancelling == "Cancelled: why"
    assert scene.redis.xlen(ONLY.requests) > 490


def is_taken(scene: Scene) -> bool:
    """Whether the operator's request is taken, now that the worker has looked at what was handed back."""
    scene.worker._inbox.leases._next_look = 0.0
    scene.worker.turn(block_ms=1)
    return scene.redis.xlen(ONLY.interventions) == 0


def test_an_operators_request_waits_for_the_begin_that_was_added_before_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_REQUESTS", 1)
    begins = [parse_begin({"saga_id": f"b{number}", "steps": [do(1)]}) for number in range(3)]
    append_requests(scene.redis, begins)
    append_requests(scene.redis, [cancelling("b2")])
    scene.worker.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.interventions) == 1  # handed back, not refused
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    until(lambda: is_taken(scene), what="it is taken")
    state = scene.client.get("b2")
    assert state is not None
    assert state.cancelling == "Cancelled: why"


def test_it_waits_for_a_begin_that_a_dead_worker_holds(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    append_requests(scene.redis, [parse_begin({"saga_id": "b0", "steps": [do(1)]})])
    entries: Any = scene.redis.xreadgroup("orchestrator", "dead", {ONLY.requests: ">"})
    assert entries
    append_requests(scene.redis, [cancelling("b0")])
    for _ in range(3):
        assert not is_taken(scene)
    scene.redis.xclaim(ONLY.requests, "orchestrator", "dead", 0, [entries[0][1][0][0]], idle=60_000)
    until(lambda: is_taken(scene), what="both are taken")
    state = scene.client.get("b0")
    assert state is not None
    assert state.cancelling == "Cancelled: why"


def test_for_a_saga_that_nobody_begins_it_is_refused_however_many_begins_come_after_it(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    append_requests(scene.redis, [cancelling("nobody")])
    time.sleep(0.002)  # … so that what comes next has a later time, which is what is asked here
    append_requests(scene.redis, [parse_begin({"saga_id": "b0", "steps": [do(1, service="nobody")]})])
    scene.worker.turn(block_ms=1)
    events: Any = scene.redis.xrange(ONLY.events)
    assert [entry[1][b"request_id"] for entry in events if entry[1][b"kind"] == b"refused"] == [b"op-1"]


def test_in_one_turn_a_saga_begins_before_it_is_cancelled(scene: Scene) -> None:
    append_requests(scene.redis, [cancelling("s1")])
    append_requests(scene.redis, [parse_begin({"saga_id": "s1", "steps": [do(1)]})])
    scene.worker.turn(block_ms=1)
    state = scene.client.get("s1")
    assert state is not None
    assert state.cancelling == "Cancelled: why"


# --- what a service sets aside


def test_what_a_service_sets_aside_is_put_back_into_its_commands_whatever_it_names(scene: Scene) -> None:
    forged = {
        "reason": "x",
        "stream": ONLY.interventions,
        "entry_id": "1-1",
        "body": '{"type":"saga_abandon","saga_id":"s1","reason":"forged"}',
        "fields": '{"request_id":"forged"}',
    }
    scene.redis.sadd(KEYS.services, "intruder")
    entry: Any = forged
    scene.redis.xadd(ONLY.quarantine_of("intruder"), entry)
    quarantine = Quarantine(scene.redis, KEYS)
    [message] = quarantine.newest_first()
    assert message.id.startswith("intruder/")
    quarantine.replay(message.id)
    assert scene.redis.xlen(ONLY.interventions) == 0
    assert scene.redis.xlen(ONLY.commands("intruder")) == 1


def test_a_quarantine_of_a_service_that_is_no_stream_hides_no_other(scene: Scene) -> None:
    scene.redis.sadd(KEYS.services, "broken")
    scene.redis.set(ONLY.quarantine_of("broken"), "x")
    entry: Any = {"reason": "why", "stream": ONLY.requests, "entry_id": "1-1", "body": "{}", "fields": "{}"}
    scene.redis.xadd(ONLY.quarantine, entry)
    assert reasons(scene) == ["why"]
    assert len(Quarantine(scene.redis, KEYS)) == 1


@pytest.mark.parametrize(
    "stream",
    [
        ONLY.commands("work"),
        ONLY.quarantine,
        ONLY.events,
        ONLY.timers,
        "other",
        "",
        "saga:{1}:requests",
        "shop:{0}:requests",
        f"{ONLY.replies('a')}:b",
    ],
)
def test_what_the_orchestrator_sets_aside_goes_back_only_to_what_it_reads(scene: Scene, stream: str) -> None:
    entry: Any = {"reason": "x", "stream": stream, "entry_id": "1-1", "body": "{}", "fields": "{}"}
    scene.redis.xadd(ONLY.quarantine, entry)
    quarantine = Quarantine(scene.redis, KEYS)
    [message] = quarantine.newest_first()
    with pytest.raises(QuarantineError, match="nothing can be put back there"):
        quarantine.replay(message.id)
    assert len(quarantine) == 1


# --- how many services


def test_a_saga_that_names_one_service_too_many_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MAX_SERVICES", 3)
    scene.begin("s1", do(1, service="one"), do(1, service="two"))
    scene.begin("s2", do(1, service="three"), request_id="refused")
    scene.begin("s3", do(1, service="two"), do(1, service="one"))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    assert [scene.client.get(f"s{number}") is not None for number in (1, 2, 3)] == [True, False, True]
    events: Any = scene.redis.xrange(ONLY.events)
    [(_, told)] = [entry for entry in events if entry[1][b"kind"] == b"refused"]
    body = json.loads(told[b"body"])
    assert (told[b"request_id"], told[b"saga_id"], body["code"]) == (b"refused", b"s2", 22)
    assert body["text"] == "the store has 3 services, the most that it may have; saga s2 names another one"
    assert scene.redis.smembers(KEYS.services) == {b"work", b"one", b"two"}


def test_a_set_of_services_that_is_none_stops_no_saga(scene: Scene) -> None:
    scene.redis.set(KEYS.services, "x")
    scene.begin("s1", do(1), do("fail"))
    assert scene.play("s1").status is SagaStatus.ABORTED

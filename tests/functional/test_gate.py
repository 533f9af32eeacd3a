"""Two releases on one store, turn by turn. What a newer release wrote is left to it, and its sagas begin only if every
live worker knows them. With real processes: test_releases.py."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from sagastream.broker.exchange import run
from sagastream.client.answers import Accepted
from sagastream.client.event_loop import AsyncSagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import Code
from sagastream.core.parsing import parse_intervene
from sagastream.core.saga import SagaState
from sagastream.errors import RequestRefused, UnknownSaga
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.store import events, heartbeat, keys
from sagastream.store.quarantine import Quarantine
from sagastream_bridge.inspection import lookup, saga_views
from support.newer import FORMAT, newer
from support.processes import Commands, Talk
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.streams import append_requests
from support.waiting import takes_less_than, until

pytestmark = pytest.mark.both_in_soak


class Releases(Scene):
    """A worker and a service of this release (see Scene), and of a newer one."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.broker())
        with newer():
            self.newer_worker = Orchestrator(self.broker, self.stop)
            self.newer_runner = ServiceRunner(self.broker, self.effects.service, self.stop)

    def newer_turn(self) -> None:
        with newer():
            self.newer_worker.turn(block_ms=1)

    def newer_until(self, condition: Callable[[], object]) -> None:
        """Run turns of the newer worker until the condition holds."""

        def turned() -> bool:
            self.newer_turn()
            return bool(condition())

        until(turned, what="the newer worker gets there")

    def begin_newer(self, saga_id: str, *steps: Any, request_id: str | None = None) -> bytes:
        """Ask for a saga of format 9. Returns the entry of the request."""
        body = {"type": "saga_begin", "format": FORMAT, "saga_id": saga_id, "steps": list(steps) or [do(1)]}
        fields: Any = {"body": json.dumps(body)} | ({"request_id": request_id} if request_id else {})
        entry_id: Any = self.redis.xadd(ONLY.requests, fields)
        return bytes(entry_id)

    def given_newer(self, saga_id: str, *steps: Any) -> None:
        """A saga of format 9 that the newer worker has begun, with its first command out."""
        self.begin_newer(saga_id, *steps)
        self.newer_until(lambda: self.hash(saga_id))

    def hash(self, saga_id: str) -> dict[bytes, bytes]:
        found: Any = self.redis.hgetall(ONLY.saga(saga_id))
        return dict(found)

    def newer_state(self, saga_id: str) -> SagaState | None:
        with newer():
            return self.client.get(saga_id)

    def pending(self, stream: str, group: str = keys.ORCHESTRATOR_GROUP) -> set[bytes]:
        found: Any = self.redis.xpending_range(stream, group, "-", "+", 1000)
        return {entry["message_id"] for entry in found}

    def refusal(self, request_id: str) -> dict[str, Any]:
        """The answer to a request that is refused, once it is there."""

        def told() -> Any:
            events: Any = self.redis.xrange(ONLY.events)
            return [f for _, f in events if f.get(b"request_id") == request_id.encode() and f[b"kind"] == b"refused"]

        body: dict[str, Any] = json.loads(until(told, what="it is refused")[0][b"body"])
        return body


@pytest.fixture
def scene(server: Server) -> Releases:
    return Releases(server)


# --- what is left


def test_a_newer_request_is_left_pending_and_what_comes_beside_it_is_done(scene: Releases) -> None:
    before, after = scene.begin_newer("n1"), scene.begin_newer("n2", request_id="me-1")
    scene.begin("s1", do(1))
    assert scene.play("s1").status == "COMPLETED"
    entries: Any = scene.redis.xrange(ONLY.requests)
    assert [entry_id for entry_id, _ in entries] == [before, after]
    assert scene.pending(ONLY.requests) == {before, after}
    assert scene.redis.xlen(ONLY.quarantine) == 0
    assert scene.hash("n1") == scene.hash("n2") == {}
    events: Any = scene.redis.xrange(ONLY.events)
    assert {fields[b"saga_id"] for _, fields in events} == {b"s1"}


def test_a_worker_says_once_for_a_format_that_it_leaves_it(scene: Releases, caplog: pytest.LogCaptureFixture) -> None:
    scene.given_newer("n1", do(1, service="nobody", timeout_ms=1, attempts=1, compensation=None))
    with caplog.at_level(logging.WARNING, "sagastream"):
        for number in range(5):
            entry = scene.begin_newer(f"more-{number}")
            scene.turns_until(lambda entry=entry: entry in scene.pending(ONLY.requests))  # type: ignore[misc]
        scene.turns_until(lambda: bool(scene.worker._gate.passed_over()))
    texts = [record.getMessage() for record in caplog.records if "format" in record.getMessage()]
    assert texts == ["met format 9, which only a newer release knows: leaves all of it to workers of that release"]


def test_a_newer_worker_takes_at_once_what_this_one_has_left(scene: Releases) -> None:
    entries = {scene.begin_newer(f"n{number}") for number in range(200)}
    scene.worker.turn(block_ms=1)
    scene.turns_until(lambda: scene.pending(ONLY.requests) == entries)
    scene.worker._inbox.leave()  # otherwise it would be alive, and no saga of format 9 could begin
    with takes_less_than(4.0):  # the lease, for which it need not wait, is longer
        scene.newer_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    assert scene.redis.zcard(ONLY.timers) == 200


def test_the_hash_of_a_newer_saga_is_not_touched_whatever_comes_for_it(scene: Releases) -> None:
    scene.given_newer("n1", do(1), do(2))
    before = scene.hash("n1")
    assert before[b"format"] == b"9"
    scene.runner.turn(block_ms=1)  # … a service of this release answers: the command is a plain one
    replies: Any = scene.redis.xrange(ONLY.replies("work"))
    [(reply, _)] = replies
    cancel = scene.redis.xadd(
        ONLY.interventions, {"body": '{"type":"saga_cancel","saga_id":"n1","reason":"why"}', "request_id": "op-1"}
    )
    again: Any = parse_begin({"saga_id": "n1", "steps": [do(1), do(2)]}, request_id="again")
    append_requests(scene.redis, [again])
    scene.turns_until(lambda: scene.pending(ONLY.replies("work")) == {reply} and len(scene.pending(ONLY.requests)) == 1)
    scene.turns_until(lambda: scene.pending(ONLY.interventions) == {cancel})
    assert scene.hash("n1") == before
    assert scene.redis.xlen(ONLY.quarantine) == 0
    # … and the newer worker goes on with all of it.
    scene.newer_until(lambda: scene.redis.xlen(ONLY.replies("work")) == 0)
    state = scene.newer_state("n1")
    assert state is not None
    assert state.steps[0].status == "COMPLETED"


def test_a_newer_saga_that_is_due_is_due_for_a_newer_worker_at_once(scene: Releases) -> None:
    scene.given_newer("n1", do(1, service="nobody", timeout_ms=50, attempts=1, compensation=None))
    scene.turns_until(lambda: bool(scene.worker._gate.passed_over()))
    score: Any = scene.redis.zscore(ONLY.timers, "n1")
    now: Any = scene.redis.time()
    assert score <= now[0] * 1000 + 1000, "its lease is held"
    scene.newer_until(lambda: _ended(scene.newer_state("n1")))


def test_plain_sagas_are_seen_to_while_a_newer_one_is_due(scene: Releases) -> None:
    scene.given_newer("n1", do(1, service="nobody", timeout_ms=1, attempts=1, compensation=None))
    scene.begin("s1", do(1, service="nobody", timeout_ms=300, attempts=1, compensation=None))
    scene.turns_until(lambda: _ended(scene.client.get("s1")))
    assert b"PENDING" in scene.hash("n1").values()


def _ended(state: SagaState | None) -> bool:
    return state is not None and state.ended


def test_a_worker_does_not_spin_on_what_it_leaves(scene: Releases) -> None:
    scene.given_newer("n1", do(1, service="nobody", timeout_ms=1, attempts=1, compensation=None))
    for number in range(300):
        scene.begin_newer(f"more-{number}")
    scene.turns_until(lambda: len(scene.pending(ONLY.requests)) == 300 and bool(scene.worker._gate.passed_over()))
    before = _calls(scene.redis)
    turns, ends = 0, time.monotonic() + 4.0
    while time.monotonic() < ends:
        scene.worker.turn()
        turns += 1
    # It is idle: two reads a second. All that it left comes by once every two seconds, 128 entries at a time.
    assert turns < 30
    assert _calls(scene.redis) - before < 100
    assert len(scene.pending(ONLY.requests)) == 300


def _calls(client: redis.Redis) -> int:
    """How many reads and script calls there were."""
    stats: Any = client.info("commandstats")
    names = [f"cmdstat_{name}" for name in ("evalsha", "xautoclaim", "xreadgroup", "hgetall")]
    return sum(stats[name]["calls"] for name in names if name in stats)


def test_a_service_leaves_a_newer_command_and_does_those_beside_it(scene: Releases) -> None:
    stream = ONLY.commands("work")
    newer_one: Any = {"body": json.dumps({"type": "Do", "saga_id": "n1", "step": 1, "params": 1}), "format": FORMAT}
    entry: Any = scene.redis.xadd(stream, newer_one)
    scene.begin("s1", do(1))
    assert scene.play("s1").status == "COMPLETED"
    assert scene.effects.done == ["s1/1/transaction"]
    assert (scene.pending(stream, "work"), scene.redis.xlen(stream)) == ({entry}, 1)
    assert scene.redis.xlen(ONLY.quarantine) == 0

    def is_done() -> bool:
        with newer():
            scene.newer_runner.turn(block_ms=1)
        return "n1/1/transaction" in scene.effects.done

    until(is_done, what="the newer process does it")
    assert scene.redis.xlen(stream) == 0


@pytest.mark.parametrize("value", ["", "nine", "-1", "9" * 16])
def test_a_command_with_a_format_that_is_not_a_number_is_quarantined(scene: Releases, value: str) -> None:
    fields: Any = {"body": json.dumps({"type": "Do", "saga_id": "n1", "step": 1}), "format": value}
    scene.redis.xadd(ONLY.commands("work"), fields)
    scene.runner.turn(block_ms=1)
    scene.runner.turn(block_ms=1)
    assert scene.redis.xlen(ONLY.quarantine_of("work")) == 1
    assert scene.effects.done == []


# --- what may begin


def test_a_newer_saga_does_not_begin_while_a_worker_lives_that_does_not_know_its_format(scene: Releases) -> None:
    scene.worker.turn(block_ms=1)
    name = scene.worker.name.removeprefix("worker ")
    scene.begin_newer("n1", request_id="me-1")
    scene.newer_turn()
    assert scene.refusal("me-1") == {
        "type": "error",
        "code": Code.PRECONDITION_FAILED,
        "text": f"worker {name} does not know format 9: stop it or update it, then begin the saga again",
    }
    assert scene.hash("n1") == {}
    assert scene.pending(ONLY.requests) == set()


def test_it_begins_once_that_worker_has_ended(scene: Releases) -> None:
    scene.worker.turn(block_ms=1)
    scene.worker._inbox.leave()
    scene.given_newer("n1")


def test_it_begins_once_that_worker_is_not_heard_any_more(scene: Releases) -> None:
    scene.worker.turn(block_ms=1)
    until(lambda: not _alive(scene, scene.worker), what="it counts as dead")
    scene.given_newer("n1")


def test_a_worker_that_left_while_it_held_something_does_not_hold_up_a_begin(scene: Releases) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin("s1", do(1))
    assert scene.worker._inbox.read(1)
    scene.worker._inbox.leave()
    consumers: Any = scene.redis.xinfo_consumers(ONLY.requests, keys.ORCHESTRATOR_GROUP)
    assert [consumer["pending"] for consumer in consumers] == [1]  # … so that it is still known
    scene.given_newer("n1")


def test_a_worker_of_a_release_without_a_heartbeat_knows_the_plain_format_alone(scene: Releases) -> None:
    scene.newer_turn()
    scene.redis.xgroup_createconsumer(ONLY.requests, keys.ORCHESTRATOR_GROUP, "former-1")
    scene.begin_newer("n1", request_id="me-1")
    scene.newer_turn()
    assert "worker former-1 does not know format 9" in scene.refusal("me-1")["text"]


def test_several_workers_that_do_not_know_it_are_named(scene: Releases) -> None:
    scene.newer_turn()
    for name in "abcde":
        scene.redis.xgroup_createconsumer(ONLY.requests, keys.ORCHESTRATOR_GROUP, name)
    scene.begin_newer("n1", request_id="me-1")
    scene.newer_turn()
    text = scene.refusal("me-1")["text"]
    assert text.startswith("workers a, b, c and 2 more do not know format 9: stop them or update them, then")


def asked(saga_id: str, request_id: str) -> Accepted:
    """What a client got that has begun a saga."""
    return Accepted(begin=parse_begin({"saga_id": saga_id, "steps": [do(1)]}, request_id=request_id))


def test_who_asks_after_a_begin_was_refused_is_told_why(scene: Releases, server: Server, commands: Commands) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin_newer("n1", request_id="me-1")
    scene.newer_turn()
    why = scene.refusal("me-1")["text"]
    with pytest.raises(RequestRefused, match="does not know format 9") as refused:
        scene.client.wait(asked("n1", "me-1"), 60)
    assert (refused.value.code, str(refused.value)) == (Code.PRECONDITION_FAILED, why)
    with pytest.raises(TimeoutError) as late:
        scene.client.wait(asked("n1", "me-1"), 0)
    assert str(late.value).endswith(f": no worker has begun n1 yet; its request was refused: {why}")
    # Somebody may begin it again: whoever waits for the saga itself waits on.
    with pytest.raises(TimeoutError) as late:
        scene.client.wait("n1", 0.1)
    assert str(late.value).endswith(f": there is no saga n1 yet; its request was refused: {why}")
    for ask in (scene.client.why, scene.client.history):
        with pytest.raises(UnknownSaga) as unknown:
            ask("n1")
        assert str(unknown.value) == f"there is no saga n1; its request was refused: {why}"

    found = lookup.saga(scene.broker, "n1")
    [message] = Quarantine(scene.redis, KEYS).newest_first()
    assert saga_views.absent(found.causes, found.notes) == f"; saga_begin was quarantined as {message.id}: {why}"
    talk = Talk(commands.start("bridge", env={"REDIS_URL": server.url}))
    talk.say("c", {"type": "saga_status", "msg_id": 1, "saga_id": "n1"})
    _, _, told = talk.hear()
    assert (told["code"], told["text"]) == (Code.NO_SUCH_SAGA, f"there is no saga n1; its request was refused: {why}")


def test_a_refusal_of_something_else_is_not_told_for_a_saga(scene: Releases) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin_newer("n1", request_id="me-1")
    cancel = parse_intervene({"type": "saga_cancel", "saga_id": "n2", "reason": "x"}, request_id="r")
    append_requests(scene.redis, [cancel])
    scene.newer_until(lambda: scene.redis.xlen(ONLY.interventions) == scene.redis.xlen(ONLY.requests) == 0)
    for waited, unbegun in (
        (asked("n1", "me-2"), "no worker has begun n1 yet"),  # another request, which may still be read
        ("n2", "there is no saga n2 yet"),  # a request to cancel it was refused
        ("n3", "there is no saga n3 yet"),
    ):
        with pytest.raises(TimeoutError) as late:
            scene.client.wait(waited, 0.1)
        assert str(late.value).endswith(f": {unbegun}")


def test_who_waits_in_an_event_loop_hears_of_an_earlier_refusal_too(scene: Releases, server: Server) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin_newer("n1", request_id="me-1")
    scene.newer_turn()

    async def waits() -> None:
        async with AsyncSagaClient(server.url) as client:
            await client.wait(asked("n1", "me-1"), 60)

    with pytest.raises(RequestRefused, match="does not know format 9"):
        asyncio.run(waits())


def test_of_refusals_the_last_thousand_events_are_looked_through(scene: Releases) -> None:
    def found() -> list[bytes]:
        return [event.fields[b"request_id"] for event in run(scene.redis, events.refusals(ONLY))]

    for number in range(2):
        scene.redis.xadd(ONLY.events, {"kind": "refused", "saga_id": "n1", "request_id": f"me-{number}", "body": "{}"})
    assert found() == [b"me-1", b"me-0"]
    for _ in range(900):
        scene.redis.xadd(ONLY.events, {"kind": "outcome", "saga_id": "s", "body": "{}"})
    assert found() == [b"me-1", b"me-0"]
    for _ in range(12):
        scene.redis.xadd(ONLY.events, {"kind": "reply", "saga_id": "s", "body": "x" * 1_000_000})
    assert found() == []


def test_a_newer_saga_that_is_there_already_is_not_refused_to_whoever_begins_it_again(scene: Releases) -> None:
    scene.given_newer("n1")
    scene.worker.turn(block_ms=1)
    scene.begin_newer("n1", request_id="again")
    scene.begin_newer("n2", request_id="other")
    scene.newer_until(lambda: scene.redis.xlen(ONLY.requests) == 0)
    assert "does not know" in scene.refusal("other")["text"]
    events: Any = scene.redis.xrange(ONLY.events)
    assert b"again" not in [fields.get(b"request_id") for _, fields in events]


def test_nothing_is_looked_up_for_a_plain_saga(scene: Releases) -> None:
    scene.newer_turn()
    before: Any = scene.redis.info("commandstats")
    scene.begin("s1", do(1))
    scene.newer_turn()
    after: Any = scene.redis.info("commandstats")
    for name in ("cmdstat_zrange", "cmdstat_xinfo|consumers"):
        assert before.get(name) == after.get(name), name
    assert scene.client.get("s1") is not None


def _alive(scene: Scene, worker: Orchestrator) -> bool:
    found = heartbeat.processes(scene.redis, KEYS)
    return any(f"worker {process.name}" == worker.name and process.is_alive for process in found)

"""What an observer of a worker and of a service is told, on a real server."""

import asyncio
import contextvars
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from sagastream import Context, Service
from sagastream.core.saga import SagaStatus
from sagastream.orchestrator.worker import Orchestrator
from sagastream.service.runner import ServiceRunner
from sagastream.telemetry import POINTS, Observer, Outcome
from sagastream_bridge.stdin.bridge import StdinBridge
from support.observers import Notes
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def scene(server: Server, notes: Notes) -> Iterator[Scene]:
    scene = Scene(server.broker(), observer=notes)
    yield scene
    scene.client.close()


def serve(scene: Scene, handler: Any, observer: Observer, **options: Any) -> None:
    """Let this handler do `Do`, which nothing has to undo, in any release."""
    scene.redis.delete(KEYS.published("work"))
    service = Service("work", **options)
    service.command("Do", compensation=None)(handler)
    scene.runner = ServiceRunner(scene.broker, service, scene.stop, observer=observer)


def outcomes(notes: Notes) -> list[tuple[str, int, Outcome]]:
    """For each call of a handler: the command, the number of the call, how it ended."""
    return [(told["command"].type, told["call"], told["outcome"]) for told in notes.of("handler_finished")]


# --- a service


def test_each_command_is_told_of_from_its_delivery_to_its_answer(scene: Scene, notes: Notes) -> None:
    scene.begin("s1", do(1), do(2))
    assert scene.play("s1").status is SagaStatus.COMPLETED
    of_the_worker = ("trace_for", "turn_committed", "saga_moved", "saga_ended")
    assert notes.points[0] == "trace_for"
    of_the_service = [point for point in notes.points if point not in of_the_worker]
    assert of_the_service == ["command_delivered", "handler_started", "handler_finished", "answer_sent"] * 2
    assert [told["again"] for told in notes.of("command_delivered")] == [False, False]
    assert [told["command"].step for told in notes.of("handler_started")] == [1, 2]
    assert outcomes(notes) == [("Do", 1, Outcome.OK)] * 2
    assert all(0 <= told["duration_s"] < 20 for told in notes.of("handler_finished"))
    assert [(told["command"].step, told["reply"].type) for told in notes.of("answer_sent")] == [
        (1, "Do_ok"),
        (2, "Do_ok"),
    ]


def test_a_handler_that_rejects_and_what_undoes_it_are_told_of(scene: Scene, notes: Notes) -> None:
    scene.begin("s1", do(1), do("fail"))
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert outcomes(notes) == [("Do", 1, Outcome.OK), ("Do", 1, Outcome.REJECTED), ("Undo", 1, Outcome.OK)]
    assert [told["error"] for told in notes.of("handler_finished")] == [None] * 3
    assert [told["command"].compensating for told in notes.of("command_delivered")] == [False, False, True]


def test_every_call_of_a_handler_that_raises_is_told_of_with_its_error(scene: Scene, notes: Notes) -> None:
    errors = [ValueError("no"), redis.ConnectionError("gone"), RuntimeError("again")]
    left = list(errors)

    def handle(params: Any, context: Context) -> float:
        if left:
            raise left.pop(0)
        return math.nan

    serve(scene, handle, notes)
    scene.begin("s1", do(1, attempts=1))
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert outcomes(notes) == [
        ("Do", 1, Outcome.RAISED),
        ("Do", 2, Outcome.AWAY),
        ("Do", 3, Outcome.RAISED),
        ("Do", 4, Outcome.RAISED),
    ]
    told = [one["error"] for one in notes.of("handler_finished")]
    assert told[:3] == errors
    assert type(told[3]).__name__ == "MalformedMessage"
    assert [one["reply"].unknown for one in notes.of("answer_sent")] == [True]


#: What an observer sets before a handler is called.
SPAN: contextvars.ContextVar[str] = contextvars.ContextVar("span", default="none")


class Spans(Observer):
    """As tracing does it: the handler runs below its own span."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, str]] = []

    def handler_started(self, *, command: Any, **_: object) -> None:
        SPAN.set(f"{command.saga_id}/{command.step}")

    def handler_finished(self, *, command: Any, **_: object) -> None:
        self.finished.append((f"{command.saga_id}/{command.step}", SPAN.get()))


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_sees_what_the_observer_has_set_for_its_call(scene: Scene, is_async: bool) -> None:
    seen: list[tuple[str, str]] = []

    def handle(params: Any, context: Context) -> None:
        seen.append((f"{context.saga_id}/{context.step}", SPAN.get()))

    async def handle_async(params: Any, context: Context) -> None:
        await asyncio.sleep(0.01)  # others come in between
        handle(params, context)

    serve(scene, handle_async if is_async else handle, spans := Spans(), concurrency=8)
    for number in range(8):
        scene.begin(f"s{number}", do(1), do(2))
    for number in range(8):
        scene.play(f"s{number}")
    assert len(seen) == len(spans.finished) == 16
    assert all(mine == set_for for mine, set_for in (*seen, *spans.finished))


def test_what_a_process_that_stops_does_not_begin_is_released(scene: Scene, notes: Notes) -> None:
    begun = threading.Event()

    def handle(params: Any, context: Context) -> None:
        begun.set()
        until(scene.stop.is_set, what="the process is to stop")

    serve(scene, handle, notes)
    for number in range(3):
        scene.begin(f"s{number}", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 3)
    scene.runner._prefetch._command_s = 0.001  # so that it reads all of them at once
    thread = threading.Thread(target=scene.runner.run)
    thread.start()
    assert begun.wait(60)
    until(lambda: len(notes.of("command_delivered")) == 3, what="all are delivered")
    scene.stop.set()
    thread.join(60)
    assert sorted(told["command"].saga_id for told in notes.of("command_released")) == ["s1", "s2"]
    assert notes.points[-1] == "process_stopped"
    assert notes.of("process_started") == [{"kind": "service", "name": scene.runner.name}]
    assert notes.of("process_stopped") == [{"kind": "service", "name": scene.runner.name, "error": None}]


def test_a_command_that_is_none_is_quarantined_and_told_of_then(scene: Scene, notes: Notes) -> None:
    entry_id: Any = scene.redis.xadd(ONLY.commands("work"), {"body": "garbage"})
    scene.runner.turn(block_ms=1)
    scene.runner.turn(block_ms=1)
    (told,) = notes.of("entry_quarantined")
    assert (told["stream"], told["entry_id"]) == (ONLY.commands("work"), entry_id.decode())
    found: Any = scene.redis.xrange(ONLY.quarantine_of("work"))
    ((_, fields),) = found
    assert fields[b"reason"].decode() == told["reason"]


def test_the_bridge_is_told_of_from_its_start_to_its_end(server: Server, notes: Notes) -> None:
    read, write = os.pipe()
    os.close(write)  # it has nothing to report
    assert StdinBridge(server.broker(), observer=notes).run(read) == 0
    os.close(read)
    about = {"kind": "bridge", "name": "sagastream bridge"}
    assert notes.told == [("process_started", about), ("process_stopped", about | {"error": None})]


# --- a worker


def test_each_move_is_told_of_with_the_saga_before_and_after(scene: Scene, notes: Notes) -> None:
    scene.begin("s1", do(1))
    scene.play("s1")
    begun, completed = notes.of("saga_moved")
    assert begun["before"] is None
    assert begun["after"] == completed["before"]
    assert completed["after"] == scene.client.get("s1")
    assert [told["saga"] for told in notes.of("saga_ended")] == [completed["after"]]
    turns = [told for told in notes.of("turn_committed") if told["sagas"]]
    assert [(told["sagas"], told["messages"], told["commands"]) for told in turns] == [(1, 1, 1), (1, 1, 0)]
    assert all(0 < told["duration_s"] < 20 for told in turns)


def test_a_park_is_told_of_with_its_reason(scene: Scene, notes: Notes, caplog: pytest.LogCaptureFixture) -> None:
    def handle(params: Any, context: Context) -> None:
        raise ValueError("no")

    serve(scene, handle, notes)
    scene.begin("s1", do(1, kind="pivot", attempts=1))
    state = scene.play("s1")
    assert state.parked is not None
    assert [told["saga"] for told in notes.of("saga_parked")] == [state]
    (line,) = [record for record in caplog.records if record.name == "sagastream.worker"]
    assert line.getMessage() == f"saga s1 is parked at work: {state.parked}; see sagastream show s1"
    assert notes.of("saga_ended") == []


def test_a_lost_comparison_is_told_of(scene: Scene, notes: Notes) -> None:
    other = scene.another_worker()
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.client.get("s1") is not None)
    scene.runner.turn(block_ms=1)
    scene.runner.turn(block_ms=1)
    # The worker has cached the saga as it left it; meanwhile another worker changes it.
    scene.redis.xadd(ONLY.interventions, {"body": '{"type":"saga_cancel","saga_id":"s1","reason":"no"}'})
    assert other._inbox.read(1, lambda _: {ONLY.interventions: 1})
    other._inbox.recover()
    scene.turns_until(lambda: bool(scene.redis.hget(ONLY.saga("s1"), "cancelling")), other)
    assert scene.play("s1").status is SagaStatus.ABORTED
    assert {told["saga_id"] for told in notes.of("comparison_lost")} == {"s1"}


def test_what_a_worker_sets_aside_and_what_holds_it_up_are_told_of(scene: Scene, notes: Notes) -> None:
    entry_id: Any = scene.redis.xadd(ONLY.replies("work"), {"body": '{"type":"Do_ok","saga_id":"nobody","step":1}'})
    scene.redis.set(ONLY.commands("void"), "in the way")
    scene.begin("s1", do(1, service="void"))
    scene.turns_until(lambda: bool(notes.of("stream_stuck")))
    assert notes.of("stream_stuck") == [{"stream": ONLY.commands("void")}]
    scene.turns_until(lambda: bool(notes.of("entry_quarantined")))
    assert notes.of("entry_quarantined") == [
        {"stream": ONLY.replies("work"), "entry_id": entry_id.decode(), "reason": "there is no saga nobody"}
    ]


def test_an_observer_that_raises_at_every_point_harms_no_saga(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Observer):
        def __getattribute__(self, name: str) -> Any:
            if name in POINTS:
                raise ValueError(name)
            return super().__getattribute__(name)

    scene.worker = Orchestrator(scene.broker, scene.stop, observer=Broken())
    serve(scene, lambda params, context: None, Broken())
    scene.begin("s1", do(1), do(2))
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert [record.name for record in caplog.records] == ["sagastream.telemetry"] * 2

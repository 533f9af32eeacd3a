"""What a commit tells the log and an observer, and which traces an observer has."""

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.core.commands import Command
from sagastream.core.decision import Event
from sagastream.core.messages import Begin, Due
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition
from sagastream.core.transitions import Decision
from sagastream.errors import CorruptSaga
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.report import TurnReport
from sagastream.telemetry import Observer, Observers
from support.observers import Notes
from support.stores import ONLY
from support.values import TRACEPARENT

Told = list[tuple[str, dict[str, Any]]]


def a_saga(status: SagaStatus = SagaStatus.PENDING, *, parked: str | None = None, version: int = 1) -> SagaState:
    definition = StepDefinition(transaction="Do", service="work", params=b"1")
    step = Step(definition=definition, phase=Phase.PARKED if parked else Phase.WAITING, parked=parked)
    return SagaState(
        saga_id="s1",
        status=status,
        current_step=1,
        steps=(step,),
        begun_ms=1,
        updated_ms=2,
        version=version,
    )


def a_change(before: Any, after: Any, **more: Any) -> Change:
    return Change(partition=ONLY, saga_id="s1", before=before, after=after, **more)


def an_entry(number: int = 1) -> Entry:
    return Entry(stream=ONLY.replies("work"), id=b"%d-0" % number, fields={})


def a_command(service: str = "work") -> Command:
    return Command(service=service, type="Do", saga_id="s1", step=1, params=b"1", begun_ms=1)


def told(*changes: Change, lost: Any = (), stuck: Any = ()) -> Told:
    notes = Notes()
    report = TurnReport("worker 1", notes)
    report.committed([*changes, *lost, *stuck], lost=lost, stuck=stuck, messages=3, duration_s=0.5)
    return notes.told


def moves(before: Any, after: Any) -> list[str]:
    """What is reported about a change besides the turn."""
    first, *others = told(a_change(before, after))
    assert first[0] == "turn_committed"
    return [point for point, _ in others]


# --- the observer


def test_a_turn_is_told_of_with_its_counts() -> None:
    moved = a_change(a_saga(), a_saga(), commands=[a_command(), a_command()])
    stays = a_saga()
    (turn, *_) = told(moved, a_change(stays, stays, entries=[an_entry()]))
    counts = {"sagas": 1, "messages": 3, "commands": 2, "duration_s": 0.5}
    assert turn == ("turn_committed", counts | {"moves": [(moved.before, moved.written)]})


def test_a_saga_that_moves_is_told_of_as_it_stands_in_the_store() -> None:
    before, after = a_saga(version=4), a_saga(version=4)
    (_, (point, arguments)) = told(a_change(before, after))
    assert point == "saga_moved"
    assert arguments["before"] is before
    assert arguments["after"].version == 5


def test_a_saga_begins_without_one_before() -> None:
    (_, (point, arguments)) = told(a_change(None, a_saga()))
    assert (point, arguments["before"]) == ("saga_moved", None)


class Tracer(Observer):
    """Has this trace for each saga."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        self.asked: list[Begin] = []

    def trace_for(self, *, request: Begin) -> Any:
        self.asked.append(request)
        return self.trace


def traces(observer: Observer | None, *events: Event, there: SagaState | None = None) -> list[str | None]:
    """Within which trace each of these sagas is begun."""
    given = TurnReport("worker 1", observer).with_traces([(None, event) for event in events], {"s1": there})
    assert [replace(found, traceparent=None) for _, found in given if isinstance(found, Begin)] == [
        replace(event, traceparent=None) for event in events if isinstance(event, Begin)
    ]
    return [found.traceparent for _, found in given if isinstance(found, Begin)]


def test_a_saga_that_begins_within_no_trace_gets_the_one_that_the_observer_has() -> None:
    begin = Begin(saga_id="s1", steps=())
    tracer = Tracer(TRACEPARENT)
    assert traces(tracer, begin, Due(saga_id="s1")) == [TRACEPARENT]
    assert tracer.asked == [begin]
    assert traces(tracer, replace(begin, traceparent=TRACEPARENT.replace("b", "a"))) == [TRACEPARENT.replace("b", "a")]
    assert traces(tracer, begin, there=a_saga()) == [None]  # it has begun
    assert tracer.asked == [begin]
    assert traces(None, begin) == traces(Observer(), begin) == [None]


@pytest.mark.parametrize("wrong", ["", "00", "\ud800", 7, b"00", TRACEPARENT.upper()])
def test_what_an_observer_says_is_no_trace_if_it_is_not_written_as_one(wrong: Any) -> None:
    assert traces(Tracer(wrong), Begin(saga_id="s1", steps=())) == [None]


def test_the_first_observer_that_has_a_trace_counts() -> None:
    several = Observers(Tracer(None), Tracer(TRACEPARENT), Tracer("later"), Notes())
    assert traces(several, Begin(saga_id="s1", steps=())) == [TRACEPARENT]


@pytest.mark.parametrize("status", [SagaStatus.COMPLETED, SagaStatus.ABORTED])
def test_an_end_is_told_of_once(status: SagaStatus) -> None:
    assert moves(a_saga(), a_saga(status)) == ["saga_moved", "saga_ended"]
    assert moves(a_saga(status), a_saga(status)) == ["saga_moved"]
    assert moves(None, a_saga(status)) == ["saga_moved", "saga_ended"]


def test_a_park_is_told_of_once_and_again_for_another_reason() -> None:
    assert moves(a_saga(), a_saga(parked="closed")) == ["saga_moved", "saga_parked"]
    assert moves(a_saga(parked="closed"), a_saga(parked="closed")) == ["saga_moved"]
    assert moves(a_saga(parked="closed"), a_saga(parked="full")) == ["saga_moved", "saga_parked"]
    assert moves(a_saga(parked="closed"), a_saga()) == ["saga_moved"]


def test_what_stays_or_cannot_be_read_has_not_moved() -> None:
    same, damaged = a_saga(), CorruptSaga("damaged")
    assert moves(same, same) == []
    assert moves(damaged, damaged) == []


def test_what_was_not_written_is_no_move() -> None:
    lost, stuck = a_change(a_saga(), a_saga()), a_change(a_saga(), a_saga(), commands=[a_command("void")])
    assert told(lost=[lost], stuck=[stuck]) == [
        ("turn_committed", {"sagas": 0, "messages": 3, "commands": 0, "duration_s": 0.5, "moves": []}),
        ("comparison_lost", {"saga_id": "s1"}),
        ("stream_stuck", {"stream": ONLY.commands("void")}),
    ]


def test_each_quarantined_entry_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    same = a_saga()
    found = [(an_entry(number), f"reason {number}") for number in (1, 2)]
    assert told(a_change(same, same, quarantined=found))[1:] == [
        ("entry_quarantined", {"stream": ONLY.replies("work"), "entry_id": f"{n}-0", "reason": f"reason {n}"})
        for n in (1, 2)
    ]
    (record,) = caplog.records
    assert record.getMessage() == f"quarantined the entry 1-0 of {ONLY.replies('work')}: reason 1, and 1 more"
    assert (record.name, record.levelno, record.__dict__["saga_id"]) == ("sagastream.worker", logging.WARNING, "s1")


# --- the log


def test_a_stream_is_told_of_once_a_minute(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    monkeypatch.setattr("sagastream.orchestrator.report.time.monotonic", lambda: now[0])
    notes = Notes()
    report = TurnReport("worker 1", notes)
    for after_s in (0.0, 59.0, 2.0):
        now[0] += after_s
        stuck = [a_change(None, a_saga(), commands=[a_command("void")])]
        report.committed(stuck, lost=[], stuck=stuck, messages=1, duration_s=0.1)
    assert notes.points.count("stream_stuck") == 2
    assert [(record.levelno, record.__dict__["stream"]) for record in caplog.records] == [
        (logging.ERROR, ONLY.commands("void"))
    ] * 2


def test_a_saga_whose_hash_is_gone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    report = TurnReport("worker 1", None)
    report.committed([a_change(None, None, is_gone=True)], lost=[], stuck=[], messages=1, duration_s=0.1)
    assert caplog.messages == ["saga s1 was due, and is gone: somebody has deleted its hash"]


def test_a_saga_that_was_woken_and_stays_held_is_not_told_as_gone(caplog: pytest.LogCaptureFixture) -> None:
    report = TurnReport("worker 1", None)
    report.committed([a_change(a_saga(), a_saga(), rearm=True)], lost=[], stuck=[], messages=1, duration_s=0.1)
    assert caplog.messages == []


def test_without_an_observer_nothing_is_made_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Change, "written", None)
    report = TurnReport("worker 1", None)
    report.committed([a_change(a_saga(), a_saga())], lost=[], stuck=[], messages=1, duration_s=0.1)


def test_a_saga_on_which_nothing_could_be_decided_is_reported_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    saga = a_saga()
    change = a_change(saga, saga)
    change.add(None, Decision(state=saga, quarantine="a fault in sagastream: no such phase"))
    assert not change.is_empty
    report = TurnReport("worker 1", None)
    for _ in range(2):
        report.committed([change], lost=(), stuck=(), messages=1, duration_s=0.5)
    assert caplog.messages == ["saga s1 was due, and stands still: a fault in sagastream: no such phase"]

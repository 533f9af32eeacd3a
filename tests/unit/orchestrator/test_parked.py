"""What a worker tells the log of the sagas that it parks."""

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream.core.notices import Notice
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition
from sagastream.core.transitions import parked_notice
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.parked import ParkedReport
from sagastream.telemetry import Log
from support.stores import ONLY

CHARGE = StepDefinition(transaction="Charge", service="till", compensation="Refund", params=b"1")
WHY = "Refund of step 1 failed 2 times: card is closed"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sagastream.orchestrator.parked.time.monotonic", lambda: clock.now_s)
    return clock


@pytest.fixture
def report(clock: Clock) -> ParkedReport:
    return ParkedReport(Log("worker", "worker 1"))


def a_step(phase: Phase = Phase.UNDO_OUT, parked: str | None = None) -> Step:
    return Step(definition=CHARGE, phase=phase, attempt=1, compensation="Refund", compensation_attempt=2, parked=parked)


def a_saga(*steps: Step, saga_id: str = "s1") -> SagaState:
    return SagaState(
        saga_id=saga_id, status=SagaStatus.COMPENSATING, current_step=1, steps=steps, begun_ms=1, updated_ms=2
    )


def parks(saga_id: str = "s1", why: str = WHY) -> Change:
    return moves(a_saga(a_step(), saga_id=saga_id), a_saga(a_step(Phase.UNDO_PARKED, why), saga_id=saga_id))


def moves(before: SagaState | None, after: SagaState, *notices: Notice) -> Change:
    told = [parked_notice(after, after.parked)] if after.parked is not None else []
    change = Change(partition=ONLY, saga_id=after.saga_id, before=before, after=after)
    return replace(change, notices=[*told, *notices])


def test_a_saga_that_is_parked_has_a_line_with_all_that_a_person_needs(
    report: ParkedReport, caplog: pytest.LogCaptureFixture
) -> None:
    report.committed([parks()])
    (record,) = caplog.records
    assert record.getMessage() == (
        "saga s1 is parked at till: Refund of step 1 failed 2 times: card is closed; see sagastream show s1"
    )
    assert (record.name, record.levelno) == ("sagastream.worker", logging.WARNING)
    fields: dict[str, Any] = {"saga_id": "s1", "service": "till", "step": 1, "attempt": 2, "compensating": True}
    assert {name: record.__dict__[name] for name in fields} == fields


def test_what_was_parked_before_or_only_moves_has_no_line(
    report: ParkedReport, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = a_step(Phase.UNDO_PARKED, WHY), a_step(Phase.UNDO_PARKED, "Refund of step 2 failed: glued")
    report.committed([moves(None, a_saga(a_step())), moves(a_saga(first), replace(a_saga(first), duplicates=1))])
    assert caplog.messages == []
    report.committed([moves(a_saga(first, a_step()), a_saga(first, second))])
    assert caplog.messages == [f"saga s1 is parked at till: {second.parked}; see sagastream show s1"]


def test_a_long_reason_is_cut_off(report: ParkedReport, caplog: pytest.LogCaptureFixture) -> None:
    report.committed([parks(why="x" * 600)])
    assert caplog.messages == [f"saga s1 is parked at till: {'x' * 300}…; see sagastream show s1"]


def test_a_flood_of_parked_sagas_is_counted(
    report: ParkedReport, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(13):
        report.committed([parks(f"s{number}")])
    report.look()
    assert [text.split()[1] for text in caplog.messages] == [f"s{number}" for number in range(10)]

    clock.now_s += 60
    report.look()
    report.look()
    assert caplog.messages[10:] == ["3 more sagas were parked: 3 at till/Refund; see sagastream list --status parked"]

    report.committed([parks("later")])
    assert caplog.messages[11].startswith("saga later is parked")


def test_at_the_end_the_rest_is_told_at_once(report: ParkedReport, caplog: pytest.LogCaptureFixture) -> None:
    report.committed([parks(f"s{number}") for number in range(11)])
    report.tell_rest()
    report.tell_rest()
    assert caplog.messages[10:] == ["1 more saga was parked: 1 at till/Refund; see sagastream list --status parked"]

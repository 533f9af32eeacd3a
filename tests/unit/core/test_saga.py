"""A saga as it stands, in words and as the protocol shows it."""

from typing import Any

import pytest
from msgspec.structs import replace

from sagastream import Context, Reject, Service
from sagastream.core.saga import (
    MAX_INTERVENTIONS,
    Intervention,
    SagaState,
    SagaStatus,
    Step,
    StepStatus,
    protocol_view,
)
from sagastream.core.steps import StepDefinition, StepKind
from sagastream.testing import Sagas


def a_step(
    name: str,
    status: StepStatus = StepStatus.PENDING,
    *,
    kind: StepKind = StepKind.COMPENSATABLE,
    attempts: int = 3,
    compensation_attempts: int = 10,
    **members: Any,
) -> Step:
    definition = StepDefinition(
        transaction=name,
        service=f"{name}-service",
        params=b'{"n":18446744073709551615}',
        kind=kind,
        attempts=attempts,
        compensation_attempts=compensation_attempts,
    )
    return Step(definition=definition, status=status, **members)


def a_saga(*steps: Step, status: SagaStatus = SagaStatus.PENDING, current_step: int = 1, **members: Any) -> SagaState:
    return SagaState(
        saga_id="saga42", status=status, current_step=current_step, steps=steps, begun_ms=1, updated_ms=2, **members
    )


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        (SagaStatus.PENDING, False),
        (SagaStatus.COMPENSATING, False),
        (SagaStatus.COMPLETED, True),
        (SagaStatus.ABORTED, True),
    ],
)
def test_completed_and_aborted_sagas_have_ended_and_no_others(status: SagaStatus, ended: bool) -> None:
    assert a_saga(a_step("A"), status=status).ended is ended


def test_the_current_step_counts_from_1() -> None:
    first, second = a_step("A"), a_step("B")
    assert a_saga(first, second, current_step=1).step is first
    assert a_saga(first, second, current_step=2).step is second


@pytest.mark.parametrize(
    ("status", "unknown", "has"),
    [
        (StepStatus.PENDING, False, False),
        (StepStatus.COMPLETED, False, True),
        (StepStatus.FAILED, False, False),
        (StepStatus.FAILED, True, True),
        (StepStatus.COMPENSATED, False, False),
        (StepStatus.COMPENSATED, True, False),
    ],
)
def test_a_step_may_have_an_effect_when_it_completed_or_nobody_knows(
    status: StepStatus, unknown: bool, has: bool
) -> None:
    assert a_step("A", status, unknown=unknown).may_have_effect is has


@pytest.mark.parametrize("status", StepStatus)
def test_a_step_that_was_skipped_has_no_effect_that_anybody_would_undo(status: StepStatus) -> None:
    assert not a_step("A", status, unknown=True, skipped=True).may_have_effect


@pytest.mark.parametrize("status", [StepStatus.FAILED, StepStatus.COMPENSATED])
def test_a_step_that_was_done_too_late_is_a_completed_one(status: StepStatus) -> None:
    assert not a_step("A", status, unknown=True).completed
    assert a_step("A", status, unknown=True, late_ms=0).completed


# --- the pivot


@pytest.mark.parametrize(
    ("pivot", "past"),
    [
        (a_step("P", kind=StepKind.PIVOT), False),
        (a_step("P", StepStatus.FAILED, kind=StepKind.PIVOT, unknown=True), False),
        (a_step("P", StepStatus.COMPENSATED, kind=StepKind.PIVOT, unknown=True), False),
        (a_step("P", StepStatus.COMPLETED, kind=StepKind.PIVOT), True),
        (a_step("P", StepStatus.FAILED, kind=StepKind.PIVOT, skipped=True), True),
        (a_step("P", StepStatus.COMPLETED), False),  # as any other step
    ],
)
def test_there_is_no_way_back_once_the_pivot_was_done_or_is_taken_for_done(pivot: Step, past: bool) -> None:
    saga = a_saga(a_step("A", StepStatus.COMPLETED), pivot, a_step("R", kind=StepKind.RETRIABLE), current_step=2)
    assert saga.past_pivot is past
    assert saga.may_be_cancelled is not past


def test_a_saga_may_be_cancelled_once_and_on_its_way_forward_alone() -> None:
    assert a_saga(a_step("A")).may_be_cancelled
    assert not a_saga(a_step("A"), cancelling="ordered twice").may_be_cancelled
    for status in (SagaStatus.COMPENSATING, SagaStatus.COMPLETED, SagaStatus.ABORTED):
        assert not a_saga(a_step("A"), status=status).may_be_cancelled


# --- time


def test_a_saga_is_due_when_the_first_of_its_times_has_come() -> None:
    assert a_saga(a_step("A"), times_out_ms=5).due_ms == 5
    assert a_saga(a_step("A"), send_again_ms=6).due_ms == 6
    assert a_saga(a_step("A"), times_out_ms=5, deadline_ms=4).due_ms == 4
    assert a_saga(a_step("A"), times_out_ms=5, deadline_ms=6).due_ms == 5
    assert a_saga(a_step("A"), send_again_ms=5, deadline_ms=4).due_ms == 4


def test_a_deadline_counts_as_long_as_the_saga_may_be_cancelled() -> None:
    pivot = a_step("P", StepStatus.COMPLETED, kind=StepKind.PIVOT)
    assert a_saga(a_step("A"), times_out_ms=5, deadline_ms=4, cancelling="x").due_ms == 5
    assert a_saga(a_step("A"), times_out_ms=5, deadline_ms=4, status=SagaStatus.COMPENSATING).due_ms == 5
    assert a_saga(pivot, a_step("R"), current_step=2, times_out_ms=5, deadline_ms=4).due_ms == 5


def test_a_saga_that_is_parked_or_has_ended_is_never_due() -> None:
    times: dict[str, Any] = {"times_out_ms": 5, "send_again_ms": 6, "deadline_ms": 7}
    for status in (SagaStatus.PENDING, SagaStatus.COMPENSATING):
        assert a_saga(a_step("A"), status=status, parked="x", **times).due_ms is None
    for status in (SagaStatus.COMPLETED, SagaStatus.ABORTED):
        assert a_saga(a_step("A"), status=status, **times).due_ms is None


@pytest.mark.parametrize("status", [SagaStatus.PENDING, SagaStatus.COMPENSATING])
def test_a_live_saga_that_waits_for_nothing_is_due_at_once(status: SagaStatus) -> None:
    assert a_saga(a_step("A"), status=status).due_ms == 0


# --- attempts


def test_the_attempts_of_a_step_are_those_of_the_command_that_the_saga_is_at() -> None:
    step = a_step(
        "A",
        StepStatus.COMPLETED,
        attempts=3,
        compensation_attempts=7,
        attempt=2,
        compensation="UndoA",
        compensation_attempt=5,
    )
    forward, back = a_saga(step), a_saga(step, status=SagaStatus.COMPENSATING)
    assert (forward.command, forward.attempt, forward.attempts) == ("A", 2, 3)
    assert (back.command, back.attempt, back.attempts) == ("UndoA", 5, 7)


def test_a_saga_that_does_not_know_what_undoes_its_step_is_at_no_attempt_of_it() -> None:
    saga = a_saga(a_step("A", StepStatus.COMPLETED, attempt=2), status=SagaStatus.COMPENSATING)
    assert (saga.command, saga.attempt) == ("A", 0)


@pytest.mark.parametrize(
    ("attempt", "before", "of_round"),
    [(0, 0, 1), (1, 0, 1), (3, 0, 3), (4, 3, 1), (6, 3, 3), (7, 6, 1), (9, 6, 3), (2, 1, 1)],
)
def test_an_operator_who_has_a_step_tried_anew_gives_it_as_many_attempts_again(
    attempt: int, before: int, of_round: int
) -> None:
    forward = a_saga(a_step("A", attempts=3, attempt=attempt, tried_before=before))
    assert (forward.attempts, forward.attempt_of_round) == (before + 3, of_round)
    undone = a_step("A", compensation_attempts=3, compensation_attempt=attempt, tried_before=before)
    back = a_saga(undone, status=SagaStatus.COMPENSATING)
    assert (back.attempts, back.attempt_of_round) == (before + 3, of_round)


def test_a_saga_keeps_its_newest_interventions() -> None:
    saga = a_saga(a_step("A"))
    for n in range(MAX_INTERVENTIONS + 1):
        saga = saga.with_intervention(Intervention(verb="retry", reason="x", at_ms=n))
    assert [done.at_ms for done in saga.interventions] == list(range(1, MAX_INTERVENTIONS + 1))


# --- what it waits for


def test_a_pending_saga_waits_for_the_transaction_of_its_current_step() -> None:
    saga = a_saga(a_step("A", StepStatus.COMPLETED), a_step("B"), current_step=2)
    assert saga.waiting_for == "B-service to answer B, step 2"


def test_a_compensating_saga_waits_for_the_compensation() -> None:
    saga = a_saga(a_step("A", StepStatus.COMPLETED, compensation="UndoA"), a_step("B"), status=SagaStatus.COMPENSATING)
    assert saga.waiting_for == "A-service to answer UndoA, step 1"


def test_a_later_attempt_is_told_with_its_number() -> None:
    assert a_saga(a_step("A", attempt=1)).waiting_for == "A-service to answer A, step 1"
    assert a_saga(a_step("A", attempt=2)).waiting_for == "A-service to answer A, step 1 (attempt 2 of 3)"
    undone = a_step("A", compensation="UndoA", compensation_attempt=4)
    saga = a_saga(undone, status=SagaStatus.COMPENSATING)
    assert saga.waiting_for == "A-service to answer UndoA, step 1 (attempt 4 of 10)"


def test_a_saga_between_two_attempts_waits_for_the_time_of_the_next_one() -> None:
    saga = a_saga(a_step("A", attempt=1), send_again_ms=5)
    assert saga.waiting_for == "the time to send A, step 1 again (attempt 2 of 3)"


def test_a_saga_that_is_to_be_cancelled_says_so() -> None:
    saga = a_saga(a_step("A", attempt=2), times_out_ms=5, cancelling="ordered twice")
    assert saga.waiting_for == "A-service to answer A, step 1 (attempt 2 of 3), to be cancelled then"


def test_a_parked_saga_waits_for_a_person() -> None:
    assert a_saga(a_step("A", attempt=2), send_again_ms=5, parked="x").waiting_for == "a person, it is parked"
    saga = a_saga(a_step("A"), status=SagaStatus.COMPENSATING, parked="nobody knows")
    assert saga.waiting_for == "a person, it is parked"


@pytest.mark.parametrize("status", [SagaStatus.COMPLETED, SagaStatus.ABORTED])
def test_an_ended_saga_waits_for_nothing(status: SagaStatus) -> None:
    assert a_saga(a_step("A"), status=status).waiting_for == "nothing, it has ended"


def test_what_a_step_returned_or_failed_with_is_told_as_a_value() -> None:
    first = a_step("A", StepStatus.COMPLETED, result=b'{"payment":18446744073709551615}')
    second = a_step("B", StepStatus.FAILED, error=b'"no money"', compensation_error=b"[1]")
    saga = a_saga(first, second, a_step("C"))
    assert saga.results == [{"payment": 18446744073709551615}, None, None]
    assert [step.error_value for step in saga.steps] == [None, "no money", None]
    assert [step.compensation_error_value for step in saga.steps] == [None, [1], None]


def test_the_test_kit_tells_the_same_results() -> None:
    service = Service("shop")

    @service.command("Sell", compensation=None)
    def sell(params: Any, context: Context) -> Any:
        if params is None:
            raise Reject("sold out")
        return params

    with Sagas(service) as sagas:
        steps = ({"transaction": "Sell", "service": "shop", "params": params} for params in ({"n": [1.5]}, None))
        saga = sagas.run(list(steps))
    assert saga.results == saga.state.results == [{"n": [1.5]}, None]


def test_the_protocols_view_has_its_members_in_order_and_no_others() -> None:
    saga = a_saga(
        a_step("A", StepStatus.COMPLETED, result=b"null"), a_step("B"), current_step=2, parked="x", reason="y"
    )
    view = protocol_view(saga)
    assert list(view) == ["saga_id", "status", "current_step", "completed_steps", "compensating_steps", "steps"]
    assert [list(step) for step in view["steps"]] == [
        ["transaction", "params", "status", "result"],
        ["transaction", "params", "status"],
    ]
    assert view["steps"][0] == {
        "transaction": "A",
        "params": {"n": 2**64 - 1},
        "status": "COMPLETED",
        "result": None,
    }


def test_the_protocols_view_is_made_of_plain_json_values() -> None:
    view = protocol_view(a_saga(a_step("A", StepStatus.COMPLETED), compensating_steps=(1,)))
    assert type(view["status"]) is str
    assert type(view["steps"][0]["status"]) is str
    assert view["compensating_steps"] == [1]


def test_a_step_that_completed_stays_a_completed_one_when_it_is_compensated() -> None:
    steps = [a_step("A", StepStatus.COMPENSATED), a_step("B", StepStatus.COMPLETED), a_step("C", StepStatus.FAILED)]
    saga = a_saga(*steps, status=SagaStatus.COMPENSATING, current_step=2, compensating_steps=(2, 1))
    assert protocol_view(saga)["completed_steps"] == [1, 2]
    assert protocol_view(saga)["compensating_steps"] == [2, 1]


def test_a_step_that_was_compensated_to_be_on_the_safe_side_never_completed() -> None:
    steps = [a_step("A", StepStatus.COMPLETED), a_step("B", StepStatus.COMPENSATED, unknown=True)]
    assert protocol_view(a_saga(*steps, status=SagaStatus.COMPENSATING))["completed_steps"] == [1]
    assert protocol_view(a_saga(replace(steps[1], status=StepStatus.FAILED)))["completed_steps"] == []


def test_a_step_that_was_skipped_never_completed() -> None:
    saga = a_saga(a_step("A", StepStatus.FAILED, skipped=True), a_step("B", StepStatus.COMPLETED))
    assert protocol_view(saga)["completed_steps"] == [2]
    assert protocol_view(saga)["steps"][0]["status"] == "FAILED"

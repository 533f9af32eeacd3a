"""A saga as it stands, in words and as the protocol shows it."""

from dataclasses import replace
from typing import Any

import pytest

from sagastream.messages import StepDefinition
from sagastream.saga import SagaState, SagaStatus, Step, StepStatus, protocol_view


def a_step(name: str, status: StepStatus = StepStatus.PENDING, **members: Any) -> Step:
    definition = StepDefinition(transaction=name, service=f"{name}-service", params=b'{"n":18446744073709551615}')
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


def test_a_pending_saga_waits_for_the_transaction_of_its_current_step() -> None:
    saga = a_saga(a_step("A", StepStatus.COMPLETED), a_step("B"), current_step=2)
    assert saga.waiting_for == "B-service to answer B, step 2"


def test_a_compensating_saga_waits_for_the_compensation() -> None:
    saga = a_saga(a_step("A", StepStatus.COMPLETED, compensation="UndoA"), a_step("B"), status=SagaStatus.COMPENSATING)
    assert saga.waiting_for == "A-service to answer UndoA, step 1"


def test_a_parked_saga_waits_for_a_person() -> None:
    saga = a_saga(a_step("A"), status=SagaStatus.COMPENSATING, parked="nobody knows")
    assert saga.waiting_for == "a person, it is parked"


@pytest.mark.parametrize("status", [SagaStatus.COMPLETED, SagaStatus.ABORTED])
def test_an_ended_saga_waits_for_nothing(status: SagaStatus) -> None:
    assert a_saga(a_step("A"), status=status).waiting_for == "nothing, it has ended"


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

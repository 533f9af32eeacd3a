"""What a saga says is done, compared with what a service says is done."""

from typing import Any

import pytest

from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition
from sagastream_bridge.inspection.reconcile import Difference, Effect, differences

DEFINITION = StepDefinition(transaction="Do", service="work", params=b"null")


def a_saga(status: SagaStatus, *phases: Phase, **members: Any) -> SagaState:
    steps = tuple(
        Step(definition=DEFINITION, phase=phase, parked="why" if phase is Phase.PARKED else None) for phase in phases
    )
    return SagaState(
        saga_id="s1", status=status, current_step=len(phases), steps=steps, begun_ms=1, updated_ms=2, **members
    )


def found(state: SagaState | None, effect: Effect, step: int = 1) -> Difference | None:
    differing = list(differences("s1", state, {step: effect}))
    assert len(differing) <= 1
    return differing[0].difference if differing else None


ENDED = (SagaStatus.COMPLETED, SagaStatus.ABORTED)
NOT_DONE = (Effect.UNDONE, Effect.REJECTED, Effect.ABSENT)


@pytest.mark.parametrize("status", ENDED)
@pytest.mark.parametrize(
    ("phase", "effect", "difference"),
    [
        (Phase.COMPLETED, Effect.DONE, None),
        *((Phase.COMPLETED, effect, Difference.MISSING) for effect in NOT_DONE),
        *((phase, Effect.DONE, Difference.STANDS) for phase in (Phase.WAITING, Phase.FAILED, Phase.COMPENSATED)),
        *(
            (phase, effect, None)
            for phase in (Phase.WAITING, Phase.FAILED, Phase.COMPENSATED)
            for effect in (*NOT_DONE, Effect.UNKNOWN)
        ),
        (Phase.COMPLETED, Effect.UNKNOWN, None),
    ],
)
def test_an_end_that_differs_from_its_effects_is_found(
    status: SagaStatus, phase: Phase, effect: Effect, difference: Difference | None
) -> None:
    assert found(a_saga(status, phase), effect) is difference


def test_a_graph_that_has_failed_undoes_what_is_done_as_soon_as_what_is_out_is_answered() -> None:
    settles = {"format": 2, "failed_step": 2, "cancelling": "Step 2 failed"}
    phases = (Phase.COMPLETED, Phase.FAILED, Phase.OUT)
    assert found(a_saga(SagaStatus.PENDING, *phases, **settles), Effect.ABSENT) is Difference.MENDS
    assert found(a_saga(SagaStatus.PENDING, *phases), Effect.ABSENT) is Difference.MISSING
    assert found(a_saga(SagaStatus.ABORTED, *phases[:2], **settles), Effect.ABSENT) is Difference.MISSING


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("phase", [Phase.SKIPPED, Phase.UNDO_SKIPPED, Phase.IN_DOUBT])
def test_what_a_person_has_decided_is_not_judged(phase: Phase, effect: Effect) -> None:
    assert found(a_saga(SagaStatus.ABORTED, phase), effect) is None


@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.OUT, Phase.BACKING_OFF, Phase.PARKED])
def test_a_live_saga_finds_an_effect_when_it_comes_to_the_step(phase: Phase) -> None:
    assert found(a_saga(SagaStatus.PENDING, phase), Effect.DONE) is Difference.MENDS


def test_a_saga_that_goes_back_or_will_does_not_come_to_a_step_that_waits() -> None:
    going_back = a_saga(SagaStatus.COMPENSATING, Phase.UNDO_OUT, Phase.WAITING)
    assert found(going_back, Effect.DONE, step=2) is Difference.STANDS
    cancelled = a_saga(SagaStatus.PENDING, Phase.OUT, Phase.WAITING, cancelling="why")
    assert found(cancelled, Effect.DONE, step=2) is Difference.STANDS


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("phase", [Phase.UNDO_OUT, Phase.UNDO_BACKING_OFF, Phase.UNDO_PARKED])
def test_a_step_that_is_being_undone_is_under_way(phase: Phase, effect: Effect) -> None:
    assert found(a_saga(SagaStatus.COMPENSATING, phase), effect) is None


@pytest.mark.parametrize("effect", NOT_DONE)
def test_an_earlier_step_whose_effect_is_missing_is_found_while_the_saga_lives(effect: Effect) -> None:
    live = a_saga(SagaStatus.PENDING, Phase.COMPLETED, Phase.OUT)
    assert found(live, effect) is Difference.MISSING
    going_back = a_saga(SagaStatus.COMPENSATING, Phase.COMPLETED, Phase.UNDO_OUT)
    assert found(going_back, effect) is Difference.MENDS


def test_an_effect_without_its_saga_is_found_and_what_has_none_is_not() -> None:
    assert found(None, Effect.DONE) is Difference.NO_SAGA
    assert [found(None, effect) for effect in (*NOT_DONE, Effect.UNKNOWN)] == [None] * 4
    assert found(a_saga(SagaStatus.COMPLETED, Phase.COMPLETED), Effect.DONE, step=2) is Difference.NO_SAGA

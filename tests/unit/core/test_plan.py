"""The order of steps: which may be sent now, and which may be undone now."""

from itertools import product

import pytest

from sagastream.core import plan
from sagastream.core.phases import ACTIVE, DONE, TO_UNDO, UNDO, Phase
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition

WAITING, OUT, COMPLETED, FAILED = Phase.WAITING, Phase.OUT, Phase.COMPLETED, Phase.FAILED
COMPENSATED, IN_DOUBT = Phase.COMPENSATED, Phase.IN_DOUBT


def chain(*phases: Phase, lasting: tuple[int, ...] = ()) -> tuple[Step, ...]:
    """Steps in these phases. The steps with the numbers `lasting` need no undo."""
    return tuple(
        Step(
            definition=StepDefinition(
                transaction="Do", service="s", params=b"1", compensation=None if number in lasting else "Undo"
            ),
            phase=phase,
        )
        for number, phase in enumerate(phases, 1)
    )


def needs_undo(step: Step) -> bool:
    return step.definition.compensation is not None


def undoable(*phases: Phase, lasting: tuple[int, ...] = ()) -> list[int]:
    return plan.undoable(chain(*phases, lasting=lasting), needs_undo)


@pytest.mark.parametrize(
    ("phases", "ready"),
    [
        ((WAITING, WAITING, WAITING), [1]),
        ((OUT, WAITING, WAITING), []),
        ((COMPLETED, WAITING, WAITING), [2]),
        ((COMPLETED, Phase.SKIPPED, WAITING), [3]),
        ((COMPLETED, Phase.BACKING_OFF, WAITING), []),
        ((COMPLETED, Phase.PARKED, WAITING), []),
        ((COMPLETED, FAILED, WAITING), []),
        ((COMPLETED, IN_DOUBT, WAITING), []),
        ((COMPLETED, COMPLETED, COMPLETED), []),
    ],
)
def test_a_step_of_a_chain_is_sent_when_the_one_before_it_is_done(phases: tuple[Phase, ...], ready: list[int]) -> None:
    assert plan.ready(chain(*phases)) == ready


def test_whatever_the_steps_are_at_none_is_sent_before_all_before_it_are_done() -> None:
    for phases in product(Phase, repeat=3):
        for number in plan.ready(chain(*phases)):
            assert phases[number - 1] is WAITING
            assert set(phases[: number - 1]) <= DONE


def test_all_is_done_when_every_step_is_done_or_skipped() -> None:
    for phases in product(Phase, repeat=2):
        assert plan.is_done(chain(*phases)) is (set(phases) <= {COMPLETED, Phase.SKIPPED})


@pytest.mark.parametrize(
    ("phases", "numbers"),
    [
        ((COMPLETED, COMPLETED, FAILED), [2]),
        ((COMPLETED, COMPLETED, IN_DOUBT), [3]),
        ((COMPLETED, Phase.UNDO_OUT, FAILED), []),
        ((COMPLETED, Phase.UNDO_PARKED, FAILED), []),
        ((COMPLETED, COMPENSATED, FAILED), [1]),
        ((COMPLETED, Phase.UNDO_SKIPPED, FAILED), [1]),
        ((COMPLETED, WAITING, WAITING), [1]),
        ((COMPENSATED, COMPENSATED, FAILED), []),
        ((FAILED, WAITING, WAITING), []),
    ],
)
def test_a_step_of_a_chain_is_undone_when_all_that_came_after_it_are(
    phases: tuple[Phase, ...], numbers: list[int]
) -> None:
    assert undoable(*phases) == numbers


def test_a_step_that_needs_no_undo_holds_nothing_up() -> None:
    assert undoable(COMPLETED, COMPLETED, FAILED, lasting=(2,)) == [1]
    assert undoable(COMPLETED, COMPLETED, lasting=(1, 2)) == []


def test_whatever_the_steps_are_at_none_is_undone_before_all_after_it_are() -> None:
    for phases in product(Phase, repeat=3):
        for number in undoable(*phases):
            assert phases[number - 1] in (COMPLETED, IN_DOUBT)
            assert not set(phases[number:]) & TO_UNDO


def test_the_undo_goes_on_until_nothing_is_left() -> None:
    for phases in product(Phase, repeat=2):
        steps = chain(*phases)
        under_way = bool(set(phases) & UNDO)
        assert plan.is_undone(steps, needs_undo) is not (under_way or bool(plan.undoable(steps, needs_undo)))


def test_the_current_step_is_the_one_that_something_is_awaited_for() -> None:
    assert plan.current(chain(COMPLETED, OUT, WAITING), 1) == 2
    assert plan.current(chain(Phase.UNDO_PARKED, COMPENSATED), 2) == 1
    assert plan.current(chain(COMPLETED, COMPLETED), 2) == 2
    for phase in Phase:
        assert plan.current(chain(COMPLETED, phase), 7) == (2 if phase in ACTIVE else 7)

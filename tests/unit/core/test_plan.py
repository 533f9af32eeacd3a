"""The order of steps: which may be sent now, and which may be undone now."""

from collections.abc import Sequence
from itertools import product

import pytest

from sagastream.core import plan
from sagastream.core.phases import ACTIVE, DONE, TO_UNDO, UNDO, Phase
from sagastream.core.step_state import Step
from sagastream.core.steps import Shape, StepDefinition

#: What each step comes after. None: the one before it.
CHAIN = (None, None, None)
DIAMOND = (None, None, (1,), (2, 3))
FAN = ((), (), (), (1, 2, 3))
TWO_BRANCHES = (None, None, (1,), (3,))  # 2 beside 3 and 4

WAITING, OUT, COMPLETED, FAILED = Phase.WAITING, Phase.OUT, Phase.COMPLETED, Phase.FAILED
COMPENSATED, IN_DOUBT = Phase.COMPENSATED, Phase.IN_DOUBT


After = Sequence[tuple[int, ...] | None]


def definition(after: tuple[int, ...] | None, *, lasts: bool = False) -> StepDefinition:
    undo = None if lasts else "Undo"
    return StepDefinition(transaction="Do", service="s", params=b"1", compensation=undo, shape=Shape(after=after))


def chain(*phases: Phase, lasting: tuple[int, ...] = (), after: After = ()) -> tuple[Step, ...]:
    """Steps in these phases. The steps with the numbers `lasting` need no undo. `after`: what each comes after."""
    return tuple(
        Step(
            definition=definition(after[number - 1] if after else None, lasts=number in lasting),
            phase=phase,
        )
        for number, phase in enumerate(phases, 1)
    )


def come_before(after: After, number: int) -> set[int]:
    """All steps that must be done before this one, directly or not: counted anew, not by the code that is tested."""
    direct = after[number - 1]
    direct = (number - 1,) * (number > 1) if direct is None else direct
    return set(direct).union(*(come_before(after, one) for one in direct))


def all_phases(after: After) -> list[tuple[Phase, ...]]:
    return list(product(Phase, repeat=len(after)))


def needs_undo(step: Step) -> bool:
    return step.definition.compensation is not None


def undoable(*phases: Phase, lasting: tuple[int, ...] = (), after: After = ()) -> list[int]:
    return plan.undoable(chain(*phases, lasting=lasting, after=after), needs_undo)


@pytest.mark.parametrize(
    ("phases", "ready"),
    [
        ((WAITING, WAITING, WAITING), [1]),
        ((OUT, WAITING, WAITING), []),
        ((COMPLETED, WAITING, WAITING), [2]),
        ((COMPLETED, Phase.SKIPPED, WAITING), [3]),
        ((COMPLETED, Phase.BYPASSED, WAITING), [3]),
        ((COMPLETED, Phase.AWAITING, WAITING), []),
        ((COMPLETED, Phase.RETRY_AWAITED, WAITING), []),
        ((COMPLETED, Phase.BACKING_OFF, WAITING), []),
        ((COMPLETED, Phase.PARKED, WAITING), []),
        ((COMPLETED, FAILED, WAITING), []),
        ((COMPLETED, IN_DOUBT, WAITING), []),
        ((COMPLETED, COMPLETED, COMPLETED), []),
    ],
)
def test_a_step_of_a_chain_is_sent_when_the_one_before_it_is_done(phases: tuple[Phase, ...], ready: list[int]) -> None:
    assert plan.ready(chain(*phases)) == ready


@pytest.mark.parametrize(
    ("after", "phases", "ready"),
    [
        (DIAMOND, (COMPLETED, WAITING, WAITING, WAITING), [2, 3]),
        (DIAMOND, (COMPLETED, OUT, WAITING, WAITING), [3]),
        (DIAMOND, (COMPLETED, COMPLETED, OUT, WAITING), []),
        (DIAMOND, (COMPLETED, COMPLETED, Phase.BYPASSED, WAITING), [4]),
        (DIAMOND, (COMPLETED, COMPLETED, Phase.PARKED, WAITING), []),
        (FAN, (WAITING, WAITING, WAITING, WAITING), [1, 2, 3]),
        (FAN, (COMPLETED, Phase.SKIPPED, Phase.BYPASSED, WAITING), [4]),
        (TWO_BRANCHES, (COMPLETED, Phase.PARKED, COMPLETED, WAITING), [4]),
    ],
)
def test_a_step_of_a_graph_is_sent_when_all_are_done_that_it_comes_after(
    after: After, phases: tuple[Phase, ...], ready: list[int]
) -> None:
    assert plan.ready(chain(*phases, after=after)) == ready


@pytest.mark.parametrize("after", [CHAIN, DIAMOND, FAN, TWO_BRANCHES])
def test_whatever_the_steps_are_at_those_are_sent_that_wait_and_have_all_before_them_done(after: After) -> None:
    before = [come_before(after, number) for number in range(1, len(after) + 1)]
    for phases in all_phases(after):
        done = {number for number, phase in enumerate(phases, 1) if phase in DONE}
        if any(not before[number - 1] <= done for number, phase in enumerate(phases, 1) if phase is not WAITING):
            continue  # no saga is so: a step has begun before those before it were done
        waiting = [number for number, phase in enumerate(phases, 1) if phase is WAITING]
        ready = [number for number in waiting if before[number - 1] <= done]
        assert plan.ready(chain(*phases, after=after)) == ready


def test_all_is_done_when_every_step_is_done_skipped_or_bypassed() -> None:
    for phases in product(Phase, repeat=2):
        assert plan.is_done(chain(*phases)) is (set(phases) <= {COMPLETED, Phase.SKIPPED, Phase.BYPASSED})


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


@pytest.mark.parametrize(
    ("phases", "lasting", "numbers"),
    [
        ((COMPLETED, COMPLETED, COMPLETED, FAILED), (), [3, 2]),
        ((COMPLETED, COMPLETED, COMPLETED, IN_DOUBT), (), [4]),
        ((COMPLETED, Phase.UNDO_OUT, COMPLETED, FAILED), (), [3]),
        ((COMPLETED, COMPENSATED, Phase.UNDO_PARKED, FAILED), (), []),
        ((COMPLETED, COMPENSATED, COMPENSATED, FAILED), (), [1]),
        ((COMPLETED, Phase.BYPASSED, FAILED, WAITING), (), [1]),
        ((COMPLETED, COMPLETED, COMPLETED, COMPLETED), (4,), [3, 2]),
        ((COMPLETED, COMPLETED, COMPLETED, Phase.UNDO_OUT), (2, 3), []),
        ((COMPLETED, COMPLETED, COMPLETED, FAILED), (2, 3), [1]),
    ],
)
def test_the_branches_of_a_diamond_are_undone_at_once_and_what_came_before_them_after_that(
    phases: tuple[Phase, ...], lasting: tuple[int, ...], numbers: list[int]
) -> None:
    assert undoable(*phases, lasting=lasting, after=DIAMOND) == numbers


@pytest.mark.parametrize("lasting", [(), (2,), (2, 3)])
@pytest.mark.parametrize("after", [CHAIN, DIAMOND, FAN, TWO_BRANCHES])
def test_whatever_the_steps_are_at_those_are_undone_after_which_nothing_is_left_to_undo(
    after: After, lasting: tuple[int, ...]
) -> None:
    numbers = range(1, len(after) + 1)
    before = [come_before(after, number) for number in numbers]
    for phases in all_phases(after):
        asked = {number for number in numbers if phases[number - 1] in TO_UNDO and number not in lasting}
        left = asked | {number for number in numbers if phases[number - 1] in UNDO}
        held = set[int]().union(*(before[number - 1] for number in left))
        undone = [number for number in reversed(numbers) if number in left - held and phases[number - 1] not in UNDO]
        assert undoable(*phases, lasting=lasting, after=after) == undone


@pytest.mark.parametrize("after", [CHAIN, DIAMOND, FAN])
def test_the_undo_goes_on_until_nothing_is_left(after: After) -> None:
    for phases in all_phases(after):
        steps = chain(*phases, after=after)
        under_way = bool(set(phases) & UNDO)
        assert plan.is_undone(steps, needs_undo) is not (under_way or bool(plan.undoable(steps, needs_undo)))


def test_the_current_step_is_the_first_that_something_is_awaited_for_and_of_those_that_are_undone_the_last() -> None:
    assert plan.current(chain(COMPLETED, WAITING, OUT, Phase.PARKED), 1) == 3
    assert plan.current(chain(COMPLETED, Phase.AWAITING, OUT, WAITING), 1) == 2
    assert plan.current(chain(Phase.UNDO_OUT, Phase.UNDO_PARKED, COMPENSATED), 1) == 2
    assert plan.current(chain(COMPLETED, OUT, WAITING), 1) == 2
    assert plan.current(chain(Phase.UNDO_PARKED, COMPENSATED), 2) == 1
    assert plan.current(chain(COMPLETED, COMPLETED), 2) == 2
    for phase in Phase:
        assert plan.current(chain(COMPLETED, phase), 7) == (2 if phase in ACTIVE else 7)


@pytest.mark.parametrize("phase", sorted(UNDO))
def test_what_is_being_undone_is_left_to_undo_whatever_its_service_says_meanwhile(phase: Phase) -> None:
    assert undoable(COMPLETED, phase, COMPENSATED, lasting=(2,), after=((), (1,), (1,))) == []
    assert not plan.is_undone(chain(COMPENSATED, phase, lasting=(2,)), needs_undo)

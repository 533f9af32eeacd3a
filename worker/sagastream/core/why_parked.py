"""Why a saga waits that is parked at a step: for a person, and what each verb would do. Pure.

why.py says the rest.
"""

from sagastream.core.back import told_to_undo
from sagastream.core.causes import Cause, CauseKind
from sagastream.core.forward import can_begin
from sagastream.core.input_use import needed_results
from sagastream.core.phases import Phase
from sagastream.core.plan import is_done
from sagastream.core.saga import SagaState
from sagastream.core.steps import PLAIN
from sagastream.core.transitions import put
from sagastream.core.why_waits import at_most
from sagastream.errors import CannotBuild


def parked(state: SagaState, number: int) -> Cause:
    """That a step is parked, and what a person can do about it."""
    return Cause(kind=CauseKind.PARKED, text=str(state.steps[number - 1].parked), do=tuple(_verbs(state, number)))


def _verbs(state: SagaState, number: int) -> list[str]:
    """What each verb would do about a saga that is parked at this step."""
    step = state.steps[number - 1]
    if step.being_undone:
        again = f"send {step.command} again" if step.compensation else "look again for what undoes it"
        times = f", {at_most(step.definition.compensation_attempts)}"
        skip = f"go on as if step {state.told(number)} were undone"
    else:
        again, times = f"send {step.command} again", f", {at_most(step.definition.attempts)}"
        if not step.definition.shape.sends:
            again, times = f"wait for {step.command} again", ""
        elif step.attempt == 0:
            again, times = "try again to begin it", ""
        skip = f"{_then(state, number)} as if step {state.told(number)} were done{_without(state, number)}"
    stays = [at for at, one in enumerate(state.steps, 1) if one.would_stay]
    left = f"; what these steps did stays: {', '.join(map(str, stays))}" if stays else ""
    out = [at for at, one in enumerate(state.steps, 1) if one.in_flight]
    if out:
        left += f"; these may be done all the same: {', '.join(map(str, out))}"
    meanings = {
        "retry": again + times,
        "skip": skip,
        "abandon": f"end ABORTED as it is{left}",
    }
    if not _may_help(state, number):
        # It is looked for in the input and in results, and those are as they are.
        del meanings["retry"]
        meanings["skip"] += "; a retry would not help, since what it asks for stays missing"
    if state.may_be_cancelled:
        meanings["cancel"] = f"go back as if step {state.told(number)} were not done"
    ask = f"--reason TEXT --parked-at {state.parked_place(number)}"
    options = dict.fromkeys(meanings, "")
    if len(state.parked_steps) > 1:
        options |= dict.fromkeys(("retry", "skip", "abandon"), f" --step {state.name_of(number)}")
    if out:
        options["abandon"] += " --now"
    saga = state.saga_id
    return [f"sagastream {verb} {saga}{options[verb]} {ask}  # {meaning}" for verb, meaning in meanings.items()]


def _then(state: SagaState, number: int) -> str:
    """What a saga does if an operator skips this step."""
    if state.format == PLAIN:
        return "end COMPLETED" if number == len(state.steps) else f"go on with step {number + 1}"
    if is_done(put(state.steps, number, state.steps[number - 1].moved("skipped"))):
        return "end COMPLETED"
    return "go on"


def _may_help(state: SagaState, number: int) -> bool:
    """Whether a retry may do more than park the step again. It may not if what could not be built still cannot."""
    step = state.steps[number - 1]
    if not step.being_undone:
        return step.attempt > 0 or can_begin(state, number)
    try:
        told_to_undo(state, number)
    except CannotBuild:
        return False
    return True


def _without(state: SagaState, number: int) -> str:
    """Which steps could not begin without the result of this one."""
    names = [
        state.told(at)
        for at, step in enumerate(state.steps, 1)
        if step.phase is Phase.WAITING and number in map(state.number_of, needed_results(step.definition))
    ]
    return f"; then these cannot begin, since they ask for its result: {', '.join(names)}" if names else ""

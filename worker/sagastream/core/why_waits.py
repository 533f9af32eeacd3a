"""Why a saga waits while no command is out: for its start, a signal, the end of a pause. Pure.

why.py says the rest.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from sagastream.core.back import quote
from sagastream.core.causes import Cause, CauseKind
from sagastream.core.durations import spoken
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import StepKind
from sagastream.core.why_out import due_of, late


def not_started(state: SagaState, now_ms: int) -> Cause:
    """That the saga was to begin later."""
    starts_ms = state.start_ms or 0
    text = f"it was to begin later: in {spoken(starts_ms - now_ms)}"
    kind = CauseKind.NOT_STARTED
    return late(state.due_ms, now_ms, text) or Cause(kind=kind, text=text, facts={"start_ms": starts_ms})


def settles(state: SagaState, out: Sequence[int]) -> Cause:
    """That the saga goes back as soon as what is out is answered. `out`: the numbers of those steps."""
    names = ", ".join(state.name_of(number) for number in out)
    text = f"it goes back as soon as what is out is answered or times out: {'steps' if len(out) > 1 else 'step'} "
    text += f"{names}. Nothing more is sent until then"
    do = f"sagastream cancel {state.saga_id} --now --reason TEXT  # goes back at once, and undoes what may be done"
    return Cause(kind=CauseKind.SETTLES, text=text, do=(do,) if state.may_be_cancelled_now else ())


def awaits(state: SagaState, number: int, now_ms: int) -> Cause:
    """What a step waits for that has no command out: a signal, or a time."""
    step = state.steps[number - 1]
    due_ms = due_of(state, step)
    left = spoken((due_ms or now_ms) - now_ms)
    if step.phase is Phase.RETRY_AWAITED:
        cause = _awaits_retry(state, step, left)
    elif step.definition.shape.wait is not None:
        cause = _awaits_signal(state, number, left)
    else:
        cause = Cause(kind=CauseKind.PAUSES, text=f"it pauses for {left} more")
    told = late(due_ms, now_ms, cause.text)
    return told or replace(cause, facts={**cause.facts, "until_ms": due_ms})


def _awaits_signal(state: SagaState, number: int, left: str) -> Cause:
    shape, saga_id = state.steps[number - 1].definition.shape, state.saga_id
    failed = _if_failed(state, number)
    otherwise = "it goes on without" if shape.goes_on else failed
    text = f"it waits for the signal {shape.wait}; if none comes within {left}, {otherwise}"
    goes_on = f"goes on, with that as the result of step {state.told(number)}"
    do = (
        f"sagastream signal {saga_id} {shape.wait} --payload JSON  # {goes_on}",
        f"sagastream signal {saga_id} {shape.wait} --decline TEXT  # {failed}",
    )
    return Cause(kind=CauseKind.AWAITS_SIGNAL, text=text, do=do, facts={"signal": shape.wait})


def _awaits_retry(state: SagaState, step: Step, left: str) -> Cause:
    signal, saga_id = step.definition.shape.retry_on, state.saga_id
    text = f"{step.command} failed: {quote(step.error)}; it is sent again when the signal {signal} comes; "
    text += f"if none comes within {left}, it has failed for good"
    do = (
        f"sagastream signal {saga_id} {signal}  # sends it again, {at_most(step.definition.attempts)}",
        f"sagastream signal {saga_id} {signal} --decline TEXT  # it has failed for good",
    )
    return Cause(kind=CauseKind.AWAITS_RETRY, text=text, do=do, facts={"signal": signal})


def at_most(attempts: int) -> str:
    """How often a command is sent at most."""
    return "once" if attempts == 1 else f"at most {attempts} times"


def _if_failed(state: SagaState, number: int) -> str:
    is_behind_pivot = state.steps[number - 1].definition.kind is StepKind.RETRIABLE
    return (
        f"step {state.told(number)} is parked"
        if is_behind_pivot
        else f"step {state.told(number)} fails, and the saga goes back"
    )

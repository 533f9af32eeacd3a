"""Why a saga waits while no command is out: for its start, a signal, a time, or what is paused. Pure.

why.py says the rest.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from sagastream.core.back import quote
from sagastream.core.causes import Cause, CauseKind, Evidence
from sagastream.core.durations import spoken
from sagastream.core.pauses import Pause, pauses_of
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import StepKind
from sagastream.core.why_out import due_of, late
from sagastream.core.why_service import nobody_has


def not_started(state: SagaState, now_ms: int) -> Cause:
    """That the saga was to begin later."""
    starts_ms = state.start_ms or 0
    text = f"it begins in {spoken(max(starts_ms - now_ms, 0))}, as was asked for"
    cause = Cause(kind=CauseKind.NOT_STARTED, text=text, facts={"start_ms": starts_ms})
    return late(state.due_ms, now_ms, "its time to begin has come") or cause


def settles(state: SagaState, out: Sequence[int]) -> Cause:
    """That the saga goes back as soon as what is out is answered. `out`: the numbers of those steps."""
    names = ", ".join(state.name_of(number) for number in out)
    text = f"it goes back as soon as what is out is answered or times out: {'steps' if len(out) > 1 else 'step'} "
    text += f"{names}. Nothing more is sent until then"
    do = f"sagastream cancel {state.saga_id} --now --reason TEXT  # goes back at once, and undoes what may be done"
    return Cause(kind=CauseKind.SETTLES, text=text, do=(do,) if state.may_be_cancelled_now else ())


def paused(state: SagaState, number: int, evidence: Evidence) -> Cause | None:
    """If the next command of a step waits since it is paused: that. None: it does not."""
    step = state.steps[number - 1]
    found = pauses_of(step.definition.service, step.command, evidence.pauses)
    if not found:
        # It was resumed a moment ago.
        text = f"{step.command} was held, and is no longer paused: a worker sends it within some seconds"
        return Cause(kind=CauseKind.PAUSED, text=text) if step.is_held else None
    told = " and ".join(pause_told(one, evidence.now_ms) for one in found)
    text = f"{told}; {step.command} is sent once {'all of that is' if len(found) > 1 else 'it is'} resumed"
    if state.deadline_counts and (deadline_ms := state.deadline_now_ms) is not None:
        text += f"; its deadline comes in {spoken(max(deadline_ms - evidence.now_ms, 0))}"
    sends = "has it sent, and all else that is held"
    if len(found) > 1:
        sends = "it is sent once each of these lines was entered: both are needed"
    do = tuple(f"sagastream resume {one.words} --reason TEXT  # {sends}" for one in found)
    facts = {"paused": [one.name for one in found], "since_ms": found[0].since_ms, "actor": found[0].actor}
    return Cause(kind=CauseKind.PAUSED, text=text, do=do, facts=facts | {"reason": found[0].reason})


def pause_told(one: Pause, now_ms: int) -> str:
    """Who paused what, since when and why."""
    since = f" for {spoken(max(now_ms - one.since_ms, 0))}" if one.since_ms else ""
    by = f" by {one.actor}" if one.actor else ""
    why = f": {one.reason}" if one.reason else ""
    return f"{one.told} has been paused{since}{by}{why}"


def pauses_nothing(one: Pause, evidence: Evidence) -> str:
    """If what is paused is nothing that any service has, as far as is known: that; otherwise nothing. `evidence`: about
    that service."""
    return nobody_has(one.service, one.command, evidence)


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

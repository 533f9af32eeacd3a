"""Signals that come from outside, and waits whose time is over. Each move is a Decision. Pure."""

from msgspec.structs import replace

from sagastream.core.back import fail_step
from sagastream.core.durations import exact
from sagastream.core.forward import declined
from sagastream.core.messages import Signal
from sagastream.core.moves import complete_step, give_up_retry, retry_on
from sagastream.core.phases import AWAITS, Phase
from sagastream.core.saga import KeptSignal, SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment, park


def signal(state: SagaState, event: Signal, moment: Moment) -> Decision:
    """A signal has come that a step waits for, or will wait for."""
    for number, step in enumerate(state.steps, 1):
        shape = step.definition.shape
        if is_too_late(step, event, moment.now_ms):
            continue
        if step.phase is Phase.AWAITING and shape.wait == event.name:
            if event.declined is not None:
                return _fail_wait(state, number, declined(event.name, event.declined), moment)
            return complete_step(state, number, event.payload, moment)
        if step.phase is Phase.RETRY_AWAITED and shape.retry_on == event.name:
            return retry_on(state, number, event.declined, moment)
    one = KeptSignal(name=event.name, payload=event.payload, declined=event.declined, at_ms=moment.now_ms)
    return Decision(state=replace(state, signals=(*state.signals, one), updated_ms=moment.now_ms))


def is_too_late(step: Step, event: Signal, now_ms: int) -> bool:
    """Whether the time for which the step waits was over when the signal was added to its stream. When it is read does
    not count."""
    if step.phase not in AWAITS or step.due_ms is None or event.added_ms is None:
        return False
    return not may_be_in_time(event.added_ms, step.due_ms, now_ms)


def may_be_in_time(added_ms: int, due_ms: int, now_ms: int) -> bool:
    """Whether an entry that has the time `added_ms` in its id may have been added before `due_ms`.

    If the id is ahead of the clock, the clock was set back: Redis then gives ids with the old time until the clock gets
    there again. Nobody knows when such an entry was added, so it may have been in time. Rejected: to take the time at
    which it is read, since workers may have stood still until then.
    """
    return added_ms < due_ms or added_ms > now_ms


def _not_signalled(name: str | None, within_ms: int | None) -> str:
    return f"no signal {name} within {exact(within_ms or 0)}"


def wait_over(state: SagaState, number: int, moment: Moment) -> Decision:
    """The time is over for which this step waits."""
    shape = state.steps[number - 1].definition.shape
    if state.steps[number - 1].phase is Phase.RETRY_AWAITED:
        why = _not_signalled(shape.retry_on, shape.retry_within_ms)
        return give_up_retry(state, number, state.steps[number - 1].error, moment, because=why)
    if shape.wait is None or shape.goes_on:
        return complete_step(state, number, None, moment)
    return _fail_wait(state, number, _not_signalled(shape.wait, shape.wait_ms), moment)


def _fail_wait(state: SagaState, number: int, why: str, moment: Moment) -> Decision:
    if state.steps[number - 1].definition.kind is StepKind.RETRIABLE:
        return park(state, number, why, moment, error=encode(why))
    return fail_step(state, number, encode(why), moment, unknown=False)

"""What a saga can do next: begin, complete a step, try again, wait for a retry. Each move is a Decision.

decision.py decides which move an event leads to; forward.py begins steps; back.py has the moves that undo. All changes
of a saga's status are in transitions.TRANSITIONS, all changes of a step's phase in phases.STEP. Pure, as they are.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from sagastream.core import plan
from sagastream.core.back import fail_step, given_up, go_back, left, may_be_past_pivot, quote, undo_next
from sagastream.core.backoff import step_delay_ms
from sagastream.core.forward import advance, declined, wanted
from sagastream.core.messages import Begin
from sagastream.core.pauses import is_paused
from sagastream.core.saga import Intervention, SagaState
from sagastream.core.sending import hold, send_compensation, send_transaction
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment, end, moved, park, parked_notice, put, sent, status_after


def begin(event: Begin, moment: Moment) -> Decision:
    starts_ms = moment.now_ms if event.start_ms is None else max(moment.now_ms, event.start_ms)
    state = SagaState(
        saga_id=event.saga_id,
        status=status_after(None, "begun"),
        current_step=1,
        steps=tuple([Step(definition=definition) for definition in event.steps]),
        deadline_ms=None if event.deadline_ms is None else starts_ms + event.deadline_ms,
        hard_deadline=event.hard_deadline,
        begun_ms=moment.now_ms,
        updated_ms=moment.now_ms,
        request_id=event.request_id,
        echo=event.echo,
        format=event.format,
        input=event.input,
        definition=event.definition,
        start_ms=event.start_ms,
        attributes=event.attributes,
        traceparent=event.traceparent,
        tracestate=event.tracestate,
    )
    return Decision(state=state) if starts_ms > moment.now_ms else start(state, moment)


def start(state: SagaState, moment: Moment) -> Decision:
    """Begin its first steps."""
    return _go_on(state, state.steps, moment, "started")


def complete_step(state: SagaState, number: int, result: bytes | None, moment: Moment) -> Decision:
    """The transaction of this step was done; or what it waited for has come."""
    step = state.steps[number - 1].moved(
        "completed", answered_ms=moment.now_ms, result=result, error=None, unknown=False
    )
    steps = put(state.steps, number, step)
    if state.cancelling is not None and step.definition.kind is not StepKind.PIVOT:
        return go_back(state, steps, state.cancelling, moment)
    if state.cancelling is not None:
        why = f"step {state.told(number)}, the pivot, was done before this could be: {state.cancelling}"
        state = state.with_intervention(Intervention(verb="too late", reason=why, at_ms=moment.now_ms))
    return _go_on(state, steps, moment, "step completed")


def skip(state: SagaState, number: int, moment: Moment) -> Decision:
    """Go on as if this parked step were done or, if its undo is parked, as if it were undone."""
    step = state.steps[number - 1]
    if step.being_undone:
        step = step.moved("undo skipped")
        return undo_next(moved(state, "compensation skipped", moment, put(state.steps, number, step)), moment)
    return _go_on(state, put(state.steps, number, step.moved("skipped")), moment, "step skipped")


def _go_on(state: SagaState, steps: tuple[Step, ...], moment: Moment, happening: str) -> Decision:
    """Begin what may begin now; end the saga if nothing is left to do."""
    if state.signals:
        state = replace(state, signals=wanted(state.signals, steps))
    steps, signals, commands, failed = advance(state, steps, moment)
    if failed is not None:
        number, why = failed
        return fail_step(moved(state, happening, moment, steps), number, encode(why), moment, unknown=False)
    if not commands and plan.is_done(steps):
        happening = f"last {happening}"
    before = state
    state = moved(state, happening, moment, steps)
    if signals:  # a step may have been bypassed that would have taken one
        signals = wanted(signals, steps)
    if signals is not before.signals:
        state = replace(state, signals=signals)
    if state.ended:
        return end(state)
    decision = sent(state, commands)
    if before.format == PLAIN:
        return decision
    parked = [number for number in state.parked_steps if before.steps[number - 1] is not steps[number - 1]]
    notices = tuple([parked_notice(state, str(steps[number - 1].parked)) for number in parked])
    return replace(decision, notices=decision.notices + notices) if parked else decision


# --- attempts


def fail_attempt(state: SagaState, number: int, error: bytes | None, moment: Moment, *, unknown: bool) -> Decision:
    """The command of this step that is out has failed: send it again later, or give up.

    `unknown`: it may have been done all the same.
    """
    step = state.steps[number - 1]
    undoing = step.being_undone
    unknown = unknown or step.unknown
    facts: dict[str, Any] = {"compensation_error": error} if undoing else {"error": error, "unknown": unknown}
    definition = step.definition
    if step.current_attempt < step.attempts and state.cancelling is None:
        wait_ms = step_delay_ms(
            step.attempt_of_round, first_ms=definition.backoff_ms, jitter=moment.jitter(state.saga_id)
        )
        happening = "undo attempt failed" if undoing else "attempt failed"
        step = step.moved(happening, due_ms=moment.now_ms + wait_ms, **facts)
        return Decision(state=moved(state, "attempt failed", moment, put(state.steps, number, step)))
    return _give_up_attempts(state, number, error, moment, facts)


def fail_transaction(state: SagaState, number: int, error: bytes | None, moment: Moment) -> Decision:
    """This step was not done, says its service, and is not tried again after a delay."""
    if state.steps[number - 1].definition.shape.retry_on is None:
        return fail_step(state, number, error, moment, unknown=False)
    if state.cancelling is not None:
        return give_up_retry(state, number, error, moment)
    return _await_retry(state, number, moment, error=error)


def _give_up_attempts(
    state: SagaState, number: int, error: bytes | None, moment: Moment, facts: Mapping[str, Any]
) -> Decision:
    step = state.steps[number - 1]
    definition, undoing = step.definition, step.being_undone
    times = f" {step.current_attempt} times" if step.current_attempt > 1 else ""
    failed = f"{step.command} of step {state.told(number)} failed{times}: {quote(error)}"
    if undoing or definition.kind is StepKind.RETRIABLE:
        return park(state, number, failed, moment, **facts)
    unknown = bool(facts["unknown"])
    if state.cancelling is None and definition.shape.retry_on is not None:
        return _await_retry(state, number, moment, **facts)
    if may_be_past_pivot(definition, moment, unknown=unknown):
        why = f"{failed}; it may have been done all the same, and nothing undoes it"
        return park(state, number, why, moment, **facts)
    if state.cancelling is not None:
        step = given_up(step, moment, **facts)
        return go_back(state, put(state.steps, number, step), state.cancelling, moment)
    return fail_step(state, number, error, moment, unknown=unknown)


def released(state: SagaState, moment: Moment) -> SagaState:
    """The saga after all that was held and is no longer paused is due; the very same object if nothing is."""
    steps = state.steps
    for number, step in enumerate(steps, 1):
        if step.is_held and not is_paused(step.definition.service, step.command, moment.paused):
            steps = put(steps, number, replace(step, due_ms=moment.now_ms))
    return state if steps is state.steps else replace(state, steps=steps)


def send_again(state: SagaState, number: int, moment: Moment) -> Decision:
    """Send the next attempt of this step's command, or of its compensation if it is being undone."""
    return _send_again(state, number, state.steps[number - 1], moment)


def _send_again(state: SagaState, number: int, step: Step, moment: Moment) -> Decision:
    if is_paused(step.definition.service, step.command, moment.paused):
        happening = "compensation put off" if step.being_undone else "put off"
        return Decision(state=moved(state, happening, moment, put(state.steps, number, hold(step))))
    send = send_compensation if step.being_undone else send_transaction
    step, command = send(state, number, step, moment.now_ms)
    return sent(moved(state, "sent again", moment, put(state.steps, number, step)), [command])


def retry(state: SagaState, number: int, moment: Moment) -> Decision:
    """Try again what this step is parked at, with as many attempts as before."""
    step = state.steps[number - 1]
    if state.format != PLAIN and (step.current_attempt == 0 or not step.definition.shape.sends):
        step = replace(step, unsent_retries=step.unsent_retries + 1)
    if step.being_undone and step.compensation is None:
        # Nobody knew what undoes it, or what that is to be told. By now a service may have published it.
        return undo_next(moved(state, "compensation retried", moment, put(state.steps, number, left(step))), moment)
    if not step.being_undone and (step.attempt == 0 or not step.definition.shape.sends):
        step = step.moved("waits again", error=None)
        return _go_on(state, put(state.steps, number, step), moment, "started")
    return _send_again(state, number, replace(step, tried_before=step.current_attempt), moment)


# --- retries that are signalled


def _await_retry(state: SagaState, number: int, moment: Moment, **facts: Any) -> Decision:
    """This step has failed, and will be sent again if a signal comes."""
    step = state.steps[number - 1]
    shape = step.definition.shape
    assert shape.retry_within_ms is not None  # it comes with retry_on
    step = step.moved("retry awaited", due_ms=moment.now_ms + shape.retry_within_ms, **facts)
    state = moved(state, "attempt failed", moment, put(state.steps, number, step))
    if (kept := next((one for one in state.signals if one.name == shape.retry_on), None)) is None:
        return Decision(state=state)
    state = replace(state, signals=tuple([one for one in state.signals if one is not kept]))
    return retry_on(state, number, kept.declined, moment)


def retry_on(state: SagaState, number: int, why_not: str | None, moment: Moment) -> Decision:
    """The signal has come for which this step waits, to be sent again."""
    step = state.steps[number - 1]
    if why_not is not None:
        why = declined(str(step.definition.shape.retry_on), why_not)
        return give_up_retry(state, number, step.error, moment, because=why)
    return _send_again(state, number, replace(step, tried_before=step.attempt), moment)


def give_up_retry(
    state: SagaState, number: int, error: bytes | None, moment: Moment, *, because: str | None = None
) -> Decision:
    """This step waits no more to be sent again. Its service has recorded no failure, so another delivery of its command
    may still do it. `because`: why it waits no more; the error stays that of the service."""
    step = state.steps[number - 1]
    if may_be_past_pivot(step.definition, moment, unknown=True):
        said = quote(error) if because is None else f"{quote(error)}; {because}"
        why = f"{step.command} of step {state.told(number)} failed: {said}; "
        why += "it may be done all the same by a late delivery, and nothing undoes it"
        return park(state, number, why, moment, error=error, unknown=True)
    return fail_step(state, number, error, moment, unknown=True, because=because)

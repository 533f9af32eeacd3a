"""What a saga can do next: complete a step, try again, go back, undo, park, end. Each move is a Decision.

decision.py decides which move an event leads to; plan.py says which step comes next. All changes of a saga's status are
in transitions.TRANSITIONS, all changes of a step's phase in phases.STEP. Pure, as they are.
"""

from typing import Any, Final

import orjson
from msgspec.structs import replace

from sagastream.core import plan
from sagastream.core.backoff import step_delay_ms
from sagastream.core.messages import Begin, Command
from sagastream.core.saga import Intervention, SagaState
from sagastream.core.sending import NOBODY_KNOWS, send_compensation, send_transaction, undo_of
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment, end, moved, park, put, sent, status_after

#: The longest text that a saga's reason quotes of an error; the whole error stays with the step.
REASON_CHARS: Final = 500


# --- forward


def begin(event: Begin, moment: Moment) -> Decision:
    state = SagaState(
        saga_id=event.saga_id,
        status=status_after(None, "begun"),
        current_step=1,
        steps=tuple([Step(definition=definition) for definition in event.steps]),
        deadline_ms=None if event.deadline_ms is None else moment.now_ms + event.deadline_ms,
        hard_deadline=event.hard_deadline,
        begun_ms=moment.now_ms,
        updated_ms=moment.now_ms,
        request_id=event.request_id,
        echo=event.echo,
        format=event.format,
    )
    steps, commands = _send_ready(state, state.steps, moment)
    state = replace(state, steps=steps, current_step=plan.current(steps, 1))
    return sent(state, commands)


def complete_step(state: SagaState, number: int, result: bytes | None, moment: Moment) -> Decision:
    """The transaction of this step was done."""
    step = state.steps[number - 1].moved(
        "completed", answered_ms=moment.now_ms, result=result, error=None, unknown=False
    )
    if state.cancelling is not None and step.definition.kind is not StepKind.PIVOT:
        return _undo_next(
            moved(state, "cancelled", moment, put(state.steps, number, step), reason=state.cancelling), moment
        )
    if state.cancelling is not None:
        why = f"step {number}, the pivot, was done before this could be: {state.cancelling}"
        state = state.with_intervention(Intervention(verb="too late", reason=why, at_ms=moment.now_ms))
    return _go_on(state, number, step, moment, "step completed")


def skip(state: SagaState, number: int, moment: Moment) -> Decision:
    """Go on as if this parked step were done or, if its undo is parked, as if it were undone."""
    step = state.steps[number - 1]
    if step.being_undone:
        step = step.moved("undo skipped")
        return _undo_next(moved(state, "compensation skipped", moment, put(state.steps, number, step)), moment)
    return _go_on(state, number, step.moved("skipped"), moment, "step skipped")


def _go_on(state: SagaState, number: int, step: Step, moment: Moment, happening: str) -> Decision:
    steps, commands = _send_ready(state, put(state.steps, number, step), moment)
    if not commands and plan.is_done(steps):
        happening = f"last {happening}"
    state = moved(state, happening, moment, steps)
    return end(state) if state.ended else sent(state, commands)


def _send_ready(state: SagaState, steps: tuple[Step, ...], moment: Moment) -> tuple[tuple[Step, ...], list[Command]]:
    """Send the commands of all steps that are ready: the steps after that, and the commands."""
    commands = []
    for number in plan.ready(steps):
        step, command = send_transaction(state, number, steps[number - 1], moment.now_ms)
        steps = put(steps, number, step)
        commands.append(command)
    return steps, commands


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
        wait_ms = step_delay_ms(step.attempt_of_round, first_ms=definition.backoff_ms, jitter=moment.jitter)
        happening = "undo attempt failed" if undoing else "attempt failed"
        step = step.moved(happening, due_ms=moment.now_ms + wait_ms, **facts)
        return Decision(state=moved(state, "attempt failed", moment, put(state.steps, number, step)))
    times = f" {step.current_attempt} times" if step.current_attempt > 1 else ""
    failed = f"{step.command} of step {number} failed{times}: {quote(error)}"
    if undoing or definition.kind is StepKind.RETRIABLE:
        return park(state, number, failed, moment, **facts)
    if _may_be_past_pivot(definition, unknown, moment):
        why = f"{failed}; it may have been done all the same, and nothing undoes it"
        return park(state, number, why, moment, **facts)
    if state.cancelling is not None:
        return _cancel_at(state, number, state.cancelling, moment, **facts)
    return fail_step(state, number, error, moment, unknown=unknown)


def send_again(state: SagaState, number: int, moment: Moment) -> Decision:
    """Send the next attempt of this step's command, or of its compensation if it is being undone."""
    return _send_again(state, number, state.steps[number - 1], moment)


def _send_again(state: SagaState, number: int, step: Step, moment: Moment) -> Decision:
    send = send_compensation if step.being_undone else send_transaction
    step, command = send(state, number, step, moment.now_ms)
    return sent(moved(state, "sent again", moment, put(state.steps, number, step)), [command])


def retry(state: SagaState, number: int, moment: Moment) -> Decision:
    """Try again what this step is parked at, with as many attempts as before."""
    step = state.steps[number - 1]
    if step.being_undone and step.compensation is None:
        # Nobody knew what undoes it. By now a service may have published it.
        return _undo_next(state.with_step(number, _left(step)), moment)
    return _send_again(state, number, replace(step, tried_before=step.current_attempt), moment)


def is_parked_past_return(state: SagaState, moment: Moment) -> bool:
    """Whether the saga is parked at its pivot, nobody knows whether that was done, and nothing undoes it."""
    step = state.step
    return step.parked is not None and _may_be_past_pivot(step.definition, _may_be_done(step), moment)


def _may_be_past_pivot(definition: StepDefinition, unknown: bool, moment: Moment) -> bool:
    """Whether the saga may be past its pivot, and cannot find out."""
    return definition.kind is StepKind.PIVOT and unknown and not undo_of(definition, moment.published)


# --- back


def fail_step(state: SagaState, number: int, error: bytes | None, moment: Moment, *, unknown: bool) -> Decision:
    """This step has failed for good: go back. `unknown`: it may have been done all the same."""
    step = _given_up(state.steps[number - 1], moment, error=error, unknown=unknown)
    times = f" ({step.attempt} attempts)" if step.attempt > 1 else ""
    reason = f"Step {number} failed: {quote(error)}{times}"
    return _undo_next(moved(state, "step failed", moment, put(state.steps, number, step), reason=reason), moment)


def cancel(state: SagaState, why: str, moment: Moment, *, now: bool, not_done: bool = False) -> Decision:
    """Go back: as soon as the current step is answered or, if no command is out, at once.

    Args:
        now: at once in any case. The command that is out counts as unknown from now on.
        not_done: a person, who has seen at what the saga is parked, says by this that it was not done.
    """
    number, step = state.current_step, state.step
    if state.cancelling is not None:
        why = f"{state.cancelling}; {why}"
    if step.in_flight and not now:
        return Decision(state=moved(state, "to be cancelled", moment, state.steps, cancelling=why))
    if not_done:
        return _cancel_at(state, number, why, moment, unknown=False)
    facts: dict[str, Any] = {"unknown": _may_be_done(step)}
    if step.in_flight:
        facts["error"] = encode("not answered when the saga was cancelled")
    if _may_be_past_pivot(step.definition, facts["unknown"], moment):
        why = f"{why}; {step.command} may have been done, and nothing undoes it"
        return park(state, number, why, moment, **facts)
    return _cancel_at(state, number, why, moment, **facts)


def _may_be_done(step: Step) -> bool:
    """Whether a step that is given up without a final answer may have been done, or may still be."""
    # If a failure would have been tried again, another delivery of the command may still do it.
    return step.in_flight or step.unknown or step.definition.retried


def _cancel_at(state: SagaState, number: int, why: str, moment: Moment, **facts: Any) -> Decision:
    step = _given_up(state.steps[number - 1], moment, **facts)
    return _undo_next(moved(state, "cancelled", moment, put(state.steps, number, step), reason=why), moment)


def _given_up(step: Step, moment: Moment, *, unknown: bool, **facts: Any) -> Step:
    happening = "given up" if unknown else "failed"
    return step.moved(happening, answered_ms=moment.now_ms, unknown=unknown, **facts)


def compensate_step(state: SagaState, number: int, moment: Moment) -> Decision:
    """This step was undone."""
    step = state.steps[number - 1].moved("undone", compensation_answered_ms=moment.now_ms)
    return _undo_next(moved(state, "step compensated", moment, put(state.steps, number, step)), moment)


def abandon(state: SagaState, number: int, why: str, moment: Moment) -> Decision:
    """End the saga, which is parked at this step, without doing or undoing more."""
    step = state.steps[number - 1]
    unknown = _may_be_done(step)
    left = _left(step) if step.being_undone else step.moved("given up" if unknown else "failed", unknown=unknown)
    reason = f"abandoned at step {number}: {why}"
    reason = f"{state.reason}; {reason}" if state.reason else reason
    return end(moved(state, "abandoned", moment, put(state.steps, number, left), reason=reason))


def _left(step: Step) -> Step:
    """The step after its parked undo is given up."""
    return step.moved("left in doubt" if step.unknown else "left done")


def _undo_next(state: SagaState, moment: Moment) -> Decision:
    """Undo the steps that may be undone now; end the saga if nothing is left to undo."""

    def needs_undo(step: Step) -> bool:
        return undo_of(step.definition, moment.published) is not None

    decision = Decision(state=state)
    for number in plan.undoable(state.steps, needs_undo):
        more = _undo(state, number, moment)
        assert isinstance(more.state, SagaState)
        state = more.state
        commands, notices = decision.commands + more.commands, decision.notices + more.notices
        decision = Decision(state=state, commands=commands, notices=notices)
    if plan.is_undone(state.steps, needs_undo):
        return end(moved(state, "nothing left to undo", moment, state.steps))
    return decision


def _undo(state: SagaState, number: int, moment: Moment) -> Decision:
    """Send the compensation of this step; park the step if nobody knows the compensation."""
    step = state.steps[number - 1]
    definition = step.definition
    name = undo_of(definition, moment.published)
    if name == NOBODY_KNOWS:
        why = (
            f"nobody knows what undoes {definition.transaction} of step {number}: "
            f"service {definition.service} published no such command, and the step names no compensation"
        )
        return park(state, number, why, moment)
    # The attempts of the undo are counted separately.
    step, command = send_compensation(state, number, replace(step, compensation=name, tried_before=0), moment.now_ms)
    return sent(moved(state, "compensation sent", moment, put(state.steps, number, step), undone=(number,)), [command])


def quote(error: bytes | None) -> str:
    """An error for people to read: a string as it is, any other JSON value as JSON."""
    if error is None:
        return "no reason given"
    value = orjson.loads(error)
    text = value if isinstance(value, str) else error.decode()
    return text if len(text) <= REASON_CHARS else text[:REASON_CHARS] + "…"


def no_answer(step: Step) -> bytes:
    """The error of an attempt that was not answered in time, as JSON."""
    return encode(f"no answer within {step.definition.timeout_ms} ms")

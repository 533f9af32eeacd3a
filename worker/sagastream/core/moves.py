"""What a saga can do next: complete a step, try again, go back, undo, park, end. Each move is a Decision.

Everything that can change a saga's status stands in TRANSITIONS. Pure, as decision.py is, which says what brings a
move about.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.backoff import step_delay_ms
from sagastream.core.messages import Begin, Command, Notice, outcome_body, parked_body
from sagastream.core.saga import Found, Intervention, SagaState, SagaStatus, Step, StepStatus
from sagastream.core.steps import AS_PUBLISHED, StepKind
from sagastream.core.strict_json import encode

#: What services publish: service -> command -> the compensation that undoes it (None: it needs none).
Published = Mapping[str, Mapping[str, str | None]]

#: (status before, what happened) -> status after. All that can happen to a saga; ARCHITECTURE.md draws it.
TRANSITIONS: Final[Mapping[tuple[SagaStatus | None, str], SagaStatus]] = {
    (None, "begun"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "step completed"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "last step completed"): SagaStatus.COMPLETED,
    (SagaStatus.PENDING, "attempt failed"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "sent again"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "to be cancelled"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "parked"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "step skipped"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "last step skipped"): SagaStatus.COMPLETED,
    (SagaStatus.PENDING, "abandoned"): SagaStatus.ABORTED,
    (SagaStatus.PENDING, "step failed"): SagaStatus.COMPENSATING,
    (SagaStatus.PENDING, "cancelled"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "compensation sent"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "attempt failed"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "sent again"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "step compensated"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "parked"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "compensation skipped"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "abandoned"): SagaStatus.ABORTED,
    (SagaStatus.COMPENSATING, "nothing left to undo"): SagaStatus.ABORTED,
}

#: The longest text that a saga's reason quotes of an error; the whole error stays with the step.
REASON_CHARS: Final = 500


class Moment(Struct, frozen=True, kw_only=True, gc=False):
    """What a decision may depend on besides the saga and what has happened to it."""

    now_ms: int  # by the broker's clock
    published: Published  # what it does not know parks a saga rather than skip an undo
    jitter: float = 0.0  # 0 to 1, by chance: spreads what would be tried again at once
    closed: Mapping[int, str] | None = None  # the formats in which no saga may begin yet, each with the reason


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """What an event leads to. `state` is the saga after it: the very same object where nothing changed."""

    state: Found
    commands: tuple[Command, ...] = ()
    notices: tuple[Notice, ...] = ()
    quarantine: str | None = None  # why the event's entry is set aside
    left: int = (
        0  # the format of the event or its saga, where only a newer release knows it: the entry is left as it is
    )


# --- forward


def begin(event: Begin, moment: Moment) -> Decision:
    state = SagaState(
        saga_id=event.saga_id,
        status=TRANSITIONS[None, "begun"],
        current_step=1,
        steps=tuple(Step(definition=definition) for definition in event.steps),
        deadline_ms=None if event.deadline_ms is None else moment.now_ms + event.deadline_ms,
        begun_ms=moment.now_ms,
        updated_ms=moment.now_ms,
        request_id=event.request_id,
        echo=event.echo,
        format=event.format,
    )
    return _send_transaction(state, moment)


def complete_step(state: SagaState, result: bytes | None, moment: Moment) -> Decision:
    """The transaction of the current step was done."""
    step = replace(
        state.step,
        status=StepStatus.COMPLETED,
        answered_ms=moment.now_ms,
        result=result,
        error=None,
        unknown=False,
    )
    if state.cancelling is not None and step.definition.kind is not StepKind.PIVOT:
        return _undo_next(_moved(state, "cancelled", moment, step, reason=state.cancelling), moment)
    if state.cancelling is not None:
        why = f"step {state.current_step}, the pivot, was done before this could be: {state.cancelling}"
        state = state.with_intervention(Intervention(verb="too late", reason=why, at_ms=moment.now_ms))
    return _go_on(state, step, moment, "step completed")


def skip_step(state: SagaState, moment: Moment) -> Decision:
    """The saga goes on as if the current step were done."""
    step = replace(state.step, status=StepStatus.FAILED, skipped=True)
    return _go_on(state, step, moment, "step skipped")


def _go_on(state: SagaState, step: Step, moment: Moment, happening: str) -> Decision:
    if state.current_step == len(state.steps):
        return _end(_moved(state, f"last {happening}", moment, step))
    return _send_transaction(_moved(state, happening, moment, step, current_step=state.current_step + 1), moment)


# --- attempts


def fail_attempt(state: SagaState, error: bytes | None, moment: Moment, *, unknown: bool) -> Decision:
    """The command that is out was not done, as far as anybody knows: send it again later, or give up on it.

    `unknown`: it may have been done all the same.
    """
    if state.status is SagaStatus.COMPENSATING:
        step = replace(state.step, compensation_error=error)
    else:
        step = replace(state.step, error=error, unknown=unknown or state.step.unknown)
    if state.attempt < state.attempts and state.cancelling is None:
        wait_ms = step_delay_ms(state.attempt_of_round, first_ms=step.definition.backoff_ms, jitter=moment.jitter)
        return Decision(state=_moved(state, "attempt failed", moment, step, send_again_ms=moment.now_ms + wait_ms))
    times = f" {state.attempt} times" if state.attempt > 1 else ""
    failed = f"{state.command} of step {state.current_step} failed{times}: {_quote(error)}"
    if state.status is SagaStatus.COMPENSATING or step.definition.kind is StepKind.RETRIABLE:
        return _park(state, step, failed, moment)
    if _may_be_past_pivot(step, moment):
        return _park(state, step, f"{failed}; it may have been done all the same, and nothing undoes it", moment)
    if state.cancelling is not None:
        return _cancel_at(state, step, state.cancelling, moment)
    return fail_step(state, step, moment)


def send_again(state: SagaState, moment: Moment) -> Decision:
    """The next attempt of the command that the saga is at."""
    state = _moved(state, "sent again", moment, state.step)
    if state.status is SagaStatus.PENDING:
        return _send_transaction(state, moment)
    return _send_compensation(state, moment)


def retry(state: SagaState, moment: Moment) -> Decision:
    """Have a parked saga try anew what it is parked at."""
    if state.status is SagaStatus.COMPENSATING and state.step.compensation is None:
        return _undo_next(state, moment)  # nobody knew what undoes it; somebody may by now
    step = replace(state.step, tried_before=state.attempt)
    return send_again(state.with_step(state.current_step, step), moment)


def _may_be_past_pivot(step: Step, moment: Moment) -> bool:
    """Whether there may be no way back, and nobody knows."""
    return step.definition.kind is StepKind.PIVOT and step.unknown and not _undo_of(step, moment)


# --- back


def fail_step(state: SagaState, step: Step, moment: Moment) -> Decision:
    """The current step, which is as `step` says, has failed for good: go back."""
    failed = replace(step, status=StepStatus.FAILED, answered_ms=moment.now_ms)
    times = f" ({state.attempt} attempts)" if state.attempt > 1 else ""
    reason = f"Step {state.current_step} failed: {_quote(step.error)}{times}"
    return _undo_next(_moved(state, "step failed", moment, failed, reason=reason), moment)


def cancel(state: SagaState, why: str, moment: Moment) -> Decision:
    """Go back: as soon as the current step is answered or, if no command is out, at once."""
    if state.times_out_ms is not None:
        waits = {"cancelling": why, "times_out_ms": state.times_out_ms}
        return Decision(state=_moved(state, "to be cancelled", moment, state.step, **waits))
    if state.parked is not None:
        # A person knows what it is parked at, and says that it was not done.
        return _cancel_at(state, replace(state.step, unknown=False), why, moment)
    # A failure that was to be tried again is no last word: another delivery may do it yet.
    step = replace(state.step, unknown=state.step.unknown or state.step.definition.retried)
    if _may_be_past_pivot(step, moment):
        return _park(state, step, f"{why}; {state.command} may have been done, and nothing undoes it", moment)
    return _cancel_at(state, step, why, moment)


def _cancel_at(state: SagaState, step: Step, why: str, moment: Moment) -> Decision:
    failed = replace(step, status=StepStatus.FAILED, answered_ms=moment.now_ms)
    return _undo_next(_moved(state, "cancelled", moment, failed, reason=why), moment)


def compensate_step(state: SagaState, moment: Moment) -> Decision:
    """The current step was undone."""
    step = replace(state.step, status=StepStatus.COMPENSATED, compensation_answered_ms=moment.now_ms)
    return _undo_next(_moved(state, "step compensated", moment, step), moment)


def skip_compensation(state: SagaState, moment: Moment) -> Decision:
    """The undo goes on as if the current step had no effect."""
    return _undo_next(_moved(state, "compensation skipped", moment, replace(state.step, skipped=True)), moment)


def abandon(state: SagaState, why: str, moment: Moment) -> Decision:
    """End the saga as it stands."""
    step = state.step
    if step.status is StepStatus.PENDING:
        step = replace(step, status=StepStatus.FAILED)
    reason = f"abandoned at step {state.current_step}: {why}"
    reason = f"{state.reason}; {reason}" if state.reason else reason
    return _end(_moved(state, "abandoned", moment, step, reason=reason))


def _undo_next(state: SagaState, moment: Moment) -> Decision:
    """Compensate the last step that may have had an effect, or end the saga."""
    for number in range(len(state.steps), 0, -1):
        step = state.steps[number - 1]
        if not step.may_have_effect or (name := _undo_of(step, moment)) is None:
            continue
        state = replace(state, current_step=number)
        definition = step.definition
        if name == _NOBODY_KNOWS:
            why = (
                f"nobody knows what undoes {definition.transaction} of step {number}: "
                f"service {definition.service} published no such command, and the step names no compensation"
            )
            return _park(state, step, why, moment)
        undone = (*state.compensating_steps, number)
        step = replace(step, compensation=name, tried_before=0)  # its attempts are counted for themselves
        state = _moved(state, "compensation sent", moment, step, compensating_steps=undone)
        return _send_compensation(state, moment)
    return _end(_moved(state, "nothing left to undo", moment, state.step))


#: No command can be called so.
_NOBODY_KNOWS: Final = ""


def _undo_of(step: Step, moment: Moment) -> str | None:
    """The compensation of a step; None: it needs none; _NOBODY_KNOWS: neither the step nor its service says."""
    definition = step.definition
    if definition.compensation != AS_PUBLISHED:
        return definition.compensation
    return moment.published.get(definition.service, {}).get(definition.transaction, _NOBODY_KNOWS)


# --- what all of them come down to


def _send_transaction(state: SagaState, moment: Moment) -> Decision:
    step = state.step
    step = replace(step, attempt=step.attempt + 1, sent_ms=moment.now_ms)
    definition = step.definition
    times_out_ms = moment.now_ms + definition.timeout_ms
    state = state.with_step(state.current_step, step, times_out_ms=times_out_ms)
    command = Command(
        service=definition.service,
        type=definition.transaction,
        saga_id=state.saga_id,
        step=state.current_step,
        params=definition.params,
        attempt=step.attempt,
        begun_ms=state.begun_ms,
        # What must be done in the end may be done late.
        not_after_ms=None if definition.kind is StepKind.RETRIABLE else times_out_ms,
        retried=state.failure_is_open,
        compensation=definition.compensation,
    )
    return _sent(state, command)


def _send_compensation(state: SagaState, moment: Moment) -> Decision:
    step = state.step
    step = replace(step, compensation_attempt=step.compensation_attempt + 1, compensation_sent_ms=moment.now_ms)
    definition = step.definition
    command = Command(
        service=definition.service,
        type=state.command,
        saga_id=state.saga_id,
        step=state.current_step,
        params=definition.params,
        result=step.result,
        compensating=True,
        attempt=step.compensation_attempt,
        begun_ms=state.begun_ms,
        retried=True,
    )
    times_out_ms = moment.now_ms + definition.timeout_ms
    return _sent(state.with_step(state.current_step, step, times_out_ms=times_out_ms), command)


def _sent(state: SagaState, command: Command) -> Decision:
    if not state.echo:
        return Decision(state=state, commands=(command,))
    echoed = Notice(kind="command", saga_id=state.saga_id, service=command.service, body=command.body())
    return Decision(state=state, commands=(command,), notices=(echoed,))


def _park(state: SagaState, step: Step, why: str, moment: Moment) -> Decision:
    """Leave the saga, at this step, to a person."""
    state = _moved(state, "parked", moment, step, parked=why)
    body = parked_body(state.saga_id, state.status, why)
    notice = Notice(kind="parked", saga_id=state.saga_id, request_id=state.request_id, body=body)
    return Decision(state=state, notices=(notice,))


def _end(state: SagaState) -> Decision:
    return Decision(state=state, notices=(outcome(state, state.request_id),))


def outcome(state: SagaState, request_id: str | None) -> Notice:
    """How an ended saga has ended, told to whoever made this request."""
    body = outcome_body(state.saga_id, state.status, state.reason)
    return Notice(kind="outcome", saga_id=state.saga_id, request_id=request_id, body=body)


def _moved(state: SagaState, happening: str, moment: Moment, step: Step, **changes: Any) -> SagaState:
    """The saga after `happening`, with `step` in the place of its current one. It waits for nothing but what
    `changes` say."""
    return state.with_step(
        state.current_step,
        step,
        status=TRANSITIONS[state.status, happening],
        updated_ms=moment.now_ms,
        **_WAITS_FOR_NOTHING | changes,
    )


_WAITS_FOR_NOTHING: Final = {"parked": None, "cancelling": None, "times_out_ms": None, "send_again_ms": None}


def _quote(error: bytes | None) -> str:
    """An error for people: a string as it is, any other JSON value as its text."""
    if error is None:
        return "no reason given"
    value = orjson.loads(error)
    text = value if isinstance(value, str) else error.decode()
    return text if len(text) <= REASON_CHARS else text[:REASON_CHARS] + "…"


def no_answer(state: SagaState) -> bytes:
    """The error of an attempt that was not answered in time, as JSON."""
    return encode(f"no answer within {state.step.definition.timeout_ms} ms")

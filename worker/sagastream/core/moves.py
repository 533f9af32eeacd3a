"""What a saga can do next: complete a step, try again, go back, undo, park, end. Each move is a Decision.

Every change of a saga's status stands in TRANSITIONS, every change of a step's phase in phases.STEP; plan.py says which
step comes next. decision.py decides which move an event leads to. Pure, as it is.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from sagastream.core import plan
from sagastream.core.backoff import step_delay_ms
from sagastream.core.messages import Begin, Command, Notice, outcome_body, parked_body
from sagastream.core.saga import Found, Intervention, SagaState, SagaStatus, Step
from sagastream.core.sending import NOBODY_KNOWS, Published, send_compensation, send_transaction, undo_of
from sagastream.core.steps import StepDefinition, StepKind
from sagastream.core.strict_json import encode
from sagastream.errors import ImpossibleTransition

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
    jitter: float = 0.0  # 0 to 1, by chance: keeps retries that fall due together apart
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
        steps=tuple([Step(definition=definition) for definition in event.steps]),
        deadline_ms=None if event.deadline_ms is None else moment.now_ms + event.deadline_ms,
        begun_ms=moment.now_ms,
        updated_ms=moment.now_ms,
        request_id=event.request_id,
        echo=event.echo,
        format=event.format,
    )
    steps, commands = _send_ready(state, state.steps, moment)
    state = replace(state, steps=steps, current_step=plan.current(steps, 1))
    return _sent(state, commands)


def complete_step(state: SagaState, number: int, result: bytes | None, moment: Moment) -> Decision:
    """The transaction of this step was done."""
    step = state.steps[number - 1].moved(
        "completed", answered_ms=moment.now_ms, result=result, error=None, unknown=False
    )
    if state.cancelling is not None and step.definition.kind is not StepKind.PIVOT:
        return _undo_next(
            _moved(state, "cancelled", moment, _put(state.steps, number, step), reason=state.cancelling), moment
        )
    if state.cancelling is not None:
        why = f"step {number}, the pivot, was done before this could be: {state.cancelling}"
        state = state.with_intervention(Intervention(verb="too late", reason=why, at_ms=moment.now_ms))
    return _go_on(state, number, step, moment, "step completed")


def skip(state: SagaState, number: int, moment: Moment) -> Decision:
    """The saga goes on as if this step, which is parked, were done; or were undone, where its undo is parked."""
    step = state.steps[number - 1]
    if step.being_undone:
        step = step.moved("undo skipped")
        return _undo_next(_moved(state, "compensation skipped", moment, _put(state.steps, number, step)), moment)
    return _go_on(state, number, step.moved("skipped"), moment, "step skipped")


def _go_on(state: SagaState, number: int, step: Step, moment: Moment, happening: str) -> Decision:
    steps, commands = _send_ready(state, _put(state.steps, number, step), moment)
    if not commands and plan.is_done(steps):
        happening = f"last {happening}"
    state = _moved(state, happening, moment, steps)
    return _end(state) if state.ended else _sent(state, commands)


def _send_ready(state: SagaState, steps: tuple[Step, ...], moment: Moment) -> tuple[tuple[Step, ...], list[Command]]:
    """Send the commands of all steps that are ready: the steps after that, and the commands."""
    commands = []
    for number in plan.ready(steps):
        step, command = send_transaction(state, number, steps[number - 1], moment.now_ms)
        steps = _put(steps, number, step)
        commands.append(command)
    return steps, commands


# --- attempts


def fail_attempt(state: SagaState, number: int, error: bytes | None, moment: Moment, *, unknown: bool) -> Decision:
    """The command of this step that is out was not done, as far as anybody knows: send it again later, or give up.

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
        return Decision(state=_moved(state, "attempt failed", moment, _put(state.steps, number, step)))
    times = f" {step.current_attempt} times" if step.current_attempt > 1 else ""
    failed = f"{step.command} of step {number} failed{times}: {_quote(error)}"
    if undoing or definition.kind is StepKind.RETRIABLE:
        return _park(state, number, failed, moment, **facts)
    if _may_be_past_pivot(definition, unknown, moment):
        why = f"{failed}; it may have been done all the same, and nothing undoes it"
        return _park(state, number, why, moment, **facts)
    if state.cancelling is not None:
        return _cancel_at(state, number, state.cancelling, moment, **facts)
    return fail_step(state, number, error, moment, unknown=unknown)


def send_again(state: SagaState, number: int, moment: Moment) -> Decision:
    """The next attempt of the command that this step is at."""
    return _send_again(state, number, state.steps[number - 1], moment)


def _send_again(state: SagaState, number: int, step: Step, moment: Moment) -> Decision:
    send = send_compensation if step.being_undone else send_transaction
    step, command = send(state, number, step, moment.now_ms)
    return _sent(_moved(state, "sent again", moment, _put(state.steps, number, step)), [command])


def retry(state: SagaState, number: int, moment: Moment) -> Decision:
    """Have this step, which is parked, try anew what it is parked at."""
    step = state.steps[number - 1]
    if step.being_undone and step.compensation is None:
        # Nobody knew what undoes it; somebody may by now.
        return _undo_next(state.with_step(number, _left(step)), moment)
    return _send_again(state, number, replace(step, tried_before=step.current_attempt), moment)


def _may_be_past_pivot(definition: StepDefinition, unknown: bool, moment: Moment) -> bool:
    """Whether there may be no way back, and nobody knows."""
    return definition.kind is StepKind.PIVOT and unknown and not undo_of(definition, moment.published)


# --- back


def fail_step(state: SagaState, number: int, error: bytes | None, moment: Moment, *, unknown: bool) -> Decision:
    """This step has failed for good: go back. `unknown`: it may have been done all the same."""
    step = _given_up(state.steps[number - 1], moment, error=error, unknown=unknown)
    times = f" ({step.attempt} attempts)" if step.attempt > 1 else ""
    reason = f"Step {number} failed: {_quote(error)}{times}"
    return _undo_next(_moved(state, "step failed", moment, _put(state.steps, number, step), reason=reason), moment)


def cancel(state: SagaState, why: str, moment: Moment) -> Decision:
    """Go back: as soon as the current step is answered or, if no command is out, at once."""
    number, step = state.current_step, state.step
    if step.in_flight:
        return Decision(state=_moved(state, "to be cancelled", moment, state.steps, cancelling=why))
    if step.parked is not None:
        # A person knows what it is parked at, and says that it was not done.
        return _cancel_at(state, number, why, moment, unknown=False)
    # After a failure that was to be tried again, another delivery of the command may still do it.
    unknown = step.unknown or step.definition.retried
    if _may_be_past_pivot(step.definition, unknown, moment):
        why = f"{why}; {step.command} may have been done, and nothing undoes it"
        return _park(state, number, why, moment, unknown=unknown)
    return _cancel_at(state, number, why, moment, unknown=unknown)


def _cancel_at(state: SagaState, number: int, why: str, moment: Moment, **facts: Any) -> Decision:
    step = _given_up(state.steps[number - 1], moment, **facts)
    return _undo_next(_moved(state, "cancelled", moment, _put(state.steps, number, step), reason=why), moment)


def _given_up(step: Step, moment: Moment, *, unknown: bool, **facts: Any) -> Step:
    happening = "given up" if unknown else "failed"
    return step.moved(happening, answered_ms=moment.now_ms, unknown=unknown, **facts)


def compensate_step(state: SagaState, number: int, moment: Moment) -> Decision:
    """This step was undone."""
    step = state.steps[number - 1].moved("undone", compensation_answered_ms=moment.now_ms)
    return _undo_next(_moved(state, "step compensated", moment, _put(state.steps, number, step)), moment)


def abandon(state: SagaState, number: int, why: str, moment: Moment) -> Decision:
    """End the saga, which is parked at this step, as it stands."""
    step = state.steps[number - 1]
    step = _left(step) if step.being_undone else step.moved("given up" if step.unknown else "failed")
    reason = f"abandoned at step {number}: {why}"
    reason = f"{state.reason}; {reason}" if state.reason else reason
    return _end(_moved(state, "abandoned", moment, _put(state.steps, number, step), reason=reason))


def _left(step: Step) -> Step:
    """The step, whose undo is parked and now dropped."""
    return step.moved("left in doubt" if step.unknown else "left done")


def _undo_next(state: SagaState, moment: Moment) -> Decision:
    """Undo every step whose turn it is, or end the saga."""

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
        return _end(_moved(state, "nothing left to undo", moment, state.steps))
    return decision


def _undo(state: SagaState, number: int, moment: Moment) -> Decision:
    """Send what undoes this step; park it where nobody knows what does."""
    step = state.steps[number - 1]
    definition = step.definition
    name = undo_of(definition, moment.published)
    if name == NOBODY_KNOWS:
        why = (
            f"nobody knows what undoes {definition.transaction} of step {number}: "
            f"service {definition.service} published no such command, and the step names no compensation"
        )
        return _park(state, number, why, moment)
    # The attempts of the undo are counted for themselves.
    step, command = send_compensation(state, number, replace(step, compensation=name, tried_before=0), moment.now_ms)
    return _sent(
        _moved(state, "compensation sent", moment, _put(state.steps, number, step), undone=(number,)), [command]
    )


# --- what all of them come down to


def _sent(state: SagaState, commands: list[Command]) -> Decision:
    if not state.echo:
        return Decision(state=state, commands=tuple(commands))
    echoes = [
        Notice(kind="command", saga_id=state.saga_id, service=command.service, body=command.body())
        for command in commands
    ]
    return Decision(state=state, commands=tuple(commands), notices=tuple(echoes))


def _park(state: SagaState, number: int, why: str, moment: Moment, **facts: Any) -> Decision:
    """Leave the saga, at this step, to a person."""
    step = state.steps[number - 1]
    going_back = state.status is SagaStatus.COMPENSATING
    step = step.moved("undo parked" if going_back else "parked", parked=why, **facts)
    state = _moved(state, "parked", moment, _put(state.steps, number, step))
    body = parked_body(state.saga_id, state.status, why)
    notice = Notice(kind="parked", saga_id=state.saga_id, request_id=state.request_id, body=body)
    return Decision(state=state, notices=(notice,))


def _end(state: SagaState) -> Decision:
    return Decision(state=state, notices=(outcome(state, state.request_id),))


def outcome(state: SagaState, request_id: str | None) -> Notice:
    """How an ended saga has ended, told to whoever made this request."""
    body = outcome_body(state.saga_id, state.status, state.reason)
    return Notice(kind="outcome", saga_id=state.saga_id, request_id=request_id, body=body)


def _put(steps: tuple[Step, ...], number: int, step: Step) -> tuple[Step, ...]:
    """The steps, with this one in the place of the one of that number."""
    return (*steps[: number - 1], step, *steps[number:])


def _moved(
    state: SagaState,
    happening: str,
    moment: Moment,
    steps: tuple[Step, ...],
    *,
    cancelling: str | None = None,
    reason: str | None = None,
    undone: tuple[int, ...] = (),
) -> SagaState:
    """The saga after `happening`, with these steps. Raises ImpossibleTransition.

    `cancelling`: why it is to be cancelled from now on; `reason`: why it goes back from now on; `undone`: the steps
    whose undo begins now.
    """
    try:
        status = TRANSITIONS[state.status, happening]
    except KeyError:
        raise ImpossibleTransition(f"{happening!r} cannot happen to a saga that is {state.status}") from None
    return replace(
        state,
        status=status,
        steps=steps,
        current_step=plan.current(steps, state.current_step),
        reason=reason or state.reason,
        cancelling=cancelling,
        compensating_steps=state.compensating_steps + undone,
        updated_ms=moment.now_ms,
    )


def _quote(error: bytes | None) -> str:
    """An error for people: a string as it is, any other JSON value as its text."""
    if error is None:
        return "no reason given"
    value = orjson.loads(error)
    text = value if isinstance(value, str) else error.decode()
    return text if len(text) <= REASON_CHARS else text[:REASON_CHARS] + "…"


def no_answer(step: Step) -> bytes:
    """The error of an attempt that was not answered in time, as JSON."""
    return encode(f"no answer within {step.definition.timeout_ms} ms")

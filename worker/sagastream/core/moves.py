"""What a saga can do next: complete a step, try again, go back, undo, park, end. Each move is a Decision.

decision.py decides which move an event leads to; plan.py says which step comes next. All changes of a saga's status are
in transitions.TRANSITIONS, all changes of a step's phase in phases.STEP. Pure, as they are.
"""

from typing import Any, Final

import orjson
from msgspec.structs import replace

from sagastream.core import plan, references
from sagastream.core.backoff import step_delay_ms
from sagastream.core.forward import advance, declined, sources_of
from sagastream.core.messages import Begin, Signal
from sagastream.core.phases import ACTIVE, Phase
from sagastream.core.references import Failure
from sagastream.core.saga import Intervention, KeptSignal, SagaState
from sagastream.core.sending import NOBODY_KNOWS, send_compensation, send_transaction, undo_of
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN, StepDefinition, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment, end, moved, park, parked_notice, put, sent, status_after
from sagastream.errors import CannotBuild

#: The longest text that a saga's reason quotes of an error; the whole error stays with the step.
REASON_CHARS: Final = 500


# --- forward


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
        return _go_back(state, steps, state.cancelling, moment)
    if state.cancelling is not None:
        why = f"step {number}, the pivot, was done before this could be: {state.cancelling}"
        state = state.with_intervention(Intervention(verb="too late", reason=why, at_ms=moment.now_ms))
    return _go_on(state, steps, moment, "step completed")


def skip(state: SagaState, number: int, moment: Moment) -> Decision:
    """Go on as if this parked step were done or, if its undo is parked, as if it were undone."""
    step = state.steps[number - 1]
    if step.being_undone:
        step = step.moved("undo skipped")
        return _undo_next(moved(state, "compensation skipped", moment, put(state.steps, number, step)), moment)
    return _go_on(state, put(state.steps, number, step.moved("skipped")), moment, "step skipped")


def _go_on(state: SagaState, steps: tuple[Step, ...], moment: Moment, happening: str) -> Decision:
    """Begin what may begin now; end the saga if nothing is left to do."""
    steps, signals, commands, failed = advance(state, steps, moment)
    if failed is not None:
        number, why = failed
        return fail_step(moved(state, happening, moment, steps), number, encode(why), moment, unknown=False)
    if not commands and plan.is_done(steps):
        happening = f"last {happening}"
    before = state
    state = moved(state, happening, moment, steps)
    if signals is not before.signals:
        state = replace(state, signals=signals)
    if state.ended:
        return end(state)
    decision = sent(state, commands)
    if before.format == PLAIN:
        return decision
    parked = [number for number in state.parked_steps if before.steps[number - 1].parked is None]
    notices = tuple([parked_notice(state, str(steps[number - 1].parked)) for number in parked])
    return replace(decision, notices=decision.notices + notices) if parked else decision


# --- waits


def signal(state: SagaState, event: Signal, moment: Moment) -> Decision:
    """A signal has come that a step waits for, or will wait for."""
    for number, step in enumerate(state.steps, 1):
        shape = step.definition.shape
        if step.phase is Phase.AWAITING and shape.wait == event.name:
            if event.declined is not None:
                return _fail_wait(state, number, declined(event.name, event.declined), moment)
            return complete_step(state, number, event.payload, moment)
        if step.phase is Phase.RETRY_AWAITED and shape.retry_on == event.name:
            return _retry_on(state, number, event.declined, moment)
    one = KeptSignal(name=event.name, payload=event.payload, declined=event.declined, at_ms=moment.now_ms)
    return Decision(state=replace(state, signals=(*state.signals, one), updated_ms=moment.now_ms))


def wait_over(state: SagaState, number: int, moment: Moment) -> Decision:
    """The time is over for which this step waits."""
    shape = state.steps[number - 1].definition.shape
    if state.steps[number - 1].phase is Phase.RETRY_AWAITED:
        why = f"{quote(state.steps[number - 1].error)}; no signal {shape.retry_on} within {shape.retry_within_ms} ms"
        return _give_up_retry(state, number, encode(why), moment)
    if shape.wait is None or shape.goes_on:
        return complete_step(state, number, None, moment)
    return _fail_wait(state, number, f"no signal {shape.wait} within {shape.wait_ms} ms", moment)


def _fail_wait(state: SagaState, number: int, why: str, moment: Moment) -> Decision:
    if state.steps[number - 1].definition.kind is StepKind.RETRIABLE:
        return park(state, number, why, moment, error=encode(why))
    return fail_step(state, number, encode(why), moment, unknown=False)


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
    return _retry_on(state, number, kept.declined, moment)


def _retry_on(state: SagaState, number: int, why_not: str | None, moment: Moment) -> Decision:
    """The signal has come for which this step waits, to be sent again."""
    step = state.steps[number - 1]
    if why_not is not None:
        why = declined(str(step.definition.shape.retry_on), why_not)
        return _give_up_retry(state, number, encode(f"{quote(step.error)}; {why}"), moment)
    return _send_again(state, number, replace(step, tried_before=step.attempt), moment)


def _give_up_retry(state: SagaState, number: int, error: bytes, moment: Moment) -> Decision:
    """This step waits no more to be sent again. Its service has recorded no failure, so another delivery of its command
    may still do it."""
    step = state.steps[number - 1]
    if _may_be_past_pivot(step.definition, True, moment):
        why = f"{step.command} of step {number} failed: {quote(error)}; it may be done all the same by a late delivery"
        return park(state, number, f"{why}, and nothing undoes it", moment, error=error, unknown=True)
    return fail_step(state, number, error, moment, unknown=True)


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
    return _give_up_attempts(state, number, error, moment, unknown=unknown, **facts)


def fail_transaction(state: SagaState, number: int, error: bytes | None, moment: Moment) -> Decision:
    """This step was not done, says its service, and is not tried again after a delay."""
    if state.cancelling is None and state.steps[number - 1].definition.shape.retry_on is not None:
        return _await_retry(state, number, moment, error=error)
    return fail_step(state, number, error, moment, unknown=False)


def _give_up_attempts(
    state: SagaState, number: int, error: bytes | None, moment: Moment, *, unknown: bool, **facts: Any
) -> Decision:
    step = state.steps[number - 1]
    definition, undoing = step.definition, step.being_undone
    times = f" {step.current_attempt} times" if step.current_attempt > 1 else ""
    failed = f"{step.command} of step {number} failed{times}: {quote(error)}"
    if undoing or definition.kind is StepKind.RETRIABLE:
        return park(state, number, failed, moment, **facts)
    if state.cancelling is None and definition.shape.retry_on is not None:
        return _await_retry(state, number, moment, **facts)
    if _may_be_past_pivot(definition, unknown, moment):
        why = f"{failed}; it may have been done all the same, and nothing undoes it"
        return park(state, number, why, moment, **facts)
    if state.cancelling is not None:
        step = _given_up(step, moment, **facts)
        return _go_back(state, put(state.steps, number, step), state.cancelling, moment)
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
        # Nobody knew what undoes it, or what that is to be told. By now a service may have published it.
        return _undo_next(state.with_step(number, _left(step)), moment)
    if not step.being_undone and (step.attempt == 0 or not step.definition.shape.sends):
        step = step.moved("waits again", error=None)
        return _go_on(state, put(state.steps, number, step), moment, "sent again")
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
    why = f"Step {number} failed: {quote(error)}{times}"
    if state.failed_step is not None:
        why = str(state.cancelling)  # the first failure counts
    elif state.format != PLAIN:
        state = replace(state, failed_step=number)
    return _go_back(state, put(state.steps, number, step), why, moment, "step failed")


def cancel(state: SagaState, why: str, moment: Moment, *, now: bool, not_done: int | None = None) -> Decision:
    """Go back: as soon as what is out is answered or, if no command is out, at once.

    Args:
        now: at once in any case. What is out counts as unknown from now on.
        not_done: a person, who has seen that this step is parked, says by this that it was not done.
    """
    if state.cancelling is not None:
        why = f"{state.cancelling}; {why}"
    for number in state.active_steps:
        step = state.steps[number - 1]
        if number == not_done:
            step = _given_up(step, moment, unknown=False)
            state = state.with_step(number, step)
        elif (now or not step.in_flight) and _may_be_past_pivot(step.definition, _may_be_done(step), moment):
            why = f"{why}; {step.command} may have been done, and nothing undoes it"
            return park(state, number, why, moment, **_let_go_facts(step))
    return _go_back(state, state.steps, why, moment, now=now)


def _may_be_done(step: Step) -> bool:
    """Whether a step that is given up without a final answer may have been done, or may still be."""
    # If a failure would have been tried again, another delivery of the command may still do it.
    return step.in_flight or step.unknown or step.definition.retried


def _go_back(
    state: SagaState,
    steps: tuple[Step, ...],
    why: str,
    moment: Moment,
    happening: str = "cancelled",
    *,
    now: bool = False,
) -> Decision:
    """Go back as soon as nothing is out. What waits for anything but an answer waits no longer.

    Rejected: to undo at once what is beside the commands that are out. That would be as safe, but compensations would
    not know their results, and the ways that a saga can take could not be counted.

    `now`: what is out counts as unknown.
    """
    is_out = False
    for number, step in enumerate(steps, 1):
        if step.in_flight and not now:
            is_out = True
        elif step.phase in ACTIVE:
            steps = put(steps, number, _let_go(step, moment))
    if state.signals:
        state = replace(state, signals=())  # nobody waits for them any more
    if is_out:
        return Decision(state=moved(state, "to be cancelled", moment, steps, cancelling=why))
    return _undo_next(moved(state, happening, moment, steps, reason=why), moment)


def _let_go(step: Step, moment: Moment) -> Step:
    """The step if the saga goes back while the step waits for something."""
    if step.phase is Phase.AWAITING:
        return step.moved("failed", answered_ms=moment.now_ms, error=encode("the saga went back before its wait ended"))
    return _given_up(step, moment, **_let_go_facts(step))


def _let_go_facts(step: Step) -> dict[str, Any]:
    facts: dict[str, Any] = {"unknown": _may_be_done(step)}
    if step.in_flight:
        facts["error"] = encode("not answered when the saga was cancelled")
    return facts


def _given_up(step: Step, moment: Moment, *, unknown: bool, **facts: Any) -> Step:
    happening = "given up" if unknown else "failed"
    return step.moved(happening, answered_ms=moment.now_ms, unknown=unknown, **facts)


def compensate_step(state: SagaState, number: int, moment: Moment) -> Decision:
    """This step was undone."""
    step = state.steps[number - 1].moved("undone", compensation_answered_ms=moment.now_ms)
    return _undo_next(moved(state, "step compensated", moment, put(state.steps, number, step)), moment)


def abandon(state: SagaState, number: int, why: str, moment: Moment) -> Decision:
    """End the saga, which is parked at this step, without doing or undoing more."""
    steps = state.steps
    for at in state.active_steps:
        steps = put(steps, at, _abandoned(steps[at - 1]))
    reason = f"abandoned at step {number}: {why}"
    reason = f"{state.reason}; {reason}" if state.reason else reason
    return end(moved(state, "abandoned", moment, steps, reason=reason))


def _abandoned(step: Step) -> Step:
    if step.being_undone:
        return _left(step)
    unknown = _may_be_done(step) and step.phase is not Phase.AWAITING
    return step.moved("given up" if unknown else "failed", unknown=unknown)


def _left(step: Step) -> Step:
    """The step after its undo is given up."""
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
    told = step.definition.shape.compensation_params
    if told is not None and step.built_undo is None:
        try:
            step = replace(step, built_undo=references.build(told, sources_of(state, state.steps, _failure(state))))
        except CannotBuild as error:
            return park(state, number, f"what undoes step {number} cannot be told its compensation_params: {error}", moment)
    # The attempts of the undo are counted separately.
    step, command = send_compensation(state, number, replace(step, compensation=name, tried_before=0), moment.now_ms)
    return sent(moved(state, "compensation sent", moment, put(state.steps, number, step), undone=(number,)), [command])


def _failure(state: SagaState) -> Failure:
    """Why the saga goes back, as its compensations are told."""
    number = state.failed_step
    step = None if number is None else state.steps[number - 1]
    name = None if step is None else step.definition.shape.id or number
    return Failure(step=name, error=None if step is None else step.error, reason=state.reason or "")


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

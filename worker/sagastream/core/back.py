"""How a saga goes back: it fails or is cancelled, what is out settles, its steps are undone. Each move is a Decision.

All changes of a saga's status are in transitions.TRANSITIONS, all changes of a step's phase in phases.STEP. Pure, as
they are.
"""

from typing import Any, Final

import orjson
from msgspec.structs import replace

from sagastream.core import plan, references
from sagastream.core.forward import sources_of
from sagastream.core.pauses import is_paused
from sagastream.core.phases import ACTIVE, Phase
from sagastream.core.references import Failure
from sagastream.core.saga import SagaState
from sagastream.core.sending import NOBODY_KNOWS, hold, send_compensation, undo_of
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN, StepDefinition, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment, end, moved, park, put, sent
from sagastream.errors import CannotBuild

#: About how many bytes of commands one decision sends to undo steps. They carry the results of the steps, which are of
#: any number and size, and a broker takes 512 MB in one piece.
AT_ONCE_BYTES: Final = 8 << 20
#: The longest text that a saga's reason quotes of an error; the whole error stays with the step.
REASON_CHARS: Final = 500


def fail_step(
    state: SagaState, number: int, error: bytes | None, moment: Moment, *, unknown: bool, because: str | None = None
) -> Decision:
    """This step has failed for good: go back. `unknown`: it may have been done all the same. `because`: why it is not
    tried again."""
    step = given_up(state.steps[number - 1], moment, error=error, unknown=unknown)
    times = f" ({step.attempt} attempts)" if step.attempt > 1 else ""
    why = f"Step {state.told(number)} failed: {quote(error)}{times}"
    if because is not None:
        why = f"{why}; {because}"
    if state.format != PLAIN and state.cancelling is not None:
        why = state.cancelling  # what came first counts: another failure, a cancel, the deadline
    elif state.format != PLAIN:
        state = replace(state, failed_step=number)
    return go_back(state, put(state.steps, number, step), why, moment, "step failed")


def cancel(state: SagaState, why: str, moment: Moment, *, now: bool, not_done: int | None = None) -> Decision:
    """Go back: as soon as what is out is answered or, if no command is out, at once.

    Args:
        now: at once in any case. What is out counts as unknown from now on.
        not_done: a person, who has seen that this step is parked, says by this that it was not done.
    """
    if state.cancelling is not None:
        why = state.cancelling if state.cancelling.endswith(why) else f"{state.cancelling}; {why}"
    for number in state.active_steps:
        step = state.steps[number - 1]
        if number == not_done:
            step = given_up(step, moment, unknown=False)
            state = state.with_step(number, step)
        elif (now or not step.in_flight) and may_be_past_pivot(step.definition, moment, unknown=may_be_done(step)):
            why = f"{why}; {step.command} may have been done, and nothing undoes it"
            return park(state, number, why, moment, **_let_go_facts(step))
    return go_back(state, state.steps, why, moment, now=now)


def may_be_done(step: Step) -> bool:
    """Whether a step that is given up without a final answer may have been done, or may still be."""
    if step.attempt == 0 or not step.definition.shape.sends:
        return False  # nothing was sent
    # If a failure would have been tried again, another delivery of the command may still do it.
    return step.in_flight or step.unknown or step.definition.retried


def go_back(
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
    if is_out:
        # If the pivot is out, and is done, steps behind it may wait for a signal that has come.
        return Decision(state=moved(state, "to be cancelled", moment, steps, cancelling=why))
    if state.signals:
        state = replace(state, signals=())  # nobody waits for them any more
    return undo_next(moved(state, happening, moment, steps, reason=why), moment)


def _let_go(step: Step, moment: Moment) -> Step:
    """The step if the saga goes back while the step waits for something."""
    if step.phase is Phase.AWAITING:
        return step.moved("failed", answered_ms=moment.now_ms, error=encode("the saga went back before its wait ended"))
    return given_up(step, moment, **_let_go_facts(step))


def _let_go_facts(step: Step) -> dict[str, Any]:
    facts: dict[str, Any] = {"unknown": may_be_done(step)}
    if step.in_flight:
        facts["error"] = encode("not answered when the saga was cancelled")
    return facts


def given_up(step: Step, moment: Moment, *, unknown: bool, **facts: Any) -> Step:
    happening = "given up" if unknown else "failed"
    return step.moved(happening, answered_ms=moment.now_ms, unknown=unknown, **facts)


def compensate_step(state: SagaState, number: int, moment: Moment) -> Decision:
    """This step was undone."""
    step = state.steps[number - 1].moved("undone", compensation_answered_ms=moment.now_ms)
    return undo_next(moved(state, "step compensated", moment, put(state.steps, number, step)), moment)


def abandon(state: SagaState, number: int, why: str, moment: Moment) -> Decision:
    """End the saga, which is parked at this step, without doing or undoing more."""
    steps = state.steps
    for at in state.active_steps:
        steps = put(steps, at, _abandoned(steps[at - 1]))
    reason = f"abandoned at step {state.told(number)}: {why}"
    reason = f"{state.reason}; {reason}" if state.reason else reason
    return end(moved(state, "abandoned", moment, steps, reason=reason))


def _abandoned(step: Step) -> Step:
    if step.being_undone:
        return left(step)
    unknown = may_be_done(step)
    return step.moved("given up" if unknown else "failed", unknown=unknown)


def left(step: Step) -> Step:
    """The step after its undo is given up."""
    return step.moved("left in doubt" if step.unknown else "left done")


def undo_next(state: SagaState, moment: Moment) -> Decision:
    """Undo the steps that may be undone now; end the saga if nothing is left to undo."""

    def needs_undo(step: Step) -> bool:
        return undo_of(step.definition, moment.published) is not None

    decision, size = Decision(state=state), 0
    for number in plan.undoable(state.steps, needs_undo):
        more = _undo(state, number, moment, at_once=size < AT_ONCE_BYTES)
        size += sum([command.size for command in more.commands])
        assert isinstance(more.state, SagaState)
        state = more.state
        commands, notices = decision.commands + more.commands, decision.notices + more.notices
        decision = Decision(state=state, commands=commands, notices=notices)
    if plan.is_undone(state.steps, needs_undo):
        return end(moved(state, "nothing left to undo", moment, state.steps))
    return decision


def _undo(state: SagaState, number: int, moment: Moment, *, at_once: bool) -> Decision:
    """Send the compensation of this step, or hold it if it is paused, or put it off by no time at all, so that another
    decision sends it; park the step if nobody knows the compensation."""
    step = state.steps[number - 1]
    definition = step.definition
    name = undo_of(definition, moment.published)
    if name == NOBODY_KNOWS:
        why = (
            f"nobody knows what undoes {definition.transaction} of step {state.told(number)}: "
            f"service {definition.service} published no such command, and the step names no compensation"
        )
        return park(state, number, why, moment)
    try:
        if (told := told_to_undo(state, number)) is not step.built_undo:
            step = replace(step, built_undo=told)
    except CannotBuild as error:
        return park(
            state,
            number,
            f"what undoes step {state.told(number)} cannot be told its compensation_params: {error}",
            moment,
        )
    assert name is not None  # what needs no undo is not undone
    # The attempts of the undo are counted separately.
    step = replace(step, compensation=name, tried_before=0)
    if (paused := is_paused(definition.service, name, moment.paused)) or not at_once:
        step = hold(step) if paused else step.moved("undo put off", due_ms=moment.now_ms)
        steps = put(state.steps, number, step)
        return Decision(state=moved(state, "compensation put off", moment, steps, undone=(number,)))
    step, command = send_compensation(state, number, step, moment.now_ms)
    return sent(moved(state, "compensation sent", moment, put(state.steps, number, step), undone=(number,)), [command])


def told_to_undo(state: SagaState, number: int) -> bytes | None:
    """What the compensation of this step is told: its `compensation_params`, built once; None: it has none. Raises
    CannotBuild."""
    step = state.steps[number - 1]
    told = step.definition.shape.compensation_params
    if told is None or step.built_undo is not None:
        return step.built_undo
    before = sum([len(one.built_undo) for one in state.steps if one.built_undo is not None])
    sources = sources_of(state, lambda: state.steps, _failure(state))
    return references.build(told, sources, references.MAX_TOGETHER_BYTES - before)


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


def is_parked_past_return(state: SagaState, moment: Moment) -> bool:
    """Whether the saga is parked at its pivot, nobody knows whether that was done, and nothing undoes it."""
    step = state.step
    return step.parked is not None and may_be_past_pivot(step.definition, moment, unknown=may_be_done(step))


def may_be_past_pivot(definition: StepDefinition, moment: Moment, *, unknown: bool) -> bool:
    """Whether the saga may be past its pivot, and cannot find out."""
    return definition.kind is StepKind.PIVOT and unknown and not undo_of(definition, moment.published)

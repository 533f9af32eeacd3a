"""What must hold for every decision of the core, whatever led to it."""

from collections.abc import Iterator, Sequence
from typing import Final

import orjson
from msgspec.structs import replace

from sagastream.core.commands import Command, Reply, ok
from sagastream.core.decision import FAULT, Event
from sagastream.core.messages import Begin, Due, Intervene, Verb
from sagastream.core.pauses import NOTHING_PAUSED, Paused
from sagastream.core.phases import Phase
from sagastream.core.saga import Found, SagaState, SagaStatus
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import PLAIN, StepKind
from sagastream.core.transitions import Decision
from sagastream.store import saga_hash

#: The time of every event. What is set for a later time may come due at any moment.
NOW: Final = 1_700_000_000_000


def canonical(state: SagaState) -> SagaState:
    """The state without what no decision depends on, so that histories that differ only in that lead to the same world.

    For times, only whether they are set counts: the explorer lets a time that is set come due at any moment. For texts,
    only whether there is one. For the version, only whether the hash has changed since it was read; the explorer keeps
    that with the worker. Duplicates are only counted.
    """
    steps = tuple(
        replace(
            step,
            sent_ms=_at(step.sent_ms),
            answered_ms=_at(step.answered_ms),
            error=step.error and b'"error"',
            late_ms=_at(step.late_ms),
            compensation_sent_ms=_at(step.compensation_sent_ms),
            compensation_answered_ms=_at(step.compensation_answered_ms),
            compensation_error=step.compensation_error and b'"error"',
            due_ms=step.due_ms if step.due_ms is None or step.is_held else NOW + _wait_ms(step),
            parked=step.parked and "parked",
        )
        for step in state.steps
    )
    return replace(
        state,
        steps=steps,
        reason=state.reason and "reason",
        cancelling=state.cancelling and "cancelled",
        interventions=tuple(replace(done, reason="reason", at_ms=NOW) for done in state.interventions),
        signals=tuple(replace(kept, at_ms=NOW) for kept in state.signals),
        duplicates=0,
        updated_ms=NOW,
        version=1,
    )


def _wait_ms(step: Step) -> int:
    if step.phase is Phase.AWAITING:
        return step.definition.shape.wait_ms or 0
    if step.phase is Phase.RETRY_AWAITED:
        return step.definition.shape.retry_within_ms or 0
    return step.definition.timeout_ms if step.in_flight else step.definition.backoff_ms


def _at(ms: int | None) -> int | None:
    return None if ms is None else NOW


def broken_by_decision(
    before: SagaState | None, event: Event, decision: Decision, now_ms: int, paused: Paused = NOTHING_PAUSED
) -> str | None:
    """What is wrong with a decision; None: nothing. `paused`: what the worker knows to be paused."""
    after = decision.state
    told = [decision.quarantine or "", *(notice.body.decode() for notice in decision.notices)]
    if fault := next((text for text in told if FAULT in text), None):
        return fault
    if isinstance(event, Reply) and decision.quarantine is not None and not _denied(before, event):
        return f"{event.type} of step {event.step} is quarantined: {decision.quarantine}"
    if not isinstance(after, SagaState):
        return "something was sent for no saga" if decision.commands else None
    if (broken := broken_by_change(before, after, decision.commands)) is not None:
        return broken
    if before is not None and (broken := _broken_beside(before, event, after, now_ms)) is not None:
        return broken
    if before is not None and (broken := _broken_at_once(before, event, after, now_ms)) is not None:
        return broken
    if (broken := _broken_pauses(before, after, decision, paused)) is not None:
        return broken
    moved = before is not None and (decision.commands or _position(after) != _position(before))
    if moved and before is not None and isinstance(event, Reply) and event.step not in before.active_steps:
        return f"a reply of step {event.step} moved the saga, which is at step {before.current_step}"
    return _broken_notices(before, event, decision, after) or _broken_by_hash(before, after)


def _broken_pauses(before: SagaState | None, after: SagaState, decision: Decision, paused: Paused) -> str | None:
    """Of what is paused, nothing is sent; and nothing else is held anew."""
    names = {name for command in decision.commands for name in (command.service, f"{command.service}/{command.type}")}
    if names & paused:
        return f"{', '.join(sorted(names & paused))} is paused, and a command was sent: {_shown(after)}"
    for number, step in enumerate(after.steps, 1):
        service, was = step.definition.service, None if before is None else before.steps[number - 1]
        if not step.is_held or (was is not None and was.is_held):
            continue
        if not {service, f"{service}/{step.command}"} & paused:
            return f"step {number} is held, and is not paused: {_shown(after)}"
    return None


def _broken_notices(before: SagaState | None, event: Event, decision: Decision, after: SagaState) -> str | None:
    """Everybody is told of what happens, and nothing is sent of which the saga does not know."""
    kinds = [notice.kind for notice in decision.notices]
    if ("outcome" in kinds) != (after.ended and (before is None or not before.ended)) and not _asks_again(
        before, event
    ):
        return f"the saga is {after.status}, it was told: {kinds}"
    if kinds.count("parked") != len(parked := list(_newly_parked(before, event, after))):
        return f"steps {parked} were parked, it was told: {kinds}"
    if after is before and decision.commands:
        return "something was sent, and the saga does not know"
    return None


def _newly_parked(before: SagaState | None, event: Event, after: SagaState) -> Iterator[int]:
    retried = isinstance(event, Intervene) and event.verb is Verb.RETRY
    for number, step in enumerate(after.steps, 1):
        was = None if before is None else before.steps[number - 1]
        # What is tried again may park at once, for the same reason.
        if step.parked is not None and (was is None or step.parked != was.parked or (retried and step is not was)):
            yield number


def _broken_beside(before: SagaState, event: Event, after: SagaState, now_ms: int) -> str | None:
    """What happens to one step decides about no other: while the saga settles, each command that is out is waited for.
    Only a person, or a hard deadline, gives up what is out; and then it may have been done."""
    at_once = _is_hard(before, event, now_ms) or (isinstance(event, Intervene) and event.now)
    # In a world, one step is due at a time; or the deadline is, which is about no step.
    deadline_ms = before.deadline_now_ms if before.deadline_counts else None
    is_deadline = deadline_ms is not None and deadline_ms <= now_ms
    times = [] if is_deadline else enumerate(before.steps, 1)
    due = [number for number, step in times if step.due_ms is not None and step.due_ms <= now_ms]
    meant = [event.step] if isinstance(event, Reply) else due if isinstance(event, Due) else before.parked_steps
    for number, (was, now) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if number in meant or not was.is_active or isinstance(event, Begin):
            continue
        never_sent = was.phase is Phase.AWAITING or (was.phase is Phase.BACKING_OFF and was.attempt == 0)
        if now.phase is Phase.FAILED and not never_sent:
            return f"step {number} may have been done, and counts as not done: something else happened"
        if was.phase in (Phase.OUT, Phase.UNDO_OUT) and now.phase is not was.phase and not at_once:
            return f"step {number} was out, and is waited for no more: it is {now.phase}"
    return None


def _is_hard(before: SagaState, event: Event, now_ms: int) -> bool:
    """Whether this is the hard deadline of the saga, and a transaction is out that was sent before it. What was sent
    later, because an operator said retry, is waited for."""
    deadline_ms = before.deadline_now_ms
    if not isinstance(event, Due) or not before.hard_deadline or deadline_ms is None or deadline_ms > now_ms:
        return False
    return any(step.phase is Phase.OUT and (step.sent_ms or 0) < deadline_ms for step in before.steps)


def _broken_at_once(before: SagaState, event: Event, after: SagaState, now_ms: int) -> str | None:
    """After a cancel that says `now`, and after a hard deadline, no transaction that was out is waited for. What an
    operator says counts for what they saw."""
    if isinstance(event, Intervene) and (broken := _broken_word(before, event, after)) is not None:
        return broken
    is_cancel = isinstance(event, Intervene) and event.now and event.verb is Verb.CANCEL
    asked = is_cancel and len(after.interventions) > len(before.interventions)
    passed = _is_hard(before, event, now_ms) and not (before.past_pivot or before.parked or before.is_to_start)
    if not asked and not passed:
        return None
    if asked and (before.status is SagaStatus.COMPENSATING or before.parked is not None):
        return f"cancelled at once, and no transaction is out: {_shown(before)}"
    if before.status is SagaStatus.COMPENSATING:
        return None
    if after.status is SagaStatus.PENDING and after.parked is None:
        return f"cancelled at once, and it goes on: {_shown(after)}"
    if after.parked is None and any(_is_pivot_in_doubt(step) for step in after.steps):
        return f"cancelled at once, and its pivot may have been done: {_shown(after)}"
    return None


def _broken_word(before: SagaState, event: Intervene, after: SagaState) -> str | None:
    """What an operator says of a step counts for the state that they saw; and nothing else says that a step was not
    done that may have been."""
    if len(after.interventions) == len(before.interventions):
        return None
    places = [before.parked_place(number) for number in before.parked_steps]
    if event.parked_at is not None and event.parked_at not in places:
        return f"{event.verb} was asked about {event.parked_at}, and done: {_shown(before)}"
    if event.step is not None and event.step not in before.parked_steps:
        return f"{event.verb} was asked about step {event.step}, and done: {_shown(before)}"
    for number, (earlier, later) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if earlier.unknown and later.phase is Phase.FAILED and event.parked_at is None:
            return f"step {number} may have been done, and a plain {event.verb} says that it was not"
    return None


def _denied(before: SagaState | None, reply: Reply) -> bool:
    """Whether an operator has said that a parked step was not done, by a cancel. Then `_ok` contradicts a person."""
    if before is None or reply.type.endswith("_failed"):
        return False
    step = before.steps[reply.step - 1]
    cancelled = any(done.verb == "cancel" for done in before.interventions)
    return cancelled and step.phase is Phase.FAILED and reply.type == ok(step.definition.transaction)


def broken_by_change(before: SagaState | None, after: SagaState, commands: Sequence[Command]) -> str | None:
    """What is wrong if `after` replaces `before` in the store and these commands are sent; None: nothing."""
    return _broken_history(before, after, commands) or _broken_state(after) or _broken_commands(before, after, commands)


def _broken_history(before: SagaState | None, after: SagaState, commands: Sequence[Command]) -> str | None:
    if before is None:
        return None
    if before.ended and (commands or _position(after) != _position(before)):
        return f"a saga that had ended, {before.status}, was moved to {_shown(after)}"
    for number, (earlier, later) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if later.attempt < earlier.attempt or later.compensation_attempt < earlier.compensation_attempt:
            return f"step {number} was set back to an earlier attempt"
    went_back = before.status is SagaStatus.PENDING and after.status in (SagaStatus.COMPENSATING, SagaStatus.ABORTED)
    if went_back and before.parked is None and any(_is_pivot_in_doubt(step) for step in after.steps):
        # If it was parked, a person has said so, and the person knows: see _broken_word.
        return f"goes back, and its pivot may have been done: {_shown(after)}"
    if before.past_pivot and (went_back or after.status is SagaStatus.COMPENSATING) and not is_abandoned(after):
        return f"goes back past its pivot: {_shown(after)}"
    if after.compensating_steps[: len(before.compensating_steps)] != before.compensating_steps:
        return f"compensated were {before.compensating_steps}, then {after.compensating_steps}"
    return _broken_reason(before, after)


def _broken_reason(before: SagaState, after: SagaState) -> str | None:
    """Why a saga goes back is what came first. What comes later may be added, and changes nothing else."""
    why, since = before.reason or before.cancelling, after.reason or after.cancelling
    if before.format == PLAIN or why is None or since is None:  # a pivot that is done ends it
        return None
    if not since.startswith(why) or after.failed_step != before.failed_step:
        return f"it went back since {why!r}, step {before.failed_step}; now since {since!r}, step {after.failed_step}"
    return None


def _broken_state(after: SagaState) -> str | None:
    if (broken := _broken_waits(after)) is not None:
        return broken
    for number, step in enumerate(after.steps, 1):
        if (broken := _broken_step(after, step)) is not None:
            return f"step {number} {broken}"
    if after.status is SagaStatus.PENDING and after.cancelling is None and (broken := _broken_signals(after)):
        return broken
    if after.parked is not None and not after.parked:
        return "parked without a reason"
    before = ancestors(after)
    undone = after.compensating_steps
    if any(number in before[later - 1] for at, number in enumerate(undone) for later in undone[at:]):
        return f"compensated in the order {undone}"
    sending = (step for step in after.steps if step.is_active and step.definition.shape.sends)
    if any(step.current_attempt > step.attempts for step in sending):
        return f"more attempts than there may be: {_shown(after)}"
    if after.status is SagaStatus.COMPLETED and not all(_is_done(step) for step in after.steps):
        return f"completed with steps that are not: {_shown(after)}"
    if after.status is SagaStatus.ABORTED and not is_abandoned(after):
        left = [number for number, step in enumerate(after.steps, 1) if _is_to_undo(step)]
        return f"aborted, and step {left} was not undone" if left else None
    return None


def _broken_waits(after: SagaState) -> str | None:
    """A live saga waits for something: a plain one for one step, a graph for one at least, or for its start."""
    active = after.active_steps
    if after.ended or after.is_to_start:
        return f"{_shown(after)}, active are {active}" if active or (after.ended and after.due_ms is not None) else None
    expected = max(active, default=0) if after.status is SagaStatus.COMPENSATING else min(active, default=0)
    if expected != after.current_step:
        return f"{_shown(after)}, active are {active}"
    if after.format == PLAIN:
        waits = [after.times_out_ms is not None, after.send_again_ms is not None, after.parked is not None]
        waits.append(after.step.is_held)
        if sum(waits) != 1 or len(active) > 1:
            return f"{_shown(after)}, active are {active}, for (times out, sent again, parked, held) {waits}"
    if after.cancelling is not None:
        idle = [number for number in active if not after.steps[number - 1].in_flight]
        if idle or after.status is not SagaStatus.PENDING:
            return f"it settles, and step {idle} does not wait for an answer: {_shown(after)}"
    failed = [n for n, step in enumerate(after.steps, 1) if step.phase in (Phase.FAILED, Phase.IN_DOUBT)]
    if failed and after.status is SagaStatus.PENDING and after.cancelling is None:
        return f"step {failed} has failed, and the saga goes on: {_shown(after)}"
    return None


def _broken_signals(saga: SagaState) -> str | None:
    """A signal that was taken is kept until a step waits for it; then it is the result of that step."""
    for name in {step.definition.shape.wait for step in saga.steps} - {None}:
        waits = [step for step in saga.steps if step.definition.shape.wait == name]
        kept = [one.declined for one in saga.signals if one.name == name]
        if kept and any(step.phase is Phase.AWAITING for step in waits):
            return f"a step waits for the signal {name}, which has come"
        taken = sum(done.verb == f"signal {name}" for done in saga.interventions)
        of_retry = any(step.definition.shape.retry_on == name for step in saga.steps)
        over = sum(step.phase in (Phase.COMPLETED, Phase.BYPASSED) for step in waits)
        if taken > kept.count(None) + over and not of_retry:
            return f"a signal {name} has come, and was lost"
    return None


def _broken_step(saga: SagaState, step: Step) -> str | None:
    """The phase of a step fits what it waits for, the direction of the saga, and what became of the step."""
    if (step.due_ms is not None) != (step.times_out_ms is not None or step.send_again_ms is not None or step.is_held):
        return f"is {step.phase}, and has the time {step.due_ms}"
    if (step.parked is not None) != (step.phase in (Phase.PARKED, Phase.UNDO_PARKED)):
        return f"is {step.phase}, parked: {step.parked}"
    if step.is_active and step.being_undone != (saga.status is SagaStatus.COMPENSATING):
        return f"is {step.phase}, the saga {saga.status}"
    if step.phase in (Phase.FAILED, Phase.IN_DOUBT) and step.unknown != (step.phase is Phase.IN_DOUBT):
        return f"is {step.phase}, unknown: {step.unknown}"
    if step.being_undone and step.error is not None and not step.unknown:
        return "failed, and is undone all the same"
    if step.being_undone and step.attempt == 0:
        return "was never sent, and is undone all the same"
    return None


def _broken_commands(before: SagaState | None, after: SagaState, commands: Sequence[Command]) -> str | None:
    if len(commands) > 1 and after.format == PLAIN:
        return f"{len(commands)} commands sent at once"
    if len({command.step for command in commands}) < len(commands):
        return f"two commands of one step: {_shown(after)}"
    for command in commands:
        step = after.steps[command.step - 1]
        if not step.in_flight or step.being_undone != command.compensating or step.current_attempt != command.attempt:
            return f"a command of step {command.step} was sent, and the step is {step.phase}: {_shown(after)}"
        if (broken := _out_of_order(after, command) or _other_params(before, command)) is not None:
            return broken
    return None


def _other_params(before: SagaState | None, command: Command) -> str | None:
    """Each attempt of a command carries the same params."""
    if before is None:
        return None
    was = before.steps[command.step - 1]
    if was.attempt and was.params != command.params:
        return f"step {command.step} was sent with {was.params!r}, and then with {command.params!r}"
    if command.compensating and was.compensation_attempt and was.built_undo != command.undo:
        return f"the undo of step {command.step} was told {was.built_undo!r}, and then {command.undo!r}"
    return None


def ancestors(saga: SagaState) -> list[set[int]]:
    """Of each step, all that come before it: counted here, and not by the code that is explored."""
    found: list[set[int]] = []
    for number, step in enumerate(saga.steps, 1):
        after = step.definition.shape.after
        direct = ([number - 1] if number > 1 else []) if after is None else after
        found.append(set(direct).union(*(found[one - 1] for one in direct)))
    return found


def _out_of_order(after: SagaState, command: Command) -> str | None:
    before = ancestors(after)
    if not command.compensating:
        if after.status is not SagaStatus.PENDING:
            return f"a transaction was sent of a saga that is {after.status}"
        if after.cancelling is not None:
            return f"step {command.step} was sent, and the saga is to go back: {_shown(after)}"
        if not all(_is_done(after.steps[number - 1]) for number in before[command.step - 1]):
            return f"step {command.step} was sent before those before it had completed"
        return None
    if after.status is not SagaStatus.COMPENSATING:
        return f"a compensation was sent of a saga that is {after.status}"
    if any(_is_to_undo(step) and command.step in before[at] for at, step in enumerate(after.steps)):
        return f"step {command.step} is undone before those after it were"
    return None


def _broken_by_hash(before: SagaState | None, after: SagaState) -> str | None:
    """The next worker reads what was written: the hash, read back, is the state, with the next version."""
    if after is before:
        return None
    wanted = replace(after, version=(before.version if before else 0) + 1)
    words = saga_hash.changed_fields(None, before) if before else []
    words += saga_hash.changed_fields(before, after)
    fields = {str(name).encode(): _bytes(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    if orjson.loads(fields[b"completed_steps"]) != list(after.completed_steps):
        return f"completed are {after.completed_steps}, written {fields[b'completed_steps']!r}"
    read = saga_hash.read(after.saga_id, fields)
    return None if read == wanted else f"written as {wanted}, read as {read}"


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _asks_again(before: Found, event: Event) -> bool:
    """If a saga_begin comes for a saga that has ended, its sender is told the outcome again."""
    return isinstance(before, SagaState) and before.ended and not isinstance(event, Reply | Due)


def _position(state: SagaState) -> tuple[object, ...]:
    steps = tuple(
        (step.status, step.attempt, step.compensation_attempt, step.parked, step.due_ms) for step in state.steps
    )
    return (state.status, state.current_step, state.compensating_steps, steps, state.cancelling)


def _shown(state: SagaState) -> str:
    return f"{state.status} at step {state.current_step} ({', '.join(step.status for step in state.steps)})"


def _is_done(step: Step) -> bool:
    return step.status is StepStatus.COMPLETED or step.skipped or step.phase is Phase.BYPASSED


def _is_to_undo(step: Step) -> bool:
    return step.definition.compensation is not None and step.may_have_effect


def _is_pivot_in_doubt(step: Step) -> bool:
    settled = step.status is StepStatus.COMPENSATED or step.skipped
    return step.definition.kind is StepKind.PIVOT and step.unknown and not (settled or step.definition.compensation)


def is_abandoned(state: SagaState) -> bool:
    return any(done.verb.partition(" ")[0] == Verb.ABANDON for done in state.interventions)

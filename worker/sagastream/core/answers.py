"""What a reply does to a saga: it is news, it comes too late, it says nothing new, or it makes no sense. Pure."""

from msgspec.structs import replace

from sagastream.core import back, moves
from sagastream.core.clock import by_the_clock
from sagastream.core.commands import Reply, failed, ok
from sagastream.core.notices import Notice
from sagastream.core.phases import ACTIVE
from sagastream.core.saga import Found, SagaState
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.transitions import Decision, Moment


def answer(state: Found, reply: Reply, moment: Moment) -> Decision:
    """What this reply does to the saga."""
    if not isinstance(state, SagaState):
        return Decision(state=state, quarantine=str(state or f"there is no saga {reply.saga_id}"))
    if (moved := by_the_clock(state, moment.now_ms, moment.watch)) is not state and not state.ended:
        state = moved
    if reply.step > len(state.steps):
        return Decision(state=state, quarantine=f"the saga has no step {reply.step}")
    step = state.steps[reply.step - 1]
    if not step.definition.shape.sends:
        return Decision(state=state, quarantine=f"step {reply.step} sends no command: nothing answers it")
    if not _is_from_its_service(step, reply):
        text = (
            f"step {reply.step} is one of {step.definition.service}: the service {reply.service} cannot answer for it"
        )
        return Decision(state=state, quarantine=text)
    if _is_news(step, reply):
        answered = _compensation_answered if step.being_undone else _transaction_answered
        decision = answered(state, step, reply, moment)
        echo = _echoed_reply(state, reply)
        return replace(decision, notices=echo + decision.notices) if echo else decision
    if _is_late(step, reply):
        late = step.moved(
            "done too late", due_ms=step.due_ms, parked=step.parked, late_ms=moment.now_ms, result=reply.result
        )
        return Decision(state=state.with_step(reply.step, late), notices=_echoed_reply(state, reply))
    if _is_undone_late(step, reply):
        late = step.moved("undone too late", compensation_answered_ms=moment.now_ms)
        state = replace(state.with_step(reply.step, late), duplicates=state.duplicates + 1)
        return Decision(state=state, notices=_echoed_reply(state, reply))
    if _answered_before(step, reply):
        return Decision(state=replace(state, duplicates=state.duplicates + 1))
    return Decision(state=state, quarantine=_why_unfit(state, step, reply))


def awaits(state: SagaState, reply: Reply) -> bool:
    """Whether the reply is news of a command that the saga waits for.

    "Done" is news, whichever attempt did it. "Failed" is news as long as that attempt is out, and always where it holds
    for all attempts.
    """
    if reply.step > len(state.steps):
        return False
    step = state.steps[reply.step - 1]
    return _is_from_its_service(step, reply) and _is_news(step, reply)


def _is_news(step: Step, reply: Reply) -> bool:
    """See `awaits`."""
    if step.phase not in ACTIVE or step.current_attempt == 0 or not step.definition.shape.sends:
        return False
    if reply.type == ok(command := step.command):
        return True
    if reply.type != failed(command):
        return False
    if not step.being_undone and not reply.unknown and not step.definition.retried:
        return True  # this holds for all attempts: nothing of the step remains
    return step.in_flight and reply.attempt in (None, step.current_attempt)


def _is_from_its_service(step: Step, reply: Reply) -> bool:
    """A service answers for its own steps alone, whatever a reply says."""
    return reply.service is None or reply.service == step.definition.service


def _transaction_answered(state: SagaState, step: Step, reply: Reply, moment: Moment) -> Decision:
    if reply.type == ok(step.command):
        return moves.complete_step(state, reply.step, reply.result, moment)
    if reply.unknown or step.is_tried_again:
        # If the saga will be cancelled, the step is not tried again, and another delivery may still do it.
        unknown = reply.unknown or state.cancelling is not None
        return moves.fail_attempt(state, reply.step, reply.error, moment, unknown=unknown)
    return moves.fail_transaction(state, reply.step, reply.error, moment)


def _compensation_answered(state: SagaState, step: Step, reply: Reply, moment: Moment) -> Decision:
    if reply.type == ok(step.command):
        return back.compensate_step(state, reply.step, moment)
    return moves.fail_attempt(state, reply.step, reply.error, moment, unknown=reply.unknown)


def _is_late(step: Step, reply: Reply) -> bool:
    """Whether the reply says that a transaction was done after its step was given up or skipped."""
    given_up = step.status in (StepStatus.FAILED, StepStatus.COMPENSATED) and (step.unknown or step.skipped)
    return given_up and step.late_ms is None and reply.type == ok(step.definition.transaction)


def _is_undone_late(step: Step, reply: Reply) -> bool:
    """Whether the reply says that a step was undone after an operator skipped its undo, or abandoned the saga."""
    if step.compensation is None or step.compensation_answered_ms is not None:
        return False
    return not step.being_undone and reply.type == ok(step.compensation)


def _answered_before(step: Step, reply: Reply) -> bool:
    """Whether the reply says what is known already, or answers an attempt that is no longer awaited."""
    if reply.type == ok(step.definition.transaction):
        return step.completed
    if reply.type == failed(step.definition.transaction):
        was_done = step.status in (StepStatus.COMPLETED, StepStatus.COMPENSATED) and not step.unknown
        return step.attempt > 0 and (not was_done or reply.unknown or step.definition.retried)
    if step.compensation is None:
        return False
    if reply.type == failed(step.compensation):
        # Two processes may have had the command: one has undone the step, and a handler of the other finds nothing left
        # to undo. No `failed` of an undo is for good, so it contradicts nothing.
        return True
    return reply.type == ok(step.compensation) and step.compensation_answered_ms is not None


def _why_unfit(state: SagaState, step: Step, reply: Reply) -> str:
    transaction = step.definition.transaction
    names = [transaction] + ([step.compensation] if step.compensation else [])
    if reply.type not in [kind(name) for name in names for kind in (ok, failed)]:
        return f"step {reply.step} is {transaction}; {reply.type} does not answer it"
    if step.sent_ms is None:
        return f"step {reply.step} was not sent yet"
    return f"too late: step {reply.step} is {step.status}, the saga {state.status}"


def _echoed_reply(state: SagaState, reply: Reply) -> tuple[Notice, ...]:
    if not state.echo:
        return ()
    service = state.steps[reply.step - 1].definition.service
    return (Notice(kind="reply", saga_id=state.saga_id, service=service, body=reply.body()),)

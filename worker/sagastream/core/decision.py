"""The decision core: what an event does to a saga. Pure: no Redis, no clock, no randomness.

`decide(state, event, moment)` returns a Decision, a value that says all that will be written and sent. The orchestrator
commits it in one piece. This module works out what an event means for a saga; moves.py has what a saga can do.
"""

from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from sagastream.core import moves
from sagastream.core.clock import by_the_clock
from sagastream.core.messages import (
    Begin,
    Code,
    Due,
    Intervene,
    Newer,
    Notice,
    Reply,
    Unreadable,
    Verb,
    done_body,
    error_body,
    failed,
    ok,
)
from sagastream.core.phases import ACTIVE
from sagastream.core.saga import Found, Intervention, SagaState, SagaStatus
from sagastream.core.same_saga import conflict
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.transitions import Decision, Moment, outcome
from sagastream.errors import ImpossibleTransition, NewerFormat, UnreadableSaga

#: What may happen: a request, a reply, a time that has come; an entry that is none of these, or for a newer release.
Event = Begin | Intervene | Reply | Due | Newer | Unreadable

#: Begins the text about an impossible transition.
FAULT: Final = "a fault in sagastream"


def decide(state: Found, event: Event, moment: Moment) -> Decision:
    """What `event` does to the saga `state`.

    Where `may_undo` says so, the moment must know what the services of the saga's steps publish.
    """
    if isinstance(event, Newer):
        return Decision(state=state, left=event.format)
    if isinstance(state, NewerFormat):
        return Decision(state=state, left=state.format)
    try:
        if isinstance(event, Reply):
            return _reply(state, event, moment)
        if isinstance(event, Due):
            return _due(state, moment) if isinstance(state, SagaState) else Decision(state=state)
        return _request(state, event, moment)
    except ImpossibleTransition as error:
        # This is a fault of sagastream. Raised, it would end each worker that takes over the entry, one after another.
        text = f"{FAULT}: {error}"
        if isinstance(event, Reply | Due):
            return Decision(state=state, quarantine=text)
        return _refuse(state, event, Code.CRASH, text)


def may_undo(state: SagaState, event: Event) -> bool:
    """Whether the event may lead to a compensation, for which the moment must know what services publish."""
    if isinstance(event, Reply) and state.status is SagaStatus.PENDING:
        return state.cancelling is not None or event.type.endswith("_failed")
    return isinstance(event, Reply | Due | Intervene)


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
    if step.phase not in ACTIVE or step.current_attempt == 0:
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


# --- requests


def _request(state: Found, event: Begin | Intervene | Unreadable, moment: Moment) -> Decision:
    if isinstance(event, Unreadable):
        return _refuse(state, event, event.code, event.text)
    if isinstance(state, UnreadableSaga):
        return _refuse(state, event, Code.CRASH, str(state))
    if isinstance(event, Begin):
        return _begin_again(state, event) if state else _begin(event, moment)
    return _intervene(state, event, moment)


def _refuse(state: Found, event: Begin | Intervene | Unreadable, code: Code, text: str) -> Decision:
    """A request is refused: its sender is told or, if it names none, the request is quarantined."""
    if event.request_id is None:
        return Decision(state=state, quarantine=text)
    body = error_body(code, text)
    notice = Notice(kind="refused", saga_id=event.saga_id, request_id=event.request_id, body=body)
    return Decision(state=state, notices=(notice,))


def _begin(event: Begin, moment: Moment) -> Decision:
    if moment.closed and (why := moment.closed.get(event.format)) is not None:
        return _refuse(None, event, Code.PRECONDITION_FAILED, why)
    return moves.begin(event, moment)


def _begin_again(state: SagaState, event: Begin) -> Decision:
    if event.request_id is not None and event.request_id == state.request_id:
        return Decision(state=state)  # the very same request, delivered again
    if (why_not := conflict(state, event)) is not None:
        return _refuse(state, event, Code.PRECONDITION_FAILED, why_not)
    # If it has ended, the sender is told the outcome again.
    return Decision(state=state, notices=(outcome(state, event.request_id),) if state.ended else ())


def _intervene(state: SagaState | None, event: Intervene, moment: Moment) -> Decision:
    if state is None:
        return _refuse(state, event, Code.NO_SUCH_SAGA, f"there is no saga {event.saga_id}")
    if not state.ended:
        state = by_the_clock(state, moment.now_ms, moment.watch)
    done = Notice(
        kind="done", saga_id=state.saga_id, request_id=event.request_id, body=done_body(event.verb, state.saga_id)
    )
    if state.has_taken(event.request_id):
        return Decision(state=state, notices=(done,))  # the very same request, delivered again
    if (why_not := _why_not(state, event, moment)) is not None:
        return _refuse(state, event, Code.PRECONDITION_FAILED, f"saga {state.saga_id} {why_not}")
    kept = Intervention(
        verb=f"{event.verb} now" if event.now else event.verb,
        reason=event.reason,
        at_ms=moment.now_ms,
        actor=event.actor,
        request_id=event.request_id,
    )
    decision = _VERBS[event.verb](state.with_intervention(kept), event, moment)
    return replace(decision, notices=((done,) if event.request_id is not None else ()) + decision.notices)


def _why_not(state: SagaState, event: Intervene, moment: Moment) -> str | None:
    """Why an operator's request cannot be done; None: it can."""
    if state.ended:
        return f"has ended, {state.status}"
    if event.parked_at is not None and event.parked_at != state.parked_at:
        # Whoever asks has seen another state, and what they say was not meant for this one.
        at = f"is parked at {state.parked_at}" if state.parked_at else f"waits for {state.waiting_for}"
        return f"is no longer parked at {event.parked_at}: it {at}"
    if event.verb is not Verb.CANCEL:
        return None if state.parked is not None else f"is not parked, it waits for {state.waiting_for}"
    return _why_not_cancelled(state, event, moment)


def _why_not_cancelled(state: SagaState, event: Intervene, moment: Moment) -> str | None:
    if state.status is SagaStatus.COMPENSATING:
        return "is being undone already; its compensation cannot be cancelled"
    if state.past_pivot:
        return "is past its pivot: there is no way back"
    if event.now and state.parked is None:
        return None
    not_done = f"To say that step {state.current_step} was not done, cancel with parked_at {state.parked_at}"
    if event.now:
        return f"is parked, so no command is out. {not_done}, without now"
    if event.parked_at is None and moves.is_parked_past_return(state, moment):
        # The request may have been sent before the saga was parked, so it says nothing of the outcome.
        return f"is parked: {state.step.command} may have been done, and nothing undoes it. {not_done}"
    return "is being cancelled already" if state.cancelling is not None else None


#: What each verb does; all but cancel are for the step that is parked.
_VERBS: Final[Mapping[Verb, Callable[[SagaState, Intervene, Moment], Decision]]] = {
    Verb.CANCEL: lambda state, asked, moment: moves.cancel(
        state, f"Cancelled: {asked.reason}", moment, now=asked.now, not_done=asked.parked_at is not None
    ),
    Verb.RETRY: lambda state, _asked, moment: moves.retry(state, state.current_step, moment),
    Verb.SKIP: lambda state, _asked, moment: moves.skip(state, state.current_step, moment),
    Verb.ABANDON: lambda state, asked, moment: moves.abandon(state, state.current_step, asked.reason, moment),
}


# --- time


def _due(state: SagaState, moment: Moment) -> Decision:
    """Do what is due by now. That may be nothing: the saga may have moved since it was found to be due, or it is only
    looked at because the broker's clock was set back, or went forward."""
    if state.due_ms is None:
        return Decision(state=state)
    if (moved := by_the_clock(state, moment.now_ms, moment.watch)) is not state:
        return Decision(state=moved)
    if state.due_ms > moment.now_ms:
        return Decision(state=state)
    comes_ms = state.deadline_now_ms
    if state.deadline_ms is not None and comes_ms is not None and comes_ms <= moment.now_ms and state.deadline_counts:
        # If a step is due as well, the saga stays due, and the next look at it deals with that.
        why = f"The deadline, {state.deadline_ms - state.begun_ms} ms after the begin, has passed"
        return moves.cancel(state, why, moment, now=state.is_cut_off)
    due = [n for n, step in enumerate(state.steps, 1) if step.due_ms is not None and step.due_ms <= moment.now_ms]
    step = state.steps[due[0] - 1]
    if step.in_flight:
        return moves.fail_attempt(state, due[0], moves.no_answer(step), moment, unknown=True)
    return moves.send_again(state, due[0], moment)


# --- replies


def _reply(state: Found, reply: Reply, moment: Moment) -> Decision:
    if not isinstance(state, SagaState):
        return Decision(state=state, quarantine=str(state or f"there is no saga {reply.saga_id}"))
    if (moved := by_the_clock(state, moment.now_ms, moment.watch)) is not state and not state.ended:
        state = moved
    if reply.step > len(state.steps):
        return Decision(state=state, quarantine=f"the saga has no step {reply.step}")
    step = state.steps[reply.step - 1]
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


def _transaction_answered(state: SagaState, step: Step, reply: Reply, moment: Moment) -> Decision:
    if reply.type == ok(step.command):
        return moves.complete_step(state, reply.step, reply.result, moment)
    if reply.unknown or step.failure_is_open:
        # If the saga will be cancelled, the step is not tried again, and another delivery may still do it.
        unknown = reply.unknown or state.cancelling is not None
        return moves.fail_attempt(state, reply.step, reply.error, moment, unknown=unknown)
    return moves.fail_step(state, reply.step, reply.error, moment, unknown=False)


def _compensation_answered(state: SagaState, step: Step, reply: Reply, moment: Moment) -> Decision:
    if reply.type == ok(step.command):
        return moves.compensate_step(state, reply.step, moment)
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
    is_undone = step.compensation_answered_ms is not None
    if reply.type == failed(step.compensation):
        # Two processes may have had the command: one has undone the step, and of the other nobody knows.
        return not is_undone or step.compensation_attempt > 1 or reply.unknown
    return is_undone and reply.type == ok(step.compensation)


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

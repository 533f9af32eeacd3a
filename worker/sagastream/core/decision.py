"""The decision core: what an event does to a saga. Pure: no Redis, no clock, no randomness.

`decide(state, event, moment)` returns a Decision, a value that says all that will be written and sent. The orchestrator
commits it in one piece. This module works out what an event means for a saga; moves.py has what a saga can do.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from sagastream.core import back, moves, waits
from sagastream.core.clock import by_the_clock
from sagastream.core.messages import (
    Begin,
    Code,
    Due,
    Intervene,
    Newer,
    Notice,
    Reply,
    Signal,
    ToSaga,
    Unreadable,
    Verb,
    done_body,
    error_body,
    failed,
    ok,
)
from sagastream.core.phases import ACTIVE, AWAITS, Phase
from sagastream.core.saga import Found, Intervention, SagaState, SagaStatus
from sagastream.core.same_saga import conflict
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import PLAIN
from sagastream.core.strict_json import MAX_BYTES
from sagastream.core.transitions import Decision, Moment, outcome
from sagastream.errors import ImpossibleTransition, NewerFormat, UnreadableSaga

#: What may happen: a request, a reply, a time that has come; an entry that is none of these, or for a newer release.
Event = Begin | ToSaga | Reply | Due | Newer | Unreadable

#: Begins the text about an impossible transition.
FAULT: Final = "a fault in sagastream"
#: The most that the payloads of the signals may take that a saga keeps for later waits, in bytes.
MAX_KEPT_BYTES: Final = MAX_BYTES


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
        if state.cancelling is not None or event.type.endswith("_failed"):
            return True
        # The next step may fail before it is sent.
        return state.format != PLAIN and not state.past_pivot
    return isinstance(event, Reply | Due | Intervene | Signal)


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


def _request(state: Found, event: Begin | ToSaga | Unreadable, moment: Moment) -> Decision:
    if isinstance(event, Unreadable):
        return _refuse(state, event, event.code, event.text)
    if isinstance(state, UnreadableSaga):
        return _refuse(state, event, Code.CRASH, str(state))
    if isinstance(event, Begin):
        return _begin_again(state, event) if state else _begin(event, moment)
    if isinstance(event, Signal):
        return _signal(state, event, moment)
    return _intervene(state, event, moment)


def _refuse(state: Found, event: Begin | ToSaga | Unreadable, code: Code, text: str) -> Decision:
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
    done = _done(state, event)
    if state.has_taken(event.request_id):
        return Decision(state=state, notices=done)  # the very same request, delivered again
    number = _step_meant(state, event)
    if (why_not := _why_not(state, number, event, moment)) is not None:
        return _refuse(state, event, Code.PRECONDITION_FAILED, f"saga {state.saga_id} {why_not}")
    kept = Intervention(
        verb=f"{event.verb} now" if event.now else event.verb,
        reason=event.reason,
        at_ms=moment.now_ms,
        actor=event.actor,
        request_id=event.request_id,
    )
    decision = _VERBS[event.verb](state.with_intervention(kept), number, event, moment)
    return replace(decision, notices=done + decision.notices)


def _done(state: SagaState, event: ToSaga) -> tuple[Notice, ...]:
    """The answer to a request that was done."""
    if event.request_id is None:
        return ()
    body = done_body(event.verb, state.saga_id)
    return (Notice(kind="done", saga_id=state.saga_id, request_id=event.request_id, body=body),)


def _step_meant(state: SagaState, event: Intervene) -> int | None:
    """The number of the step that a request means; None: it means none of those that the saga has."""
    if event.step is not None:
        return state.number_of(event.step)
    if event.parked_at is not None:
        number = int(event.parked_at.partition("/")[0])
        return number if number <= len(state.steps) else None
    parked = state.parked_steps
    return parked[0] if parked else state.current_step


def _why_not(state: SagaState, number: int | None, event: Intervene, moment: Moment) -> str | None:
    """Why an operator's request cannot be done; None: it can. `number`: of the step that it means."""
    if state.ended:
        return f"has ended, {state.status}"
    if number is None and event.step is not None:
        return f"has no step {event.step}"
    place = None if number is None else state.parked_place(number)
    if event.parked_at is not None and event.parked_at != place:
        # Whoever asks has seen another state, and what they say was not meant for this one.
        at = f"is parked at {state.parked_at}" if state.parked_at else f"waits for {state.waiting_for}"
        return f"is no longer parked at {event.parked_at}: it {at}"
    if event.verb is Verb.CANCEL:
        return _why_not_cancelled(state, event, moment)
    if place is None:
        if event.step is not None and state.parked_at is not None:
            return f"is not parked at step {event.step}, but at {state.parked_at}"
        return f"is not parked, it waits for {state.waiting_for}"
    if event.step is None and event.parked_at is None and len(parked := state.parked_steps) > 1:
        steps = ", ".join(map(str, parked))
        return f"is parked at several steps: {steps}. Say which one is meant: step"
    if event.verb is Verb.ABANDON and not event.now and (out := _out(state)):
        return f"has commands out, of step {', '.join(map(str, out))}: abandon it with now, and they count as unknown"
    return None


def _out(state: SagaState) -> list[int]:
    """The numbers of the steps of which a command is out."""
    return [number for number, step in enumerate(state.steps, 1) if step.in_flight]


def _why_not_cancelled(state: SagaState, event: Intervene, moment: Moment) -> str | None:
    if state.status is SagaStatus.COMPENSATING:
        return "is being undone already; its compensation cannot be cancelled"
    if state.past_pivot:
        return "is past its pivot: there is no way back"
    if event.now and state.parked is None:
        return None
    parked = state.parked_steps
    not_done = f"To say that step {parked[0] if parked else 0} was not done, cancel with parked_at {state.parked_at}"
    if event.now:
        return f"is parked, so no command is out. {not_done}, without now"
    if event.parked_at is None and back.is_parked_past_return(state, moment):
        # The request may have been sent before the saga was parked, so it says nothing of the outcome.
        return f"is parked: {state.step.command} may have been done, and nothing undoes it. {not_done}"
    return "is being cancelled already" if state.cancelling is not None else None


#: What each verb does; all but cancel are for a step that is parked: its number.
_VERBS: Final[Mapping[Verb, Callable[[SagaState, Any, Intervene, Moment], Decision]]] = {
    Verb.CANCEL: lambda state, number, asked, moment: back.cancel(
        state,
        f"Cancelled: {asked.reason}",
        moment,
        now=asked.now,
        not_done=None if asked.parked_at is None else number,
    ),
    Verb.RETRY: lambda state, number, _asked, moment: moves.retry(state, number, moment),
    Verb.SKIP: lambda state, number, _asked, moment: moves.skip(state, number, moment),
    Verb.ABANDON: lambda state, number, asked, moment: back.abandon(state, number, asked.reason, moment),
}


# --- signals


def _signal(state: SagaState | None, event: Signal, moment: Moment) -> Decision:
    if state is None:
        return _refuse(state, event, Code.NO_SUCH_SAGA, f"there is no saga {event.saga_id}")
    if not state.ended:
        state = by_the_clock(state, moment.now_ms, moment.watch)
    done = _done(state, event)
    if state.has_taken(event.request_id):
        return Decision(state=state, notices=done)  # the very same request, delivered again
    if (why_not := _why_not_signalled(state, event)) is not None:
        return _refuse(state, event, Code.PRECONDITION_FAILED, f"saga {state.saga_id} {why_not}")
    kept = Intervention(
        verb=f"signal {event.name}" if event.declined is None else f"decline {event.name}",
        reason=event.declined or "",
        at_ms=moment.now_ms,
        actor=event.by,
        request_id=event.request_id,
    )
    decision = waits.signal(state.with_intervention(kept), event, moment)
    return replace(decision, notices=done + decision.notices)


def _why_not_signalled(state: SagaState, event: Signal) -> str | None:
    """Why a signal is not taken; None: it is."""
    if state.ended:
        return f"has ended, {state.status}"
    if state.status is SagaStatus.COMPENSATING or state.cancelling is not None:
        return f"goes back, and waits for no signal: {state.reason or state.cancelling}"
    takers = [step for step in state.steps if _may_take(step, event.name)]
    if not takers:
        parked = [n for n in state.parked_steps if event.name in _signals_of(state.steps[n - 1])]
        if parked:
            return f"is parked at step {parked[0]}, and waits for {event.name} again after a retry of that step"
        return f"has no open step that waits for the signal {event.name}"
    for step in takers:
        waits = step.phase in AWAITS
        if waits and event.added_ms is not None and step.due_ms is not None and event.added_ms > step.due_ms:
            late_ms = event.added_ms - step.due_ms
            return f"waited for {event.name} until {late_ms} ms before it came: step {state.steps.index(step) + 1}"
    kept = [one for one in state.signals if one.name == event.name]
    if len(kept) >= len(takers):
        return f"has been sent the signal {event.name} already, and no other step will wait for it"
    if sum(len(one.payload) for one in state.signals) + len(event.payload) > MAX_KEPT_BYTES:
        return f"keeps signals of {MAX_KEPT_BYTES} bytes already: signal again once it waits for {event.name}"
    return None


def _signals_of(step: Step) -> tuple[str | None, str | None]:
    shape = step.definition.shape
    return shape.wait, shape.retry_on


def _may_take(step: Step, name: str) -> bool:
    """Whether a step waits for this signal, or may come to do so."""
    shape = step.definition.shape
    if shape.wait == name:
        return step.phase in (Phase.WAITING, Phase.AWAITING)
    return shape.retry_on == name and step.phase in _MAY_AWAIT_RETRY


_MAY_AWAIT_RETRY: Final = frozenset({Phase.WAITING, Phase.OUT, Phase.BACKING_OFF, Phase.RETRY_AWAITED})


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
        return back.cancel(state, why, moment, now=state.is_cut_off)
    if state.is_to_start:
        return moves.start(state, moment)
    due = [n for n, step in enumerate(state.steps, 1) if step.due_ms is not None and step.due_ms <= moment.now_ms]
    step = state.steps[due[0] - 1]
    if step.phase in AWAITS:
        return waits.wait_over(state, due[0], moment)
    if step.in_flight:
        return moves.fail_attempt(state, due[0], back.no_answer(step), moment, unknown=True)
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

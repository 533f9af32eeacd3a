"""The decision core: what an event does to a saga. Pure: no Redis, no clock, no randomness.

`decide(state, event, moment)` returns a Decision, a value that says all that will be written and sent. The orchestrator
commits it in one piece. This module works out what an event means for a saga; moves.py has what a saga can do.
"""

from typing import Final

from msgspec.structs import replace

from sagastream.core import back, moves, waits
from sagastream.core.answers import answer
from sagastream.core.asked import ask, refuse
from sagastream.core.clock import by_the_clock
from sagastream.core.commands import Reply
from sagastream.core.journal import with_notes
from sagastream.core.messages import Begin, Code, Due, Intervene, Newer, Signal, ToSaga, Unreadable
from sagastream.core.phases import AWAITS, Phase
from sagastream.core.saga import Found, SagaState, SagaStatus
from sagastream.core.same_saga import conflict
from sagastream.core.steps import PLAIN
from sagastream.core.transitions import Decision, Moment, outcome
from sagastream.errors import ImpossibleTransition, NewerFormat, UnreadableSaga

#: What may happen: a request, a reply, a time that has come; an entry that is none of these, or for a newer release.
Event = Begin | ToSaga | Reply | Due | Newer | Unreadable

#: Begins the text about an impossible transition.
FAULT: Final = "a fault in sagastream"


def decide(state: Found, event: Event, moment: Moment) -> Decision:
    """What `event` does to the saga `state`.

    Where `may_undo` says so, the moment must know what the services of the saga's steps publish.
    """
    decision = _decided(state, event, moment)
    if moment.journal_bytes and decision.state is not state:
        noted = with_notes(state, decision.state, event, moment)
        return decision if noted is decision.state else replace(decision, state=noted)
    return decision


def _decided(state: Found, event: Event, moment: Moment) -> Decision:
    if isinstance(event, Newer):
        return Decision(state=state, left=event.format)
    if isinstance(state, NewerFormat):
        return Decision(state=state, left=state.format)
    try:
        if isinstance(event, Reply):
            return answer(state, event, moment)
        if isinstance(event, Due):
            return _due(state, moment) if isinstance(state, SagaState) else Decision(state=state)
        return _request(state, event, moment)
    except ImpossibleTransition as error:
        # This is a fault of sagastream. Raised, it would end each worker that takes over the entry, one after another.
        text = f"{FAULT}: {error}"
        if isinstance(event, Reply | Due):
            return Decision(state=state, quarantine=text)
        return refuse(state, event, Code.CRASH, text)


def may_undo(state: SagaState, event: Event) -> bool:
    """Whether the event may lead to a compensation, for which the moment must know what services publish."""
    if isinstance(event, Reply) and state.status is SagaStatus.PENDING:
        if state.cancelling is not None or event.type.endswith("_failed"):
            return True
        return state.format != PLAIN and _may_fail_unsent(state) and not state.past_pivot
    return isinstance(event, Reply | Due | Intervene | Signal)


def _may_fail_unsent(state: SagaState) -> bool:
    """Whether a step that is still to begin may fail at once: by its references or its condition; or by its signal,
    which may have come already, as a decline."""
    for step in state.steps:
        shape = step.definition.shape
        if step.phase is Phase.WAITING and (shape.has_references or shape.when is not None or shape.wait is not None):
            return True
    return False


# --- requests


def _request(state: Found, event: Begin | ToSaga | Unreadable, moment: Moment) -> Decision:
    if isinstance(event, Unreadable):
        return refuse(state, event, event.code, event.text)
    if isinstance(state, UnreadableSaga):
        return refuse(state, event, Code.CRASH, str(state))
    if isinstance(event, Begin):
        return _begin_again(state, event) if state else _begin(event, moment)
    return ask(state, event, moment)


def _begin(event: Begin, moment: Moment) -> Decision:
    if moment.closed and (why := moment.closed.get(event.format)) is not None:
        return refuse(None, event, Code.PRECONDITION_FAILED, why)
    return moves.begin(event, moment)


def _begin_again(state: SagaState, event: Begin) -> Decision:
    if event.request_id is not None and event.request_id == state.request_id:
        return Decision(state=state)  # the very same request, delivered again
    if (why_not := conflict(state, event)) is not None:
        return refuse(state, event, Code.PRECONDITION_FAILED, why_not)
    # If it has ended, the sender is told the outcome again.
    return Decision(state=state, notices=(outcome(state, event.request_id),) if state.ended else ())


# --- time


def _due(state: SagaState, moment: Moment) -> Decision:
    """Do what is due by now. That may be nothing: the saga may have moved since it was found to be due, or it is only
    looked at because the broker's clock was set; or what it is held for may no longer be paused."""
    if state.due_ms is None:
        return Decision(state=state)
    if (moved := by_the_clock(state, moment.now_ms, moment.watch)) is not state:
        return Decision(state=moved)
    state = moves.released(state, moment)
    if state.due_ms is None or state.due_ms > moment.now_ms:
        return Decision(state=state)
    if state.deadline_ms is not None and state.is_over_deadline(moment.now_ms):
        # If a step is due as well, the saga stays due, and the next look at it deals with that.
        since_ms, of = state.begun_ms, "begin"
        if state.start_ms is not None and state.start_ms > state.begun_ms:
            since_ms, of = state.start_ms, "start"
        why = f"The deadline, {state.deadline_ms - since_ms} ms after the {of}, has passed"
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

"""What a request about a saga does to it: an operator's verb, or a signal. Each is done once, or refused. Pure."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from sagastream.core import back, moves, waits
from sagastream.core.clock import by_the_clock
from sagastream.core.messages import Begin, Code, Intervene, Signal, ToSaga, Unreadable, Verb
from sagastream.core.notices import Notice, done_body, error_body
from sagastream.core.saga import Found, Intervention, SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN, StepKind
from sagastream.core.strict_json import MAX_BYTES
from sagastream.core.transitions import Decision, Moment

#: The most that the payloads of the signals may take that a saga keeps for later waits, in bytes.
MAX_KEPT_BYTES: Final = MAX_BYTES


def refuse(state: Found, event: Begin | ToSaga | Unreadable, code: Code, text: str) -> Decision:
    """A request is refused: its sender is told or, if it names none, the request is quarantined."""
    if event.request_id is None:
        return Decision(state=state, quarantine=text)
    body = error_body(code, text)
    notice = Notice(kind="refused", saga_id=event.saga_id, request_id=event.request_id, body=body)
    return Decision(state=state, notices=(notice,))


def ask(state: SagaState | None, event: ToSaga, moment: Moment) -> Decision:
    """What a request does to the saga that it is about."""
    if state is None:
        return refuse(state, event, Code.NO_SUCH_SAGA, f"there is no saga {event.saga_id}")
    if not state.ended:
        state = by_the_clock(state, moment.now_ms, moment.watch)
    done = _done(state, event)
    if state.has_taken(event.request_id):
        return Decision(state=state, notices=done)  # the very same request, delivered again
    number = None
    if isinstance(event, Signal):
        why_not = _why_not_signalled(state, event, moment)
    else:
        number = _step_meant(state, event)
        why_not = _why_not(state, number, event, moment)
    if why_not is not None:
        return refuse(state, event, Code.PRECONDITION_FAILED, f"saga {state.saga_id} {why_not}")
    state = state.with_intervention(_kept(state, number, event, moment))
    if isinstance(event, Signal):
        decision = waits.signal(state, event, moment)
    else:
        decision = _VERBS[event.verb](state, number, event, moment)
    return replace(decision, notices=done + decision.notices)


def _kept(state: SagaState, number: int | None, event: ToSaga, moment: Moment) -> Intervention:
    """What stays with the saga of a request that was done. `number`: of the step that an operator's request means."""
    step = None
    if isinstance(event, Signal):
        verb = f"signal {event.name}" if event.declined is None else f"decline {event.name}"
        reason, actor = event.declined or "", event.actor
    else:
        verb = f"{event.verb} now" if event.now else event.verb
        reason, actor = event.reason, event.actor
        if state.format != PLAIN and event.verb in _OF_A_STEP:
            step = number
    return Intervention(
        verb=verb, reason=reason, at_ms=moment.now_ms, actor=actor, request_id=event.request_id, step=step
    )


def _done(state: SagaState, event: ToSaga) -> tuple[Notice, ...]:
    """The answer to a request that was done."""
    if event.request_id is None:
        return ()
    body = done_body(event.verb, state.saga_id)
    return (Notice(kind="done", saga_id=state.saga_id, request_id=event.request_id, body=body),)


# --- operators


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
        if event.step is not None and event.parked_at in _places(state):
            return f"is parked at {event.parked_at}, but that is not step {event.step}"
        return f"is no longer parked at {event.parked_at}: it {_stands(state)}"
    if event.verb is Verb.CANCEL:
        return _why_not_cancelled(state, event, moment)
    if place is None:
        where = "" if event.step is None else f" at step {event.step}"
        return f"is not parked{where}, it {_stands(state)}"
    if event.step is None and event.parked_at is None and len(parked := state.parked_steps) > 1:
        steps = ", ".join(map(state.told, parked))
        return f"is parked at several steps: {steps}; say with step which one is meant"
    if event.verb is Verb.ABANDON and not event.now and (out := _out(state)):
        steps = ", ".join(map(state.told, out))
        return f"has commands out, of step {steps}: abandon it with now, and they count as unknown"
    return None


def _places(state: SagaState) -> list[str]:
    """Where it is parked, step by step, as `parked_at` says it."""
    return [str(state.parked_place(number)) for number in state.parked_steps]


def _stands(state: SagaState) -> str:
    """Where it is parked or, if it is not, for what it waits."""
    places = _places(state)
    return f"is parked at {', '.join(places)}" if places else f"waits for {state.waiting_for}"


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
    step = state.told(parked[0]) if parked else ""
    not_done = f"To say that step {step} was not done, cancel with parked_at {state.parked_at}"
    if event.now:
        return f"is parked, so no command is out. {not_done}, without now"
    if event.parked_at is None and back.is_parked_past_return(state, moment):
        # The request may have been sent before the saga was parked, so it says nothing of the outcome.
        return f"is parked: {state.step.command} may have been done, and nothing undoes it. {not_done}"
    return "is being cancelled already" if state.cancelling is not None else None


#: The verbs that are about one step.
_OF_A_STEP: Final = frozenset({Verb.RETRY, Verb.SKIP, Verb.ABANDON})

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


def _why_not_signalled(state: SagaState, event: Signal, moment: Moment) -> str | None:
    """Why a signal is not taken; None: it is."""
    if state.ended:
        return f"has ended, {state.status}"
    settles = state.cancelling is not None and not any(_is_pivot_out(step) for step in state.steps)
    if state.status is SagaStatus.COMPENSATING or settles:
        return f"goes back, and waits for no signal: {state.reason or state.cancelling}"
    takers = [step for step in state.steps if step.may_take(event.name)]
    if not takers:
        parked = [n for n in state.parked_steps if event.name in _signals_of(state.steps[n - 1])]
        if parked:
            step = state.told(parked[0])
            return f"is parked at step {step}, and waits for {event.name} again after a retry of that step"
        return f"has no open step that waits for the signal {event.name}; {_signals_wanted(state)}"
    if over := [step for step in takers if waits.is_too_late(step, event, moment.now_ms)]:
        last, takers = over[-1], [step for step in takers if step not in over]
        if not takers:
            late_ms = (event.added_ms or 0) - (last.due_ms or 0)
            step = state.told(state.steps.index(last) + 1)
            return f"waited for {event.name} until {late_ms} ms before it came: step {step}"
    kept = [one for one in state.signals if one.name == event.name]
    if len(kept) >= len(takers):
        return f"has been sent the signal {event.name} already, and no other step will wait for it"
    if sum(len(one.payload) for one in state.signals) + len(event.payload) > MAX_KEPT_BYTES:
        return f"keeps signals of {MAX_KEPT_BYTES} bytes already: signal again once it waits for {event.name}"
    return None


def _signals_wanted(state: SagaState) -> str:
    """Which signals a saga would take."""
    names = {name for step in state.steps for name in _signals_of(step) if name and step.may_take(name)}
    return f"it takes: {', '.join(sorted(names))}" if names else "it takes none now"


def _is_pivot_out(step: Step) -> bool:
    """Whether this is the pivot, and its command is out. If it is done, the saga goes on, whatever was to be."""
    return step.definition.kind is StepKind.PIVOT and step.in_flight


def _signals_of(step: Step) -> tuple[str | None, str | None]:
    shape = step.definition.shape
    return shape.wait, shape.retry_on

"""Mistakes that are easily made in a saga orchestrator. Each is planted alone, and the explorer must find it.

A mistake in a rule of the core replaces that rule, so everything else that is explored is the real code. Mistakes in a
script or in a worker are planted in world.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Any, Final
from unittest.mock import patch

from msgspec.structs import replace

from sagastream.core import (
    answers,
    asked,
    back,
    forward,
    graph,
    moves,
    plan,
    references,
    sending,
    service_rules,
    step_parsing,
    step_state,
    waits,
)
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.messages import Intervene, Signal
from sagastream.core.pauses import Paused
from sagastream.core.phases import STEP, TO_UNDO, Phase
from sagastream.core.saga import SagaState
from sagastream.core.service_actions import Answer, Next, Release, Requeue, Run, Undo
from sagastream.core.step_state import Step
from sagastream.core.steps import StepDefinition
from sagastream.core.transitions import Decision, Moment, put


class Bug(StrEnum):
    NO_VERSION = "a commit does not compare the version"
    EARLY_ACKNOWLEDGEMENT = "an entry is acknowledged before its effect is committed"
    NO_DEDUPE = "a service does not look up what it answered before"
    NEW_FOR_EVER = "a command that a worker looked up counts as new, however late it comes"
    NO_TOMBSTONE = "a compensation leaves no tombstone"
    ATTEMPT_IN_KEY = "the idempotency key names the attempt"
    TIMER_APART = "the timer is set after the commit, not in it"
    NEVER_READ_AGAIN = "what was delivered once is never read again"
    SENT_AGAIN_UNKNOWN = "a request that is sent again has another request id"
    LATE_OK_APPLIED = "an ok counts for the step that the saga is at, whichever it names"
    RECORD_APART = "a service records its answer after it has sent it"
    OVERRULED_NOT_UNDONE = "what a handler did in vain is not undone"
    FAILED_UNDO_ANSWERED = "a command is answered though its undo has failed"
    DELIVERED_AGAIN_NOT_UNDONE = "what another process may have begun is refused, and not undone"
    LATE_NOT_IN_DOUBT = "a command that comes too late is certainly not begun, even if another process had it before"
    RAISED_IS_FAILED = "a handler that has raised counts as one that did nothing"
    SENT_TOO_EARLY = "a step is sent before the one before it is done"
    UNDONE_TOO_EARLY = "a step is undone before the one after it is"
    FAILED_IS_UNDONE = "a step that has failed, and has no effect, is undone"
    ANSWERED_AGAIN = "an ok counts whatever the step is doing"
    LATE_UNDO_SET_ASIDE = "an undo that is done after it was skipped makes no sense"
    UNKNOWN_IS_FAILED = "a step that was not answered counts as one that was not done"
    CUT_OFF_IS_NOT_DONE = "what is out when a saga is cancelled at once counts as not done"
    CUT_OFF_PIVOT_IS_NOT_DONE = "a pivot that is out when a saga is cancelled at once counts as not done"
    NOW_AT_A_PARKED_STEP = "a cancel at once says that a step which is parked meanwhile was not done"
    CANCEL_IS_NOT_DONE = "a cancel says that a step which is parked meanwhile was not done"
    ANY_PARKED_STATE = "what is asked about one parked state is done to another"
    NOW_AT_AN_UNDO = "a cancel at once gives up a compensation that is out meanwhile"
    HARD_IS_SOFT = "a hard deadline waits for what is out"
    PAUSE_FORGOTTEN = "a look at what was held does not send it"
    UNDO_IN_A_PAUSE = "what undoes a step is sent although its service is paused"
    # Of graphs:
    UNDONE_BEFORE_OTHERS = "a step is undone before what came after it is undone"
    SENT_AFTER_A_FAILURE = "a step is sent after another one has failed"
    SIBLING_FORGOTTEN = "what is out beside a step that fails counts as not done"
    LAST_FAILURE_COUNTS = "a step that fails while the saga settles changes why it goes back"
    RESOLVED_ANEW = "the references of a step are resolved anew for each attempt"
    BYPASSED_IS_UNDONE = "a step that was bypassed is undone"
    SIGNAL_LOST = "a signal that comes before its wait is not kept"
    SIGNAL_DROPPED = "a cancel drops the signals that were kept, though the pivot may be done"
    BESIDE_THE_PIVOT = "a step may run beside the pivot"
    RETRY_IS_NOT_IN_DOUBT = "a failure that might be retried, so that no service has recorded it, is certain"


class ServicesBug(StrEnum):
    """Mistakes that are made with what a process of a service has in its memory only."""

    OWED_IN_MEMORY = "a command that is overruled is not sent again, whoever holds it"
    HELD_BY_ANYBODY = "a command that another process holds counts as held"
    LOST_IS_DROPPED = "a command that was begun, and that another process has, is dropped without a word"
    LAST_ANSWERS_DROPPED = "a process that is told to end does not wait for the broker with its answers"
    OTHERS_ACKNOWLEDGED = "an answer acknowledges what another process holds"
    HANDED_BACK_IS_GONE = "a command that is handed back is acknowledged"
    SENT_AGAIN_AS_NEW = "a command that is sent again to be undone counts as one that nobody has begun"
    OWN_COUNTS_AS_NEW = "a command that a process reads again after an outage counts as one that nobody has begun"
    FAILED_UNDO_ANSWERED = "a command is answered though its undo has failed"
    DELIVERED_AGAIN_NOT_UNDONE = "what another process may have begun is refused, and not undone"
    NOT_UNDONE = "what a handler did in vain is not undone"
    UNKNOWN_COMMAND_IS_FINAL = "what a process does not have, nobody has begun"


# --- mistakes of the service side


_delivered, _too_late, _replied = service_rules.delivered, service_rules.too_late, service_rules.replied
_overruled, _without_handler = service_rules.overruled, service_rules.without_handler


def _without_record(command: Command, *, record: bytes | None, tombstone: bool, again: bool) -> Run | Undo | Answer:
    return _delivered(command, record=None, tombstone=tombstone, again=again)


def _not_undone(command: Command, undo: Undo, *, compensation: str | None, entry_id: str) -> Answer:
    return undo.answer


def _undo_not_looked_at(todo: Run | Undo, called: Command, reply: Reply) -> Answer | Release:
    return todo.answer if isinstance(todo, Undo) else _replied(todo, called, reply)


def _never_again(command: Command, *, record: bytes | None, tombstone: bool, again: bool) -> Run | Undo | Answer:
    return _delivered(command, record=record, tombstone=tombstone, again=False)


def _never_begun(command: Command, todo: Run | Undo, *, not_begun: bool, now_ms: int) -> Answer | None:
    return _too_late(command, todo, not_begun=True, now_ms=now_ms)


def _did_nothing(todo: Run | Undo, called: Command, why: str) -> Answer | Release:
    return _replied(todo, called, reply_to(called, failed(called.type), error=b'"?"'))


def _always_here(command: Command, reply: Reply, *, is_held: bool) -> Undo | Requeue:
    return _overruled(command, reply, is_held=True)


def _nobody_has_begun(command: Command, todo: Run | Undo, *, again: bool) -> Next:
    return _without_handler(replace(command, attempt=1), todo, again=False)


def _without_a_word(command: Command, todo: Run | Undo, *, begun: bool) -> None:
    return None


# --- mistakes of the orchestrator's side


def _all_that_wait(steps: Sequence[Step]) -> list[int]:
    return [number for number, step in enumerate(steps, 1) if step.phase is Phase.WAITING]


def _first_to_undo(steps: Sequence[Step], needs_undo: Callable[[Step], bool]) -> list[int]:
    to_undo = [n for n, step in enumerate(steps, 1) if step.may_have_effect and needs_undo(step)]
    return [] if any(step.being_undone for step in steps) else to_undo[:1]


def _any_ok(step: Step, reply: Reply) -> bool:
    return reply.type == ok(step.definition.transaction)


def _never_late(step: Step, reply: Reply) -> bool:
    return False


def _not_done(step: Step) -> bool:
    return step.unknown or step.definition.retried


def _whatever_it_is(state: SagaState, why: str, moment: Moment, *, now: bool, not_done: int | None = None) -> Decision:
    state = state.with_step(state.current_step, back.given_up(state.step, moment, unknown=True))
    return back.go_back(state, state.steps, why, moment, now=True)


_why_not = asked._why_not


def _not_done_at_once(state: SagaState, number: int | None, event: Intervene, moment: Moment) -> str | None:
    return _why_not(state, number, replace(event, now=False, parked_at=state.parked_at), moment)


def _undone_or_not(state: SagaState, number: int | None, event: Intervene, moment: Moment) -> str | None:
    return None if event.now and not state.ended and not state.parked else _why_not(state, number, event, moment)


_cancel = back.cancel


def _parked_is_not_done(
    state: SagaState, why: str, moment: Moment, *, now: bool, not_done: int | None = None
) -> Decision:
    return _cancel(state, why, moment, now=now, not_done=state.current_step if state.parked else not_done)


def _never_past_return(state: SagaState, moment: Moment) -> bool:
    return False


def _where_it_is(state: SagaState, event: Intervene) -> int:
    return state.current_step


def _wherever_it_is(state: SagaState, number: int | None, event: Intervene, moment: Moment) -> str | None:
    return _why_not(state, number, replace(event, parked_at=event.parked_at and state.parked_at), moment)


def _stays_held(state: SagaState, moment: Moment) -> SagaState:
    return state


def _never_paused(service: str, command: str, paused: Paused) -> bool:
    return False


# --- mistakes about graphs


def _all_at_once(steps: Sequence[Step], needs_undo: Callable[[Step], bool]) -> list[int]:
    to_undo = [n for n, step in enumerate(steps, 1) if step.may_have_effect and needs_undo(step)]
    return [number for number in reversed(to_undo) if not steps[number - 1].being_undone]


def _goes_on(state: SagaState, number: int, result: bytes | None, moment: Moment) -> Decision:
    step = state.steps[number - 1].moved("completed", answered_ms=moment.now_ms, result=result, unknown=False)
    return moves._go_on(state, put(state.steps, number, step), moment, "step completed")


_go_back = back.go_back


def _at_once(
    state: SagaState, steps: tuple[Step, ...], why: str, moment: Moment, happening: str = "cancelled", **more: Any
) -> Decision:
    settled = [back.given_up(step, moment, unknown=False) if step.in_flight else step for step in steps]
    return _go_back(state, tuple(settled), why, moment, happening, **more)


def _drops_signals(
    state: SagaState, steps: tuple[Step, ...], why: str, moment: Moment, happening: str = "cancelled", **more: Any
) -> Decision:
    return _go_back(replace(state, signals=()), steps, why, moment, happening, **more)


_fail_step = back.fail_step


def _newest_counts(state: SagaState, number: int, error: bytes | None, moment: Moment, *, unknown: bool) -> Decision:
    return _fail_step(replace(state, cancelling=None), number, error, moment, unknown=unknown)


_send_transaction = sending.send_transaction


def _built_anew(state: SagaState, number: int, step: Step, now_ms: int) -> tuple[Step, Command]:
    if step.definition.shape.has_references:
        built = references.build(step.definition.params, forward.sources_of(state, lambda: state.steps))
        step = replace(step, built=built)
    return _send_transaction(state, number, step, now_ms)


_signal = waits.signal


def _not_kept(state: SagaState, event: Signal, moment: Moment) -> Decision:
    decision = _signal(state, event, moment)
    assert isinstance(decision.state, SagaState)
    return replace(decision, state=replace(decision.state, signals=()))


def _none_beside(definitions: Sequence[StepDefinition]) -> tuple[tuple[int, int], ...]:
    return ()


def _surely_failed(state: SagaState, number: int, error: bytes | None, moment: Moment) -> Decision:
    if state.cancelling is None:
        return _fail_transaction(state, number, error, moment)
    return back.fail_step(state, number, error, moment, unknown=False)


_fail_transaction = moves.fail_transaction


#: What each mistake replaces: a module, a name in it, and the replacement.
_REPLACED: Final[dict[Bug | ServicesBug, list[tuple[Any, str, Any]]]] = {
    Bug.NO_DEDUPE: [(service_rules, "delivered", _without_record)],
    Bug.OVERRULED_NOT_UNDONE: [(service_rules, "undoing", _not_undone)],
    Bug.FAILED_UNDO_ANSWERED: [(service_rules, "replied", _undo_not_looked_at)],
    Bug.DELIVERED_AGAIN_NOT_UNDONE: [(service_rules, "delivered", _never_again)],
    Bug.LATE_NOT_IN_DOUBT: [(service_rules, "too_late", _never_begun)],
    Bug.RAISED_IS_FAILED: [(service_rules, "in_doubt", _did_nothing)],
    Bug.SENT_TOO_EARLY: [(plan, "ready", _all_that_wait)],
    Bug.UNDONE_TOO_EARLY: [(plan, "undoable", _first_to_undo)],
    Bug.FAILED_IS_UNDONE: [
        (plan, "TO_UNDO", TO_UNDO | {Phase.FAILED}),
        (step_state, "STEP", {**STEP, (Phase.FAILED, "undo sent"): Phase.UNDO_OUT}),
    ],
    Bug.ANSWERED_AGAIN: [(answers, "_is_news", _any_ok)],
    ServicesBug.OWED_IN_MEMORY: [(service_rules, "overruled", _always_here)],
    ServicesBug.LOST_IS_DROPPED: [(service_rules, "lost", _without_a_word)],
    ServicesBug.FAILED_UNDO_ANSWERED: [(service_rules, "replied", _undo_not_looked_at)],
    ServicesBug.DELIVERED_AGAIN_NOT_UNDONE: [(service_rules, "delivered", _never_again)],
    ServicesBug.UNKNOWN_COMMAND_IS_FINAL: [(service_rules, "without_handler", _nobody_has_begun)],
    ServicesBug.NOT_UNDONE: [(service_rules, "undoing", _not_undone)],
    Bug.LATE_UNDO_SET_ASIDE: [(answers, "_is_undone_late", _never_late)],
    Bug.CUT_OFF_IS_NOT_DONE: [(back, "may_be_done", _not_done)],
    Bug.CUT_OFF_PIVOT_IS_NOT_DONE: [(back, "cancel", _whatever_it_is)],
    Bug.NOW_AT_A_PARKED_STEP: [
        (asked, "_why_not", _not_done_at_once),
        (back, "cancel", _parked_is_not_done),
    ],
    Bug.CANCEL_IS_NOT_DONE: [
        (back, "cancel", _parked_is_not_done),
        (back, "is_parked_past_return", _never_past_return),
    ],
    Bug.ANY_PARKED_STATE: [(asked, "_why_not", _wherever_it_is), (asked, "_step_meant", _where_it_is)],
    Bug.NOW_AT_AN_UNDO: [(asked, "_why_not", _undone_or_not)],
    Bug.HARD_IS_SOFT: [(SagaState, "is_cut_off", False)],
    Bug.PAUSE_FORGOTTEN: [(moves, "released", _stays_held)],
    Bug.UNDO_IN_A_PAUSE: [(back, "is_paused", _never_paused)],
    Bug.UNDONE_BEFORE_OTHERS: [(plan, "undoable", _all_at_once)],
    Bug.SENT_AFTER_A_FAILURE: [(moves, "complete_step", _goes_on)],
    Bug.SIBLING_FORGOTTEN: [(back, "go_back", _at_once)],
    Bug.LAST_FAILURE_COUNTS: [(moves, "fail_step", _newest_counts)],
    Bug.RESOLVED_ANEW: [(moves, "send_transaction", _built_anew)],
    Bug.BYPASSED_IS_UNDONE: [
        (plan, "TO_UNDO", TO_UNDO | {Phase.BYPASSED}),
        (step_state, "STEP", {**STEP, (Phase.BYPASSED, "undo sent"): Phase.UNDO_OUT}),
    ],
    Bug.SIGNAL_LOST: [(waits, "signal", _not_kept)],
    Bug.SIGNAL_DROPPED: [(back, "go_back", _drops_signals)],
    Bug.BESIDE_THE_PIVOT: [(graph, "beside_pivot", _none_beside)],
    Bug.RETRY_IS_NOT_IN_DOUBT: [(moves, "fail_transaction", _surely_failed)],
}


@contextmanager
def planted(bug: Bug | ServicesBug | None) -> Iterator[None]:
    """Within this, the rules of the core have this mistake. Mistakes that are not in a rule change nothing here."""
    with ExitStack() as stack:
        step_parsing._known_steps.cache_clear()  # what was parsed without the mistake, or with it
        stack.callback(step_parsing._known_steps.cache_clear)
        for module, name, mistaken in _REPLACED.get(bug, ()) if bug is not None else ():
            stack.enter_context(patch.object(module, name, mistaken))
        yield

"""The value that a decision is, and what all moves of a saga have in common: a transition and its messages.

Every change of a saga's status stands in TRANSITIONS.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from sagastream.core import plan
from sagastream.core.backoff import Jitter, whole
from sagastream.core.clock import STEADY, Watch
from sagastream.core.commands import Command
from sagastream.core.notices import Notice, outcome_body, parked_body
from sagastream.core.pauses import NOTHING_PAUSED, Pause, Paused, Resume
from sagastream.core.saga import Found, SagaState, SagaStatus
from sagastream.core.sending import Published
from sagastream.core.step_state import Step
from sagastream.errors import ImpossibleTransition

#: (status before, what happened) -> status after. All that can happen to a saga; ARCHITECTURE.md draws it.
TRANSITIONS: Final[Mapping[tuple[SagaStatus | None, str], SagaStatus]] = {
    (None, "begun"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "started"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "last started"): SagaStatus.COMPLETED,
    (SagaStatus.PENDING, "step completed"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "last step completed"): SagaStatus.COMPLETED,
    (SagaStatus.PENDING, "attempt failed"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "sent again"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "put off"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "to be cancelled"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "parked"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "step skipped"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "last step skipped"): SagaStatus.COMPLETED,
    (SagaStatus.PENDING, "abandoned"): SagaStatus.ABORTED,
    (SagaStatus.PENDING, "step failed"): SagaStatus.COMPENSATING,
    (SagaStatus.PENDING, "cancelled"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "compensation sent"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "compensation put off"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "attempt failed"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "sent again"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "step compensated"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "parked"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "compensation retried"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "compensation skipped"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "abandoned"): SagaStatus.ABORTED,
    (SagaStatus.COMPENSATING, "nothing left to undo"): SagaStatus.ABORTED,
}


class Moment(Struct, frozen=True, kw_only=True, gc=False):
    """What a decision may depend on besides the saga and what has happened to it."""

    now_ms: int  # by the broker's clock
    published: Published  # what it does not know parks a saga rather than skip an undo
    watch: Watch = STEADY  # what the worker has seen of that clock
    jitter: Jitter = whole  # by chance: keeps retries that fall due together apart
    closed: Mapping[int, str] | None = None  # the formats in which no saga may begin yet, each with the reason
    journal_bytes: int = 0  # how long the journal of a saga may be; 0: it has none
    paused: Paused = NOTHING_PAUSED  # of which nothing is sent
    pauses: tuple[Pause, ...] = ()  # who paused it and why, as far as that is known: for the journal
    resumes: tuple[Resume, ...] = ()  # who resumed what, and why, as far as that is known: for the journal, too


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """What an event leads to. `state` is the saga after it: the very same object where nothing changed."""

    state: Found
    commands: tuple[Command, ...] = ()
    notices: tuple[Notice, ...] = ()
    quarantine: str | None = None  # why the event's entry is set aside
    left: int = 0  # the format of the event or its saga, if only a newer release knows it: the entry is left to that


def status_after(status: SagaStatus | None, happening: str) -> SagaStatus:
    """The status of a saga after what happened. Raises ImpossibleTransition."""
    try:
        return TRANSITIONS[status, happening]
    except KeyError:
        raise ImpossibleTransition(f"{happening!r} cannot happen to a saga that is {status}") from None


def sent(state: SagaState, commands: list[Command]) -> Decision:
    """Send these commands. If the saga echoes, they are reported on the events stream too."""
    if not state.echo:
        return Decision(state=state, commands=tuple(commands))
    echoes = [
        Notice(kind="command", saga_id=state.saga_id, service=command.service, body=command.body())
        for command in commands
    ]
    return Decision(state=state, commands=tuple(commands), notices=tuple(echoes))


def park(state: SagaState, number: int, why: str, moment: Moment, **facts: Any) -> Decision:
    """Park the saga at this step: a person must act."""
    step = state.steps[number - 1]
    going_back = state.status is SagaStatus.COMPENSATING
    step = step.moved("undo parked" if going_back else "parked", parked=why, **facts)
    state = moved(state, "parked", moment, put(state.steps, number, step))
    return Decision(state=state, notices=(parked_notice(state, why),))


def parked_notice(state: SagaState, why: str) -> Notice:
    """The notice that a step of the saga is parked."""
    body = parked_body(state.saga_id, state.status, why)
    return Notice(kind="parked", saga_id=state.saga_id, request_id=state.request_id, body=body)


def end(state: SagaState) -> Decision:
    """The saga has ended."""
    return Decision(state=state, notices=(outcome(state, state.request_id),))


def outcome(state: SagaState, request_id: str | None) -> Notice:
    """The notice that says how a saga has ended, addressed to the sender of this request."""
    body = outcome_body(state.saga_id, state.status, state.reason)
    return Notice(kind="outcome", saga_id=state.saga_id, request_id=request_id, body=body)


def put(steps: tuple[Step, ...], number: int, step: Step) -> tuple[Step, ...]:
    """The steps, with this one in the place of the one of that number."""
    return (*steps[: number - 1], step, *steps[number:])


def moved(
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
    status, otherwise = status_after(state.status, happening), state.current_step
    if status is SagaStatus.COMPLETED:
        otherwise = len(steps)
    elif status is SagaStatus.ABORTED and state.failed_step is not None and not state.compensating_steps:
        otherwise = state.failed_step
    return replace(
        state,
        status=status,
        steps=steps,
        current_step=plan.current(steps, otherwise),
        reason=reason or state.reason,
        cancelling=cancelling,
        compensating_steps=state.compensating_steps + undone,
        updated_ms=moment.now_ms,
    )

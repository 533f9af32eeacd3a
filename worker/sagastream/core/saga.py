"""A saga as it stands: its status, its steps, and what happened to it."""

from enum import StrEnum
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.messages import Begin
from sagastream.core.phases import BACKING_OFF, DONE
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN, StepKind
from sagastream.errors import UnreadableSaga

#: How many interventions a saga keeps: the newest.
MAX_INTERVENTIONS: Final = 100


class SagaStatus(StrEnum):
    PENDING = "PENDING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    ABORTED = "ABORTED"


class Intervention(Struct, frozen=True, kw_only=True, gc=False):
    """What an operator did about a saga, and why."""

    verb: str  # cancel, retry, skip, abandon; "too late" of a cancel that a pivot came before
    reason: str
    at_ms: int
    request_id: str | None = None  # of the request, which may arrive more than once and is done once


class SagaState(Struct, frozen=True, kw_only=True, gc=False):
    """All of a saga as it stands. Clients get it, the decision core works on it, the store keeps it.

    To users: `status`; `reason`, why it goes or went back; `parked`, why it waits for a person; `ended`; `results`; and
    `steps`, each with its own status and error. It does not change: ask for the saga again to see what became of it.
    Times are milliseconds since the epoch by the broker's clock.

    A live saga always has a reason to move: one of its steps is in flight, backing off or parked.
    """

    saga_id: str
    steps: tuple[Step, ...]
    status: SagaStatus
    current_step: int  # counts from 1: the step that is active; once the saga has ended, the last one that was
    reason: str | None = None  # why it goes or went back
    cancelling: str | None = None  # why it is to go back as soon as the current step is answered
    compensating_steps: tuple[int, ...] = ()  # in the order in which their compensation was sent
    begun_ms: int
    updated_ms: int
    deadline_ms: int | None = None  # when the saga is cancelled
    interventions: tuple[Intervention, ...] = ()
    duplicates: int = 0  # how many replies were ignored because they said nothing new
    request_id: str | None = None  # of the saga_begin
    echo: bool = False  # the field `trace`: the messages of the saga are reported too
    format: int = PLAIN  # one of FORMATS
    version: int = 0  # counts commits; 0: not stored yet. Only the store sets it

    @property
    def ended(self) -> bool:
        # By identity: this is asked some twenty times a turn, and an enum of strings compares as strings.
        return self.status is SagaStatus.COMPLETED or self.status is SagaStatus.ABORTED

    @property
    def results(self) -> list[Any]:
        """What each step returned; None: nothing, or that is not known."""
        return [step.result_value for step in self.steps]

    @property
    def weight(self) -> int:
        """About how many bytes its params and what services said take."""
        return sum(
            [
                len(step.definition.params)
                + len(step.result or b"")
                + len(step.error or b"")
                + len(step.compensation_error or b"")
                for step in self.steps
            ]
        )

    @property
    def step(self) -> Step:
        """The current step."""
        return self.steps[self.current_step - 1]

    @property
    def past_pivot(self) -> bool:
        """Whether there is no way back any more."""
        pivots = (step for step in self.steps if step.definition.kind is StepKind.PIVOT)
        return any(step.phase in DONE for step in pivots)

    @property
    def may_be_cancelled(self) -> bool:
        return self.status is SagaStatus.PENDING and self.cancelling is None and not self.past_pivot

    @property
    def parked(self) -> str | None:
        """Why it stands still until a person acts; None: it does not."""
        return self.steps[self.current_step - 1].parked

    @property
    def times_out_ms(self) -> int | None:
        """When the answer to the command that is out is no longer awaited; None: no command is out."""
        return self.steps[self.current_step - 1].times_out_ms

    @property
    def send_again_ms(self) -> int | None:
        """When the next attempt is sent; None: none is to be sent."""
        return self.steps[self.current_step - 1].send_again_ms

    @property
    def due_ms(self) -> int | None:
        """When it needs attention next, even if nothing comes; None: only when a person acts, or never."""
        due_ms = None
        for step in self.steps:
            if step.due_ms is not None and (due_ms is None or step.due_ms < due_ms):
                due_ms = step.due_ms
        if due_ms is not None and self.deadline_ms is not None and self.deadline_ms < due_ms and self.may_be_cancelled:
            return self.deadline_ms
        return due_ms

    @property
    def waiting_for(self) -> str:
        """What must happen for the saga to go on, in words."""
        if self.ended:
            return "nothing, it has ended"
        step = self.step
        if step.parked is not None:
            return "a person, it is parked"
        what = f"{step.command}, step {self.current_step}"
        then = ", to be cancelled then" if self.cancelling is not None else ""
        attempt = step.current_attempt
        if step.phase in BACKING_OFF:
            return f"the time to send {what} again (attempt {attempt + 1} of {step.attempts}){then}"
        which = f" (attempt {attempt} of {step.attempts})" if attempt > 1 else ""
        return f"{step.definition.service} to answer {what}{which}{then}"

    def with_step(self, number: int, step: Step, **changes: Any) -> "SagaState":
        """The saga with this step in place of the one with that number, and with these changes."""
        return replace(self, steps=(*self.steps[: number - 1], step, *self.steps[number:]), **changes)

    def has_taken(self, request_id: str | None) -> bool:
        """Whether this request of an operator was done, as far as interventions are kept."""
        return request_id is not None and any(done.request_id == request_id for done in self.interventions)

    def with_intervention(self, intervention: Intervention) -> "SagaState":
        return replace(self, interventions=(*self.interventions, intervention)[-MAX_INTERVENTIONS:])


#: What there is of a saga in the store; None: nothing.
Found = SagaState | UnreadableSaga | None


def begun_with(state: SagaState, begin: Begin) -> bool:
    """Whether the saga is the one that `begin` asks for. One with the same id and other steps is not."""
    deadline_ms = None if state.deadline_ms is None else state.deadline_ms - state.begun_ms
    before = [step.definition.canonical() for step in state.steps]
    if state.format != begin.format or deadline_ms != begin.deadline_ms:
        return False
    return before == [definition.canonical() for definition in begin.steps]


def conflict(saga_id: str) -> str:
    """The error text for the sender of a saga_begin with the id of another saga."""
    return f"another saga has the id {saga_id}: it began with other steps"


def protocol_view(state: SagaState) -> dict[str, Any]:
    """The SagaState of the wire protocol, as JSON values."""
    steps = []
    for step in state.steps:
        view: dict[str, Any] = {
            "transaction": step.definition.transaction,
            "params": orjson.loads(step.definition.params),
            "status": str(step.status),
        }
        if step.result is not None:
            view["result"] = orjson.loads(step.result)
        steps.append(view)
    return {
        "saga_id": state.saga_id,
        "status": str(state.status),
        "current_step": state.current_step,
        "completed_steps": [number for number, step in enumerate(state.steps, 1) if step.completed],
        "compensating_steps": list(state.compensating_steps),
        "steps": steps,
    }

"""A saga as it stands: its status, its steps, and what happened to each."""

from enum import StrEnum
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.messages import Begin
from sagastream.core.steps import PLAIN, StepDefinition, StepKind
from sagastream.errors import UnreadableSaga

#: How many interventions a saga keeps, the newest ones.
MAX_INTERVENTIONS: Final = 100


class SagaStatus(StrEnum):
    PENDING = "PENDING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    ABORTED = "ABORTED"


class StepStatus(StrEnum):
    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    COMPENSATED = "COMPENSATED"


class Step(Struct, frozen=True, kw_only=True, gc=False):
    """One step of a saga. Times are milliseconds since the epoch by the broker's clock, None: not yet.

    `definition`: what was asked for (transaction, service …). `result`, `error` and `compensation_error` are kept as
    the JSON that was sent; `result_value`, `error_value` and `compensation_error_value` are what it says.
    """

    definition: StepDefinition
    status: StepStatus = StepStatus.PENDING
    attempt: int = 0  # how often its command was sent
    sent_ms: int | None = None  # the last of them
    answered_ms: int | None = None
    result: bytes | None = None  # JSON, of a completed step
    error: bytes | None = None  # JSON, of the last attempt that failed
    unknown: bool = False  # an attempt's outcome is unknown: it may have had its effect
    late_ms: int | None = None  # when it was heard, too late, that the transaction had its effect
    compensation: str | None = None  # the command that undoes it, once that was sent
    compensation_attempt: int = 0  # how often that was sent
    compensation_sent_ms: int | None = None
    compensation_answered_ms: int | None = None
    compensation_error: bytes | None = None  # JSON, of the last attempt that failed
    tried_before: int = 0  # of the attempts of its command, or by now of its undo: those before an operator's retry
    skipped: bool = False  # by an operator: nothing is done about it any more

    @property
    def result_value(self) -> Any:
        """What its transaction returned; None: nothing, or nothing is known of it."""
        return _value(self.result)

    @property
    def error_value(self) -> Any:
        """Why the last attempt failed that did: what the service said; None: none failed, or it said nothing."""
        return _value(self.error)

    @property
    def compensation_error_value(self) -> Any:
        """The same for the attempts to undo it."""
        return _value(self.compensation_error)

    @property
    def completed(self) -> bool:
        """Whether its transaction is known to have completed, undone since or not."""
        done = self.status in (StepStatus.COMPLETED, StepStatus.COMPENSATED) and not self.unknown
        return done or self.late_ms is not None

    @property
    def may_have_effect(self) -> bool:
        """Whether there is something to undo."""
        if self.skipped:
            return False
        return self.status is StepStatus.COMPLETED or (self.status is StepStatus.FAILED and self.unknown)


class Intervention(Struct, frozen=True, kw_only=True, gc=False):
    """What was done about a saga from outside of it, and why."""

    verb: str  # cancel, retry, skip, abandon; or what became of that
    reason: str
    at_ms: int
    request_id: str | None = None  # of the request, so that it is done once however often it arrives


class SagaState(Struct, frozen=True, kw_only=True, gc=False):
    """The whole of a saga as it stands: what clients are given, the decision core sees, and the store keeps.

    To users: `status`; `reason`, why it goes or went back; `parked`, why it waits for a person; `ended`; `results`; and
    `steps`, each with its own status and error. It is a picture: ask for the saga again to see what has become of it.
    Times are milliseconds since the epoch by the broker's clock.

    A live saga always has a reason to move: it is parked, or one of `times_out_ms` and `send_again_ms` is set.
    """

    saga_id: str
    steps: tuple[Step, ...]
    status: SagaStatus
    current_step: int  # counts from 1; while compensating: the step being undone
    reason: str | None = None  # why it compensates
    parked: str | None = None  # why it stands still until a person acts
    cancelling: str | None = None  # why it is to go back as soon as the current step is answered
    compensating_steps: tuple[int, ...] = ()  # in the order in which their compensation was sent
    begun_ms: int
    updated_ms: int
    times_out_ms: int | None = None  # a command is out: when its answer is no longer waited for
    send_again_ms: int | None = None  # it failed: when the next attempt is sent
    deadline_ms: int | None = None  # when the saga is cancelled
    interventions: tuple[Intervention, ...] = ()
    duplicates: int = 0  # replies that came more than once, and were ignored
    request_id: str | None = None  # of the saga_begin
    echo: bool = False  # the field `trace`: the messages of the saga are reported too
    format: int = PLAIN  # one of FORMATS
    version: int = 0  # counts commits; 0: not stored yet. Only the store sets it

    @property
    def ended(self) -> bool:
        # By identity: it is asked some twenty times a turn, and an enum of strings compares as strings.
        return self.status is SagaStatus.COMPLETED or self.status is SagaStatus.ABORTED

    @property
    def results(self) -> list[Any]:
        """What each step returned; None: nothing, or nothing is known of it."""
        return [step.result_value for step in self.steps]

    @property
    def weight(self) -> int:
        """About how many bytes it takes, of params and what services said."""
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
        return any(step.status is StepStatus.COMPLETED or step.skipped for step in pivots)

    @property
    def may_be_cancelled(self) -> bool:
        return self.status is SagaStatus.PENDING and self.cancelling is None and not self.past_pivot

    @property
    def due_ms(self) -> int | None:
        """When it needs attention next, whatever comes or does not come; None: not before a person acts, or ever."""
        if self.parked is not None or self.ended:
            return None
        due_ms = self.send_again_ms if self.times_out_ms is None else self.times_out_ms
        if self.deadline_ms is not None and self.may_be_cancelled:
            due_ms = self.deadline_ms if due_ms is None else min(due_ms, self.deadline_ms)
        return due_ms or 0

    @property
    def command(self) -> str:
        """The command that the saga is at: the transaction of the current step or, once it was sent, what undoes it."""
        name = self.step.definition.transaction
        return self.step.compensation or name if self.status is SagaStatus.COMPENSATING else name

    @property
    def attempt(self) -> int:
        """How often that command was sent."""
        compensating = self.status is SagaStatus.COMPENSATING
        return self.step.compensation_attempt if compensating else self.step.attempt

    @property
    def attempts(self) -> int:
        """How often it is sent at the most."""
        definition = self.step.definition
        compensating = self.status is SagaStatus.COMPENSATING
        limit = definition.compensation_attempts if compensating else definition.attempts
        return self.step.tried_before + limit

    @property
    def attempt_of_round(self) -> int:
        """The same, counted anew where an operator had it tried anew; from 1."""
        return max(1, self.attempt - self.step.tried_before)

    @property
    def failure_is_open(self) -> bool:
        """Whether a `_failed` of the attempt that is out is no last word: it is tried again, and is not recorded."""
        definition = self.step.definition
        return definition.retried and (definition.kind is StepKind.RETRIABLE or self.attempt < self.attempts)

    @property
    def waiting_for(self) -> str:
        """What must happen for the saga to go on, in words."""
        if self.ended:
            return "nothing, it has ended"
        if self.parked is not None:
            return "a person, it is parked"
        what = f"{self.command}, step {self.current_step}"
        then = ", to be cancelled then" if self.cancelling is not None else ""
        if self.send_again_ms is not None:
            return f"the time to send {what} again (attempt {self.attempt + 1} of {self.attempts}){then}"
        which = f" (attempt {self.attempt} of {self.attempts})" if self.attempt > 1 else ""
        return f"{self.step.definition.service} to answer {what}{which}{then}"

    def with_step(self, number: int, step: Step, **changes: Any) -> "SagaState":
        """The same saga, with this step in the place of the one of that number, and these changes."""
        return replace(self, steps=(*self.steps[: number - 1], step, *self.steps[number:]), **changes)

    def has_taken(self, request_id: str | None) -> bool:
        """Whether this request of an operator was done, as far back as that is kept."""
        return request_id is not None and any(done.request_id == request_id for done in self.interventions)

    def with_intervention(self, intervention: Intervention) -> "SagaState":
        return replace(self, interventions=(*self.interventions, intervention)[-MAX_INTERVENTIONS:])


#: What a saga may be found to be; None: there is none.
Found = SagaState | UnreadableSaga | None


def _value(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


def begun_with(state: SagaState, begin: Begin) -> bool:
    """Whether the saga is the one that `begin` asks for: one with the same id and other steps is not."""
    deadline_ms = None if state.deadline_ms is None else state.deadline_ms - state.begun_ms
    before = [step.definition.canonical() for step in state.steps]
    if state.format != begin.format or deadline_ms != begin.deadline_ms:
        return False
    return before == [definition.canonical() for definition in begin.steps]


def conflict(saga_id: str) -> str:
    """What the sender of a saga_begin is told that has another saga's id."""
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

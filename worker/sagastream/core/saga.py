"""A saga as it stands: its status, its steps, and what happened to each."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.messages import Begin
from sagastream.core.phases import ACTIVE, BACKING_OFF, DONE, IN_FLIGHT, LEFT_ALONE, STEP, TO_UNDO, UNDO, Phase
from sagastream.core.steps import PLAIN, StepDefinition, StepKind
from sagastream.errors import ImpossibleTransition, UnreadableSaga

#: How many interventions a saga keeps, the newest ones.
MAX_INTERVENTIONS: Final = 100


class SagaStatus(StrEnum):
    PENDING = "PENDING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    ABORTED = "ABORTED"


class StepStatus(StrEnum):
    """What became of a step's transaction, as users see it."""

    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    COMPENSATED = "COMPENSATED"


#: What users see of a phase. While a step is being undone, and after that was skipped, they see what became of its
#: transaction: that is FAILED where the outcome is unknown, for of the steps that failed only those are undone.
_STATUS: Final[Mapping[Phase, StepStatus]] = {
    Phase.WAITING: StepStatus.PENDING,
    Phase.OUT: StepStatus.PENDING,
    Phase.BACKING_OFF: StepStatus.PENDING,
    Phase.PARKED: StepStatus.PENDING,
    Phase.COMPLETED: StepStatus.COMPLETED,
    Phase.SKIPPED: StepStatus.FAILED,
    Phase.FAILED: StepStatus.FAILED,
    Phase.IN_DOUBT: StepStatus.FAILED,
    Phase.UNDO_OUT: StepStatus.COMPLETED,
    Phase.UNDO_BACKING_OFF: StepStatus.COMPLETED,
    Phase.UNDO_PARKED: StepStatus.COMPLETED,
    Phase.COMPENSATED: StepStatus.COMPENSATED,
    Phase.UNDO_SKIPPED: StepStatus.COMPLETED,
}
_STATUS_IF_UNKNOWN: Final = {**_STATUS, **dict.fromkeys((*UNDO, Phase.UNDO_SKIPPED), StepStatus.FAILED)}


class Step(Struct, frozen=True, kw_only=True, gc=False):
    """One step of a saga. Times are milliseconds since the epoch by the broker's clock, None: not yet.

    `definition`: what was asked for (transaction, service …). `result`, `error` and `compensation_error` are kept as
    the JSON that was sent; `result_value`, `error_value` and `compensation_error_value` are what it says.

    `phase` says what is being done about the step. It changes by `moved` alone.
    """

    definition: StepDefinition
    phase: Phase = Phase.WAITING
    attempt: int = 0  # how often its command was sent
    sent_ms: int | None = None  # the last of them
    answered_ms: int | None = None  # when it was answered for good, or given up
    result: bytes | None = None  # JSON, of a completed step
    error: bytes | None = None  # JSON, of the last attempt that failed
    unknown: bool = False  # an attempt's outcome is unknown: it may have had its effect
    late_ms: int | None = None  # when it was heard, too late, that the transaction had its effect
    compensation: str | None = None  # the command that undoes it, once that was sent
    compensation_attempt: int = 0  # how often that was sent
    compensation_sent_ms: int | None = None
    compensation_answered_ms: int | None = None
    compensation_error: bytes | None = None  # JSON, of the last attempt that failed
    tried_before: int = 0  # how many attempts of its command, or of its undo, came before an operator's retry
    due_ms: int | None = None  # in flight: until when the answer is awaited; backing off: when the next attempt is sent
    parked: str | None = None  # parked: why

    def moved(self, happening: str, **changes: Any) -> "Step":
        """The step after what happened, with these changes. It waits for nothing but what `due_ms` or `parked` among
        them say.

        Raises ImpossibleTransition where no step can change so.
        """
        try:
            changes["phase"] = STEP[self.phase, happening]
        except KeyError:
            raise ImpossibleTransition(f"{happening!r} cannot happen to a step that is {self.phase}") from None
        if self.due_ms is not None:
            changes.setdefault("due_ms", None)
        if self.parked is not None:
            changes.setdefault("parked", None)
        return replace(self, **changes)

    @property
    def status(self) -> StepStatus:
        return (_STATUS_IF_UNKNOWN if self.unknown else _STATUS)[self.phase]

    @property
    def skipped(self) -> bool:
        """Whether an operator skipped its command or its undo: nothing more is done about it."""
        return self.phase in LEFT_ALONE

    @property
    def is_active(self) -> bool:
        """Whether something is awaited for it: an answer, a time, or a person."""
        return self.phase in ACTIVE

    @property
    def in_flight(self) -> bool:
        """Whether a command of it is out."""
        return self.phase in IN_FLIGHT

    @property
    def being_undone(self) -> bool:
        return self.phase in UNDO

    @property
    def times_out_ms(self) -> int | None:
        """When the answer to its command is no longer awaited; None: no command is out."""
        return self.due_ms if self.phase in IN_FLIGHT else None

    @property
    def send_again_ms(self) -> int | None:
        """When its next attempt is sent; None: it has none to wait for."""
        return self.due_ms if self.phase in BACKING_OFF else None

    @property
    def command(self) -> str:
        """The command that it is at: its transaction, or what undoes it once that was sent."""
        return (self.phase in UNDO and self.compensation) or self.definition.transaction

    @property
    def current_attempt(self) -> int:
        """How often that command was sent."""
        return self.compensation_attempt if self.phase in UNDO else self.attempt

    @property
    def attempts(self) -> int:
        """How often it is sent at most."""
        definition = self.definition
        return self.tried_before + (definition.compensation_attempts if self.phase in UNDO else definition.attempts)

    @property
    def attempt_of_round(self) -> int:
        """The current attempt, counted anew from each retry of an operator; from 1."""
        return max(1, self.current_attempt - self.tried_before)

    @property
    def failure_is_open(self) -> bool:
        """Whether a `_failed` of the current attempt would be tried again. Then it is not recorded as the answer."""
        definition = self.definition
        return definition.retried and (definition.kind is StepKind.RETRIABLE or self.attempt < self.attempts)

    @property
    def result_value(self) -> Any:
        """What its transaction returned; None: nothing, or nothing is known of it."""
        return _value(self.result)

    @property
    def error_value(self) -> Any:
        """What the service said of the last attempt that failed; None: none failed, or it said nothing."""
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
        return self.phase in TO_UNDO


class Intervention(Struct, frozen=True, kw_only=True, gc=False):
    """What was done about a saga from outside of it, and why."""

    verb: str  # cancel, retry, skip, abandon; "too late" of a cancel that a pivot came before
    reason: str
    at_ms: int
    request_id: str | None = None  # of the request, so that it is done once however often it arrives


class SagaState(Struct, frozen=True, kw_only=True, gc=False):
    """The whole of a saga as it stands: what clients are given, the decision core sees, and the store keeps.

    To users: `status`; `reason`, why it goes or went back; `parked`, why it waits for a person; `ended`; `results`; and
    `steps`, each with its own status and error. It is a picture: ask for the saga again to see what has become of it.
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
    duplicates: int = 0  # replies that came more than once, and were ignored
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
        """What each step returned; None: nothing, or nothing is known of it."""
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
        """When it needs attention next, whatever comes or does not come; None: not before a person acts, or ever."""
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

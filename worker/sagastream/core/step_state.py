"""A step of a saga as it stands: what is being done about it, and what became of it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.phases import ACTIVE, BACKING_OFF, IN_FLIGHT, LEFT_ALONE, STEP, TO_UNDO, UNDO, Phase
from sagastream.core.steps import StepDefinition, StepKind
from sagastream.errors import ImpossibleTransition


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

    `definition`: what was asked for (transaction, service …). `result`, `error` and `compensation_error` are the JSON
    that was sent; `result_value`, `error_value` and `compensation_error_value` are its values.

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
        """What its transaction returned; None: nothing, or that is not known."""
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


def _value(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)

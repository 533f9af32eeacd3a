"""A step of a saga at one moment: what is being done about it, and what became of it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import replace

from sagastream.core.phases import (
    ACTIVE,
    BACKING_OFF,
    IN_FLIGHT,
    LEFT_ALONE,
    MAY_AWAIT_RETRY,
    MAY_AWAIT_SIGNAL,
    STEP,
    TO_UNDO,
    UNDO,
    Phase,
)
from sagastream.core.sealed_values import keys_of
from sagastream.core.steps import StepDefinition, StepKind
from sagastream.errors import CannotOpen, ImpossibleTransition


class StepStatus(StrEnum):
    """What became of a step's transaction, as users see it."""

    PENDING = "PENDING"  # it was not sent yet, or has no answer for good yet
    COMPLETED = "COMPLETED"  # it was done, and is not undone yet
    FAILED = "FAILED"  # it failed, was given up, or was skipped by an operator
    COMPENSATED = "COMPENSATED"  # it was undone


#: The status that users see in each phase. While a step is being undone, and after its undo was skipped, they see what
#: became of its transaction. That is FAILED if the outcome is unknown: of the failed steps, only such steps are undone.
_STATUS: Final[Mapping[Phase, StepStatus]] = {
    Phase.WAITING: StepStatus.PENDING,
    Phase.BYPASSED: StepStatus.PENDING,
    Phase.AWAITING: StepStatus.PENDING,
    Phase.RETRY_AWAITED: StepStatus.PENDING,
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
#: When the command of a step is sent that is held, since its service or its command is paused: never by itself. It is
#: the year 5000, and not a value of its own, so that a worker of an earlier release leaves the step alone, too.
HELD_MS: Final = 95_617_584_000_000
#: From here on, the year 4000, a step counts as held: that worker moves the time with a clock that is set.
_HELD_FROM_MS: Final = 64_060_588_800_000
_WAITING, _OUT, _COMPLETED = Phase.WAITING, Phase.OUT, Phase.COMPLETED
_STATUS_IF_UNKNOWN: Final = {**_STATUS, **dict.fromkeys((*UNDO, Phase.UNDO_SKIPPED), StepStatus.FAILED)}


class Step(Struct, frozen=True, kw_only=True, gc=False):
    """One step of a saga at one moment. Times are milliseconds since the epoch by the broker's clock; None: not yet.

    `result`, `error` and `compensation_error` are the JSON that was sent; `result_value`, `error_value` and
    `compensation_error_value` are the values in it.
    """

    definition: StepDefinition  # what the request asks for: transaction, service, params and options
    phase: Phase = Phase.WAITING  # what is being done about the step; only `moved` changes it
    attempt: int = 0  # how often its transaction was sent
    sent_ms: int | None = None  # when its transaction was last sent
    answered_ms: int | None = None  # when its transaction was answered for good, or given up
    result: bytes | None = None  # what its transaction returned, JSON; None: it has not completed, or returned nothing
    error: bytes | None = None  # the error of the last attempt that failed, JSON
    unknown: bool = False  # whether the outcome of an attempt is unknown: it may have had its effect
    late_ms: int | None = None  # when an answer came, too late, that says that the transaction had its effect
    compensation: str | None = None  # the command that undoes it; None: that was not sent yet
    compensation_attempt: int = 0  # how often its compensation was sent
    compensation_sent_ms: int | None = None  # when its compensation was last sent
    compensation_answered_ms: int | None = None  # when its compensation was answered for good, or given up
    compensation_error: bytes | None = None  # the error of the last attempt to undo it that failed, JSON
    tried_before: int = 0  # how many attempts of the current command were made before an operator's last retry
    unsent_retries: int = 0  # how often an operator said retry when nothing had been sent; of a plain saga 0
    due_ms: int | None = None  # when its command times out, its wait ends, or it is sent; None: it has no time
    parked: str | None = None  # why it waits for a person; None: it does not
    done_by: str | None = None  # the process that gave the last word on its transaction; None: that is not known
    compensation_done_by: str | None = None  # the same of its compensation
    built: bytes | None = None  # its params as they are sent, JSON; None: as its definition says, without references
    built_undo: bytes | None = None  # its `compensation_params` as they are sent, JSON; None: it has none

    def moved(self, happening: str, **changes: Any) -> "Step":
        """The step after `happening`, with these changes. `due_ms` and `parked` become None if they are not among the
        changes.

        Raises ImpossibleTransition if that cannot happen to a step in its phase.
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
        """What became of its transaction."""
        return (_STATUS_IF_UNKNOWN if self.unknown else _STATUS)[self.phase]

    @property
    def skipped(self) -> bool:
        """Whether an operator skipped its transaction or its compensation: nothing more is done about it."""
        return self.phase in LEFT_ALONE

    @property
    def params(self) -> bytes:
        """What its transaction and its compensation get, JSON. Until it is sent, it may still hold references."""
        return self.definition.params if self.built is None else self.built

    @property
    def is_active(self) -> bool:
        """Whether it waits for something: an answer, a time, a signal, or a person."""
        return self.phase in ACTIVE

    def may_take(self, signal: str) -> bool:
        """Whether it waits for this signal, or may come to do so."""
        shape = self.definition.shape
        if shape.wait == signal:
            return self.phase in MAY_AWAIT_SIGNAL
        # What is held may never have been sent.
        return shape.retry_on == signal and self.phase in MAY_AWAIT_RETRY and self.attempt > 0

    @property
    def in_flight(self) -> bool:
        """Whether a command of it is out."""
        return self.phase in IN_FLIGHT

    @property
    def being_undone(self) -> bool:
        """Whether its compensation is in flight, backing off, held or parked."""
        return self.phase in UNDO

    @property
    def is_held(self) -> bool:
        """Whether its next command waits until somebody resumes its service or that command."""
        return self.due_ms is not None and self.due_ms >= _HELD_FROM_MS and self.phase in BACKING_OFF

    @property
    def times_out_ms(self) -> int | None:
        """When its command times out, or its wait is over; None: it does not wait for an answer, a signal or a time."""
        return self.due_ms if self.phase not in BACKING_OFF else None

    @property
    def send_again_ms(self) -> int | None:
        """When its next attempt is sent; None: it is not backing off, or is held."""
        return self.due_ms if self.phase in BACKING_OFF and not self.is_held else None

    @property
    def command(self) -> str:
        """Its current command: while it is being undone, its compensation, if that was sent; otherwise its
        transaction."""
        return (self.phase in UNDO and self.compensation) or self.definition.transaction

    @property
    def current_attempt(self) -> int:
        """How often the current command was sent."""
        return self.compensation_attempt if self.phase in UNDO else self.attempt

    @property
    def current_error(self) -> bytes | None:
        """How its last attempt failed, of the current command; None: no attempt of it has."""
        return self.compensation_error if self.phase in UNDO else self.error

    @property
    def failed_attempts(self) -> int:
        """How many attempts of the current command have failed in a row."""
        if self.current_error is None:
            return 0
        return self.current_attempt - (self.phase in IN_FLIGHT)

    @property
    def attempts(self) -> int:
        """How often the current command is sent at most."""
        definition = self.definition
        return self.tried_before + (definition.compensation_attempts if self.phase in UNDO else definition.attempts)

    @property
    def attempt_of_round(self) -> int:
        """The number of the current attempt, from 1. An operator's retry starts the count again."""
        return max(1, self.current_attempt - self.tried_before)

    @property
    def failure_is_open(self) -> bool:
        """Whether the command may be sent again if the current attempt is answered with `_failed`. If so, the service
        does not record that answer."""
        return self.is_tried_again or self.definition.shape.retry_on is not None

    @property
    def is_tried_again(self) -> bool:
        """Whether the command is sent again after a delay if the current attempt is answered with `_failed`."""
        definition = self.definition
        return definition.kind is StepKind.RETRIABLE or (definition.retry_failed and self.attempt < self.attempts)

    @property
    def result_value(self) -> Any:
        """What its transaction returned; None if it returned None, or no result is known."""
        return _value(self.result)

    @property
    def error_value(self) -> Any:
        """The error of the last attempt of its transaction that failed; None if none failed, or no error was given."""
        return _value(self.error)

    @property
    def compensation_error_value(self) -> Any:
        """The error of the last attempt of its compensation that failed; None if none failed, or no error was given."""
        return _value(self.compensation_error)

    @property
    def completed(self) -> bool:
        """Whether its transaction is known to have completed, even if it was undone since."""
        phase = self.phase  # compared by identity: asked for every step of a saga whenever one has completed
        if phase is _COMPLETED:
            return not self.unknown or self.late_ms is not None
        if phase is _WAITING:  # it was never sent
            return False
        if phase is _OUT:
            return self.late_ms is not None
        done = self.status in (StepStatus.COMPLETED, StepStatus.COMPENSATED) and not self.unknown
        return done or self.late_ms is not None

    @property
    def may_have_effect(self) -> bool:
        """Whether there is an effect to undo, or may be one."""
        return self.phase in TO_UNDO

    @property
    def would_stay(self) -> bool:
        """Whether there is, or may be, an effect that stays if nothing more is done about the step."""
        if not self.definition.shape.sends or self.phase in _UNDONE:
            return False
        return self.may_have_effect or self.unknown


#: Its effect is gone, or a person said that it is as good as gone.
_UNDONE: Final = frozenset({Phase.COMPENSATED, Phase.UNDO_SKIPPED})


def _value(data: bytes | None) -> Any:
    """Raises CannotOpen if something in it is still sealed."""
    if data is None:
        return None
    if keys := keys_of(data):
        text = f"it is sealed with key {', '.join(keys)}, and was not opened: sagastream show says why, with these keys"
        raise CannotOpen(text, key=keys[0])
    return orjson.loads(data)

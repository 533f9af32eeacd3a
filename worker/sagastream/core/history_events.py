"""The events of a history: what each says to people and to programs."""

from enum import StrEnum
from typing import Any

import orjson
from msgspec import Struct


class HistoryKind(StrEnum):
    """What an event of a history is."""

    BEGUN = "BEGUN"  # a worker has taken the request to begin the saga
    SENT = "SENT"  # an attempt of a step's command was sent
    AWAITED = "AWAITED"  # a step has begun to wait for a signal or a time
    DONE = "DONE"  # the step was done; or what it waited for has come
    FAILED = "FAILED"  # an attempt failed
    NOT_ANSWERED = "NOT_ANSWERED"  # an attempt was not answered in time
    UNKNOWN = "UNKNOWN"  # an attempt failed or was given up, and may have been done all the same
    LATE = "LATE"  # an answer came after the step was given up: it was done after all
    BYPASSED = "BYPASSED"  # the condition of the step did not hold
    PARKED = "PARKED"  # the step stood still until a person acted
    HELD = "HELD"  # its command, or its compensation, is paused: it is sent once that is resumed
    RESUMED = "RESUMED"  # what held its command, or its compensation, was resumed
    UNDO_PUT_OFF = "UNDO_PUT_OFF"  # its compensation is sent later: much is undone at once
    UNDO_SENT = "UNDO_SENT"  # an attempt of its compensation was sent
    UNDO_FAILED = "UNDO_FAILED"  # an attempt to undo it failed
    UNDO_NOT_ANSWERED = "UNDO_NOT_ANSWERED"
    UNDO_UNKNOWN = "UNDO_UNKNOWN"
    UNDONE = "UNDONE"  # the step was undone
    IGNORED = "IGNORED"  # a reply said nothing new
    ASKED = "ASKED"  # a person asked for something, or a signal came
    DEADLINE = "DEADLINE"  # the deadline of the saga has come
    LEFT_OUT = "LEFT_OUT"  # events that are not known any more: the journal was full, or switched off
    ENDED = "ENDED"  # the saga is COMPLETED or ABORTED


class HistoryEvent(Struct, frozen=True, kw_only=True):
    """One thing that happened to a saga. `text` says it in words; the other members say it to programs."""

    kind: HistoryKind
    at_ms: int | None  # when, in ms since the epoch by the broker's clock; None: that is not known
    text: str  # in words, without the time and the step; what services and people wrote is in it
    step: int | None = None  # the number of the step, from 1; None: it is about the saga as a whole
    command: str | None = None  # of a step: its transaction or its compensation
    service: str | None = None  # of a step
    attempt: int | None = None  # which attempt of the command
    process: str | None = None  # which process of the service answered, if that is known
    error: bytes | None = None  # how an attempt failed, JSON; a long one is cut, but for the last of a step
    again_ms: int | None = None  # when the next attempt was to be sent
    verb: str | None = None  # what was asked for
    reason: str | None = None  # why it was asked for, paused or resumed; or why the saga was undone
    actor: str | None = None  # who asked, or has paused or resumed it, in their own words; of several, the first
    bulk: str | None = None  # the id of the bulk that asked

    @property
    def error_value(self) -> Any:
        """The value of `error`; None: there is none."""
        return None if self.error is None else orjson.loads(self.error)

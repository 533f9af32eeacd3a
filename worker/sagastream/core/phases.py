"""The phases of a step, and every change from one to another.

STEP is the whole list: any other change is refused. ARCHITECTURE.md draws it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """What the orchestrator is doing about a step."""

    WAITING = "WAITING"  # nothing was sent yet
    BYPASSED = "BYPASSED"  # its condition did not hold: for the steps after it that counts as done
    AWAITING = "AWAITING"  # it sends nothing: it waits for a signal, or until a time
    OUT = "OUT"  # its command is out: an answer is awaited
    BACKING_OFF = "BACKING_OFF"  # its command will be sent: an attempt failed, or its service is paused
    RETRY_AWAITED = "RETRY_AWAITED"  # its last attempt failed: a signal is awaited, to send it again
    PARKED = "PARKED"  # a person must say how to go on
    COMPLETED = "COMPLETED"  # its command was done
    SKIPPED = "SKIPPED"  # an operator skipped its command: for the steps after it that counts as done
    FAILED = "FAILED"  # it was not done, and nothing of it remains
    IN_DOUBT = "IN_DOUBT"  # it was given up, and may have been done all the same
    UNDO_OUT = "UNDO_OUT"  # its compensation is out
    UNDO_BACKING_OFF = "UNDO_BACKING_OFF"
    UNDO_PARKED = "UNDO_PARKED"
    COMPENSATED = "COMPENSATED"  # it was undone
    UNDO_SKIPPED = "UNDO_SKIPPED"  # an operator skipped its compensation: for the steps before it that counts as undone


#: A command of the step is out.
IN_FLIGHT: Final = frozenset({Phase.OUT, Phase.UNDO_OUT})
#: The next attempt has a time.
BACKING_OFF: Final = frozenset({Phase.BACKING_OFF, Phase.UNDO_BACKING_OFF})
#: The step is being undone.
UNDO: Final = frozenset({Phase.UNDO_OUT, Phase.UNDO_BACKING_OFF, Phase.UNDO_PARKED})
#: A signal is awaited, or the end of a pause.
AWAITS: Final = frozenset({Phase.AWAITING, Phase.RETRY_AWAITED})
#: A step that waits for a signal takes it, now or later.
MAY_AWAIT_SIGNAL: Final = frozenset({Phase.WAITING, Phase.AWAITING})
#: So does a step that a signal sends again. Not before it is sent: nothing has failed then, and what somebody mends now
#: is mended by then.
MAY_AWAIT_RETRY: Final = frozenset({Phase.OUT, Phase.BACKING_OFF, Phase.RETRY_AWAITED})
#: Something is awaited for the step: an answer, a time, a signal, or a person.
ACTIVE: Final = IN_FLIGHT | BACKING_OFF | AWAITS | {Phase.PARKED, Phase.UNDO_PARKED}
#: An operator skipped its command or its undo: nothing more is done about it.
LEFT_ALONE: Final = frozenset({Phase.SKIPPED, Phase.UNDO_SKIPPED})
#: The steps after it may go on.
DONE: Final = frozenset({Phase.COMPLETED, Phase.SKIPPED, Phase.BYPASSED})
#: There is, or may be, an effect to undo.
TO_UNDO: Final = UNDO | {Phase.COMPLETED, Phase.IN_DOUBT}

#: (phase before, what happened) -> phase after.
STEP: Final[Mapping[tuple[Phase, str], Phase]] = {
    (Phase.WAITING, "sent"): Phase.OUT,
    (Phase.WAITING, "bypassed"): Phase.BYPASSED,
    (Phase.WAITING, "awaits"): Phase.AWAITING,
    # What it is to send cannot be made of the input and the results.
    (Phase.WAITING, "failed"): Phase.FAILED,
    (Phase.WAITING, "parked"): Phase.PARKED,
    (Phase.PARKED, "waits again"): Phase.WAITING,
    (Phase.AWAITING, "completed"): Phase.COMPLETED,
    (Phase.AWAITING, "failed"): Phase.FAILED,
    (Phase.AWAITING, "parked"): Phase.PARKED,
    # Its service, or its command, is paused: it is sent once that is over.
    (Phase.WAITING, "put off"): Phase.BACKING_OFF,
    (Phase.BACKING_OFF, "put off"): Phase.BACKING_OFF,
    (Phase.RETRY_AWAITED, "put off"): Phase.BACKING_OFF,
    (Phase.PARKED, "put off"): Phase.BACKING_OFF,
    (Phase.BACKING_OFF, "sent"): Phase.OUT,
    (Phase.PARKED, "sent"): Phase.OUT,
    (Phase.OUT, "attempt failed"): Phase.BACKING_OFF,
    (Phase.OUT, "retry awaited"): Phase.RETRY_AWAITED,
    (Phase.RETRY_AWAITED, "sent"): Phase.OUT,
    (Phase.RETRY_AWAITED, "completed"): Phase.COMPLETED,
    (Phase.RETRY_AWAITED, "given up"): Phase.IN_DOUBT,
    (Phase.RETRY_AWAITED, "parked"): Phase.PARKED,
    (Phase.OUT, "parked"): Phase.PARKED,
    (Phase.BACKING_OFF, "parked"): Phase.PARKED,
    # An earlier attempt may be answered while the next one is not sent yet, or after the step was parked.
    (Phase.OUT, "completed"): Phase.COMPLETED,
    (Phase.BACKING_OFF, "completed"): Phase.COMPLETED,
    (Phase.PARKED, "completed"): Phase.COMPLETED,
    (Phase.OUT, "failed"): Phase.FAILED,
    (Phase.BACKING_OFF, "failed"): Phase.FAILED,
    (Phase.PARKED, "failed"): Phase.FAILED,
    (Phase.OUT, "given up"): Phase.IN_DOUBT,
    (Phase.BACKING_OFF, "given up"): Phase.IN_DOUBT,
    (Phase.PARKED, "given up"): Phase.IN_DOUBT,
    (Phase.PARKED, "skipped"): Phase.SKIPPED,
    (Phase.COMPLETED, "undo sent"): Phase.UNDO_OUT,
    (Phase.IN_DOUBT, "undo sent"): Phase.UNDO_OUT,
    (Phase.UNDO_BACKING_OFF, "undo sent"): Phase.UNDO_OUT,
    (Phase.UNDO_PARKED, "undo sent"): Phase.UNDO_OUT,
    # What undoes it is paused. Or so much is sent to undo other steps of the saga that this is sent in a commit of its
    # own, at once.
    (Phase.COMPLETED, "undo put off"): Phase.UNDO_BACKING_OFF,
    (Phase.IN_DOUBT, "undo put off"): Phase.UNDO_BACKING_OFF,
    (Phase.UNDO_BACKING_OFF, "undo put off"): Phase.UNDO_BACKING_OFF,
    (Phase.UNDO_PARKED, "undo put off"): Phase.UNDO_BACKING_OFF,
    (Phase.COMPLETED, "undo parked"): Phase.UNDO_PARKED,
    (Phase.IN_DOUBT, "undo parked"): Phase.UNDO_PARKED,
    (Phase.UNDO_OUT, "undo parked"): Phase.UNDO_PARKED,
    (Phase.UNDO_OUT, "undo attempt failed"): Phase.UNDO_BACKING_OFF,
    (Phase.UNDO_OUT, "undone"): Phase.COMPENSATED,
    (Phase.UNDO_BACKING_OFF, "undone"): Phase.COMPENSATED,
    (Phase.UNDO_PARKED, "undone"): Phase.COMPENSATED,
    (Phase.UNDO_PARKED, "undo skipped"): Phase.UNDO_SKIPPED,
    # Its undo is dropped, so the step is again what it was before.
    (Phase.UNDO_PARKED, "left done"): Phase.COMPLETED,
    (Phase.UNDO_PARKED, "left in doubt"): Phase.IN_DOUBT,
    (Phase.UNDO_OUT, "left done"): Phase.COMPLETED,
    (Phase.UNDO_OUT, "left in doubt"): Phase.IN_DOUBT,
    (Phase.UNDO_BACKING_OFF, "left done"): Phase.COMPLETED,
    (Phase.UNDO_BACKING_OFF, "left in doubt"): Phase.IN_DOUBT,
    # The command was done after all, as is heard too late: that is noted, and moves nothing.
    (Phase.SKIPPED, "done too late"): Phase.SKIPPED,
    (Phase.IN_DOUBT, "done too late"): Phase.IN_DOUBT,
    (Phase.UNDO_OUT, "done too late"): Phase.UNDO_OUT,
    (Phase.UNDO_BACKING_OFF, "done too late"): Phase.UNDO_BACKING_OFF,
    (Phase.UNDO_PARKED, "done too late"): Phase.UNDO_PARKED,
    (Phase.UNDO_SKIPPED, "done too late"): Phase.UNDO_SKIPPED,
    (Phase.COMPENSATED, "done too late"): Phase.COMPENSATED,
    # So it is with the undo, if an operator has skipped it or abandoned the saga.
    (Phase.UNDO_SKIPPED, "undone too late"): Phase.UNDO_SKIPPED,
    (Phase.COMPLETED, "undone too late"): Phase.COMPLETED,
    (Phase.IN_DOUBT, "undone too late"): Phase.IN_DOUBT,
}

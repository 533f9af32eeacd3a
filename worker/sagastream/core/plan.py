"""The order of a saga's steps: which may be sent now, and which may be undone now. Pure functions of the steps.

A step may begin once all steps that it comes after are done or bypassed. It is undone once nothing that came after it
is left to undo. No other module knows the order; graph.py says what comes after what.
"""

from collections.abc import Callable, Sequence
from typing import Final

from sagastream.core.graph import before
from sagastream.core.phases import ACTIVE, DONE, TO_UNDO, UNDO, Phase
from sagastream.core.step_state import Step

_WAITING: Final = Phase.WAITING


def ready(steps: Sequence[Step]) -> list[int]:
    """The numbers of the steps that may begin now, ascending: they wait, and all that they come after are done."""
    found = []
    for number, step in enumerate(steps, 1):
        if step.phase is _WAITING:  # written out, not asked of graph.before: this is asked for every answer
            after = step.definition.shape.after
            if after is None:
                if number == 1 or steps[number - 2].phase in DONE:
                    found.append(number)
            elif all(steps[other - 1].phase in DONE for other in after):
                found.append(number)
    return found


def is_done(steps: Sequence[Step]) -> bool:
    """Whether nothing is left to do."""
    for step in steps:  # noqa: SIM110 - asked for every answer: twice as fast as all()
        if step.phase not in DONE:
            return False
    return True


def undoable(steps: Sequence[Step], needs_undo: Callable[[Step], bool]) -> list[int]:
    """The numbers of the steps whose compensations may be sent now, descending: nothing is left to undo of all that
    came after them, directly or not.

    `needs_undo`: whether there is a compensation for the effect that a step has or may have.
    """
    found = []
    held: set[int] = set()  # they come before a step that is left to undo
    for number in range(len(steps), 0, -1):
        step = steps[number - 1]
        if number not in held:
            if not _is_left(step, needs_undo):
                continue
            if step.phase not in UNDO:
                found.append(number)
        held.update(before(step.definition, number))
    return found


def is_undone(steps: Sequence[Step], needs_undo: Callable[[Step], bool]) -> bool:
    """Whether nothing is left to undo."""
    return not any(_is_left(step, needs_undo) for step in steps)


def _is_left(step: Step, needs_undo: Callable[[Step], bool]) -> bool:
    """Whether a step is left to undo. What has begun to be undone is, even if its service says meanwhile that it needs
    no undo."""
    return step.phase in UNDO or (step.phase in TO_UNDO and needs_undo(step))


def current(steps: Sequence[Step], otherwise: int) -> int:
    """The number of the step that waits for something: the first one, or of those that are being undone the last one.
    `otherwise`: if none does."""
    found = otherwise
    for number, step in enumerate(steps, 1):
        if step.phase in ACTIVE:
            if step.phase not in UNDO:
                return number
            found = number
    return found

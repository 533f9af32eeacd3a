"""The order of a saga's steps: which may be sent now, and which may be undone now. Pure functions of the steps.

A chain is the only plan so far: each step comes after the one before it. No other module knows the order.
"""

from collections.abc import Callable, Sequence

from sagastream.core.phases import ACTIVE, DONE, TO_UNDO, UNDO, Phase
from sagastream.core.step_state import Step


def ready(steps: Sequence[Step]) -> list[int]:
    """The numbers of the steps whose commands may be sent now, ascending: they wait, and all before them are done."""
    for number, step in enumerate(steps, 1):
        if step.phase not in DONE:
            return [number] if step.phase is Phase.WAITING else []
    return []


def is_done(steps: Sequence[Step]) -> bool:
    """Whether nothing is left to do."""
    for step in steps:  # noqa: SIM110 - asked for every answer: twice as fast as all()
        if step.phase not in DONE:
            return False
    return True


def undoable(steps: Sequence[Step], needs_undo: Callable[[Step], bool]) -> list[int]:
    """The numbers of the steps whose compensations may be sent now, descending: all that came after them are undone, or
    have nothing to undo.

    `needs_undo`: whether there is a compensation for the effect that a step has or may have.
    """
    for number in range(len(steps), 0, -1):
        step = steps[number - 1]
        if step.phase in TO_UNDO and needs_undo(step):
            return [] if step.phase in UNDO else [number]
    return []


def is_undone(steps: Sequence[Step], needs_undo: Callable[[Step], bool]) -> bool:
    """Whether nothing is left to undo."""
    return not any(step.phase in TO_UNDO and needs_undo(step) for step in steps)


def current(steps: Sequence[Step], otherwise: int) -> int:
    """The number of the step that waits for something; `otherwise` if none does."""
    for number, step in enumerate(steps, 1):
        if step.phase in ACTIVE:
            return number
    return otherwise

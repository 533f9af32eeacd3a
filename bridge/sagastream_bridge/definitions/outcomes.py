"""What an exploration finds, as values."""

from enum import StrEnum
from typing import NamedTuple

from sagastream.core.saga import SagaStatus


class What(StrEnum):
    """What happens to a step, so that the saga goes back or is parked. These names are stable."""

    FAILS = "fails"
    UNKNOWN = "unknown"  # nobody knows whether it was done
    DECLINED = "declined"  # what it waits for
    NOT_SIGNALLED = "not signalled"  # in time
    CANCELLED = "cancelled"  # the saga, while the step is out or waits
    UNDO_FAILS = "undo fails"
    NO_UNDO = "no undo"  # nobody knows one


class Some(NamedTuple):
    """Of these steps, which are alike, at least and at most so many."""

    steps: tuple[int, ...]
    least: int
    most: int


class Undone(NamedTuple):
    """What is undone after something has happened to a step."""

    what: What
    steps: tuple[int, ...]  # it happens to any one of them
    order: tuple[tuple[Some, ...], ...]  # what is undone at once, one after the other; empty: nothing is undone


class Park(NamedTuple):
    """A place where a saga may be parked."""

    what: What
    steps: tuple[int, ...]  # it happens to any one of them
    waiting: tuple[int, ...]  # the steps that wait for that: to be done or, if the saga goes back, to be undone


class Explored(NamedTuple):
    """All that an exploration has found."""

    ends: tuple[SagaStatus, ...]  # how the saga can end
    undone: tuple[Undone, ...]
    parks: tuple[Park, ...]
    never_reached: tuple[int, ...]
    never_undone: tuple[int, ...]  # these steps have a compensation for nothing
    worlds: int  # how many states were looked at

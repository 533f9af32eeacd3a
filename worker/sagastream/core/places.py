"""What is wrong with the places of a saga: does it stand in the store where its hash says, and in no other place? Pure.

A live saga is in `timers`, so that somebody looks at it again; one that has ended is in `ended`, and its hash expires.
Each is in `begun`, and in the indexes that core/indexing.py names. This is the one place that says so: `sagastream
doctor` and a worker that has seen another master both ask here.
"""

from collections.abc import Collection
from typing import Final

from msgspec import Struct

from sagastream.core.indexing import index_names
from sagastream.core.saga import SagaState

#: The remaining life of a hash that does not expire, as PTTL says it.
_FOR_EVER: Final = -1


class Places(Struct, frozen=True, kw_only=True):
    """Where a saga stands."""

    timer: float | None  # its score in `timers`; None: it is not there
    ended: float | None  # … in `ended`
    begun: float | None  # … in `begun`
    told: tuple[str, ...]  # the names of the indexes that `indexed` tells of it
    ttl_ms: int  # in how many ms its hash expires; -1: it does not


def out_of_time(state: SagaState, places: Places, now_ms: int, lease_ms: int) -> str | None:
    """What is wrong with its timer, or with how long it is kept; None: nothing. `lease_ms`: for how long a worker
    leases a saga that is due."""
    timer = places.timer
    if state.ended:
        if timer is not None:
            return "has ended, and is still waited for"
        if places.ended is None:
            return "has ended, and is not in the list of ended sagas"
        return "has ended, and would be kept forever" if places.ttl_ms == _FOR_EVER else None
    if places.ttl_ms != _FOR_EVER:
        return "is live, and its hash would expire"
    if timer is None:
        return "is live, and nobody would look at it again: it is in no timer"
    if state.due_ms is None:
        return None if timer == float("inf") else "is parked, and has a timer"
    leased = state.due_ms <= now_ms and timer <= now_ms + lease_ms
    return None if timer == state.due_ms or leased else "is live, and its timer is not the time that its hash says"


def out_of_index(state: SagaState, places: Places) -> str | None:
    """What is wrong with the indexes in which the saga is; None: nothing, or it `is_unlisted`."""
    right = set(places.told) == set(index_names(state)) and places.begun == state.begun_ms
    return None if right or is_unlisted(places) else "is in other indexes than its hash says"


def is_unlisted(places: Places) -> bool:
    """Whether the saga is in no index, like one that an earlier release has begun."""
    return places.begun is None


def is_stray(name: str | None, told: Collection[str], *, is_there: bool, has_ended: bool) -> bool:
    """Whether a member of an index should not be in it. One that has expired does not count: a worker takes it out
    soon.

    Args:
        name: of the index; None: it is `begun`.
        told: the names of the indexes that `indexed` tells of it.
        is_there: whether there is such a saga.
        has_ended: whether it is in `ended`.
    """
    is_right = is_there if name is None else name in told
    return not is_right and (is_there or not has_ended)

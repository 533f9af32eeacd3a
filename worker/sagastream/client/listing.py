"""Lists of sagas, read page by page, in the order of their begins, newest first."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Literal, TypedDict, get_args

import redis

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeAway
from sagastream.core.filtering import Filter
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import UnreadableSaga
from sagastream.store import reach
from sagastream.store.finding import MOST, find
from sagastream.store.keys import StoreKeys

#: To which sagas a list may be limited. A parked saga is also COMPENSATING or PENDING.
ListStatus = Literal["PENDING", "COMPENSATING", "COMPLETED", "ABORTED", "PARKED"]

_PAGE: Final = 200


class Search(TypedDict, total=False):
    """Which sagas are meant: those that match all that is given. `SagaClient.find` says what each member means."""

    status: ListStatus | SagaStatus | None
    definition: str | None
    where: Mapping[str, str | int] | None
    at: str | None
    parked: str | None
    older: timedelta | None
    newer: timedelta | None
    error: str | None


def check_status(status: ListStatus | SagaStatus | None) -> None:
    """Raises ValueError for a status that no saga has."""
    if status is not None and status not in get_args(ListStatus):
        raise ValueError(f"status must be one of {', '.join(get_args(ListStatus))}, not {status!r}")


class Listing:
    """A list that is being read."""

    def __init__(self, keys: StoreKeys, status: ListStatus | SagaStatus | None, limit: int | None) -> None:
        """Raises ValueError for a status that no saga has."""
        check_status(status)
        self._keys = keys
        self._wanted = Filter(status=None if status is None else str(status))
        self._left = limit
        self._cursor: str | None = None
        self._is_end = False
        self._left_out: dict[int, redis.RedisError] = {}  # partitions that some page could not ask

    def next_page(self) -> Exchange[list[SagaState | UnreadableSaga]]:
        """The next sagas of the list, and errors in place of those that cannot be read; empty at the end of the
        list. Raises NodeAway there if partitions were left out."""
        while not self._is_end and self._left != 0:
            limit = _PAGE if self._left is None else min(_PAGE, self._left, MOST)
            reached = yield from reach.look(self._keys)
            self._left_out |= reached.away
            page = yield from find(reached.keys, self._wanted, limit, self._cursor, counts=False)
            self._cursor, self._is_end = page.cursor, page.cursor is None
            found: list[SagaState | UnreadableSaga] = [*page.sagas, *page.unreadable]
            if self._left is not None:
                found = found[: self._left]
                self._left -= len(found)
            if found:
                return found
        if self._left_out and self._left != 0:
            raise NodeAway("; ".join(reach.left_out(self._keys, self._left_out)), was_sent=False)
        return []

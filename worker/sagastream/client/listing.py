"""Lists of sagas, read page by page: parked ones first; then live ones, by the time at which they are due; then ended
ones, the newest first."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Final, Literal, get_args

from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import or_raise
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import UnreadableSaga
from sagastream.store import keys
from sagastream.store.sagas import load

#: To which sagas a list may be limited. A parked saga is also COMPENSATING or PENDING.
ListStatus = Literal["PENDING", "COMPENSATING", "COMPLETED", "ABORTED", "PARKED"]

_PAGE: Final = 200
#: How many ids of parked sagas one round trip asks for.
_IDS_AT_ONCE: Final = 1000


class Listing:
    """A list that is being read."""

    def __init__(self, status: ListStatus | SagaStatus | None, limit: int | None) -> None:
        """Raises ValueError for a status that no saga has."""
        if status is not None and status not in get_args(ListStatus):
            raise ValueError(f"status must be one of {', '.join(get_args(ListStatus))}, not {status!r}")
        self._status = status
        self._left = math.inf if limit is None else limit
        parked = _Parked()
        live = _ByScore("ZRANGEBYSCORE", keys.TIMERS, "-inf", "(+inf")
        ended = _ByScore("ZREVRANGEBYSCORE", keys.ENDED, "+inf", "-inf")
        places: dict[str | None, list[_Parked | _ByScore]] = {
            None: [parked, live, ended],
            "PARKED": [parked],
            "PENDING": [parked, live],
            "COMPENSATING": [parked, live],
        }
        self._places = places.get(status, [ended])

    def next_page(self) -> Exchange[list[SagaState | UnreadableSaga]]:
        """The next sagas of the list, and errors in place of those that cannot be read; empty at the end of the
        list."""
        while self._places and self._left > 0:
            saga_ids = yield from self._places[0].next_page()
            if not saga_ids:
                del self._places[0]
                continue
            states, _ = yield from load(saga_ids)
            page = [found for found in states.values() if found is not None and self._has_status(found)]
            if page:
                page = page[: int(min(self._left, len(page)))]
                self._left -= len(page)
                return page
        return []

    def _has_status(self, found: SagaState | UnreadableSaga) -> bool:
        if self._status is None or isinstance(found, UnreadableSaga):
            return True
        return found.parked is not None if self._status == "PARKED" else found.status == self._status


class _Parked:
    """The ids of the parked sagas. All ids are read before the first page: a caller that retries each saga of the list
    moves it out of the index meanwhile, and must not miss any."""

    def __init__(self) -> None:
        self._ids: Iterator[str] | None = None

    def next_page(self) -> Exchange[list[str]]:
        if self._ids is None:
            found: list[str] = []
            page = None
            while page is None or len(page) == _IDS_AT_ONCE:
                words = ("ZRANGEBYSCORE", keys.TIMERS, "+inf", "+inf", "LIMIT", len(found), _IDS_AT_ONCE)
                (answer,) = yield [words]
                page = [_text(saga_id) for saga_id in or_raise(answer)]
                found += page
            self._ids = iter(found)
        return list(islice(self._ids, _PAGE))


class _ByScore:
    """The ids of an index in the order of their scores. Each page begins at the score at which the last one ended, not
    at a number: members that come or go before it shift nothing."""

    def __init__(self, command: str, key: str, first: str, last: str) -> None:
        self._command = command
        self._key = key
        self._from: bytes | str = first
        self._last = last
        self._skip = 0  # how many members with the score `_from` were read already

    def next_page(self) -> Exchange[list[str]]:
        words = (self._command, self._key, self._from, self._last, "WITHSCORES", "LIMIT", self._skip, _PAGE)
        (answer,) = yield [words]
        found = or_raise(answer)
        scores = found[1::2]
        if scores:
            at_last = scores.count(scores[-1])
            self._skip = self._skip + at_last if scores[-1] == self._from else at_last
            self._from = scores[-1]
        return [_text(saga_id) for saga_id in found[::2]]


def _text(saga_id: bytes) -> str:
    return saga_id.decode(errors="backslashreplace")

"""Lists of sagas, read page by page: parked ones first, then live ones, then ended ones. Of each kind, those come first
that changed last.

No index has the time of the last change of a live saga, so it is read from the hashes of all of them. If there are very
many, they come in the order of their index: parked ones by id, others by the time at which they are due.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Final, Literal, Protocol, get_args

from sagastream.broker.exchange import Exchange, all_of
from sagastream.broker.wire import or_raise
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.steps import GRAPH
from sagastream.errors import UnreadableSaga
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.sagas import load

#: To which sagas a list may be limited. A parked saga is also COMPENSATING or PENDING.
ListStatus = Literal["PENDING", "COMPENSATING", "COMPLETED", "ABORTED", "PARKED"]

_PAGE: Final = 200
#: How many ids of sagas, or times of their last change, one round trip asks for.
_IDS_AT_ONCE: Final = 1000
#: Of at most so many parked sagas, or other live ones, those come first that changed last. To look takes 0.3 s.
ORDERED: Final = 20_000


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
        self._status = status
        self._left = math.inf if limit is None else limit
        partitions = keys.partitions
        parked = _NewestFirst(keys, "+inf", "+inf", otherwise=_Parked(partitions))
        by_time = _Merged([_ByScore("ZRANGEBYSCORE", one.timers, "-inf", "(+inf") for one in partitions], sign=1)
        live = _NewestFirst(keys, "-inf", "(+inf", otherwise=by_time)
        ended = _Merged([_ByScore("ZREVRANGEBYSCORE", one.ended, "+inf", "-inf") for one in partitions], sign=-1)
        places: dict[str | None, list[_Ids]] = {
            None: [parked, live, ended],
            "PARKED": [parked, _Graphs(keys, live)],
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
            states, _ = yield from load(self._keys, saga_ids)
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


class _Ids(Protocol):
    """Gives ids of sagas, page by page; an empty page is the end."""

    def next_page(self) -> Exchange[list[str]]: ...


class _NewestFirst:
    """The ids of live sagas, those first that changed last. All ids are read before the first page: a caller that
    retries each saga of the list moves it out of the index meanwhile, and must not miss any."""

    def __init__(self, keys: StoreKeys, least: str, most: str, *, otherwise: _Ids) -> None:
        """`least`, `most`: between these scores in timers. `otherwise`: gives the ids if there are very many."""
        self._keys = keys
        self._between = (least, most)
        self._otherwise = otherwise
        self._ids: Iterator[str] | None = None
        self._are_many = False

    def next_page(self) -> Exchange[list[str]]:
        if self._ids is None and not self._are_many:
            timers = [partition.timers for partition in self._keys.partitions]
            counts = yield [("ZCOUNT", name, *self._between) for name in timers]
            self._are_many = sum(map(or_raise, counts)) > ORDERED
            if not self._are_many:
                found = yield from all_of([_between(name, *self._between) for name in timers])
                self._ids = iter((yield from self._in_order(list(chain.from_iterable(found)))))
        if self._ids is None:
            return (yield from self._otherwise.next_page())
        return list(islice(self._ids, _PAGE))

    def _in_order(self, saga_ids: list[str]) -> Exchange[list[str]]:
        changed: dict[str, bytes] = {}
        time = b"~"
        for at in range(0, len(saga_ids), _IDS_AT_ONCE):
            some = saga_ids[at : at + _IDS_AT_ONCE]
            answers = yield [("HGET", self._keys.saga(saga_id), "updated_at") for saga_id in some]
            for saga_id, answer in zip(some, answers, strict=True):
                # All times have one form, so they compare as texts. What cannot be read stays where it is in the index.
                time = answer if isinstance(answer, bytes) else time
                changed[saga_id] = time
        return sorted(changed, key=changed.__getitem__, reverse=True)


class _Parked:
    """The ids of the parked sagas, by id; all of them are read before the first page."""

    def __init__(self, partitions: Sequence[Partition]) -> None:
        self._partitions = partitions
        self._ids: Iterator[str] | None = None

    def next_page(self) -> Exchange[list[str]]:
        if self._ids is None:
            found = yield from all_of([_between(partition.timers, "+inf", "+inf") for partition in self._partitions])
            self._ids = chain.from_iterable(found)
        return list(islice(self._ids, _PAGE))


class _Graphs:
    """Those ids of others that are of graphs: such a saga may be parked at one step while others go on. Then it is not
    in the index of the parked ones."""

    def __init__(self, keys: StoreKeys, others: _Ids) -> None:
        self._keys = keys
        self._others = others

    def next_page(self) -> Exchange[list[str]]:
        while saga_ids := (yield from self._others.next_page()):
            answers = yield [("HGET", self._keys.saga(saga_id), "format") for saga_id in saga_ids]
            found = [saga_id for saga_id, answer in zip(saga_ids, answers, strict=True) if answer == b"%d" % GRAPH]
            if found:
                return found
        return []


def _between(timers: str, least: str, most: str) -> Exchange[list[str]]:
    """The ids of all sagas between these scores."""
    found: list[str] = []
    page = None
    while page is None or len(page) == _IDS_AT_ONCE:
        words = ("ZRANGEBYSCORE", timers, least, most, "LIMIT", len(found), _IDS_AT_ONCE)
        (answer,) = yield [words]
        page = [_text(saga_id) for saga_id in or_raise(answer)]
        found += page
    return found


class _Merged:
    """The ids of the indexes of all partitions, in the order of their scores."""

    def __init__(self, indexes: "Sequence[_ByScore]", *, sign: int) -> None:
        """`sign`: 1 if the scores rise, -1 if they fall."""
        self._indexes = indexes
        self._sign = sign
        self._pages: list[deque[tuple[float, str]]] = [deque() for _ in indexes]  # what was read and is not yet listed
        self._going_on = list(range(len(indexes)))  # those that may have more

    def next_page(self) -> Exchange[list[str]]:
        listed: list[str] = []
        while len(listed) < _PAGE:
            empty = [number for number in self._going_on if not self._pages[number]]
            if empty:
                found = yield from all_of([self._indexes[number].next_page() for number in empty])
                for number, page in zip(empty, found, strict=True):
                    self._pages[number].extend(page)
                    if not page:
                        self._going_on.remove(number)
            if not self._going_on:
                break
            first = min(self._going_on, key=lambda number: self._sign * self._pages[number][0][0])
            listed.append(self._pages[first].popleft()[1])
            if len(listed) < _PAGE and len(self._indexes) == 1 and not self._pages[first]:
                break  # as it was read: a page is a page
        return listed


class _ByScore:
    """The ids of an index in the order of their scores. Each page begins at the score at which the last one ended, not
    at a number: members that come or go before it shift nothing."""

    def __init__(self, command: str, key: str, first: str, last: str) -> None:
        self._command = command
        self._key = key
        self._from: bytes | str = first
        self._last = last
        self._skip = 0  # how many members with the score `_from` were read already

    def next_page(self) -> Exchange[list[tuple[float, str]]]:
        words = (self._command, self._key, self._from, self._last, "WITHSCORES", "LIMIT", self._skip, _PAGE)
        (answer,) = yield [words]
        found = or_raise(answer)
        scores = found[1::2]
        if scores:
            at_last = scores.count(scores[-1])
            self._skip = self._skip + at_last if scores[-1] == self._from else at_last
            self._from = scores[-1]
        return [(float(score), _text(saga_id)) for saga_id, score in zip(found[::2], scores, strict=True)]


def _text(saga_id: bytes) -> str:
    return saga_id.decode(errors="backslashreplace")

"""Finds sagas, a page at a time, in the order of their begins, newest first. A page takes bounded work, whatever the
store holds.

If an index says all that is asked for, its members are the answer. Otherwise, the members of the shortest index that
applies are looked at one by one, or else all sagas in the order of their begin: in portions, and at most _LOOKED_AT of
them for one page. So a page may have few sagas, or none, and still have others after it.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker.exchange import Exchange, all_of
from sagastream.broker.wire import Words, milliseconds, or_raise
from sagastream.core.filtering import Filter, matches, parse_filter
from sagastream.core.messages import is_id
from sagastream.core.saga import SagaState
from sagastream.core.sealed_messages import open_state
from sagastream.core.sealing import Codec
from sagastream.errors import UnreadableSaga
from sagastream.store import reach
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.sagas import load

#: How many sagas a page has at most, and by default.
MOST: Final = 1000
USUAL: Final = 50
#: How many sagas are looked at for one page, and about how many bytes of them.
_LOOKED_AT: Final = 2_000
_LOOKED_AT_BYTES: Final = 32 << 20
#: How many hashes one round trip reads: at first, and while they are small.
_FIRST: Final = 20
_PORTION: Final = 200
_PORTION_BYTES: Final = 1 << 20
#: How many ids one round trip reads.
_IDS: Final = 500
#: If sagas are looked at one by one, those that match are counted up to this number.
COUNTED: Final = 10_000
#: If only live sagas can match, and no more than this many live, they are read in place of all.
_FEW_LIVE: Final = 2_000
_CURSOR: Final = re.compile(
    r"1\.([0-9a-f]{8})\.([0-9]{1,15})\.([0-9]{1,9})\.([0-9]{1,9})([em])\.([A-Za-z0-9._:-]{1,128})"
)


class Page(Struct, frozen=True, kw_only=True):
    """One page of what was found."""

    sagas: list[SagaState]  # in the order of their begins, newest first
    cursor: str | None  # gives the next page; None: there is none. A text without blanks
    total: int  # how many such sagas there are, on all pages
    total_is_exact: bool  # False: there are at least so many
    unreadable: list[UnreadableSaga] = []  # those on the way that cannot be read
    looked_at: int = 0  # how many sagas were looked at for it
    #: The numbers of the partitions that could not be asked, since nodes of a cluster are away. What they have is left
    #: out, and not counted.
    partitions_away: tuple[int, ...] = ()


class _Position(NamedTuple):
    """A saga in the order of a search; and what was known when it was reached."""

    begun_ms: int
    saga_id: str
    seen: int = 0  # how many were found up to it
    total: int = 0
    is_exact: bool = False

    def cursor(self, wanted: Filter) -> str:
        return f"1.{wanted.mark}.{self.begun_ms}.{self.seen}.{self.total}{'e' if self.is_exact else 'm'}.{self.saga_id}"

    @property
    def place(self) -> tuple[int, str]:
        return self.begun_ms, self.saga_id


def opened_page(codec: Codec | None, page: Page) -> Page:
    """The page with all values of its sagas opened that can be."""
    if codec is None:
        return page
    return replace(page, sagas=[open_state(codec, state)[0] for state in page.sagas])


def to_filter(
    *,
    status: str | None = None,
    definition: str | None = None,
    where: Mapping[str, str | int] | None = None,
    at: str | None = None,
    parked: str | None = None,
    older: timedelta | None = None,
    newer: timedelta | None = None,
    error: str | None = None,
) -> Filter:
    """The filter of these arguments of `SagaClient.find`. Raises MalformedMessage, which says what is wrong, and
    TypeError."""
    body: dict[str, Any] = {"status": status, "definition": definition, "at": at, "parked": parked, "error": error}
    for name, age in (("older", older), ("newer", newer)):
        if age is not None and not isinstance(age, timedelta):
            raise TypeError(f"{name} must be a timedelta, not {age!r:.80}")
        body[f"{name}_ms"] = None if age is None else age // timedelta(milliseconds=1)
    body["where"] = None if where is None else dict(where)
    return parse_filter({name: value for name, value in body.items() if value is not None}, "the search")


def check_page(limit: int, cursor: str | None, wanted: Filter) -> _Position | None:
    """Where a page of this search begins. Raises ValueError."""
    if type(limit) is not int or not 1 <= limit <= MOST:
        raise ValueError(f"limit must be a whole number from 1 to {MOST}, not {limit!r:.40}")
    if cursor is None:
        return None
    if (found := _CURSOR.fullmatch(cursor)) is None:
        raise ValueError(f"this is no cursor that a page has had: {cursor!a:.80}")
    mark, begun_ms, seen, total, exact, saga_id = found.groups()
    if mark != wanted.mark:
        raise ValueError("this cursor is of another search: give the same search with it, or leave the cursor out")
    return _Position(int(begun_ms), saga_id, int(seen), int(total), exact == "e")


def find_there(
    keys: StoreKeys, wanted: Filter, limit: int = USUAL, cursor: str | None = None, *, at_ms: int | None = None
) -> Exchange[Page]:
    """See `find`: in all partitions that can be reached."""
    reached = yield from reach.look(keys)
    return of_reached((yield from find(reached.keys, wanted, limit, cursor, at_ms=at_ms)), reached)


def of_reached(page: Page, reached: reach.Reach) -> Page:
    """The page of what could be reached of a store: it says what is left out."""
    if not reached.away:
        return page
    return replace(page, partitions_away=tuple(sorted(reached.away)), total_is_exact=False)


def find(
    keys: StoreKeys,
    wanted: Filter,
    limit: int = USUAL,
    cursor: str | None = None,
    *,
    counts: bool = True,
    at_ms: int | None = None,
    looked_at: int | None = None,
) -> Exchange[Page]:
    """One page of the sagas that match.

    Args:
        counts: the first page goes on when it is full, to count.
        at_ms: from when ages count; None: from now.
        looked_at: how many sagas are looked at; None: as many as for every page.

    Raises ValueError for a limit that is not allowed, or a cursor that no page of this search has had."""
    after = check_page(limit, cursor, wanted)
    if at_ms is None:
        (time,) = yield [("TIME",)]
        at_ms = milliseconds(or_raise(time))
    search = _Search(keys, wanted, at_ms, after, _LOOKED_AT if looked_at is None else looked_at)
    yield from search.choose()
    return (yield from search.page(limit, counts=counts))


class _Search:
    def __init__(self, keys: StoreKeys, wanted: Filter, now_ms: int, after: _Position | None, most: int) -> None:
        self._keys = keys
        self._most_looked_at = most
        self._wanted = wanted
        self._now_ms = now_ms
        self._after = after
        #: The scores between which the members of an index can match.
        self._least = "-inf" if wanted.newer_ms is None else str(now_ms - wanted.newer_ms)
        self._most = "+inf" if wanted.older_ms is None else str(now_ms - wanted.older_ms)
        self._indexed: int | None = None  # how many there are, if an index says it
        self._sources: list[_Source] = []
        self._unreadable: list[UnreadableSaga] = []
        self._looked = self._bytes = 0

    def choose(self) -> Exchange[None]:
        """Choose where to look: in each partition the shortest index."""
        partitions, names = self._keys.partitions, self._wanted.index_names
        chosen: list[str] = []
        for one in partitions:
            those = [one.index(name) for name in names] or [one.begun]
            lengths = yield [("ZCARD", key) for key in those]
            chosen.append(min(zip(map(or_raise, lengths), those, strict=True))[1])
        if self._wanted.is_by_index:
            counts = yield [("ZCOUNT", key, self._least, self._most) for key in chosen]
            self._indexed = sum(map(or_raise, counts))
        elif not names and self._wanted.is_of_live:
            live = sum(map(or_raise, (yield [("ZCARD", one.timers) for one in partitions])))
            if live <= _FEW_LIVE:
                self._sources = [_Live(one, self._least, self._most, self._after) for one in partitions]
                return
        self._sources = [_ByBegin(key, self._least, self._most, self._after) for key in chosen]

    def page(self, limit: int, *, counts: bool) -> Exchange[Page]:
        found: list[SagaState] = []
        counted, last, at, is_end = 0, self._after, self._after, False
        portion = _FIRST
        counts_on = counts and self._indexed is None and self._after is None
        most = self._most_looked_at
        while self._looked < most and self._bytes < _LOOKED_AT_BYTES and (len(found) < limit or counts_on):
            room = portion if counts_on else min(portion, max(limit - len(found), 1))
            ids = yield from self._next_ids(min(room, most - self._looked))
            if not ids:
                is_end = True
                break
            states, _ = yield from load(self._keys, [saga_id for _, saga_id in ids])
            size = 0
            for begun_ms, saga_id in ids:
                state = states[saga_id]
                is_full = len(found) == limit
                if isinstance(state, SagaState):
                    size += state.weight
                    if matches(state, self._wanted, self._now_ms):
                        counted += 1
                        if not is_full:
                            found.append(state)
                            last = _Position(begun_ms, saga_id)
                elif isinstance(state, UnreadableSaga) and not is_full:
                    self._unreadable.append(state)
                at = _Position(begun_ms, saga_id)
            self._bytes += size
            portion = min(2 * portion, _PORTION) if size < _PORTION_BYTES else _FIRST
        return self._answer(found, counted, last if len(found) == limit else at, is_end=is_end)

    def _answer(self, found: list[SagaState], counted: int, at: _Position | None, *, is_end: bool) -> Page:
        seen = len(found) + (0 if self._after is None else self._after.seen)
        if self._indexed is not None:
            total, is_exact = self._indexed, True
        elif self._after is None:
            total, is_exact = min(counted, COUNTED), is_end
        else:
            known = min(self._after.seen + counted, COUNTED)
            total, is_exact = max(known, self._after.total), self._after.is_exact or is_end
        has_more = at is not None and not (is_end and counted == len(found))
        place = at._replace(seen=seen, total=total, is_exact=is_exact) if at is not None and has_more else None
        return Page(
            sagas=found,
            cursor=None if place is None else place.cursor(self._wanted),
            total=total,
            total_is_exact=is_exact,
            unreadable=self._unreadable,
            looked_at=self._looked,
        )

    def _next_ids(self, count: int) -> Exchange[list[tuple[int, str]]]:
        """The next sagas of all partitions, newest first."""
        ids: list[tuple[int, str]] = []
        while len(ids) < count:
            if empty := [source for source in self._sources if source.is_empty]:
                yield from all_of([source.read() for source in empty])
            self._sources = [source for source in self._sources if not source.is_empty]
            if not self._sources:
                break
            ids.append(max(self._sources, key=lambda source: source.ids[0]).ids.popleft())
        self._looked += len(ids)
        return ids


class _Source:
    """Ids of sagas of one partition, with the times of their begins, in order. `ids`: those that were read and not yet
    taken."""

    def __init__(self, least: str, most: str, after: _Position | None) -> None:
        self.ids: deque[tuple[int, str]] = deque()
        self._least = least
        self._most = most
        self._after = after

    @property
    def is_empty(self) -> bool:
        return not self.ids

    def read(self) -> Exchange[None]:
        """Read more of them. If there are none after that, it is the end."""
        raise NotImplementedError

    def _take(self, members: Iterator[tuple[float, str]]) -> None:
        self.ids.extend(
            (int(score), saga_id)
            for score, saga_id in members
            if is_id(saga_id) and (self._after is None or (int(score), saga_id) < self._after.place)
        )


class _ByBegin(_Source):
    """Those of an index. Each page begins at the score at which the last one ended, not at a number: members that come
    or go before it shift nothing."""

    def __init__(self, key: str, least: str, most: str, after: _Position | None) -> None:
        super().__init__(least, most, after)
        self._key = key
        self._from: bytes | str = most if after is None else str(min(after.begun_ms, float(most)))
        self._skip = 0  # how many members with the score `_from` were read already
        self._is_end = False

    def read(self) -> Exchange[None]:
        while not self.ids and not self._is_end:
            words: Words = ("ZREVRANGEBYSCORE", self._key, self._from, self._least, "WITHSCORES")
            (answer,) = yield [(*words, "LIMIT", self._skip, _IDS)]
            found = or_raise(answer)
            scores = found[1::2]
            self._is_end = len(scores) < _IDS
            if scores:
                at_last = scores.count(scores[-1])
                self._skip = self._skip + at_last if scores[-1] == self._from else at_last
                self._from = scores[-1]
            self._take((float(score), _text(member)) for member, score in zip(found[::2], scores, strict=True))


class _Live(_Source):
    """All live ones of a partition, if they are few."""

    def __init__(self, partition: Partition, least: str, most: str, after: _Position | None) -> None:
        super().__init__(least, most, after)
        self._partition = partition
        self._is_read = False

    def read(self) -> Exchange[None]:
        if self._is_read:
            return
        self._is_read = True
        members: list[bytes] = []
        for first in range(0, _FEW_LIVE, _IDS):
            (answer,) = yield [("ZRANGE", self._partition.timers, first, first + _IDS - 1)]
            members += or_raise(answer)
        found: list[tuple[float, str]] = []
        for at in range(0, len(members), _IDS):
            some = members[at : at + _IDS]
            (scores,) = yield [("ZMSCORE", self._partition.begun, *some)]
            # One that an earlier release has begun may be in no index yet.
            found += ((float(score or 0), _text(one)) for one, score in zip(some, or_raise(scores), strict=True))
        between = (one for one in sorted(set(found), reverse=True) if float(self._least) <= one[0] <= float(self._most))
        self._take(between)


def _text(saga_id: bytes) -> str:
    return saga_id.decode(errors="backslashreplace")

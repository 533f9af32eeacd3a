"""What the live sagas of a store are doing, by a look at a bounded number of them: how many go forward, go back or are
parked, where they are parked, and since when the oldest one lives."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from msgspec import Struct

from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import unless_refused
from sagastream.core import indexing
from sagastream.core.phases import UNDO, Phase
from sagastream.core.saga import SagaStatus
from sagastream.core.steps import MAX_STEPS, PLAIN
from sagastream.store.columns import SAGA, STEP_OF_GRAPH, step_fields
from sagastream.store.keys import Partition, StoreKeys

_T = TypeVar("_T")
_LIVE: Final = (SagaStatus.PENDING, SagaStatus.COMPENSATING)
#: The status, for people, of a saga that waits for a person. It is also PENDING or COMPENSATING, and counts as neither.
PARKED: Final = "PARKED"
#: What is read of each saga. Params and results, which may be large, are not.
_READ: Final = ("status", "current_step", "begun_ms", "parked", "format")
_FIELDS: Final = tuple(SAGA[attribute].field for attribute in _READ)
_STOPPED: Final = frozenset({Phase.PARKED, Phase.UNDO_PARKED})


class ParkedAt(NamedTuple):
    """The command at which a saga is parked."""

    service: str  # empty: a step that sends nothing
    command: str


class LiveSagas(Struct, frozen=True, kw_only=True):
    """The live sagas of a store.

    If there are more than were looked at, those of each status are counted by the indexes of the store, and the places
    at which they are parked are shares of those that were looked at, scaled up. So is what has no index, in a store
    whose sagas were begun by an earlier release.
    """

    total: int  # exact
    by_status: Mapping[str, int]  # PENDING, COMPENSATING, PARKED: each saga counts once
    parked_at: Mapping[ParkedAt, int]  # of a saga that is parked at several steps: the first of them
    oldest_ms: int | None  # when the oldest one began, by the broker's clock; None: there is none
    is_exact: bool  # whether all of them were looked at


class _Seen(NamedTuple):
    """One live saga, as far as it was read."""

    key: str
    status: str  # PENDING or COMPENSATING
    current_step: int
    begun_ms: int
    is_parked: bool  # as the saga itself says: at its current step
    is_plain: bool


def look(keys: StoreKeys, at_most: int) -> Exchange[LiveSagas]:
    """Look at up to `at_most` sagas that are parked and at as many others, in four round trips. Of the others, those
    are looked at that are due first."""
    each = max(1, at_most // len(keys.partitions))
    asked: list[tuple[Any, ...]] = []
    for one in keys.partitions:
        asked += [
            ("ZCARD", one.timers),
            ("ZCOUNT", one.timers, "+inf", "+inf"),
            ("ZRANGEBYSCORE", one.timers, "+inf", "+inf", "LIMIT", 0, each),
            ("ZRANGEBYSCORE", one.timers, "-inf", "(+inf", "LIMIT", 0, each),
            ("ZCARD", one.index(indexing.PARKED)),
            ("ZCARD", one.index(indexing.of_status(SagaStatus.COMPENSATING))),
        ]
    answers = yield asked
    total = sum(unless_refused(answer, 0) for answer in answers[0::6])
    waiting = sum(unless_refused(answer, 0) for answer in answers[1::6])
    hashes = [_hashes(keys.partitions, answers[at::6]) for at in (2, 3)]
    for_a_person = yield from _seen(hashes[0])
    others = yield from _seen(hashes[1])
    parked = yield from _where_parked([*for_a_person, *others])
    by_status: Counter[str] = Counter()
    places: Counter[ParkedAt] = Counter()
    for group, number in ((for_a_person, waiting), (others, total - waiting)):
        statuses = Counter(PARKED if one.key in parked else one.status for one in group)
        by_status += _scaled(statuses, len(group), number)
        places += _scaled(Counter(parked[one.key] for one in group if one.key in parked), len(group), number)
    seen = [*for_a_person, *others]
    if sum(map(len, hashes)) < total:
        indexed = _Indexed(*(sum(unless_refused(answer, 0) for answer in answers[at::6]) for at in (4, 5)))
        by_status, places = _by_indexes(indexed, total, by_status, places, [one for one in seen if one.key in parked])
    return LiveSagas(
        total=total,
        by_status={status: by_status[status] for status in (*map(str, _LIVE), PARKED)},
        parked_at=dict(places),
        oldest_ms=min((one.begun_ms for one in seen), default=None),
        is_exact=len(seen) >= total,
    )


class _Indexed(NamedTuple):
    """How many sagas are in the indexes of the store."""

    parked: int
    back: int  # being undone, parked or not


def _by_indexes(
    indexed: _Indexed, total: int, shares: Counter[str], places: Counter[ParkedAt], parked: Sequence[_Seen]
) -> tuple[Counter[str], Counter[ParkedAt]]:
    """The counts as the indexes have them. An empty index and an index that nobody keeps look the same; so the shares
    stay where an index has nothing."""
    stopped = indexed.parked or shares[PARKED]
    back = shares[SagaStatus.COMPENSATING]
    if indexed.back:
        # It counts those that are parked, too. Their number is a share, if not all that are parked were looked at.
        statuses = Counter(one.status for one in parked)
        back = max(0, indexed.back - _scaled(statuses, len(parked), stopped)[SagaStatus.COMPENSATING])
    forward = max(0, total - stopped - back)
    counts = Counter({str(SagaStatus.PENDING): forward, str(SagaStatus.COMPENSATING): back, PARKED: stopped})
    return counts, _scaled(places, places.total(), stopped)


def _hashes(partitions: Sequence[Partition], pages: Sequence[Any]) -> list[str]:
    return [
        one.saga(saga_id.decode(errors="backslashreplace"))
        for one, page in zip(partitions, pages, strict=True)
        for saga_id in unless_refused(page, ())
    ]


def _seen(hashes: Sequence[str]) -> Exchange[list[_Seen]]:
    """These sagas. One that is gone, has ended meanwhile or cannot be read is left out."""
    answers = (yield [("HMGET", name, *_FIELDS) for name in hashes]) if hashes else []
    found = []
    for name, answer in zip(hashes, answers, strict=True):
        words: Sequence[bytes | None] = unless_refused(answer, (None,) * len(_FIELDS))
        try:
            values = [SAGA[what].read(word) if word else None for what, word in zip(_READ, words, strict=True)]
        except (ValueError, KeyError, OverflowError):
            continue  # it is damaged; the doctor tells of it
        status, step, begun_ms, parked, format_ = values
        if status in _LIVE and step is not None and begun_ms is not None and 1 <= step <= MAX_STEPS:
            is_plain = format_ in (None, PLAIN)
            found.append(_Seen(name, str(status), step, begun_ms, parked is not None, is_plain))
    return found


def _where_parked(seen: Sequence[_Seen]) -> Exchange[dict[str, ParkedAt]]:
    """Where each of them is parked that is parked, by the key of its hash."""
    step_of = {one.key: (one.current_step, one.status == SagaStatus.COMPENSATING) for one in seen if one.is_parked}
    # A graph may be parked at one step while others go on: then its current step is another.
    graphs = [one.key for one in seen if not one.is_plain]
    phase = STEP_OF_GRAPH["phase"].field
    names = [f"step{number}.{phase}" for number in range(1, MAX_STEPS + 1)]
    answers = (yield [("HMGET", key, *names) for key in graphs]) if graphs else []
    for key, answer in zip(graphs, answers, strict=True):
        step_of.pop(key, None)
        for number, word in enumerate(unless_refused(answer, ()), 1):
            if word is not None and word.decode(errors="replace") in _STOPPED:
                step_of[key] = (number, word.decode() in UNDO)
                break
    asked = [("HMGET", key, *_of_step(number)) for key, (number, _) in step_of.items()]
    answers = (yield asked) if asked else []
    found = {}
    for (key, (_, is_undo)), answer in zip(step_of.items(), answers, strict=True):
        words = [(word or b"").decode(errors="replace") for word in unless_refused(answer, (b"",) * 4)]
        service, transaction, sent, declared = words
        found[key] = ParkedAt(service, (sent or declared or transaction) if is_undo else transaction)
    return found


def _of_step(number: int) -> tuple[str, str, str, str]:
    """The fields that say which commands a step sends, to which service."""
    named = step_fields(number)
    transaction, service, _ = named.needed
    undo = next(one.field for one in named.stored if one is not None and one.field.endswith(".undone_by"))
    return service, transaction, undo, named.definition["compensation"].field


def _scaled(counts: "Counter[_T]", seen: int, total: int) -> "Counter[_T]":
    """The counts among `seen`, as they would be among `total` of which these are a part."""
    return Counter({what: round(number * total / seen) for what, number in counts.items()} if seen else {})

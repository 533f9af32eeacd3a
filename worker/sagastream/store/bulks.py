"""Bulks: what each is, how far it has come, and what has come of its requests.

Each has a hash and a stream of results. The zset `saga:bulks` has all of them; `saga:bulks:open` those about which
workers have to do something.

    redis-cli ZREVRANGE saga:bulks 0 -1
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import redis
from msgspec import Struct
from msgspec.structs import replace

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_denied, is_wrong_type
from sagastream.broker.scripting import Script, even_if_full
from sagastream.broker.wire import Words, milliseconds, or_raise, unless_refused
from sagastream.core.bulks import USUAL_RATE, Ask, Bulk, BulkResult, BulkState, checked
from sagastream.core.durations import exact
from sagastream.core.filtering import Filter, parse_filter
from sagastream.core.indexing import PARKED
from sagastream.core.messages import Code, Verb
from sagastream.errors import MalformedMessage, RequestRefused
from sagastream.store import operations
from sagastream.store.finding import find_there
from sagastream.store.keys import BULK_KEPT_MS, StoreKeys
from sagastream.store.operations import Operation

#: At most so many bulks are kept.
MOST: Final = 1_000
#: How many entries of results are kept of each. One entry has all that was done of a part, or one refusal.
RESULTS_KEPT: Final = 10_000
#: How many bulks, or entries of results, one round trip reads.
_PAGE: Final = 100
#: Of a bulk, at most so many sagas are looked up to see whether they are parked now; and so many in one round trip.
MOST_LOOKED_AT: Final = 10_000
_LOOKED_AT_ONCE: Final = 500
_ID: Final = re.compile(r"[0-9a-f]{12}")
_CARRY: Final = Script("carry")
_TURN: Final = Script("turn_bulk")
#: From which states each verb about a bulk is possible, and what it makes of it.
_TURNS: Final[Mapping[str, tuple[BulkState, tuple[BulkState, ...]]]] = {
    "pause": (BulkState.PAUSED, (BulkState.RUNNING,)),
    "resume": (BulkState.RUNNING, (BulkState.PAUSED,)),
    "stop": (BulkState.STOPPED, (BulkState.RUNNING, BulkState.PAUSED)),
}


#: What operators have done to a bulk that exists is told by these verbs. It is looked for among so many of the newest
#: operations, and at most so many are told.
_OF_TURNS: Final = frozenset(f"bulk {verb}" for verb in _TURNS)
_LOOKED_BACK: Final = 1000
_TURNS_TOLD: Final = 20


def is_bulk_id(text: str) -> bool:
    """Whether a bulk may have this id."""
    return _ID.fullmatch(text) is not None


def begin(
    keys: StoreKeys,
    verb: str,
    wanted: Filter,
    *,
    reason: str,
    actor: str | None = None,
    rate: int = USUAL_RATE,
    now: bool = False,
) -> Exchange[Bulk]:
    """Begin a bulk: workers carry it out. It is about the sagas that have begun by now.

    Raises MalformedMessage, which says what is wrong; RequestRefused if there are too many bulks; and
    NoPermissionError if the user is no operator.
    """
    bulk = replace(checked(verb, wanted, reason, actor, rate=rate, now=now), bulk_id=uuid.uuid4().hex[:12])
    (time,) = yield [("TIME",)]
    now_ms = milliseconds(or_raise(time))
    page = yield from find_there(keys, bulk.wanted, 1, at_ms=now_ms)
    yield from _make_room(keys)
    bulk = replace(bulk, begun_ms=now_ms, updated_ms=now_ms, total=page.total, total_is_exact=page.total_is_exact)
    key = keys.bulk(bulk.bulk_id)
    # The hash first: what the zsets name is there. If what follows does not arrive, it expires.
    answers = yield [
        even_if_full(key, "HSET", key, *_words(bulk)),
        ("PEXPIRE", key, BULK_KEPT_MS),
        even_if_full(keys.bulks, "ZADD", keys.bulks, now_ms, bulk.bulk_id),
        even_if_full(keys.bulks_open, "ZADD", keys.bulks_open, now_ms, bulk.bulk_id),
    ]
    for answer in answers:
        _allowed(answer)
    what = f"{bulk.bulk_id}: {bulk.verb} {told(bulk.filter)}"
    yield from operations.note(keys, "bulk begin", what, actor=actor, reason=reason)
    return bulk


def _make_room(keys: StoreKeys) -> Exchange[None]:
    """Forget the bulks that have expired and, if there are too many, the oldest that have ended."""
    count, oldest = yield [("ZCARD", keys.bulks), ("ZRANGE", keys.bulks, 0, _PAGE - 1)]
    ids = [text for one in or_raise(oldest) if is_bulk_id(text := one.decode(errors="replace"))]
    states = (yield [("HGET", keys.bulk(bulk_id), "state") for bulk_id in ids]) if ids else []
    over = or_raise(count) - MOST + 1
    gone = [bulk_id for bulk_id, state in zip(ids, states, strict=True) if state is None]
    ended = [one for one, state in zip(ids, states, strict=True) if state in (b"DONE", b"STOPPED")]
    gone += ended[: max(0, over - len(gone))]
    if over > len(gone):
        text = f"there are {MOST} bulks, the most that may be, and the oldest go on: stop one, see sagastream bulk"
        raise RequestRefused(Code.PRECONDITION_FAILED, text)
    if gone:
        forget: list[Words] = [("ZREM", keys.bulks, *gone), ("ZREM", keys.bulks_open, *gone)]
        forget += [("UNLINK", key) for one in gone for key in (keys.bulk(one), keys.bulk_results(one))]
        for answer in (yield forget):
            _allowed(answer)


def turn(keys: StoreKeys, bulk_id: str, verb: str, *, actor: str | None, reason: str | None) -> Exchange[Bulk]:
    """Pause, resume or stop a bulk. What was asked already is answered all the same. Returns the bulk after that.

    Raises MalformedMessage if the actor or the reason is not valid; RequestRefused if there is no such bulk, or its
    state does not allow this; NoPermissionError if the user is no operator.
    """
    operations.check(actor, reason)
    bulk = yield from load(keys, bulk_id)
    state, states = _TURNS[verb]
    try:
        before = yield from _TURN.call([keys.bulk(bulk_id), keys.bulks_open], [bulk_id, state, BULK_KEPT_MS, *states])
    except redis.ResponseError as error:
        _allowed(error)
    if before is None:
        raise _no_such(bulk_id)
    if before.decode(errors="replace") not in states:
        text = f"bulk {bulk_id} is {bulk.state}: there is nothing to {verb}"
        raise RequestRefused(Code.PRECONDITION_FAILED, text)
    yield from operations.note(keys, f"bulk {verb}", bulk_id, actor=actor, reason=reason)
    return (yield from load(keys, bulk_id))


def turns(keys: StoreKeys, bulk_id: str) -> Exchange[list[Operation]]:
    """Who has paused, resumed and stopped a bulk, the oldest first, as far back as it is looked for."""
    newest = yield from operations.newest(keys, _LOOKED_BACK)
    found = [one for one in newest if one.what == bulk_id and one.verb in _OF_TURNS]
    return found[_TURNS_TOLD - 1 :: -1]


def load(keys: StoreKeys, bulk_id: str) -> Exchange[Bulk]:
    """A bulk as it is now. Raises RequestRefused if there is none."""
    if not is_bulk_id(bulk_id):
        raise _no_such(bulk_id)
    (answer,) = yield [("HGETALL", keys.bulk(bulk_id))]
    words = [] if is_wrong_type(answer) else or_raise(answer)
    if (bulk := read(bulk_id, words)) is None:
        raise _no_such(bulk_id)
    return bulk


def listed(keys: StoreKeys, limit: int = MOST) -> Exchange[list[Bulk]]:
    """The bulks of the store, at most so many, those first that began last."""
    (answer,) = yield [("ZRANGE", keys.bulks, 0, limit - 1, "REV")]
    if is_wrong_type(answer):
        return []
    ids = [text for one in or_raise(answer) if is_bulk_id(text := one.decode(errors="replace"))]
    found: list[Bulk] = []
    for at in range(0, len(ids), _PAGE):
        some = ids[at : at + _PAGE]
        hashes = yield [("HGETALL", keys.bulk(bulk_id)) for bulk_id in some]
        for bulk_id, words in zip(some, hashes, strict=True):
            if not is_wrong_type(words) and (bulk := read(bulk_id, or_raise(words))) is not None:
                found.append(bulk)
    return found


def results(keys: StoreKeys, bulk_id: str) -> Exchange[list[BulkResult]]:
    """What has come of its requests, as far as it is kept, the oldest first."""
    found: list[BulkResult] = []
    after = "-"
    while True:
        (answer,) = yield [("XRANGE", keys.bulk_results(bulk_id), after, "+", "COUNT", _PAGE)]
        page = [] if is_wrong_type(answer) else or_raise(answer)
        for _, words in page:
            found += _results(dict(zip(words[::2], words[1::2], strict=True)))
        if len(page) < _PAGE:
            return found
        after = f"({page[-1][0].decode()}"


def newest_results(keys: StoreKeys, bulk_id: str, most: int) -> Exchange[list[BulkResult]]:
    """What has come of its last requests, the newest first: of at most so many entries."""
    (answer,) = yield [("XREVRANGE", keys.bulk_results(bulk_id), "+", "-", "COUNT", most)]
    found: list[BulkResult] = []
    for _, words in [] if is_wrong_type(answer) else or_raise(answer):
        found += reversed(_results(dict(zip(words[::2], words[1::2], strict=True))))
    return found


def parked_now(keys: StoreKeys, saga_ids: Sequence[str]) -> Exchange[list[str]]:
    """Those of these sagas that are parked now, as far as this user may know. At most the last MOST_LOOKED_AT are
    looked at."""
    found: list[str] = []
    last = saga_ids[-MOST_LOOKED_AT:]
    for at in range(0, len(last), _LOOKED_AT_ONCE):
        by_partition: dict[str, list[str]] = {}
        for saga_id in last[at : at + _LOOKED_AT_ONCE]:
            by_partition.setdefault(keys.of(saga_id).index(PARKED), []).append(saga_id)
        answers = yield [("ZMSCORE", key, *those) for key, those in by_partition.items()]
        for those, scores in zip(by_partition.values(), answers, strict=True):
            there = unless_refused(scores, [None] * len(those))
            found += [saga_id for saga_id, score in zip(those, there, strict=True) if score is not None]
    return found


def told(wanted: Filter) -> str:
    """A filter as texts for people name it, after `sagas with`."""
    said = {name: value for name, value in wanted.body().items() if name != "where"}
    if (command := said.pop("parked", None)) is not None:
        said |= {"status": "PARKED", "parked at": command}
    for name in ("older", "newer"):
        if (ms := said.pop(f"{name}_ms", None)) is not None:
            said[name] = exact(ms).replace(" ", "")
    return ", ".join([f"{name}={value}" for name, value in wanted.where] + [f"{k} {v}" for k, v in said.items()])


# --- what a worker does


def open_ids(keys: StoreKeys, most: int) -> Exchange[list[str]]:
    """The bulks about which workers have to do something, those first that were opened first. None if this user may not
    know: an earlier release has printed its rights."""
    (answer,) = yield [("ZRANGE", keys.bulks_open, 0, most - 1)]
    if isinstance(answer, redis.ResponseError) and (is_denied(answer) or is_wrong_type(answer)):
        return []
    return [text for one in or_raise(answer) if is_bulk_id(text := one.decode(errors="replace"))]


def carry(
    keys: StoreKeys,
    bulk_id: str,
    who: str,
    lease_ms: int,
    *,
    then: str = "",
    progress: Bulk | None = None,
    results: Sequence[BulkResult] = (),
) -> Exchange[Bulk | None]:
    """Lease a bulk, or renew that. Returns it as it is then; None: another worker carries it, or it is not there.

    Args:
        lease_ms: 0: give it back.
        then: "end": it is done; "rest": it is left until somebody resumes it. If somebody has paused, stopped or
            resumed it meanwhile, it goes on.
        progress: how far it has come. If another has taken it over, it is not written, and None is returned.
        results: what has come of its requests.
    """
    fields = [] if progress is None else _words(progress, of_worker=True)
    args: list[Any] = [bulk_id, who, lease_ms, BULK_KEPT_MS, then, RESULTS_KEPT, len(fields), *fields]
    for words in _entries(results):
        args += (len(words), *words)
    names = [keys.bulk(bulk_id), keys.bulks_open, keys.bulk_results(bulk_id)]
    answer = yield from _CARRY.call(names, args)
    return None if answer is None else read(bulk_id, answer)


# --- its hash


class _Fields(Struct, frozen=True, kw_only=True):
    """The fields of the hash. Others are ignored: a newer release, or carry.lua, has written them."""

    verb: str
    filter: str  # JSON
    reason: str
    actor: str = ""
    now: int = 0
    rate: int
    state: BulkState
    begun_ms: int
    updated_ms: int = 0
    ended_ms: int | None = None
    total: int = 0
    total_is_exact: int = 0
    found: int = 0
    asked: int = 0
    done: int = 0
    refused: int = 0
    last_error: str = ""
    cursor: str = ""
    searched: int = 0
    open: str = "[]"  # JSON


#: What a worker writes of it. All else only its begin and operators write.
_OF_WORKER: Final = ("found", "asked", "done", "refused", "last_error", "cursor", "searched", "open")


def _words(bulk: Bulk, *, of_worker: bool = False) -> list[str | int]:
    """The fields of its hash, and their values."""
    words: list[str | int] = []
    for name in _OF_WORKER if of_worker else _Fields.__struct_fields__:
        value = getattr(bulk, name)
        if name == "filter":
            value = msgspec.json.encode(value.body()).decode()
        elif name == "open":
            value = msgspec.json.encode(value).decode()
        elif value is None:
            value = ""
        words += (name, int(value) if isinstance(value, bool) else value)
    return words


def read(bulk_id: str, words: Sequence[bytes]) -> Bulk | None:
    """A bulk out of its hash; None: there is none, or what is there makes no sense."""
    texts = [word.decode(errors="replace") for word in words]
    said = {name: value for name, value in zip(texts[::2], texts[1::2], strict=True) if value}
    try:
        fields = msgspec.convert(said, _Fields, strict=False)
        members = msgspec.structs.asdict(fields)
        wanted = parse_filter(msgspec.json.decode(fields.filter), "the filter")
        checked(fields.verb, wanted, fields.reason, fields.actor or None, rate=fields.rate, now=bool(fields.now))
        members |= {
            "filter": wanted,
            "open": tuple(msgspec.json.decode(fields.open, type=list[Ask])),
            "actor": fields.actor or None,
            "cursor": fields.cursor or None,
            "last_error": fields.last_error or None,
        }
        members |= {name: bool(members[name]) for name in ("now", "total_is_exact", "searched")}
        return Bulk(**(members | {"bulk_id": bulk_id, "verb": Verb(fields.verb)}))
    except (msgspec.ValidationError, msgspec.DecodeError, MalformedMessage, RecursionError):
        return None


def _entries(results: Sequence[BulkResult]) -> list[list[str]]:
    """The words of their entries: one for all that were done, and one for each that was refused."""
    entries = [["saga_id", one.saga_id, "refused", one.refused] for one in results if one.refused is not None]
    if done := [one.saga_id for one in results if one.refused is None]:
        entries.append(["done", " ".join(done)])
    return entries


def _results(fields: Mapping[bytes, bytes]) -> list[BulkResult]:
    text = {name: value.decode(errors="replace") for name, value in fields.items()}
    if b"done" in text:
        return [BulkResult(saga_id=saga_id) for saga_id in text[b"done"].split()]
    return [BulkResult(saga_id=text.get(b"saga_id", ""), refused=text.get(b"refused", ""))]


def _no_such(bulk_id: str) -> RequestRefused:
    text = f"there is no bulk {bulk_id!a:.40}; a bulk is kept for 7 days: sagastream bulk lists them"
    return RequestRefused(Code.PRECONDITION_FAILED, text)


def _allowed(answer: Any) -> Any:
    """An answer; raises an error that it is, and says who may do this."""
    if isinstance(answer, redis.ResponseError) and is_denied(answer):
        text = f"only a user with the role operator may act on bulks; sagastream acl operator prints one ({answer})"
        raise redis.exceptions.NoPermissionError(text)
    return or_raise(answer)

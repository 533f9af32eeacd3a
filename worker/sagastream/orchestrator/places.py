"""The places of sagas, read a page at a time: what is wrong with them by core/places.py, and the change that sets each
right."""

from collections.abc import Sequence
from typing import Any, Final

import redis
from msgspec import Struct

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_wrong_type
from sagastream.broker.wire import or_raise
from sagastream.core.messages import is_id
from sagastream.core.places import Places, is_stray, is_unlisted, out_of_index, out_of_time
from sagastream.core.saga import Found, SagaState
from sagastream.errors import CorruptSaga
from sagastream.orchestrator.change import Change, filled, gone, swept
from sagastream.store import saga_hash
from sagastream.store.indexes import names_in
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.sagas import load

#: How many answers tell of a page as a whole, before those that tell of one saga.
_OF_ALL: Final = 4
_NO_HASH: Final = "stands at a key that holds no hash"


class Examined(Struct, kw_only=True):
    """What was found of one saga."""

    saga_id: str
    found: Found  # None: it has expired meanwhile
    timer: float | None  # its score in timers
    wrong: tuple[str, ...] = ()  # what is wrong with its places
    is_unlisted: bool = False  # it is in no index, since an earlier release has begun it
    mend: Change | None = None  # sets its places right


def examined(partition: Partition, saga_ids: Sequence[str], lease_ms: int) -> Exchange[tuple[int, list[Examined]]]:
    """What is wrong with these sagas; and the broker's time, in ms. `lease_ms`: see `out_of_time`."""
    clock, (timers, ended, begun, indexed, *of_each) = yield from _together(_asked(partition, saga_ids))
    now_ms = wire.milliseconds(or_raise(clock))
    found = []
    for at, saga_id in enumerate(saga_ids):
        fields, ttl_ms = of_each[2 * at : 2 * at + 2]
        timer = _score(timers, at)
        if is_wrong_type(fields):
            corrupt = CorruptSaga(f"the key of saga {saga_id} holds no hash")
            found.append(Examined(saga_id=saga_id, found=corrupt, timer=timer, wrong=(_NO_HASH,)))
            continue
        words = iter(or_raise(fields))
        state = saga_hash.read(saga_id, dict(zip(words, words, strict=True)))
        places = Places(
            timer=timer,
            ended=_score(ended, at),
            begun=_score(begun, at),
            told=names_in(or_raise(indexed)[at] or b"[]"),
            ttl_ms=or_raise(ttl_ms),
        )
        one = Examined(saga_id=saga_id, found=state, timer=timer)
        if isinstance(state, SagaState):
            one.is_unlisted = is_unlisted(places)
            late, misplaced = out_of_time(state, places, now_ms, lease_ms), out_of_index(state, places)
            one.wrong = tuple(what for what in (late, misplaced) if what is not None)
            if misplaced is not None or one.is_unlisted:
                one.mend = filled(partition, state, places.told, rearm=late is not None)
            elif late is not None:
                one.mend = Change(partition=partition, saga_id=saga_id, before=state, after=state, rearm=True)
        found.append(one)
    return now_ms, found


def waited_for_in_vain(partition: Partition, members: Sequence[bytes]) -> Exchange[tuple[list[bytes], list[Change]]]:
    """Of these members of timers: those that can be the id of no saga, and what takes out each saga that is not
    there."""
    ids = {member: text for member in members if is_id(text := member.decode(errors="backslashreplace"))}
    there = (yield [("EXISTS", partition.saga(saga_id)) for saga_id in ids.values()]) if ids else []
    missing = [saga_id for saga_id, is_there in zip(ids.values(), there, strict=True) if not or_raise(is_there)]
    return [member for member in members if member not in ids], [gone(partition, saga_id) for saga_id in missing]


def strays(partition: Partition, key: str, name: str | None, members: Sequence[bytes]) -> Exchange[list[bytes]]:
    """Of these members of an index, those that should not be in it. `name`: of the index; None: it is `begun`."""
    if not members:
        return []
    ids = [member.decode(errors="backslashreplace") for member in members]
    asked: list[wire.Words] = [("HMGET", partition.indexed, *members)]
    asked += [("ZMSCORE", key, *members), ("ZMSCORE", partition.ended, *members)]
    _, (told, scores, ended, *there) = yield from _together([*asked, *(("EXISTS", partition.saga(one)) for one in ids)])
    return [
        member
        for at, member in enumerate(members)
        if _score(scores, at) is not None  # else it has left meanwhile
        and is_stray(
            name,
            names_in(or_raise(told)[at] or b"[]"),
            is_there=bool(or_raise(there[at])),
            has_ended=_score(ended, at) is not None,
        )
    ]


def without(
    keys: StoreKeys, partition: Partition, name: str | None, strays_of_it: Sequence[bytes]
) -> Exchange[tuple[list[Change], list[bytes], int]]:
    """What takes these strays out of an index: the changes, the members that no change can name, since they are the id
    of no saga, and the broker's time. A saga that moves meanwhile stays where it is by then."""
    ids = [text for member in strays_of_it if is_id(text := member.decode(errors="backslashreplace"))]
    no_ids = [member for member in strays_of_it if not is_id(member.decode(errors="backslashreplace"))]
    if not ids:
        return [], no_ids, 0
    states, now_ms = yield from load(keys, ids)
    (told,) = yield [("HMGET", partition.indexed, *ids)]
    changes = []
    for saga_id, names in zip(ids, or_raise(told), strict=True):
        state = states[saga_id]
        leaves = names_in(names or b"[]") + (() if name is None else (name,))
        if isinstance(state, SagaState):
            changes.append(filled(partition, state, leaves))
        elif state is None:
            changes.append(swept(partition, saga_id, tuple(dict.fromkeys(leaves))))
    return changes, no_ids, now_ms


def _asked(partition: Partition, saga_ids: Sequence[str]) -> list[wire.Words]:
    scores: list[wire.Words] = [
        ("ZMSCORE", key, *saga_ids) for key in (partition.timers, partition.ended, partition.begun)
    ]
    of_each: list[wire.Words] = []
    for saga_id in saga_ids:
        of_each += [("HGETALL", partition.saga(saga_id)), ("PTTL", partition.saga(saga_id))]
    asked: list[wire.Words] = [*scores, ("HMGET", partition.indexed, *saga_ids), *of_each]
    assert len(asked) == _OF_ALL + 2 * len(saga_ids)
    return asked


def _together(asked: Sequence[wire.Words]) -> Exchange[tuple[Any, list[Any]]]:
    """The time; and the answers to these, all of one moment: the hash of a saga and its places change together. A full
    server refuses transactions, and commits too; so nothing moves, and it is asked without."""
    clock, *answers = yield [("TIME",), ("MULTI",), *asked, ("EXEC",)]
    if isinstance(answers[-1], redis.exceptions.ExecAbortError | redis.OutOfMemoryError):
        return clock, (yield asked)
    found: list[Any] = or_raise(answers[-1])
    return clock, found


def _score(scores: Any, at: int) -> float | None:
    """One of the scores that ZMSCORE tells."""
    score = or_raise(scores)[at]
    return None if score is None else float(score)

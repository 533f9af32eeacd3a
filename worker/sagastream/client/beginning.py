"""Begins sagas, one or many: in one round trip, and nothing is done twice.

`begin.lua` appends a request to begin a saga to the requests stream only if the store does not know the saga yet.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import redis

from sagastream.broker.exchange import Exchange, each_of
from sagastream.broker.failures import NodeAway, is_outage, is_wrong_type
from sagastream.broker.scripting import Script
from sagastream.broker.wire import or_raise
from sagastream.client import requests
from sagastream.client.answers import Accepted, Refused, Unsettled, conflicting
from sagastream.client.durability import Durable, Replicas, check_durable
from sagastream.client.requests import SagaRequest
from sagastream.core.messages import Begin, Code
from sagastream.core.sealing import Codec
from sagastream.errors import CorruptSaga, MalformedMessage, StoreFull, UnreadableSaga
from sagastream.store import saga_hash
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.layout import Layout

#: How many sagas, and about how many bytes of them, go to the broker in one round trip. While a script runs, everybody
#: waits.
BATCH: Final = 128
_BATCH_BYTES: Final = 1 << 20
#: In how many seconds a client is asked to try again if the store is full.
_TRY_AGAIN_S: Final = 5.0

_T = TypeVar("_T")
_SCRIPT: Final = Script("begin")


def begin(
    keys: StoreKeys,
    begins: Sequence[Begin],
    codec: Codec | None = None,
    *,
    durable: Durable | None = None,
    replicas: Replicas | None = None,
) -> Exchange[list[Accepted | Refused | Unsettled]]:
    """Begin these sagas in one round trip. The answers are in their order. All requests for one partition arrive, or
    none; on a cluster, they are Unsettled if its node is away. `codec`: with it the params were sealed. `durable`: a
    saga is Accepted only once a replica has it. `replicas`: what is known of them already."""
    check_durable(durable)
    if durable is None:
        return (yield from _begin_all(keys, begins, codec))
    partitions = dict.fromkeys(keys.of(one.saga_id) for one in begins)
    replicas = replicas or Replicas(keys)
    answers, sure = yield from replicas.confirmed(partitions, _begin_all(keys, begins, codec))
    return [
        Unsettled(saga_id=answer.saga_id, error=replicas.missing(answer.saga_id), sent=True)
        if isinstance(answer, Accepted) and keys.of(answer.saga_id) not in sure
        else answer
        for answer in answers
    ]


def _begin_all(
    keys: StoreKeys, begins: Sequence[Begin], codec: Codec | None
) -> Exchange[list[Accepted | Refused | Unsettled]]:
    by_partition: dict[int, list[int]] = {}
    for index, one in enumerate(begins):
        by_partition.setdefault(keys.of(one.saga_id).number, []).append(index)
    calls = [
        _begin(keys.partitions[number], [begins[index] for index in those], codec)
        for number, those in by_partition.items()
    ]
    answers: dict[int, Accepted | Refused | Unsettled] = {}
    found = yield from each_of(calls)
    for those, told in zip(by_partition.values(), found, strict=True):
        if isinstance(told, redis.RedisError):
            if not (keys.apart and is_outage(told)):
                raise told
            was_sent = not isinstance(told, NodeAway) or told.was_sent
            answers |= zip(those, _unsettled([begins[at] for at in those], told, sent=was_sent), strict=True)
        else:
            answers |= zip(those, told, strict=True)
    return [answers[index] for index in range(len(begins))]


def _begin(partition: Partition, begins: Sequence[Begin], codec: Codec | None) -> Exchange[list[Accepted | Refused]]:
    args: list[str | bytes | int] = []
    for one in begins:
        words = requests.words(one)
        args += (len(words), *words)
    names = [partition.requests, partition.full, *(partition.saga(one.saga_id) for one in begins)]
    try:
        known = yield from _SCRIPT.call(names, args)
    except redis.OutOfMemoryError:  # the server says so before the script begins
        hashes = yield [("HGETALL", partition.saga(one.saga_id)) for one in begins]
        known = [0 if is_wrong_type(held) else or_raise(held) or b"all of maxmemory is used" for held in hashes]
    return [_answer(one, held, codec) for one, held in zip(begins, known, strict=True)]


def begin_many(
    layout: Layout,
    sagas: Iterable[SagaRequest],
    codec: Codec | None = None,
    *,
    accept_sealed: bool = False,
    durable: Durable | None = None,
) -> Exchange[list[Accepted | Refused | Unsettled]]:
    """Begin these sagas, one batch per round trip. The answers are in their order. `codec`: seals their params;
    `accept_sealed`: as for `sealed`; `durable`: as for `begin`.

    After an outage nothing more is sent; if a node of a cluster is away, nothing more to its partitions. Raises
    redis.RedisError for an error that is not an outage.
    """
    check_durable(durable)
    answers: list[Accepted | Refused | Unsettled] = []
    many = _Many(layout, codec, durable)
    for batch in _batches(
        one_by_one(sagas, "SagaRequest, dicts with saga_id and steps"), codec, accept_sealed=accept_sealed
    ):
        begins = [one for one in batch if isinstance(one, Begin)]
        told = iter((yield from many.begin(begins)) if begins else ())
        answers += [one if isinstance(one, Refused) else next(told) for one in batch]
    return answers


class _Many:
    """Begins sagas, one batch after the other. What is away is not tried again: that could take long each time."""

    def __init__(self, layout: Layout, codec: Codec | None, durable: Durable | None) -> None:
        self._layout = layout
        self._codec = codec
        self._durable = durable
        self._replicas: Replicas | None = None
        self._failure: redis.RedisError | None = None  # of the whole broker
        self._away: dict[Partition, redis.RedisError] = {}  # of single nodes of a cluster

    def begin(self, begins: Sequence[Begin]) -> Exchange[list[Accepted | Refused | Unsettled]]:
        if self._failure is not None:
            return _unsettled(begins, self._failure, sent=False)
        try:
            keys = yield from self._layout.opened()
            self._replicas = self._replicas or Replicas(keys)
            going = [one for one in begins if keys.of(one.saga_id) not in self._away]
            beginning = begin(keys, going, self._codec, durable=self._durable, replicas=self._replicas)
            found = (yield from beginning) if going else []
        except redis.RedisError as error:
            if not is_outage(error):
                raise
            self._failure = error
            return _unsettled(begins, error, sent=True)
        told, answers = iter(found), list[Accepted | Refused | Unsettled]()
        for one in begins:
            away = self._away.get(keys.of(one.saga_id))
            answers += [next(told)] if away is None else _unsettled([one], away, sent=False)
        for answer in found:
            if isinstance(answer, Unsettled) and isinstance(answer.error, redis.RedisError):
                self._away[keys.of(answer.saga_id)] = answer.error
        return answers


def _unsettled(begins: Sequence[Begin], error: redis.RedisError, *, sent: bool) -> list[Accepted | Refused | Unsettled]:
    return [Unsettled(saga_id=one.saga_id, error=error, sent=sent) for one in begins]


def one_by_one(sagas: Iterable[_T], what: str) -> Iterator[_T]:
    """The members of a list of sagas. Raises TypeError for a single saga: the characters of a text, or the keys of an
    object, would otherwise be taken for sagas."""
    given: object = sagas
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"sagas must be a list of {what}, not {type(given).__name__}")
    return iter(sagas)


def _answer(one: Begin, held: Any, codec: Codec | None) -> Accepted | Refused:
    """The answer for one saga, from what begin.lua returned for it."""
    if held == 1:
        return Accepted(begin=one)
    if isinstance(held, bytes):
        return _no_room(one, held.decode(errors="replace"))
    if held == 0:
        return Refused(saga_id=one.saga_id, error=CorruptSaga(f"the key of saga {one.saga_id} holds no hash"))
    state = saga_hash.read(one.saga_id, dict(zip(held[::2], held[1::2], strict=True)))
    if isinstance(state, UnreadableSaga):
        return Refused(saga_id=one.saga_id, error=state)
    assert state is not None  # an empty hash is none
    return conflicting(state, one, codec) or Accepted(begin=one)


def _no_room(one: Begin, why: str) -> Refused:
    again = "begin it again later, with the same id, or see sagastream doctor"
    text = f"the request to begin saga {one.saga_id} was not taken, the store is full: {why}; {again}"
    return Refused(saga_id=one.saga_id, error=StoreFull(Code.UNAVAILABLE, text, _TRY_AGAIN_S))


def _batches(
    sagas: Iterable[SagaRequest], codec: Codec | None = None, *, accept_sealed: bool = False
) -> Iterator[list[Begin | Refused]]:
    """The requests, and refusals of malformed ones, in batches for one round trip each."""
    batch: list[Begin | Refused] = []
    size = 0
    for saga in sagas:
        try:
            one: Begin | Refused = requests.sealed(codec, requests.to_begin(saga), accept_sealed=accept_sealed)
        except MalformedMessage as error:
            saga_id = saga.get("saga_id") if isinstance(saga, dict) else None
            one = Refused(saga_id=saga_id if isinstance(saga_id, str) else "", error=error)
        more = one.payload_bytes if isinstance(one, Begin) else 0
        if batch and (len(batch) == BATCH or size + more > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += more
    if batch:
        yield batch

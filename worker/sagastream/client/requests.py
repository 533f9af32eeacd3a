"""The requests of clients: how they are made and sent, and what the answer is to each.

`begin.lua` appends a request to begin a saga to the requests stream only if the store does not know the saga yet; many
sagas take one round trip.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final, Literal, NotRequired, TypedDict, TypeVar

import redis
from msgspec.structs import replace

from sagastream.broker import wire
from sagastream.broker.exchange import Exchange, all_of
from sagastream.broker.failures import is_outage, is_wrong_type
from sagastream.broker.scripting import Script, added_even_if_full
from sagastream.broker.wire import or_raise
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import SIGNAL, Begin, Code, DeadlineKind, Intervene, Signal, ToSaga, Verb
from sagastream.core.parsing import parse_intervene, parse_signal
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.same_saga import conflict, with_params_of
from sagastream.core.sealed_messages import check_unsealed, open_begin, open_state, sealed_begin, sealed_signal
from sagastream.core.sealing import Codec
from sagastream.core.step_state import Step
from sagastream.errors import CorruptSaga, MalformedMessage, RequestRefused, StoreFull, UnreadableSaga
from sagastream.store import saga_hash
from sagastream.store.keys import Partition, StoreKeys
from sagastream.store.layout import Layout
from sagastream.store.sagas import load
from sagastream.tracing.context import current_trace

#: How many sagas, and about how many bytes of them, go to the broker in one round trip. While a script runs, everybody
#: waits.
BATCH: Final = 128
_BATCH_BYTES: Final = 1 << 20
#: In how many seconds a client is asked to try again if the store is full.
_TRY_AGAIN_S: Final = 5.0

_T = TypeVar("_T")
_SCRIPT: Final = Script("begin")
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class _PlaceRequest(TypedDict):
    """Where a step stands among the others. docs/graphs.md says what each member means."""

    id: NotRequired[str]
    after: NotRequired[Sequence[str | int]]  # ids or numbers of steps before it in the list
    when: NotRequired[Any]  # a condition


class StepRequest(_PlaceRequest):
    """One step. docs/sagas.md and docs/graphs.md say what each member means, and its default."""

    transaction: str
    service: str
    params: NotRequired[Any]  # any JSON value
    compensation: NotRequired[str | None]
    compensation_params: NotRequired[Any]  # any JSON value
    kind: NotRequired[Literal["compensatable", "pivot", "retriable"]]
    timeout_ms: NotRequired[int]
    attempts: NotRequired[int]
    compensation_attempts: NotRequired[int]
    backoff_ms: NotRequired[int]
    retry_failed: NotRequired[bool]
    retry_on: NotRequired[str]
    retry_within_ms: NotRequired[int]


class WaitRequest(_PlaceRequest):
    """A step that waits for a signal."""

    wait: str  # the name of the signal
    timeout_ms: int
    on_timeout: NotRequired[Literal["fail", "continue"]]


class PauseRequest(_PlaceRequest):
    """A step that only takes time."""

    wait_ms: int


class DefinedByRequest(TypedDict):
    """The definition that the steps of a saga were made from."""

    name: str
    version: int
    sha256: str


class SagaRequest(TypedDict):
    """A saga to begin: the members of the protocol's saga_begin. `Definition.saga` makes one."""

    saga_id: str
    steps: Sequence[StepRequest | WaitRequest | PauseRequest]
    deadline_ms: NotRequired[int]  # how long after its begin the saga is cancelled
    deadline: NotRequired[DeadlineKind]  # "hard": what is out by then is not waited for
    input: NotRequired[dict[str, Any]]  # what its steps may refer to
    start_at_ms: NotRequired[int]  # it does nothing before this time, in ms since the epoch by the broker's clock
    definition: NotRequired[DefinedByRequest]
    attributes: NotRequired[Mapping[str, str | int]]  # by which people find it
    format: NotRequired[int]  # by default as the other members need it


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Accepted:
    """The broker has the request, or the saga itself. It is durable, and will be run or refused."""

    begin: Begin

    @property
    def saga_id(self) -> str:
        return self.begin.saga_id

    def __repr__(self) -> str:
        """Without the steps: their params may be long, and do not belong into a log."""
        return f"Accepted(saga_id={self.saga_id!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """This request was not taken, and nothing comes of it: `error` says why.

    MalformedMessage: what is wrong, and where. RequestRefused: another saga has the id. StoreFull, which is one, too:
    there is no room for more sagas now; if an earlier request for this saga was accepted, that one still stands.
    UnreadableSaga: the saga of this id cannot be read.
    """

    saga_id: str  # empty if the request has none
    error: MalformedMessage | RequestRefused | UnreadableSaga


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled:
    """The broker went away, and nobody knows whether it has the request. Begin the saga again, with the same id.

    `error`: how the broker failed. `sent`: False if the request was not sent.
    """

    saga_id: str
    error: redis.RedisError
    sent: bool


def saga(
    saga_id: str,
    steps: Sequence[StepRequest | WaitRequest | PauseRequest],
    *,
    deadline_ms: int | None = None,
    deadline: DeadlineKind | None = None,
    input: dict[str, Any] | None = None,  # noqa: A002 - as the JSON calls it
    start_at: datetime | None = None,
    start_at_ms: int | None = None,
    attributes: Mapping[str, str | int] | None = None,
) -> SagaRequest:
    """The saga of these members."""
    request: SagaRequest = {"saga_id": saga_id, "steps": steps}
    if deadline_ms is not None:
        request["deadline_ms"] = deadline_ms
    if deadline is not None:
        request["deadline"] = deadline
    if input is not None:
        request["input"] = input
    if (start_ms := start_ms_of(start_at, start_at_ms)) is not None:
        request["start_at_ms"] = start_ms
    if attributes is not None:
        request["attributes"] = attributes
    return request


def start_ms_of(at: datetime | None, at_ms: int | None) -> int | None:
    """When a saga begins, in ms since the epoch, of the two ways to say it; None: at once. Raises TypeError if both are
    said, or if the time is none or has no time zone."""
    if at is None:
        return at_ms
    if at_ms is not None:
        raise TypeError("start_at and start_at_ms say the same: give one of them")
    if not isinstance(at, datetime):
        raise TypeError(f"start_at must be a datetime, not {at!r:.80}; for milliseconds there is start_at_ms")
    if at.tzinfo is None:
        raise TypeError(f"start_at has no time zone, so nobody knows when {at} is: datetime.now(UTC) has one")
    return -((_EPOCH - at) // timedelta(milliseconds=1))  # rounded up: a saga does not begin before its time


def to_begin(saga: SagaRequest) -> Begin:
    """The request that was made. Raises MalformedMessage, which says what is wrong, and where."""
    body: Any = saga
    if isinstance(body, dict) and isinstance(body.get("steps"), tuple):
        body = body | {"steps": list(body["steps"])}
    traceparent, tracestate = current_trace()
    request_id = uuid.uuid4().hex
    return parse_begin(body, request_id=request_id, traceparent=traceparent, tracestate=tracestate, called="the saga")


def sealed(codec: Codec | None, request: Begin, *, accept_sealed: bool = False) -> Begin:
    """The request to send. Raises MalformedMessage if it is too large once it is sealed, or holds what looks sealed and
    cannot be opened here; and what the codec raises.

    `accept_sealed`: without a codec, send what looks sealed as it is: somebody else has sealed it.
    """
    if codec is not None:
        return sealed_begin(codec, request)
    if not accept_sealed:
        check_unsealed(request)
    return request


def to_send(codec: Codec | None, request: ToSaga, *, accept_sealed: bool = False) -> ToSaga:
    """The request to send: what comes with a signal is sealed. Arguments and errors are those of `sealed`."""
    if codec is not None and isinstance(request, Signal):
        return sealed_signal(codec, request)
    if codec is None and not accept_sealed:
        check_unsealed(request)
    return request


def opened(codec: Codec | None, found: _T) -> _T | SagaState:
    """What was found; if it is a saga, with all its values opened that can be."""
    return found if codec is None or not isinstance(found, SagaState) else open_state(codec, found)[0]


def to_intervene(
    verb: Verb,
    saga_id: str,
    reason: str,
    *,
    now: bool = False,
    actor: str | None = None,
    parked_at: str | None = None,
    step: int | str | None = None,
) -> Intervene:
    """An operator's request. Raises MalformedMessage as `to_begin` does."""
    body: dict[str, Any] = {"type": f"saga_{verb}", "saga_id": saga_id, "reason": reason}
    if now is not False:
        body["now"] = now
    if actor is not None:
        body["actor"] = actor
    if parked_at is not None:
        body["parked_at"] = parked_at
    if step is not None:
        body["step"] = step
    return parse_intervene(body, request_id=uuid.uuid4().hex, called="the request")


def to_signal(saga_id: str, name: str, payload: Any, *, decline: str | None, actor: str | None) -> Signal:
    """A request to signal. Raises MalformedMessage as `to_begin` does."""
    body: dict[str, Any] = {"type": SIGNAL, "saga_id": saga_id, "name": name}
    if decline is not None:
        body["decline"] = decline
    if payload is not None or decline is None:
        body["payload"] = payload
    if actor is not None:
        body["actor"] = actor
    return parse_signal(body, request_id=uuid.uuid4().hex, called="the signal")


def for_what_is_parked(keys: StoreKeys, request: Intervene) -> Exchange[Intervene]:
    """A request to retry, skip or abandon. If the caller does not say where the saga is parked, it is looked up: by the
    time that a worker reads the request, the saga may be parked at another step. If it is parked at several steps, it
    is not: then it is refused, with the list of them."""
    if request.parked_at is not None:
        return request
    found = (yield from load(keys, [request.saga_id]))[0][request.saga_id]
    if not isinstance(found, SagaState):
        return request
    number = found.parked_steps[0] if len(found.parked_steps) == 1 else None
    if request.step is not None:
        number = found.number_of(request.step)
    return request if number is None else replace(request, parked_at=found.parked_place(number))


def one_by_one(sagas: Iterable[_T], what: str) -> Iterator[_T]:
    """The members of a list of sagas. Raises TypeError for a single saga: the characters of a text, or the keys of an
    object, would otherwise be taken for sagas."""
    given: object = sagas
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"sagas must be a list of {what}, not {type(given).__name__}")
    return iter(sagas)


def append(keys: StoreKeys, requests: Sequence[Begin | ToSaga]) -> Exchange[None]:
    """Append requests as they are, whatever the store knows. They are durable when this returns. If it raised, append
    the same requests again: one that arrived twice is recognised by its request_id. A full store takes those of
    operators only: they may be what makes room."""
    commands = [_appended(keys.of(request.saga_id), request) for request in requests]
    answers = (yield commands) if commands else []
    for answer in answers:
        or_raise(answer)


def begin(keys: StoreKeys, begins: Sequence[Begin], codec: Codec | None = None) -> Exchange[list[Accepted | Refused]]:
    """Begin these sagas in one round trip. The answers are in their order. All requests for one partition arrive, or
    none. `codec`: with it the params were sealed."""
    by_partition: dict[int, list[int]] = {}
    for index, one in enumerate(begins):
        by_partition.setdefault(keys.of(one.saga_id).number, []).append(index)
    calls = [
        _begin(keys.partitions[number], [begins[index] for index in those], codec)
        for number, those in by_partition.items()
    ]
    found = yield from all_of(calls)
    order = [index for those in by_partition.values() for index in those]
    answers = dict(zip(order, chain.from_iterable(found), strict=True))
    return [answers[index] for index in range(len(begins))]


def _begin(partition: Partition, begins: Sequence[Begin], codec: Codec | None) -> Exchange[list[Accepted | Refused]]:
    args: list[str | bytes | int] = []
    for one in begins:
        words = _words(one)
        args += (len(words), *words)
    names = [partition.requests, partition.full, *(partition.saga(one.saga_id) for one in begins)]
    try:
        known = yield from _SCRIPT.call(names, args)
    except redis.OutOfMemoryError:  # the server says so before the script begins
        hashes = yield [("HGETALL", partition.saga(one.saga_id)) for one in begins]
        known = [0 if is_wrong_type(held) else or_raise(held) or b"all of maxmemory is used" for held in hashes]
    return [_answer(one, held, codec) for one, held in zip(begins, known, strict=True)]


def begin_many(
    layout: Layout, sagas: Iterable[SagaRequest], codec: Codec | None = None, *, accept_sealed: bool = False
) -> Exchange[list[Accepted | Refused | Unsettled]]:
    """Begin these sagas, one batch per round trip. The answers are in their order. `codec`: seals their params;
    `accept_sealed`: as for `sealed`.

    After an outage nothing more is sent. Raises redis.RedisError for an error that is not an outage.
    """
    answers: list[Accepted | Refused | Unsettled] = []
    failure: redis.RedisError | None = None
    for batch in _batches(
        one_by_one(sagas, "SagaRequest, dicts with saga_id and steps"), codec, accept_sealed=accept_sealed
    ):
        begins = [one for one in batch if isinstance(one, Begin)]
        sent = failure is None
        told: Iterator[Accepted | Refused] = iter(())
        if begins and failure is None:
            try:
                keys = yield from layout.opened()
                told = iter((yield from begin(keys, begins, codec)))
            except redis.RedisError as error:
                if not is_outage(error):
                    raise
                failure = error
        for one in batch:
            if isinstance(one, Refused):
                answers.append(one)
            elif failure is not None:
                answers.append(Unsettled(saga_id=one.saga_id, error=failure, sent=sent))
            else:
                answers.append(next(told))
    return answers


def granted(answer: _T | Refused) -> _T:
    """An answer; if it is a refusal, raises its error."""
    if isinstance(answer, Refused):
        raise answer.error
    return answer


def conflicting(state: SagaState, begin: Begin, codec: Codec | None = None) -> Refused | None:
    """The answer to a request if another saga has its id; None: it is the same saga.

    `codec`: with it the params were sealed, perhaps with another key than the same params when the saga was begun.
    """
    text = conflict(state, begin)
    if text is not None:
        there, unopened = open_state(codec, state)
        here, more = open_begin(codec, begin)
        text = conflict(state, with_params_of(state, begin, there, here), unopened | more)
    if text is None:
        return None
    return Refused(saga_id=begin.saga_id, error=RequestRefused(Code.PRECONDITION_FAILED, text))


def unread(begin: Begin) -> SagaState:
    """The saga that was asked for, as it is until a worker reads the request."""
    return SagaState(
        saga_id=begin.saga_id,
        status=SagaStatus.PENDING,
        current_step=1,
        steps=tuple(Step(definition=definition) for definition in begin.steps),
        begun_ms=0,
        updated_ms=0,
        format=begin.format,
        input=begin.input,
        definition=begin.definition,
        start_ms=begin.start_ms,
        attributes=begin.attributes,
        traceparent=begin.traceparent,
        tracestate=begin.tracestate,
    )


def _appended(partition: Partition, request: Begin | ToSaga) -> wire.Words:
    if isinstance(request, Begin):
        return ("XADD", partition.requests, "*", *_words(request))
    return added_even_if_full(partition.interventions, request.fields())


def _words(request: Begin) -> list[str | bytes | int]:
    """The fields of its entry."""
    return [word for field in request.fields().items() for word in field]


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
            one: Begin | Refused = sealed(codec, to_begin(saga), accept_sealed=accept_sealed)
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

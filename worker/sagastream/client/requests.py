"""The requests of clients: what is asked for, how it is made, sealed, and appended to its stream."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NotRequired, TypedDict

from redis.exceptions import RedisError

from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import is_outage
from sagastream.broker.scripting import added_even_if_full
from sagastream.broker.wire import Words, or_raise
from sagastream.client.durability import Durable
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import SIGNAL, Begin, DeadlineKind, Intervene, Signal, ToSaga, Verb
from sagastream.core.parsing import parse_intervene, parse_signal
from sagastream.core.sealed_messages import check_unsealed, sealed_begin, sealed_signal
from sagastream.core.sealing import Codec
from sagastream.store.keys import Partition, StoreKeys
from sagastream.tracing.context import current_trace

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


class BeginOptions(TypedDict, total=False):
    """What a begin may say of any saga. `SagaClient.begin` says what each member means."""

    start_at: datetime | None
    start_at_ms: int | None
    attributes: Mapping[str, str | int] | None
    durable: Durable | None


class StepsOptions(BeginOptions, total=False):
    """The same, and what only a begin says that names its steps; a definition says it otherwise."""

    deadline_ms: int | None
    deadline: DeadlineKind | None
    input: dict[str, Any] | None


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


def append(keys: StoreKeys, requests: Sequence[Begin | ToSaga]) -> Exchange[None]:
    """Append requests as they are, whatever the store knows. They are durable when this returns. If it raised, append
    the same requests again: one that arrived twice is recognised by its request_id. A full store takes those of
    operators only: they may be what makes room."""
    for error in (yield from append_each(keys, requests)):
        or_raise(error)


def append_each(keys: StoreKeys, requests: Sequence[Begin | ToSaga]) -> Exchange[list[RedisError | None]]:
    """The same. Of each request, why it has not arrived, or may not have, if that is an outage; None: it has."""
    commands = [_appended(keys.of(request.saga_id), request) for request in requests]
    answers = (yield commands) if commands else []
    return [_why_not(answer) for answer in answers]


def _why_not(answer: Any) -> RedisError | None:
    if isinstance(answer, RedisError) and is_outage(answer):
        return answer
    or_raise(answer)
    return None


def _appended(partition: Partition, request: Begin | ToSaga) -> Words:
    if isinstance(request, Begin):
        return ("XADD", partition.requests, "*", *words(request))
    return added_even_if_full(partition.interventions, request.fields())


def words(request: Begin) -> list[str | bytes | int]:
    """The fields of its entry."""
    return [word for field in request.fields().items() for word in field]

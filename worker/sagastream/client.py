"""The client: begin sagas, look at them, wait for their end, have them cancelled or go on."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import redis

from sagastream import keys
from sagastream.broker import Broker, execute
from sagastream.decision import begun_with, conflict
from sagastream.errors import CorruptSaga, RequestRefused
from sagastream.messages import Begin, Code, Intervene, Verb
from sagastream.parsing import parse_begin, parse_intervene
from sagastream.saga import SagaState
from sagastream.store import Store
from sagastream.streams import Entry
from sagastream.strict_json import decode

#: How long one wait for news blocks before the state itself is looked at, in milliseconds.
_LOOK_MS: Final = 500
#: How many events one reading takes at the most.
_EVENTS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A saga_begin that the broker has: durable, and sure to be run or refused."""

    begin: Begin
    after: bytes  # the last entry of the events stream before it: all news of it come later


class SagaClient:
    """One connection to the sagas of a store. Close it, or use it as a context manager."""

    def __init__(self, broker: Broker | None = None) -> None:
        """With no broker given, opens the one of the environment (see Broker)."""
        self._owns_broker = broker is None
        self._broker = broker or Broker()
        self._redis: redis.Redis = self._broker.client
        self._store = Store(self._redis)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._owns_broker:
            self._broker.close()

    def begin(self, saga_id: str, steps: list[dict[str, Any]], *, deadline_ms: int | None = None) -> Accepted:
        """Ask for a saga to be run. `steps`: as in the protocol, each with transaction, service, params. `deadline_ms`:
        how long after its begin it is cancelled.

        Returns as soon as the request is durable. Begun again with the same id and steps, nothing is done twice.

        Raises:
            MalformedMessage: says what is wrong, and where; nothing was sent.
            RequestRefused: another saga has the id; nothing was sent.
            redis.RedisError: the broker is away; whether the request arrived is open, so call again with the
                same id.
        """
        body: dict[str, Any] = {"saga_id": saga_id, "steps": steps}
        if deadline_ms is not None:
            body["deadline_ms"] = deadline_ms
        return self.begin_request(parse_begin(body, request_id=uuid.uuid4().hex))

    def begin_request(self, begin: Begin) -> Accepted:
        """As `begin`, for a request that was parsed already."""
        _check_same(self.get(begin.saga_id), begin)
        after = last_event(self._redis)
        append_requests(self._redis, [begin])
        return Accepted(begin=begin, after=after)

    def get(self, saga_id: str) -> SagaState | None:
        """The saga as it stands; None: the orchestrator knows no such saga (or has not read its request yet).

        Raises CorruptSaga if what stands at its key cannot be read.
        """
        state = self._store.load([saga_id])[0][saga_id]
        if isinstance(state, CorruptSaga):
            raise state
        return state

    def wait(self, saga: Accepted | str, timeout_s: float | None = None) -> SagaState:
        """Wait until the saga has ended, or is parked and waits for a person, and return it as it is then.

        `saga`: what `begin` returned, or an id; one that nobody knows yet is waited for.

        Raises:
            RequestRefused: another saga has the id.
            TimeoutError: it has not ended in time; it goes on by itself.
        """
        saga_id, begin = (saga, None) if isinstance(saga, str) else (saga.begin.saga_id, saga.begin)
        after = last_event(self._redis) if isinstance(saga, str) else saga.after
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            # The hash is the truth; the events only say when to look again.
            state = self.get(saga_id)
            if begin is not None:
                _check_same(state, begin)
            if state is not None and (state.ended or state.parked):
                return state
            left_ms = _LOOK_MS
            if deadline is not None:
                left_ms = min(left_ms, int((deadline - time.monotonic()) * 1000))
                if left_ms <= 0:
                    raise TimeoutError(f"saga {saga_id} has not ended within {timeout_s:g} s")
            _, after = self._news(saga_id, after, left_ms)

    def cancel(self, saga_id: str, reason: str, timeout_s: float | None = None) -> SagaState:
        """Have a saga go back: at its next step boundary, before its pivot. See `intervene`."""
        return self._intervene(Verb.CANCEL, saga_id, reason, timeout_s)

    def retry(self, saga_id: str, reason: str, timeout_s: float | None = None) -> SagaState:
        """Have a parked saga try anew what it is parked at. See `intervene`."""
        return self._intervene(Verb.RETRY, saga_id, reason, timeout_s)

    def skip(self, saga_id: str, reason: str, timeout_s: float | None = None) -> SagaState:
        """Have a parked saga go on as if the step or compensation that it is parked at were done. See `intervene`."""
        return self._intervene(Verb.SKIP, saga_id, reason, timeout_s)

    def abandon(self, saga_id: str, reason: str, timeout_s: float | None = None) -> SagaState:
        """Have a parked saga end as it stands, ABORTED. See `intervene`."""
        return self._intervene(Verb.ABANDON, saga_id, reason, timeout_s)

    def intervene(self, request: Intervene, timeout_s: float | None = None) -> SagaState:
        """Send an operator's request, and wait until a worker has done it; the saga as it is then.

        `request` needs a request_id; sent again with the same one, it is done once.

        Raises:
            RequestRefused: there is no such saga, or it is not in a state in which this can be done.
            TimeoutError: no worker has taken it in time; it is in the store, and one will.
            redis.RedisError: the broker is away; whether the request arrived is open.
        """
        after = last_event(self._redis)
        append_requests(self._redis, [request])
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while deadline is None or time.monotonic() < deadline:
            news, after = self._news(request.saga_id, after, _LOOK_MS)
            for event in news:
                if event.get(b"kind") == b"refused" and event.get(b"request_id") == str(request.request_id).encode():
                    refused = decode(event[b"body"])
                    raise RequestRefused(refused["code"], refused["text"])
            state = self.get(request.saga_id)
            if state is not None and state.has_taken(request.request_id):
                return state
        raise TimeoutError(
            f"no worker has taken the {request.verb} of saga {request.saga_id} within {timeout_s:g} s; "
            "it is in the store, and the next one will do it, or refuse it"
        )

    def _intervene(self, verb: Verb, saga_id: str, reason: str, timeout_s: float | None) -> SagaState:
        body = {"type": f"saga_{verb}", "saga_id": saga_id, "reason": reason}
        return self.intervene(parse_intervene(body, request_id=uuid.uuid4().hex), timeout_s)

    def _news(self, saga_id: str, after: bytes, block_ms: int) -> tuple[list[dict[bytes, bytes]], bytes]:
        """The next events that tell of this saga, none if there are none within `block_ms`; the last that was read."""
        deadline = time.monotonic() + block_ms / 1000
        while (left_ms := int((deadline - time.monotonic()) * 1000)) > 0:
            entries = read_events(self._redis, after, left_ms)
            after = entries[-1].id if entries else after
            if news := [entry.fields for entry in entries if entry.fields.get(b"saga_id") == saga_id.encode()]:
                return news, after
        return [], after


def _check_same(state: SagaState | None, begin: Begin) -> None:
    if state is not None and not begun_with(state, begin):
        raise RequestRefused(Code.PRECONDITION_FAILED, conflict(begin.saga_id))


def append_requests(client: "redis.Redis", requests: Sequence[Begin | Intervene]) -> None:
    """Append requests, durable when this returns. To be called again with the same ones where it raised: a
    request that arrived twice is known by its request_id."""
    pipeline = client.pipeline(transaction=False)
    for request in requests:
        fields: dict[Any, Any] = request.fields()
        pipeline.xadd(keys.REQUESTS, fields)
    execute(pipeline)


def last_event(client: "redis.Redis") -> bytes:
    """The id of the newest entry of the events stream, to read on from."""
    newest: Any = client.xrevrange(keys.EVENTS, count=1)
    return bytes(newest[0][0]) if newest else b"0-0"


def read_events(client: "redis.Redis", after: bytes, block_ms: int) -> list[Entry]:
    """The events after one, waiting up to `block_ms` for them."""
    answer: Any = client.xread({keys.EVENTS: after}, count=_EVENTS_AT_ONCE, block=block_ms)
    return [
        Entry(stream=keys.EVENTS, id=entry_id, fields=fields) for _, page in answer or () for entry_id, fields in page
    ]

"""The client: begin sagas, look at them, wait for their end, have them cancelled or go on.

Where the outcome of a saga is what a method is about, it is a value, not an error. What the client asks of the broker,
and makes of its answers, is written as exchanges, which `AsyncSagaClient` shares.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Self

import redis

from sagastream.broker.connection import BLOCK_MS, Broker, broker_of
from sagastream.broker.exchange import run
from sagastream.broker.outage import Outage, is_outage
from sagastream.client import requests
from sagastream.client.listing import Listing, ListStatus
from sagastream.client.requests import Accepted, Refused, SagaRequest, StepRequest, Unsettled
from sagastream.client.waiting import WHO, Outcome, SagaWatcher, Settled, Waiter, check_timeout, completed
from sagastream.core.messages import Begin, Intervene, Verb
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import UnreadableSaga
from sagastream.store.sagas import load
from sagastream.telemetry import Observer, guarded


class SagaClient:
    """The sagas of a store. Close it, or use it as a context manager.

    Threads may share one, and so may a process and those that it forks: each opens connections of its own.
    """

    def __init__(self, broker: Broker | str | None = None, *, observer: Observer | None = None) -> None:
        """`broker`: one that is open, and stays so; or the url of one; by default that of the environment (see Broker).
        `observer`: is told of outages.

        Raises BrokerError as Broker does, TypeError for anything else.
        """
        self._owns_broker = not isinstance(broker, Broker)
        self._broker = broker_of(broker)
        self._redis: redis.Redis = self._broker.client
        self._outage = Outage(self._broker, WHO, threading.Event(), observer=guarded(observer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._owns_broker:
            self._broker.close()

    def begin(self, saga_id: str, steps: Sequence[StepRequest], *, deadline_ms: int | None = None) -> Accepted:
        """Ask for a saga to be run. `steps`: as in docs/sagas.md, each with transaction, service, params.
        `deadline_ms`: how long after its begin it is cancelled.

        Returns as soon as the request is durable; one round trip. Begun again with the same id and steps, nothing is
        done twice.

        Raises:
            MalformedMessage: says what is wrong, and where; nothing was sent.
            RequestRefused: another saga has the id; nothing was sent.
            CorruptSaga: what stands at its key cannot be read; nothing was sent.
            redis.RedisError: the broker is away; whether the request arrived is open, so call again with the
                same id.
        """
        return self.begin_request(requests.to_begin(requests.saga(saga_id, steps, deadline_ms)))

    def begin_request(self, request: Begin) -> Accepted:
        """As `begin`, for a request that was parsed already."""
        (answer,) = run(self._redis, requests.begin([request]))
        return requests.granted(answer)

    def begin_many(self, sagas: Iterable[SagaRequest]) -> list[Accepted | Refused | Unsettled]:
        """Ask for many sagas to be run; a round trip for up to 128 of them.

        The answers are in the order of the sagas, one each, and values: Accepted; Refused, with the reason; Unsettled
        where the broker went away meanwhile, to be begun again under the same id, as often as it takes.

        Raises redis.RedisError where it is no outage but a fault: mend it, then begin all of them again. TypeError for
        one saga, or none, in place of many.
        """
        return run(self._redis, requests.begin_many(sagas))

    def get(self, saga_id: str) -> SagaState | None:
        """The saga as it stands; None: the orchestrator knows no such saga (or has not read its request yet).

        Raises CorruptSaga if what stands at its key cannot be read.
        """
        state = run(self._redis, load([saga_id]))[0][saga_id]
        if isinstance(state, UnreadableSaga):
            raise state
        return state

    def wait(self, saga: Accepted | str, timeout_s: float | None = None, *, check: bool = False) -> SagaState:
        """Wait until the saga has ended, or is parked and waits for a person, and return it as it is then.

        `saga`: what `begin` returned, or an id; one that nobody knows yet is waited for. `timeout_s`: None waits for as
        long as it takes, which is for ever where nobody begins it. `check`: a saga that has not
        completed is an error. While the broker is away the wait goes on, for it asks for nothing.

        Raises:
            SagaAborted, SagaParked: with `check`; with the reason and the step.
            RequestRefused: another saga has the id.
            CorruptSaga: what stands at its key cannot be read.
            TimeoutError: it has not ended in time; it goes on by itself. Says so where there is no such saga yet.
            redis.RedisError: a fault that waiting does not mend.
            TypeError, ValueError: that is nothing to wait for, or no time to wait.
        """
        (outcome,) = self.as_completed([saga], timeout_s)
        state = requests.granted(outcome)
        return completed(state) if check else state

    def as_completed(
        self, sagas: Iterable[Accepted | str], timeout_s: float | None = None
    ) -> Iterator[SagaState | Refused]:
        """Wait for many sagas together; yields each as `wait` returns it, in the order in which they end.

        A Refused stands for a saga of which `wait` would raise its `error`. Raises TimeoutError once the time is up
        that all of them have together; redis.RedisError, TypeError and ValueError as `wait` does.
        """
        check_timeout(timeout_s)
        many = requests.one_by_one(sagas, "ids, or of what begin returned")
        return self._as_completed(SagaWatcher(map(Waiter.for_end_of, many)), timeout_s)

    def _as_completed(self, watcher: SagaWatcher, timeout_s: float | None) -> Iterator[Outcome]:
        yield from self._settled(watcher, timeout_s)
        if watcher:
            assert timeout_s is not None
            raise watcher.timeout_error(timeout_s)

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
            CorruptSaga: what stands at its key cannot be read.
            TimeoutError: no worker has taken it in time; it is in the store, and one will.
            redis.RedisError: the broker is away; whether the request arrived is open.
        """
        check_timeout(timeout_s)
        watcher = SagaWatcher([Waiter(saga_id=request.saga_id, request=request)])
        run(self._redis, watcher.start())
        run(self._redis, requests.append([request]))
        for outcome in self._settled(watcher, timeout_s):
            return requests.granted(outcome)
        assert timeout_s is not None
        raise watcher.timeout_error(timeout_s)

    def list(
        self, status: ListStatus | SagaStatus | None = None, limit: int | None = None
    ) -> Iterator[SagaState | UnreadableSaga]:
        """The sagas of the store: parked ones first, then live ones, then ended ones, the newest first.

        They are read a page at a time, as they are asked for. Parked sagas may be acted on meanwhile, and none is
        missed. A live one that moves meanwhile may come twice or not at all. What cannot be read comes as a CorruptSaga
        that says why, whatever the status.

        Raises ValueError for a status that no saga can have.
        """
        listing = Listing(status, limit)
        pages = iter(lambda: run(self._redis, listing.next_page()), [])
        return chain.from_iterable(pages)

    def _intervene(self, verb: Verb, saga_id: str, reason: str, timeout_s: float | None) -> SagaState:
        return self.intervene(requests.to_intervene(verb, saga_id, reason), timeout_s)

    def _settled(self, watcher: SagaWatcher, timeout_s: float | None) -> Iterator[Outcome]:
        """What settles the waits, as it comes, until none is left or the time is up."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s

        def turn() -> Settled:
            left_ms = (deadline - time.monotonic()) * 1000
            return run(self._redis, watcher.turn(int(min(left_ms, BLOCK_MS))))

        while watcher:
            try:
                settled = self._outage.patiently(turn, until=deadline)
            except redis.RedisError as error:
                if not is_outage(error):
                    raise
                return
            yield from (outcome for _, outcome in settled)
            if not settled and time.monotonic() >= deadline:
                return

"""The client for programs that run in an event loop."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Self, TypeVar, Unpack, overload

import redis
from redis.asyncio import ConnectionPool

from sagastream.broker.connection import BLOCK_MS, Broker, broker_of, connect_async
from sagastream.broker.exchange import Exchange, run_async
from sagastream.broker.failures import is_outage
from sagastream.broker.outage import OutageReport
from sagastream.client import erasing, looking, requests
from sagastream.client.definition import Definition, deployable, deployer, requested, takes_long
from sagastream.client.erasing import Erased
from sagastream.client.listing import Listing, ListStatus, Search, check_status
from sagastream.client.requests import (
    Accepted,
    PauseRequest,
    Refused,
    SagaRequest,
    StepRequest,
    Unsettled,
    WaitRequest,
)
from sagastream.client.waiting import WHO, Outcome, SagaWatcher, Settled, Waiter, check_timeout, completed
from sagastream.codecs.setting import codec_of
from sagastream.core import backoff
from sagastream.core.bulks import USUAL_RATE, Bulk, BulkResult, BulkVerb
from sagastream.core.causes import Cause
from sagastream.core.history_events import HistoryEvent
from sagastream.core.messages import Begin, DeadlineKind, Intervene, ToSaga, Verb
from sagastream.core.pauses import Pause
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.sealing import Codec
from sagastream.errors import BrokerError, UnreadableSaga
from sagastream.store import bulks, definitions, operations, pauses, quarantine
from sagastream.store.definitions import Deployed
from sagastream.store.finding import USUAL, Page, find, opened_page, to_filter
from sagastream.store.keys import StoreKeys
from sagastream.store.layout import Layout
from sagastream.store.operations import Operation
from sagastream.store.pauses import Heard, Written
from sagastream.store.quarantine import Quarantined
from sagastream.telemetry import Observer, guarded

_T = TypeVar("_T")

#: After this time, a task that was cancelled and goes on is cancelled again, in seconds.
_CANCEL_AGAIN_S: Final = 1.0


class AsyncSagaClient:
    """The sagas of a store, for the coroutines of one event loop. Close it, or use it as a context manager.

    Once that loop is closed, another one may use the client. While it is not, every call in another loop raises
    RuntimeError.

    The methods are those of SagaClient, with the same arguments, results and errors. Await them, except `list`, which
    is for `async for`. There is no `as_completed`: use `asyncio.gather`. One task reads the events stream for all
    coroutines that wait. It runs while any of them waits, and for at most half a second after that.
    """

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        observer: Observer | None = None,
        codec: Codec | None = None,
        accept_sealed: bool = False,
    ) -> None:
        """See SagaClient. This blocks if it has to start an embedded server."""
        self._codec = codec_of(codec)
        self._accept_sealed = accept_sealed
        self._owns_broker = not isinstance(broker, Broker)
        self._broker = broker_of(broker)
        self._layout = Layout(self._broker.prefix)
        self._outage = OutageReport(self._broker, WHO, guarded(observer))
        self._loop: asyncio.AbstractEventLoop | None = None  # in which the connections are used
        self._connect()

    def _connect(self) -> None:
        self._pool = connect_async(self._broker.url)
        self._follower = _Follower(self._broker, self._pool, self._outage, self._layout, self._codec)

    def _enter_loop(self) -> None:
        """Before every call: connections and tasks belong to the loop in which they were made."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise RuntimeError("this AsyncSagaClient belongs to another event loop: make a client in each loop")
            self._connect()
        self._loop = loop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. A coroutine that still waits gets a BrokerError."""
        self._enter_loop()
        await self._follower.stop()
        await self._pool.aclose()
        if self._owns_broker:
            await asyncio.to_thread(self._broker.close)

    aclose = close  #: as contextlib.aclosing calls it

    @overload
    async def begin(
        self,
        saga_id: str,
        steps: Sequence[StepRequest | WaitRequest | PauseRequest],
        *,
        deadline_ms: int | None = None,
        deadline: DeadlineKind | None = None,
        input: dict[str, Any] | None = None,
        start_at: datetime | None = None,
        start_at_ms: int | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> Accepted: ...
    @overload
    async def begin(
        self,
        definition: Definition,
        input: Any = None,
        *,
        saga_id: str,
        start_at: datetime | None = None,
        start_at_ms: int | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> Accepted: ...
    async def begin(self, *args: Any, **named: Any) -> Accepted:
        """Begin a saga; awaits until the request is durable. See SagaClient.begin."""
        if takes_long(*args, **named):
            return await self.begin_request(await asyncio.to_thread(requested, *args, **named))
        return await self.begin_request(requested(*args, **named))

    async def begin_request(self, request: Begin) -> Accepted:
        """Begin a saga from a parsed request; awaits until that is durable. See SagaClient.begin_request."""
        sealed = requests.sealed(self._codec, request, accept_sealed=self._accept_sealed)
        (answer,) = await self._run(requests.begin(await self._opened(), [sealed], self._codec))
        return requests.granted(answer)

    async def begin_many(self, sagas: Iterable[SagaRequest]) -> list[Accepted | Refused | Unsettled]:
        """Begin many sagas; awaits until all requests are answered for. See SagaClient.begin_many."""
        beginning = requests.begin_many(self._layout, sagas, self._codec, accept_sealed=self._accept_sealed)
        return await self._run(beginning)

    async def get(self, saga_id: str) -> SagaState | None:
        """Read a saga as it is now; awaits one round trip. See SagaClient.get."""
        return await self._run(looking.state(await self._looked(), saga_id, self._codec))

    async def why(self, saga_id: str) -> tuple[Cause, ...]:
        """Why a saga waits. See SagaClient.why."""
        return await self._run(looking.causes(await self._looked(), saga_id))

    async def history(self, saga_id: str) -> list[HistoryEvent]:
        """What happened to a saga, event by event. See SagaClient.history."""
        return await self._run(looking.events(await self._looked(), saga_id, self._codec))

    async def wait(self, saga: Accepted | str, timeout_s: float | None = None, *, check: bool = False) -> SagaState:
        """Await the end of a saga, or that it is parked. To wait for many sagas, use one task for each. See
        SagaClient.wait."""
        self._enter_loop()
        state = requests.granted(await self._follower.settled(Waiter.for_end_of(saga), timeout_s))
        return completed(state) if check else state

    async def cancel(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        now: bool = False,
        actor: str | None = None,
        parked_at: str | None = None,
    ) -> SagaState:
        """Cancel a saga; awaits until a worker has taken the request. See SagaClient.cancel."""
        request = requests.to_intervene(Verb.CANCEL, saga_id, reason, now=now, actor=actor, parked_at=parked_at)
        return await self.intervene(request, timeout_s)

    async def retry(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> SagaState:
        """Retry a parked saga; awaits until a worker has taken the request. See SagaClient.retry."""
        return await self._settle_parked(
            requests.to_intervene(Verb.RETRY, saga_id, reason, actor=actor, parked_at=parked_at, step=step),
            timeout_s,
        )

    async def skip(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
    ) -> SagaState:
        """Skip what a saga is parked at; awaits until a worker has taken the request. See SagaClient.skip."""
        return await self._settle_parked(
            requests.to_intervene(Verb.SKIP, saga_id, reason, actor=actor, parked_at=parked_at, step=step),
            timeout_s,
        )

    async def abandon(
        self,
        saga_id: str,
        reason: str,
        timeout_s: float | None = None,
        *,
        actor: str | None = None,
        parked_at: str | None = None,
        step: int | str | None = None,
        now: bool = False,
    ) -> SagaState:
        """End a parked saga as it is; awaits until a worker has taken the request. See SagaClient.abandon."""
        return await self._settle_parked(
            requests.to_intervene(Verb.ABANDON, saga_id, reason, actor=actor, parked_at=parked_at, step=step, now=now),
            timeout_s,
        )

    async def signal(
        self,
        saga_id: str,
        name: str,
        payload: Any = None,
        timeout_s: float | None = None,
        *,
        decline: str | None = None,
        actor: str | None = None,
    ) -> SagaState:
        """Signal to a saga; awaits until a worker has taken it. See SagaClient.signal."""
        request = requests.to_signal(saga_id, name, payload, decline=decline, actor=actor)
        return await self.intervene(request, timeout_s)

    async def _settle_parked(self, request: Intervene, timeout_s: float | None) -> SagaState:
        check_timeout(timeout_s)
        asking = requests.for_what_is_parked(await self._opened(), request)
        return await self.intervene(await self._run(asking), timeout_s)

    async def intervene(self, request: ToSaga, timeout_s: float | None = None) -> SagaState:
        """Send an operator's request; awaits until a worker has taken it. See SagaClient.intervene."""
        self._enter_loop()
        request = requests.to_send(self._codec, request, accept_sealed=self._accept_sealed)
        waiter = Waiter(saga_id=request.saga_id, request=request)
        return requests.granted(await self._follower.settled(waiter, timeout_s))

    async def pause(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Pause a service, or one of its commands. See SagaClient.pause."""
        keys = await self._opened()
        return await self._heard(keys, await self._run(pauses.pause(keys, service, command, reason, actor)))

    async def resume(self, service: str, command: str | None = None, *, reason: str, actor: str | None = None) -> Heard:
        """Resume what was paused by this very name. See SagaClient.resume."""
        keys = await self._opened()
        return await self._heard(keys, await self._run(pauses.resume(keys, service, command, reason, actor)))

    async def paused(self) -> Sequence[Pause]:
        """All that is paused, by name."""
        return await self._run(pauses.read(await self._looked()))

    async def _heard(self, keys: StoreKeys, written: Written) -> Heard:
        until = time.monotonic() + pauses.WAIT_S
        while (heard := await self._run(pauses.heard(keys, written))).late and time.monotonic() < until:
            await asyncio.sleep(pauses.LOOK_EVERY_S)
        return heard

    async def operations(self, limit: int = 50) -> Sequence[Operation]:
        """What people did that no saga tells of. See SagaClient.operations."""
        return await self._run(operations.newest(await self._looked(), limit))

    async def quarantined(self, limit: int = 50) -> Sequence[Quarantined]:
        """The messages that were set aside. See SagaClient.quarantined."""
        return await self._run(quarantine.newest(await self._looked(), limit))

    async def replay_quarantined(
        self, entry_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> Quarantined:
        """Put a message that was set aside back. See SagaClient.replay_quarantined."""
        return await self._run(quarantine.replay(await self._opened(), entry_id, actor=actor, reason=reason))

    async def drop_quarantined(
        self, entry_id: str, *, reason: str | None = None, actor: str | None = None
    ) -> Quarantined:
        """Delete a message that was set aside. See SagaClient.drop_quarantined."""
        return await self._run(quarantine.drop(await self._opened(), entry_id, actor=actor, reason=reason))

    async def deploy(self, definition: Definition, *, actor: str | None = None) -> int | None:
        """Keep this version of a definition in the store, and make it the current one. See SagaClient.deploy."""
        parsed = await asyncio.to_thread(deployable, definition)  # its schema may have a costly example
        return await self._run(definitions.deploy(await self._opened(), parsed, deployer(actor)))

    async def definition(self, name: str, version: int | None = None) -> Definition:
        """A definition of the store. See SagaClient.definition."""
        return Definition.of(await self._run(definitions.load(await self._looked(), name, version)))

    async def definitions(self) -> Sequence[Deployed]:
        """All definitions of the store. See SagaClient.definitions."""
        return await self._run(definitions.listed(await self._looked()))

    async def erase(self, saga_id: str, reason: str, *, actor: str | None = None) -> Erased:
        """Erase what the store knows of a saga that has ended. See SagaClient.erase."""
        return erasing.granted(await self.erase_many([saga_id], reason, actor=actor))

    async def erase_many(self, saga_ids: Collection[str], reason: str, *, actor: str | None = None) -> Erased:
        """Erase what the store knows of sagas that have ended. See SagaClient.erase_many."""
        return await self._run(erasing.erase(await self._looked(), saga_ids, reason, actor))

    async def find(
        self,
        *,
        limit: int = USUAL,
        cursor: str | None = None,
        **search: Unpack[Search],
    ) -> Page:
        """One page of the sagas that are looked for. See SagaClient.find."""
        return opened_page(self._codec, await self._run(find(await self._looked(), to_filter(**search), limit, cursor)))

    def list(
        self, status: ListStatus | SagaStatus | None = None, limit: int | None = None
    ) -> AsyncIterator[SagaState | UnreadableSaga]:
        """The sagas of the store. Use it with `async for`, and without `await`; each page is awaited when it is needed.
        See SagaClient.list."""
        check_status(status)
        return self._listed(status, limit)

    async def _listed(
        self, status: ListStatus | SagaStatus | None, limit: int | None
    ) -> AsyncIterator[SagaState | UnreadableSaga]:
        listing = Listing(await self._looked(), status, limit)
        while page := await self._run(listing.next_page()):
            for found in page:
                yield requests.opened(self._codec, found)

    async def begin_bulk(
        self,
        verb: BulkVerb | Verb,
        reason: str,
        *,
        actor: str | None = None,
        rate: int = USUAL_RATE,
        now: bool = False,
        **search: Unpack[Search],
    ) -> Bulk:
        """Have workers act on all sagas that `find` would find now. See SagaClient.begin_bulk."""
        asking = bulks.begin(
            await self._opened(), verb, to_filter(**search), reason=reason, actor=actor, rate=rate, now=now
        )
        return await self._run(asking)

    async def bulks(self) -> Sequence[Bulk]:
        """The bulks of the store, those first that began last."""
        return await self._run(bulks.listed(await self._looked()))

    async def bulk(self, bulk_id: str) -> Bulk:
        """A bulk, and how far it has come. Raises RequestRefused if there is none."""
        return await self._run(bulks.load(await self._looked(), bulk_id))

    async def bulk_results(self, bulk_id: str) -> Sequence[BulkResult]:
        """What has come of each request of a bulk. See SagaClient.bulk_results."""
        return await self._run(bulks.results(await self._looked(), bulk_id))

    async def pause_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Pause a bulk. See SagaClient.pause_bulk."""
        return await self._turned(bulk_id, "pause", reason, actor)

    async def resume_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """Let a paused bulk go on where it was. See `pause_bulk`."""
        return await self._turned(bulk_id, "resume", reason, actor)

    async def stop_bulk(self, bulk_id: str, *, reason: str | None = None, actor: str | None = None) -> Bulk:
        """End a bulk for ever: no more sagas are asked. See `pause_bulk`."""
        return await self._turned(bulk_id, "stop", reason, actor)

    async def _turned(self, bulk_id: str, verb: str, reason: str | None, actor: str | None) -> Bulk:
        return await self._run(bulks.turn(await self._opened(), bulk_id, verb, actor=actor, reason=reason))

    async def _opened(self) -> StoreKeys:
        return await self._run(self._layout.opened())

    async def _looked(self) -> StoreKeys:
        return await self._run(self._layout.looked())

    async def _run(self, exchange: Exchange[_T]) -> _T:
        self._enter_loop()
        return await run_async(self._pool, exchange)


class _Follower:
    """The one reader of the events stream, for all coroutines that wait."""

    def __init__(
        self, broker: Broker, pool: ConnectionPool, outage: OutageReport, layout: Layout, codec: Codec | None
    ) -> None:
        self._broker = broker
        self._pool = pool
        self._outage = outage
        self._layout = layout
        self._codec = codec
        self._watcher = SagaWatcher(layout, codec=codec)
        self._futures: dict[Waiter, asyncio.Future[Outcome]] = {}
        self._task: asyncio.Task[None] | None = None

    async def settled(self, waiter: Waiter, timeout_s: float | None) -> Outcome:
        """What settles the waiter. If it has an operator's request, sends that first."""
        check_timeout(timeout_s)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._futures[waiter] = future
        if self._task is None or self._task.done():
            self._watcher = SagaWatcher(
                self._layout, codec=self._codec
            )  # the last one may be far behind in the events stream
            self._watcher.add(waiter)
            self._task = asyncio.create_task(self._follow(), name="sagastream events")
        else:
            self._watcher.add(waiter)
        try:
            if isinstance(waiter.request, ToSaga):
                await run_async(self._pool, self._watcher.start())
                keys = await run_async(self._pool, self._layout.opened())
                await run_async(self._pool, requests.append(keys, [waiter.request]))
            elif timeout_s is not None and timeout_s <= 0:
                await self._look()  # the question is whether it has ended by now
            async with asyncio.timeout(timeout_s):
                # The reader may be waiting for events. If it is not in place, it looks at all sagas first anyway.
                if self._watcher.in_place and not future.done():
                    await self._look()
                return await future
        except TimeoutError:
            assert timeout_s is not None
            raise await run_async(self._pool, self._watcher.timeout_error(timeout_s, waiter)) from None
        finally:
            del self._futures[waiter]
            self._watcher.discard(waiter)

    async def stop(self) -> None:
        while self._task is not None and not self._task.done():
            self._task.cancel()
            # While a connection is made, what is below may take a cancellation for a time-out, and go on.
            await asyncio.wait([self._task], timeout=_CANCEL_AGAIN_S)
        self._fail(BrokerError("the client was closed while this was waited for"))

    async def _look(self) -> None:
        await asyncio.sleep(0)  # coroutines that begin to wait at the same moment share one round trip
        try:
            self._settle(await run_async(self._pool, self._watcher.look()))
        except redis.RedisError:
            return  # the reader gets the same error, and handles it

    async def _follow(self) -> None:
        tries = 0
        while self._watcher:
            try:
                self._settle(await run_async(self._pool, self._watcher.turn(BLOCK_MS)))
            except Exception as error:  # noqa: BLE001 - handed to those who wait
                if not (isinstance(error, redis.RedisError) and is_outage(error)):
                    self._fail(error)
                    return
                tries += 1
                if tries == 1:
                    self._outage.began(error)
                await asyncio.sleep(backoff.delay(tries))
                await self._restore()
            else:
                if tries:
                    self._outage.ended()
                tries = 0

    async def _restore(self) -> None:
        if self._broker.embedded is not None:
            with contextlib.suppress(BrokerError):  # it may start at the next try
                await asyncio.to_thread(self._broker.restore)

    def _settle(self, settled: Settled) -> None:
        for waiter, outcome in settled:
            future = self._futures.get(waiter)  # None: it has stopped waiting meanwhile
            if future is not None and not future.done():
                future.set_result(outcome)

    def _fail(self, error: Exception) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)

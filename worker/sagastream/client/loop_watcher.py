"""A watcher that all coroutines of an event loop share."""

import asyncio
import contextlib
from typing import Final

import redis
from redis.asyncio import ConnectionPool

from sagastream.broker.connection import BLOCK_MS, Broker
from sagastream.broker.exchange import run_async
from sagastream.broker.failures import NodeRefuses, is_outage
from sagastream.broker.outage import OutageReport
from sagastream.client.requests import append
from sagastream.client.waiting import Outcome, Settled, Waiter, check_timeout
from sagastream.client.watcher import SagaWatcher
from sagastream.core import backoff
from sagastream.core.messages import ToSaga
from sagastream.core.sealing import Codec
from sagastream.errors import BrokerError
from sagastream.rq_steps import asking
from sagastream.store.layout import Layout

#: After this time, a task that was cancelled and goes on is cancelled again, in seconds.
_CANCEL_AGAIN_S: Final = 1.0


class LoopWatcher:
    """The one reader of the events stream, for all coroutines that wait."""

    def __init__(
        self, broker: Broker, pool: ConnectionPool, outage: OutageReport, layout: Layout, codec: Codec | None
    ) -> None:
        self._broker = broker
        self._pool = pool
        self._outage = outage
        self._layout = layout
        self._codec = codec
        self._watcher = SagaWatcher(layout, in_all=True, codec=codec)
        self._futures: dict[Waiter, asyncio.Future[Outcome]] = {}
        self._task: asyncio.Task[None] | None = None

    async def settled(self, waiter: Waiter, timeout_s: float | None) -> Outcome:
        """What settles the waiter. If it has an operator's request, sends that first."""
        check_timeout(timeout_s)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._futures[waiter] = future
        if self._task is None or self._task.done():
            # The last one may be far behind in the events.
            self._watcher = SagaWatcher(self._layout, in_all=True, codec=self._codec)
            self._watcher.add(waiter)
            self._task = asyncio.create_task(self._follow(), name="sagastream events")
        else:
            self._watcher.add(waiter)
        try:
            if isinstance(waiter.request, ToSaga):
                await run_async(self._pool, self._watcher.start(waiter.saga_id))
                keys = await run_async(self._pool, self._layout.opened())
                await run_async(self._pool, append(keys, [waiter.request]))
            elif timeout_s is not None and timeout_s <= 0:
                await self._look()  # the question is whether it has ended by now
            async with asyncio.timeout(timeout_s):
                # The reader may be waiting for events. If it is not in place, it looks at all sagas first anyway.
                if self._watcher.is_in_place(waiter.saga_id) and not future.done():
                    await self._look()
                return await future
        except TimeoutError:
            assert timeout_s is not None
            raise await asking.run_async(self._pool, self._watcher.timeout_error(timeout_s, waiter)) from None
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
                if not (isinstance(error, redis.RedisError) and is_outage(error)) or isinstance(error, NodeRefuses):
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

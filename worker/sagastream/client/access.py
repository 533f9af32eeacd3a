"""What a client needs of a store, whatever it does there: connections, exchanges, waits."""

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from typing import Final, Self, TypeVar

import redis

from sagastream.broker.connection import BLOCK_MS, Broker, broker_of, connect_async
from sagastream.broker.exchange import Exchange
from sagastream.broker.failures import NodeRefuses, is_outage
from sagastream.broker.nodes import takes_time_at
from sagastream.broker.outage import Outage, OutageReport
from sagastream.client.loop_watcher import LoopWatcher
from sagastream.client.waiting import Outcome, Settled
from sagastream.client.watcher import SagaWatcher
from sagastream.codecs.setting import codec_of
from sagastream.core.sealing import Codec
from sagastream.rq_steps.asking import run, run_async
from sagastream.store.keys import StoreKeys
from sagastream.store.layout import Layout
from sagastream.telemetry import Observer, guarded

_T = TypeVar("_T")

#: The name of a client in the log.
_WHO: Final = "sagastream client"


class Access:
    """For callers that block."""

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        observer: Observer | None = None,
        codec: Codec | None = None,
        accept_sealed: bool = False,
    ) -> None:
        """
        Args:
            broker: an open Broker, which the client does not close; or the url of one, as for Broker. By default the
                broker that the environment names, see Broker.
            observer: its methods for outages are called.
            codec: seals params, and opens what sagas hold. By default the one that the environment names, if it names
                one. Without a codec, what looks like a sealed value is refused.
            accept_sealed: without a codec, send what looks sealed as it is, since a program of yours has sealed it. Do
                not set this if anything in inputs, params or payloads comes from strangers.

        Raises BrokerError as Broker does, SettingsError if the environment names a codec that cannot be used, and
        TypeError if `broker` or `codec` is anything else.
        """
        self._codec = codec_of(codec)
        self._accept_sealed = accept_sealed
        self._owns_broker = not isinstance(broker, Broker)
        self._broker = broker_of(broker)
        self._redis: redis.Redis = self._broker.client
        self._layout = Layout(self._broker.prefix, on_known=self._broker.takes_time_at)
        self._outage = Outage(self._broker, _WHO, threading.Event(), observer=guarded(observer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. A Broker that was passed in stays open."""
        if self._owns_broker:
            self._broker.close()

    def _run(self, exchange: Exchange[_T]) -> _T:
        return run(self._redis, exchange)

    def _opened(self) -> StoreKeys:
        return self._run(self._layout.opened())

    def _looked(self) -> StoreKeys:
        return self._run(self._layout.looked())

    def _settled(self, watcher: SagaWatcher, timeout_s: float | None) -> Iterator[Outcome]:
        """The outcomes of the waiters, one by one, until none is left or the time is up."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s

        def turn() -> Settled:
            left_ms = (deadline - time.monotonic()) * 1000
            return self._run(watcher.turn(int(min(left_ms, BLOCK_MS))))

        while watcher:
            try:
                settled = self._outage.patiently(turn, until=deadline)
            except redis.RedisError as error:
                if not is_outage(error) or isinstance(error, NodeRefuses):
                    raise
                return
            yield from (outcome for _, outcome in settled)
            if not settled and time.monotonic() >= deadline:
                return


class AsyncAccess:
    """For the coroutines of one event loop."""

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
        self._outage = OutageReport(self._broker, _WHO, guarded(observer))
        self._loop: asyncio.AbstractEventLoop | None = None  # in which the connections are used
        self._connect()

    def _connect(self) -> None:
        self._pool = connect_async(self._broker.url)
        self._layout_of_loop = Layout(self._broker.prefix, on_known=self._takes_time_at)
        self._watcher = LoopWatcher(self._broker, self._pool, self._outage, self._layout_of_loop, self._codec)

    def _takes_time_at(self, key: str) -> None:
        takes_time_at(self._pool.connection_kwargs, key)

    @property
    def _layout(self) -> Layout:
        """How the store is laid out, as the connections of the loop in which this runs have found it."""
        self._enter_loop()
        return self._layout_of_loop

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
        await self._watcher.stop()
        await self._pool.aclose()
        if self._owns_broker:
            await asyncio.to_thread(self._broker.close)

    aclose = close  #: as contextlib.aclosing calls it

    async def _opened(self) -> StoreKeys:
        return await self._run(self._layout.opened())

    async def _looked(self) -> StoreKeys:
        return await self._run(self._layout.looked())

    async def _run(self, exchange: Exchange[_T]) -> _T:
        self._enter_loop()
        return await run_async(self._pool, exchange)

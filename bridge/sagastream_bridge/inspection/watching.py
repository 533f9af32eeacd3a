"""Watches a saga for a person: waits until it is another than the one that was seen."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.outage import Outage
from sagastream.client.waiting import Outcome, Settled, Waiter
from sagastream.client.watcher import SagaWatcher
from sagastream.core.saga import Found, SagaState
from sagastream.core.sealing import Codec
from sagastream.store.layout import Layout

#: How long one reading waits for events, in milliseconds.
_BLOCK_MS: Final = 500

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ForChange(Waiter):
    """Waits until a saga has changed."""

    seen: SagaState

    def outcome(self, found: Found, codec: Codec | None = None) -> Outcome | None:
        if not isinstance(found, SagaState):
            return super(_ForChange, self).outcome(found, codec)
        seen = self.seen
        return None if (found.version, found.updated_ms) == (seen.version, seen.updated_ms) else found


class Watch:
    """Looks at a saga again and again. While the broker is away, it waits."""

    def __init__(self, broker: Broker, who: str) -> None:
        """`who`: the name of the command in the log."""
        self._client = broker.client
        self._outage = Outage(broker, who, threading.Event())
        self._watcher = SagaWatcher(Layout(broker.prefix, on_known=broker.takes_time_at))

    def look(self, read: Callable[[], _T]) -> _T:
        """What is read from the store, however long the broker is away."""
        return self._outage.patiently(read)

    def wait(self, seen: SagaState, at_most_s: float) -> None:
        """Until the saga is another than the one that was seen, or the time is up. An event tells that it has ended or
        is parked; its other changes are noticed within a second or two."""
        waiter = _ForChange(saga_id=seen.saga_id, seen=seen)
        self._watcher.add(waiter)
        until = time.monotonic() + at_most_s
        while (left_s := until - time.monotonic()) > 0:
            block_ms = min(_BLOCK_MS, 1 + int(left_s * 1000))
            if self._outage.patiently(partial(self._turn, block_ms)):
                return
        self._watcher.discard(waiter)

    def _turn(self, block_ms: int) -> Settled:
        return run(self._client, self._watcher.turn(block_ms))

"""Who waits for which saga."""

import threading
import time
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sagastream.core.messages import Begin, Intervene
from sagastream_bridge.stdin.lines import Caller

#: How soon a waiting is given up that is to stop, in seconds.
_STOP_CHECK_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Somebody waits: for what becomes of a request or, without one, for the end of a saga."""

    caller: Caller
    saga_id: str
    request: Begin | Intervene | None = None

    @property
    def begin(self) -> Begin | None:
        """The request, if it is one to begin the saga: what becomes of that is its end."""
        return self.request if isinstance(self.request, Begin) else None


class Watches:
    """All that is waited for; shared between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._by_saga: dict[str, list[Watch]] = {}
        self._echoed: set[str] = set()

    def add(self, watch: Watch) -> None:
        with self._changed:
            self._by_saga.setdefault(watch.saga_id, []).append(watch)
            if watch.begin is not None and watch.begin.echo:
                self._echoed.add(watch.saga_id)

    def take(self, saga_id: str) -> list[Watch]:
        """All who wait for the end of this saga; they are answered now, and wait no more."""
        with self._changed:
            watches = self._by_saga.pop(saga_id, [])
            if asked := [watch for watch in watches if isinstance(watch.request, Intervene)]:
                self._by_saga[saga_id] = asked
            self._changed.notify_all()
            return [watch for watch in watches if watch not in asked]

    def take_one(self, watch: Watch) -> bool:
        """Whether this one still waits; it waits no more."""
        with self._changed:
            watches = self._by_saga.get(watch.saga_id, [])
            if watch not in watches:
                return False
            watches.remove(watch)
            if not watches:
                del self._by_saga[watch.saga_id]
            self._changed.notify_all()
            return True

    def of(self, saga_id: str) -> list[Watch]:
        """All who wait for this saga, and go on waiting."""
        with self._changed:
            return list(self._by_saga.get(saga_id, ()))

    def begin_of(self, saga_id: str) -> Begin | None:
        """The saga_begin that somebody sent and that has not led to an end yet."""
        return next((watch.begin for watch in self.of(saga_id) if watch.begin is not None), None)

    def echoes(self, saga_id: str) -> bool:
        """Whether the messages of the saga are to be told."""
        with self._changed:
            return saga_id in self._echoed

    def end_echo(self, saga_id: str) -> None:
        """The last message of the saga was told."""
        with self._changed:
            self._echoed.discard(saga_id)

    def some(self, count: int) -> list[str]:
        """Up to `count` of the sagas that are waited for; others the next time."""
        with self._changed:
            saga_ids = list(islice(self._by_saga, count))
            for saga_id in saga_ids:
                self._by_saga[saga_id] = self._by_saga.pop(saga_id)
            return saga_ids

    def wait_until_empty(self, timeout_s: float, stop: threading.Event) -> list[str]:
        """Wait until nobody waits any more, at the most this long and until `stop`; the sagas still waited for."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._by_saga and not stop.is_set() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, _STOP_CHECK_S))
            return list(self._by_saga)

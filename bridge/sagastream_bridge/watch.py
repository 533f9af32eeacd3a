"""Who waits for the end of which saga."""

import threading
import time
from dataclasses import dataclass

from sagastream.messages import Begin
from sagastream_bridge.lines import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Somebody waits for the end of a saga: because of having begun it, or having asked for its end."""

    caller: Caller
    saga_id: str
    begin: Begin | None = None


class Watches:
    """All that is waited for; shared between threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._by_saga: dict[str, list[Watch]] = {}

    def add(self, watch: Watch) -> None:
        with self._changed:
            self._by_saga.setdefault(watch.saga_id, []).append(watch)

    def take(self, saga_id: str) -> list[Watch]:
        """All who wait for this saga; they are answered now, and wait no more."""
        with self._changed:
            watches = self._by_saga.pop(saga_id, [])
            self._changed.notify_all()
            return watches

    def take_request(self, request_id: str) -> Watch | None:
        """The one whose saga_begin had this request id."""
        with self._changed:
            for saga_id, watches in self._by_saga.items():
                for watch in watches:
                    if watch.begin is not None and watch.begin.request_id == request_id:
                        watches.remove(watch)
                        if not watches:
                            del self._by_saga[saga_id]
                        self._changed.notify_all()
                        return watch
        return None

    def has(self, saga_id: str) -> bool:
        with self._changed:
            return saga_id in self._by_saga

    def begin_of(self, saga_id: str) -> Begin | None:
        """The saga_begin that somebody sent and that has not led to an end yet."""
        with self._changed:
            begins = [watch.begin for watch in self._by_saga.get(saga_id, []) if watch.begin is not None]
            return begins[0] if begins else None

    def saga_ids(self) -> list[str]:
        with self._changed:
            return list(self._by_saga)

    def wait_until_empty(self, timeout_s: float) -> list[str]:
        """Wait until nobody waits any more, at the most this long; the sagas that are still waited for."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._by_saga and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return list(self._by_saga)

"""Whether the broker is away, as a page or the feed has found: so not every page has to find it out by waiting."""

import threading
import time
from collections.abc import Callable
from typing import Final

import redis

from sagastream.broker.failures import NodeAway, is_outage

#: If no feed asks whether the broker is back, how often a page tries to read all the same, in seconds. Whoever asks for
#: it waits as long as the broker may take to answer, so this is seldom.
_TRIES_EVERY_S: Final = 4.0


def is_away(error: BaseException) -> bool:
    """Whether the broker could not be asked, or has not answered."""
    return isinstance(error, redis.ConnectionError | redis.TimeoutError) and is_outage(error)


class Outage:
    """What is known of the broker. All threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: redis.RedisError | None = None
        self._next_try = 0.0
        #: Whether somebody asks meanwhile whether the broker is back, so that no page has to.
        self.is_watched: Callable[[], bool] = lambda: False

    def found(self, error: Exception) -> None:
        """Reading has failed. It is an outage only if the broker is away; a node of a cluster that is away keeps nobody
        from reading what the others have."""
        if isinstance(error, redis.RedisError) and is_away(error) and not isinstance(error, NodeAway):
            with self._lock:
                if self._error is None:
                    self._next_try = time.monotonic() + _TRIES_EVERY_S
                self._error = error

    def over(self) -> bool:
        """The broker has answered. Returns whether it was away."""
        with self._lock:
            was_away, self._error = self._error is not None, None
        return was_away

    def known(self) -> redis.RedisError | None:
        """Why a page need not read; None: it should, since the broker answers or it is time for a try."""
        with self._lock:
            if self._error is None or self.is_watched() or time.monotonic() < self._next_try:
                return self._error
            self._next_try = time.monotonic() + _TRIES_EVERY_S
            return None

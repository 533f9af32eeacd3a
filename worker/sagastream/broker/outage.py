"""What an outage of the broker is, and how it is waited out."""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import redis

from sagastream.broker.connection import Broker
from sagastream.core import backoff
from sagastream.errors import BrokerError
from sagastream.telemetry import Log, Observer

_T = TypeVar("_T")

#: Errors that pass: the server is gone, loads, fails over, is full …
_AWAY: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
#: … cannot write to its disk, has no replicas, runs a long script; redis-py has no classes for these.
_PASSING: Final = ("MISCONF", "NOREPLICAS", "BUSY ")


def is_outage(error: redis.RedisError) -> bool:
    """Whether the broker is away for a while: such an error is waited out, any other is a fault."""
    if isinstance(error, redis.AuthenticationError):
        return False
    return isinstance(error, _AWAY) or (isinstance(error, redis.ResponseError) and str(error).startswith(_PASSING))


class OutageReport:
    """Tells the log and the observer that an outage has begun, and that it is over.

    Both are warnings: who reads nothing below sees the second one too.
    """

    def __init__(self, who: str, observer: Observer | None) -> None:
        """`who`: the name of the process, as its log records have it."""
        self.log = Log("broker", who)
        self._observer = observer
        self._since = 0.0  # by time.monotonic

    def began(self, error: redis.RedisError) -> None:
        self._since = time.monotonic()
        self.log.warning(f"the broker is away ({error}); waiting, nothing is lost")
        if self._observer is not None:
            self._observer.outage_began(error=error)

    def ended(self) -> None:
        self.log.warning("the broker is back")
        if self._observer is not None:
            self._observer.outage_ended(duration_s=time.monotonic() - self._since)


class Outage:
    """Waits while the broker is away, and reports it: once when it goes, once when it is back.

    The threads of a process share one, so that the process reports it once; each is away and back by itself.
    """

    def __init__(self, broker: Broker, who: str, stop: threading.Event, *, observer: Observer | None = None) -> None:
        """`who`: the name of the process, as its log records have it."""
        self._broker = broker
        self._report = OutageReport(who, observer)
        self._stop = stop
        self._lock = threading.Lock()
        self._tries: dict[int, int] = {}  # by thread, of those that cannot reach the broker
        self._said = ""

    def keep(self, turn: Callable[[], object], recover: Callable[[], None]) -> None:
        """Call `turn` again and again until the process is to stop; after each outage call `recover` first."""
        interrupted = False
        while not self._stop.is_set():
            try:
                if interrupted:
                    recover()
                    interrupted = False
                turn()
                self._succeeded()
            except redis.RedisError as error:
                self.wait(error)
                interrupted = True

    def patiently(self, call: Callable[[], _T], *, until: float = math.inf) -> _T:
        """The answer of `call`, however long the broker is away. It may be called twice, and must allow for it.

        Raises redis.RedisError if the process is to stop, or the monotonic clock shows `until`, before the broker is
        back.
        """
        while True:
            try:
                answer = call()
            except redis.RedisError as error:
                self.wait(error, at_most_s=until - time.monotonic())
                if self._stop.is_set() or time.monotonic() >= until:
                    raise
            else:
                self._succeeded()
                return answer

    def once(self, call: Callable[[], object]) -> None:
        """Call, and let it be if the broker is away: for what is only tidy."""
        with contextlib.suppress(redis.RedisError):
            call()

    def wait(self, error: redis.RedisError, *, at_most_s: float = math.inf) -> None:
        """After a failed call: wait until it may be tried again. Raises the error if it is not an outage."""
        if not is_outage(error):
            raise error
        me = threading.get_ident()
        with self._lock:
            tries = self._tries[me] = self._tries.get(me, 0) + 1
            is_news = tries == 1 and len(self._tries) == 1
        if is_news:
            self._report.began(error)
        self._stop.wait(max(0.0, min(backoff.delay(tries), at_most_s)))
        if not self._stop.is_set():
            self.restore()

    def restore(self) -> None:
        """Bring an embedded server back that has gone. One that does not start is reported, and tried again later:
        its disk may be full for a while."""
        try:
            self._broker.restore()
        except BrokerError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._report.log.warning(self._said)

    def _succeeded(self) -> None:
        if not self._tries:
            return
        with self._lock:
            is_news = self._tries.pop(threading.get_ident(), None) is not None and not self._tries
        if is_news:
            self._said = ""
            self._report.ended()

"""How a process waits until an outage of the broker is over."""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import redis

from sagastream.broker import wire
from sagastream.broker.embedded import EmbeddedServer
from sagastream.broker.failures import (
    THE_BROKER,
    Called,
    NodeRefuses,
    is_exhausted,
    is_outage,
    is_silent,
    no_tls,
    takes_no_writes,
    told,
)
from sagastream.broker.partial import passes_over
from sagastream.core import backoff
from sagastream.errors import BrokerError
from sagastream.telemetry import Log, Observer

_T = TypeVar("_T")

#: How often the same is said of an embedded server that does not start, in seconds.
_SAY_AGAIN_S: Final = 60.0


class Waited(Protocol):
    """What is known of a server that is waited for. A Broker is one."""

    client: "redis.Redis"
    lost_by_crash: str | None
    embedded: EmbeddedServer | None

    def restore(self) -> None:
        """See Broker."""


class OutageReport:
    """Tells the log and the observer that an outage has begun, and that it is over.

    Both are warnings: a person who reads only warnings must see the second one too.
    """

    def __init__(self, broker: Waited, who: str, observer: Observer | None, *, called: Called = THE_BROKER) -> None:
        """`who`: the name of the process, as its log records have it. `called`: what the server is called."""
        self.log = Log("broker", who)
        self._broker = broker
        self._called = called
        self._observer = observer
        self._since = 0.0  # by time.monotonic
        self._over = ""  # what is said once it is over

    def began(self, error: redis.RedisError) -> None:
        self._since = time.monotonic()
        is_away = is_outage(error) and not isinstance(error, NodeRefuses)
        self._over = f"{self._called.name} is back" if is_away else "goes on: nothing refuses that any more"
        # Whether anything is lost, only the broker knows. What its crash would take is known to some processes.
        lost = self._broker.lost_by_crash
        if is_exhausted(error):
            self.log.warning(f"a stream takes no more entries ({error}); waiting. sagastream doctor --repair fixes it")
        elif is_silent(error):  # it names the node; the others are there
            self.log.warning(f"{error}; waiting")
            self._over = "goes on: the cluster has again what was needed"
        elif takes_no_writes(error) or not is_away:
            self.log.warning(f"{told(error, self._called)}; waiting")
        else:
            self.log.warning(
                f"{self._called.name} is away ({error}{no_tls(error)}); waiting" + (f". Its {lost}" if lost else "")
            )
        if self._observer is not None:
            self._observer.outage_began(error=error)

    def ended(self) -> None:
        self.log.warning(self._over)
        if self._observer is not None:
            self._observer.outage_ended(duration_s=time.monotonic() - self._since)


class Outage:
    """Waits while the broker is away, and reports it: once when it goes, once when it is back.

    The threads of a process share one, so that the process reports an outage once. It is over when the last of the
    threads that met it has reached the broker again.
    """

    def __init__(
        self,
        broker: Waited,
        who: str,
        stop: threading.Event,
        *,
        observer: Observer | None = None,
        called: Called = THE_BROKER,
        has_worked: bool = False,
    ) -> None:
        """
        Args:
            who: the name of the process, as its log records have it.
            called: what the server is called.
            has_worked: whether it is known that this process can work there. If so, it also waits if a single node
                refuses something, or a key is damaged.
        """
        self._broker = broker
        self._report = OutageReport(broker, who, observer, called=called)
        self._stop = stop
        self._lock = threading.Lock()
        self._has_worked = has_worked
        self._tries: dict[int, int] = {}  # by thread, of those that cannot reach the broker
        self._said = ""
        self._said_at = 0.0

    def keep(self, turn: Callable[[], object], recover: Callable[[], None]) -> None:
        """Call `turn` again and again until the process has to stop. After each outage, call `recover` first."""
        interrupted = False
        while not self._stop.is_set():
            try:
                if interrupted:
                    recover()
                    interrupted = False
                turn()
                self._has_worked = True
                self._succeeded()
            except redis.RedisError as error:
                self.wait(error)
                interrupted = True

    def patiently(self, call: Callable[[], _T], *, until: float = math.inf) -> _T:
        """What `call` returns, however long the broker is away. `call` must allow for being called twice.

        Raises redis.RedisError if the process has to stop before the broker is back, or the monotonic clock shows
        `until`.
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
        """Call, and do without if the broker fails: for what only tidies up."""
        with contextlib.suppress(redis.RedisError):
            call()

    def wait(self, error: redis.RedisError, *, at_most_s: float = math.inf) -> None:
        """After a failed call: wait until the next try, and forget the connections, so that the address is looked up
        again. Raises the error if it is not an outage. If one node refuses something, or a key is damaged, only a
        process that has already worked waits. All others get the error at once."""
        if isinstance(error, NodeRefuses) or not is_outage(error):
            is_part = isinstance(error, NodeRefuses) or passes_over(self._broker.client, error, or_damaged=True)
            if not (self._has_worked and is_part):
                raise error
        wire.close_idle(self._broker.client)
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
        """Start an embedded server again that has died. If it does not start, report that, and try again later: its
        disk may be full for a while."""
        try:
            self._broker.restore()
            server = self._broker.embedded
            if server is not None and server.died_with is not None:
                self._say(f"the embedded Valkey stopped with the words: {server.died_with}; it was started again")
        except BrokerError as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        """Once a minute, or if it is something else than before."""
        if text != self._said or time.monotonic() - self._said_at > _SAY_AGAIN_S:
            self._said, self._said_at = text, time.monotonic()
            self._report.log.warning(text)

    def _succeeded(self) -> None:
        if not self._tries:
            return
        with self._lock:
            is_news = self._tries.pop(threading.get_ident(), None) is not None and not self._tries
        if is_news:
            self._report.ended()

"""The thread of a service's process that never calls a handler: it does what must be done while handlers run."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import redis

from sagastream.broker.failures import is_outage
from sagastream.core import holding_rules
from sagastream.health import HealthFile
from sagastream.service.executor import Executor
from sagastream.service.handing_over import HandingOver
from sagastream.service.hangs import Hangs
from sagastream.service.in_flight import Held, InFlight
from sagastream.service.inbox import CommandInbox

#: How long a finished answer may wait for others to be sent with it, in seconds.
LINGER_S: Final = 0.02
#: How often the thread looks, in seconds; or four times a lease, if that is more often.
_LOOK_EVERY_S: Final = 0.5
#: After how long without a reading the process shows that it is alive, in seconds.
_SILENCE_S: Final = 1.0


class Maintenance:
    """Renews the leases on what its process holds, and hands back what waits for long; sends answers that linger; shows
    that the process is alive; looks at handlers that hang; and ends the process if its handlers do not end."""

    def __init__(
        self,
        inbox: CommandInbox,
        in_flight: InFlight,
        executor: Executor,
        handing_over: HandingOver,
        hangs: Hangs,
        *,
        stop: threading.Event,
        lease_ms: int,
        grace_s: float,
        health: HealthFile | None,
        chores: Sequence[Callable[[], None]],
        fail: Callable[[BaseException], None],
        abandon: Callable[[], NoReturn],
    ) -> None:
        """
        Args:
            chores: what else is to be done each time.
            fail: is told of a fault, and has the process stop.
            abandon: ends the process; called if handlers still run `grace_s` after `stop` was set, or if all that still
                run by then should have ended before.
        """
        self._inbox = inbox
        self._in_flight = in_flight
        self._executor = executor
        self._handing_over = handing_over
        self._hangs = hangs
        self._stop = stop
        self._grace_s = grace_s
        self._lease_s = lease_ms / 1000
        self._health = health
        self._chores = chores
        self._fail = fail
        self._abandon = abandon
        self.stopped_s = 0.0  # since when `stop` is known to be set, by time.monotonic; 0: it is not
        self._renew_at_s = 0.0
        self._lingering = threading.Event()
        self._ended = threading.Event()

    def run(self) -> None:
        """Until `end` is called."""
        while not self._ended.is_set():
            if self._lingering.wait(max(LINGER_S, min(_LOOK_EVERY_S, self._lease_s / 4))):
                self._ended.wait(LINGER_S)
                self._lingering.clear()
            try:
                self.turn()
            except Exception as error:  # noqa: BLE001 - told to `fail`
                # The threads that read wait for an outage, and say so. Any other fault ends the process.
                if not (isinstance(error, redis.RedisError) and (is_outage(error) or self._inbox.passes_over(error))):
                    self._fail(error)
            self._look_at_handlers()
            if self._stop.is_set():
                now_s = time.monotonic()
                self.stopped_s = self.stopped_s or now_s
                in_vain = self._hangs.expired is not None and self._hangs.only_hangs(now_s)
                if self._in_flight.running and (in_vain or now_s - self.stopped_s > self._grace_s):
                    self._abandon()

    def lingers(self) -> None:
        """An answer waits while its thread runs the next command: send it soon."""
        if not self._lingering.is_set():
            self._lingering.set()

    def end(self) -> None:
        """Have `run` return."""
        self._ended.set()
        self._lingering.set()

    def turn(self) -> None:
        """All that is to be done now. Raises redis.RedisError."""
        now_s = time.monotonic()
        if self._inbox.outbox.lingers(LINGER_S):
            self._executor.send()
        self._hand_back(now_s)
        if now_s >= self._renew_at_s:
            self._renew_at_s = now_s + self._lease_s / 4
            self._handing_over.renew()
        for chore in self._chores:
            chore()
        if now_s - self._inbox.heard_s > _SILENCE_S:
            self._inbox.show_up()
        if self._health is not None and not self._hangs.blocked:
            self._health.beat(self._inbox.heard_s)

    def _look_at_handlers(self) -> None:
        """If a handler has run for longer than its hard timeout, have the process end: nothing else ends a thread."""
        self._hangs.look(time.monotonic())
        if self._hangs.expired is not None:
            self._stop.set()

    def _hand_back(self, now_s: float) -> None:
        stopping = self._stop.is_set()

        def is_handed_back(held: Held) -> bool:
            held_s = now_s - held.since_s
            return holding_rules.is_handed_back(
                held.state, stopping=stopping, alone=held.alone, held_s=held_s, lease_s=self._lease_s
            )

        self._handing_over.hand_back(is_handed_back)

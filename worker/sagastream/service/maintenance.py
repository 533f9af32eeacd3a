"""The thread of a service's process that never calls a handler: it does what must be done while handlers run."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import redis

from sagastream.broker.outage import is_outage
from sagastream.health import HealthFile
from sagastream.service.in_flight import Hand, Work
from sagastream.service.inbox import CommandInbox

#: How long a finished answer may wait for the rest of its batch, in seconds.
LINGER_S: Final = 0.02
#: How often the keeper looks, in seconds, at the least; four times a lease where that is more often.
_LOOK_EVERY_S: Final = 0.5
#: After how long without a reading the keeper shows that the process is alive, in seconds.
_SILENCE_S: Final = 1.0


class Keeper:
    """Keeps the leases on what its process has in hand, and hands back what waits for long; sends answers that linger;
    keeps the process seen to be alive; and sees to it that it ends."""

    def __init__(
        self,
        inbox: CommandInbox,
        hand: Hand,
        stop: threading.Event,
        *,
        lease_ms: int,
        grace_s: float,
        health: HealthFile | None,
        send: Callable[[], None],
        chores: Sequence[Callable[[], None]],
        fail: Callable[[BaseException], None],
        abandon: Callable[[], NoReturn],
    ) -> None:
        """
        Args:
            send: sends the answers that are ready.
            chores: what else is to be done each time.
            fail: is told of a fault, and has the process stop.
            abandon: ends the process where handlers still run, so long after `stop` was set.
        """
        self._inbox = inbox
        self._hand = hand
        self._stop = stop
        self._grace_s = grace_s
        self._quarter_s = lease_ms / 4000  # of a lease
        self._health = health
        self._send = send
        self._chores = chores
        self._fail = fail
        self._abandon = abandon
        self._renew_at = 0.0
        self._lingering = threading.Event()
        self._ended = threading.Event()

    def run(self) -> None:
        """Until `end` is called."""
        stopped = None
        while not self._ended.is_set():
            if self._lingering.wait(max(LINGER_S, min(_LOOK_EVERY_S, self._quarter_s))):
                self._ended.wait(LINGER_S)
                self._lingering.clear()
            try:
                self.turn()
            except Exception as error:  # noqa: BLE001 - told to `fail`
                # Whoever reads waits for an outage, and says so. A fault ends the process: in order, or abandoned.
                if not (isinstance(error, redis.RedisError) and is_outage(error)):
                    self._fail(error)
            if self._stop.is_set():
                stopped = stopped or time.monotonic()
                if time.monotonic() - stopped > self._grace_s and self._hand.runs:
                    self._abandon()

    def lingers(self) -> None:
        """An answer waits while its thread is at the next command: send it soon."""
        if not self._lingering.is_set():
            self._lingering.set()

    def end(self) -> None:
        """Have `run` return."""
        self._ended.set()
        self._lingering.set()

    def turn(self) -> None:
        """All that is to be done now. Raises redis.RedisError."""
        now = time.monotonic()
        if self._inbox.lingers(LINGER_S):
            self._send()
        if self._stop.is_set():
            self._hand_back(lambda _: True)
        else:
            # What waits here for long, others may have the time for.
            self._hand_back(lambda work: not work.begins and now - work.since > self._quarter_s)
        if now >= self._renew_at:
            self._renew_at = now + self._quarter_s
            lost = self._inbox.renew([work.delivery for work in self._hand.begun(self._inbox.now_ms)])
            self._hand.put_down(lambda work: work.delivery.entry.id in lost)
        for chore in self._chores:
            chore()
        if now - self._inbox.heard > _SILENCE_S:
            self._inbox.show_up()
        if self._health is not None:
            self._health.beat(self._inbox.heard)

    def _hand_back(self, which: Callable[[Work], bool]) -> None:
        self._inbox.hand_back([work.delivery for work in self._hand.put_down(which)])

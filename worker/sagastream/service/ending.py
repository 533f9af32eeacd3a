"""How a process of a service ends: it sends the answers that are left, and leaves to others what it has begun."""

import contextlib
import os
import time
from collections.abc import Callable
from typing import NoReturn

import redis

from sagastream.broker.embedded import leave_all
from sagastream.broker.failures import is_outage
from sagastream.broker.outage import Outage
from sagastream.console import summary
from sagastream.core import backoff
from sagastream.service.declaration import EXIT_HANGS
from sagastream.service.executor import Executor
from sagastream.service.handing_over import HandingOver
from sagastream.service.hangs import Hangs
from sagastream.service.in_flight import InFlight
from sagastream.service.inbox import CommandInbox
from sagastream.service.maintenance import LINGER_S
from sagastream.service.report import ServiceReport
from sagastream.telemetry import Observers


class Ending:
    """That of one process."""

    def __init__(
        self,
        inbox: CommandInbox,
        in_flight: InFlight,
        executor: Executor,
        handing_over: HandingOver,
        hangs: Hangs,
        *,
        name: str,
        outage: Outage,
        grace_s: float,
        report: ServiceReport,
        observer: Observers | None,
        error: Callable[[], BaseException | None],
    ) -> None:
        """
        Args:
            name: of the process, as its log has it.
            grace_s: how long handlers may run once it is to stop.
            error: the one by which it ends, if there is one.
        """
        self._name = name
        self._inbox = inbox
        self._in_flight = in_flight
        self._executor = executor
        self._handing_over = handing_over
        self._hangs = hangs
        self._outage = outage
        self._grace_s = grace_s
        self._report = report
        self._observer = observer
        self._error = error

    def finish_async(self) -> None:
        """Wait for the handlers in the event loop, and answer."""
        while self._in_flight.running and self._error() is None:
            self._outage.once(self._executor.send)
            self._in_flight.wait(self._in_flight.changes, LINGER_S)
        self._outage.once(self._executor.send)

    def send_the_last(self, stopped_s: float) -> None:
        """Send the answers that are left. If the broker is away, wait for it as long as handlers may run: what a
        process owes may be known to nobody else.

        `stopped_s`: since when it is to stop, by time.monotonic.
        """
        until_s = stopped_s + self._grace_s
        failures = 0
        while True:
            try:
                self._handing_over.give_up(fatal=self._hangs.expired)
                self._executor.send()
                if (away := self._inbox.outbox.away) is None:
                    return
                raise away
            except redis.RedisError as error:
                if self._error() is not None or not is_outage(error) or time.monotonic() >= until_s:
                    if untold := [*self._inbox.outbox.unsent, *(held.command for held in self._in_flight.begun())]:
                        self._report.not_sent(untold, error)
                    return
                self._outage.restore()
                failures += 1
                time.sleep(min(backoff.delay(failures), max(0.0, until_s - time.monotonic())))

    def abandon(self) -> NoReturn:
        """End the process with the handlers that do not end: there is no other way to end a thread."""
        since = "the signal"
        if (error := self._error()) is not None:  # which `ServiceRunner.run` will not come to raise
            self._report.log.error(f"ends by {summary(error)}")
            since = "that"
        if self._hangs.expired is None:
            running = self._in_flight.running
            text = f"handlers: {running} still running {self._grace_s:g} s after {since}; ended, others take over"
            self._report.log.error(text)
        self._outage.once(lambda: self._handing_over.give_up(fatal=self._hangs.expired))
        self._outage.once(self._executor.send)
        self._outage.once(self._inbox.reader.leave)
        if self._observer is not None:
            self._observer.process_stopped(kind="service", name=self._name, error=self._error())
        with contextlib.suppress(Exception):  # the last process to leave an embedded server stops it
            leave_all()
        os._exit(1 if self._hangs.expired is None else EXIT_HANGS)

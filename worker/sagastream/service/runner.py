"""Runs a service: reads its commands, calls the handlers, answers. Any number of processes share the work.

The threads of a process are all alike. Each runs the commands that the process holds; if none may begin, it reads more;
one thread reads at a time. So if there is one thread, a command never changes threads. Async handlers run in an event
loop. One more thread does what cannot wait for the end of a handler (see maintenance).
"""

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from sagastream.broker.connection import BLOCK_MS, Broker
from sagastream.broker.failures import NodeAway
from sagastream.broker.group_reader import consumer_name
from sagastream.broker.outage import Outage
from sagastream.codecs.setting import codec_of, seals_with
from sagastream.core.causes import GRACE_S
from sagastream.health import HealthFile
from sagastream.service.declaration import EXIT_HANGS, Service
from sagastream.service.ending import Ending
from sagastream.service.executor import Dispatcher, Executor
from sagastream.service.handing_over import HandingOver
from sagastream.service.hangs import Hangs
from sagastream.service.in_flight import Held, InFlight
from sagastream.service.inbox import CommandInbox
from sagastream.service.maintenance import LINGER_S, Maintenance
from sagastream.service.prefetch import Prefetch
from sagastream.service.publication import Publication
from sagastream.service.report import ServiceReport
from sagastream.service.signals import Signals
from sagastream.service.unopened import UnopenedCommands
from sagastream.store.running import Busy
from sagastream.telemetry import Observer, guarded, runs

#: How long to wait before looking again whether the dispatcher has room, in milliseconds.
_FULL_MS: Final = 50


class Worked(StrEnum):
    """What became of one command."""

    DONE = "done"
    ANSWERED_BEFORE = "was answered before"
    LEFT = "left to another release, which has it"


class ServiceRunner:
    """Runs a service: one of any number of runners that share its commands.

    `name` is its name in the log, which no other runner has.
    """

    def __init__(
        self,
        broker: Broker,
        service: Service,
        stop: threading.Event,
        *,
        grace_s: float = GRACE_S,
        health: HealthFile | None = None,
        dispatcher: Callable[[CommandInbox, str], Dispatcher] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            broker: the runner's own; it is not closed.
            stop: any thread may set it. Handlers that run may finish, what was not begun is handed back to other
                runners at once, then `run` returns.
            grace_s: how long handlers may still run once `stop` is set, in seconds.
            health: a file that is touched while the broker answers; None: there is none.
            dispatcher: private. Makes what has commands run outside this process, of its inbox and name; None: all run
                in it.
            observer: is told what happens.

        Raises ServiceError if the service is declared wrongly, SettingsError if the environment names a codec that
        cannot be used, and TypeError if `observer` is not an Observer.
        """
        self.name = f"service {service.name} {(consumer := consumer_name())}"
        self._service = service
        self._stop = stop
        self._observer = guarded(observer)
        self._report = ServiceReport(self.name, self._observer)
        self._publication = Publication(broker, service, self._report)
        self._outage = Outage(broker, self.name, stop, observer=self._observer)
        self._unopened = UnopenedCommands(codec_of(service.codec), self._report)
        self._in_flight = InFlight(service.concurrency, service.lease_ms / 1000)
        self._signals = Signals()
        self._hangs = Hangs(
            self._in_flight,
            slots=service.concurrency,
            now_ms=lambda: self._inbox.now_ms,
            time_for=lambda command: self._inbox.time_for(command),  # noqa: PLW0108 - there is no inbox yet
            report=self._report,
        )
        self._inbox = CommandInbox(
            broker.client,
            service.name,
            consumer=consumer,
            lease_ms=service.lease_ms,
            on_join=self._publication.join,
            commands=[*service.commands, *service.compensations],
            busy=self._busy,
            observer=self._observer,
        )
        self._dispatcher = dispatcher(self._inbox, self.name) if dispatcher else None
        self._prefetch = Prefetch(self._in_flight, self._dispatcher.room if self._dispatcher else None)
        self._executor = Executor(
            service,
            self._inbox,
            self._in_flight,
            self._prefetch,
            report=self._report,
            dispatcher=self._dispatcher,
            signals=self._signals,
            unopened=self._unopened,
            fail=self._fail,
        )
        self._handing_over = HandingOver(self._inbox, self._in_flight)
        self._reading = threading.Lock()  # one thread reads at a time
        self._worked = False  # whether `work_on` was called before
        self._error: BaseException | None = None
        self._ending = Ending(
            self._inbox,
            self._in_flight,
            self._executor,
            self._handing_over,
            self._hangs,
            name=self.name,
            outage=self._outage,
            grace_s=grace_s,
            report=self._report,
            observer=self._observer,
            error=lambda: self._error,
        )
        self._maintenance = Maintenance(
            self._inbox,
            self._in_flight,
            self._executor,
            self._handing_over,
            self._hangs,
            stop=stop,
            lease_ms=service.lease_ms,
            grace_s=grace_s,
            health=health,
            chores=[self._publish_again, *([self._dispatcher.turn] if self._dispatcher else [])],
            fail=self._fail,
            abandon=self._ending.abandon,
        )

    def run(self) -> None:
        """Work in this thread and in `concurrency - 1` more until `stop` is set. Outages of the broker are waited out.

        If a handler still runs when the grace is over, the whole process ends with exit code 1, since nothing else ends
        a thread; another runner then takes its command over. If a handler runs for longer than its hard timeout, the
        process stops likewise, with exit code EXIT_HANGS: it waits for the grace for other handlers.

        Raises SystemExit if a handler that ran for longer than its hard timeout has ended after all; and what waiting
        does not help with, such as BrokerError or redis.AuthenticationError.
        """
        with runs("service", self.name, self._observer), self._signals.watched():
            codec = self._unopened.codec
            self._report.log.info("started" if codec is None else f"started; {seals_with(codec)}")
            self._run()

    def _publish_again(self) -> None:
        self._publication.again(self._inbox.changes)

    def _busy(self) -> Busy | None:
        """What others are told of this process, with its heartbeat."""
        now_s = time.monotonic()
        return self._unopened.with_busy(self._hangs.busy(now_s), self._service.concurrency, now_s)

    def _run(self) -> None:
        maintenance = self._started("maintenance", self._maintenance.run)
        others = [self._started(f"handlers-{number}", self._work) for number in range(2, self._threads() + 1)]
        # The first of them is this thread: a service that runs one handler at a time runs it in the main thread.
        self._guarded(self._work)
        for thread in others:
            thread.join()
        self._ending.finish_async()
        self._maintenance.end()
        maintenance.join()
        self._ending.send_the_last(self._maintenance.stopped_s or time.monotonic())
        self._outage.once(self._inbox.reader.leave)
        self._executor.close()
        if self._error is not None:
            raise self._error
        if self._hangs.expired is not None:
            raise SystemExit(EXIT_HANGS)

    def turn(self, block_ms: int = BLOCK_MS) -> None:
        """Run the commands that are held until none may begin, and answer them. If none may begin at first, read some
        before."""
        changes = self._in_flight.changes
        self._executor.send()  # what an outage left over, and what finished in the event loop
        if (held := self._next()) is None:
            self._read_or_wait(block_ms, changes)
            held = self._next_or_send()
        sent_s = time.monotonic()
        while held is not None:
            self._executor.run(held)
            if (now_s := time.monotonic()) - sent_s > LINGER_S or self._inbox.outbox.is_heavy:
                self._executor.send()
                sent_s = now_s
            if (held := self._next()) is not None:
                self._maintenance.lingers()
            else:
                self._send_and_read_ahead()
                held = self._next()

    def work_on(self, entry_id: bytes, partition: int = 0, *, again: bool) -> Worked:
        """Run one command that another process holds, and answer it.

        `partition`: the number of the one in which it is. `again`: whether another process may have begun with it. May
        be called again after a redis.RedisError.
        """
        again, self._worked = again or self._worked, True
        self._executor.send()
        if (away := self._inbox.outbox.away) is not None:  # it was run before, and only its answer is left
            raise away
        left, put_off = self._inbox.left, self._inbox.times_put_off
        entry = self._inbox.fetch(entry_id, partition, again=again)
        if entry is None:
            self._handing_over.let_go({(stream, entry_id) for stream in self._inbox.streams})
        deliveries = [] if entry is None else self._inbox.take([entry])
        self._in_flight.release(lambda _: True)
        self._executor.hold(deliveries)
        while self._error is None:
            changes = self._in_flight.changes
            if (held := self._next_or_send()) is not None:
                self._executor.run(held)
            elif self._in_flight.is_empty:
                if (away := self._inbox.outbox.away) is not None:
                    raise away
                if self._inbox.times_put_off > put_off:
                    raise NodeAway(f"partition {partition} of the store cannot be reached", was_sent=False)
                if self._inbox.left > left:
                    return Worked.LEFT
                return Worked.ANSWERED_BEFORE if entry is None else Worked.DONE
            else:
                due_s = max(0.0, self._in_flight.next_due_s() - time.monotonic())
                self._in_flight.wait(changes, min(due_s, BLOCK_MS / 1000))
        raise self._error

    @property
    def unopened(self) -> str | None:
        """Why it could not open the command that it could not open last, escaped; None: it could open all."""
        return self._unopened.last

    @property
    def held(self) -> int:
        """How many commands it holds."""
        return self._in_flight.held

    @property
    def running(self) -> int:
        """How many handlers run."""
        return self._in_flight.running

    # --- the threads

    def _threads(self) -> int:
        """How many threads call handlers. For async ones two are enough: one reads, one answers meanwhile."""
        plain = any(not registration.is_async for registration in self._service.registrations)
        return self._service.concurrency if plain else min(2, self._service.concurrency)

    def _started(self, name: str, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=[target], name=name, daemon=True)
        thread.start()
        return thread

    def _guarded(self, target: Callable[[], None]) -> None:
        """An error that ends one thread ends them all."""
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._stop.set()

    def _work(self) -> None:
        self._outage.keep(self.turn, self._recover)

    def _recover(self) -> None:
        """After an outage: what does not run is read and looked up again, since other processes may have it by now."""
        self._handing_over.look_up_again()
        self._inbox.reader.recover()

    # --- what a turn consists of

    def _next(self) -> Held | None:
        return None if self._stop.is_set() else self._in_flight.begin(time.monotonic())

    def _next_or_send(self) -> Held | None:
        """The next one that may begin. If there is none, the answers are sent first: what was overruled may begin."""
        if (held := self._next()) is None:
            self._executor.send()
            held = self._next()
        return held

    def _read_or_wait(self, block_ms: int, changes: int) -> None:
        """Read more commands. Or wait for something to do, if no more may begin or another thread reads."""
        block_ms = max(1, int(min(block_ms, (self._in_flight.next_due_s() - time.monotonic()) * 1000)))
        if self._dispatcher is not None:
            self._dispatcher.turn()
            self._executor.send()
            block_ms = block_ms if self._dispatcher.room() else min(block_ms, _FULL_MS)
        count = self._prefetch.count()
        if not count or not self._reading.acquire(blocking=False):
            self._in_flight.wait(changes, block_ms / 1000)
            return
        try:
            deliveries = self._inbox.read(block_ms, count=count)
            self._prefetch.came(len(deliveries))
            self._executor.hold(deliveries)
        finally:
            self._reading.release()

    def _send_and_read_ahead(self) -> None:
        """Send the answers. If all is done, the next commands come along in the same round trip."""
        may_read = self._prefetch.may_read_ahead and not self._stop.is_set()
        if not may_read or not self._reading.acquire(blocking=False):
            self._executor.send()
            return
        try:
            count = self._prefetch.count()
            self._executor.send(ahead=count)
            if not self._in_flight.is_empty:
                # Some were overruled, and are undone first. What came along is held meanwhile, so its lease is renewed.
                self._executor.hold(self._inbox.read(1, count=count))
        finally:
            self._reading.release()

"""Runs a service: reads its commands, calls the handlers, answers. Any number of processes share the work.

The threads of a process are all alike: each calls the handler of a command in hand or, where none may begin, reads
more; one reads at a time. So with one thread a command passes through no other. Async handlers run in an event loop.
A further thread, the keeper, does meanwhile what cannot wait for a handler's end (see keeper).
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

import redis
from msgspec.structs import replace

from sagastream.broker.connection import BLOCK_MS, Broker
from sagastream.broker.group_reader import BATCH, consumer_name
from sagastream.broker.outage import Outage
from sagastream.console import describe, say
from sagastream.core import service_rules
from sagastream.core.messages import Command, Reply, failed, reply_to
from sagastream.core.strict_json import encode
from sagastream.health import HealthFile
from sagastream.service.declaration import Service, context_of
from sagastream.service.event_loop import EventLoop
from sagastream.service.handlers import call, call_async
from sagastream.service.in_flight import Hand, Work
from sagastream.service.inbox import CommandInbox, Delivery
from sagastream.service.maintenance import LINGER_S, Keeper
from sagastream.service.outcomes import Outcomes, described
from sagastream.store import layout, published

#: How long running handlers may take when the process is to end, in seconds; a Kubernetes pod has 30.
GRACE_S: Final = 25.0
#: How much work is taken at once for each handler that may run, in seconds: what one process holds, no other can do.
_BATCH_S: Final = 0.2
#: How often a service says anew which commands it has, in seconds: somebody may have deleted it.
_PUBLISH_EVERY_S: Final = 30.0
#: What a handler may raise without ending its process. A coroutine may be cancelled by what it calls.
_FAILURES: Final = (Exception, SystemExit, asyncio.CancelledError)

#: How long to wait before looking again whether there is room elsewhere, in milliseconds.
_FULL_MS: Final = 50


class Elsewhere(Protocol):
    """Has commands done outside this process, and answers for those of which no answer comes. For several threads."""

    def takes(self, command: Command) -> bool:
        """Whether this command is done there."""

    def send(self, delivery: Delivery) -> None:
        """Have a command done, or what may have come of it undone. May be called again for the same entry."""

    def turn(self) -> None:
        """Look after what was sent. To be called again and again."""

    def room(self) -> int:
        """How many commands more are to be read."""


class ServiceRunner:
    """One process of a service. `stop` may be set from anywhere: handlers that run are let finish, what was not begun
    is handed back to others at once."""

    def __init__(
        self,
        broker: Broker,
        service: Service,
        stop: threading.Event,
        *,
        grace_s: float = GRACE_S,
        health: HealthFile | None = None,
        elsewhere: "Callable[[CommandInbox, str], Elsewhere] | None" = None,
    ) -> None:
        """
        Args:
            grace_s: how long handlers may still run once `stop` is set.
            elsewhere: makes what has commands done outside this process; without, all are done in it.

        Raises ServiceError if the service is declared wrongly.
        """
        self.name = f"service {service.name} {(consumer := consumer_name())}"
        self._service = service
        self._publishes = service.publishes()
        self._broker = broker
        self._stop = stop
        self._grace_s = grace_s
        self._outage = Outage(broker, self.name, stop)
        self._inbox = CommandInbox(
            broker.client, service.name, consumer=consumer, lease_ms=service.lease_ms, on_join=self._join
        )
        self._elsewhere = elsewhere(self._inbox, self.name) if elsewhere else None
        self._hand = Hand(service.concurrency)
        self._outcomes = Outcomes(self._inbox, self._hand, self.name)
        self._reading = threading.Lock()
        self._loop = EventLoop()
        self._pace_s = _BATCH_S  # what a command takes, about
        self._are_many = False  # whether the last reading brought more than one
        self._publish_at = float("inf")  # when it has joined
        self._error: BaseException | None = None
        self._keeper = Keeper(
            self._inbox,
            self._hand,
            stop,
            lease_ms=service.lease_ms,
            grace_s=grace_s,
            health=health,
            send=self._send,
            chores=[self._publish_again, *([self._elsewhere.turn] if self._elsewhere else [])],
            fail=self._fail,
            abandon=self._abandon,
        )

    def run(self) -> None:
        """Work until `stop` is set. Handlers that run after that for longer than the grace end with the process.

        Raises what waiting cannot mend (BrokerError, redis.AuthenticationError …).
        """
        say(self.name, "started")
        keeper = threading.Thread(target=self._guarded, args=[self._keeper.run], name="keeper", daemon=True)
        others = [
            threading.Thread(target=self._guarded, args=[self._work], name=f"handlers-{number}", daemon=True)
            for number in range(2, self._threads() + 1)
        ]
        for thread in (keeper, *others):
            thread.start()
        # The first of them is this one: a service that does one thing at a time does it in the main thread.
        self._guarded(self._work)
        for thread in others:
            thread.join()
        while self._hand.runs and self._error is None:  # what runs in the event loop
            self._outage.once(self._send)
            self._hand.wait(self._hand.changes, LINGER_S)
        self._outage.once(self._send)
        self._keeper.end()
        keeper.join()
        self._outage.once(self._inbox.reader.leave)
        self._loop.close()
        if self._error is not None:
            raise self._error

    def turn(self, block_ms: int = BLOCK_MS) -> None:
        """Call the handlers of commands in hand until none may begin, and answer; where none may, read some first."""
        changes = self._hand.changes
        self._send()  # what an outage left over, and what finished in the event loop
        if (work := self._next()) is None:
            self._read_or_wait(block_ms, changes)
            work = self._next_or_send()
        sent = time.monotonic()
        while work is not None:
            self._begin(work)
            if (now := time.monotonic()) - sent > LINGER_S:
                self._send()
                sent = now
            if (work := self._next()) is not None:
                self._keeper.lingers()
            else:
                self._send_and_read_on()
                work = self._next()

    def work_on(self, entry_id: bytes, *, again: bool) -> bool:
        """Do one command that another process holds, and answer it; False: it was answered before.

        `again`: whether somebody may have been at it. May be called again after a redis.RedisError.
        """
        self._hand.put_down(lambda _: True)
        self._send()
        entry = self._inbox.fetch(entry_id, again=again)
        self._take([] if entry is None else self._inbox.take([entry]))
        while self._error is None:
            changes = self._hand.changes
            if (work := self._next_or_send()) is not None:
                self._begin(work)
            elif self._hand.is_empty:
                return entry is not None
            else:
                self._hand.wait(changes, max(0.0, min(self._hand.next_due() - time.monotonic(), BLOCK_MS / 1000)))
        raise self._error

    def finish(self, work: Work, outcome: Reply | BaseException) -> None:
        """What came of a handler: its reply, or what it raised. To be called once for each beginning, by any thread."""
        now = time.monotonic()
        self._pace_s = 0.8 * self._pace_s + 0.2 * max(now - work.began, 1e-6)
        self._outcomes.settle(work, outcome, now)

    # --- the threads

    def _threads(self) -> int:
        """How many threads call handlers. For async ones two will do: one reads, one answers meanwhile."""
        plain = any(not registration.is_async for registration in self._service.registrations)
        return self._service.concurrency if plain else min(2, self._service.concurrency)

    def _guarded(self, target: Callable[[], None]) -> None:
        """What ends one thread, ends them all."""
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
        """What does not run is looked up anew, for others may have it by now."""
        self._hand.put_down(lambda _: True)
        self._inbox.reader.recover()

    def _abandon(self) -> NoReturn:
        """End with the handlers that do not: a thread cannot be ended in any other way."""
        if self._error is not None:  # which `run` will not come to raise
            say(self.name, f"ends by {describe(self._error)}")
        since = "the signal" if self._error is None else "that"
        text = f"handlers: {self._hand.runs} still running {self._grace_s:g} s after {since}; ended, others take over"
        say(self.name, text)
        self._outage.once(self._send)
        self._outage.once(self._inbox.reader.leave)
        os._exit(1)

    def _read_or_wait(self, block_ms: int, changes: int) -> None:
        """Take more commands in hand; or wait for something to do, where no more may begin, or another thread reads."""
        block_ms = max(1, int(min(block_ms, (self._hand.next_due() - time.monotonic()) * 1000)))
        if self._elsewhere is not None:
            self._elsewhere.turn()
            self._send()
            block_ms = block_ms if self._elsewhere.room() else min(block_ms, _FULL_MS)
        room = self._room()
        if not room or not self._reading.acquire(blocking=False):
            self._hand.wait(changes, block_ms / 1000)
            return
        try:
            deliveries = self._inbox.read(block_ms, count=room)
            self._are_many = len(deliveries) > 1
            self._take(deliveries)
        finally:
            self._reading.release()

    def _room(self) -> int:
        """How many commands are to be read."""
        room = min(BATCH, self._hand.room() * max(1, int(_BATCH_S / self._pace_s)))
        return room if self._elsewhere is None else min(room, self._elsewhere.room())

    def _take(self, deliveries: list[Delivery]) -> None:
        if works := [work for delivery in deliveries if (work := self._work_for(delivery)) is not None]:
            self._hand.add(works)

    def _join(self) -> None:
        layout.check(self._broker)
        self._publish()

    def _publish(self) -> None:
        published.publish(self._broker.client, self._service.name, self._publishes)
        self._publish_at = time.monotonic() + _PUBLISH_EVERY_S

    def _publish_again(self) -> None:
        if time.monotonic() >= self._publish_at:
            self._publish()

    def _send_and_read_on(self) -> None:
        """Send the answers. Where all is done, what is to be done next comes along in the same round trip."""
        # Not where commands come one by one: the next is yet to come, and is waited for.
        is_free = self._are_many and self._hand.is_empty and self._elsewhere is None and not self._stop.is_set()
        if not is_free or not self._reading.acquire(blocking=False):
            self._send()
            return
        try:
            room = self._room()
            self._send(ahead=room)
            if not self._hand.is_empty:
                # Some were overruled, and are undone first: what came along is looked after meanwhile, being in hand.
                self._take(self._inbox.read(1, count=room))
        finally:
            self._reading.release()

    def _send(self, ahead: int = 0) -> None:
        """Send the answers that are ready. What was overruled meanwhile is to be undone, then answered. `ahead`: how
        many commands are to come along, for the next reading."""
        while overruled := self._inbox.send(ahead):
            works = []
            for delivery, reply in overruled:
                refused = replace(delivery, refusal=service_rules.refusal(delivery.command))
                if (work := self._work_for(refused, reply.result)) is not None:
                    works.append(work)
            self._hand.add(works)

    # --- one command

    def _next(self) -> Work | None:
        return None if self._stop.is_set() else self._hand.take(time.monotonic())

    def _next_or_send(self) -> Work | None:
        """The next one that may begin. Before there is none, the answers are sent: what was overruled may begin."""
        if (work := self._next()) is None:
            self._send()
            work = self._next()
        return work

    def _work_for(self, delivery: Delivery, result: bytes | None = None) -> Work | None:
        """What is to be done about a command; None: nothing, or nothing but what was done here."""
        command, key = delivery.command, None
        if self._elsewhere is not None and self._elsewhere.takes(command):
            self._elsewhere.send(delivery)
            self._pace_s = max(0.8 * self._pace_s, 1e-6)  # it takes no time here
            return None
        if delivery.refusal is not None:
            name = self._service.undo_of(command)
            if name is None:
                self._inbox.reply(delivery, delivery.refusal, final=True)
                return None
            where = described(command)
            say(self.name, f"{where} must not be done: undoing what may have come of it")
            # Under a key of its own: the step's compensation has run under the usual one, and has found nothing.
            command = replace(command, type=name, compensating=True, result=result)
            key = f"{command.key}/{delivery.entry.id.decode()}"
            if self._service.registration(command) is None:
                # A try as any other: a later release may have it, or else it is left to a person.
                if self._inbox.take_up_undo(delivery):
                    say(self.name, f"{where} cannot be undone: the service has no compensation {name}")
                return None
        registration = self._service.registration(command)
        if registration is None:
            known = "compensation" if command.compensating else "command"
            error = f"unknown_command: service {self._service.name} has no {known} {command.type}"
            self._inbox.reply(delivery, reply_to(command, failed(command.type), error=encode(error)))
            return None
        return Work(
            delivery=delivery,
            command=command,
            registration=registration,
            record=delivery.record,
            key=key,
            since=time.monotonic(),
        )

    def _begin(self, work: Work) -> None:
        """Have the handler called: here, or in the event loop. Wherever it runs, it runs until `finish` is told."""
        try:
            if not self._outcomes.may_begin(work):
                return
        except redis.RedisError:
            work.begins -= 1  # whoever takes it next, perhaps before this thread has recovered, looks anew
            self._hand.put_back(work, 0.0)
            raise
        if work.registration.is_async:
            self._loop.start(self._call_async(work))
            return
        outcome: Reply | BaseException
        try:
            outcome = call(work.registration.handler, work.command, context_of(work.command, work.key))
        except _FAILURES as failure:
            outcome = failure
        self.finish(work, outcome)

    async def _call_async(self, work: Work) -> None:
        outcome: Reply | BaseException
        try:
            try:
                outcome = await call_async(work.registration.handler, work.command, context_of(work.command, work.key))
            except _FAILURES as failure:
                outcome = failure
            self.finish(work, outcome)
        except BaseException as error:  # noqa: BLE001 - `run` raises it; it must not end the loop before
            self._fail(error)
        self._hand.wake()

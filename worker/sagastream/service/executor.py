"""Takes one command from its delivery to its answer: carries out what `service_rules` says, and reports it.

delivery -> hold -> run -> (handler) -> finish -> outbox
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import redis

from sagastream.broker.failures import is_outage
from sagastream.console import printable, summary
from sagastream.core import service_rules
from sagastream.core.commands import Command, Reply
from sagastream.core.service_actions import HAND_BACK, RELEASE, RUN, Answer, Count, Release, Retry, Run, SetAside, Undo
from sagastream.errors import MalformedMessage
from sagastream.service.declaration import Service
from sagastream.service.delivery import Delivery
from sagastream.service.event_loop import EventLoop
from sagastream.service.handlers import Interrupted, call, call_async, context_of
from sagastream.service.in_flight import Held, InFlight
from sagastream.service.inbox import CommandInbox
from sagastream.service.prefetch import Prefetch
from sagastream.service.releases import OtherReleases
from sagastream.service.report import ServiceReport
from sagastream.service.signals import Signals
from sagastream.service.unopened import UnopenedCommands


class Dispatcher(Protocol):
    """Has commands run outside this process, and answers for those that end without an answer. Safe for several
    threads."""

    def takes(self, command: Command) -> bool:
        """Whether this command runs there."""

    def send(self, delivery: Delivery) -> None:
        """Have a command run or undone there. May be called again for the same entry."""

    def turn(self) -> None:
        """Look after what was sent. To be called again and again."""

    def room(self) -> int:
        """How many more commands may be read."""


class Executor:
    """Every command that it holds is answered, called again, set aside, or released to other processes. Safe for
    several threads."""

    def __init__(
        self,
        service: Service,
        inbox: CommandInbox,
        in_flight: InFlight,
        prefetch: Prefetch,
        *,
        report: ServiceReport,
        dispatcher: Dispatcher | None,
        signals: Signals,
        unopened: UnopenedCommands,
        fail: Callable[[BaseException], None],
    ) -> None:
        """
        Args:
            signals: knows if a signal has interrupted a handler.
            fail: is told of a fault in a thread that nobody waits for.
        """
        self._service = service
        self._inbox = inbox
        self._outbox = inbox.outbox
        self._in_flight = in_flight
        self._prefetch = prefetch
        self._report = report
        self._dispatcher = dispatcher
        self._signals = signals
        self._unopened = unopened
        self._fail = fail
        self._others = OtherReleases(service, inbox, report)
        self._loop = EventLoop(report.task_raised)
        self._data_away = False  # whether it was reported that handlers cannot reach their data

    def close(self) -> None:
        """Cancel the async handlers that still run."""
        self._loop.close()

    def hold(self, deliveries: list[Delivery]) -> None:
        """Hold these commands until each is answered or released."""
        left: list[Delivery] = []
        unopened: list[Delivery] = []
        if held := [one for delivery in deliveries if (one := self._prepare(delivery, left, unopened)) is not None]:
            self._in_flight.add(held)
        if left:
            self._others.leave(left)
        if unopened:
            self._inbox.leave(unopened)

    def send(self, ahead: int = 0) -> None:
        """Send the answers that are ready. Commands that are overruled are held again, to be undone.

        `ahead`: how many commands the same round trip may bring, for the next reading.
        """
        while overruled := self._outbox.send(ahead):
            self.hold(overruled)

    def run(self, held: Held) -> None:
        """Call the handler of a command that has begun: here, or in the event loop. The command is running until
        `finish` is called."""
        try:
            step = self._before_call(held)
        except redis.RedisError as error:
            if self._inbox.passes_over(error):  # it is read again once its node is back
                self._in_flight.end(held)
                self._inbox.put_off([held.delivery])
                return
            self._in_flight.not_begun(held)  # the next thread that takes it asks again
            raise
        if step is not RUN and not isinstance(step, Undo):
            self._carry_out(held, step)
        elif held.registration.is_async:
            self._loop.start(self._call_async(held))
        else:
            outcome = self._call(held)
            if (signalled := self._signals.raised_here) is None:
                self.finish(held, outcome)
                return
            # The handler did not fail: it was interrupted. Or it took that for an error of its own, and went on.
            if isinstance(outcome, Reply):
                self.finish(held, outcome)
            raise signalled

    def finish(self, held: Held, outcome: Reply | BaseException) -> None:
        """A handler has ended: with its reply, or with what it raised. To be called once for each call, by any
        thread."""
        self._prefetch.took(time.monotonic() - held.begun_s)
        if isinstance(outcome, Reply):
            self._data_away = False
            self._carry_out(held, service_rules.replied(held.delivery.todo, held.command, outcome))
        else:
            self._carry_out(held, self._failed(held, outcome))

    # --- the stages of one command

    def _prepare(self, delivery: Delivery, left: list[Delivery], unopened: list[Delivery]) -> Held | None:
        """A command with the handler that is to be called for it; None: it was dispatched, answered or set aside, or
        other processes have to do it. What only another release can do is added to `left`; what this process cannot
        open, to `unopened`."""
        command, todo, key = delivery.command, delivery.todo, None
        if self._dispatcher is not None and self._dispatcher.takes(command):
            self._dispatcher.send(delivery)
            self._prefetch.took(0.0)
            return None
        if todo is not RUN:
            undo = service_rules.undoing(
                command,
                todo,
                compensation=self._others.undo_of(command),
                entry_id=delivery.entry.id.decode(),
            )
            if isinstance(undo, Answer):
                self._outbox.answer(delivery, undo)
                return None
            self._report.undoing(command)
            command, key = undo.command, undo.key
        registration = self._service.registration(command)
        if registration is None:
            self._without_handler(delivery, command, left)
            return None
        now_s = time.monotonic()
        opened = self._unopened.opened(command, now_s)
        if opened is None:
            step = service_rules.unopened(
                delivery.command,
                delivery.todo,
                again=delivery.entry.again,
                now_ms=self._inbox.fresh_time_for(delivery.command),
            )
            if isinstance(step, Answer):
                self._outbox.answer(delivery, step)
            else:
                unopened.append(delivery)
            return None
        return Held(
            delivery=delivery,
            command=opened,
            registration=registration,
            record=delivery.record,
            alone=service_rules.runs_alone(delivery.begun),
            key=key,
            since_s=now_s,
        )

    def _without_handler(self, delivery: Delivery, called: Command, left: list[Delivery]) -> None:
        rule = partial(
            service_rules.without_handler,
            delivery.command,
            delivery.todo,
            again=delivery.entry.again,
            published=self._others.have(called),
            now_ms=self._inbox.fresh_time_for(delivery.command),
        )
        if isinstance(step := rule(), Count):
            step = rule(times=self._inbox.count(delivery, step))
        if isinstance(step, Answer):
            self._outbox.answer(delivery, step)
        elif isinstance(step, SetAside):
            self._outbox.quarantine(delivery.entry, step.reason)
        elif step is HAND_BACK:
            left.append(delivery)
        else:
            self._report.no_compensation(delivery.command, called.type)

    def _before_call(self, held: Held) -> Run | Undo | Answer | SetAside:
        """What the rules say before the handler is called. Raises redis.RedisError."""
        delivery, now_ms, times = held.delivery, self._inbox.fresh_time_for(held.delivery.command), None
        entry = delivery.entry
        while True:
            step = service_rules.before_call(
                delivery.command,
                delivery.todo,
                is_first=held.begins == 1,
                again=entry.again,
                taken_over=entry.taken_over,
                now_ms=now_ms,
                times=times,
            )
            if step is RUN or not isinstance(step, Count):
                break
            times, held.counted = self._inbox.count(delivery, step), step
        if times is not None and isinstance(step, Answer):
            self._report.gave_up(held.command, times)
        elif held.alone and held.begins == 1:
            self._report.alone(held.command)
        return step

    def _call(self, held: Held) -> Reply | BaseException:
        outcome: Reply | BaseException
        held.thread = threading.get_ident()
        observed = self._report.is_observed
        began_s = self._report.handler_started(held.command, held.begins) if observed else 0.0
        try:
            context = context_of(held.command, self._clock_of(held.command), held.key)
            outcome = self._unopened.sealed(
                held.command, call(held.registration.handler, held.command, context, held.registration.model)
            )
        except Interrupted as error:
            self._report.handler_finished(held.command, held.begins, error, began_s)
            raise
        except BaseException as failure:  # noqa: BLE001 - a failure of the handler
            outcome = failure
        if observed:
            self._report.handler_finished(held.command, held.begins, outcome, began_s)
        return outcome

    async def _call_async(self, held: Held) -> None:
        outcome: Reply | BaseException
        began_s = self._report.handler_started(held.command, held.begins)
        try:
            try:
                context = context_of(held.command, self._clock_of(held.command), held.key)
                reply = await call_async(held.registration.handler, held.command, context, held.registration.model)
                outcome = self._unopened.sealed(held.command, reply)
            except BaseException as failure:  # noqa: BLE001 - a failure of the handler
                outcome = failure
            self._report.handler_finished(held.command, held.begins, outcome, began_s)
            self.finish(held, outcome)
        except BaseException as error:  # noqa: BLE001 - `fail` has it raised; it must not end the loop before
            self._fail(error)
        self._in_flight.wake()

    def _clock_of(self, command: Command) -> Callable[[], float]:
        """The clock by which its handler sees how much time is left, in seconds."""
        return lambda: self._inbox.time_for(command) / 1000

    def _failed(self, held: Held, failure: BaseException) -> Answer | Retry | Release:
        """What the rules say of what a handler has raised."""
        todo, called = held.delivery.todo, held.command
        if isinstance(failure, redis.RedisError) and is_outage(failure):
            if not self._data_away:
                self._data_away = True
                self._report.data_away(called, failure)
            held.outages += 1
            return service_rules.data_away(held.outages)
        if isinstance(failure, MalformedMessage):
            why = service_rules.unusable(called, f"{failure} (handler {held.registration.handler_name})")
            step: Answer | Retry | Release = service_rules.in_doubt(todo, called, printable(why))
        else:
            why, limit = summary(failure), held.registration.tries
            held.tries += 1
            self._report.raised(called, failure, tries=held.tries, limit=limit)
            step = service_rules.raised(todo, called, printable(why), tries=held.tries, limit=limit)
            if isinstance(step, Retry):
                return step
        if todo is RUN:
            self._report.unknown(called, why)
        return step

    def _carry_out(self, held: Held, step: Answer | Retry | Release | SetAside) -> None:
        if isinstance(step, Answer):
            self._outbox.answer(held.delivery, step)
            if self._in_flight.end(held) and step.is_last_word:
                self._answer_twins(held, step)
        elif isinstance(step, Retry):
            self._in_flight.retry(held, time.monotonic() + step.after_s)
        else:
            if step is RELEASE:
                self._report.not_undone(held.delivery.command, held.command.type)
            else:
                self._outbox.quarantine(held.delivery.entry, step.reason)
            self._in_flight.end(held)

    def _answer_twins(self, held: Held, answer: Answer) -> None:
        for twin in self._in_flight.release(lambda other: other.record == held.record and not other.undoes):
            self._outbox.answer(twin.delivery, service_rules.for_twin(answer, twin.command))

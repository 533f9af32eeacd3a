"""The services of a test: what one of their processes does with a command, without a broker, and what goes wrong."""

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from sagastream.console import describe, printable
from sagastream.core import backoff, service_rules
from sagastream.core.messages import Command, Fields, Reply, failed, ok, reply_to
from sagastream.core.parsing import read_command, read_reply
from sagastream.core.service_rules import MAX_TAKEOVERS
from sagastream.core.strict_json import encode
from sagastream.errors import MalformedMessage, ScenarioError, ServiceError
from sagastream.service.declaration import Registration, Service, context_of
from sagastream.service.handlers import call, call_async
from sagastream.testing.clock import Clock
from sagastream.testing.faults import Fault, Faults, Kind
from sagastream.testing.orchestrator import InProcessOrchestrator
from sagastream.testing.records import Records, answer, recall
from sagastream.testing.story import Story

#: What goes wrong so that nobody answers.
_NOT_ANSWERED: Final = (Kind.LOST, Kind.ANSWER_LOST, Kind.CRASHES, Kind.CRASHES_AFTER_EFFECT)


class Delivery(Struct, frozen=True, kw_only=True):
    """A command, as a process gets it."""

    command: Command
    entry: int  # counts the entries of all streams
    again: bool = False  # another process had it before
    seen: bytes = b""  # its record, when it was looked up


class InProcessServices:
    """All services of a test, each with as many processes as it takes."""

    def __init__(
        self,
        clock: Clock,
        told: Story,
        *,
        faults: Faults,
        orchestrator: InProcessOrchestrator,
        published: dict[str, dict[str, str | None]],
    ) -> None:
        """`published`: filled with what each service publishes."""
        self._clock = clock
        self._story = told
        self._faults = faults
        self._orchestrator = orchestrator
        self._published = published
        self._services: dict[str, Service] = {}
        self._records: dict[str, Records] = {}
        self._counts: Counter[str] = Counter()
        self._entries = 0
        self._loop: asyncio.Runner | None = None
        self.called: list[Command] = []  # each time that a handler was called

    @property
    def services(self) -> Mapping[str, Service]:
        return self._services

    def add(self, service: Service) -> None:
        """Raises ServiceError if it is none, is declared wrongly, or its name is taken."""
        if not isinstance(service, Service):
            raise ServiceError(f"{service!r} is no Service: give services one by one, as in sagas.serve(one, another)")
        if service.name in self._services:
            raise ServiceError(f"two services are called {service.name}")
        self._published[service.name] = service.publishes()
        self._services[service.name] = service
        self._records[service.name] = {}

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()

    def send(self, command: Command) -> None:
        """A command for a service, on its way: a process takes it as soon as what happens now has happened."""
        self._entries += 1
        read = read_command(command.service, _entry(command.fields()), self._clock.now_ms)
        assert isinstance(read, Command)
        self._clock.call_in(0, partial(self._deliver, Delivery(command=read, entry=self._entries)))

    # --- as CommandInbox and ServiceRunner do

    def _deliver(self, delivery: Delivery) -> None:
        """A process gets a command, and looks it up."""
        command = delivery.command
        found = recall(
            self._records[command.service],
            record=command.record,
            tombstone=command.tombstone,
            compensating=command.compensating,
        )
        self._records[command.service] = found.records
        verdict = service_rules.verdict(command, record=found.record, tombstone=found.tombstone, again=delivery.again)
        if verdict.reply is None:
            self._take_up(replace(delivery, seen=found.record or b""))
        elif verdict.undo:
            self._overrule(delivery, None, verdict.reply)
        else:
            self._tell(command, f"step {command.step}: {command.type} is answered without its handler")
            self._answer(delivery, verdict.reply, final=True)

    def _take_up(self, delivery: Delivery) -> None:
        """A process has a command that is to be done."""
        command = delivery.command
        if (late := service_rules.stale(command, self._clock.now_ms)) is not None:
            self._answer(delivery, late, final=not delivery.again)
        elif delivery.again and self._count(f"{command.service} {command.record}") >= MAX_TAKEOVERS:
            self._answer(delivery, service_rules.gave_up(command, MAX_TAKEOVERS))
        else:
            self._work(delivery, self._faults.strike(command))

    def _work(self, delivery: Delivery, fault: Fault | None) -> None:
        """Do a command and answer it; or what the test has happen instead."""
        if fault is None:
            self._finish(delivery)
            return
        command = delivery.command
        self._tell(command, f"as the test has it: {fault}")
        if fault.kind in _NOT_ANSWERED:
            if fault.kind in (Kind.ANSWER_LOST, Kind.CRASHES_AFTER_EFFECT):
                self._try(self._registration(command), command)
            if fault.kind in (Kind.CRASHES, Kind.CRASHES_AFTER_EFFECT):
                self._hand_over(delivery)
        elif fault.kind is Kind.REJECTED:
            rejection = reply_to(command, failed(command.type), error=encode(fault.error))
            self._clock.call_in(0, partial(self._answer, delivery, rejection))
        else:
            self._finish_wrongly(delivery, fault)

    def _finish_wrongly(self, delivery: Delivery, fault: Fault) -> None:
        """Do a command and answer it, not as it should be."""
        given_up_ms = self._orchestrator.time_left_ms(delivery.command)
        match fault.kind:
            case Kind.SLOW:
                self._finish(delivery, delay_ms=fault.delay_ms)
            case Kind.LATE:
                self._finish(delivery, delay_ms=given_up_ms + fault.delay_ms)
            case Kind.DONE_LATE:
                self._clock.call_in(given_up_ms + fault.delay_ms, partial(self._finish, delivery))
            case Kind.ANSWERED_TWICE:
                self._finish(delivery, copies=2)
            case Kind.DELIVERED_TWICE:
                if not delivery.again:
                    self._clock.call_in(0, partial(self._deliver, replace(delivery, again=True)))
                self._finish(delivery)
            case _:
                self._finish(delivery, fault=fault)

    def _finish(self, delivery: Delivery, *, fault: Fault | None = None, delay_ms: int = 0, copies: int = 1) -> None:
        """Do a command now, and answer it as soon as all else of now has happened, or so much later."""
        reply, waited_ms = self._try(self._registration(delivery.command), delivery.command, fault=fault)
        self._clock.call_in(waited_ms + delay_ms, partial(self._answer, delivery, reply, copies=copies))

    def _registration(self, command: Command) -> Registration:
        registration = self._services[command.service].registration(command)
        if registration is None:
            raise ScenarioError(f"service {command.service} has no {command.type}")
        return registration

    def _try(
        self, registration: Registration, command: Command, *, fault: Fault | None = None, key: str | None = None
    ) -> tuple[Reply, int]:
        """Call a handler, more than once if need be; its reply, and how long it waited in between, ms."""
        waited_ms = 0
        tries = registration.tries
        for attempt in range(1, tries + 1):
            try:
                return self._call(registration, command, fault, key), waited_ms
            except MalformedMessage as error:
                why = f"the result of {command.type} is unusable: {error}"
                break
            except ScenarioError:
                raise
            except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001 - as service_runner does; the story has it
                _raise_outage(error)
                why = describe(error)
                text = f"step {command.step}: {command.type} raised {why} (try {attempt} of {tries})"
                # Of what the test itself has raised there is nothing to learn; what was raised each time is shown once.
                injected = fault is not None and error is fault.raised
                self._tell(command, text, error if attempt == tries and not injected else None)
                waited_ms += round(backoff.delay(attempt) * 1000) if attempt < tries else 0
        return reply_to(command, failed(command.type), error=encode(printable(why)), unknown=True), waited_ms

    def _call(self, registration: Registration, command: Command, fault: Fault | None, key: str | None) -> Reply:
        if fault is not None and fault.kind is Kind.RAISES:
            raise fault.raised.with_traceback(None)
        self.called.append(command)
        context = context_of(command, key)
        if registration.is_async:
            reply = self._event_loop(command).run(call_async(registration.handler, command, context))
        else:
            reply = call(registration.handler, command, context)
        if fault is not None and fault.kind is Kind.RAISES_AFTER_EFFECT:
            raise fault.raised.with_traceback(None)
        return reply

    def _event_loop(self, command: Command) -> asyncio.Runner:
        """The one that all async handlers of a test run in, as those of a process do."""
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the other one raises where there is none
            raise ScenarioError(
                f"{command.type} has an async handler, and the test itself runs in an event loop: "
                "call sagas.run from a plain test, or in a thread: await asyncio.to_thread(sagas.run, steps)"
            )
        self._loop = self._loop or asyncio.Runner()
        return self._loop

    def _answer(self, delivery: Delivery, reply: Reply, *, final: bool = False, copies: int = 1) -> None:
        """Record a reply and send it, as answer.lua does; what was overruled meanwhile is undone first."""
        command = delivery.command
        answered = answer(
            self._records[command.service],
            record=command.record,
            tombstone="" if command.compensating else command.tombstone,
            seen=delivery.seen,
            kind="final" if final else service_rules.kind(command, reply),
            payload=reply.payload or b"",
            body=reply.body(),
        )
        if answered.sent is None:
            self._overrule(delivery, reply.result, service_rules.refusal(command))
            return
        self._records[command.service] = answered.records
        in_doubt: Fields = {"unknown": 1} if answered.in_doubt else {}
        sent = read_reply(_entry(reply.fields() | {"body": answered.sent} | in_doubt))
        assert isinstance(sent, Reply)
        for _ in range(copies):
            self._clock.call_in(0, partial(self._orchestrator.reply, sent))

    def _overrule(self, delivery: Delivery, result: bytes | None, refusal: Reply) -> None:
        """Undo what may have come of a command that must not be done any more, and answer it."""
        command, service = delivery.command, self._services[delivery.command.service]
        self._tell(command, f"step {command.step}: {command.type} must not be done any more: what came of it is undone")
        if (name := service.undo_of(command)) is not None:
            if delivery.again and self._count(f"undo of entry {delivery.entry}") >= MAX_TAKEOVERS:
                self._tell(command, f"quarantined: {command.type} could not be undone {MAX_TAKEOVERS} times")
                return
            undoing = replace(command, type=name, compensating=True, result=result)
            registration = service.registration(undoing)
            # Under a key of its own: the step's compensation has run under the usual one, and has found nothing.
            key = f"{undoing.key}/{delivery.entry}"
            if registration is None or self._try(registration, undoing, key=key)[0].type != ok(name):
                self._hand_over(delivery)
                return
        self._answer(delivery, refusal, final=True)

    def _hand_over(self, delivery: Delivery) -> None:
        """Another process takes a command over when the lease has run out."""
        lease_ms = self._services[delivery.command.service].lease_ms
        self._clock.call_in(lease_ms, partial(self._deliver, replace(delivery, again=True)))

    def _count(self, what: str) -> int:
        self._counts[what] += 1
        return self._counts[what]

    def _tell(self, command: Command, text: str, error: BaseException | None = None) -> None:
        self._story.add(self._clock.elapsed_ms, command.saga_id, text, error)


def _entry(fields: Fields) -> dict[bytes, bytes]:
    """A message as it is read from a stream."""
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}


def _raise_outage(error: BaseException) -> None:
    """Raise what in production is waited out: here nobody mends it."""
    if isinstance(error, Exception) and "redis" in sys.modules:
        from sagastream.broker.outage import is_outage

        if isinstance(error, sys.modules["redis"].RedisError) and is_outage(error):
            raise error

"""The services of a test: their processes carry out `service_rules` without a broker, and what goes wrong."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from sagastream.core import service_rules
from sagastream.core.commands import Command, Reply, failed, reply_to
from sagastream.core.messages import Fields
from sagastream.core.parsing import read_command, read_reply
from sagastream.core.sealing import Codec
from sagastream.core.service_actions import RELEASE, RUN, Answer, Count, Next, Release, Run, SetAside, Undo
from sagastream.core.strict_json import encode
from sagastream.errors import ScenarioError, ServiceError
from sagastream.service.declaration import Service
from sagastream.service.registration import Registration
from sagastream.testing.calls import Calls
from sagastream.testing.clock import Clock
from sagastream.testing.faults import Fault, Faults, Kind
from sagastream.testing.orchestrator import InProcessOrchestrator
from sagastream.testing.records import Records, answer, recall
from sagastream.testing.story import Story

#: The faults after which nobody answers.
_NOT_ANSWERED: Final = (Kind.LOST, Kind.ANSWER_LOST, Kind.CRASHES, Kind.CRASHES_AFTER_EFFECT)


class Delivery(Struct, frozen=True, kw_only=True):
    """A command, as a process gets it."""

    command: Command
    entry: int  # counts the entries of all streams
    again: bool = False  # another process had it before
    seen: bytes = b""  # its record when it was looked up
    todo: Run | Undo = RUN


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
        codec: Codec | None = None,
    ) -> None:
        """`published`: filled with what each service publishes. `codec`: of services that have none."""
        self._clock = clock
        self._story = told
        self._faults = faults
        self._orchestrator = orchestrator
        self._published = published
        self._codec = codec
        self._services: dict[str, Service] = {}
        self._records: dict[str, Records] = {}
        self._counts: Counter[str] = Counter()  # of what the rules have counted
        self._entries = 0
        self._calls = Calls(clock, told)
        #: Each time that a handler was called.
        self.called: Sequence[Command] = self._calls.made

    @property
    def codec(self) -> Codec | None:
        """That of the clients of this test: the one that was given or, if none was, that of a service."""
        if self._codec is not None:
            return self._codec
        return next((service.codec for service in self._services.values() if service.codec is not None), None)

    @property
    def services(self) -> Mapping[str, Service]:
        return self._services

    def add(self, service: Service) -> None:
        """Raises ServiceError if it is not a Service, is declared wrongly, or its name is taken."""
        if not isinstance(service, Service):
            raise ServiceError(
                f"{service!r} is not a Service: give services one by one, as in sagas.serve(one, another)"
            )
        if service.name in self._services:
            raise ServiceError(f"two services are called {service.name}")
        self._published[service.name] = service.publishes()
        self._services[service.name] = service
        self._records[service.name] = {}

    def close(self) -> None:
        self._calls.close()

    def send(self, command: Command) -> None:
        """Send a command to a service: a process gets it as soon as all else of now has happened."""
        self._entries += 1
        read = read_command(command.service, _entry(command.fields()), self._clock.now_ms)
        assert isinstance(read, Command)
        self._clock.call_in(0, partial(self._deliver, Delivery(command=read, entry=self._entries)))

    # --- the stages of one command, as in service.inbox, service.executor and service.outbox

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
        step = service_rules.delivered(command, record=found.record, tombstone=found.tombstone, again=delivery.again)
        if isinstance(step, Answer):
            self._tell(command, f"step {command.step}: {command.type} is answered without its handler")
            self._answer(delivery, step)
        else:
            self._begin(replace(delivery, todo=step, seen=found.record or b""))

    def _begin(self, delivery: Delivery) -> None:
        """A process begins with a command that is to be done or undone."""
        if delivery.todo is not RUN:
            self._undo(delivery, delivery.todo)
            return
        step = self._counted(delivery, self._before_call(delivery))
        if step is RUN:
            self._run(delivery, self._faults.strike(delivery.command))
        else:
            self._carry_out(delivery, step)

    def _undo(self, delivery: Delivery, todo: Undo) -> None:
        """Undo what may have come of a command that must not be done any more."""
        command, service = delivery.command, self._services[delivery.command.service]
        self._tell(command, f"step {command.step}: {command.type} must not be done any more: what came of it is undone")
        compensation, entry_id = service.undo_of(command), str(delivery.entry)
        call = service_rules.undoing(command, todo, compensation=compensation, entry_id=entry_id)
        if isinstance(call, Answer):
            self._answer(delivery, call)
            return
        registration = service.registration(call.command)
        if registration is None:
            rule = partial(service_rules.without_handler, command, todo, again=delivery.again)
            self._carry_out(delivery, self._counted(delivery, rule))
            return
        step = self._counted(delivery, self._before_call(delivery))
        if isinstance(step, Undo):
            step, _ = self._called(registration, todo, call.command, key=call.key)
        self._carry_out(delivery, step)

    def _before_call(self, delivery: Delivery) -> Callable[..., Next]:
        return partial(
            service_rules.before_call,
            delivery.command,
            delivery.todo,
            is_first=True,
            again=delivery.again,
            taken_over=delivery.again,
            now_ms=self._clock.now_ms,
        )

    def _counted(self, delivery: Delivery, rule: Callable[..., Next]) -> Next:
        """What a rule says; if it asks for a number, once it has that."""
        step = rule()
        if isinstance(step, Count):
            what = f"{step} {delivery.command.service} {delivery.command.record}"
            if step is Count.UNDOS:
                what += f" {delivery.entry}"
            self._counts[what] += 1
            step = rule(times=self._counts[what])
        return step

    def _run(self, delivery: Delivery, fault: Fault | None) -> None:
        """Run a command and answer it; or what the test has happen instead."""
        if fault is None:
            self._finish(delivery)
            return
        command = delivery.command
        self._tell(command, f"as the test has it: {fault}")
        if fault.kind in _NOT_ANSWERED:
            if fault.kind in (Kind.ANSWER_LOST, Kind.CRASHES_AFTER_EFFECT):
                self._called(self._registration(command), RUN, command)
            if fault.kind in (Kind.CRASHES, Kind.CRASHES_AFTER_EFFECT):
                self._hand_over(delivery)
        elif fault.kind is Kind.REJECTED:
            rejection = reply_to(command, failed(command.type), error=encode(fault.error))
            step = service_rules.replied(RUN, command, rejection)
            self._clock.call_in(0, partial(self._carry_out, delivery, step))
        else:
            self._finish_wrongly(delivery, fault)

    def _finish_wrongly(self, delivery: Delivery, fault: Fault) -> None:
        """Run a command and answer it, but not as it should be."""
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
        """Run a command now, and answer it as soon as all else of now has happened, or so much later."""
        step, waited_ms = self._called(self._registration(delivery.command), RUN, delivery.command, fault=fault)
        self._clock.call_in(waited_ms + delay_ms, partial(self._carry_out, delivery, step, copies=copies))

    def _registration(self, command: Command) -> Registration:
        registration = self._services[command.service].registration(command)
        if registration is None:
            raise ScenarioError(f"service {command.service} has no {command.type}")
        return registration

    def _called(
        self, registration: Registration, todo: Run | Undo, command: Command, **more: Any
    ) -> tuple[Answer | Release, int]:
        """Call a handler; see Calls.tried."""
        codec = self._services[command.service].codec or self._codec
        return self._calls.tried(registration, todo, command, codec=codec, **more)

    def _carry_out(self, delivery: Delivery, step: Next, *, copies: int = 1) -> None:
        """`copies`: how often the answer reaches the orchestrator."""
        if isinstance(step, Answer):
            self._answer(delivery, step, copies=copies)
        elif step is RELEASE:
            self._hand_over(delivery)
        elif isinstance(step, SetAside):
            self._tell(delivery.command, f"quarantined: {step.reason}")

    def _answer(self, delivery: Delivery, given: Answer, *, copies: int = 1) -> None:
        """Record a reply and send it, as answer.lua does."""
        command, reply = delivery.command, given.reply
        answered = answer(
            self._records[command.service],
            record=command.record,
            tombstone="" if command.compensating else command.tombstone,
            seen=delivery.seen,
            kind=given.kind,
            payload=reply.payload or b"",
            body=reply.body(),
        )
        if answered.sent is None:
            todo = service_rules.overruled(command, reply, is_held=True)
            assert isinstance(todo, Undo)  # nothing happens to a process here before it undoes what it has to
            self._begin(replace(delivery, todo=todo))
            return
        self._records[command.service] = answered.records
        in_doubt: Fields = {"unknown": 1} if answered.in_doubt else {}
        sent = read_reply(_entry(reply.fields() | {"body": answered.sent} | in_doubt))
        assert isinstance(sent, Reply)
        for _ in range(copies):
            self._clock.call_in(0, partial(self._orchestrator.reply, sent))

    def _hand_over(self, delivery: Delivery) -> None:
        """Another process takes a command over when the lease has ended."""
        lease_ms = self._services[delivery.command.service].lease_ms
        self._clock.call_in(lease_ms, partial(self._deliver, replace(delivery, again=True)))

    def _tell(self, command: Command, text: str) -> None:
        self._story.add(self._clock.elapsed_ms, command.saga_id, text)


def _entry(fields: Fields) -> dict[bytes, bytes]:
    """A message as it is read from a stream."""
    return {name.encode(): value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}

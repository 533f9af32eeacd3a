"""Calls handlers as the processes of a service do, and raises what is a fault of the test."""

import asyncio
import sys
from contextvars import copy_context

from sagastream.console import describe, printable
from sagastream.core import service_rules
from sagastream.core.commands import Command, Reply
from sagastream.core.sealed_messages import open_command, sealed_reply
from sagastream.core.sealing import Codec
from sagastream.core.service_actions import Answer, Release, Retry, Run, Undo
from sagastream.errors import CannotOpen, MalformedMessage, ScenarioError
from sagastream.service.handlers import call, call_async, context_of
from sagastream.service.registration import Registration
from sagastream.testing.clock import Clock
from sagastream.testing.faults import Fault, Kind
from sagastream.testing.story import Story
from sagastream.tracing.context import within_saga


class Calls:
    """Those of one test."""

    def __init__(self, clock: Clock, told: Story) -> None:
        self._clock = clock
        self._story = told
        self._loop: asyncio.Runner | None = None
        self.made: list[Command] = []  # each time that a handler was called

    def close(self) -> None:
        """End the event loop of async handlers."""
        if self._loop is not None:
            self._loop.close()

    def tried(
        self,
        registration: Registration,
        todo: Run | Undo,
        called: Command,
        *,
        codec: Codec | None,
        fault: Fault | None = None,
        key: str | None = None,
    ) -> tuple[Answer | Release, int]:
        """Call a handler, more than once if the rules say so. Returns what they say in the end, and how long it took,
        in milliseconds.

        `codec`: of the service. `fault`: what the test has happen. `key`: the idempotency key; None: that of the
        command.
        """
        waited_ms = tries = 0
        while True:
            tries += 1
            try:
                reply = self._call(registration, called, codec, fault, key)
                return service_rules.replied(todo, called, reply), waited_ms
            except MalformedMessage as error:
                why = service_rules.unusable(called, printable(f"{error} (handler {registration.handler_name})"))
                return service_rules.in_doubt(todo, called, why), waited_ms
            except ScenarioError:
                raise
            except BaseException as error:
                if _is_of_the_test(error):
                    raise
                _raise_outage(error)
                why = describe(error)
                step = service_rules.raised(todo, called, why, tries=tries, limit=registration.tries)
                text = f"step {called.step}: {called.type} raised {why} (try {tries} of {registration.tries})"
                # There is nothing to learn from what the test itself raised; an error that is raised each time is shown
                # once.
                is_shown = not isinstance(step, Retry) and not (fault is not None and error is fault.raised)
                self._story.add(self._clock.elapsed_ms, called.saga_id, text, error if is_shown else None)
                if not isinstance(step, Retry):
                    return step, waited_ms
                waited_ms += round(step.after_s * 1000)

    def _call(
        self, registration: Registration, command: Command, codec: Codec | None, fault: Fault | None, key: str | None
    ) -> Reply:
        if fault is not None and fault.kind is Kind.RAISES:
            raise fault.raised.with_traceback(None)
        try:
            command = open_command(codec, command)
        except CannotOpen as error:
            raise ScenarioError(f"service {command.service} cannot open {command.type}: {error}") from None
        self.made.append(command)
        context = context_of(command, lambda: self._clock.now_ms / 1000, key)
        with within_saga(command):
            if registration.is_async:
                loop = self._event_loop(command)
                calling = call_async(registration.handler, command, context, registration.model)
                reply = loop.run(calling, context=copy_context())
            else:
                reply = call(registration.handler, command, context, registration.model)
        if fault is not None and fault.kind is Kind.RAISES_AFTER_EFFECT:
            raise fault.raised.with_traceback(None)
        return sealed_reply(codec, command, reply)

    def _event_loop(self, command: Command) -> asyncio.Runner:
        """The one that all async handlers of a test run in, as those of a process do."""
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public function raises if no loop runs
            raise ScenarioError(
                f"{command.type} has an async handler, and the test itself runs in an event loop: "
                "call sagas.run from a plain test, or in a thread: await asyncio.to_thread(sagas.run, steps)"
            )
        self._loop = self._loop or asyncio.Runner()
        return self._loop


def _is_of_the_test(error: BaseException) -> bool:
    """Whether this ends the test: Ctrl-C, or what pytest.fail and pytest.skip raise. In production it would be a
    failure of the handler, as everything else is here."""
    outcomes = sys.modules.get("_pytest.outcomes")
    return isinstance(error, KeyboardInterrupt if outcomes is None else KeyboardInterrupt | outcomes.OutcomeException)


def _raise_outage(error: BaseException) -> None:
    """Raise an outage, which is waited out in production: here nobody ends it."""
    if isinstance(error, Exception) and "redis" in sys.modules:
        from sagastream.broker.failures import is_outage

        if isinstance(error, sys.modules["redis"].RedisError) and is_outage(error):
            raise error

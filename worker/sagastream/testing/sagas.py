"""Sagas, with which tests are written: an orchestrator and services in one process, and the time of the test."""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec.structs import replace

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.messages import DeadlineKind, Signal, Verb
from sagastream.core.parsing import parse_intervene
from sagastream.core.pauses import Pause, Resume, name_of_pause
from sagastream.core.sealing import Codec
from sagastream.errors import RequestRefused, ScenarioError
from sagastream.service.declaration import Service
from sagastream.testing.clock import Clock
from sagastream.testing.faults import CommandFaults, Faults, Target
from sagastream.testing.names import check_known, check_served, untaken_signal
from sagastream.testing.orchestrator import InProcessOrchestrator
from sagastream.testing.saga import REASON, Saga, named
from sagastream.testing.services import InProcessServices
from sagastream.testing.signals import Plan, Signals, signal
from sagastream.testing.story import Story
from sagastream.testing.tracebacks import without_ours
from sagastream.tracing.context import current_trace

if TYPE_CHECKING:
    from sagastream.client.definition import Definition
    from sagastream.client.durability import Durable

#: A step, as `SagaClient.begin` takes it.
Step = Mapping[str, Any]

#: More than any saga needs that ends.
_MOST_MOVES: Final = 100_000


class Sagas:
    """An orchestrator and services in this process. Commands are sent and handlers are called only during `run`,
    `advance` and `settle`, during the requests of an operator (`Saga.cancel`, `retry`, `skip`, `abandon`), and during
    `Saga.signal`."""

    @without_ours
    def __init__(self, *services: Service, seed: int = 0, codec: Codec | None = None) -> None:
        """`services`: as for `serve`. `seed`: for the random part of the delays between attempts. `codec`: seals the
        params of sagas, opens their results, and is that of services that have none of their own.

        Raises ServiceError as `serve` does.
        """
        self.clock = Clock()
        self._story = Story()
        self._faults = Faults()
        self.signals = Signals()
        self._published: dict[str, dict[str, str | None]] = {}
        self._orchestrator = InProcessOrchestrator(self.clock, self._story, self._published, seed=seed)
        self._services = InProcessServices(
            self.clock,
            self._story,
            faults=self._faults,
            orchestrator=self._orchestrator,
            published=self._published,
            codec=codec,
        )
        # Books may outlive a test: an SQLite file must not take the first saga of the next test for one that it knows.
        self._run_id = uuid.uuid4().hex[:12]
        self._requests = 0
        self._moving = False
        self.serve(*services)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            self.check_faults()

    def close(self) -> None:
        """Cancel the tasks that async handlers have left running."""
        self._services.close()

    @without_ours
    def serve(self, *services: Service) -> None:
        """Add services: from now on they get the commands with their names.

        Raises ServiceError if a service is declared in a way that is not allowed, or a service of its name was added
        before.
        """
        for service in services:
            self._services.add(service)

    @without_ours
    def command(self, name: str, *, step: int | None = None, saga_id: str | None = None) -> CommandFaults:
        """Choose the commands that are to go wrong; a method of what is returned says how. `name`: of a command or a
        compensation. `step` (from 1) and `saga_id`: only in that step, only in that saga.

        Raises ScenarioError if no service here has such a command, or `step` is not a whole number from 1 on.
        """
        check_known(name, self._services.services)
        if step is not None and (type(step) is not int or step < 1):
            raise ScenarioError(f"{name} of step {step!r}: steps count from 1")
        return CommandFaults(self._faults, Target(name=name, step=step, saga_id=saga_id))

    @without_ours
    def on_wait(
        self,
        name: str,
        payload: Any = None,
        *,
        decline: str | None = None,
        after_s: float = 0.0,
        times: int | None = 1,
    ) -> None:
        """From now on, the signal `name` comes whenever a step waits for it, of any saga. Otherwise, a test signals by
        `Saga.signal`.

        Args:
            payload: any JSON value; the result of the step.
            decline: the step fails, with this reason.
            after_s: how many seconds after the step has begun to wait.
            times: how often it comes for one step of a saga; a step that is tried again may wait more than once. None:
                whenever it waits.

        Raises ScenarioError for a signal that cannot be sent.
        """
        if not isinstance(after_s, int | float) or not 0 <= after_s < math.inf:
            raise ScenarioError(f"signal {name}: after_s is a number of seconds, at least 0, not {after_s!r}")
        plan = Plan(name=name, payload=payload, decline=decline, after_ms=round(after_s * 1000), times=times)
        self.signals.plan(plan)

    @without_ours
    def begin(
        self,
        steps: "Sequence[Step] | Definition",
        input: Any = None,  # noqa: A002 - as SagaClient.begin calls it
        *,
        saga_id: str | None = None,
        deadline_ms: int | None = None,
        deadline: DeadlineKind | None = None,
        start_at: datetime | None = None,
        attributes: Mapping[str, str | int] | None = None,
        durable: "Durable | None" = None,
    ) -> Saga:
        """Begin a saga. Its first commands are sent only when time passes, see `advance` and `settle`.

        Args:
            steps: as for `SagaClient.begin`; or a Definition.
            input: what its steps may refer to.
            saga_id: by default one that no other saga of any test has, such as "saga-1-5f0c2a9e41d7".
            deadline_ms: as for `SagaClient.begin`. A Definition has its own.
            deadline: as for `SagaClient.begin`. A Definition has its own.
            start_at: it does nothing before this time, by `clock`.
            attributes: as for `SagaClient.begin`.
            durable: as for `SagaClient.begin`. Here nothing is ever lost, so it changes nothing.

        Raises:
            MalformedMessage: says what is wrong, and where.
            ScenarioError: `steps` is neither a sequence of mappings nor a Definition, or a step names a service or a
                command that is not there.
            RequestRefused: another saga has the id.
        """
        saga_id = saga_id or f"saga-{len(self._orchestrator.states) + 1}-{self._run_id}"
        # Imported here: it takes the client, with its broker, which a test of plain sagas does not need.
        from sagastream.client import requests
        from sagastream.client.durability import check_durable

        check_durable(durable)
        limits = {"deadline_ms": deadline_ms, "deadline": deadline}
        body = _body(steps, input, limits, saga_id=saga_id, start_at=start_at, attributes=attributes)
        traceparent, tracestate = current_trace()
        request = parse_begin(body, request_id=self._request_id(), traceparent=traceparent, tracestate=tracestate)
        check_served(request, self._services.services, self._published)
        request = requests.sealed(self._services.codec, request)
        self._orchestrator.request(request)
        return Saga(
            saga_id,
            orchestrator=self._orchestrator,
            services=self._services,
            told=self._story,
            intervene=self._intervene,
            signal=self._signal,
        )

    @without_ours
    def run(
        self,
        steps: "Sequence[Step] | Definition",
        input: Any = None,  # noqa: A002 - as SagaClient.begin calls it
        *,
        saga_id: str | None = None,
        deadline_ms: int | None = None,
        deadline: DeadlineKind | None = None,
        start_at: datetime | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> Saga:
        """Begin a saga, then let time pass as `settle` does: the saga has ended or is parked. A signal that a step
        waits for comes only if the test has said so before, by `on_wait`. Arguments and errors are those of `begin`."""
        saga = self.begin(
            steps,
            input,
            saga_id=saga_id,
            deadline_ms=deadline_ms,
            deadline=deadline,
            start_at=start_at,
            attributes=attributes,
        )
        self.settle()
        return saga

    @without_ours
    def advance(self, seconds: float) -> None:
        """Let `seconds` of the test's time pass. Everything that is due in that time happens, in order.

        Raises ScenarioError if `seconds` is less than 0.
        """
        if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ScenarioError(f"time cannot advance by {seconds!r} s; give a number of seconds, at least 0")
        until_ms = self.clock.now_ms + round(seconds * 1000)
        self._move(until_ms)
        self.clock.go_to(until_ms)

    @without_ours
    def advance_until(self, condition: Callable[[], bool]) -> None:
        """Let time pass until `condition()` is true, or nothing more happens.

        Raises ScenarioError if neither comes about.
        """
        self._move(None, condition)

    @without_ours
    def settle(self) -> None:
        """Let time pass until nothing more happens: each saga has ended, is parked, or is held since something is
        paused.

        Raises ScenarioError if that does not come about.
        """
        self._move(None)

    @without_ours
    def pause(
        self, service: str, command: str | None = None, *, reason: str = REASON, actor: str | None = None
    ) -> None:
        """Pause a service, or one of its commands: from now on nothing of it is sent, and steps that would send it are
        held. What is out is answered. `settle` returns while sagas are held."""
        now_ms = self.clock.now_ms
        pause = Pause(service=service, command=command, reason=reason, actor=actor, since_ms=now_ms)
        self._orchestrator.pauses[pause.name] = pause

    @without_ours
    def resume(
        self, service: str, command: str | None = None, *, reason: str = REASON, actor: str | None = None
    ) -> None:
        """Resume what was paused by this very name, and let time pass as `settle` does.

        Raises ScenarioError if it is not paused.
        """
        name = name_of_pause(service, command)
        if name not in self._orchestrator.pauses:
            known = ", ".join(sorted(self._orchestrator.pauses)) or "nothing"
            raise ScenarioError(f"{name} is not paused; paused: {known}")
        del self._orchestrator.pauses[name]
        now_ms = self.clock.now_ms
        resume = Resume(service=service, command=command, reason=reason, actor=actor, at_ms=now_ms)
        self._orchestrator.resumes[name] = resume
        self._orchestrator.look_at_held()
        self.settle()

    @without_ours
    def check_faults(self) -> None:
        """Check that each fault that the test declared has happened at least once, and that some step of its sagas
        takes each signal of `on_wait`. The fixture `sagas` calls this after each test that passes.

        Raises ScenarioError if that is not so: then the test does not test what it claims.
        """
        if (unknown := self._untaken_signal()) is not None:
            raise ScenarioError(unknown)
        self._faults.check(self._orchestrator.sent)

    def explain(self) -> str:
        """What has happened to each saga, one line for each event. A failed test shows this."""
        told = [self._story.tell(state) for state in self._orchestrator.states.values()]
        if (unknown := self._untaken_signal()) is not None:
            told.append(unknown)
        return "\n\n".join(told)

    def _untaken_signal(self) -> str | None:
        return untaken_signal(self.signals.names, self._orchestrator.states.values())

    def _move(self, until_ms: int | None, until: Callable[[], bool] = lambda: False) -> None:
        if self._moving:
            raise ScenarioError("a handler must not let time pass; to run a saga from there, call sagas.begin(steps)")
        self._moving = True
        try:
            self._move_until(until_ms, until)
        finally:
            self._moving = False

    def _move_until(self, until_ms: int | None, until: Callable[[], bool]) -> None:
        """Until this time, or this is true."""
        for _ in range(_MOST_MOVES * max(1, len(self._orchestrator.states))):
            for command in self._orchestrator.take_commands():
                self._services.send(command)
            for awaited in self._orchestrator.take_awaited():
                for after_ms, coming in self.signals.for_(awaited):
                    self.clock.call_in(after_ms, partial(self._try_signal, coming))
            if until():
                return
            next_ms, due_ms = self.clock.next_ms, self._orchestrator.next_due_ms
            first_ms = min((ms for ms in (next_ms, due_ms) if ms is not None), default=None)
            if first_ms is None or (until_ms is not None and first_ms > until_ms):
                return
            if first_ms == next_ms:  # messages come before timers of the same time
                self.clock.do_next()
            else:
                self._orchestrator.do_due()
        raise ScenarioError(f"the sagas go on and on. The last lines:\n{self.explain()[-2000:]}")

    def _intervene(self, verb: Verb, saga_id: str, reason: str, **more: object) -> None:
        body = {"type": f"saga_{verb}", "saga_id": saga_id, "reason": reason} | more
        self._orchestrator.request(parse_intervene(body, request_id=self._request_id()))
        self.settle()

    def _signal(self, saga_id: str, name: str, payload: Any, *, decline: str | None, actor: str | None) -> None:
        self._send_signal(signal(saga_id, name, payload, decline=decline, **named(actor=actor)))
        self.settle()

    def _try_signal(self, coming: Signal) -> None:
        """A signal that comes by itself may come too late."""
        try:
            self._send_signal(coming)
        except RequestRefused as refused:
            self._story.add(self.clock.elapsed_ms, coming.saga_id, f"the signal {coming.name} is refused: {refused}")

    def _send_signal(self, sent: Signal) -> None:
        from sagastream.client import requests

        request = requests.to_send(self._services.codec, sent)
        self._orchestrator.request(replace(request, request_id=self._request_id(), added_ms=self.clock.now_ms))

    def _request_id(self) -> str:
        self._requests += 1
        return f"request-{self._requests}"


def _body(steps: "Sequence[Step] | Definition", data: Any, limits: Mapping[str, Any], **more: Any) -> Any:
    """The body of a request to begin a saga. `limits`: how long it may take. Raises as `Sagas.begin` does."""
    from sagastream.client import requests
    from sagastream.client.definition import Definition

    if isinstance(steps, Definition):
        if any(limit is not None for limit in limits.values()):
            raise ScenarioError("a definition says the deadline of its sagas: leave deadline_ms and deadline out")
        return steps.saga(data, **more)
    if isinstance(steps, Sequence) and all(isinstance(step, Mapping) for step in steps):
        given: Any = [dict(step) for step in steps]
        return requests.saga(steps=given, input=data, **limits, **more)
    raise ScenarioError(f"steps is a list of steps, each a dict, as in sagas.run([step]); not {steps!r:.100}")

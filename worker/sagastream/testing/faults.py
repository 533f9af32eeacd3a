"""What goes wrong in a test: which command, in what way, how often."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from sagastream.console import printable
from sagastream.core.commands import Command
from sagastream.core.strict_json import encode_payload
from sagastream.errors import Reject, ScenarioError
from sagastream.testing.tracebacks import without_ours


class Kind(Enum):
    """How a command goes wrong, in words that follow its name."""

    REJECTED = "is rejected"
    RAISES = "raises, not having been done"
    RAISES_AFTER_EFFECT = "raises, having been done"
    LOST = "is lost: neither done nor answered"
    ANSWER_LOST = "is done, and its answer is lost"
    SLOW = "is done at once, and answered later"
    LATE = "is done at once, and answered when nobody waits for it any more"
    DONE_LATE = "is done, and answered, when nobody waits for it any more"
    ANSWERED_TWICE = "is answered twice"
    DELIVERED_TWICE = "is given to two processes at once"
    CRASHES = "is not done: its process dies, and another takes it over"
    CRASHES_AFTER_EFFECT = "is done, then its process dies, and another takes it over"


class InjectedError(Exception):
    """What a handler raises if a test makes it raise and does not say which exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The commands that go wrong: those with one name, in all steps and sagas or in one."""

    name: str
    step: int | None = None
    saga_id: str | None = None

    def matches(self, command: Command) -> bool:
        """Whether the command is one of them."""
        return (
            command.type == self.name and self.step in (None, command.step) and self.saga_id in (None, command.saga_id)
        )

    def __str__(self) -> str:
        step = f" of step {self.step}" if self.step is not None else ""
        saga = f" of {self.saga_id}" if self.saga_id is not None else ""
        return f"{self.name}{step}{saga}"


@dataclass(slots=True, kw_only=True, eq=False)
class Fault:
    """One thing that goes wrong. `times` and `skip` count deliveries: each attempt is one, and each time that another
    process takes the command over is one. If one process calls the handler several times in a row, that counts once."""

    target: Target  # the commands that go wrong
    kind: Kind  # in what way
    times: int | None = None  # how often it goes wrong; None: each time
    skip: int = 0  # how often it goes well before that
    error: object = None  # REJECTED: the error, a JSON value
    raised: Exception = field(default_factory=lambda: InjectedError("as the test has it"))  # RAISES: what is raised
    delay_ms: int = 0  # SLOW: how long the answer takes; LATE and DONE_LATE: how much later than its timeout
    came: int = 0  # how many deliveries there were
    struck: int = 0  # how many of them went wrong
    stopped: bool = False  # whether `stop` was called

    def stop(self) -> None:
        """End the fault: from now on all goes well."""
        self.stopped = True

    def strikes(self, command: Command) -> bool:
        """Whether this delivery of this command goes wrong. Counts the delivery."""
        if self.stopped or not self.target.matches(command) or (self.times is not None and self.struck >= self.times):
            return False
        self.came += 1
        if self.came <= self.skip:
            return False
        self.struck += 1
        return True

    def __str__(self) -> str:
        error = f": {printable(str(self.error))}" if self.kind is Kind.REJECTED else ""
        often = {None: "", 1: ", once"}.get(self.times, f", {self.times} times")
        return f"{self.target} {self.kind.value}{error}{often}"


class Faults:
    """All faults of a test, in the order in which the test declares them. The first one that applies happens."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def strike(self, command: Command) -> Fault | None:
        """The fault that happens to this delivery of this command; None: none."""
        return next((fault for fault in self._faults if fault.strikes(command)), None)

    def check(self, sent: list[Command]) -> None:
        """Raises ScenarioError if one of them never happened: then the test does not test what it claims. `sent`: all
        commands of the test, to say why."""
        for fault in self._faults:
            if fault.struck:
                continue
            times = sum(fault.target.matches(command) for command in sent)
            if fault.came:
                why = f"its handler was to be called {fault.came} times, and {fault.skip} were to go well"
            elif times:
                why = "another fault, or an answer that was there already, always came first"
            else:
                names = ", ".join(dict.fromkeys(f"{command.type} (step {command.step})" for command in sent))
                why = f"it was never sent. What was sent: {names or 'nothing'}"
            raise ScenarioError(f"a fault that never happened: {fault}. Of {fault.target}: {why}")


class CommandFaults:
    """Says what goes wrong with the commands that `Sagas.command` names. Each method returns the fault; its `stop` ends
    it.

    Each method takes `times`, how often the command goes wrong (None: each time), and `skip`, how often it goes well
    before that. Raises ScenarioError if `times` is less than 1, or `skip` or a delay less than 0.
    """

    def __init__(self, faults: Faults, target: Target) -> None:
        self._faults = faults
        self._target = target

    @without_ours
    def rejects(self, error: object, *, times: int | None = None, skip: int = 0) -> Fault:
        """The service rejects the command, as if its handler raised Reject(error). Its handler is not called. `error`:
        any JSON value."""
        if isinstance(error, Reject):
            raise ScenarioError(f"rejects takes the error itself, not a Reject: .rejects({error.error!r})")
        encode_payload(error)
        return self._add(Kind.REJECTED, times, skip, error=error)

    @without_ours
    def raises(
        self, error: Exception | None = None, *, after_effect: bool = False, times: int | None = None, skip: int = 0
    ) -> Fault:
        """The handler raises each time it is called: a process calls it up to three times. `error`: what it raises; by
        default an InjectedError. `after_effect`: the real handler runs first."""
        kind = Kind.RAISES_AFTER_EFFECT if after_effect else Kind.RAISES
        return self._add(kind, times, skip, raised=error or InjectedError("as the test has it"))

    @without_ours
    def times_out(self, *, after_effect: bool = False, times: int | None = None, skip: int = 0) -> Fault:
        """The command is never answered, and no other process takes it over. `after_effect`: the handler runs, and only
        its answer is lost."""
        return self._add(Kind.ANSWER_LOST if after_effect else Kind.LOST, times, skip)

    @without_ours
    def takes(self, seconds: float, *, times: int | None = None, skip: int = 0) -> Fault:
        """The handler runs at once, and its answer comes `seconds` later. No other process takes the command over
        meanwhile."""
        return self._add(Kind.SLOW, times, skip, delay_ms=_ms(seconds))

    @without_ours
    def answers_late(self, *, by_s: float = 0.001, times: int | None = None, skip: int = 0) -> Fault:
        """The handler runs at once, and its answer comes `by_s` seconds after the orchestrator has stopped waiting for
        it."""
        return self._add(Kind.LATE, times, skip, delay_ms=_ms(by_s))

    @without_ours
    def is_done_late(self, *, by_s: float = 0.001, times: int | None = None, skip: int = 0) -> Fault:
        """The handler runs, and answers, only `by_s` seconds after the orchestrator has stopped waiting for it."""
        return self._add(Kind.DONE_LATE, times, skip, delay_ms=_ms(by_s))

    @without_ours
    def answers_twice(self, *, times: int | None = None, skip: int = 0) -> Fault:
        """The handler runs once, and the orchestrator gets its answer twice."""
        return self._add(Kind.ANSWERED_TWICE, times, skip)

    @without_ours
    def is_delivered_twice(self, *, times: int | None = 1, skip: int = 0) -> Fault:
        """Two processes get the command: the handler runs a second time before the first process has answered."""
        return self._add(Kind.DELIVERED_TWICE, times, skip)

    @without_ours
    def crashes(self, *, after_effect: bool = False, times: int | None = 1, skip: int = 0) -> Fault:
        """The process dies, and another takes the command over after the lease of the service. `after_effect`: the
        process dies after the handler has run, and before its answer is recorded."""
        return self._add(Kind.CRASHES_AFTER_EFFECT if after_effect else Kind.CRASHES, times, skip)

    def _add(
        self,
        kind: Kind,
        times: int | None,
        skip: int,
        *,
        error: object = None,
        raised: Exception | None = None,
        delay_ms: int = 0,
    ) -> Fault:
        if times is not None and type(times) is not int:
            raise ScenarioError(f"{self._target}: times is a whole number, or None for each time, not {times!r}")
        if type(skip) is not int:
            raise ScenarioError(f"{self._target}: skip is a whole number, not {skip!r}")
        if (times is not None and times < 1) or skip < 0 or delay_ms < 0:
            raise ScenarioError(
                f"{self._target} cannot go wrong like that: times is at least 1; skip and the delay are at least 0"
            )
        fault = Fault(target=self._target, kind=kind, times=times, skip=skip, error=error, delay_ms=delay_ms)
        if raised is not None:
            fault.raised = raised
        return self._faults.add(fault)


def _ms(seconds: float) -> int:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ScenarioError(f"{seconds!r} is not a number of seconds")
    return round(seconds * 1000)

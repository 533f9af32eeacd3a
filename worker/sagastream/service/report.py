"""What a process of a service tells: the log what somebody should know of its commands, the observer all of it."""

import time
from collections.abc import Sequence

import redis

from sagastream.broker.failures import is_outage
from sagastream.console import summary
from sagastream.core.back import quote
from sagastream.core.commands import Command, Reply, ok
from sagastream.core.sealed_values import keys_of
from sagastream.errors import CannotOpen
from sagastream.service.declaration import EXIT_HANGS
from sagastream.service.registration import Registration
from sagastream.telemetry import Log, Observer, Outcome, about, guarded


class ServiceReport:
    """Tells of the commands of one process. Safe for several threads."""

    def __init__(self, who: str, observer: Observer | None) -> None:
        """`who`: the name of the process, as its log records have it."""
        self.log = Log("service", who)
        self._observer = guarded(observer)
        self._tells_starts = self._observer is not None and self._observer.watches("handler_started")
        self.is_observed = observer is not None

    def handler_started(self, command: Command, call: int) -> float:
        """`call`: see Observer.handler_started. Returns when it started, for the next."""
        if self._observer is None:
            return 0.0
        if self._tells_starts:
            self._observer.handler_started(command=command, call=call)
        return time.monotonic()

    def handler_finished(self, command: Command, call: int, result: Reply | BaseException, began_s: float) -> None:
        """`result`: its reply, or what it raised."""
        if self._observer is None:
            return
        outcome = _outcome(command, result)
        self._observer.handler_finished(
            command=command,
            call=call,
            outcome=outcome,
            duration_s=time.monotonic() - began_s,
            error=result if isinstance(result, BaseException) else None,
            rejection=_rejection(result) if outcome is Outcome.REJECTED else None,
        )

    def undoing(self, command: Command) -> None:
        text = f"{command.told} must not be done: undoing what may have come of it"
        self.log.warning(text, extra=about(command))

    def no_compensation(self, command: Command, name: str) -> None:
        text = f"{command.told} cannot be undone: the service has no compensation {name}"
        self.log.error(text, extra=about(command))

    def not_undone(self, command: Command, name: str) -> None:
        """`name`: of the compensation."""
        text = f"{command.told} is not undone yet: {name} did not succeed; it is tried again after the lease"
        self.log.error(text, extra=about(command))

    def not_published(self, unusable: Sequence[str]) -> None:
        """`unusable`: the keys that hold something else."""
        text = f"cannot publish its commands: {' and '.join(unusable)} hold something else; delete them"
        self.log.error(text)

    def left_to_others(self, name: str) -> None:
        text = f"has no {name}, which another release of the service publishes: leaves all of it to that release"
        self.log.warning(text)

    def cannot_open(self, command: Command, error: CannotOpen) -> None:
        text = f"{command.told} cannot be opened: {error}; leaves it, unanswered, to processes that can"
        self.log.error(text, extra=about(command))

    def alone(self, command: Command) -> None:
        text = f"{command.told} runs alone: processes that had taken it over have died, perhaps of it"
        self.log.warning(text, extra=about(command))

    def gave_up(self, command: Command, times: int) -> None:
        text = f"gave up on {command.told}: {times} processes died of it"
        self.log.error(text, extra=about(command))

    def not_sent(self, commands: Sequence[Command], error: redis.RedisError) -> None:
        """Told at the end of a process that could not send its last answers."""
        named = "; ".join(command.told for command in commands[:5])
        text = f"ends with {len(commands)} answers that were not sent ({summary(error)}): {named}"
        self.log.error(f"{text}; if such a step was refused meanwhile, see whether its effect stands")

    def data_away(self, command: Command, failure: redis.RedisError) -> None:
        text = f"{command.told} cannot reach its data ({summary(failure)}); waiting; the command stays pending"
        self.log.warning(text, extra=about(command))

    def raised(self, command: Command, failure: BaseException, *, tries: int, limit: int) -> None:
        """`tries`: of `limit`. After the last one the traceback is told."""
        text = f"{command.told}, raised {summary(failure)} (try {tries} of {limit})"
        if tries < limit:
            self.log.warning(text, extra=about(command))
        else:
            self.log.error(text, extra=about(command), exc_info=failure)

    def overdue(
        self, command: Command, declared: Registration, ran_s: float, late_ms: int | None, place: str | None
    ) -> None:
        """A handler has not ended. `late_ms`: for how long nobody has waited for it; None: somebody always does.
        `place`: where it is now, if that is known."""
        late = "" if late_ms is None else f", {late_ms / 1000:.1f} s past its deadline"
        text = f"{_handler(command, declared)} still runs after {ran_s:.1f} s{late}{_at(place)}"
        if declared.hard_timeout_ms is None:
            text += "; declare hard_timeout_ms, so that a process whose handler hangs ends and is started again"
        elif ran_s * 1000 < declared.hard_timeout_ms:
            text += f"; the process ends if it runs for {declared.hard_timeout_ms / 1000:g} s"
        self.log.warning(text, extra=about(command))

    def expired(self, command: Command, declared: Registration, hard_ms: int, place: str | None) -> None:
        """A handler has run for longer than its hard timeout."""
        text = f"{_handler(command, declared)} ran for longer than its hard timeout of {hard_ms / 1000:g} s{_at(place)}"
        text += f"; the process leaves what it holds to others and ends with exit code {EXIT_HANGS}"
        self.log.error(text, extra=about(command))

    def blocked(self, slots: int) -> None:
        """Every slot is taken by a handler that should have ended."""
        text = f"handlers: all {slots} should have ended by now; this process does nothing more: start it again"
        self.log.error(text)

    def task_raised(self, command: Command | None, error: BaseException) -> None:
        """A task in the event loop has raised what ends a program. `command`: whose handler has started it; None: it is
        not known."""
        whose = "of the event loop of handlers" if command is None else f"that {command.told}, has started"
        text = f"a task {whose} raised {summary(error)}: this ends the task, not the process"
        self.log.error(text, extra={} if command is None else about(command), exc_info=error)

    def unknown(self, command: Command, why: str) -> None:
        text = f"{command.told}, may have been done or not: {why}"
        self.log.warning(text, extra=about(command))


def _outcome(command: Command, result: Reply | BaseException) -> Outcome:
    if isinstance(result, Reply):
        return Outcome.OK if result.type == ok(command.type) else Outcome.REJECTED
    return Outcome.AWAY if isinstance(result, redis.RedisError) and is_outage(result) else Outcome.RAISED


def _rejection(result: Reply | BaseException) -> str | None:
    """None: it is sealed."""
    return quote(result.error) if isinstance(result, Reply) and not keys_of(result.error) else None


def _handler(command: Command, declared: Registration) -> str:
    """The handler of a command, and the command."""
    return f"{command.told} (handler {declared.handler_name})"


def _at(place: str | None) -> str:
    return "" if place is None else f", now at {place}"

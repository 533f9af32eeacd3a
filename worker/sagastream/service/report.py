"""What a process of a service tells: the log what somebody should know of its commands, the observer all of it."""

import time
from types import TracebackType
from typing import Self

import redis

from sagastream.broker.outage import is_outage
from sagastream.console import describe
from sagastream.core.messages import Command, Reply, ok
from sagastream.telemetry import Log, Observer, Outcome, about


class ServiceReport:
    """Tells of the commands of one process. Safe for several threads."""

    def __init__(self, who: str, observer: Observer | None) -> None:
        """`who`: the name of the process, as its log records have it."""
        self.log = Log("service", who)
        self._observer = observer

    def calling(self, command: Command, call: int) -> "HandlerCall":
        """To be entered while a handler is called. `call`: see Observer.handler_started."""
        return HandlerCall(self._observer, command, call)

    def undoing(self, command: Command) -> None:
        text = f"{_described(command)} must not be done: undoing what may have come of it"
        self.log.warning(text, extra=about(command))

    def no_compensation(self, command: Command, name: str) -> None:
        text = f"{_described(command)} cannot be undone: the service has no compensation {name}"
        self.log.error(text, extra=about(command))

    def gave_up(self, command: Command, times: int) -> None:
        text = f"gave up on step {command.step} of saga {command.saga_id}: {times} processes died of it"
        self.log.error(text, extra=about(command))

    def data_away(self, command: Command, failure: redis.RedisError) -> None:
        text = f"{_described(command)} cannot reach its data ({describe(failure)}); waiting, nothing is lost"
        self.log.warning(text, extra=about(command))

    def raised(self, command: Command, failure: BaseException, *, tries: int, limit: int) -> None:
        """`tries`: of `limit`. After the last one the traceback is told."""
        text = f"{_described(command)}, raised {describe(failure)} (try {tries} of {limit})"
        if tries < limit:
            self.log.warning(text, extra=about(command))
        else:
            self.log.error(text, extra=about(command), exc_info=failure)

    def unknown(self, command: Command, why: str) -> None:
        text = f"the outcome of step {command.step} of saga {command.saga_id} is unknown: {why}"
        self.log.warning(text, extra=about(command))


class HandlerCall:
    """One call of a handler, from entering to leaving; `reply` is what came of it, unless it raised."""

    __slots__ = ("_began_s", "_call", "_command", "_observer", "reply")

    def __init__(self, observer: Observer | None, command: Command, call: int) -> None:
        self._observer = observer
        self._command = command
        self._call = call
        self._began_s = 0.0
        self.reply: Reply | None = None

    def __enter__(self) -> Self:
        if self._observer is not None:
            self._observer.handler_started(command=self._command, call=self._call)
            self._began_s = time.monotonic()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        if self._observer is not None:
            self._observer.handler_finished(
                command=self._command,
                call=self._call,
                outcome=self._outcome(error),
                duration_s=time.monotonic() - self._began_s,
                error=error,
            )

    def _outcome(self, error: BaseException | None) -> Outcome:
        if self.reply is not None:
            return Outcome.OK if self.reply.type == ok(self._command.type) else Outcome.REJECTED
        return Outcome.AWAY if isinstance(error, redis.RedisError) and is_outage(error) else Outcome.RAISED


def _described(command: Command) -> str:
    return f"{command.type} of saga {command.saga_id}, step {command.step}"

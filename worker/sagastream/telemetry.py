"""What happens in a process, told to whoever watches it: an Observer for programs, log records for people.

A library decides nothing about logging: here are loggers below `sagastream`, with a NullHandler and nothing else. The
command line has them written (see log_output).
"""

import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from sagastream.console import describe, printable

if TYPE_CHECKING:  # the command line reads this module before it knows whether it needs those
    from sagastream.core.messages import Command, Reply
    from sagastream.core.saga import SagaState

#: The fields that say which call of a handler a log record belongs to.
FIELDS: Final = ("saga_id", "service", "step", "attempt")

#: The command whose handler is being called, in the thread or the task that calls it.
_command: "ContextVar[Command | None]" = ContextVar("sagastream_command", default=None)

logging.getLogger("sagastream").addHandler(logging.NullHandler())  # else Python writes warnings to stderr


class Outcome(StrEnum):
    """How one call of a handler ended."""

    OK = "ok"  # it returned
    REJECTED = "rejected"  # it raised Reject: the step has failed
    RAISED = "raised"  # it raised anything else, or returned what is not JSON: called again, or the outcome is unknown
    AWAY = "away"  # it could not reach its Redis: called again, and counts as no try


class Observer:
    """Is told of the few points that matter in a process. Override what you need; each method here does nothing.

    - Arguments come by keyword. Later releases may add some, so end your methods with `**_: object`.
    - A method is called once the thing has happened: what is committed or sent is in the store by then.
    - It is called where it happens, by several threads at once in a service. `handler_started` and `handler_finished`
      are called in the thread, or the asyncio task, of the handler: the handler sees context variables that they set.
    - It must return at once, for the process waits for it, and must not call back into the process.
    - One that raises is logged once, and not called again. The process goes on.
    - Durations are in seconds. Commands, replies and sagas are what the process itself works with, and immutable.
    """

    # --- every process

    def process_started(self, *, kind: str, name: str) -> None:
        """`kind`: worker, service, rq or bridge. `name`: as in the log; of a worker and a service, unique."""

    def process_stopped(self, *, kind: str, name: str, error: BaseException | None) -> None:
        """`error`: what ended it; None: it was told to stop."""

    def outage_began(self, *, error: Exception) -> None:
        """The broker cannot be used for now. `error`: of redis-py."""

    def outage_ended(self, *, duration_s: float) -> None:
        """The broker answers again."""

    def entry_quarantined(self, *, stream: str, entry_id: str, reason: str) -> None:
        """A message was set aside, for a person to look at. `stream`: its key."""

    # --- a service, and the RQ worker

    def command_delivered(self, *, command: "Command", again: bool) -> None:
        """A command came that a handler is to be called for, or an RQ job is to be sent for. `again`: it may have been
        worked on before, here or elsewhere."""

    def handler_started(self, *, command: "Command", call: int) -> None:
        """A handler is called now. `call`: how often this process has called it for this delivery, from 1;
        `command.attempt`: how often the saga has sent the command."""

    def handler_finished(
        self, *, command: "Command", call: int, outcome: Outcome, duration_s: float, error: BaseException | None
    ) -> None:
        """… and has ended. `error`: what it raised, unless that was Reject."""

    def answer_sent(self, *, command: "Command", reply: "Reply") -> None:
        """The broker has the answer to a command. Answers that no handler gave count too."""

    def command_released(self, *, command: "Command") -> None:
        """A command that was not answered is left to other processes: this one stops, or has had no time for it."""

    # --- a worker

    def turn_committed(self, *, sagas: int, messages: int, commands: int, duration_s: float) -> None:
        """One reading was decided on and committed. How many sagas moved, how many messages and timers moved them, how
        many commands were sent; how long deciding and committing took."""

    def comparison_lost(self, *, saga_id: str) -> None:
        """Another worker had moved the saga: this one decides anew."""

    def saga_moved(self, *, before: "SagaState | None", after: "SagaState") -> None:
        """A commit has changed a saga. `before`: None if the saga has begun in it. Called before the next two."""

    def saga_parked(self, *, saga: "SagaState") -> None:
        """It stands still until a person acts; `saga.parked` says why."""

    def saga_ended(self, *, saga: "SagaState") -> None:
        """It is COMPLETED or ABORTED; its times are in ms by the broker's clock."""

    def stream_stuck(self, *, stream: str) -> None:
        """What stands at this key is not a stream, and sagas stand still for it. Told again each minute."""


#: The names of an observer's methods.
POINTS: Final = tuple(name for name in vars(Observer) if not name.startswith("_"))


class Observers(Observer):
    """Several observers as one. One that raises is logged once, by `sagastream.telemetry`, and left out from then on:
    it harms neither the process nor the others."""

    def __init__(self, *observers: Observer) -> None:
        """Raises TypeError for what is not an Observer."""
        for given in observers:
            one: object = given
            if not isinstance(one, Observer):
                raise TypeError(f"an observer must be an instance of a subclass of Observer, not {_named(one)}")
        self._watching = observers
        self._lock = threading.Lock()

    def _leave_out(self, observer: Observer, point: str, error: BaseException) -> None:
        with self._lock:
            if not any(one is observer for one in self._watching):
                return  # another thread was faster
            self._watching = tuple(one for one in self._watching if one is not observer)
        text = f"{_named(observer)}.{point} raised {describe(error)}; it observes no more"
        _log.error(text, exc_info=error)


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _told(point: str) -> Callable[..., None]:
    def tell(self: Observers, **arguments: object) -> None:
        for observer in self._watching:
            try:
                getattr(observer, point)(**arguments)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's, and must harm nothing
                self._leave_out(observer, point, error)

    tell.__name__ = point
    return tell


for _point in POINTS:
    setattr(Observers, _point, _told(_point))


def guarded(observer: Observer | None) -> Observer | None:
    """The observer, made harmless; None: nobody observes, and whoever asks builds no arguments. Raises TypeError."""
    return observer if observer is None or isinstance(observer, Observers) else Observers(observer)


@contextmanager
def runs(kind: str, name: str, observer: Observer | None) -> Iterator[None]:
    """While a process runs: tells the observer that it has started, and how it stopped. See process_started."""
    if observer is None:
        yield
        return
    observer.process_started(kind=kind, name=name)
    try:
        yield
    except BaseException as error:
        observer.process_stopped(kind=kind, name=name, error=error)
        raise
    observer.process_stopped(kind=kind, name=name, error=None)


# --- log records


class Log(logging.LoggerAdapter[logging.Logger]):
    """The logger of one process. Its records say in `source` which one that is. Their messages are one line, and
    nothing in them or in their tracebacks acts on a terminal, whoever writes them."""

    def __init__(self, name: str, source: str) -> None:
        super().__init__(logging.getLogger(f"sagastream.{name}"), {"source": source})
        self.logger.addFilter(_with_harmless_traceback)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return printable(msg), kwargs


def _with_harmless_traceback(record: logging.LogRecord) -> bool:
    """Sets what every formatter takes in place of formatting the exception."""
    if record.exc_info and not record.exc_text:
        lines = logging.Formatter().formatException(record.exc_info).splitlines()
        record.exc_text = "\n".join(map(printable, lines))
    return True


def about(command: "Command") -> dict[str, object]:
    """The fields of a log record about this command, for `extra`."""
    return {name: getattr(command, name) for name in FIELDS}


class Handling:
    """To be entered while a handler is called: its own log records belong to this command.

    A class, because a generator would cost three times as much, at every call of a handler.
    """

    __slots__ = ("_command", "_token")

    def __init__(self, command: "Command") -> None:
        self._command = command

    def __enter__(self) -> None:
        self._token = _command.set(self._command)

    def __exit__(self, *_: object) -> None:
        _command.reset(self._token)


class HandlerFields(logging.Filter):
    """Adds `saga_id`, `service`, `step` and `attempt` to log records that a handler writes, or code that it calls.

    Add it with `addFilter` to the logging.Handler objects of your program. If a QueueHandler passes records to another
    thread, add it to the QueueHandler. A record that has one of the fields keeps it. Where no handler is being called
    the fields are None, so a format string may always name them. A thread that a handler starts does not know which
    call it belongs to, unless it runs in a copy of the handler's context, as `asyncio.to_thread` does.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        command = _command.get()
        for name in FIELDS:
            if not hasattr(record, name):
                setattr(record, name, getattr(command, name, None))
        return True


_log: Final = Log("telemetry", "sagastream")

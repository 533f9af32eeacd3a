"""What happens in a process can be watched: programs pass an Observer, people read log records.

A library does not configure logging. The loggers below `sagastream` have a NullHandler and nothing else; only the
command line writes their records, see log_output.
"""

import logging
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from sagastream.console import printable, summary

if TYPE_CHECKING:  # the command line imports this module before it knows whether it needs those
    from sagastream.core.commands import Command, Reply
    from sagastream.core.messages import Begin
    from sagastream.core.saga import SagaState

#: The fields of a log record that say to which call of a handler it belongs.
FIELDS: Final = ("saga_id", "service", "step", "attempt", "compensating", "trace_id")

#: The command whose handler is running in this thread or asyncio task.
_command: "ContextVar[Command | None]" = ContextVar("sagastream_command", default=None)

#: The names of the workers and services that run in this process now.
_running: Final[list[str]] = []

logging.getLogger("sagastream").addHandler(logging.NullHandler())  # else Python writes warnings to stderr


class Outcome(StrEnum):
    """How one call of a handler ended."""

    OK = "ok"  # it returned
    REJECTED = "rejected"  # it raised Reject: the step has failed
    RAISED = "raised"  # it raised anything else, or did not return JSON: called again, or the outcome is unknown
    AWAY = "away"  # it could not reach its Redis: called again, and this call does not count


#: A saga before a change, None if it begins, and after it.
Move = tuple["SagaState | None", "SagaState"]


class Observer:
    """Its methods are called at the few points that matter in a process. Override those that you need; here, each does
    nothing.

    - Arguments are passed by keyword. Later releases may add some, so end your methods with `**_: object`.
    - A method is called after the thing has happened: what was committed or sent is in the store by then. Only
      `trace_for` is called before.
    - It is called in the thread where the thing happens; in a service several threads may call it at once.
      `handler_started` and `handler_finished` are called in the handler's thread or asyncio task, so the handler sees
      context variables that they set.
    - It must return at once, because the process waits for it. It must not call back into the process.
    - If an observer raises, that is logged once, and none of its methods is called again. The process goes on.
    - Its methods are those that it has when it is passed. Setting another one later has no effect.
    - Durations are in seconds. Commands, replies and sagas are the objects with which the process works; they are
      immutable.
    """

    # --- every process

    def process_started(self, *, kind: str, name: str) -> None:
        """The process starts its work. `kind`: worker, service, rq or bridge. `name`: as in the log; for workers and
        services it is unique."""

    def process_stopped(self, *, kind: str, name: str, error: BaseException | None) -> None:
        """The process has stopped. `error`: what ended it; None: it was told to stop."""

    def outage_began(self, *, error: Exception) -> None:
        """The broker cannot be used for now. `error`: the exception that redis-py raised."""

    def outage_ended(self, *, duration_s: float) -> None:
        """The broker answers again."""

    def partitions_away(self, *, numbers: tuple[int, ...]) -> None:
        """Of the partitions that a worker works on, it cannot reach those with these numbers for now: their node is
        away or refuses it, their slot is moving, or a key is damaged. It is called when that changes; without numbers,
        it can reach all again."""

    def writes_lost(self, *, since_ms: int | None, evidence: str) -> None:
        """The store has lost what it had accepted, or may have, as after a failover to a replica that lagged: what was
        written after `since_ms`, in ms by the broker's clock; None: nobody knows since when. Each process that notices
        tells it. `evidence`: what went back, for people. Workers, services and the bridge tell it."""

    def entry_quarantined(self, *, stream: str, entry_id: str, reason: str) -> None:
        """A message was set aside, for a person to look at. `stream`: the key of the stream from which it came."""

    # --- a service, and the RQ worker

    def command_delivered(self, *, command: "Command", again: bool) -> None:
        """A command arrived, for which a handler will be called or an RQ job enqueued. `again`: this or another process
        may have worked on it before."""

    def handler_started(self, *, command: "Command", call: int) -> None:
        """A handler is about to be called. `call`: the number of this call in this process for this delivery, from 1;
        `command.attempt`: how often the saga has sent the command."""

    def handler_finished(
        self,
        *,
        command: "Command",
        call: int,
        outcome: Outcome,
        duration_s: float,
        error: BaseException | None,
        rejection: str | None,
    ) -> None:
        """A handler has returned or raised. `error`: what it raised, unless that was Reject. `rejection`: then, its
        error as people read it, shortened; None if it is sealed."""

    def answer_sent(self, *, command: "Command", reply: "Reply") -> None:
        """The broker has the answer to a command. This is called too if the answer did not come from a handler."""

    def command_released(self, *, command: "Command") -> None:
        """A command without an answer is left to other processes, because this one stops or had no time for it."""

    # --- a worker

    def trace_for(self, *, request: "Begin") -> str | None:
        """A saga is about to begin, and its request names no trace. Returns a `traceparent` of W3C Trace Context for
        it; None: it belongs to no trace. If several observers return one, the first counts.
        This is the only method that returns something."""

    def turn_committed(
        self, *, sagas: int, messages: int, commands: int, duration_s: float, moves: "Sequence[Move]"
    ) -> None:
        """A turn was committed. `sagas`: how many sagas changed. `messages`: how many messages and timers were decided
        on. `commands`: how many commands were sent. `duration_s`: how long deciding and committing took. `moves`: each
        saga before and after, as saga_moved tells one by one; for observers that count what happens often."""

    def comparison_lost(self, *, saga_id: str) -> None:
        """Another worker changed the saga first: this one reads it and decides again."""

    def saga_moved(self, *, before: "SagaState | None", after: "SagaState") -> None:
        """A commit has changed a saga. `before`: None if it begins. Called before saga_parked and saga_ended."""

    def saga_parked(self, *, saga: "SagaState") -> None:
        """A saga stands still until a person acts; `saga.parked` says why."""

    def saga_ended(self, *, saga: "SagaState") -> None:
        """A saga is COMPLETED or ABORTED. Its times are in ms by the broker's clock."""

    def stream_stuck(self, *, stream: str) -> None:
        """The value at this key is not a stream, and sagas stand still because of that. Called again each minute."""


#: The names of an observer's methods.
POINTS: Final = tuple(name for name in vars(Observer) if not name.startswith("_"))


class Observers(Observer):
    """Several observers as one. If one raises, that is logged once, by `sagastream.telemetry`, and it is left out from
    then on. It harms neither the process nor the other observers."""

    def __init__(self, *observers: Observer) -> None:
        """Raises TypeError if one of them is not an Observer."""
        for given in observers:
            one: object = given
            if not isinstance(one, Observer):
                raise TypeError(f"an observer must be an instance of a subclass of Observer, not {_named(one)}")
        self._watching = observers
        self._lock = threading.Lock()
        self._bind()

    def watches(self, *points: str) -> bool:
        """Whether one of them overrides one of these points; otherwise nobody need be told."""
        return any(getattr(self, point) is not _nothing for point in points)

    def _bind(self) -> None:
        """Have each point call those that override it, and nothing if none does: some points are passed for each
        command, and most observers watch few of them."""
        for point in POINTS:
            watching = tuple(one for one in self._watching if _overrides(one, point))
            setattr(self, point, partial(self._tell, watching, point) if watching else _nothing)

    def _tell(self, watching: "tuple[Observer, ...]", point: str, /, **arguments: object) -> Any:
        """Returns the first answer that one of them has. Observers answer only `trace_for`."""
        answer = None
        for observer in watching:
            try:
                answered = getattr(observer, point)(**arguments)
            except BaseException as error:
                if not _is_failure(error):
                    raise
                self._leave_out(observer, point, error)
            else:
                answer = answered if answer is None else answer
        return answer

    def _leave_out(self, observer: Observer, point: str, error: BaseException) -> None:
        with self._lock:
            if not any(one is observer for one in self._watching):
                return  # another thread was faster
            self._watching = tuple(one for one in self._watching if one is not observer)
            self._bind()
        text = f"{_named(observer)}.{point} raised {summary(error)}; it observes no more"
        _log.error(text, exc_info=error)


def _named(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _is_failure(error: BaseException) -> bool:
    """Whether an observer may raise this without ending the process."""
    import asyncio  # it is large, and `sagastream --help` needs none of it

    return isinstance(error, Exception | SystemExit | asyncio.CancelledError)


def _overrides(observer: Observer, point: str) -> bool:
    """Whether its method may do anything."""
    try:
        return getattr(getattr(observer, point), "__func__", None) is not getattr(Observer, point)
    except Exception:  # noqa: BLE001 - it raises when it is called, too
        return True


def _nothing(**_: object) -> None:
    """Nobody watches this point."""


def guarded(observer: Observer | None) -> Observers | None:
    """The observer, wrapped so that it does no harm if it raises. None stays None: callers then build no arguments.

    Raises TypeError if it is not an Observer.
    """
    return observer if observer is None or isinstance(observer, Observers) else Observers(observer)


@contextmanager
def runs(kind: str, name: str, observer: Observer | None) -> Iterator[None]:
    """Around the work of a process: calls process_started, and at the end process_stopped. Until then, the lines of a
    SharedLog are of this process."""
    _running.append(name)
    try:
        with _told(kind, name, observer):
            yield
    finally:
        _running.remove(name)


@contextmanager
def _told(kind: str, name: str, observer: Observer | None) -> Iterator[None]:
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


class Escaped(str):
    """A text made printable. `raw`: the text as it was."""

    # An attribute of the record would hold the raw text as well. But formatters of others (of JSON, for example) write
    # each attribute that they do not know: they would write every message twice, once not escaped.
    raw: str

    def __new__(cls, text: str) -> Self:
        escaped = super().__new__(cls, printable(text))
        escaped.raw = text
        return escaped


class Log(logging.LoggerAdapter[logging.Logger]):
    """The logger of one process. `source` of its records names the process. Their messages are one line. Messages and
    tracebacks are escaped, so they cannot act on a terminal, whichever handler writes them.

    They are escaped here and not by a formatter, because the handlers of a program that uses this library have
    formatters that escape nothing. A formatter that makes all text harmless itself, as JSON does, takes `raw` of the
    message; else its readers would have to undo two escapes. So callers pass texts that are not escaped.
    """

    def __init__(self, name: str, source: str) -> None:
        super().__init__(logging.getLogger(f"sagastream.{name}"), {"source": source})
        self.logger.addFilter(_with_harmless_traceback)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return Escaped(msg), kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As any logger, but it never raises. A program may have a record factory that sets one of our fields, or a
        handler that raises: neither may keep a process from answering."""
        if not self.isEnabledFor(level):
            return
        text, kwargs = self.process(msg, {"stacklevel": 2, **kwargs})  # type: ignore[assignment]
        try:
            self.logger.log(level, text, *args, **kwargs)
        except KeyError:  # a field of ours is there already, so the record goes out without them
            with suppress(Exception):
                self.logger.log(level, text, *args, **{**kwargs, "extra": None})
        except Exception:  # noqa: BLE001 - there is no other place to report it
            return


class SharedLog(Log):
    """The logger of what all workers and services of a program share, such as the nodes of a cluster. `source` of its
    records is the name of the one that runs. If several run, or none, it is the name that was given."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        text, kwargs = super().process(msg, kwargs)
        if len(running := set(_running)) == 1:
            kwargs["extra"] |= {"source": running.pop()}
        return text, kwargs


def _with_harmless_traceback(record: logging.LogRecord) -> bool:
    """Sets `exc_text`, which every formatter uses instead of formatting the exception."""
    if record.exc_info and not record.exc_text:
        lines = logging.Formatter().formatException(record.exc_info).splitlines()
        record.exc_text = "\n".join(map(printable, lines))
    return True


def about(command: "Command") -> dict[str, object]:
    """The fields for `extra` of a log record about this command. `compensating` is True or None, never False: as in the
    body of a command, only a compensation has it."""
    return {name: getattr(command, name) for name in FIELDS} | {"compensating": command.compensating or None}


#: Around one call of a handler: `token = handling(command)` before it, `handled(token)` after it, however it ends. Log
#: records that the handler writes belong to this command meanwhile. It is not a context manager: that would cost three
#: calls in Python for each call of a handler.
handling: Final = _command.set
handled: Final = _command.reset


def command_in_hand() -> "Command | None":
    """The command whose handler runs in this thread or asyncio task, or has started the task; None: there is none."""
    return _command.get()


class HandlerFields(logging.Filter):
    """Adds `saga_id`, `service`, `step`, `attempt`, `compensating` and `trace_id` to the log records of a handler, and
    of the code that it calls. `compensating` is True in a compensation, and None in a transaction. `trace_id` is None
    if the saga was begun within no trace.

    Add it with `addFilter` to the logging.Handler objects of your program. If a QueueHandler passes records to another
    thread, add it to the QueueHandler. If a record already has one of the fields, it keeps it. Outside of a handler the
    fields are None, so a format string may always name them. A thread that a handler starts does not know to which call
    it belongs, unless it runs in a copy of the handler's context, as `asyncio.to_thread` does.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        command = _command.get()
        fields = dict.fromkeys(FIELDS) if command is None else about(command)
        for name, value in fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


_log: Final = Log("telemetry", "sagastream")

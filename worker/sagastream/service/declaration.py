"""What services are written with.

    service = Service("payment")

    @service.command("ChargePayment", compensation="RefundPayment")
    def charge(params, context):
        if too_much(params["amount"]):
            raise Reject("insufficient_funds")
        return {"payment_id": ...}

A handler may be called more than once for one command: if a process dies between the effect and its record, or if the
handler has raised and is called again. `context.key` is the same each time. A handler writes it in the transaction of
its effect, so that the effect happens once.

A compensation may be called for a step that has no effect, or not yet, and it may be called more than once. It undoes
what it finds under `context.transaction_key`, and makes sure that nothing more can be done under that key.
"""

import inspect
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack, overload

from msgspec import Struct

from sagastream.core import service_rules
from sagastream.core.json_values import unwritable_result
from sagastream.core.messages import Command, failed, is_id, is_service, ok
from sagastream.core.steps import AS_PUBLISHED, STANDING
from sagastream.errors import ServiceError
from sagastream.service.named_function import NamedFunction

#: How long a process may hold a command before another one takes it over, in milliseconds, unless a service says more.
LEASE_MS: Final = 30_000
#: The shortest lease, in milliseconds. A lease is renewed four times before it ends. With a shorter one, a process that
#: the machine keeps waiting for a moment would lose what it holds.
SHORTEST_LEASE_MS: Final = 100
#: The exit code of a process one of whose handlers ran for longer than its hard timeout: EX_TEMPFAIL, "try again".
EXIT_HANGS: Final = 75

#: What is said of a handler whose results cannot be told to anybody.
NO_JSON: Final = "which JSON cannot hold: return a dict, a list, a text, a number, a dataclass or a model"

#: A handler: (params, context) -> any JSON value, or a coroutine of one. A compensation gets the params of the step
#: that it undoes.
Handler = Callable[[Any, "Context"], Any]
_H = TypeVar("_H", bound=Handler)

#: What a handler can be declared as.
Kind = Literal["command", "compensation"]
#: The attribute of a handler that can be declared as only one of them: as which. And the decorators that set it.
MADE_FOR: Final = "sagastream_made_for"
_MAKERS: Final[dict[Kind, str]] = {"command": "@effects.once", "compensation": "@effects.undo"}


class Context(Struct, frozen=True, kw_only=True):
    """What a handler is told of its command besides the params."""

    saga_id: str
    step: int  # counts from 1
    key: str  # the idempotency key. A compensation finds what it undoes under the next one, not under this
    transaction_key: str  # for a compensation, the key of what it undoes; else the same as `key`
    attempt: int  # how often the orchestrator has sent this command, this time included
    #: In UTC, by the broker's clock: after it nobody waits for the answer. None: there is no deadline.
    deadline: datetime | None = None
    result: Any = None  # for a compensation, what the step returned, if that is known
    retried: bool = False  # a Reject is not final: the orchestrator sends the command again, under the same key
    clock: Callable[[], float] = time.time  # the time in seconds since the epoch, by the broker's clock

    @property
    def remaining_s(self) -> float | None:
        """For how many seconds the answer is still waited for, at least 0; None: there is no deadline.

        It goes by the broker's clock, as the deadline does, so it is right even if the clock of this machine is not.
        """
        return None if self.deadline is None else max(0.0, self.deadline.timestamp() - self.clock())


class Options(TypedDict, total=False):
    """The options of a command or a compensation. This is the one list of them. Each may be left out; the code that
    needs one reads it from `Registration.options`."""

    concurrency: int | None
    """How many of it run at once in one process, at most; of RQ jobs, how many are out. None: as many as the process
    runs."""
    via: Literal["rq"] | None
    """"rq": it runs as a job of the team's RQ workers. None: it runs in the service's own process."""
    queue: str | None
    """With via="rq": the RQ queue of its jobs. None: the queue that has the name of the service."""
    timeout_s: int | None
    """With via="rq": how long a job may take before RQ ends it, in seconds. None: until nobody waits for it."""
    hard_timeout_ms: int | None
    """How long its handler may run in the service's own process before the process ends, in milliseconds. None: as the
    service says."""


class Registration(Struct, frozen=True, kw_only=True):
    """What a service has declared of one command, or of one compensation."""

    name: str
    handler: Handler
    compensation: str | None = None  # of a command: what undoes it; None: it needs none; AS_PUBLISHED: it does not say
    is_async: bool = False  # the handler returns a coroutine
    queue: str | None = None  # the RQ queue of its jobs; None: it runs in the service's own process
    hard_timeout_ms: int | None = None  # how long its handler may run before its process ends; None: without limit
    options: Options = {}

    @property
    def handler_name(self) -> str:
        """The name of the handler, for people: like shop.payment.charge."""
        if isinstance(self.handler, NamedFunction):
            return self.handler.name
        named = getattr(self.handler, "func", self.handler)  # of a functools.partial
        name = getattr(named, "__qualname__", type(named).__qualname__)
        return f"{getattr(named, '__module__', '?')}.{name}"

    @property
    def tries(self) -> int:
        """How often the handler is called if it raises something other than Reject."""
        # A function that is not told the idempotency key may have had its effect, and would have it twice.
        return 1 if isinstance(self.handler, NamedFunction) else service_rules.TRIES


class Service:
    """The commands of one service and their handlers."""

    def __init__(
        self, name: str, *, lease_ms: int = LEASE_MS, concurrency: int = 1, hard_timeout_ms: int | None = None
    ) -> None:
        """
        Args:
            name: what sagas call the service.
            lease_ms: after how long another process takes over what a dead or hanging one holds. A process renews the
                lease while a handler runs and its answer is waited for. A command without a deadline (a compensation,
                or a retriable step) is not renewed: if it takes longer than the lease, it may run twice at once, and
                only its idempotency key keeps the two apart.
            concurrency: how many handlers one process runs at once: plain ones in threads, async ones in one event
                loop.
            hard_timeout_ms: how long a handler may run, in milliseconds. Nothing else ends a handler that hangs: if one
                runs for longer, the process leaves all that it holds to others and ends with exit code
                EXIT_HANGS (75), to be started again. None: without limit. A command may say otherwise.

        Raises ServiceError if the name cannot be that of a service, if the lease is not a whole number of at least
        SHORTEST_LEASE_MS, or if the concurrency or the hard timeout is not a whole number of at least 1.
        """
        if not is_service(name):
            raise ServiceError(f"{name!r} cannot be the name of a service: 1 to 128 of A-Z a-z 0-9 . _ -")
        self.name = name
        if type(lease_ms) is not int or lease_ms < SHORTEST_LEASE_MS:
            least = f"give whole milliseconds, at least {SHORTEST_LEASE_MS}"
            raise ServiceError(f"service {name}: lease_ms cannot be {lease_ms!r}; {least}")
        self._check_concurrency("it", concurrency)
        self._check_hard_timeout("it", hard_timeout_ms)
        self.hard_timeout_ms = hard_timeout_ms
        self.lease_ms = lease_ms
        self.concurrency = concurrency
        self._commands: dict[str, Registration] = {}
        self._compensations: dict[str, Registration] = {}

    @overload
    def command(self, name: str, *, compensation: str | None, **options: Unpack[Options]) -> Callable[[_H], _H]: ...
    @overload
    def command(self, name: str, *, call: str, compensation: str | None = None, **options: Unpack[Options]) -> None: ...
    def command(
        self,
        name: str,
        *,
        compensation: str | None = AS_PUBLISHED,
        call: str | None = None,
        **options: Unpack[Options],
    ) -> Callable[[_H], _H] | None:
        """Declare a command's handler.

        Args:
            compensation: the name of the compensation that undoes it; None: it needs none. With `call` it may be left
                out. Then it is not known what undoes the command: a saga that has to undo the step is parked, unless
                the step itself names a compensation.
            call: the name of a function that runs in place of a handler, like "shop.jobs.charge". It is called with the
                params alone (see NamedFunction). Nothing is decorated then.
            options: see Options.

        Raises ServiceError if it is declared wrongly.
        """
        self._check_new(name, "command")
        if compensation == AS_PUBLISHED and call is None:
            raise ServiceError(
                f"service {self.name}: {name}: say compensation=NAME, or None if nothing is to be undone"
            )
        if compensation not in (None, AS_PUBLISHED) and not is_id(compensation):
            raise ServiceError(
                f"service {self.name}: {name}: compensation={compensation!r} is not a name; its handler is declared "
                'with @service.compensation("NAME"), and compensation="NAME" refers to it'
            )
        if compensation == name:
            raise ServiceError(f"service {self.name}: {name} cannot be its own compensation")
        return self._declare("command", name, call, options, compensation=compensation)

    @overload
    def compensation(self, name: str, **options: Unpack[Options]) -> Callable[[_H], _H]: ...
    @overload
    def compensation(self, name: str, *, call: str, **options: Unpack[Options]) -> None: ...
    def compensation(
        self, name: str, *, call: str | None = None, **options: Unpack[Options]
    ) -> Callable[[_H], _H] | None:
        """Declare the handler of a compensation. The rest is as for `command`."""
        self._check_new(name, "compensation")
        return self._declare("compensation", name, call, options)

    def standing(self, handler: _H) -> _H:
        """Declare the handler that answers which effects of this service stand: `effects.standing`, or your own.

        `sagastream doctor --after-failover` asks it, as the one step of a saga. It gets the params
        `{"keys": [...]}` or `{"since_ms": ..., "after": ...}`, and returns `{"effects": [...], "after": ...}`; see
        "Which effects stand" in docs/protocol.md.

        Raises ServiceError as `command` does.
        """
        return self.command(STANDING, compensation=None)(handler)

    def _declare(
        self, kind: Kind, name: str, call: str | None, options: Options, *, compensation: str | None = None
    ) -> Callable[[_H], _H] | None:
        self._check_options(name, kind, options)
        queue = (options.get("queue") or self.name) if options.get("via") else None

        def declare(handler: _H) -> _H:
            self._check_handler(name, handler, kind)
            declared = self._commands if kind == "command" else self._compensations
            declared[name] = Registration(
                name=name,
                handler=handler,
                compensation=compensation,
                is_async=is_async(handler),
                queue=queue,
                hard_timeout_ms=None if queue else options.get("hard_timeout_ms") or self.hard_timeout_ms,
                options=options,
            )
            return handler

        if call is None:
            return declare
        declare(NamedFunction(call, result_counts=kind == "command"))
        return None

    @property
    def registrations(self) -> list[Registration]:
        """All that is declared."""
        return [*self._commands.values(), *self._compensations.values()]

    @property
    def commands(self) -> list[str]:
        """The names of its commands."""
        return list(self._commands)

    @property
    def compensations(self) -> list[str]:
        """The names of its compensations."""
        return list(self._compensations)

    def registration(self, command: Command) -> Registration | None:
        """What is declared for a command; None: nothing is."""
        return (self._compensations if command.compensating else self._commands).get(command.type)

    def handler(self, command: Command) -> Handler | None:
        """The handler for a command; None: the service has none."""
        registration = self.registration(command)
        return None if registration is None else registration.handler

    def undo_of(self, command: Command) -> str | None:
        """The compensation of a transaction: the one that the step names or, if it names none, the one that is declared
        here. None: it needs none."""
        if command.compensation != AS_PUBLISHED:
            return command.compensation
        registration = self._commands.get(command.type)
        return None if registration is None else registration.compensation

    def publishes(self) -> dict[str, str | None]:
        """The commands, and what undoes each (None: nothing needs to). Commands that do not say are left out. Raises
        ServiceError if a compensation has no handler, or there is no command."""
        for name, registration in self._commands.items():
            compensation = registration.compensation
            if compensation and compensation not in self._compensations:
                raise ServiceError(
                    f"service {self.name}: {name} is undone by {compensation}, which has no handler; "
                    f'declare one with @service.compensation("{compensation}")'
                )
        if not self._commands:
            raise ServiceError(f"service {self.name} declares no command")
        undone_by = {name: registration.compensation for name, registration in self._commands.items()}
        return {name: undo for name, undo in undone_by.items() if undo != AS_PUBLISHED}

    @property
    def queues(self) -> list[str]:
        """The RQ queues that its steps run in; none if all run in the service's own processes."""
        return sorted({one.queue for one in self.registrations if one.queue is not None})

    def _check_new(self, name: str, kind: Kind) -> None:
        if callable(name):
            more = ", compensation=…" if kind == "command" else ""
            raise ServiceError(f'service {self.name}: write @service.{kind}("NAME"{more}) above a handler')
        if not is_id(name):
            raise ServiceError(f"service {self.name}: {name!r} cannot be the name of a command")
        if name.endswith((ok(""), failed(""))):
            raise ServiceError(f"service {self.name}: {name} reads like a reply: no name ends in _ok or _failed")
        if name in self._commands or name in self._compensations:
            raise ServiceError(f"service {self.name} declares {name} twice")

    def _check_options(self, name: str, kind: Kind, options: Options) -> None:
        # What Python does for arguments that it knows by name; a type checker has said it before.
        for unknown in options.keys() - Options.__annotations__.keys():
            raise TypeError(f"Service.{kind}() got an unexpected keyword argument {unknown!r}")
        self._check_concurrency(name, options.get("concurrency"))
        self._check_hard_timeout(name, options.get("hard_timeout_ms"))
        via, queue, timeout_s = options.get("via"), options.get("queue"), options.get("timeout_s")
        if via not in (None, "rq"):
            raise ServiceError(f'service {self.name}: {name} cannot run via {via!r}; say "rq", or nothing')
        if via is None and (queue is not None or timeout_s is not None):
            raise ServiceError(f'service {self.name}: {name} has a queue or a timeout_s, but not via="rq"')
        if via is not None and options.get("hard_timeout_ms") is not None:
            raise ServiceError(f"service {self.name}: {name} runs via RQ: say timeout_s, not hard_timeout_ms")
        if queue is not None and (not isinstance(queue, str) or not queue):
            raise ServiceError(f"service {self.name}: {name} cannot run in the queue {queue!r}")
        if timeout_s is not None and (type(timeout_s) is not int or timeout_s < 1):
            raise ServiceError(
                f"service {self.name}: {name}: timeout_s cannot be {timeout_s!r}; give whole seconds, at least 1"
            )

    def _check_concurrency(self, name: str, concurrency: int | None) -> None:
        if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
            raise ServiceError(
                f"service {self.name}: {name} cannot run {concurrency!r} at once; give a whole number, at least 1"
            )

    def _check_hard_timeout(self, name: str, ms: int | None) -> None:
        if ms is not None and (type(ms) is not int or ms < 1):
            raise ServiceError(
                f"service {self.name}: {name}: hard_timeout_ms cannot be {ms!r}; give whole milliseconds, at least 1"
            )

    def _check_handler(self, name: str, handler: Handler, kind: Kind) -> None:
        try:
            inspect.signature(handler).bind(None, None)
        except (TypeError, ValueError) as error:  # ValueError: a builtin does not tell its parameters
            raise ServiceError(f"service {self.name}: a handler takes (params, context); {name}: {error}") from None
        if _is_a(inspect.isgeneratorfunction, handler) or _is_a(inspect.isasyncgenfunction, handler):
            raise ServiceError(f"service {self.name}: the handler of {name} yields; a handler returns its result")
        if kind == "command":  # what a compensation returns is ignored
            self._check_result(name, handler)
        if getattr(handler, MADE_FOR, kind) != kind:
            raise ServiceError(f"service {self.name}: {name} is a {kind}: its handler is made with {_MAKERS[kind]}")

    def _check_result(self, name: str, handler: Handler) -> None:
        if (kind := unwritable_result(handler)) is not None:
            raise ServiceError(f"service {self.name}: the handler of {name} returns {kind}, {NO_JSON}")


def _is_a(test: Callable[[Any], bool], handler: Callable[..., Any]) -> bool:
    """Whether a test is true of a function, a method, a partial of one, or of the way an object is called."""
    return test(handler) or test(type(handler).__call__)


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether this was declared with async def: a function, a method, a partial of one, or an object's call."""
    return _is_a(inspect.iscoroutinefunction, handler)

"""What services are written with.

    service = Service("payment")

    @service.command("ChargePayment", compensation="RefundPayment")
    def charge(params, context):
        if too_much(params["amount"]):
            raise Reject("insufficient_funds")
        return {"payment_id": ...}

A handler may be called more than once for one command: when a process dies between the effect and its record, or when
it raised and is tried again. `context.key` is the same each time; a handler puts it into the same transaction as its
effect, and so has it once.

A compensation may be called for a step that had no effect, or before it has it, or more than once: it undoes what it
finds under `context.transaction_key`, and sees to it that nothing more can be done under that key.
"""

import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, overload

from msgspec import Struct

from sagastream.core import service_rules
from sagastream.core.messages import Command, failed, is_id, ok
from sagastream.core.steps import AS_PUBLISHED
from sagastream.errors import ServiceError
from sagastream.service.named_function import NamedFunction

#: How long a process may hold a command before others take it over, in milliseconds, unless a service says otherwise.
LEASE_MS: Final = 30_000
#: The shortest lease, in milliseconds. It is renewed four times within it; with less, a process that the machine lets
#: wait for a moment would lose what it has in hand.
SHORTEST_LEASE_MS: Final = 100

#: A handler: (params, context) -> any JSON value, or a coroutine of it. For a compensation: the params of the step that
#: it undoes.
Handler = Callable[[Any, "Context"], Any]
_H = TypeVar("_H", bound=Handler)

#: What a handler can be declared as.
Kind = Literal["command", "compensation"]
#: The attribute of a handler that is made for one of them alone: for which; and the decorators that make such.
MADE_FOR: Final = "sagastream_made_for"
_MAKERS: Final[dict[Kind, str]] = {"command": "@effects.once", "compensation": "@effects.undo"}


class Context(Struct, frozen=True, kw_only=True):
    """What a handler may know of its command beyond the params."""

    saga_id: str
    step: int  # counts from 1
    key: str  # the idempotency key. A compensation finds what it undoes by the next one, not by this
    transaction_key: str  # of a compensation: the key of what it undoes; else the same as `key`
    attempt: int  # how often the orchestrator has sent this command, this time included
    deadline: datetime | None = None  # in UTC: after it nobody waits for the answer. None: somebody always does
    result: Any = None  # of a compensation: what the step returned, if that is known
    retried: bool = False  # a Reject is no last word: the orchestrator sends the command again, under the same key


class Registration(Struct, frozen=True, kw_only=True):
    """What a service has declared of one command, or of one compensation."""

    name: str
    handler: Handler
    compensation: str | None = None  # of a command: what undoes it; None: it needs none; AS_PUBLISHED: it does not say
    concurrency: int | None = None  # how many of it at once in one process; None: as many as the process runs
    is_async: bool = False  # the handler gives a coroutine
    queue: str | None = None  # the RQ queue of the jobs that it runs as; None: it runs in the service's own process
    timeout_s: int | None = None  # how long a job may take; None: until nobody waits for it any more

    @property
    def tries(self) -> int:
        """How often the handler is called that raises something other than Reject."""
        # One that is not told the idempotency key may have had its effect, and would have it twice.
        return 1 if isinstance(self.handler, NamedFunction) else service_rules.TRIES


class Service:
    """The commands of one service and their handlers."""

    def __init__(self, name: str, *, lease_ms: int = LEASE_MS, concurrency: int = 1) -> None:
        """
        Args:
            name: what sagas call the service.
            lease_ms: after how long another process takes over what a dead or hanging one holds. A process renews it
                while a handler runs and its answer is waited for. Without a deadline it does not: a compensation, or a
                retriable step, that takes longer may run twice at once, kept apart only by its idempotency key.
            concurrency: how many handlers one process runs at once: plain ones in threads, async ones in one event
                loop.

        Raises ServiceError if the name cannot be one, the lease is no whole number from SHORTEST_LEASE_MS on, or the
        concurrency none from 1 on.
        """
        if not is_id(name):
            raise ServiceError(f"{name!r} cannot be the name of a service: 1 to 128 of A-Z a-z 0-9 . _ : -")
        self.name = name
        if type(lease_ms) is not int or lease_ms < SHORTEST_LEASE_MS:
            raise ServiceError(
                f"service {name}: lease_ms cannot be {lease_ms!r}; give whole milliseconds from {SHORTEST_LEASE_MS} on"
            )
        self._check_concurrency("it", concurrency)
        self.lease_ms = lease_ms
        self.concurrency = concurrency
        self._commands: dict[str, Registration] = {}
        self._compensations: dict[str, Registration] = {}

    @overload
    def command(
        self,
        name: str,
        *,
        compensation: str | None,
        concurrency: int | None = None,
        via: Literal["rq"] | None = None,
        queue: str | None = None,
        timeout_s: int | None = None,
    ) -> Callable[[_H], _H]: ...
    @overload
    def command(
        self,
        name: str,
        *,
        call: str,
        compensation: str | None = None,
        concurrency: int | None = None,
        via: Literal["rq"] | None = None,
        queue: str | None = None,
        timeout_s: int | None = None,
    ) -> None: ...
    def command(
        self,
        name: str,
        *,
        compensation: str | None = AS_PUBLISHED,
        call: str | None = None,
        concurrency: int | None = None,
        via: Literal["rq"] | None = None,
        queue: str | None = None,
        timeout_s: int | None = None,
    ) -> Callable[[_H], _H] | None:
        """Declare a command's handler.

        Args:
            compensation: the name of the compensation that undoes it; None: it needs none. It may be left out with
                `call`: then nobody knows, and a saga that has to undo the step is parked, unless the step says more.
            call: the name of a function that does it, like "shop.jobs.charge", in place of a handler; nothing is
                decorated then. It is called with the params alone (see NamedFunction).
            concurrency: how many of this command one process runs at once at the most; of jobs, how many are out.
            via: "rq": it runs as a job of the team's RQ workers. `queue`: in which queue, by default the one named like
                the service. `timeout_s`: how long it may take before RQ kills it.
        """
        self._check_new(name, "command")
        if compensation == AS_PUBLISHED and call is None:
            raise ServiceError(
                f"service {self.name}: {name}: say compensation=NAME, or None where nothing is to be undone"
            )
        if compensation not in (None, AS_PUBLISHED) and not is_id(compensation):
            raise ServiceError(
                f"service {self.name}: {name}: compensation={compensation!r} is no name; its handler is declared with "
                '@service.compensation("NAME"), and compensation="NAME" refers to it'
            )
        if compensation == name:
            raise ServiceError(f"service {self.name}: {name} cannot be its own compensation")
        self._check_concurrency(name, concurrency)
        route = self._route(name, via, queue, timeout_s)
        return self._declare("command", name, call, concurrency, route, compensation=compensation)

    @overload
    def compensation(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        via: Literal["rq"] | None = None,
        queue: str | None = None,
        timeout_s: int | None = None,
    ) -> Callable[[_H], _H]: ...
    @overload
    def compensation(
        self,
        name: str,
        *,
        call: str,
        concurrency: int | None = None,
        via: Literal["rq"] | None = None,
        queue: str | None = None,
        timeout_s: int | None = None,
    ) -> None: ...
    def compensation(
        self,
        name: str,
        *,
        call: str | None = None,
        concurrency: int | None = None,
        via: Literal["rq"] | None = None,
        queue: str | None = None,
        timeout_s: int | None = None,
    ) -> Callable[[_H], _H] | None:
        """Declare the handler of a compensation. The rest is as with `command`."""
        self._check_new(name, "compensation")
        self._check_concurrency(name, concurrency)
        return self._declare("compensation", name, call, concurrency, self._route(name, via, queue, timeout_s))

    def _declare(
        self,
        kind: Kind,
        name: str,
        call: str | None,
        concurrency: int | None,
        route: tuple[str | None, int | None],
        *,
        compensation: str | None = None,
    ) -> Callable[[_H], _H] | None:
        queue, timeout_s = route

        def declare(handler: _H) -> _H:
            self._check_handler(name, handler, kind)
            declared = self._commands if kind == "command" else self._compensations
            declared[name] = Registration(
                name=name,
                handler=handler,
                compensation=compensation,
                concurrency=concurrency,
                is_async=is_async(handler),
                queue=queue,
                timeout_s=timeout_s,
            )
            return handler

        if call is None:
            return declare
        declare(NamedFunction(call))
        return None

    @property
    def registrations(self) -> list[Registration]:
        """All that is declared."""
        return [*self._commands.values(), *self._compensations.values()]

    def registration(self, command: Command) -> Registration | None:
        """What is declared for a command, None where the service has no such."""
        return (self._compensations if command.compensating else self._commands).get(command.type)

    def handler(self, command: Command) -> Handler | None:
        """The handler for a command, None where the service has none."""
        registration = self.registration(command)
        return None if registration is None else registration.handler

    def undo_of(self, command: Command) -> str | None:
        """The compensation of a transaction: what the step names or, where it names none, what is declared here; None:
        it needs none."""
        if command.compensation != AS_PUBLISHED:
            return command.compensation
        registration = self._commands.get(command.type)
        return None if registration is None else registration.compensation

    def publishes(self) -> dict[str, str | None]:
        """The commands and what undoes each (None: it needs nothing), but for those that do not say. Raises
        ServiceError where that has no handler."""
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

    def _route(
        self, name: str, via: str | None, queue: str | None, timeout_s: int | None
    ) -> tuple[str | None, int | None]:
        """The RQ queue and the time limit of what is declared so."""
        if via not in (None, "rq"):
            raise ServiceError(f'service {self.name}: {name} cannot run via {via!r}; say "rq", or nothing')
        if via is None and (queue is not None or timeout_s is not None):
            raise ServiceError(f'service {self.name}: {name} has a queue or a timeout_s, but not via="rq"')
        if queue is not None and (not isinstance(queue, str) or not queue):
            raise ServiceError(f"service {self.name}: {name} cannot run in the queue {queue!r}")
        if timeout_s is not None and (type(timeout_s) is not int or timeout_s < 1):
            raise ServiceError(f"service {self.name}: {name} cannot have {timeout_s!r} s; give whole seconds from 1 on")
        return (queue or self.name) if via else None, timeout_s

    @property
    def queues(self) -> list[str]:
        """The RQ queues that its steps run in, none where all run in the service's own processes."""
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

    def _check_concurrency(self, name: str, concurrency: int | None) -> None:
        if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
            raise ServiceError(
                f"service {self.name}: {name} cannot run {concurrency!r} at once; give a number from 1 on"
            )

    def _check_handler(self, name: str, handler: Handler, kind: Kind) -> None:
        try:
            inspect.signature(handler).bind(None, None)
        except (TypeError, ValueError) as error:  # ValueError: a builtin that does not tell what it takes
            raise ServiceError(f"service {self.name}: a handler takes (params, context); {name}: {error}") from None
        if _is_a(inspect.isgeneratorfunction, handler) or _is_a(inspect.isasyncgenfunction, handler):
            raise ServiceError(f"service {self.name}: the handler of {name} yields; a handler returns its result")
        if getattr(handler, MADE_FOR, kind) != kind:
            raise ServiceError(f"service {self.name}: {name} is a {kind}: its handler is made with {_MAKERS[kind]}")


def _is_a(test: Callable[[Any], bool], handler: Callable[..., Any]) -> bool:
    """Whether a test holds of a function, a method, a partial of one, or of how an object is called."""
    return test(handler) or test(type(handler).__call__)


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether this was declared with async def: a function, a method, a partial of one, or an object called so."""
    return _is_a(inspect.iscoroutinefunction, handler)

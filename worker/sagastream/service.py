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
from dataclasses import dataclass
from importlib import import_module
from traceback import extract_tb
from typing import Any, Final, TypeVar

import orjson

from sagastream.errors import ServiceError
from sagastream.messages import AS_PUBLISHED, Command, is_id

#: How long a process may hold a command before others take it over, in milliseconds, unless a service says otherwise.
LEASE_MS: Final = 30_000

#: A handler: (params, context) -> any JSON value. For a compensation: the params of the step that it undoes.
Handler = Callable[[Any, "Context"], Any]
_H = TypeVar("_H", bound=Handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a handler may know of its command beyond the params."""

    saga_id: str
    step: int  # counts from 1
    key: str  # the idempotency key. A compensation finds what it undoes by the next one, not by this
    transaction_key: str  # of a compensation: the key of what it undoes; else the same as `key`
    attempt: int  # how often the orchestrator has sent this command, this time included
    result: Any = None  # of a compensation: what the step returned, if that is known


class Service:
    """The commands of one service and their handlers."""

    def __init__(self, name: str, *, lease_ms: int = LEASE_MS) -> None:
        """
        Args:
            name: what sagas call the service.
            lease_ms: how long a process may hold a command before another takes it over. Longer than any handler
                takes: one that takes longer may run twice at once, kept apart only by its idempotency key.

        Raises ServiceError if the name cannot be one.
        """
        if not is_id(name):
            raise ServiceError(f"{name!r} cannot be the name of a service: 1 to 128 of A-Z a-z 0-9 . _ : -")
        self.name = name
        self.lease_ms = lease_ms
        self._commands: dict[str, tuple[Handler, str | None]] = {}
        self._compensations: dict[str, Handler] = {}

    def command(self, name: str, *, compensation: str | None) -> Callable[[_H], _H]:
        """Declare a command's handler, and the name of the compensation that undoes it; None: it needs none."""
        self._check_new(name)
        if compensation == name:
            raise ServiceError(f"service {self.name}: {name} cannot be its own compensation")

        def declare(handler: _H) -> _H:
            self._check_handler(name, handler)
            self._commands[name] = (handler, compensation)
            return handler

        return declare

    def compensation(self, name: str) -> Callable[[_H], _H]:
        """Declare the handler of a compensation."""
        self._check_new(name)

        def declare(handler: _H) -> _H:
            self._check_handler(name, handler)
            self._compensations[name] = handler
            return handler

        return declare

    def handler(self, command: Command) -> Handler | None:
        """The handler for a command, None where the service has none."""
        if command.compensating:
            return self._compensations.get(command.type)
        return self._commands.get(command.type, (None, None))[0]

    def undo_of(self, command: Command) -> str | None:
        """The compensation of a transaction: what the step names or, where it names none, what is declared here; None:
        it needs none."""
        if command.compensation != AS_PUBLISHED:
            return command.compensation
        return self._commands.get(command.type, (None, None))[1]

    def publishes(self) -> dict[str, str | None]:
        """The commands and what undoes each (None: it needs nothing). Raises ServiceError where that has no handler."""
        for name, (_, compensation) in self._commands.items():
            if compensation is not None and compensation not in self._compensations:
                raise ServiceError(
                    f"service {self.name}: {name} is undone by {compensation}, which has no handler; "
                    f'declare one with @service.compensation("{compensation}")'
                )
        if not self._commands:
            raise ServiceError(f"service {self.name} declares no command")
        return {name: compensation for name, (_, compensation) in self._commands.items()}

    def _check_new(self, name: str) -> None:
        if not is_id(name):
            raise ServiceError(f"service {self.name}: {name!r} cannot be the name of a command")
        if name in self._commands or name in self._compensations:
            raise ServiceError(f"service {self.name} declares {name} twice")

    def _check_handler(self, name: str, handler: Handler) -> None:
        if inspect.iscoroutinefunction(handler):
            raise ServiceError(f"service {self.name}: the handler of {name} is async; handlers are plain functions")
        try:
            inspect.signature(handler).bind(None, None)
        except TypeError as error:
            raise ServiceError(f"service {self.name}: a handler takes (params, context); {name}: {error}") from None


def context_of(command: Command, key: str | None = None) -> Context:
    """What a handler is told of this command; `key`: where it is not the command's own."""
    return Context(
        saga_id=command.saga_id,
        step=command.step,
        key=key or command.key,
        transaction_key=command.transaction_key,
        attempt=command.attempt,
        result=orjson.loads(command.result) if command.result is not None else None,
    )


def load_service(where: str) -> Service:
    """The Service that MODULE:NAME names. Raises ServiceError with what to do about it."""
    module_name, _, name = where.partition(":")
    if not module_name or not name:
        raise ServiceError(f"{where!r} is not MODULE:NAME, like shop.payment:service")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ServiceError(f"cannot import {module_name}: {error}; run it where the module is found") from None
    except (Exception, SystemExit) as error:
        at = extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} (raised in {at.filename}, line {at.lineno})"
        raise ServiceError(f"cannot import {module_name}: {why}") from error
    service = getattr(module, name, None)
    if not isinstance(service, Service):
        raise ServiceError(f"{name} in {module_name} is not a sagastream.Service")
    return service

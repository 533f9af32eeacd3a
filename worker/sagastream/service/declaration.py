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

from collections.abc import Callable
from typing import Final, TypeVar, Unpack, overload

from sagastream.codecs.setting import codec_of
from sagastream.core.commands import Command, failed, ok
from sagastream.core.messages import is_id, is_service
from sagastream.core.sealing import Codec
from sagastream.core.steps import AS_PUBLISHED, STANDING
from sagastream.core.typed_values import Model
from sagastream.errors import ServiceError
from sagastream.service.context import Handler
from sagastream.service.named_function import NamedFunction
from sagastream.service.registration import (
    Kind,
    Options,
    Registration,
    check_concurrency,
    check_handler,
    check_hard_timeout,
    check_options,
    is_async,
)
from sagastream.service.typed_params import model_of_params

#: How long a process may hold a command before another one takes it over, in milliseconds, unless a service says more.
LEASE_MS: Final = 30_000
#: The shortest lease, in milliseconds. A lease is renewed four times before it ends. With a shorter one, a process that
#: the machine keeps waiting for a moment would lose what it holds.
SHORTEST_LEASE_MS: Final = 100
#: The exit code of a process one of whose handlers ran for longer than its hard timeout: EX_TEMPFAIL, "try again".
EXIT_HANGS: Final = 75

_H = TypeVar("_H", bound=Handler)


class Service:
    """The commands of one service and their handlers."""

    def __init__(
        self,
        name: str,
        *,
        lease_ms: int = LEASE_MS,
        concurrency: int = 1,
        hard_timeout_ms: int | None = None,
        codec: Codec | None = None,
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
            codec: opens the params that handlers get, and seals what they return. By default the one that the
                environment of its processes names, if it names one.

        Raises ServiceError if the name cannot be that of a service, if the lease is not a whole number of at least
        SHORTEST_LEASE_MS, or if the concurrency or the hard timeout is not a whole number of at least 1.
        """
        if not is_service(name):
            raise ServiceError(f"{name!r} cannot be the name of a service: 1 to 128 of A-Z a-z 0-9 . _ -")
        self.name = name
        if type(lease_ms) is not int or lease_ms < SHORTEST_LEASE_MS:
            least = f"give whole milliseconds, at least {SHORTEST_LEASE_MS}"
            raise ServiceError(f"service {name}: lease_ms cannot be {lease_ms!r}; {least}")
        check_concurrency(name, "it", concurrency)
        check_hard_timeout(name, "it", hard_timeout_ms)
        self.hard_timeout_ms = hard_timeout_ms
        self.lease_ms = lease_ms
        if codec is not None:
            codec_of(codec)  # which refuses what is none
        self.codec = codec
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
        check_options(self.name, name, kind, options)
        queue = (options.get("queue") or self.name) if options.get("via") else None

        def declare(handler: _H) -> _H:
            check_handler(self.name, name, handler, kind)
            declared = self._commands if kind == "command" else self._compensations
            declared[name] = Registration(
                name=name,
                handler=handler,
                compensation=compensation,
                is_async=is_async(handler),
                model=self._model_of(name, handler),
                queue=queue,
                hard_timeout_ms=None if queue else options.get("hard_timeout_ms") or self.hard_timeout_ms,
                options=options,
            )
            return handler

        if call is None:
            return declare
        declare(NamedFunction(call, result_counts=kind == "command"))
        return None

    def _model_of(self, name: str, handler: Handler) -> Model | None:
        if isinstance(handler, NamedFunction):
            return None  # it is not imported here, and reads its arguments itself
        try:
            return model_of_params(handler)
        except ServiceError as error:
            raise ServiceError(f"service {self.name}: {name}: {error}") from None

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

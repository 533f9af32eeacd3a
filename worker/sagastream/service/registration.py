"""One command or one compensation, as a service declares it: its handler, its options, and what is wrong with them."""

import inspect
from collections.abc import Callable
from typing import Any, Final, Literal, TypedDict

from msgspec import Struct

from sagastream.core import service_rules
from sagastream.core.json_values import unwritable_result
from sagastream.core.typed_values import Model
from sagastream.errors import ServiceError
from sagastream.service.context import Handler
from sagastream.service.named_function import NamedFunction

#: What is said of a handler whose results cannot be told to anybody.
NO_JSON: Final = "which JSON cannot hold: return a dict, a list, a text, a number, a dataclass or a model"

#: What a handler can be declared as.
Kind = Literal["command", "compensation"]
#: The attribute of a handler that can be declared as only one of them: as which. And the decorators that set it.
MADE_FOR: Final = "sagastream_made_for"
_MAKERS: Final[dict[Kind, str]] = {"command": "@effects.once", "compensation": "@effects.undo"}


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
    model: Model | None = None  # the class that the handler names for its params
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


def check_options(service: str, name: str, kind: Kind, options: Options) -> None:
    """Raises ServiceError if the options cannot be those of this command of this service, and TypeError if there is no
    such option."""
    # What Python does for arguments that it knows by name; a type checker has said it before.
    for unknown in options.keys() - Options.__annotations__.keys():
        raise TypeError(f"Service.{kind}() got an unexpected keyword argument {unknown!r}")
    check_concurrency(service, name, options.get("concurrency"))
    check_hard_timeout(service, name, options.get("hard_timeout_ms"))
    via, queue, timeout_s = options.get("via"), options.get("queue"), options.get("timeout_s")
    if via not in (None, "rq"):
        raise ServiceError(f'service {service}: {name} cannot run via {via!r}; say "rq", or nothing')
    if via is None and (queue is not None or timeout_s is not None):
        raise ServiceError(f'service {service}: {name} has a queue or a timeout_s, but not via="rq"')
    if via is not None and options.get("hard_timeout_ms") is not None:
        raise ServiceError(f"service {service}: {name} runs via RQ: say timeout_s, not hard_timeout_ms")
    if queue is not None and (not isinstance(queue, str) or not queue):
        raise ServiceError(f"service {service}: {name} cannot run in the queue {queue!r}")
    if timeout_s is not None and (type(timeout_s) is not int or timeout_s < 1):
        raise ServiceError(
            f"service {service}: {name}: timeout_s cannot be {timeout_s!r}; give whole seconds, at least 1"
        )


def check_concurrency(service: str, name: str, concurrency: int | None) -> None:
    """Raises ServiceError if so many cannot run at once."""
    if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
        raise ServiceError(
            f"service {service}: {name} cannot run {concurrency!r} at once; give a whole number, at least 1"
        )


def check_hard_timeout(service: str, name: str, ms: int | None) -> None:
    """Raises ServiceError if this cannot be a hard timeout, in milliseconds."""
    if ms is not None and (type(ms) is not int or ms < 1):
        raise ServiceError(
            f"service {service}: {name}: hard_timeout_ms cannot be {ms!r}; give whole milliseconds, at least 1"
        )


def check_handler(service: str, name: str, handler: Handler, kind: Kind) -> None:
    """Raises ServiceError if this cannot be the handler of what is declared."""
    try:
        inspect.signature(handler).bind(None, None)
    except (TypeError, ValueError) as error:  # ValueError: a builtin does not tell its parameters
        raise ServiceError(f"service {service}: a handler takes (params, context); {name}: {error}") from None
    if _is_a(inspect.isgeneratorfunction, handler) or _is_a(inspect.isasyncgenfunction, handler):
        raise ServiceError(f"service {service}: the handler of {name} yields; a handler returns its result")
    if kind == "command":  # what a compensation returns is ignored
        _check_result(service, name, handler)
    if getattr(handler, MADE_FOR, kind) != kind:
        raise ServiceError(f"service {service}: {name} is a {kind}: its handler is made with {_MAKERS[kind]}")


def _check_result(service: str, name: str, handler: Handler) -> None:
    if (kind := unwritable_result(handler)) is not None:
        raise ServiceError(f"service {service}: the handler of {name} returns {kind}, {NO_JSON}")


def _is_a(test: Callable[[Any], bool], handler: Callable[..., Any]) -> bool:
    """Whether a test is true of a function, a method, a partial of one, or of the way an object is called."""
    return test(handler) or test(type(handler).__call__)


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether this was declared with async def: a function, a method, a partial of one, or an object's call."""
    return _is_a(inspect.iscoroutinefunction, handler)

"""What a saga_begin says about its steps: the definition of a step, the kinds of steps, defaults and limits."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import orjson
from msgspec import NODEFAULT, Struct, structs

#: The formats of requests and of sagas' hashes that this release knows. A format is a number. It stands for all members
#: and fields that a saga of this format may have. Higher formats than these are left to a newer release.
FORMATS: Final = frozenset({1, 2})
#: The format of a request or a hash that does not name one: a list of steps, whose params are known beforehand.
PLAIN: Final = 1
#: The format of a saga that is a graph, or has an input, conditions, waits or a start.
GRAPH: Final = 2
#: The most steps that one saga may have.
MAX_STEPS: Final = 100
#: The most bytes that the input of a saga takes in the commands of all its steps, with each of which it comes.
MAX_CARRIED_BYTES: Final = 16 << 20
#: In `StepDefinition.compensation`: the step is undone by the command that its service publishes as the compensation.
AS_PUBLISHED: Final = ""
#: The command that asks a service which of its effects stand. A service answers it or has no such command.
STANDING: Final = "sagastream_effects"

#: How often a command is sent at most, the compensation too, if whoever begins the saga says nothing: clients, the
#: bridge and the command line write it into their requests. A step that fails at once is tried for 7 to 14 minutes, so
#: a bug undoes nothing before it can be mended; if its service is away, for half an hour.
USUAL_ATTEMPTS: Final = 20

#: The defaults of the plain format: what a request or a hash means that does not name an option. They never change. A
#: saga that began under other usual numbers has those in its hash.
TIMEOUT_MS: Final = 60_000
ATTEMPTS: Final = 3
BACKOFF_MS: Final = 1_000
PERSISTENT_ATTEMPTS: Final = 10
#: The longest times that a request may ask for: 1 day, 1 day, 365 days. Services keep their records for longer than the
#: first two.
MAX_TIMEOUT_MS: Final = 24 * 3600 * 1000
MAX_BACKOFF_MS: Final = 24 * 3600 * 1000
MAX_DEADLINE_MS: Final = 365 * 24 * 3600 * 1000
MAX_ATTEMPTS: Final = 1000
#: The longest time that a wait, a pause or a retry may take: 365 days.
MAX_WAIT_MS: Final = MAX_DEADLINE_MS
#: What `on_timeout` of a wait may say.
FAILS: Final = "fail"
GOES_ON: Final = "continue"
#: The name of a pause, where other steps have a transaction.
PAUSE: Final = "pause"


class StepKind(StrEnum):
    """What happens if a step fails. The steps of a saga come in this order: compensatable ones, at most one pivot, and
    retriable ones only after the pivot."""

    COMPENSATABLE = "compensatable"  # it can be undone
    PIVOT = "pivot"  # once it has completed, the saga is not undone any more
    RETRIABLE = "retriable"  # it is tried until it is done, or parked; it does not fail


def default_attempts(kind: StepKind) -> int:
    """The default of `attempts` in the plain format."""
    return PERSISTENT_ATTEMPTS if kind is StepKind.RETRIABLE else ATTEMPTS


class Shape(Struct, frozen=True, kw_only=True, gc=False):
    """What a saga_begin says about one step that only a saga of format GRAPH may say."""

    id: str | None = None  # its name in the saga; None: it has none besides its number
    after: tuple[int, ...] | None = None  # the numbers of the steps that it comes after; None: the one before it
    when: bytes | None = None  # a condition, JSON: if it does not hold, the step is bypassed
    has_references: bool = False  # whether its params refer to the input or to results
    compensation_params: bytes | None = None  # what its compensation is told besides, JSON; it may have references
    sends: bool = True  # whether it sends a command. If not, it is a wait for a signal or a pause
    wait: str | None = None  # it waits for the signal of this name; None: it waits for none
    wait_ms: int | None = None  # how long the wait takes at most; how long the pause takes; in ms
    goes_on: bool = False  # whether it is done, without a result, if the signal does not come in time
    retry_on: str | None = None  # after its last failure it waits for this signal, and is then sent anew …
    retry_within_ms: int | None = None  # … if it comes within this time, in ms

    def body(self) -> dict[str, Any]:
        """Its members in a saga_begin."""
        members: dict[str, Any] = {} if self.id is None else {"id": self.id}
        if self.after is not None:
            members["after"] = self.after
        if self.when is not None:
            members["when"] = orjson.Fragment(self.when)
        if self.compensation_params is not None:
            members["compensation_params"] = orjson.Fragment(self.compensation_params)
        if self.wait is not None:
            members |= {"wait": self.wait, "timeout_ms": self.wait_ms}
        elif self.wait_ms is not None:
            members["wait_ms"] = self.wait_ms
        if self.goes_on:
            members["on_timeout"] = GOES_ON
        if self.retry_on is not None:
            members |= {"retry_on": self.retry_on, "retry_within_ms": self.retry_within_ms}
        return members


#: The shape of a step of which a saga_begin says nothing but what it may say in the plain format.
PLAIN_SHAPE: Final = Shape()


class StepDefinition(Struct, frozen=True, kw_only=True, gc=False):
    """What a saga_begin says about one step."""

    transaction: str  # the name of the command that does the step
    service: str  # the name of the service that does it
    params: bytes  # what the command gets, JSON
    compensation: str | None = AS_PUBLISHED  # the name of the command that undoes it; None: it needs none
    kind: StepKind = StepKind.COMPENSATABLE  # what happens if it fails
    timeout_ms: int = TIMEOUT_MS  # how long an attempt may take, in milliseconds; for the compensation too
    attempts: int = ATTEMPTS  # how often its transaction is sent at most
    compensation_attempts: int = PERSISTENT_ATTEMPTS  # how often its compensation is sent at most, before it is parked
    backoff_ms: int = BACKOFF_MS  # how long to wait before the second attempt, in ms; doubles with each attempt
    retry_failed: bool = False  # whether an attempt that was answered with `_failed` is tried again too
    shape: Shape = PLAIN_SHAPE  # what only a saga of format GRAPH may say about it

    @property
    def retried(self) -> bool:
        """Whether the command may be sent again after it was answered with `_failed`."""
        return self.retry_failed or self.kind is StepKind.RETRIABLE or self.shape.retry_on is not None

    def body(self) -> dict[str, Any]:
        """The members of the step in a saga_begin. Options with their defaults are left out."""
        if not self.shape.sends:
            return self.shape.body()
        members: dict[str, Any] = {
            "transaction": self.transaction,
            "service": self.service,
            "params": orjson.Fragment(self.params),
        }
        if self.shape is not PLAIN_SHAPE:
            members |= self.shape.body()
        return {**members, **unlike_defaults(self.options)}

    @property
    def options(self) -> tuple[Any, ...]:
        """The values of all its options, in the order of OPTIONS."""
        return _option_values(self)


#: The options of a step of any saga, which are all members but transaction, service and params; each with its default.
OPTIONS: Final[dict[str, Any]] = {
    field.name: field.default
    for field in structs.fields(StepDefinition)
    if field.default is not NODEFAULT and field.name != "shape"
}


_option_values = attrgetter(*OPTIONS)
_KIND: Final = list(OPTIONS).index("kind")
#: The options of a step of each kind if it names none.
_DEFAULTS: Final = {kind: tuple((OPTIONS | {"attempts": default_attempts(kind)}).values()) for kind in StepKind}


@lru_cache(maxsize=1024)  # the steps of a program are alike
def unlike_defaults(options: tuple[Any, ...]) -> Mapping[str, Any]:
    """The options of a step that do not have the defaults of the plain format, by name. `options`: all values."""
    defaults = _DEFAULTS[options[_KIND]]
    return {name: value for name, value, usual in zip(OPTIONS, options, defaults, strict=True) if value != usual}


def services_of(definitions: Iterable[StepDefinition]) -> set[str]:
    """The services of these steps; a wait or a pause has none."""
    return {definition.service for definition in definitions if definition.shape.sends}

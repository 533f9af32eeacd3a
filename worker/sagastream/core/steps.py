"""What a saga_begin says about its steps: the definition of a step, the kinds of steps, defaults and limits."""

from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

import orjson
from msgspec import NODEFAULT, Struct, structs

#: The formats of requests and of sagas' hashes that this release knows. A format says what a saga may ask for.
#: A request or hash that names none has format 1; one with a higher format than these is left to a newer release.
FORMATS: Final = frozenset({1})
#: The format of a saga that names none.
PLAIN: Final = 1
#: The most steps that one saga may have.
MAX_STEPS: Final = 100
#: In `StepDefinition.compensation`: the step is undone by whatever its service publishes.
AS_PUBLISHED: Final = ""

#: The defaults of a step. By them a service may be away for some minutes before its sagas fail …
TIMEOUT_MS: Final = 60_000
ATTEMPTS: Final = 3
BACKOFF_MS: Final = 1_000
#: … and for a quarter of an hour before a step that must be done or undone is left to a person.
PERSISTENT_ATTEMPTS: Final = 10
#: The longest times that a request may ask for: 1 day, 1 day, 365 days. Services keep their records for longer than the
#: first two.
MAX_TIMEOUT_MS: Final = 24 * 3600 * 1000
MAX_BACKOFF_MS: Final = 24 * 3600 * 1000
MAX_DEADLINE_MS: Final = 365 * 24 * 3600 * 1000
MAX_ATTEMPTS: Final = 1000


class StepKind(StrEnum):
    """How a step takes failure. Steps come in this order, with at most one pivot, and retriable ones only after it.

    compensatable: it can be undone.
    pivot: once it has completed there is no way back.
    retriable: it cannot fail for good, and is tried until it is done.
    """

    COMPENSATABLE = "compensatable"
    PIVOT = "pivot"
    RETRIABLE = "retriable"


def usual_attempts(kind: StepKind) -> int:
    """The default of `attempts` for a step of this kind."""
    return PERSISTENT_ATTEMPTS if kind is StepKind.RETRIABLE else ATTEMPTS


class StepDefinition(Struct, frozen=True, kw_only=True, gc=False):
    """What a saga_begin says about one step."""

    transaction: str
    service: str
    params: bytes  # JSON
    compensation: str | None = AS_PUBLISHED  # None: declared to need none
    kind: StepKind = StepKind.COMPENSATABLE
    timeout_ms: int = TIMEOUT_MS  # how long an answer may take, also that of the compensation
    attempts: int = ATTEMPTS  # how often at most its command is sent
    compensation_attempts: int = PERSISTENT_ATTEMPTS  # … and its compensation, before the saga is parked
    backoff_ms: int = BACKOFF_MS  # how long to wait before the second attempt; doubles with each
    retry_failed: bool = False  # a `_failed` is tried again too

    @property
    def retried(self) -> bool:
        """Whether a `_failed` is tried again."""
        return self.retry_failed or self.kind is StepKind.RETRIABLE

    def canonical(self) -> tuple[object, ...]:
        """The value by which two definitions are compared: the order of keys and white space make no difference."""
        params = orjson.dumps(orjson.loads(self.params), option=orjson.OPT_SORT_KEYS)
        return (self.transaction, self.service, params, *(getattr(self, name) for name in OPTIONS))

    def body(self) -> dict[str, Any]:
        """The members of the step in a saga_begin, without options that have their defaults."""
        members: dict[str, Any] = {
            "transaction": self.transaction,
            "service": self.service,
            "params": orjson.Fragment(self.params),
        }
        return members | {name: getattr(self, name) for name in self.unusual_options()}

    def unusual_options(self) -> list[str]:
        """The names of the options that do not have their defaults."""
        values = _option_values(self)
        usual = _USUAL[self.kind]
        if values == usual:
            return []
        return [name for name, value, other in zip(OPTIONS, values, usual, strict=True) if value != other]


#: The options of a step, besides transaction, service and params, with their defaults.
OPTIONS: Final[dict[str, Any]] = {
    field.name: field.default for field in structs.fields(StepDefinition) if field.default is not NODEFAULT
}


_option_values = attrgetter(*OPTIONS)
#: The defaults of the options, by the kind of the step.
_USUAL: Final = {kind: tuple((OPTIONS | {"attempts": usual_attempts(kind)}).values()) for kind in StepKind}

"""What a saga_begin says of its steps: the definition of a step, its kinds, what holds where it does not say otherwise,
and the limits.
"""

from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

import orjson
from msgspec import NODEFAULT, Struct, structs

#: The formats of requests and of sagas' hashes that this release knows. A number stands for all that a saga of it may
#: say. What says nothing has format 1; what has a higher one than these is left to a newer release.
FORMATS: Final = frozenset({1})
#: The format of a saga that says nothing.
PLAIN: Final = 1
#: The most steps that one saga may have.
MAX_STEPS: Final = 100
#: In `StepDefinition.compensation`: the step is undone by whatever its service publishes.
AS_PUBLISHED: Final = ""

#: What holds for a step that does not say otherwise. A service may be away for some minutes before its sagas fail …
TIMEOUT_MS: Final = 60_000
ATTEMPTS: Final = 3
BACKOFF_MS: Final = 1_000
#: … and for a quarter of an hour before what has to be done, undone above all, is left to a person.
PERSISTENT_ATTEMPTS: Final = 10
#: The longest times that a request may ask for: 1 day, 1 day, 365 days. Services remember for longer what they did.
MAX_TIMEOUT_MS: Final = 24 * 3600 * 1000
MAX_BACKOFF_MS: Final = 24 * 3600 * 1000
MAX_DEADLINE_MS: Final = 365 * 24 * 3600 * 1000
MAX_ATTEMPTS: Final = 1000


class StepKind(StrEnum):
    """How a step takes failure. Steps come in this order, with one pivot at the most, and retriable ones only after it.

    compensatable: it can be undone.
    pivot: once it has completed there is no way back.
    retriable: it cannot fail for good, and is tried until it is done.
    """

    COMPENSATABLE = "compensatable"
    PIVOT = "pivot"
    RETRIABLE = "retriable"


def usual_attempts(kind: StepKind) -> int:
    """How often the command of a step is sent at the most that does not say so."""
    return PERSISTENT_ATTEMPTS if kind is StepKind.RETRIABLE else ATTEMPTS


class StepDefinition(Struct, frozen=True, kw_only=True, gc=False):
    """What a saga_begin says of one step."""

    transaction: str
    service: str
    params: bytes  # JSON
    compensation: str | None = AS_PUBLISHED  # None: declared to need none
    kind: StepKind = StepKind.COMPENSATABLE
    timeout_ms: int = TIMEOUT_MS  # how long an answer may take, of the compensation too
    attempts: int = ATTEMPTS  # how often its command is sent at the most
    compensation_attempts: int = PERSISTENT_ATTEMPTS  # … and its compensation, before the saga is parked
    backoff_ms: int = BACKOFF_MS  # how long to wait before the second attempt; doubles with each
    retry_failed: bool = False  # a `_failed` is tried again too

    @property
    def retried(self) -> bool:
        """Whether a `_failed` is no last word."""
        return self.retry_failed or self.kind is StepKind.RETRIABLE

    def canonical(self) -> tuple[object, ...]:
        """What two definitions are compared by: the order of keys and white space do not count."""
        params = orjson.dumps(orjson.loads(self.params), option=orjson.OPT_SORT_KEYS)
        return (self.transaction, self.service, params, *(getattr(self, name) for name in OPTIONS))

    def body(self) -> dict[str, Any]:
        """The members of a step in a saga_begin; what is as usual is left out."""
        members: dict[str, Any] = {
            "transaction": self.transaction,
            "service": self.service,
            "params": orjson.Fragment(self.params),
        }
        return members | {name: getattr(self, name) for name in self.unusual_options()}

    def unusual_options(self) -> list[str]:
        """The names of the options in which this step differs from one that says nothing."""
        values = _option_values(self)
        usual = _USUAL[self.kind]
        if values == usual:
            return []
        return [name for name, value, other in zip(OPTIONS, values, usual, strict=True) if value != other]


#: What a step may say besides transaction, service and params, and what holds where it does not.
OPTIONS: Final[dict[str, Any]] = {
    field.name: field.default for field in structs.fields(StepDefinition) if field.default is not NODEFAULT
}


_option_values = attrgetter(*OPTIONS)
#: The options of a step that says no more than its kind, if that.
_USUAL: Final = {kind: tuple((OPTIONS | {"attempts": usual_attempts(kind)}).values()) for kind in StepKind}

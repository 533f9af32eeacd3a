"""What a step, a wait or a pause of a definition in Python may say besides what it must."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypedDict, TypeVar

from sagastream.client.expressions import Condition, DefinedStep, Reference
from sagastream.core.members import checked_object


class StepOptions(TypedDict, total=False):
    """What a step may say besides its transaction, service and params: docs/sagas.md and docs/graphs.md describe it,
    docs/definitions.md describes `each`."""

    id: str
    after: DefinedStep | str | int | Sequence[DefinedStep | str | int]
    when: Condition | bool | Mapping[str, Any]
    each: Reference
    compensation: str | None
    compensation_params: Any
    kind: Literal["compensatable", "pivot", "retriable"]
    timeout_ms: int
    attempts: int
    compensation_attempts: int
    backoff_ms: int
    retry_failed: bool
    retry_on: str
    retry_within_ms: int


class WaitOptions(TypedDict, total=False):
    """What a wait or a pause may say besides its own members: docs/graphs.md describes it."""

    id: str
    after: DefinedStep | str | int | Sequence[DefinedStep | str | int]
    when: Condition | bool | Mapping[str, Any]


class _HasSteps(Protocol):
    @property
    def steps(self) -> Sequence[DefinedStep]: ...


_P = ParamSpec("_P")
_T = TypeVar("_T", bound=_HasSteps)


def spelt(
    options: type,
) -> Callable[[Callable[Concatenate[_T, _P], DefinedStep]], Callable[Concatenate[_T, _P], DefinedStep]]:
    """Gives a method that adds a step the check that its options have known names. Python would only miss the argument
    that was misspelt."""

    def checking(
        method: Callable[Concatenate[_T, _P], DefinedStep],
    ) -> Callable[Concatenate[_T, _P], DefinedStep]:
        arguments = inspect.signature(method).parameters
        known = {name for name in arguments if name not in ("self", "options")} | options.__annotations__.keys()

        @functools.wraps(method)
        def checked(self: _T, /, *args: _P.args, **named: _P.kwargs) -> DefinedStep:
            checked_object(dict(named), f"step {len(self.steps) + 1}", known)
            return method(self, *args, **named)

        return checked

    return checking

"""Who waits for a saga: what settles them, what to raise if the time is up, or if the saga did not complete."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from sagastream.client.answers import Accepted, Refused, Unsettled, conflicting
from sagastream.core.messages import Begin, ToSaga
from sagastream.core.saga import Found, SagaState, SagaStatus
from sagastream.core.sealing import Codec
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import PLAIN
from sagastream.errors import SagaAborted, SagaParked, UnreadableSaga

Outcome = SagaState | Refused

#: What nobody can wait for, and what to do instead.
_INSTEAD: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (SagaState, ": give its saga_id"),
    (Refused, ": it was not begun, and its error says why"),
    (Unsettled, ": begin it again first"),
    ((list, tuple, set, dict), ": for many there is as_completed"),
)


def check_timeout(timeout_s: float | None) -> None:
    """Raises TypeError or ValueError if `timeout_s` is not a time to wait."""
    given: object = timeout_s
    if given is None:
        return
    said = f"timeout_s must be a number of seconds from 0 on, or None to wait for as long as it takes, not {given!r}"
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(said)
    if not 0 <= given < math.inf:
        raise ValueError(said)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiter:
    """Somebody waits: for the end of a saga or, with an operator's request, until a worker has done it."""

    saga_id: str
    request: Begin | ToSaga | None = None
    past_parking: bool = False  # whether to wait on while the saga is parked

    @classmethod
    def for_end_of(cls, saga: Accepted | str) -> Self:
        """Raises TypeError for anything else."""
        given: object = saga
        if isinstance(given, str):
            return cls(saga_id=given)
        if isinstance(given, Accepted):
            return cls(saga_id=given.saga_id, request=given.begin)
        hint = next((hint for kinds, hint in _INSTEAD if isinstance(given, kinds)), "")
        raise TypeError(f"to be waited for: what begin returned, or the id of a saga, not {type(given).__name__}{hint}")

    def outcome(self, found: Found, codec: Codec | None = None) -> Outcome | None:
        """What settles this waiter when the saga is as it was found; None: nothing yet. `codec`: with it the params of
        its request were sealed."""
        if isinstance(found, UnreadableSaga):
            return Refused(saga_id=self.saga_id, error=found)
        if found is None:
            return None
        if isinstance(self.request, ToSaga):
            return found if found.has_taken(self.request.request_id) else None
        if self.request is not None and (other := conflicting(found, self.request, codec)) is not None:
            return other
        return found if found.ended or (found.parked is not None and not self.past_parking) else None

    @property
    def unbegun(self) -> str:
        """What to say if there is no such saga yet."""
        if isinstance(self.request, ToSaga):
            return ""  # whether there is one is for the worker to say
        if self.request is None:
            return f"there is no saga {self.saga_id} yet"
        return f"no worker has begun {self.saga_id} yet"

    def timeout_error(self, timeout_s: float, why: str, *, others: int = 0) -> TimeoutError:
        """What to raise when the time is up. `others`: how many more wait."""
        if isinstance(self.request, ToSaga):
            return TimeoutError(
                f"no worker has taken the {self.request.verb} of saga {self.saga_id} within {timeout_s:g} s{why}; "
                "it is in the store, and the next one will do it, or refuse it"
            )
        which = f"saga {self.saga_id} and {others} more have" if others else f"saga {self.saga_id} has"
        return TimeoutError(f"{which} not ended within {timeout_s:g} s{why}")


Settled = Sequence[tuple[Waiter, Outcome]]


def completed(state: SagaState) -> SagaState:
    """The saga itself. Raises SagaAborted or SagaParked if it has not completed."""
    if state.status is SagaStatus.COMPLETED:
        return state
    if parked := state.parked_steps:
        step = state.steps[parked[0] - 1]
        raise SagaParked(state.saga_id, str(step.parked), parked[0], step.command, step.definition.service)
    failed = _failed_step(state)
    reason = state.reason or "no reason is known"
    if failed is None:
        raise SagaAborted(state.saga_id, reason)
    definition = state.steps[failed - 1].definition
    raise SagaAborted(state.saga_id, reason, failed, definition.transaction, definition.service)


def _failed_step(state: SagaState) -> int | None:
    """The number of the step because of which a saga went back; None: it was cancelled."""
    if state.format != PLAIN:
        return state.failed_step
    return next((number for number, step in enumerate(state.steps, 1) if _has_failed(step)), None)


def _has_failed(step: Step) -> bool:
    """Whether its saga went back because of this step. A step whose outcome is unknown is undone too."""
    return step.status is StepStatus.FAILED or (step.status is StepStatus.COMPENSATED and step.unknown)

"""What sagas say is done, compared with what services say is done. Pure: no Redis, no clock.

After a failover that lost writes, both may be right about what they know, and contradict each other: a saga was thrown
back and has ended otherwise than its effects, or is gone while its effects stand.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum

from msgspec import Struct

from sagastream.core.phases import ACTIVE, UNDO, Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step


class Effect(StrEnum):
    """What is known of the effect of one step."""

    DONE = "done"  # it stands
    UNDONE = "undone"  # it was reversed, or was refused because its compensation came first
    REJECTED = "rejected"  # the step was refused: it has no effect
    ABSENT = "absent"  # the service knows all its effects, and this one is not among them
    UNKNOWN = "unknown"  # nobody can say


class Difference(StrEnum):
    """How a saga and an effect differ."""

    NO_SAGA = "no saga"  # an effect stands, and its saga is not in the store
    STANDS = "stands"  # an effect stands, and its saga says that nothing of it remains
    MISSING = "missing"  # the saga says that the step is done, and there is no effect
    MENDS = "mends"  # the saga is live, and finds the effect when it comes to the step


class Found(Struct, frozen=True, kw_only=True):
    """One step about which a saga and a service differ."""

    saga_id: str
    step: int  # counts from 1
    difference: Difference
    says: str  # what the saga says of it
    effect: Effect


def differences(saga_id: str, state: SagaState | None, effects: Mapping[int, Effect]) -> Iterator[Found]:
    """
    Args:
        state: of the saga; None: there is none.
        effects: what is known of its steps, by their numbers. Of the others nothing is known.
    """
    for number, effect in sorted(effects.items()):
        step = None if state is None or number > len(state.steps) else state.steps[number - 1]
        if state is None or step is None:
            says = "there is no such saga" if state is None else "the saga has no such step"
            found = Difference.NO_SAGA if effect is Effect.DONE else None
        else:
            says = f"{state.status}, step {number} {step.status}"
            found = _compared(state, step, effect)
        if found is not None:
            yield Found(saga_id=saga_id, step=number, difference=found, says=says, effect=effect)


def _compared(state: SagaState, step: Step, effect: Effect) -> Difference | None:
    """How a step and its effect differ; None: they do not, or that cannot be said."""
    if effect is Effect.UNKNOWN or step.phase in _OPEN:
        return None
    if step.phase is Phase.COMPLETED:
        if effect is Effect.DONE:
            return None
        # A saga that goes back undoes the step soon, and finds nothing to undo. A graph that has failed does so when
        # all that is out is answered.
        goes_back = state.status is SagaStatus.COMPENSATING or (state.failed_step is not None and not state.ended)
        return Difference.MENDS if goes_back else Difference.MISSING
    if effect is not Effect.DONE:
        return None
    # It was not sent yet, as the saga knows: when it is, the service finds it done under the same key.
    comes = step.phase is Phase.WAITING and state.status is SagaStatus.PENDING and state.cancelling is None
    return Difference.MENDS if comes or step.phase in ACTIVE else Difference.STANDS


#: Phases of which neither an effect nor its absence is a difference: an operator has decided, the outcome is unknown
#: for good, or the compensation is under way.
_OPEN = frozenset({Phase.SKIPPED, Phase.UNDO_SKIPPED, Phase.IN_DOUBT, *UNDO})

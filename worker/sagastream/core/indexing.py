"""In which indexes a saga is, by its state: the name of each is NAME=VALUE. Pure.

Sagas are in the indexes of their definition and their attributes; and in those of what is rare, and looked for most:
that they are undone, aborted, parked or held. A plain saga that completes is in none of them.
"""

from typing import Final

from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.steps import PLAIN

#: The index of the sagas that are parked.
PARKED: Final = "status=PARKED"
_RARE: Final = (SagaStatus.COMPENSATING, SagaStatus.ABORTED)


def index_names(state: SagaState | None) -> tuple[str, ...]:
    """The names of its indexes, each once. None: there is no such saga."""
    if state is None:
        return ()
    names: list[str] = []
    if state.definition is not None:
        names.append(f"definition={state.definition.name}")
    if state.attributes is not None:
        names += [f"{name}={value}" for name, value in state.attributes.items()]
    if state.status in _RARE:
        names.append(of_status(state.status))
    # Of a plain saga, only the current step may be parked.
    if (state.step.parked if state.format == PLAIN else state.parked) is not None:
        parked = [step for step in state.steps if step.parked is not None]
        names += (PARKED, *dict.fromkeys(f"parked={step.definition.service}/{step.command}" for step in parked))
    names += held_names(state)
    return tuple(names)


def stays_out(before: SagaState | None, after: SagaState | None) -> bool:
    """Whether this is a plain saga that is in no index, and was in none: as are most, at most of their commits. If not,
    `index_names` says in which it is. Written out: this is asked for every commit."""
    if after is None or after.format != PLAIN or after.attributes is not None or after.definition is not None:
        return False
    if before is not None and not (
        before.status is SagaStatus.PENDING and before.steps[before.current_step - 1].phase is Phase.OUT
    ):
        return False
    if after.status is SagaStatus.PENDING:
        return after.steps[after.current_step - 1].phase is Phase.OUT
    return after.status is SagaStatus.COMPLETED


def held_names(state: SagaState) -> list[str]:
    """The names of the indexes of what is held, one for each service of which a step of it is held."""
    if state.format == PLAIN:  # it waits for one step at a time; this is asked for every commit
        step = state.steps[state.current_step - 1]
        return [of_held(step.definition.service)] if step.is_held else []
    steps = state.steps
    return list(dict.fromkeys(of_held(step.definition.service) for step in steps if step.is_held))


def of_held(service: str) -> str:
    """The name of the index of the sagas of which a step of this service is held."""
    return f"held={service}"


def of_status(status: str) -> str:
    """The name of the index of a status that is rare."""
    return f"status={status}"

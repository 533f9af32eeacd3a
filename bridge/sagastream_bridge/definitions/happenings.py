"""All that can happen next to a saga that is explored and goes forward."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec.structs import replace

from sagastream.core.commands import Reply, failed, ok
from sagastream.core.messages import Due, Intervene, Signal, Verb
from sagastream.core.phases import AWAITS, Phase
from sagastream.core.saga import SagaState
from sagastream_bridge.definitions.model import NOW_MS, SAGA_ID, Model
from sagastream_bridge.definitions.outcomes import What

#: The step waits for an answer, a signal or a time.
_WAITS: Final = AWAITS | {Phase.OUT}


class Happening(NamedTuple):
    what: What | None  # None: nothing that makes the saga go back
    group: int
    event: Reply | Signal | Due | Intervene
    state: SagaState  # with its time set so that the event can come


def happenings(model: Model, state: SagaState) -> Iterator[Happening]:
    """All that can happen next to a saga that goes forward. Of steps that can change places, one stands for all."""
    cancel = Intervene(verb=Verb.CANCEL, saga_id=SAGA_ID, reason="cancel")
    for group, numbers in enumerate(model.groups):
        for number in model.places(state, group):
            yield from _happenings_at(state, group, number)
        if any(state.steps[number - 1].phase in _WAITS for number in numbers):
            yield Happening(What.CANCELLED, group, cancel, state)


def _happenings_at(state: SagaState, group: int, number: int) -> Iterator[Happening]:
    step = state.steps[number - 1]
    if step.phase is Phase.OUT:
        for what, reply in command_answers(number, step.command):
            yield Happening(what, group, reply, state)
    elif step.phase in AWAITS:
        shape = step.definition.shape
        if (name := shape.wait if step.phase is Phase.AWAITING else shape.retry_on) is not None:
            yield Happening(None, group, Signal(saga_id=SAGA_ID, name=name), state)
            yield Happening(What.DECLINED, group, Signal(saga_id=SAGA_ID, name=name, declined="no"), state)
        due = state.with_step(number, replace(step, due_ms=NOW_MS))
        yield Happening(What.NOT_SIGNALLED, group, Due(saga_id=SAGA_ID), due)


def command_answers(number: int, command: str) -> list[tuple[What | None, Reply]]:
    """What the service may say of the command of a step that is out."""
    return [
        (None, Reply(type=ok(command), saga_id=SAGA_ID, step=number)),
        (What.FAILS, Reply(type=failed(command), saga_id=SAGA_ID, step=number)),
        (What.UNKNOWN, Reply(type=failed(command), saga_id=SAGA_ID, step=number, unknown=True)),
    ]

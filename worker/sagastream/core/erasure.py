"""What stays of a saga that is erased: its course, without what people have given it, and that it was erased. Pure."""

from typing import Final

from msgspec.structs import replace

from sagastream.core.saga import Intervention, SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import PLAIN_SHAPE

#: The verb of the intervention that stays with an erased saga.
ERASE: Final = "erase"
#: What stands in the place of a text.
ERASED: Final = "(erased)"
#: What stands in the place of params, of conditions, and of an input.
NO_PARAMS: Final = b"null"
NO_INPUT: Final = b"{}"


def erasure(state: SagaState) -> Intervention | None:
    """When a saga was erased last, by whom and why; None: it was not."""
    return next((done for done in reversed(state.interventions) if done.verb == ERASE), None)


def without_data(state: SagaState) -> SagaState:
    """The saga without what anybody has given it besides names: input, params, results, errors, signals, reasons and
    actors, and
    attributes."""
    return replace(
        state,
        input=state.input and NO_INPUT,
        signals=(),
        attributes=None,
        steps=tuple(map(_step_without_data, state.steps)),
        reason=state.reason and ERASED,
        cancelling=state.cancelling and ERASED,
        interventions=tuple(map(_intervention_without_data, state.interventions)),
        journal=None,
    )


def _step_without_data(step: Step) -> Step:
    shape = step.definition.shape
    if shape is not PLAIN_SHAPE:
        told = shape.compensation_params and NO_PARAMS
        shape = replace(shape, when=shape.when and NO_PARAMS, compensation_params=told)
    definition = replace(step.definition, params=NO_PARAMS, shape=shape)
    return replace(
        step,
        definition=definition,
        result=None,
        error=None,
        compensation_error=None,
        built=None,
        built_undo=None,
    )


def _intervention_without_data(done: Intervention) -> Intervention:
    return done if done.verb == ERASE else replace(done, reason=ERASED, actor=done.actor and ERASED)

"""Waits whose time is over."""

import pytest

from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.core.steps import GRAPH, Shape, StepDefinition
from sagastream.orchestrator.overdue import _over_ms

WAIT = StepDefinition(transaction="go", service="", params=b"null", compensation=None,
                      shape=Shape(after=(), sends=False, wait="go", wait_ms=5))  # fmt: skip


@pytest.mark.parametrize(
    ("times", "over_ms"), [((20, 30), None), ((20, 10), 10), ((8, 10), 10), ((10, 8), 10), ((), None)]
)
def test_signals_are_looked_for_up_to_the_end_of_the_last_wait_that_is_over(
    times: tuple[int, ...], over_ms: int | None
) -> None:
    """Which of them is ended first is not known here."""
    steps = tuple(Step(definition=WAIT, phase=Phase.AWAITING, due_ms=time_ms) for time_ms in times)
    state = SagaState(saga_id="s", steps=steps, status=SagaStatus.PENDING, current_step=1, begun_ms=1, updated_ms=1,
                      format=GRAPH)  # fmt: skip
    assert _over_ms(state, 10) == over_ms

"""A saga as it stands: its status, its steps, and what happened to each."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from sagastream.messages import StepDefinition


class SagaStatus(StrEnum):
    PENDING = "PENDING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    ABORTED = "ABORTED"


class StepStatus(StrEnum):
    PENDING = "PENDING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    COMPENSATED = "COMPENSATED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a saga. Times are milliseconds since the epoch by the broker's clock, None: not yet."""

    definition: StepDefinition
    status: StepStatus = StepStatus.PENDING
    sent_ms: int | None = None
    answered_ms: int | None = None
    result: bytes | None = None  # JSON, of a completed step
    error: bytes | None = None  # JSON, of a failed one
    unknown: bool = False  # failed, but its effect may have happened: it is compensated too
    compensation: str | None = None  # the command that undoes it, once that was sent
    compensation_sent_ms: int | None = None
    compensation_answered_ms: int | None = None

    @property
    def may_have_effect(self) -> bool:
        """Whether there is something to undo."""
        return self.status is StepStatus.COMPLETED or (self.status is StepStatus.FAILED and self.unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaState:
    """The whole of a saga, as the decision core sees it and the store keeps it."""

    saga_id: str
    status: SagaStatus
    current_step: int  # counts from 1; while compensating: the step being undone
    steps: tuple[Step, ...]
    compensating_steps: tuple[int, ...] = ()  # in the order in which their compensation was sent
    reason: str | None = None  # why it compensates
    parked: str | None = None  # why it stands still until a person acts
    duplicates: int = 0  # replies that came more than once, and were ignored
    begun_ms: int
    updated_ms: int
    request_id: str | None = None  # of the saga_begin
    trace: bool = False
    version: int = 0  # counts commits; 0: not stored yet. Only the store sets it

    @property
    def ended(self) -> bool:
        return self.status in (SagaStatus.COMPLETED, SagaStatus.ABORTED)

    @property
    def step(self) -> Step:
        """The current step."""
        return self.steps[self.current_step - 1]

    @property
    def waiting_for(self) -> str:
        """What must happen for the saga to go on, in words."""
        if self.ended:
            return "nothing, it has ended"
        if self.parked is not None:
            return "a person, it is parked"
        name = self.step.definition.transaction
        if self.status is SagaStatus.COMPENSATING:
            name = self.step.compensation or name
        return f"{self.step.definition.service} to answer {name}, step {self.current_step}"


def protocol_view(state: SagaState) -> dict[str, Any]:
    """The SagaState of the wire protocol, as JSON values."""
    done = (StepStatus.COMPLETED, StepStatus.COMPENSATED)
    steps = []
    for step in state.steps:
        view: dict[str, Any] = {
            "transaction": step.definition.transaction,
            "params": orjson.loads(step.definition.params),
            "status": str(step.status),
        }
        if step.result is not None:
            view["result"] = orjson.loads(step.result)
        steps.append(view)
    return {
        "saga_id": state.saga_id,
        "status": str(state.status),
        "current_step": state.current_step,
        "completed_steps": [n for n, s in enumerate(state.steps, 1) if s.status in done and not s.unknown],
        "compensating_steps": list(state.compensating_steps),
        "steps": steps,
    }

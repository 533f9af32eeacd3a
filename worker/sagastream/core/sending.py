"""What a step sends: its transaction, or what undoes it. Each returns the step as it is after that, and the command."""

from collections.abc import Mapping
from typing import Final

from sagastream.core.messages import Command
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import AS_PUBLISHED, StepDefinition, StepKind

#: What services publish: service -> command -> the compensation that undoes it (None: it needs none).
Published = Mapping[str, Mapping[str, str | None]]

#: In place of a compensation: neither the step nor its service says what undoes it. No command can be called so.
NOBODY_KNOWS: Final = ""


def undo_of(definition: StepDefinition, published: Published) -> str | None:
    """The compensation of a step; None: it needs none; or NOBODY_KNOWS."""
    if definition.compensation != AS_PUBLISHED:
        return definition.compensation
    return published.get(definition.service, {}).get(definition.transaction, NOBODY_KNOWS)


def send_transaction(state: SagaState, number: int, step: Step, now_ms: int) -> tuple[Step, Command]:
    """The next attempt of this step's transaction."""
    definition = step.definition
    times_out_ms = now_ms + definition.timeout_ms
    sent = step.moved("sent", due_ms=times_out_ms, attempt=step.attempt + 1, sent_ms=now_ms)
    command = Command(
        service=definition.service,
        type=definition.transaction,
        saga_id=state.saga_id,
        step=number,
        params=definition.params,
        attempt=sent.attempt,
        begun_ms=state.begun_ms,
        # What must be done in the end may be done late.
        not_after_ms=None if definition.kind is StepKind.RETRIABLE else times_out_ms,
        retried=sent.failure_is_open,
        compensation=definition.compensation,
    )
    return sent, command


def send_compensation(state: SagaState, number: int, step: Step, now_ms: int) -> tuple[Step, Command]:
    """The next attempt to undo this step, by `step.compensation`."""
    definition = step.definition
    sent = step.moved(
        "undo sent",
        due_ms=now_ms + definition.timeout_ms,
        compensation_attempt=step.compensation_attempt + 1,
        compensation_sent_ms=now_ms,
    )
    command = Command(
        service=definition.service,
        type=sent.command,
        saga_id=state.saga_id,
        step=number,
        params=definition.params,
        result=step.result,
        compensating=True,
        attempt=sent.compensation_attempt,
        begun_ms=state.begun_ms,
        retried=True,
    )
    return sent, command

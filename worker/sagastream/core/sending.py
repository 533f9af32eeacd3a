"""What a step sends: its transaction, or what undoes it. Each returns the step as it is after that, and the command.

A step whose service or command is paused is held instead: it sends nothing.

And which commands that were sent nobody waits for any more.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from sagastream.core.commands import Command
from sagastream.core.saga import SagaState
from sagastream.core.step_state import HELD_MS, Step
from sagastream.core.steps import AS_PUBLISHED, StepDefinition, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.trace_context import within_saga

#: What services publish: service -> command -> the compensation that undoes it (None: it needs none).
Published = Mapping[str, Mapping[str, str | None]]

#: In place of a compensation: neither the step nor its service says what undoes it. No command can be called so.
NOBODY_KNOWS: Final = ""


class GivenUp(Struct, frozen=True, kw_only=True, gc=False):
    """A command that was sent, and that nobody waits for any more, though it was not answered."""

    service: str
    type: str
    saga_id: str
    step: int
    sent_ms: int  # by the clock as it was then, or earlier

    @property
    def beginning(self) -> bytes:
        """What the body of the command begins with."""
        return encode({"type": self.type, "saga_id": self.saga_id, "step": self.step})[:-1] + b","


def given_up(before: SagaState, after: SagaState) -> list[GivenUp]:
    """The commands that were out before, and that `after` does not wait for."""
    found = []
    for number, (was, now) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if was is now or not was.in_flight or (was.phase is now.phase and was.current_attempt == now.current_attempt):
            continue
        sent_ms = was.compensation_sent_ms if was.being_undone else was.sent_ms
        if sent_ms is not None:
            service, sent_ms = was.definition.service, max(sent_ms - before.set_forward_ms, 0)
            found.append(
                GivenUp(service=service, type=was.command, saga_id=before.saga_id, step=number, sent_ms=sent_ms)
            )
    return found


def undo_of(definition: StepDefinition, published: Published) -> str | None:
    """The compensation of a step; None: it needs none; or NOBODY_KNOWS."""
    if definition.compensation != AS_PUBLISHED:
        return definition.compensation
    return published.get(definition.service, {}).get(definition.transaction, NOBODY_KNOWS)


def hold(step: Step) -> Step:
    """The step, held. Its next command is the one that is paused."""
    return step.moved("undo put off" if step.may_have_effect else "put off", due_ms=HELD_MS)


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
        params=step.params,
        attempt=sent.attempt,
        begun_ms=state.begun_ms,
        # What must be done in the end may be done late.
        not_after_ms=None if definition.kind is StepKind.RETRIABLE else times_out_ms,
        retried=sent.failure_is_open,
        compensation=definition.compensation,
        input=state.input,
        definition=None if state.definition is None else state.definition.name,
        traceparent=None if state.traceparent is None else _traceparent(state, state.traceparent),
        tracestate=state.tracestate,
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
        params=step.params,
        result=step.result,
        compensating=True,
        attempt=sent.compensation_attempt,
        begun_ms=state.begun_ms,
        retried=True,
        undo=step.built_undo,
        input=state.input,
        definition=None if state.definition is None else state.definition.name,
        traceparent=None if state.traceparent is None else _traceparent(state, state.traceparent),
        tracestate=state.tracestate,
    )
    return sent, command


def _traceparent(state: SagaState, begun_within: str) -> str:
    return within_saga(begun_within, state.saga_id, state.begun_ms)

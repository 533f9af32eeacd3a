"""The decision core: what a message does to a saga. Pure: no Redis, no clock, no randomness.

`decide(state, event, now_ms, published)` returns a Decision, a value that says everything that is to be written and
sent; store.py commits it in one piece. Everything that can change a saga's status stands in TRANSITIONS.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from sagastream.errors import CorruptSaga
from sagastream.messages import (
    AS_PUBLISHED,
    Begin,
    Code,
    Command,
    Notice,
    Reply,
    Unreadable,
    error_body,
    failed,
    ok,
    outcome_body,
)
from sagastream.saga import SagaState, SagaStatus, Step, StepStatus

#: What services publish: service -> command -> the compensation that undoes it (None: it needs none).
Published = Mapping[str, Mapping[str, str | None]]

#: (status before, what happened) -> status after. All that can happen to a saga; ARCHITECTURE.md draws it.
TRANSITIONS: Final[Mapping[tuple[SagaStatus | None, str], SagaStatus]] = {
    (None, "begun"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "step completed"): SagaStatus.PENDING,
    (SagaStatus.PENDING, "last step completed"): SagaStatus.COMPLETED,
    (SagaStatus.PENDING, "step failed"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "compensation sent"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "step compensated"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "parked"): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, "nothing left to undo"): SagaStatus.ABORTED,
}

#: The longest text that a saga's reason quotes of an error; the whole error stays with the step.
REASON_CHARS: Final = 500


#: What may come: a request, a reply, or an entry that is neither.
Event = Begin | Reply | Unreadable
#: What a saga may be found to be; None: there is none.
Found = SagaState | CorruptSaga | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an event leads to. `state` is the saga after it: the very same object where nothing changed."""

    state: Found
    commands: tuple[Command, ...] = ()
    notices: tuple[Notice, ...] = ()
    quarantine: str | None = None  # why the event's entry is set aside


def decide(state: Found, event: Event, now_ms: int, published: Published) -> Decision:
    """What `event` does to the saga `state`.

    `published` must know the services of the saga's steps when the event is a reply; what it does not know
    parks the saga rather than skip an undo.
    """
    if isinstance(event, Unreadable):
        return _refuse(state, event, event.code, event.text)
    if isinstance(state, CorruptSaga):
        if isinstance(event, Begin):
            return _refuse(state, event, Code.CRASH, str(state))
        return Decision(state=state, quarantine=str(state))
    if isinstance(event, Begin):
        return _begin_again(state, event) if state else _begin(event, now_ms)
    if state is None:
        return Decision(state=None, quarantine=f"there is no saga {event.saga_id}")
    return _reply(state, event, now_ms, published)


def begun_with(state: SagaState, begin: Begin) -> bool:
    """Whether the saga is the one that `begin` asks for: one with the same id and other steps is not."""
    before = [step.definition.canonical() for step in state.steps]
    return before == [definition.canonical() for definition in begin.steps]


def conflict(saga_id: str) -> str:
    """What the sender of a saga_begin is told that has another saga's id."""
    return f"another saga has the id {saga_id}: it began with other steps"


def _refuse(state: Found, event: Begin | Unreadable, code: Code, text: str) -> Decision:
    """A request is turned down: its sender is told or, where nobody is named, it is quarantined."""
    if event.request_id is None:
        return Decision(state=state, quarantine=text)
    body = error_body(code, text)
    notice = Notice(kind="refused", saga_id=event.saga_id, request_id=event.request_id, body=body)
    return Decision(state=state, notices=(notice,))


def _begin(event: Begin, now_ms: int) -> Decision:
    steps = tuple(Step(definition=definition) for definition in event.steps)
    state = SagaState(
        saga_id=event.saga_id,
        status=TRANSITIONS[None, "begun"],
        current_step=1,
        steps=steps,
        begun_ms=now_ms,
        updated_ms=now_ms,
        request_id=event.request_id,
        trace=event.trace,
    )
    return _send_transaction(state, 1, now_ms)


def _begin_again(state: SagaState, event: Begin) -> Decision:
    if event.request_id is not None and event.request_id == state.request_id:
        return Decision(state=state)  # the very same request, delivered again
    if not begun_with(state, event):
        return _refuse(state, event, Code.PRECONDITION_FAILED, conflict(state.saga_id))
    # Its outcome is still to come, or is told once more to whoever asks again.
    return Decision(state=state, notices=(_outcome(state, event.request_id),) if state.ended else ())


def _reply(state: SagaState, reply: Reply, now_ms: int, published: Published) -> Decision:
    if reply.step > len(state.steps):
        return Decision(state=state, quarantine=f"the saga has no step {reply.step}")
    if _answers_current(state, reply):
        if state.status is SagaStatus.PENDING:
            decision = _transaction_answered(state, reply, now_ms, published)
        else:
            decision = _compensation_answered(state, reply, now_ms, published)
        return replace(decision, notices=_traced_reply(state, reply) + decision.notices)
    if _answered_before(state.steps[reply.step - 1], reply):
        return Decision(state=replace(state, duplicates=state.duplicates + 1))
    return Decision(state=state, quarantine=_why_unfit(state, reply))


def _answers_current(state: SagaState, reply: Reply) -> bool:
    if state.ended or reply.step != state.current_step:
        return False
    name = state.step.definition.transaction if state.status is SagaStatus.PENDING else state.step.compensation
    if name is None:
        return False
    # A parked saga has heard that its compensation failed; that it went well after all is still news.
    return reply.type == ok(name) or (reply.type == failed(name) and not state.parked)


def _answered_before(step: Step, reply: Reply) -> bool:
    """Whether the reply says what an earlier one has said."""
    if reply.type == ok(step.definition.transaction):
        return step.status in (StepStatus.COMPLETED, StepStatus.COMPENSATED) and not step.unknown
    if reply.type == failed(step.definition.transaction):
        return step.status is StepStatus.FAILED or step.unknown
    if step.compensation is None or step.compensation_answered_ms is None:
        return False
    done = step.status is StepStatus.COMPENSATED
    return reply.type == (ok(step.compensation) if done else failed(step.compensation))


def _why_unfit(state: SagaState, reply: Reply) -> str:
    step = state.steps[reply.step - 1]
    transaction = step.definition.transaction
    names = [transaction] + ([step.compensation] if step.compensation else [])
    if reply.type not in [kind(name) for name in names for kind in (ok, failed)]:
        return f"step {reply.step} is {transaction}; {reply.type} does not answer it"
    if step.sent_ms is None:
        return f"step {reply.step} was not sent yet"
    return f"too late: step {reply.step} is {step.status}, the saga {state.status}"


def _transaction_answered(state: SagaState, reply: Reply, now_ms: int, published: Published) -> Decision:
    if reply.type == ok(state.step.definition.transaction):
        step = replace(state.step, status=StepStatus.COMPLETED, answered_ms=now_ms, result=reply.result)
        if state.current_step < len(state.steps):
            state = _moved(state, "step completed", now_ms, step)
            return _send_transaction(state, state.current_step + 1, now_ms)
        return _end(_moved(state, "last step completed", now_ms, step))
    step = replace(
        state.step,
        status=StepStatus.FAILED,
        answered_ms=now_ms,
        error=reply.error,
        unknown=reply.unknown,
    )
    reason = f"Step {state.current_step} failed: {_quote(step.error)}"
    return _undo_next(_moved(state, "step failed", now_ms, step, reason=reason), now_ms, published)


def _compensation_answered(state: SagaState, reply: Reply, now_ms: int, published: Published) -> Decision:
    step = replace(state.step, compensation_answered_ms=now_ms)
    if reply.type == failed(step.compensation or ""):
        why = f"{step.compensation} of step {state.current_step} failed: {_quote(reply.error)}"
        return Decision(state=_moved(state, "parked", now_ms, step, parked=why))
    step = replace(step, status=StepStatus.COMPENSATED)
    return _undo_next(_moved(state, "step compensated", now_ms, step, parked=None), now_ms, published)


def _undo_next(state: SagaState, now_ms: int, published: Published) -> Decision:
    """Compensate the last step that may have had an effect, or end the saga."""
    for number in range(state.current_step, 0, -1):
        step = state.steps[number - 1]
        if not step.may_have_effect:
            continue
        definition = step.definition
        name = definition.compensation
        if name == AS_PUBLISHED:
            commands = published.get(definition.service, {})
            if definition.transaction not in commands:
                why = (
                    f"nobody knows what undoes {definition.transaction} of step {number}: "
                    f"service {definition.service} published no such command, and the step names no compensation"
                )
                return Decision(state=_moved(state, "parked", now_ms, step, current_step=number, parked=why))
            name = commands[definition.transaction]
        if name is not None:
            return _send_compensation(state, number, name, now_ms)
    return _end(_moved(state, "nothing left to undo", now_ms, state.step))


def _send_transaction(state: SagaState, number: int, now_ms: int) -> Decision:
    step = replace(state.steps[number - 1], sent_ms=now_ms)
    command = Command(
        service=step.definition.service,
        type=step.definition.transaction,
        saga_id=state.saga_id,
        step=number,
        params=step.definition.params,
        begun_ms=state.begun_ms,
    )
    state = replace(state, current_step=number, steps=_with_step(state, number, step))
    return _sent(state, command)


def _send_compensation(state: SagaState, number: int, name: str, now_ms: int) -> Decision:
    step = replace(state.steps[number - 1], compensation=name, compensation_sent_ms=now_ms)
    command = Command(
        service=step.definition.service,
        type=name,
        saga_id=state.saga_id,
        step=number,
        params=step.definition.params,
        result=step.result,
        compensating=True,
        begun_ms=state.begun_ms,
    )
    state = _moved(
        state,
        "compensation sent",
        now_ms,
        step,
        current_step=number,
        compensating_steps=(*state.compensating_steps, number),
    )
    return _sent(state, command)


def _sent(state: SagaState, command: Command) -> Decision:
    traced = Notice(kind="command", saga_id=state.saga_id, service=command.service, body=command.body())
    return Decision(state=state, commands=(command,), notices=(traced,) if state.trace else ())


def _end(state: SagaState) -> Decision:
    return Decision(state=state, notices=(_outcome(state, state.request_id),))


def _moved(state: SagaState, happening: str, now_ms: int, step: Step, **changes: Any) -> SagaState:
    """The saga after `happening`, with `step` in the place of its current one (as `changes` leave it)."""
    number = changes.get("current_step", state.current_step)
    return replace(
        state,
        status=TRANSITIONS[state.status, happening],
        updated_ms=now_ms,
        steps=_with_step(state, number, step),
        **changes,
    )


def _with_step(state: SagaState, number: int, step: Step) -> tuple[Step, ...]:
    return (*state.steps[: number - 1], step, *state.steps[number:])


def _outcome(state: SagaState, request_id: str | None) -> Notice:
    body = outcome_body(state.saga_id, state.status, state.reason)
    return Notice(kind="outcome", saga_id=state.saga_id, request_id=request_id, body=body)


def _traced_reply(state: SagaState, reply: Reply) -> tuple[Notice, ...]:
    if not state.trace:
        return ()
    service = state.steps[reply.step - 1].definition.service
    return (Notice(kind="reply", saga_id=state.saga_id, service=service, body=reply.body()),)


def _quote(error: bytes | None) -> str:
    """An error for people: a string as it is, any other JSON value as its text."""
    if error is None:
        return "no reason given"
    value = orjson.loads(error)
    text = value if isinstance(value, str) else error.decode()
    return text if len(text) <= REASON_CHARS else text[:REASON_CHARS] + "…"

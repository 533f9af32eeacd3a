"""What happened in a test, told for people: shown with a failed assertion."""

import traceback

from msgspec import Struct

from sagastream.console import printable
from sagastream.core.commands import Command, Reply
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step
from sagastream.core.transitions import Decision

#: The longest payload that a story quotes, in characters.
_QUOTED_CHARS = 200


class Line(Struct, frozen=True, kw_only=True):
    at_ms: int  # since the test began
    saga_id: str
    text: str
    detail: str = ""  # more lines: a traceback


class Story:
    """All that has happened, in order."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._tracebacks: set[tuple[str, str]] = set()

    def add(self, at_ms: int, saga_id: str, text: str, error: BaseException | None = None) -> None:
        """`error`: what a handler has raised; its traceback is shown too."""
        detail = "" if error is None else _traceback(error)
        if detail and (saga_id, detail) in self._tracebacks:
            detail = "as before"
        self._tracebacks.add((saga_id, detail))
        self.lines.append(Line(at_ms=at_ms, saga_id=saga_id, text=text, detail=detail))

    def tell(self, state: SagaState) -> str:
        """What has happened to a saga, one line for each event."""
        told = [headline(state)]
        for line in self.lines:
            if line.saga_id == state.saga_id:
                told.append(f"{line.at_ms / 1000:10.3f} s  {printable(line.text)}")
                told += [f"              {printable(more)}" for more in line.detail.splitlines()]
        return "\n".join(told)


def _traceback(error: BaseException) -> str:
    """The traceback of an error, from the handler on."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_globals.get("__name__", "").startswith("sagastream."):
        at = at.tb_next
    return "".join(traceback.format_exception(type(error), error, at or error.__traceback__)).rstrip()


def headline(state: SagaState) -> str:
    """A saga in one line."""
    why = state.parked or state.reason
    parked = ", parked" if state.parked else ""
    return printable(f"{state.saga_id} is {state.status}{parked}" + (f": {why}" if why else ""))


def sent(command: Command) -> str:
    again = f", attempt {command.attempt}" if command.attempt > 1 else ""
    undoing = " to undo it" if command.compensating else ""
    return f"step {command.step}: {command.type} is sent to {command.service}{undoing}{again}"


def answered(reply: Reply) -> str:
    """A reply in words."""
    payload = reply.result if reply.result is not None else reply.error
    quoted = "" if payload is None else f": {quote(payload)}"
    return f"step {reply.step}: {reply.type}{', it may have been done' if reply.unknown else ''}{quoted}"


def quote(payload: bytes) -> str:
    """A JSON value as a story shows it."""
    text = payload.decode()
    return text if len(text) <= _QUOTED_CHARS else text[:_QUOTED_CHARS] + "…"


def changes(before: SagaState | None, decision: Decision) -> list[str]:
    """What a decision has changed in a saga, in words. Its commands are told apart from this."""
    after = decision.state
    told = [] if decision.quarantine is None else [f"quarantined: {decision.quarantine}"]
    if not isinstance(after, SagaState) or before is None or after is before:
        return told
    if after.duplicates > before.duplicates:
        told.append("that was known already, and is ignored")
    for number, (old, new) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if new.late_ms is not None and old.late_ms is None:
            told.append(f"step {number} was given up already: that it was done is noted down")
        if new.compensation_answered_ms != old.compensation_answered_ms and new.phase is old.phase:
            told.append(f"step {number} was left as it is: that it was undone is noted down")
    told += _of_steps(before, after)
    if after.cancelling is not None and before.cancelling is None:
        out = [step.command for step in after.steps if step.in_flight]
        told.append(
            f"it goes back as soon as {', '.join(out)} {'are' if len(out) > 1 else 'is'} answered: {after.cancelling}"
        )
    told += [
        f"parked: {new.parked}"
        for old, new in zip(before.steps, after.steps, strict=True)
        if new.parked is not None and old.parked is None
    ]
    if after.status is not before.status:
        told.append(f"{after.status}" + (f": {after.reason}" if after.reason else ""))
    return told


def _of_steps(before: SagaState, after: SagaState) -> list[str]:
    """What became of its steps that neither a command nor a reply says."""
    told = []
    for number, (old, new) in enumerate(zip(before.steps, after.steps, strict=True), 1):
        if new.send_again_ms is not None and new.send_again_ms != old.send_again_ms:
            wait_s = (new.send_again_ms - after.updated_ms) / 1000
            which = f"attempt {new.current_attempt + 1} of {new.attempts}"
            told.append(f"{new.command} is sent again in {wait_s:g} s ({which})")
        if new.is_held and not old.is_held:
            told.append(f"step {number}: {new.command} is held, since {new.definition.service} is paused")
        elif new.phase is not old.phase and (text := _waits(new)) is not None:
            told.append(f"step {number} {text}")
        elif new.phase is Phase.COMPLETED and old.phase is not Phase.COMPLETED and not new.definition.shape.sends:
            told.append(f"step {number} is done" + (f": {quote(new.result)}" if new.result is not None else ""))
    return told


def _waits(step: Step) -> str | None:
    """What a step does that has begun to wait, or is bypassed."""
    shape = step.definition.shape
    if step.phase is Phase.BYPASSED:
        return "is bypassed: its condition does not hold"
    if step.phase is Phase.RETRY_AWAITED:
        return f"waits for the signal {shape.retry_on}, to send {step.command} again"
    if step.phase is Phase.AWAITING:
        assert shape.wait_ms is not None
        return f"pauses for {shape.wait_ms / 1000:g} s" if shape.wait is None else f"waits for the signal {shape.wait}"
    return None

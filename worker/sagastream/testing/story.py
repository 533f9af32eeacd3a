"""What happened in a test, told for people: shown with a failed assertion."""

import traceback

from msgspec import Struct

from sagastream.console import printable
from sagastream.core.messages import Command, Reply
from sagastream.core.saga import SagaState
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
    if after.send_again_ms is not None and after.send_again_ms != before.send_again_ms:
        wait_s = (after.send_again_ms - after.updated_ms) / 1000
        step = after.step
        which = f"attempt {step.current_attempt + 1} of {step.attempts}"
        told.append(f"{step.command} is sent again in {wait_s:g} s ({which})")
    if after.cancelling is not None and before.cancelling is None:
        told.append(f"it goes back as soon as {after.step.command} is answered: {after.cancelling}")
    if after.parked is not None and before.parked is None:
        told.append(f"parked: {after.parked}")
    if after.status is not before.status:
        told.append(f"{after.status}" + (f": {after.reason}" if after.reason else ""))
    return told

"""How sagas and messages look to a person. Everything that strangers wrote goes through `printable`."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click
import orjson

from sagastream.console import printable
from sagastream.saga import SagaState, Step, StepStatus
from sagastream.saga_hash import iso

_COLOURS: Final = {
    "COMPLETED": "green",
    "PENDING": "cyan",
    "COMPENSATING": "yellow",
    "COMPENSATED": "yellow",
    "ABORTED": "red",
    "FAILED": "red",
}


def status(text: str, width: int = 0) -> str:
    """A status in its colour."""
    return click.style(text.ljust(width), fg=_COLOURS.get(text))


def message(body: dict[str, Any], service: str, kind: str) -> str:
    """A command or a reply on one line: who, what, and the payload."""
    arrow, fg = "->", "blue"
    if kind == "reply":
        arrow, fg = "<-", "red" if str(body["type"]).endswith("_failed") else "green"
    elif body.get("compensating"):
        fg = "yellow"
    payload = next((f"{name} {_json(body[name])}" for name in ("params", "result", "error") if name in body), "")
    if body.get("compensating"):
        payload = "compensating"
    name = click.style(printable(str(body["type"])).ljust(24), fg=fg)
    return f"{arrow} {printable(service):<10} step {body['step']}  {name} {payload}".rstrip()


def saga(state: SagaState, now_ms: int, notes: list[str]) -> Iterator[str]:
    """All that is known of a saga. `notes`: what else explains why it is where it is."""
    parked = click.style("  PARKED", fg="red", bold=True) if state.parked else ""
    yield f"{click.style(printable(state.saga_id), bold=True)}  {status(state.status)}{parked}"
    yield f"  began    {_when(state.begun_ms, now_ms)}"
    yield f"  {'ended ' if state.ended else 'moved '}   {_when(state.updated_ms, now_ms)}"
    if state.reason:
        yield f"  reason   {printable(state.reason)}"
    if not state.ended:
        yield f"  waits    for {printable(state.waiting_for)}"
    if state.parked:
        yield f"  parked   {printable(state.parked)}"
    for note in notes:
        yield f"  note     {printable(note)}"
    if state.duplicates:
        yield f"  ignored  {state.duplicates} replies that came more than once"
    for number, step in enumerate(state.steps, 1):
        yield from _step(number, step)


def row(state: SagaState, now_ms: int) -> str:
    """A saga on one line of a list."""
    why = state.parked and f"parked: {state.parked}"
    why = why or (state.reason if state.ended else f"waits for {printable(state.waiting_for)}") or ""
    name = "PARKED" if state.parked else str(state.status)
    shown = click.style(name.ljust(12), fg="red", bold=True) if state.parked else status(name, 12)
    return f"{shown}  {_age(now_ms - state.updated_ms):>6}  {printable(state.saga_id)}  {printable(why)}".rstrip()


def _step(number: int, step: Step) -> Iterator[str]:
    definition = step.definition
    yield (
        f"  {number:>3}  {printable(definition.transaction):<24} {printable(definition.service):<14} "
        + status(step.status, 12)
        + _times(step.sent_ms, step.answered_ms)
    ).rstrip()
    yield f"       params {_json(orjson.loads(definition.params))}"
    if step.result is not None:
        yield f"       result {_json(orjson.loads(step.result))}"
    if step.error is not None:
        unknown = ", and whether it had an effect is unknown" if step.unknown else ""
        yield f"       error  {_json(orjson.loads(step.error))}{unknown}"
    if step.compensation is not None:
        times = _times(step.compensation_sent_ms, step.compensation_answered_ms)
        done = step.status is StepStatus.COMPENSATED
        how = "undone by" if done else "undo failed:" if step.compensation_answered_ms is not None else "undo by"
        yield f"       {how} {printable(step.compensation)}  {times}"


def _times(sent_ms: int | None, answered_ms: int | None) -> str:
    if sent_ms is None:
        return ""
    sent = f"sent {_clock(sent_ms)}"
    return sent if answered_ms is None else f"{sent}, answered after {answered_ms - sent_ms} ms"


def _when(ms: int, now_ms: int) -> str:
    return f"{iso(ms)}  ({_age(now_ms - ms)} ago)"


def _clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S.") + f"{ms % 1000:03}"


def _age(ms: int) -> str:
    seconds = max(ms, 0) // 1000
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _json(value: Any) -> str:
    text = json.dumps(value)  # plain ASCII: nothing in it can act on a terminal
    return text if len(text) <= 300 else text[:300] + "…"

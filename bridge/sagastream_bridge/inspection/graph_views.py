"""What is shown of a saga that is a graph, besides what is shown of every saga."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson

from sagastream.console import printable
from sagastream.core.durations import spoken
from sagastream.core.erasure import ERASED, erasure
from sagastream.core.graph import before
from sagastream.core.phases import BACKING_OFF, IN_FLIGHT, Phase
from sagastream.core.saga import KeptSignal, SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import FAILS, GOES_ON, PLAIN, StepKind
from sagastream.store.columns import iso
from sagastream_bridge.definitions.drawing import Form, Node, lines
from sagastream_bridge.inspection.formatting import clock, payload, until

_BYPASSED: Final = "bypassed: its condition did not hold"
#: How far the drawing is indented.
_INDENT: Final = "  "
#: What a drawing says of a step in each phase.
STATES: Final[Mapping[Phase, str]] = {
    Phase.WAITING: "not begun",
    Phase.BYPASSED: "bypassed",
    Phase.AWAITING: "waiting",
    Phase.OUT: "out",
    Phase.BACKING_OFF: "to be sent again",
    Phase.RETRY_AWAITED: "waiting for a retry",
    Phase.PARKED: "PARKED",
    Phase.COMPLETED: "done",
    Phase.SKIPPED: "skipped",
    Phase.FAILED: "failed",
    Phase.IN_DOUBT: "unknown",
    Phase.UNDO_OUT: "being undone",
    Phase.UNDO_BACKING_OFF: "undo to be sent again",
    Phase.UNDO_PARKED: "undo PARKED",
    Phase.COMPENSATED: "undone",
    Phase.UNDO_SKIPPED: "undo skipped",
}


def drawn(state: SagaState, width: int | None, paint: Callable[[str], str]) -> Iterator[str]:
    """The graph, with the state of each step; nothing if it is a list, as the steps themselves are shown. `paint`:
    colours a state."""
    if all(step.definition.shape.after is None for step in state.steps):
        return
    for line in lines(nodes(state), None if width is None else width - len(_INDENT), paint):
        yield _INDENT + line


def nodes(state: SagaState) -> list[Node]:
    """The steps of a saga as they are drawn, each with its state."""
    found = []
    width_of_ids = max(len(step.definition.shape.id or "") for step in state.steps)
    for number, step in enumerate(state.steps, 1):
        definition, shape = step.definition, step.definition.shape
        what = definition.transaction
        if not shape.sends:
            what = "pause" if shape.wait is None else f"wait for {what}"
        name = f"{shape.id or '':{width_of_ids}}  " if width_of_ids else ""
        form = Form.PIVOT if definition.kind is StepKind.PIVOT else Form.STEP if shape.sends else Form.WAIT
        found.append(Node(number, printable(name + what), before(definition, number), stands(step), form))
    return found


def stands(step: Step) -> str:
    """What a drawing says of a step."""
    if step.is_held:
        return "undo held" if step.being_undone else "held"
    return STATES[step.phase]


def facts(state: SagaState, now_ms: int) -> Iterator[str]:
    """Of what the saga was made, and when it starts."""
    if state.definition is not None:
        yield f"  from     definition {printable(state.definition.name)}, version {state.definition.version}"
    if state.start_ms is not None:
        never = state.ended and all(step.phase is Phase.WAITING for step in state.steps)
        label = "starts" if state.is_to_start else "was to" if never else "started"
        # A start that had passed when the saga was asked for was at once.
        start_ms = state.start_ms if never else max(state.start_ms, state.begun_ms)
        yield f"  {label:<8} {'start at ' if never else ''}{until(start_ms, now_ms)}"
    if state.input is not None:
        yield f"  input    {_given(state, state.input)}"


def kept(state: SagaState, now_ms: int) -> Iterator[str]:
    """The signals that came before their steps."""
    for signal in state.signals:
        said = f"declined: {printable(signal.declined)}" if signal.declined is not None else payload(signal.payload)
        yield f"  kept     signal {printable(signal.name)}, which came {until(signal.at_ms, now_ms)}: {said}"


def service(step: Step) -> str:
    """What stands in the place of the service."""
    shape = step.definition.shape
    return step.definition.service if shape.sends else "(pause)" if shape.wait is None else "(signal)"


def times(step: Step, now_ms: int) -> str:
    """When a wait or a pause began, and how long it took; of a step that sends a command nothing."""
    if step.definition.shape.sends or step.sent_ms is None:
        return ""
    began = f"began {clock(step.sent_ms, now_ms)}"
    if step.answered_ms is None:
        return began
    took = _took(step.answered_ms - step.sent_ms)
    # If a signal had come, there would be a result: its payload, if only null.
    went_on = step.completed and step.definition.shape.wait is not None and step.result is None
    return f"{began}, no signal came within {took}" if went_on else f"{began}, ended after {took}"


def _took(ms: int) -> str:
    return spoken(ms) if ms >= 10_000 else f"{ms} ms"


def place(state: SagaState, number: int, now_ms: int) -> Iterator[str]:
    """Where a step stands in the graph, and what it waits for."""
    if state.format == PLAIN:
        return
    step = state.steps[number - 1]
    shape, after = step.definition.shape, before(step.definition, number)
    if shape.id is not None:
        yield f"       id     {printable(shape.id)}"
    if shape.after is not None:
        names = ", ".join(printable(state.name_of(one)) for one in after)
        yield f"       after  {names or 'none: it begins with the saga'}"
    if shape.when is not None:
        yield f"       when   {_given(state, shape.when)}"
    if (now := _now(state, number, now_ms)) is not None:
        yield f"       now    {now}"


def _now(state: SagaState, number: int, now_ms: int) -> str | None:
    """What a step waits for, in words; None: its status says it."""
    step = state.steps[number - 1]
    shape = step.definition.shape
    if step.phase is Phase.BYPASSED:
        return _BYPASSED
    if step.parked is not None:
        return f"parked at {state.parked_place(number)}: {printable(step.parked)}"
    if step.is_held:
        return f"{printable(step.command)} is held: {printable(step.definition.service)} is paused, or that command"
    if step.due_ms is None:
        return None
    ends = until(step.due_ms, now_ms)
    if step.phase in IN_FLIGHT:
        return f"{printable(step.command)} is out, until {ends}"
    if step.phase in BACKING_OFF:
        return f"{printable(step.command)} is sent again at {ends}"
    if step.phase is Phase.RETRY_AWAITED:
        return f"waits for signal {printable(str(shape.retry_on))} to be sent again, until {ends}"
    return f"pauses until {ends}" if shape.wait is None else f"waits for signal {printable(shape.wait)} until {ends}"


def params(state: SagaState, step: Step) -> Iterator[str]:
    """What its command gets."""
    shape = step.definition.shape
    if not shape.sends:
        return
    is_unbuilt = shape.has_references and step.built is None and erasure(state) is None
    yield f"       params {_given(state, step.params)}{'; not filled in yet' if is_unbuilt else ''}"


def _given(state: SagaState, data: bytes) -> str:
    """What somebody has given a saga; if it was erased, that. The hash then has values in its place that nobody has
    given."""
    return payload(data) if erasure(state) is None else ERASED


def undo(step: Step) -> Iterator[str]:
    """What its compensation is told besides."""
    if step.built_undo is not None:
        yield f"       told   {payload(step.built_undo)}"


# --- as JSON


def as_json(state: SagaState) -> dict[str, Any]:
    """What `show --json` says of a graph besides."""
    if state.format == PLAIN:
        return {}
    return {
        "format": state.format,
        "definition": None if state.definition is None else state.definition.body(),
        "input": _value(state.input),
        "start_at": _iso(state.start_ms),
        "failed_step": state.failed_step,
        "signals": [_signal(one) for one in state.signals],
    }


def step_as_json(state: SagaState, number: int) -> dict[str, Any]:
    """What it says of a step of one besides."""
    if state.format == PLAIN:
        return {}
    step = state.steps[number - 1]
    shape = step.definition.shape
    members: dict[str, Any] = {
        "id": shape.id,
        "after": list(before(step.definition, number)),
        "when": _value(shape.when),
        "phase": str(step.phase),
        "parked": step.parked,
        "parked_at": state.parked_place(number),
        "times_out_at": _iso(step.times_out_ms),
        "send_again_at": _iso(step.send_again_ms),
    }
    if not shape.sends:
        if shape.wait is None:
            return members | {"wait_ms": shape.wait_ms}
        on_timeout = GOES_ON if shape.goes_on else FAILS
        return members | {"wait": shape.wait, "timeout_ms": shape.wait_ms, "on_timeout": on_timeout}
    return members | {
        "template": _value(step.definition.params) if shape.has_references else None,
        "compensation_params": _value(shape.compensation_params),
        "undo": _value(step.built_undo),
        "retry_on": shape.retry_on,
        "retry_within_ms": shape.retry_within_ms,
    }


def _signal(signal: KeptSignal) -> dict[str, Any]:
    said = {"payload": _value(signal.payload)} if signal.declined is None else {"decline": signal.declined}
    return {"name": signal.name, "at": iso(signal.at_ms)} | said


def _value(data: bytes | None) -> Any:
    return None if data is None else orjson.loads(data)


def _iso(ms: int | None) -> str | None:
    return None if ms is None else iso(ms)

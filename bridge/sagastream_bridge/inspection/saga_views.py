"""How a saga looks to a person. All text that strangers wrote goes through `printable`."""

from collections.abc import Iterator, Sequence
from typing import Final

import orjson

from sagastream.console import printable
from sagastream.core import not_undone
from sagastream.core.causes import Cause, CauseKind
from sagastream.core.history import history
from sagastream.core.saga import SagaState
from sagastream.core.step_state import HELD_MS, Step, StepStatus
from sagastream.core.steps import PLAIN, StepKind
from sagastream.store.columns import iso
from sagastream_bridge.inspection import graph_views, history_views, screen
from sagastream_bridge.inspection.colours import state_of_step, status, styled
from sagastream_bridge.inspection.formatting import as_json, attributes, clock, payload, until, when

#: How far the lines of a text after its first one are indented on a terminal: as far as the facts about a saga.
_INDENT: Final = 11


def saga(
    state: SagaState, now_ms: int, notes: list[str], causes: Sequence[Cause] = (), width: int | None = None
) -> Iterator[str]:
    """All that is known about a saga. What a person wants to know first comes last, since that is what a terminal still
    shows: why it waits, and what helps. `causes`: why it waits. `notes`: what else there is to say. `width`: of the
    terminal, see screen.py."""
    said = ""  # the label of the advice above
    for line in _facts(state, now_ms, notes, causes, width):
        if isinstance(line, str):
            yield from screen.wrapped(line, width, _INDENT)
            said = ""
            continue
        label, thing = line
        is_above = label == said and width is not None  # then it need not be said again
        yield from screen.advice(" " * len(label) if is_above else label, thing, width)
        said = label


def _facts(
    state: SagaState, now_ms: int, notes: list[str], causes: Sequence[Cause], width: int | None
) -> Iterator[str | tuple[str, str]]:
    """The lines; what helps as a label and a line."""
    yield _headline(state)
    yield f"  began    {when(state.begun_ms, now_ms)}"
    yield f"  {'ended ' if state.ended else 'moved '}   {when(state.updated_ms, now_ms)}"
    if state.reason:
        yield f"  reason   {printable(state.reason)}"
    if stays := not_undone.told(state):
        yield f"  stays    {printable(stays)}"
    if state.attributes is not None:
        yield f"  found by {attributes(state)}"
    if state.trace_id is not None:
        yield f"  trace    {state.trace_id}"
    yield from graph_views.facts(state, now_ms)
    yield from graph_views.drawn(state, width, state_of_step)
    for number in range(1, len(state.steps) + 1):
        yield from _step(state, number, now_ms)
    yield from _more(state, now_ms, notes)
    if not state.ended:
        then = _then_held(state, causes)
        yield f"  waits    for {printable(state.waiting_for)}{_until(state, now_ms)}{then}"
    if state.parked and state.format == PLAIN:
        yield f"  parked   {printable(state.parked)}"
    yield from _why(state, causes)


def _then_held(state: SagaState, causes: Sequence[Cause]) -> str:
    """What a saga waits for after the time at which its next attempt was to be sent."""
    paused = [name for cause in causes if cause.kind is CauseKind.PAUSED for name in cause.facts.get("paused", ())]
    if not paused or any(step.is_held for step in state.steps):
        return ""
    return f", and then for {printable(', '.join(paused))} to be resumed"


def history_of(state: SagaState, width: int | None = None) -> Iterator[str]:
    """What happened to a saga: where it is, then a line for each event."""
    yield _headline(state)
    yield from history_views.table(state, history(state), width)


def absent(causes: Sequence[Cause], notes: Sequence[str]) -> str:
    """Why a saga that was asked for may not be there yet, or not any more; put after the sentence that it is not."""
    words = [cause.text for cause in causes] + [line for cause in causes for line in cause.do]
    return "; ".join([" yet" if words else "", *words, *notes])


def _headline(state: SagaState) -> str:
    parked = styled("  PARKED", fg="red", bold=True) if state.parked else ""
    return f"{styled(printable(state.saga_id), bold=True)}  {status(state.status)}{parked}"


def _why(state: SagaState, causes: Sequence[Cause]) -> Iterator[str | tuple[str, str]]:
    said: set[str] = set()
    for cause in causes:
        if cause.kind is not CauseKind.PARKED:
            yield f"  {styled('why', bold=True)}      {printable(cause.text)}"
        elif state.format != PLAIN:  # there may be several; of a plain saga it is said already
            yield f"  parked   {printable(cause.text)}"
        for line in cause.do:
            if state.format == PLAIN or line not in said:  # several steps may wait for the same
                yield "  you can  ", printable(line)
        said.update(cause.do)


def _more(state: SagaState, now_ms: int, notes: Sequence[str]) -> Iterator[str]:
    if state.cancelling:
        yield f"  then     goes back: {printable(state.cancelling)}"
    if state.deadline_ms is not None:
        yield f"  deadline {until(state.deadline_ms, now_ms)}" + (", hard" if state.hard_deadline else "")
    yield from _interventions(state)
    yield from graph_views.kept(state, now_ms)
    for note in notes:
        yield f"  note     {printable(note)}"
    if state.duplicates:
        replies = "1 reply" if state.duplicates == 1 else f"{state.duplicates} replies"
        undone = any(step.status is StepStatus.COMPENSATED for step in state.steps)
        late = "; what a service does after it has undone a step, it undoes by itself" if undone else ""
        yield f"  ignored  {replies} that came too late, or more than once{late}"


def _interventions(state: SagaState) -> Iterator[str]:
    width = max((len(printable(done.verb)) for done in state.interventions), default=0)
    for done in state.interventions:
        step = "" if done.step is None else f"step {printable(state.told(done.step))} "
        by = "" if done.actor is None else f"by {printable(done.actor)}"
        said = ": ".join(filter(None, [f"{step}{by}".rstrip(), printable(done.reason)]))
        yield f"  {printable(done.verb).ljust(max(8, width))} {iso(done.at_ms)}  {said}".rstrip()


def _step(state: SagaState, number: int, now_ms: int) -> Iterator[str]:
    step = state.steps[number - 1]
    definition = step.definition
    sends = definition.shape.sends
    kind = "" if definition.kind is StepKind.COMPENSATABLE or not sends else f"  {definition.kind}"
    times = _times(step.sent_ms, step.answered_ms, step.attempt, now_ms, unknown=step.unknown) if sends else ""
    more = times or graph_views.times(step, now_ms)
    more += kind + ("  held" if step.is_held and state.format == PLAIN else "")  # of a graph, the line below says it
    more += "  skipped" if step.skipped and step.compensation is None else ""
    yield (
        f"  {number:>3}  {printable(definition.transaction):<24} {printable(graph_views.service(step)):<14} "
        + (status(step.status, 12) + more if more else status(step.status))
    )
    yield from graph_views.place(state, number, now_ms)
    yield from graph_views.params(state, step)
    if step.result is not None:
        yield f"       result {payload(step.result)}"
    if step.error is not None:
        unknown = ", and whether it had an effect is unknown" if step.unknown else ""
        yield f"       error  {as_json(orjson.loads(step.error))}{unknown}"
    if step.late_ms is not None:
        undone = ", and is undone" if step.status is StepStatus.COMPENSATED else ""
        yield f"       late   it was done after all, as was heard at {clock(step.late_ms, now_ms)}{undone}"
    if step.compensation is not None:
        times = _times(
            step.compensation_sent_ms, step.compensation_answered_ms, step.compensation_attempt, now_ms, unknown=False
        )
        yield f"       {_how_undone(step)} {printable(step.compensation)}  {times}"
        yield from graph_views.undo(step)
        if step.compensation_answered_ms is not None and step.status is not StepStatus.COMPENSATED:
            heard = clock(step.compensation_answered_ms, now_ms)
            yield f"       late   it was undone after all, as was heard at {heard}"
    if step.compensation_error is not None:
        yield f"       error of the undo  {as_json(orjson.loads(step.compensation_error))}"


def _how_undone(step: Step) -> str:
    """What became of its undo, before the name of its compensation."""
    if step.status is StepStatus.COMPENSATED:
        return "undone by"
    if step.being_undone:
        return "undo by"
    return "undo skipped:" if step.skipped else "undo abandoned:"


def _times(sent_ms: int | None, answered_ms: int | None, attempt: int, now_ms: int, *, unknown: bool) -> str:
    if sent_ms is None:
        return ""
    sent = f"sent {clock(sent_ms, now_ms)}" + (f" (attempt {attempt})" if attempt > 1 else "")
    how = "given up" if unknown else "answered"
    return sent if answered_ms is None else f"{sent}, {how} after {answered_ms - sent_ms} ms"


def _until(state: SagaState, now_ms: int) -> str:
    """Until when a saga waits."""
    if state.due_ms is None or len(state.active_steps) > 1:  # each step of several says its own
        return ""
    if state.due_ms >= HELD_MS:  # until somebody resumes its service
        return ""
    ends = until(state.due_ms, now_ms)
    return f", at {ends}" if state.send_again_ms is not None else f", until {ends}"

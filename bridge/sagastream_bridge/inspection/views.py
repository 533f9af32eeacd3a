"""How sagas and messages look to a person. All text that strangers wrote goes through `printable`."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

from sagastream.client.erasing import Erased
from sagastream.console import printable
from sagastream.core.causes import Cause, CauseKind
from sagastream.core.durations import spoken
from sagastream.core.filtering import Filter
from sagastream.core.history import history
from sagastream.core.saga import SagaState
from sagastream.core.step_state import HELD_MS, StepStatus
from sagastream.core.steps import PLAIN, StepKind
from sagastream.core.why import headline
from sagastream.store.columns import iso
from sagastream.store.finding import Page
from sagastream.store.quarantine import Quarantined
from sagastream_bridge.inspection import graph_views, history_views, screen
from sagastream_bridge.inspection.findings import Finding
from sagastream_bridge.inspection.formatting import as_json, clock, payload, shown, until, when
from sagastream_bridge.inspection.lookup import Listing

#: The codes of colours, as terminals take them (ECMA-48, "select graphic rendition").
_SGR: Final = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}
_COLOURS: Final = {
    "COMPLETED": "green",
    "PENDING": "cyan",
    "COMPENSATING": "yellow",
    "COMPENSATED": "yellow",
    "ABORTED": "red",
    "FAILED": "red",
}

#: The colours of the states of steps in a drawing.
_STATES: Final = {
    "done": "green",
    "out": "cyan",
    "waiting": "cyan",
    "failed": "red",
    "unknown": "red",
    "undone": "yellow",
    "being undone": "yellow",
}

#: How far the lines of a text after its first one are indented on a terminal: as far as the facts about a saga.
_INDENT: Final = 11
_LEVELS: Final = {"ok": "green", "warning": "yellow", "problem": "red", "repaired": "cyan"}


def styled(text: str, fg: str | None = None, *, bold: bool = False) -> str:
    """The text with terminal escapes for a colour of `_SGR`, or bold. click.echo removes them if the output is not a
    terminal."""
    begin = (f"\x1b[{_SGR[fg]}m" if fg else "") + ("\x1b[1m" if bold else "")
    return f"{begin}{text}\x1b[0m" if begin else text


def status(text: str, width: int = 0) -> str:
    """A status in its colour."""
    return styled(text.ljust(width), fg=_COLOURS.get(text))


def _state(text: str) -> str:
    """The state of a step in a drawing, in its colour."""
    return styled(text, fg="red" if "PARKED" in text else _STATES.get(text))


def message(body: dict[str, Any], service: str, kind: str) -> str:
    """A command or a reply on one line: who, what, and the payload."""
    arrow, fg = "->", "blue"
    if kind == "reply":
        arrow, fg = "<-", "red" if str(body["type"]).endswith("_failed") else "green"
    elif body.get("compensating"):
        fg = "yellow"
    said = next((f"{name} {shown(body[name])}" for name in ("params", "result", "error") if name in body), "")
    if body.get("compensating"):
        said = "compensating"
    name = styled(printable(str(body["type"])).ljust(24), fg=fg)
    return f"{arrow} {printable(service):<10} step {body['step']}  {name} {said}".rstrip()


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
    if state.attributes is not None:
        yield f"  attributes {_attributes(state)}"
    if state.trace_id is not None:
        yield f"  trace    {state.trace_id}"
    yield from graph_views.facts(state, now_ms)
    yield from graph_views.drawn(state, width, _state)
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


def rows(listing: Listing, width: int | None = None) -> Iterator[str]:
    """The sagas of a list; above them, on a terminal of this width, what stands in the columns."""
    if width is not None and listing.page.sagas:
        yield screen.cut(f"{'STATUS':<12}  {'BEGUN':>6}  SAGA, its attributes, and why it is there", width)
    for state, causes in zip(listing.page.sagas, listing.causes, strict=True):
        yield row(state, listing.now_ms, causes, width, [name for name, _ in listing.wanted.attributes])


def row(
    state: SagaState,
    now_ms: int,
    causes: Sequence[Cause] = (),
    width: int | None = None,
    asked: Sequence[str] = (),
) -> str:
    """A saga on one line of a list, cut to the width of the terminal. Its age counts from its begin, as lists are in
    that order. `causes`: why it waits. `asked`: the names of the attributes that come first."""
    why = f"parked: {state.parked}" if state.parked else state.reason or ""
    if not (state.ended or state.parked):
        why = headline(causes) or f"waits for {state.waiting_for}"
    name = "PARKED" if state.parked else str(state.status)
    shown = styled(name.ljust(12), fg="red", bold=True) if state.parked else status(name, 12)
    attributes = _attributes(state, asked)
    if attributes and width is not None:  # so that there is room for why
        attributes = screen.cut(attributes, max(width // 3, 24))
    parts = (shown, f"{spoken(now_ms - state.begun_ms):>6}", printable(state.saga_id), attributes, printable(why))
    return screen.cut("  ".join(filter(None, parts)).rstrip(), width)


def _attributes(state: SagaState, first: Sequence[str] = ()) -> str:
    """The attributes of a saga on one line: those `first`, then the others."""
    there = state.attributes or {}
    names = [name for name in first if name in there]
    names += [name for name in there if name not in names]
    return ", ".join(f"{name}={printable(str(there[name]))}" for name in names)


def counted(listing: Listing, limit: int) -> str:
    """The line below a list: how many sagas it shows, and what there is to say of the store."""
    page = listing.page
    shown = len(page.sagas)
    if page.cursor is not None and not shown and not page.total:
        more = f"; --cursor {page.cursor} looks on"
        if is_faster_by_status(listing.wanted):
            more += "; --status aborted, --status compensating or --status parked is faster"
        found = none_found(page, listing.wanted, is_first=listing.is_first)
    else:
        found = f"{shown} shown of {page.total}" if page.total_is_exact else f"{shown} shown of {page.total} or more"
        does = "or a larger --limit shows more" if shown == limit else "looks on"
        more = f" (--cursor {page.cursor} {does})" if page.cursor is not None else ""
    parked = f", {listing.parked} of them parked," if listing.parked else ""
    unread = f", {listing.unread} requested and not read by a worker yet" if listing.unread else ""
    aside = f", {listing.quarantined} messages quarantined" if listing.quarantined else ""
    stands = f"; {headline(listing.standing)}" if listing.standing and (listing.live or listing.unread) else ""
    counts = f"{listing.live} live{parked} and {listing.ended} ended in the store{unread}{aside}{stands}"
    return printable(f"{found}{more}; {counts}")


def none_found(page: Page, wanted: Filter, *, is_first: bool) -> str:
    """Among which sagas none was found, if there may be others."""
    names, number = wanted.index_names, f"{page.looked_at:,}"
    if len(names) > 1:
        return f"none among the {number} that were looked at, newest first"
    of = f" with {names[0]}" if names else ""
    return f"none among the {number}{of} that began last" if is_first else f"none among the next {number}{of}"


def is_faster_by_status(wanted: Filter) -> bool:
    """Whether a status that has an index would help: errors are mostly looked for in sagas that have one."""
    return wanted.error is not None and (wanted.status, wanted.at, wanted.parked) == (None, None, None)


def absent(causes: Sequence[Cause], notes: Sequence[str]) -> str:
    """Why a saga that was asked for may not be there yet, or not any more; put after the sentence that it is not."""
    words = [cause.text for cause in causes] + [line for cause in causes for line in cause.do]
    return "; ".join([" yet" if words else "", *words, *notes])


def erased(what: Erased) -> Iterator[str]:
    """What was erased, on one line; then a line for each id of which nothing was erased in its hash."""
    counts = {
        "saga": what.hashes,
        "record": what.records,
        "unread command": what.commands,
        "quarantined message": what.quarantined,
        "event": what.events,
    }
    parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
    yield f"erased: {', '.join(parts) or 'nothing'}"
    for saga_id, done in what.before.items():
        by = "" if done.actor is None else f" by {printable(done.actor)}"
        yield f"{printable(saga_id)} was erased before, at {iso(done.at_ms)}{by}: {printable(done.reason)}"
    for saga_id, number in what.unknown.items():
        text = f"there is no saga {printable(saga_id)} in this store: it has expired, or the id is wrong; "
        found = "records and messages of it were found, and erased unless a line `left:` names them"
        yield text + (f"{number} {found}" if number else "nothing of it was found elsewhere")


def quarantined(message: Quarantined) -> str:
    """A quarantined message, on one line."""
    what = f"{message.kind} {message.saga_id}".strip() or "no message"
    return f"{message.id}  {iso(message.at_ms)}  {printable(what)}: {printable(message.reason)}"


def finding(found: Finding, width: int | None = None) -> Iterator[str]:
    """A finding of the doctor; on one line, unless it is for a terminal of this width."""
    head = f"{styled(found.level.ljust(8), fg=_LEVELS.get(found.level))}  {printable(found.about):<12}  "
    if width is None:
        yield head + printable(found.line)
        return
    yield from screen.wrapped(head + printable(found.text), width, _INDENT)
    for line in found.do:
        yield from screen.advice(" " * _INDENT, printable(line), width)


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
    yield from graph_views.params(step)
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
        how = "undone by" if step.status is StepStatus.COMPENSATED else "undo skipped:" if step.skipped else "undo by"
        yield f"       {how} {printable(step.compensation)}  {times}"
        yield from graph_views.undo(step)
        if step.compensation_answered_ms is not None and step.status is not StepStatus.COMPENSATED:
            heard = clock(step.compensation_answered_ms, now_ms)
            yield f"       late   it was undone after all, as was heard at {heard}"
    if step.compensation_error is not None:
        yield f"       error of the undo  {as_json(orjson.loads(step.compensation_error))}"


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

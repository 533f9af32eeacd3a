"""When each attempt of each step was sent, answered and undone, as SVG, by the history of the saga. Pure.

What undoes a step has a line of its own below that of the step: it may come days later, and then both bars are so thin
that one would hide the other.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, count
from typing import Final, NamedTuple

from markupsafe import Markup, escape
from msgspec import Struct
from msgspec.structs import replace

from sagastream.console import printable
from sagastream.core.durations import exact, spoken
from sagastream.core.history_events import HistoryEvent, HistoryKind
from sagastream.core.phases import BACKING_OFF
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step

_WIDTH: Final = 720
_LABELS: Final = 190
_RIGHT: Final = 70
_ROW: Final = 24
_AXIS: Final = 24
_MOST_CHARS: Final = 22
#: The least width of a bar, so that it is seen.
_LEAST: Final = 3
#: At most so many marks are on the axis.
_MOST_TICKS: Final = 6
_SECOND_MS, _MINUTE_MS, _HOUR_MS, _DAY_MS = 1000, 60_000, 3_600_000, 86_400_000
#: How far marks may be apart between seconds and days. Below, and in days: 1, 2 or 5 times a power of ten.
_ROUND_MS: Final = (
    *(one * _SECOND_MS for one in (10, 15, 30)),
    *(one * _MINUTE_MS for one in (1, 2, 5, 10, 15, 30)),
    *(one * _HOUR_MS for one in (1, 2, 3, 6, 12)),
)
#: Of a saga with more steps, only so many are drawn.
MOST_ROWS: Final = 100

_BEGINS: Final = frozenset({HistoryKind.SENT, HistoryKind.AWAITED, HistoryKind.UNDO_SENT})
#: What is about the undo of a step, whatever the name of the command.
_OF_UNDO: Final = frozenset(kind for kind in HistoryKind if kind.startswith("UNDO"))
#: What ends what was under way, and the tone of its bar.
_ENDS: Final = {
    HistoryKind.DONE: "ok",
    HistoryKind.FAILED: "bad",
    HistoryKind.NOT_ANSWERED: "bad",
    HistoryKind.UNKNOWN: "bad",
    HistoryKind.UNDONE: "back",
    HistoryKind.UNDO_FAILED: "bad",
    HistoryKind.UNDO_NOT_ANSWERED: "bad",
    HistoryKind.UNDO_UNKNOWN: "bad",
}


class _Line(NamedTuple):
    """A line of the timeline."""

    step: int
    is_undo: bool = False


class Bar(Struct, frozen=True, kw_only=True):
    """What was under way from one time to another."""

    line: _Line
    from_ms: int
    to_ms: int
    tone: str
    told: str
    goes_on: bool = False
    is_last: bool = True  # of its line


def svg(state: SagaState, events: Sequence[HistoryEvent], now_ms: int) -> Markup:
    """The timeline of a saga; empty if nothing was sent yet."""
    bars = [bar for bar in _bars(state, events, now_ms) if bar.line.step <= MOST_ROWS]
    if not bars:
        return Markup("")
    began = min(state.begun_ms, *(bar.from_ms for bar in bars))
    # A saga that is parked may stand still for days: that is not drawn.
    ended = max(began + 1, *(bar.to_ms for bar in bars))
    lines = list(_lines(state, {bar.line for bar in bars}))
    height = _AXIS + len(lines) * _ROW + 6
    parts = [*_axis(began, ended, height)]
    for place, line in enumerate(lines):
        parts += _labels(state.steps[line.step - 1], line, _AXIS + (place + 0.5) * _ROW + 4)
    parts += [part for bar in bars for part in _drawn(bar, lines.index(bar.line), began, ended)]
    told = f"When each step was sent and answered, within {took(ended - began)}"
    return Markup(  # noqa: S704 - each text in it was escaped
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )


def _lines(state: SagaState, used: Collection[_Line]) -> Iterator[_Line]:
    """A line for each step, and one for each undo of which there is a bar."""
    for number in range(1, len(state.steps[:MOST_ROWS]) + 1):
        yield _Line(number)
        if (undo := _Line(number, is_undo=True)) in used:
            yield undo


def _labels(step: Step, line: _Line, y: float) -> Iterator[str]:
    if line.is_undo:
        yield f'<text class="label undo" x="40" y="{y:g}">{escape(_cut(f"undo: {step.compensation}"))}</text>'
        return
    named = (step.definition.shape.id, step.definition.transaction)
    yield f'<text class="number" x="18" y="{y:g}" text-anchor="end">{line.step}</text>'
    yield f'<text class="label" x="28" y="{y:g}">{escape(_cut(" · ".join(filter(None, named))))}</text>'


def _cut(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _MOST_CHARS else name[: _MOST_CHARS - 1] + "…"


def _bars(state: SagaState, events: Sequence[HistoryEvent], now_ms: int) -> Iterator[Bar]:
    """A bar for each attempt, line by line."""
    for number, step in enumerate(state.steps, 1):
        own = [event for event in events if event.step == number and event.at_ms is not None]
        for is_undo in (False, True):
            goes_on = step.being_undone is is_undo and not state.ended
            those = [event for event in own if _is_of_undo(event, step) is is_undo]
            found = list(_of_line(_Line(number, is_undo), step, those, now_ms if goes_on else None))
            yield from (replace(bar, is_last=False) for bar in found[:-1])
            yield from found[-1:]


def _is_of_undo(event: HistoryEvent, step: Step) -> bool:
    if event.kind in (HistoryKind.HELD, HistoryKind.RESUMED, HistoryKind.PARKED):
        return event.command != step.definition.transaction
    return event.kind in _OF_UNDO


def _of_line(line: _Line, step: Step, events: Sequence[HistoryEvent], now_ms: int | None) -> Iterator[Bar]:
    """The bars of a line. `now_ms`: what has not ended goes on until then; None: nothing goes on."""
    sent: HistoryEvent | None = None
    held: HistoryEvent | None = None
    for event in events:
        assert event.at_ms is not None
        if held is not None:
            yield _bar(line, held, event.at_ms, "idle", held.text)
            held = None
        if event.kind is HistoryKind.HELD:
            sent, held = None, event
        elif event.kind in _BEGINS:
            sent = event
        elif sent is not None and event.kind in _ENDS:
            yield _bar(line, sent, event.at_ms, _ENDS[event.kind], event.text)
            sent = None
    if now_ms is None:
        return
    if held is not None and step.is_held:
        yield _bar(line, held, now_ms, "idle", held.text, goes_on=True)
    if sent is not None and step.is_active:
        tone = "bad" if step.parked else "back" if step.being_undone or step.phase in BACKING_OFF else "live"
        yield _bar(line, sent, now_ms, tone, sent.text, goes_on=True)


def _bar(line: _Line, sent: HistoryEvent, to_ms: int, tone: str, told: str, *, goes_on: bool = False) -> Bar:
    assert sent.at_ms is not None
    text = f"{told}; it has taken {took(to_ms - sent.at_ms)} so far" if goes_on else told
    return Bar(line=line, from_ms=sent.at_ms, to_ms=to_ms, tone=tone, told=text, goes_on=goes_on)


def _drawn(bar: Bar, place: int, began: int, ended: int) -> Iterator[str]:
    span, room = ended - began, _WIDTH - _LABELS - _RIGHT
    x = _LABELS + (bar.from_ms - began) / span * room
    wide = max((bar.to_ms - bar.from_ms) / span * room, _LEAST)
    y = _AXIS + place * _ROW + 5
    more = " goes-on" if bar.goes_on else ""
    yield f'<g class="bar tone-{bar.tone}{more}"><title>{escape(printable(bar.told))}</title>'
    yield f'<rect x="{x:.1f}" y="{y:g}" width="{wide:.1f}" height="{_ROW - 10}" rx="3"/>'
    if bar.is_last:
        yield f'<text class="took" x="{x + wide + 6:.1f}" y="{y + 10.5:g}">{took(bar.to_ms - bar.from_ms)}</text>'
    yield "</g>"


def _axis(began: int, ended: int, height: int) -> Iterator[str]:
    span, room = ended - began, _WIDTH - _LABELS - _RIGHT
    for at_ms in ticks(span):
        x = f"{_LABELS + at_ms / span * room:.1f}"
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_AXIS - 4}" y2="{height - 4}"/>'
        yield f'<text class="axis" x="{x}" y="12" text-anchor="middle">+{exact(at_ms) if at_ms else 0}</text>'


def ticks(span_ms: int) -> range:
    """The marks of an axis that is so long: round numbers, a few of them."""
    decimal = (factor * 10**power for power in range(4) for factor in (1, 2, 5))  # up to 5 s
    days = (_DAY_MS * factor * 10**power for power in count() for factor in (1, 2, 5))
    every = next(one for one in chain(decimal, _ROUND_MS, days) if span_ms < one * _MOST_TICKS)
    return range(0, span_ms + 1, every)


def took(ms: float) -> str:
    """A duration, short."""
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s" if ms < 10_000 else spoken(ms)

"""When each attempt of each step was sent, answered and undone, as SVG, by the history of the saga. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from markupsafe import Markup, escape
from msgspec import Struct
from msgspec.structs import replace

from sagastream.console import printable
from sagastream.core.durations import spoken
from sagastream.core.history_events import HistoryEvent, HistoryKind
from sagastream.core.phases import BACKING_OFF
from sagastream.core.saga import SagaState

_WIDTH: Final = 720
_LABELS: Final = 190
_RIGHT: Final = 70
_ROW: Final = 24
_AXIS: Final = 24
_MOST_CHARS: Final = 22
#: The least width of a bar, so that it is seen.
_LEAST: Final = 3
#: Of a saga with more steps, only so many are drawn.
MOST_ROWS: Final = 100

_BEGINS: Final = frozenset({HistoryKind.SENT, HistoryKind.AWAITED, HistoryKind.UNDO_SENT})
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


class Bar(Struct, frozen=True, kw_only=True):
    """What was under way from one time to another."""

    step: int
    from_ms: int
    to_ms: int
    tone: str
    told: str
    goes_on: bool = False
    is_last: bool = True  # of its step


def svg(state: SagaState, events: Sequence[HistoryEvent], now_ms: int) -> Markup:
    """The timeline of a saga; empty if nothing was sent yet."""
    bars = [bar for bar in _bars(state, events, now_ms) if bar.step <= MOST_ROWS]
    if not bars:
        return Markup("")
    began = min(state.begun_ms, *(bar.from_ms for bar in bars))
    # A saga that is parked may stand still for days: that is not drawn.
    ended = max(began + 1, *(bar.to_ms for bar in bars))
    rows = state.steps[:MOST_ROWS]
    height = _AXIS + len(rows) * _ROW + 6
    parts = [*_axis(began, ended, height)]
    for number, step in enumerate(rows, 1):
        named = (step.definition.shape.id, step.definition.transaction)
        name = printable(" · ".join(filter(None, named)))
        name = name if len(name) <= _MOST_CHARS else name[: _MOST_CHARS - 1] + "…"
        y = _AXIS + number * _ROW - _ROW / 2 + 4
        parts.append(f'<text class="number" x="18" y="{y:g}" text-anchor="end">{number}</text>')
        parts.append(f'<text class="label" x="28" y="{y:g}">{escape(name)}</text>')
    parts += [part for bar in bars for part in _drawn(bar, began, ended)]
    told = f"When each step was sent and answered, within {took(ended - began)}"
    return Markup(  # noqa: S704 - each text in it was escaped
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )


def _bars(state: SagaState, events: Sequence[HistoryEvent], now_ms: int) -> Iterator[Bar]:
    """A bar for each attempt."""
    for number, step in enumerate(state.steps, 1):
        found: list[Bar] = []
        sent: HistoryEvent | None = None
        held: HistoryEvent | None = None
        for event in events:
            if event.step != number or event.at_ms is None:
                continue
            if held is not None:
                found.append(_bar(number, held, event.at_ms, "idle", held.text))
                held = None
            if event.kind is HistoryKind.HELD:
                sent, held = None, event
            elif event.kind in _BEGINS:
                sent = event
            elif sent is not None and event.kind in _ENDS:
                found.append(_bar(number, sent, event.at_ms, _ENDS[event.kind], event.text))
                sent = None
        if held is not None and step.is_held and not state.ended:
            found.append(_bar(number, held, now_ms, "idle", held.text, goes_on=True))
        if sent is not None and step.is_active and not state.ended:
            tone = "bad" if step.parked else "back" if step.being_undone or step.phase in BACKING_OFF else "live"
            found.append(_bar(number, sent, now_ms, tone, sent.text, goes_on=True))
        yield from (replace(bar, is_last=False) for bar in found[:-1])
        yield from found[-1:]


def _bar(number: int, sent: HistoryEvent, to_ms: int, tone: str, told: str, *, goes_on: bool = False) -> Bar:
    assert sent.at_ms is not None
    text = f"{told}; it has taken {took(to_ms - sent.at_ms)} so far" if goes_on else told
    return Bar(step=number, from_ms=sent.at_ms, to_ms=to_ms, tone=tone, told=text, goes_on=goes_on)


def _drawn(bar: Bar, began: int, ended: int) -> Iterator[str]:
    span, room = ended - began, _WIDTH - _LABELS - _RIGHT
    x = _LABELS + (bar.from_ms - began) / span * room
    wide = max((bar.to_ms - bar.from_ms) / span * room, _LEAST)
    y = _AXIS + (bar.step - 1) * _ROW + 5
    more = " goes-on" if bar.goes_on else ""
    yield f'<g class="bar tone-{bar.tone}{more}"><title>{escape(printable(bar.told))}</title>'
    yield f'<rect x="{x:.1f}" y="{y:g}" width="{wide:.1f}" height="{_ROW - 10}" rx="3"/>'
    if bar.is_last:
        yield f'<text class="took" x="{x + wide + 6:.1f}" y="{y + 10.5:g}">{took(bar.to_ms - bar.from_ms)}</text>'
    yield "</g>"


def _axis(began: int, ended: int, height: int) -> Iterator[str]:
    room = _WIDTH - _LABELS - _RIGHT
    for part in range(5):
        x = _LABELS + room * part / 4
        yield f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{_AXIS - 4}" y2="{height - 4}"/>'
        yield f'<text class="axis" x="{x:g}" y="12" text-anchor="middle">+{took((ended - began) * part // 4)}</text>'


def took(ms: float) -> str:
    """A duration, short."""
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s" if ms < 10_000 else spoken(ms)

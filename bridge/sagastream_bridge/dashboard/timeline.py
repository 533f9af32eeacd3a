"""When each step of a saga was sent, answered and undone, as SVG. Pure.

A bar begins when its command was last sent: the times of earlier attempts stand in the history.
"""

from collections.abc import Iterator
from typing import Final

from markupsafe import Markup, escape
from msgspec import Struct

from sagastream.console import printable
from sagastream.core.durations import spoken
from sagastream.core.phases import ACTIVE, BACKING_OFF
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step, StepStatus

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


class Bar(Struct, frozen=True):
    """What was under way from one time to another."""

    row: int
    from_ms: int
    to_ms: int
    tone: str
    told: str
    goes_on: bool = False


def svg(state: SagaState, now_ms: int) -> Markup:
    """The timeline of a saga; empty if nothing was sent yet."""
    steps = state.steps[:MOST_ROWS]
    bars = [bar for row, step in enumerate(steps) for bar in _bars(row, step, state.ended, now_ms)]
    if not bars:
        return Markup("")
    began = min(state.begun_ms, *(bar.from_ms for bar in bars))
    ended = max(state.updated_ms if state.ended else now_ms, *(bar.to_ms for bar in bars), began + 1)
    height = _AXIS + len(steps) * _ROW + 6
    parts = [*_axis(began, ended, height)]
    for row, step in enumerate(steps):
        name = printable(step.definition.transaction)
        name = name if len(name) <= _MOST_CHARS else name[: _MOST_CHARS - 1] + "…"
        y = _AXIS + row * _ROW + _ROW / 2 + 4
        parts.append(f'<text class="number" x="18" y="{y:g}" text-anchor="end">{row + 1}</text>')
        parts.append(f'<text class="label" x="28" y="{y:g}">{escape(name)}</text>')
    parts += [part for bar in bars for part in _drawn(bar, began, ended)]
    told = f"When each step was sent and answered; from the begin to the end {_took(ended - began)}"
    return Markup(  # noqa: S704 - each text in it was escaped
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(told)}">'
        f"{''.join(parts)}</svg>"
    )


def _bars(row: int, step: Step, ended: bool, now_ms: int) -> Iterator[Bar]:
    if step.sent_ms is not None:
        goes_on = step.answered_ms is None and step.phase in ACTIVE and not ended
        to_ms = step.answered_ms if step.answered_ms is not None else now_ms if goes_on else step.sent_ms
        tone = _tone(step) if step.parked or not goes_on else "back" if step.phase in BACKING_OFF else "live"
        tries = f", attempt {step.attempt}" if step.attempt > 1 else ""
        how = "parked since" if step.parked else "goes on since" if goes_on else "took"
        told = f"{step.definition.transaction}{tries}: {how} {_took(to_ms - step.sent_ms)}"
        yield Bar(row, step.sent_ms, to_ms, tone, told, goes_on)
    if step.compensation_sent_ms is not None:
        answered = step.compensation_answered_ms
        goes_on = answered is None and step.being_undone
        to_ms = answered if answered is not None else now_ms if goes_on else step.compensation_sent_ms
        told = f"{step.compensation}, the undo: {'goes on' if goes_on else 'took'} "
        told += _took(to_ms - step.compensation_sent_ms)
        yield Bar(row, step.compensation_sent_ms, to_ms, "bad" if step.parked else "back", told, goes_on)


def _tone(step: Step) -> str:
    if step.parked is not None and not step.being_undone:
        return "bad"
    if step.status is StepStatus.FAILED or step.unknown:
        return "bad"
    return "ok" if step.completed else "idle"


def _drawn(bar: Bar, began: int, ended: int) -> Iterator[str]:
    span, room = ended - began, _WIDTH - _LABELS - _RIGHT
    x = _LABELS + (bar.from_ms - began) / span * room
    wide = max((bar.to_ms - bar.from_ms) / span * room, _LEAST)
    y = _AXIS + bar.row * _ROW + 5
    more = " goes-on" if bar.goes_on else ""
    yield f'<g class="bar tone-{bar.tone}{more}"><title>{escape(printable(bar.told))}</title>'
    yield f'<rect x="{x:.1f}" y="{y:g}" width="{wide:.1f}" height="{_ROW - 10}" rx="3"/>'
    yield f'<text class="took" x="{x + wide + 6:.1f}" y="{y + 10.5:g}">{_took(bar.to_ms - bar.from_ms)}</text></g>'


def _axis(began: int, ended: int, height: int) -> Iterator[str]:
    room = _WIDTH - _LABELS - _RIGHT
    for part in range(5):
        x = _LABELS + room * part / 4
        yield f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{_AXIS - 4}" y2="{height - 4}"/>'
        yield f'<text class="axis" x="{x:g}" y="12" text-anchor="middle">+{_took((ended - began) * part // 4)}</text>'


def _took(ms: int) -> str:
    if ms < 1000:
        return f"{ms} ms"
    return f"{ms / 1000:.1f} s" if ms < 10_000 else spoken(ms)

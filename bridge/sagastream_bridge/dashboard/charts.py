"""Charts as SVG, drawn by the server. Pure. Colours come from the style sheet, by class."""

from collections.abc import Iterator, Sequence
from typing import Final

from markupsafe import Markup, escape

from sagastream_bridge.dashboard.rates import STRETCH_MS, Stretch, What

#: How wide the drawing is on a wide screen, and on a narrow one, which shows fewer stretches.
WIDE: Final = 900
NARROW: Final = 330
NARROW_STRETCHES: Final = 36
_HEIGHT: Final = 150
#: Room for the numbers at the left, and for the times below.
_LEFT: Final = 40
_BELOW: Final = 20
_ABOVE: Final = 8
#: How far two times at the axis are apart, in minutes.
_MARK_EVERY: Final = 5
#: From bottom to top.
_STACK: Final = (What.COMPLETED, What.ABORTED, What.PARKED)


def rates(stretches: Sequence[Stretch], width: int) -> Markup:
    """A bar for each stretch of time, with a part for each thing that was counted. It tells sagas a second."""
    most = top(max((one.total for one in stretches), default=0) * 1000 / STRETCH_MS)
    inner = _HEIGHT - _BELOW - _ABOVE
    step = (width - _LEFT) / max(len(stretches), 1)
    parts = [*_grid(most, inner, width), *_times(stretches, step, width)]
    for place, one in enumerate(stretches):
        parts += _bar(one, _LEFT + place * step, step, most, inner)
    words = _summary(stretches)
    return Markup(  # noqa: S704 - each text in it was escaped
        f'<svg class="chart chart-{width}" viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{escape(words)}">'
        + "".join(parts)
        + "</svg>"
    )


def _bar(one: Stretch, x: float, step: float, most: float, inner: int) -> Iterator[str]:
    if not one.total:
        return
    told = ", ".join(f"{one.counts[what]} {what}" for what in _STACK if one.counts[what])
    yield f"<g><title>{_clock(one.from_ms)}: {told} in {STRETCH_MS // 1000} s</title>"
    y = float(_ABOVE + inner)
    for what in _STACK:
        if not (count := one.counts[what]):
            continue
        height = max(count * 1000 / STRETCH_MS / most * inner, 1.5)
        y -= height
        yield f'<rect class="bar-{what}" x="{x:.1f}" y="{y:.1f}" width="{max(step - 2, 1):.1f}" height="{height:.1f}"/>'
    yield "</g>"


def _grid(most: float, inner: int, width: int) -> Iterator[str]:
    for part in (0.0, 0.5, 1.0):
        y = _ABOVE + inner * (1 - part)
        yield f'<line class="grid" x1="{_LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="axis" x="{_LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{most * part:g}</text>'


def _times(stretches: Sequence[Stretch], step: float, width: int) -> Iterator[str]:
    for place, one in enumerate(stretches):
        if one.from_ms % (_MARK_EVERY * 60_000) == 0:
            x = _LEFT + place * step
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_ABOVE}" y2="{_HEIGHT - _BELOW}"/>'
            if x < width - 40:
                yield f'<text class="axis" x="{x + 4:.1f}" y="{_HEIGHT - 5}">{_clock(one.from_ms)[:5]}</text>'


def _summary(stretches: Sequence[Stretch]) -> str:
    totals = {what: sum(one.counts[what] for one in stretches) for what in _STACK}
    minutes = len(stretches) * STRETCH_MS // 60_000
    return f"The last {minutes} minutes: " + ", ".join(f"{count} {what}" for what, count in totals.items())


def _clock(ms: int) -> str:
    """The time of a day, in UTC."""
    seconds = ms // 1000 % 86_400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def top(most: float) -> float:
    """A round number that is not below this one, for the top of an axis."""
    unit = 0.1
    while True:
        for factor in (1, 2, 5):
            if most <= unit * factor:
                return round(unit * factor, 1)
        unit *= 10

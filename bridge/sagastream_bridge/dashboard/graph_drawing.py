"""The graph of a saga or a definition as SVG, on the lanes of `definitions/drawing`. Pure.

Its colours come from the style sheet: the class of a step says in which tone it is. All texts are printable, and are
escaped here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from markupsafe import Markup, escape

from sagastream_bridge.definitions.drawing import Form, Node, rows

#: How far lanes are apart, and how high a row of a step is, and one in which only lanes change.
_LANE: Final = 18
_ROW: Final = 30
_TURN: Final = 16
#: The middle of the first lane, and how far a line bends.
_LEFT: Final = 14
_BEND: Final = 6
#: About how wide a character of a label and of a note is.
_LABEL_CHAR: Final = 7.4
_NOTE_CHAR: Final = 7.2
#: The longest label that is drawn, in characters; the list of the steps has all of it.
_MOST_CHARS: Final = 48
#: Where the line at a place goes, by its character: up, down, left, right.
_WAYS: Final[Mapping[str, str]] = {
    "│": "ud",
    "╮": "dl",
    "╭": "dr",
    "╯": "ul",
    "╰": "ur",
    "├": "udr",
    "┤": "udl",
    "┬": "dlr",
    "┴": "ulr",
    "┼": "udlr",
    "─": "lr",
}


def svg(nodes: Sequence[Node], tones: Mapping[int, str], what: str) -> Markup:
    """The drawing. Each step leads to `#step-<number>` on the same page.

    Args:
        nodes: the steps, in order. `note`: what is said about each.
        tones: the tone of each step, by its number: the class `tone-<tone>`.
        what: what is drawn, for those who do not see it.
    """
    # A chain has no lanes: then each step stands in the first one.
    drawn = [(text or str(node and node.form), node) for text, node in rows(nodes)]
    labels = _LEFT + (max((len(text.rstrip()) for text, _ in drawn), default=0) // 2 + 1) * _LANE
    notes = labels + 40 + max((len(_label(node)) for node in nodes), default=0) * _LABEL_CHAR
    width = notes + max((len(node.note) for node in nodes), default=0) * _NOTE_CHAR + 20
    parts: list[str] = []
    y = 0.0
    for place, (text, node) in enumerate(drawn):
        height = _TURN if node is None else _ROW
        above = drawn[place - 1][0] if place else ""
        below = drawn[place + 1][0] if place + 1 < len(drawn) else ""
        parts += _lanes(text, y, height, above, below)
        if node is not None:
            column = text.index(str(node.form))
            x = _LEFT + column / 2 * _LANE
            parts += _step(node, tones.get(node.number, "idle"), x=x, y=y, labels=labels, notes=notes)
        y += height
    told = f"{what}: {len(nodes)} {'step' if len(nodes) == 1 else 'steps'}; they are listed below"
    return Markup(  # noqa: S704 - each text in it was escaped
        f'<svg class="graph" width="{width:.0f}" height="{y:.0f}" viewBox="0 0 {width:.0f} {y:.0f}" role="img" '
        f'aria-label="{escape(told)}">{"".join(parts)}</svg>'
    )


def _label(node: Node) -> str:
    return node.label if len(node.label) <= _MOST_CHARS else node.label[: _MOST_CHARS - 1] + "…"


def _lanes(text: str, y: float, height: float, above: str, below: str) -> Iterator[str]:
    """The lines of a row."""
    for place, character in enumerate(text):
        x = _LEFT + place / 2 * _LANE
        if character in list(Form):
            if _leads(above, place, "d"):
                yield _path(f"M{x:g} {y:g}v{height / 2:g}")
            if _leads(below, place, "u"):
                yield _path(f"M{x:g} {y + height / 2:g}v{height / 2:g}")
        else:
            ways = _WAYS.get(character, "")
            for line in _lines(ways, x, y, height, _LANE / 2):
                yield _path(line)


def _leads(row: str, place: int, way: str) -> bool:
    """Whether a line leads from this place of a row to the next row, or to the one before it. What stands below a step
    in its lane comes after it."""
    character = row[place] if place < len(row) else " "
    return character in list(Form) or way in _WAYS.get(character, "")


def _lines(ways: str, x: float, y: float, height: float, half: float) -> Iterator[str]:
    middle = y + height / 2
    if "u" in ways and "d" in ways:
        yield f"M{x:g} {y:g}v{height:g}"
    if "l" in ways and "r" in ways:
        yield f"M{x - half:g} {middle:g}h{2 * half:g}"
    for end in (one for one in "ud" if one in ways):
        for side in (one for one in "lr" if one in ways):
            to_x, to_y = (x - half if side == "l" else x + half), (y if end == "u" else y + height)
            from_x = x - _BEND if side == "l" else x + _BEND
            from_y = middle - _BEND if end == "u" else middle + _BEND
            yield f"M{to_x:g} {middle:g}H{from_x:g}Q{x:g} {middle:g} {x:g} {from_y:g}V{to_y:g}"


def _path(way: str) -> str:
    return f'<path class="lane" d="{way}"/>'


def _step(node: Node, tone: str, *, x: float, y: float, labels: float, notes: float) -> Iterator[str]:
    middle = y + _ROW / 2
    yield f'<g class="node tone-{escape(tone)}"><title>{escape(node.label)}: {escape(node.note)}</title>'
    if node.form is Form.PIVOT:
        yield f'<path class="mark" d="M{x:g} {middle - 7:g}l7 7l-7 7l-7 -7z"/>'
    else:
        form = "mark ring" if node.form is Form.WAIT else "mark"
        yield f'<circle class="{form}" cx="{x:g}" cy="{middle:g}" r="5.5"/>'
    yield f'<text class="number" x="{labels + 16:g}" y="{middle + 4:g}" text-anchor="end">{node.number}</text>'
    yield f'<a href="#step-{node.number}"><text class="label" x="{labels + 26:g}" y="{middle + 4:g}">'
    yield f"{escape(_label(node))}</text></a>"
    if node.note:
        wide = len(node.note) * _NOTE_CHAR + 16
        yield f'<rect class="badge" x="{notes:g}" y="{middle - 9:g}" width="{wide:g}" height="18" rx="9"/>'
        yield f'<text class="note" x="{notes + wide / 2:g}" y="{middle + 3.8:g}" text-anchor="middle">'
        yield f"{escape(node.note)}</text>"
    yield "</g>"


def spaced(label: str) -> str:
    """A label whose columns are parted by a dot."""
    return " · ".join(part for part in re.split(r"\s{2,}", label.strip()) if part)

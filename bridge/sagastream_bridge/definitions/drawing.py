"""A graph of steps, drawn as text: a row a step, in the order of the list; beside it, lanes that lead from each step to
those that come after it. A chain needs no lanes, and is a list.

A lane leads to a step, or to a join: what comes after exactly the same steps shares one. So ten steps that each come
after ten others take ten lanes, and not a hundred.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple


class Form(StrEnum):
    """What a node is. The value is its mark beside the lanes."""

    STEP = "●"
    PIVOT = "◆"
    WAIT = "○"  # it sends no command


class Node(NamedTuple):
    """A step, as it is drawn. All texts are printable."""

    number: int
    label: str
    after: tuple[int, ...]  # the numbers of nodes that stand before it in the list; redundant ones are not drawn
    note: str = ""  # what is said about it, such as its state: it is never cut
    form: Form = Form.STEP


#: Steps that other steps come after, all of them.
_Join = frozenset[int]
#: To what a lane leads. None: it is free.
_Lanes = list[_Join | int | None]

#: Which way a line goes at a place, as (up, down, left, right): how that is drawn.
_LINES: Final[Mapping[tuple[bool, bool, bool, bool], str]] = {
    (True, True, False, False): "│",
    (False, True, True, False): "╮",
    (False, True, False, True): "╭",
    (True, False, True, False): "╯",
    (True, False, False, True): "╰",
    (True, True, False, True): "├",
    (True, True, True, False): "┤",
    (False, True, True, True): "┬",
    (True, False, True, True): "┴",
    (True, True, True, True): "┼",
    (False, False, True, True): "─",
}
#: The lanes may take this part of the width. If they need more, words say what a step comes after.
_PART_FOR_LANES: Final = 0.5
#: The least room for a label, however narrow the terminal is.
_LEAST_LABEL: Final = 12


def lines(
    nodes: Sequence[Node], width: int | None = None, paint: Callable[[str], str] = lambda note: note
) -> Iterator[str]:
    """The drawing, line by line.

    Args:
        nodes: all steps, in the order of their numbers.
        width: of the terminal. None: as wide as it takes.
        paint: colours a note.
    """
    drawn_rows = list(rows(nodes))
    lanes = max(len(drawn) for drawn, _ in drawn_rows) if drawn_rows else 0
    if width is not None and lanes > width * _PART_FOR_LANES:
        nodes = _in_words(nodes)
        drawn_rows, lanes = [("", node) for node in nodes], 0
    margin = f"{'':{lanes}}  " if lanes else ""
    digits = len(str(nodes[-1].number)) if nodes else 0
    longest = max((len(node.label) for node in nodes), default=0)
    if width is not None:
        notes = max((len(node.note) for node in nodes), default=0)
        longest = min(longest, max(width - len(margin) - digits - 2 - (notes + 2 if notes else 0), _LEAST_LABEL))
    for drawn, node in drawn_rows:
        if node is None:
            yield drawn.rstrip()
            continue
        label = node.label if len(node.label) <= longest else node.label[: longest - 1] + "…"
        line = f"{drawn:<{len(margin)}}{node.number:>{digits}}  {label:<{longest}}"
        yield (f"{line}  {paint(node.note)}" if node.note else line).rstrip()


def direct(nodes: Sequence[Node]) -> dict[int, frozenset[int]]:
    """Of each node the nodes that it comes directly after: those of `after` that no other of them comes after."""
    above: dict[int, frozenset[int]] = {}
    found = {}
    for node in nodes:
        further = frozenset[int]().union(*(above[number] for number in node.after))
        found[node.number] = frozenset(node.after) - further
        above[node.number] = further | frozenset(node.after)
    return found


def _in_words(nodes: Sequence[Node]) -> list[Node]:
    before = direct(nodes)
    said: list[Node] = []
    for node in nodes:
        after = sorted(before[node.number])
        usual = [said[-1].number] if said else []
        words = f"after {', '.join(map(str, after))}" if after else "at once"
        # If there is no room for all of it, the end is cut off, and the name of the step stays.
        said.append(node if after == usual else node._replace(label=f"{node.label}, {words}"))
    return said


def rows(nodes: Sequence[Node]) -> Iterator[tuple[str, Node | None]]:
    """The lanes of each line, one in every second column, and the step that stands beside them; None: only lanes
    change. A chain has no lanes."""
    before = direct(nodes)
    if all(before[node.number] == {last.number} for last, node in pairwise(nodes)):
        yield from (("", node) for node in nodes)
        return
    after: dict[_Join, list[int]] = {}
    for node in nodes:
        after.setdefault(before[node.number], []).append(node.number)
    lanes: _Lanes = []
    for node in nodes:
        join = before[node.number]
        if after[join][0] == node.number:
            yield from _switched(lanes, [column for column, to in enumerate(lanes) if to == join], after[join])
        column = lanes.index(node.number)
        yield " ".join(node.form if at == column else _passed(to) for at, to in enumerate(lanes)), node
        joins = [other for other in after if node.number in other]
        if joins:
            yield from _switched(lanes, [column], joins)
        else:
            lanes[column] = None


def _switched(lanes: _Lanes, sources: list[int], targets: Sequence[_Join | int]) -> Iterator[tuple[str, None]]:
    """Let the lanes `sources` end, and lanes to `targets` begin, from all of them. One lane to one target goes on where
    it is, and needs no line."""
    were = list(lanes)
    for column in sources:
        lanes[column] = None
    begun = _columns(lanes, sources, len(targets))
    for column, target in zip(begun, targets, strict=True):
        lanes[column] = target
    if len(sources) > 1 or len(begun) > 1:
        yield _line(were, sources, begun), None


def _columns(lanes: _Lanes, sources: list[int], count: int) -> list[int]:
    """The columns of `count` new lanes: those of the lanes that end, and then the next free ones."""
    found = sources[:count]
    column = found[-1] + 1 if found else 0
    while len(found) < count:
        if column == len(lanes):
            lanes.append(None)
        if lanes[column] is None:
            found.append(column)
        column += 1
    return found


def _line(were: _Lanes, sources: list[int], begun: list[int]) -> str:
    first, last = min(sources + begun), max(sources + begun)
    drawn = ""
    for column in range(max(len(were), last + 1)):
        up, down = column in sources, column in begun
        to = were[column] if column < len(were) else None
        if to is not None and not up:
            drawn += "│"  # it passes
        elif first <= column <= last:
            drawn += _LINES[up, down, column > first, column < last]
        else:
            drawn += " "
        drawn += "─" if first <= column < last else " "
    return drawn


def _passed(to: _Join | int | None) -> str:
    return " " if to is None else "│"

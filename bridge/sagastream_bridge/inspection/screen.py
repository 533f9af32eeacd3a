"""Lines fitted to a terminal: text is wrapped by words, and a command stands on a line of its own, to be copied.

A width of None means that nobody reads it on a terminal: then a line stays a line, for grep and its like.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

#: What colours a text, and takes no room.
_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")
#: What parts a command from what is said about it.
_REMARK: Final = "  # "
#: How far a command is indented.
_COMMAND_INDENT: Final = 4
#: What a terminal does (ECMA-48; the two screens are of xterm, and known wherever people look).
_CLEAR: Final = "\x1b[2J"
_HOME: Final = "\x1b[H"
_CLEAR_BELOW: Final = "\x1b[J"
_OTHER_SCREEN: Final = "\x1b[?1049h"
_FIRST_SCREEN: Final = "\x1b[?1049l"


def wrapped(line: str, width: int | None, indent: int) -> Iterator[str]:
    """The line, in as many as it takes: those after the first are indented. A longer word is not broken."""
    if width is None:
        yield line
        return
    row = ""
    for part in re.split(r"( +)", line):
        if row.strip() and _room(row + part) > width and part.strip():
            yield row.rstrip()
            row = " " * indent
        row += part
    yield row.rstrip()


def advice(label: str, line: str, width: int | None) -> Iterator[str]:
    """A thing that helps: a command, and below it what is said about it after a `#`. `label`: what stands above it; if
    that is blank, nothing does."""
    if width is None:
        yield label + line
        return
    command, parted, remark = line.partition(_REMARK)
    if label.strip():
        yield label.rstrip()
    yield " " * _COMMAND_INDENT + command
    if parted:
        yield from wrapped(f"{' ' * len(label)}# {remark}", width, len(label) + len("# "))


def cut(line: str, width: int | None) -> str:
    """As much of the line as one line of the terminal holds."""
    if width is None or _room(line) <= width:
        return line
    kept, room = "", width - 1
    for part in re.split(rf"({_STYLE.pattern})", line):
        if _STYLE.fullmatch(part):
            kept += part
        else:
            kept += part[:room]
            room -= len(part[:room])
    return kept.rstrip() + "…"


def clipped(lines: Sequence[str], height: int, width: int, *, newest_last: bool = False) -> list[str]:
    """A picture as high and as wide as a terminal. If it is higher, a line says how much is left out: after its first
    lines; or, if what is new stands last, between its first line and its last ones."""
    fitting = [cut(line, width) for line in lines]
    if len(fitting) <= height:
        return fitting
    room = max(height - 1, 1)
    more = f"… {len(fitting) - room} more lines: without --watch, all are shown"
    if newest_last:
        return [fitting[0], cut(more, width), *fitting[len(fitting) - room + 1 :]][: room + 1]
    return [*fitting[:room], cut(more, width)]


class Canvas:
    """The screen of a terminal for pictures, each in the place of the one before. It is another screen than that of the
    lines above, so no picture is left behind in what one can scroll back to."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._is_open = False

    def draw(self, lines: Sequence[str]) -> None:
        if not self._is_open:
            self._is_open = True
            self._write(_OTHER_SCREEN + _CLEAR)
        # All is cleared first: behind a line that fills its row, some terminals would clear its last character.
        self._write(_HOME + _CLEAR_BELOW + "\n".join(lines))

    def close(self) -> None:
        """Show what was there before the first picture."""
        if self._is_open:
            self._is_open = False
            self._write(_FIRST_SCREEN)


def _room(text: str) -> int:
    return len(_STYLE.sub("", text))

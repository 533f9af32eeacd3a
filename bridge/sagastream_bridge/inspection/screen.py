"""Lines fitted to a terminal: text is wrapped by words, and a command stands on a line of its own, to be copied.

A width of None means that nobody reads it on a terminal: then a line stays a line, for grep and its like.
"""

import re
from collections.abc import Iterator
from typing import Final

#: What colours a text, and takes no room.
_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")
#: What parts a command from what is said about it.
_REMARK: Final = "  # "
#: How far a command is indented.
_COMMAND_INDENT: Final = 4


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


def _room(text: str) -> int:
    return len(_STYLE.sub("", text))

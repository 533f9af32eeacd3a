"""Where the values of a JSON text stand in it."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import orjson

from sagastream.core.pointers import below

#: A string, a bracket or comma or colon, or any other value.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


class Position(NamedTuple):
    """A place in a text. Both count from 1; columns count characters."""

    line: int
    column: int


def positions(text: bytes) -> Mapping[str, Position]:
    """Of each value in a text that is JSON, by its pointer (RFC 6901), where it is found: the members of an object at
    their keys, anything else where it begins."""
    found: dict[str, Position] = {}
    places = _Places(text)
    inside: list[tuple[str, int | None]] = []  # the pointers of the open containers; of an array, with the next index
    pointer, is_key = "", False
    for token in _TOKEN.finditer(text):
        what = token[0]
        if what in b"]}":
            inside.pop()
            is_key = False
            continue
        if what == b",":
            parent, index = inside[-1]
            is_key = index is None
            pointer = below(parent, index or 0)
            continue
        if what == b":":
            continue
        if is_key:
            pointer, is_key = below(inside[-1][0], orjson.loads(what)), False
            found[pointer] = places.of(token.start())
            continue
        found.setdefault(pointer, places.of(token.start()))
        if inside and (index := inside[-1][1]) is not None:
            inside[-1] = (inside[-1][0], index + 1)
        if what == b"{":
            inside.append((pointer, None))
            is_key = True
        elif what == b"[":
            inside.append((pointer, 0))
            pointer = below(pointer, 0)
    return found


class _Places:
    """Counts lines and columns of ascending offsets."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = self._begin = 0
        self._line = 1

    def of(self, offset: int) -> Position:
        if lines := self._text.count(b"\n", self._at, offset):
            self._line += lines
            self._begin = self._text.rindex(b"\n", self._at, offset) + 1
        self._at = offset
        return Position(self._line, len(self._text[self._begin : offset].decode()) + 1)

"""Makes the API reference tell what stands in the comments of attributes.

The project documents an attribute in a comment: behind it, or above it after `#:`. Griffe, which reads the sources for
the reference, knows only docstrings.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import griffe

_BEHIND = re.compile(r"\s#:? (.+)$")
_ABOVE = re.compile(r"\s*#: ?(.*)$")


class Comments(griffe.Extension):
    """Gives each attribute its comment as docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.docstring is not None or attr.lineno is None or not isinstance(attr.filepath, Path):
            return
        lines = attr.lines_collection[attr.filepath]
        first, last = attr.lineno - 1, (attr.endlineno or attr.lineno) - 1
        if text := _comment(lines, first, last):
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)


def _comment(lines: Sequence[str], first: int, last: int) -> str:
    if behind := _BEHIND.search(lines[last]):
        return behind[1][0].upper() + behind[1][1:]
    above: list[str] = []
    while first > 0 and (found := _ABOVE.fullmatch(lines[first - 1])):
        above.insert(0, found[1])
        first -= 1
    return " ".join(above)

"""A graph of steps as a Mermaid flowchart, for pages that draw it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from sagastream_bridge.definitions.drawing import Form, Node, direct

#: What stands around a label: it makes the shape of the node.
_AROUND: Final[Mapping[Form, tuple[str, str]]] = {
    Form.STEP: ("[", "]"),
    Form.PIVOT: ("{{", "}}"),
    Form.WAIT: ("([", "])"),
}
#: All that a label may have without an escape. Mermaid acts on much else, and its list grows.
_PLAIN: Final = frozenset(" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:_-/")


def lines(nodes: Sequence[Node]) -> Iterator[str]:
    """The flowchart, line by line. A pivot is a hexagon, and what sends no command is round."""
    before = direct(nodes)
    yield "flowchart TD"
    for node in nodes:
        begin, end = _AROUND[node.form]
        texts = [*node.label.split("  "), node.note]  # its columns
        label = "<br>".join(escaped(text) for text in texts if text.strip())
        yield f'    s{node.number}{begin}"{node.number}: {label}"{end}'
    for node in nodes:
        yield from (f"    s{number} --> s{node.number}" for number in sorted(before[node.number]))


def escaped(text: str) -> str:
    """The text as a label shows it. Blanks in a row become one."""
    return "".join(character if character in _PLAIN else f"#{ord(character)};" for character in " ".join(text.split()))

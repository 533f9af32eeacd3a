"""The steps of a document as they are drawn, however wrong the document is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sagastream.console import printable
from sagastream.core.durations import spoken
from sagastream.core.steps import MAX_WAIT_MS, StepKind
from sagastream_bridge.definitions.drawing import Form, Node

#: The longest text that is shown of one member.
_MOST_CHARS: Final = 60


def nodes(steps: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The graph of these steps. What does not name an earlier step in `after` is left out."""
    rows = [(_name(step), _what(step), _service(step)) for step in steps]
    named = [_width(rows, column) for column in range(3)]
    found = []
    for number, (step, row) in enumerate(zip(steps, rows, strict=True), 1):
        label = "  ".join(text.ljust(width) for text, width in zip(row, named, strict=True) if width).rstrip()
        found.append(Node(number, label, after(steps, number), ", ".join(_notes(step)), _form(step)))
    return found


def after(steps: Sequence[Mapping[str, Any]], number: int) -> tuple[int, ...]:
    """The earlier steps that a step says it comes after."""
    names = steps[number - 1].get("after")
    if not isinstance(names, list):
        return (number - 1,) if number > 1 else ()
    numbers = numbers_by_name(steps[: number - 1])
    return tuple(sorted({numbers[name] for name in names if isinstance(name, int | str) and name in numbers}))


def numbers_by_name(steps: Sequence[Any]) -> dict[int | str, int]:
    """The number of each step, by its id and by its number."""
    found: dict[int | str, int] = {number: number for number in range(1, len(steps) + 1)}
    for number, step in enumerate(steps, 1):
        if isinstance(step, dict) and isinstance(step_id := step.get("id"), str):
            found.setdefault(step_id, number)
    return found


def called(step: Mapping[str, Any], number: int) -> str:
    """What a person calls this step: its id or, if it has none, what it does."""
    return _name(step) or _what(step) or f"step {number}"


def _name(step: Mapping[str, Any]) -> str:
    return _text(step.get("id"))


def _what(step: Mapping[str, Any]) -> str:
    if "wait" in step:
        return f"wait for {_text(step['wait'])}"
    if "wait_ms" in step:
        return f"pause for {_duration(step['wait_ms'])}"
    return _text(step.get("transaction"))


def _service(step: Mapping[str, Any]) -> str:
    return _text(step.get("service"))


def _notes(step: Mapping[str, Any]) -> Iterator[str]:
    if step.get("kind", StepKind.COMPENSATABLE) != StepKind.COMPENSATABLE:
        yield _text(step["kind"])
    if "each" in step:
        yield f"for each of {_pointer(step['each'])}"
    if "when" in step:
        yield "with a condition"


def _form(step: Mapping[str, Any]) -> Form:
    if "wait" in step or "wait_ms" in step:
        return Form.WAIT
    return Form.PIVOT if step.get("kind") == StepKind.PIVOT else Form.STEP


def _pointer(reference: Any) -> str:
    return _text(reference.get("$ref")) if isinstance(reference, dict) else "?"


def _duration(ms: Any) -> str:
    if type(ms) is int and 1000 <= ms <= MAX_WAIT_MS:
        return spoken(ms)
    return f"{_text(ms)} ms"


def _text(value: object) -> str:
    return printable(str("" if value is None else value))[:_MOST_CHARS]


def _width(rows: Sequence[tuple[str, str, str]], column: int) -> int:
    return max(len(row[column]) for row in rows)

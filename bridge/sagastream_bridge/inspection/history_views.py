"""How the history of a saga is shown: a table with a line for each event, and as JSON."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sagastream.console import printable
from sagastream.core.history_events import HistoryEvent
from sagastream.core.saga import SagaState
from sagastream.store.columns import iso

#: Of a text, so many characters are shown. In JSON it is whole.
_MOST_CHARS: Final = 400
#: How wide the column of the steps is at most, and that of the texts at least, in characters.
_STEP_CHARS: Final = 16
_LEAST_CHARS: Final = 24
#: How wide a time is.
_TIME_CHARS: Final = len(iso(0))


def table(state: SagaState, events: Sequence[HistoryEvent], width: int | None = None) -> Iterator[str]:
    """A line for each event: when, which step, what. `width`: of the terminal: longer texts are folded; None: it is
    none, and an event stays one line."""
    names = {event.step: printable(state.name_of(event.step)) for event in events if event.step is not None}
    room = min(_STEP_CHARS, max(map(len, names.values()), default=0))
    for event in events:
        at = "" if event.at_ms is None else iso(event.at_ms)
        name = "" if event.step is None else names[event.step]
        head = f"  {at:<{_TIME_CHARS}}  {_cut(name, room):<{room}}  "
        text = _cut(printable(event.text), _MOST_CHARS)
        if width is None:
            yield f"{head}{text}"
            continue
        column = max(_LEAST_CHARS, width - len(head))
        for row in textwrap.wrap(text, column, break_on_hyphens=False):
            yield f"{head}{row}"
            head = " " * len(head)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def as_json(events: Sequence[HistoryEvent]) -> list[dict[str, Any]]:
    """The events as JSON values; times as everywhere in JSON for people: ISO 8601, with names that end in _at."""
    return [
        {
            "at": None if event.at_ms is None else iso(event.at_ms),
            "kind": str(event.kind),
            "text": event.text,
            "step": event.step,
            "command": event.command,
            "service": event.service,
            "attempt": event.attempt,
            "process": event.process,
            "error": event.error_value,
            "again_at": None if event.again_ms is None else iso(event.again_ms),
            "verb": event.verb,
            "reason": event.reason,
            "actor": event.actor,
            "bulk": event.bulk,
        }
        for event in events
    ]

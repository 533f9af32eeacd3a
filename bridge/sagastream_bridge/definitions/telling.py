"""What an exploration has found, for people and as JSON. All names in it were made printable."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from sagastream.core.durations import spoken
from sagastream_bridge.definitions.lasting import Longest
from sagastream_bridge.definitions.outcomes import Explored, Some, Undone, What

#: The most names that are said of steps that are alike.
_MOST_NAMES: Final = 3
#: How it is said of a step.
_SAID: Final[Mapping[What, str]] = {
    What.FAILS: "fails",
    What.UNKNOWN: "stays unknown",
    What.DECLINED: "is declined",
    What.NOT_SIGNALLED: "is not signalled in time",
    What.CANCELLED: "the saga is cancelled meanwhile",
    What.UNDO_FAILS: "its undo fails",
    What.NO_UNDO: "nobody knows its undo",
}


class Teller:
    """Tells what was found about one saga."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names`: what people call the steps."""
        self._names = names

    def lines(self, found: Explored, longest: Longest, notes: Sequence[str]) -> Iterator[str]:
        """For people. `notes`: what was taken for granted."""
        steps = len(self._names)
        yield f"{steps} {'step' if steps == 1 else 'steps'}, tried in every way: {found.worlds} states"
        yield from (f"  {note}" for note in notes)
        yield ""
        yield "How it can end"
        yield from (f"  {status}" for status in found.ends)
        if found.parks:
            yield f"  parked at {len(found.parks)} {'place' if len(found.parks) == 1 else 'places'}"
        yield ""
        yield "What happens, and what is undone then, in this order (?: if it was done)"
        yield from self._table(found)
        if found.parks:
            yield ""
            yield "Where it can be parked, until a person says how it goes on"
            for step, what, waiting in self.parks(found):
                yield f"  {step}: {what}{f'; waiting for that: {waiting}' if waiting else ''}"
        yield from self._nothing("Never begun", found.never_reached)
        yield from self._nothing("Never undone, though something would undo it", found.never_undone)
        yield ""
        yield "How long it can take from its start, without the time that it is parked"
        yield f"  {spoken(longest.completed_ms)} until it is COMPLETED, {spoken(longest.undone_ms)} until it is ABORTED"
        for number, more_ms in longest.each_retry:
            yield f"  each time that a signal has {self._one(number)} sent anew, up to {spoken(more_ms)} more"

    def json(self, found: Explored, longest: Longest, notes: Sequence[str]) -> str:
        """The same, so that two of them can be compared line by line. How many states there are is left out: it may
        differ from release to release."""
        body = {
            "steps": list(self._names),
            "notes": list(notes),
            "ends": [*found.ends, *(["PARKED"] if found.parks else [])],
            "undone": [
                {"step": row.steps, "what": row.what, "order": [[some._asdict() for some in at] for at in row.order]}
                for row in found.undone
            ],
            "parks": [{"step": one.steps, "what": one.what, "waiting": one.waiting} for one in found.parks],
            "never_reached": list(found.never_reached),
            "never_undone": list(found.never_undone),
            "longest_ms": {"completed_ms": longest.completed_ms, "undone_ms": longest.undone_ms},
            "each_retry": [{"step": number, "more_ms": more_ms} for number, more_ms in longest.each_retry],
        }  # fmt: skip
        return _by_rows(body)

    def _nothing(self, title: str, steps: tuple[int, ...]) -> Iterator[str]:
        if steps:
            yield ""
            yield title
            yield f"  {self._all(steps)}"

    def rows(self, found: Explored) -> Iterator[tuple[str, list[str], str]]:
        """What happens, and what is undone then: to which step, what, and what is undone, in order."""
        for steps, rows in groupby(found.undone, lambda row: row.steps):
            alike: dict[str, dict[str, None]] = {}
            for row in rows:
                alike.setdefault(self._order(row), {})[_SAID[row.what]] = None
            yield from ((self._any(steps), [*whats], order) for order, whats in alike.items())

    def parks(self, found: Explored) -> Iterator[tuple[str, str, str]]:
        """Where the saga can be parked: at which step, since what happens, and which steps wait for that."""
        for park in found.parks:
            yield self._any(park.steps), _SAID[park.what], self._all(park.waiting)

    def _table(self, found: Explored) -> Iterator[str]:
        for step, rows in groupby(self.rows(found), lambda row: row[0]):
            yield f"  {step}"
            yield from (f"    {', or '.join(whats)} -> {order}" for _, whats, order in rows)

    def _order(self, row: Undone) -> str:
        return ", then ".join(", ".join(self._some(some, row) for some in layer) for layer in row.order) or "nothing"

    def _some(self, some: Some, row: Undone) -> str:
        count = len(some.steps)
        if count == 1:
            return f"{self._one(some.steps[0])}{'' if some.least else '?'}"
        if some.steps == row.steps and row.what is What.FAILS:  # the one that has failed is not undone
            count -= 1
            named, whole = ("the others", "the others") if count > 1 else ("it", "the other")
        else:
            whole = self._all(some.steps)
            named = "them" if some.steps == row.steps else f"({whole})"
        if some.most == count and count in (some.least, 1):
            return f"{whole}{'' if some.least else '?'}"
        return f"{some.most if some.least == some.most else f'{some.least} to {some.most}'} of {named}"

    def _any(self, steps: tuple[int, ...]) -> str:
        return self._one(steps[0]) if len(steps) == 1 else f"any of {self._all(steps)}"

    def _all(self, steps: tuple[int, ...]) -> str:
        if len(steps) > _MOST_NAMES and steps == tuple(range(steps[0], steps[-1] + 1)):
            return f"{self._one(steps[0])} … {self._one(steps[-1])}"
        return ", ".join(map(self._one, steps))

    def _one(self, number: int) -> str:
        return f"{number} {self._names[number - 1]}"


def _by_rows(body: dict[str, Any]) -> str:
    """JSON with a line for each member, and for each item of a list of objects."""
    lines = []
    for name, value in body.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(f"    {json.dumps(row)}" for row in value)
            lines.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}"

"""What can become of the sagas of a definition, tried within bounds: the failure table of a page."""

import threading
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from sagastream.core.definition import SagaDefinition
from sagastream.core.durations import spoken
from sagastream.core.sending import Published
from sagastream_bridge.definitions import begins, lasting
from sagastream_bridge.definitions.documents import CannotRead, Document
from sagastream_bridge.definitions.exploring import TooMany, explore
from sagastream_bridge.definitions.model import Model
from sagastream_bridge.definitions.telling import Teller

#: A page looks at so many states at most, and for so many seconds; `sagastream explore` goes on for longer.
_MOST_STATES: Final = 20_000
_MOST_S: Final = 3
#: So many tables are kept.
_KEPT: Final = 100


class Table(Struct, frozen=True, kw_only=True):
    """What an exploration has found, in words."""

    trouble: str | None = None  # why there is none
    ends: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[str], str]] = ()  # to which step, what happens, what is undone then
    parks: Sequence[tuple[str, str, str]] = ()  # at which step, since what happens, what waits for that
    notes: Sequence[str] = ()
    longest: str = ""


class Explorer:
    """Explores one definition at a time, and keeps what it has found: a version never changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], Table] = {}

    def table(self, definition: SagaDefinition, published: Published) -> Table:
        key = (definition.sha256, repr(_sorted(published)))
        with self._lock:
            if key not in self._kept:
                if len(self._kept) >= _KEPT:
                    self._kept.clear()
                self._kept[key] = _explored(definition, published)
            return self._kept[key]


def _sorted(published: Published) -> list[tuple[str, list[tuple[str, str | None]]]]:
    return sorted((service, sorted(commands.items())) for service, commands in published.items())


def _explored(definition: SagaDefinition, published: Published) -> Table:
    document = Document(f"{definition.name} version {definition.version}", definition.body)
    known: Mapping[str, Mapping[str, str | None]] | None = published or None
    try:
        begin, note = begins.begin_of(document, None)
        found = explore(begin, known, _MOST_STATES, _MOST_S)
        longest = lasting.longest(begin, Model(begin, known))
    except TooMany as error:
        return Table(trouble=f"{error}. On the command line there is more time: sagastream explore {definition.name}")
    except CannotRead as error:
        return Table(trouble=str(error))
    teller = Teller([step.shape.id or step.transaction for step in begin.steps])
    parked = ["PARKED"] if found.parks else []
    took = f"{spoken(longest.completed_ms)} until it is COMPLETED, {spoken(longest.undone_ms)} until it is ABORTED"
    return Table(
        ends=[*map(str, found.ends), *parked],
        rows=list(teller.rows(found)),
        parks=list(teller.parks(found)),
        notes=[] if note is None else [note],
        longest=took,
    )

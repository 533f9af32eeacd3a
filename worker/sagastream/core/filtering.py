"""Which sagas are looked for, and whether a saga is one of them. Pure.

A saga must match all parts of a filter. For parts that have an index (core/indexing.py), sagas need not be looked at
one by one.
"""

import re
from collections.abc import Mapping
from typing import Any, Final
from zlib import crc32

import msgspec
from msgspec import Struct

from sagastream.core.attributes import check_name, check_value
from sagastream.core.durations import MOST_MS, exact
from sagastream.core.indexing import PARKED, of_status
from sagastream.core.members import checked_object
from sagastream.core.messages import ID_PATTERN, SERVICE_PATTERN
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.errors import MalformedMessage

#: To which statuses a search may be limited. A parked saga is also COMPENSATING or PENDING.
STATUSES: Final = (*map(str, SagaStatus), "PARKED")
_INDEXED: Final = ("COMPENSATING", "ABORTED", "PARKED")
_TEXTS: Final = ("status", "definition", "at", "parked", "error")
_AGES: Final = ("older_ms", "newer_ms")
#: The longest text, in characters.
_MOST_CHARS: Final = 512
_PLACE: Final = re.compile(f"(?:{SERVICE_PATTERN.pattern}/)?{ID_PATTERN.pattern}")


class Filter(Struct, frozen=True, kw_only=True):
    """What a saga must match. None, or no attributes: that does not matter."""

    status: str | None = None  # one of STATUSES
    definition: str | None = None  # the name of its definition
    where: tuple[tuple[str, str], ...] = ()  # its attributes: names and values, numbers as texts
    at: str | None = None  # the command that it waits for, or SERVICE/COMMAND
    parked: str | None = None  # the command at which it is parked, or SERVICE/COMMAND
    older_ms: int | None = None  # it began at least this long ago
    newer_ms: int | None = None  # it began at most this long ago
    error: str | None = None  # a part of an error of it, or of why it is undone or parked; case does not count

    @property
    def index_names(self) -> list[str]:
        """The indexes in which such a saga is: it must be in all of them."""
        names = [f"{name}={value}" for name, value in self.where]
        if self.definition is not None:
            names.append(f"definition={self.definition}")
        if self.parked is not None:
            names.append(f"parked={self.parked}" if "/" in self.parked else PARKED)
        elif self.status in _INDEXED:
            names.append(of_status(self.status))
        return names

    @property
    def is_by_index(self) -> bool:
        """Whether the members of one index, or all sagas, are the answer. Only an age may be left to compare: indexes
        are sorted by that."""
        said = [self.definition, *self.where, self.parked, self.status, self.at, self.error]
        told = [one for one in said if one is not None]
        if len(told) > 1:
            return False
        named = self.index_names
        return not told or (bool(named) and not (self.parked is not None and "/" not in self.parked))

    @property
    def is_of_live(self) -> bool:
        """Whether only live sagas can match."""
        return self.at is not None or self.parked is not None or self.status in ("PENDING", "COMPENSATING", "PARKED")

    def body(self) -> dict[str, Any]:
        """As JSON values; `parse_filter` reads them."""
        said = {name: value for name in (*_TEXTS, *_AGES) if (value := getattr(self, name)) is not None}
        return said | ({"where": dict(self.where)} if self.where else {})

    @property
    def mark(self) -> str:
        """A short mark by which it is told from other filters, as far as that matters for people's mistakes."""
        return f"{crc32(msgspec.json.encode(self.body(), order='sorted')):08x}"


def parse_filter(body: Any, where: str) -> Filter:
    """A filter out of JSON values. Raises MalformedMessage, which says what is wrong.

    `where`: the name of the object."""
    checked_object(body, where, {*_TEXTS, *_AGES, "where"})
    for name in _TEXTS:
        if name in body and not (isinstance(body[name], str) and 0 < len(body[name]) <= _MOST_CHARS):
            raise MalformedMessage(f"{where}: {name} must be a text of 1 to {_MOST_CHARS} characters")
    for name in _AGES:
        if name in body and not (type(body[name]) is int and 0 <= body[name] <= MOST_MS):
            raise MalformedMessage(f"{where}: {name} must be a whole number of milliseconds from 0")
    if body.get("status", STATUSES[0]) not in STATUSES:
        raise MalformedMessage(f"{where}: status must be one of {', '.join(STATUSES)}, not {body['status']!a:.40}")
    for name in ("at", "parked"):
        if name in body and not _PLACE.fullmatch(body[name]):
            raise MalformedMessage(f"{where}: {name} must be COMMAND or SERVICE/COMMAND, not {body[name]!a:.80}")
    if (older := body.get("older_ms", 0)) > (newer := body.get("newer_ms", MOST_MS)):
        ages = f"older than {exact(older)} and newer than {exact(newer)}"
        raise MalformedMessage(f"{where}: {ages} together find nothing: no saga began then")
    given = {name: body[name] for name in (*_TEXTS, *_AGES) if name in body}
    return Filter(where=_attributes(body.get("where", {}), f"{where}: where"), **given)


def _attributes(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise MalformedMessage(f"{where} must be an object of names and values")
    for name, one in value.items():
        check_name(name, where)
        check_value(one, f"{where}: {name}")
    return tuple((name, str(one)) for name, one in value.items())


def matches(state: SagaState, wanted: Filter, now_ms: int) -> bool:
    """Whether a saga is one of those that are looked for."""
    return (
        (wanted.status is None or _has_status(state, wanted.status))
        and (wanted.definition is None or (state.definition is not None and state.definition.name == wanted.definition))
        and (not wanted.where or _has_attributes(state, wanted))
        and (wanted.older_ms is None or state.begun_ms <= now_ms - wanted.older_ms)
        and (wanted.newer_ms is None or state.begun_ms >= now_ms - wanted.newer_ms)
        and (wanted.at is None or _is_at(state, wanted.at, parked=False))
        and (wanted.parked is None or _is_at(state, wanted.parked, parked=True))
        and (wanted.error is None or _has_error(state, wanted.error.casefold()))
    )


def _has_status(state: SagaState, status: str) -> bool:
    return state.parked is not None if status == "PARKED" else state.status == status


def _has_attributes(state: SagaState, wanted: Filter) -> bool:
    there = {name: str(value) for name, value in (state.attributes or {}).items()}
    return all(there.get(name) == value for name, value in wanted.where)


def _is_at(state: SagaState, where: str, *, parked: bool) -> bool:
    """Whether one of its steps waits there."""
    waiting = (step for step in state.steps if (step.parked is not None if parked else step.is_active))
    return any(is_at(step, where) for step in waiting)


def is_at(step: Step, where: str) -> bool:
    """Whether this is the command that a step waits for or is parked at. `where`: its name, or SERVICE/COMMAND."""
    return where in (step.command, f"{step.definition.service}/{step.command}")


def _has_error(state: SagaState, part: str) -> bool:
    texts = [state.reason, state.cancelling]
    for step in state.steps:
        texts.append(step.parked)
        texts += (error.decode() for error in (step.error, step.compensation_error) if error is not None)
    return any(part in text.casefold() for text in texts if text is not None)

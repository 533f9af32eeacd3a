"""Whether a saga_begin asks for the saga that has its id already and, if not, what differs.

Values are compared as JSON values: the order of keys does not count, and 1.0 is the same number as 1.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson
from msgspec.structs import replace

from sagastream.core.messages import HARD, Begin
from sagastream.core.saga import SagaState
from sagastream.core.steps import (
    AS_PUBLISHED,
    OPTIONS,
    PERSISTENT_ATTEMPTS,
    USUAL_ATTEMPTS,
    StepDefinition,
    default_attempts,
)

#: The longest value, and the longest path to a member, that a text quotes, in characters.
_QUOTED_CHARS: Final = 80
#: A key that is written into a path as it is.
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: In place of a value: there is none.
_NOTHING: Final = object()


def conflict(state: SagaState, begin: Begin) -> str | None:
    """The text with which a saga_begin is refused because another saga has its id: it says what differs first. None: it
    is the same saga."""
    found = _difference(state, begin)
    if found is None:
        return None
    what, there, here = found
    began = f"without {what}" if there is _NOTHING else f"with {_quoted(there)} as {what}"
    has = "none" if here is _NOTHING else _quoted(here)
    return f"another saga has the id {state.saga_id}: it began {began}; this request has {has}"


#: What differs (the member, and where it stands), its value in the saga, its value in the request.
_Difference = tuple[str, Any, Any]


def _difference(state: SagaState, begin: Begin) -> _Difference | None:
    if len(state.steps) != len(begin.steps):
        return "number of steps", len(state.steps), len(begin.steps)
    for number, (step, definition) in enumerate(zip(state.steps, begin.steps, strict=True), 1):
        if step.definition != definition:  # most are equal byte for byte
            found = _between(_members(step.definition), _members(_with_its_defaults(definition, step.definition)), "")
            if found is not None:
                what, there, here = found
                return f"{what} of step {number}", there, here
    deadline_ms = None if state.deadline_ms is None else state.deadline_ms - state.begun_ms
    there = _of_saga(deadline_ms, state.hard_deadline, state.format)
    return _between(there, _of_saga(begin.deadline_ms, begin.hard_deadline, begin.format), "")


def _with_its_defaults(asked: StepDefinition, began: StepDefinition) -> StepDefinition:
    """The step that is asked for, with the default numbers that the saga began with where it has other defaults: nobody
    may have said either. So a begin that is sent again after an update of its client is the same."""
    defaults = {
        "attempts": {default_attempts(began.kind), USUAL_ATTEMPTS},
        "compensation_attempts": {PERSISTENT_ATTEMPTS, USUAL_ATTEMPTS},
    }
    return replace(
        asked,
        **{
            name: getattr(began, name)
            for name, numbers in defaults.items()
            if {getattr(began, name), getattr(asked, name)} <= numbers
        },
    )


def _of_saga(deadline_ms: int | None, hard: bool, number: int) -> dict[str, Any]:
    members: dict[str, Any] = {} if deadline_ms is None else {"deadline_ms": deadline_ms}
    return members | ({"deadline": HARD} if hard else {}) | {"format": number}


def _members(definition: StepDefinition) -> dict[str, Any]:
    """All members of a step, with their values; options too that have their defaults."""
    members = {"transaction": definition.transaction, "service": definition.service}
    members |= {"params": orjson.loads(definition.params)}
    members |= {name: getattr(definition, name) for name in OPTIONS}
    if definition.compensation == AS_PUBLISHED:
        del members["compensation"]
    return members


def _between(there: Any, here: Any, path: str) -> _Difference | None:
    """The first difference between two values. `path`: where they stand."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = _pairs(there, here, path)
    elif isinstance(there, list) and isinstance(here, list):
        pairs = _pairs(dict(enumerate(there)), dict(enumerate(here)), path)
    elif there is _NOTHING or here is _NOTHING or isinstance(there, bool) or isinstance(here, bool):
        return None if there is here else (path, there, here)
    else:
        return None if there == here else (path, there, here)
    return next((found for one, other, where in pairs if (found := _between(one, other, where)) is not None), None)


def _pairs(there: Mapping[Any, Any], here: Mapping[Any, Any], path: str) -> Iterator[tuple[Any, Any, str]]:
    for key in [*there, *(key for key in here if key not in there)]:
        yield there.get(key, _NOTHING), here.get(key, _NOTHING), _below(path, key)


def _below(path: str, key: str | int) -> str:
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return _short(f"{path}[{json.dumps(key)}]")


def _quoted(value: Any) -> str:
    return _short(json.dumps(value))


def _short(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}…"

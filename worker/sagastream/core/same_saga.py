"""Whether a saga_begin asks for the saga that has its id already and, if not, what differs.

Values are compared as JSON values: the order of keys does not count, and 1.0 is the same number as 1.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress, repeat
from operator import ne
from typing import Any, Final, NamedTuple

import orjson
from msgspec.structs import replace

from sagastream.core.attributes import Attributes
from sagastream.core.durations import day
from sagastream.core.erasure import erasure
from sagastream.core.messages import HARD, Begin
from sagastream.core.saga import SagaState
from sagastream.core.sealed_values import keys_of, surely_differ
from sagastream.core.steps import (
    AS_PUBLISHED,
    OPTIONS,
    PERSISTENT_ATTEMPTS,
    PLAIN_SHAPE,
    USUAL_ATTEMPTS,
    StepDefinition,
    default_attempts,
)
from sagastream.core.strict_json import collector_paused, encode, outside_strings, value_of

#: The longest value, and the longest path to a member, that a text quotes, in characters.
_QUOTED_CHARS: Final = 80
#: In longer params, only the outermost member that differs is found: a comparison value by value takes too long.
_SEARCHED_BYTES: Final = 1 << 16
#: What of a number stands outside of strings, but not what of `true` and `false`.
_OF_NUMBERS: Final = b"0123456789.eE+-"
#: A key that is written into a path as it is.
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: In place of a value: there is none.
_NOTHING: Final = object()


def conflict(state: SagaState, begin: Begin, unopened: Mapping[str, str] | None = None) -> str | None:
    """The text with which a saga_begin is refused because another saga has its id, or may have it: it says what differs
    first; or because the saga was erased. None: it is the same saga.

    `unopened`: why sealed params of the two cannot be opened, by where they stand (`1/params`), if somebody has tried.
    """
    if (erased := erasure(state)) is not None:
        by = "" if erased.actor is None else f" by {erased.actor}"
        return f"saga {state.saga_id} was erased on {day(erased.at_ms)}{by}: it cannot be begun again"
    found, sealed = _difference(state, begin)
    if found is None:
        return _of_sealed(state.saga_id, sealed, unopened) if sealed else None
    what, there, here = found
    began = f"without {what}" if there is _NOTHING else f"with {_quoted(there)} as {what}"
    has = "none" if here is _NOTHING else _quoted(here)
    return f"another saga has the id {state.saga_id}: it began {began}; this request has {has}"


#: What differs (the member, and where it stands), its value in the saga, its value in the request.
_Difference = tuple[str, Any, Any]
#: The same, with the keys that lead there, the innermost first.
_Found = tuple[list[str | int], Any, Any]


class _Sealed(NamedTuple):
    """Values that differ, in a saga and in a request, and are sealed in one of them at least."""

    what: str  # of the saga: the params of a step, or the input
    source: str  # where they stand
    there: Sequence[str]  # the ids of the keys in the saga
    here: Sequence[str]
    in_parts: bool = False  # which parts of them are sealed may be what differs


def _difference(state: SagaState, begin: Begin) -> tuple[_Difference | None, list[_Sealed]]:
    """The first difference besides the sealed values that differ; and those."""
    sealed: list[_Sealed] = []
    if not _is_another_version(state, begin):
        if (found := _between_all_steps(state, begin, sealed)) is not None:
            return found, sealed
        starts_ms = max(state.begun_ms, state.start_ms or 0)
        deadline_ms = None if state.deadline_ms is None else state.deadline_ms - starts_ms
        of_saga = _of_saga(deadline_ms, state.hard_deadline, state.format, state.attributes)
        asked = _of_saga(begin.deadline_ms, begin.hard_deadline, begin.format, begin.attributes)
        if (differ := _between(of_saga, asked)) is not None:
            return _told(differ), sealed
    differ = _between(_told_once(state), _told_once(begin)) or _between_inputs(state.input, begin.input, sealed)
    return None if differ is None else _told(differ), sealed


def _is_another_version(state: SagaState, begin: Begin) -> bool:
    """Whether the steps of the two were made from two versions of one definition. A saga keeps the version with which
    it began. So to begin it again when there is a newer one is the same begin, if its input is the same; what the
    versions say of steps, deadlines and attributes does not count."""
    there, here = state.definition, begin.definition
    return there is not None and here is not None and there.name == here.name and there.version != here.version


def _between_all_steps(state: SagaState, begin: Begin, sealed: list[_Sealed]) -> _Difference | None:
    """The first difference between the steps of the two. Adds sealed params that differ to `sealed`."""
    if len(state.steps) != len(begin.steps):
        return "number of steps", len(state.steps), len(begin.steps)
    for number, (step, definition) in enumerate(zip(state.steps, begin.steps, strict=True), 1):
        if step.definition != definition:  # most are equal byte for byte
            there, here = step.definition, _with_its_defaults(definition, step.definition)
            if there.params != here.params and (keys := [keys_of(one.params) for one in (there, here)]) != [[], []]:
                sealed.append(_Sealed(f"params of step {number}", f"{number}/params", keys[0], keys[1]))
                here = replace(here, params=there.params)
            if (found := _between_steps(there, here)) is not None:
                what, one, other = _told(found)
                return f"{what} of step {number}", one, other
    return None


def _between_inputs(there: bytes | None, here: bytes | None, sealed: list[_Sealed]) -> _Found | None:
    """The first difference between two inputs. Adds them to `sealed` if they differ and are sealed."""
    if there == here:
        return None
    if there is None or here is None:
        return ["input"], _NOTHING if there is None else value_of(there), _NOTHING if here is None else value_of(here)
    if (keys := [keys_of(one) for one in (there, here)]) != [[], []]:
        sealed.append(_Sealed("inputs", "input", keys[0], keys[1], in_parts=not surely_differ(there, here)))
        return None
    with collector_paused():
        one, other = value_of(there), value_of(here)
        if max(len(there), len(here)) <= _SEARCHED_BYTES:
            return _between({"input": one}, {"input": other})
        return _between_large(one, other, "input")


def _of_sealed(saga_id: str, sealed: Sequence[_Sealed], unopened: Mapping[str, str] | None) -> str:
    """The text if nothing but sealed values differs. They are not told: it may be read by those who have no key. Values
    that surely differ come first."""
    another, unknown = f"another saga has the id {saga_id}", f"cannot tell whether this is saga {saga_id} as it began"
    if unopened is not None:
        why = {one.what: unopened.get(one.source) for one in sealed}
        if (opened := next((what for what in why if why[what] is None), None)) is not None:
            return f"{another}: {opened} differ; they are sealed, so they are not told here"
        what = sealed[0].what
        cannot = f"{what} cannot be opened: {why[what]}"
        return f"{unknown}: {cannot}; begin it again with the key that sealed them (SAGASTREAM_KEYS)"
    if (alike := next((one for one in sealed if one.there == one.here and not one.in_parts), None)) is not None:
        # If a codec seals the same value to other bytes, only who has the key can tell.
        tell = f"with the key, sagastream show {saga_id} and sagastream quarantine show tell them"
        return f"{another}: {alike.what} differ, {_as_sealed(alike.there)} both times; {tell}"
    one = sealed[0]
    if one.there == one.here:
        # What is sealed by itself goes by the references of the steps: two versions of a definition may differ in that.
        differ = f"its {one.what} and those of this request are {_as_sealed(one.there)} in different parts"
    else:
        differ = f"its {one.what} are {_as_sealed(one.there)}, those of this request are {_as_sealed(one.here)}"
    return f"{unknown}: {differ}; a client that has the keys can tell"


def with_params_of(state: SagaState, begin: Begin, opened: SagaState, asked: Begin) -> Begin:
    """The request with the params and the input of the saga wherever both are the same value: `opened` and `asked` are
    the two with their sealed values opened, as far as they could be."""
    still_sealed: list[_Sealed] = []
    if _between_inputs(opened.input, asked.input, still_sealed) is None and not still_sealed:
        begin = replace(begin, input=state.input)
    if len(state.steps) != len(begin.steps):
        return begin
    steps = []
    for step, definition, there, here in zip(state.steps, begin.steps, opened.steps, asked.steps, strict=True):
        one = replace(definition, params=there.definition.params)
        other = replace(definition, params=here.params)
        is_same = one.params == other.params or _between_steps(one, other) is None
        steps.append(replace(definition, params=step.definition.params) if is_same else definition)
    return replace(begin, steps=tuple(steps))


def _between_steps(there: StepDefinition, here: StepDefinition) -> _Found | None:
    if max(len(there.params), len(here.params)) <= _SEARCHED_BYTES:
        return _between(_members(there), _members(here))
    with collector_paused():
        one, other = _members(there), _members(here)
        # The options first, which cost nothing; then the params.
        params, here_params = one.pop("params", _NOTHING), other.pop("params", _NOTHING)
        return _between(one, other) or _between_large(params, here_params, "params")


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


def _of_saga(deadline_ms: int | None, hard: bool, number: int, attributes: Attributes | None) -> dict[str, Any]:
    members: dict[str, Any] = {} if deadline_ms is None else {"deadline_ms": deadline_ms}
    if attributes is not None:
        members["attributes"] = attributes
    return members | ({"deadline": HARD} if hard else {}) | {"format": number}


def _told_once(one: SagaState | Begin) -> dict[str, Any]:
    """What counts whatever the version of its definition, besides its input: what only a graph has besides its steps. A
    definition is told by its name, and by its steps."""
    members: dict[str, Any] = {} if one.definition is None else {"definition": one.definition.name}
    return members if one.start_ms is None else members | {"start_at_ms": one.start_ms}


def _members(definition: StepDefinition) -> dict[str, Any]:
    """All members of a step, with their values; options too that have their defaults."""
    if not definition.shape.sends:
        return dict(value_of(encode(definition.body())))
    members = {"transaction": definition.transaction, "service": definition.service}
    members |= {"params": value_of(definition.params)}
    members |= {name: getattr(definition, name) for name in OPTIONS}
    if definition.compensation == AS_PUBLISHED:
        del members["compensation"]
    return members if definition.shape is PLAIN_SHAPE else members | value_of(encode(definition.shape.body()))


def _between(there: Any, here: Any) -> _Found | None:
    """The first difference between two values."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = _pairs(there, here)
    elif isinstance(there, list) and isinstance(here, list):
        pairs = _pairs(dict(enumerate(there)), dict(enumerate(here)))
    elif there is _NOTHING or here is _NOTHING or isinstance(there, bool) or isinstance(here, bool):
        return None if there is here else ([], there, here)
    else:
        return None if there == here else ([], there, here)
    for one, other, key in pairs:
        if (found := _between(one, other)) is not None:
            found[0].append(key)
            return found
    return None


def _between_large(there: Any, here: Any, what: str) -> _Found | None:
    """The outermost member that differs, in two large values."""
    # To Python, true is 1. So what is equal must also have true and false in the same places.
    if there == here and _without_numbers(there) == _without_numbers(here):
        return None
    if isinstance(there, dict) and isinstance(here, dict):
        one, other = there, here
    elif isinstance(there, list) and isinstance(here, list):
        one, other = dict(enumerate(there)), dict(enumerate(here))
    else:
        return [what], there, here
    keys = _keys(one, other)
    differ = map(ne, map(one.get, keys, repeat(_NOTHING)), map(other.get, keys, repeat(_NOTHING)))
    key = next(compress(keys, differ), None)
    if key is None:
        return [what], there, here
    return [key, what], one.get(key, _NOTHING), other.get(key, _NOTHING)


def _as_sealed(keys: Sequence[str]) -> str:
    return f"sealed with key {', '.join(keys)}" if keys else "not sealed"


def _without_numbers(value: Any) -> bytes:
    return outside_strings(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).translate(None, _OF_NUMBERS)


def _pairs(there: Mapping[Any, Any], here: Mapping[Any, Any]) -> Iterator[tuple[Any, Any, str | int]]:
    for key in _keys(there, here):
        yield there.get(key, _NOTHING), here.get(key, _NOTHING), key


def _keys(there: Mapping[Any, Any], here: Mapping[Any, Any]) -> list[Any]:
    return [*there, *(key for key in here if key not in there)]


def _told(found: _Found) -> _Difference:
    keys, there, here = found
    path = ""
    for key in reversed(keys):
        path = _below(path, key)
    return path, there, here


def _below(path: str, key: str | int) -> str:
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return _short(f"{path}[{json.dumps(key)}]")


def _quoted(value: Any) -> str:
    text = ""
    for part in json.JSONEncoder().iterencode(value):  # it is written only as far as it is told
        text += part
        if len(text) > _QUOTED_CHARS:
            break
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}…"

"""Times, payloads and attributes as people read them."""

import json
from collections.abc import Sequence
from typing import Any, Final

import orjson

from sagastream.console import printable
from sagastream.core.durations import spoken
from sagastream.core.saga import SagaState
from sagastream.core.sealed_values import replaced, sealed_value
from sagastream.store.columns import iso

#: The longest payload that is shown, in characters.
_MOST_CHARS: Final = 300


def when(ms: int, now_ms: int) -> str:
    return f"{iso(ms)}  ({apart(ms, now_ms)})"


def until(ms: int, now_ms: int) -> str:
    return f"{clock(ms, now_ms)}, {apart(ms, now_ms)}"


def apart(ms: int, now_ms: int) -> str:
    """How far a time is from now."""
    return f"in {spoken(ms - now_ms)}" if ms > now_ms else f"{spoken(now_ms - ms)} ago"


def clock(ms: int, now_ms: int) -> str:
    """A time in UTC, which Z says; with its date unless that is today."""
    date, _, time = iso(ms).partition("T")
    return time if date == iso(now_ms).partition("T")[0] else iso(ms)


def payload(data: bytes) -> str:
    """JSON as one line of text; of what is still sealed in it, the key."""
    return shown(orjson.loads(data))


def shown(value: Any) -> str:
    """The same of a JSON value."""
    sealed = sealed_value(value)
    if sealed is not None:
        return f"sealed with key {printable(sealed.key)}"
    return as_json(replaced(value, lambda one: f"sealed with key {one.key}"))


def as_json(value: Any) -> str:
    text = printable(json.dumps(value))  # which leaves DEL as it is
    return text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS] + "…"


def attributes(state: SagaState, first: Sequence[str] = ()) -> str:
    """The attributes of a saga on one line: those `first`, then the others."""
    there = state.attributes or {}
    names = [name for name in first if name in there]
    names += [name for name in there if name not in names]
    return ", ".join(f"{name}={printable(str(there[name]))}" for name in names)

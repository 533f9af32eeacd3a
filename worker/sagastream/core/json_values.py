"""Values of Python's other types as JSON has them, and types whose values JSON cannot hold.

What is usual and loses nothing is written so: the members of a dataclass, the ISO form of a time, the digits of a
Decimal, what a model says its own JSON is. For the rest (sets, bytes, objects) there is no one usual way.
"""

import dataclasses
import inspect
import types
import typing
from collections import abc
from decimal import Decimal
from enum import Enum
from functools import partial
from numbers import Integral, Rational, Real
from typing import Any, Final, Literal

import msgspec

from sagastream.errors import MalformedMessage

#: Classes of values that JSON holds, with all that is derived from them. So it does those that have an ISO form, and
#: UUIDs, which orjson knows. The core imports no module that has a clock, or chance, in it.
_WRITABLE: Final = (type(None), str, Real, abc.Mapping, list, tuple, Enum, msgspec.Struct, Decimal)
_ISO: Final = "isoformat"
#: What promises a value and is none yet.
_PROMISES: Final = (abc.Awaitable, abc.AsyncIterable, abc.Iterator)


def plain(value: Any, levels: int) -> Any:
    """The same value in the types of JSON. Raises MalformedMessage with the type that JSON cannot hold, and with its
    place; or if it is nested deeper than so many levels."""
    return _plain(value, "", levels)


def _plain(value: Any, at: str, levels: int) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value, at, levels)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Real):
        return _number(value, at)
    if isinstance(value, Decimal):
        return _digits(value, at)
    if hasattr(type(value), _ISO) and not isinstance(value, type):
        return value.isoformat()
    if _is_uuid(type(value)):
        return str(value)
    if levels == 0:
        raise MalformedMessage("nested too deep, or it holds itself")
    if isinstance(value, list | tuple):
        return [_plain(item, f"{at}[{index}]", levels - 1) for index, item in enumerate(value)]
    if isinstance(value, msgspec.Struct) or hasattr(type(value), "model_dump_json"):
        return _plain(_own_json(value, at), at, levels)
    members = _members(value, at)
    return {_key(key, at): _plain(item, f"{at}.{key}", levels - 1) for key, item in members.items()}


def _number(value: Real, at: str) -> int | float:
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Rational) or (float(value) != value and value == value):  # noqa: PLR0124 - unless it is NaN
        raise _unwritable(value, at)
    return float(value)


def _digits(value: Decimal, at: str) -> str:
    if not value.is_finite():
        raise MalformedMessage(f"not JSON: {_place(at)} is {value}")
    return str(value)


def _is_uuid(kind: type) -> bool:
    return any(base.__module__ == "uuid" for base in kind.__mro__)


def _own_json(model: Any, at: str) -> Any:
    """What a Struct of msgspec or a model of pydantic says its JSON is."""
    try:
        return msgspec.to_builtins(model) if isinstance(model, msgspec.Struct) else model.model_dump(mode="json")
    except Exception as error:  # noqa: BLE001 - a model runs code of its user
        raise MalformedMessage(f"not JSON: {_place(at)} is a {_named(type(model))}: {error}") from None


def _members(value: Any, at: str) -> abc.Mapping[Any, Any]:
    """The members of what becomes an object."""
    kind = type(value)
    if isinstance(value, abc.Mapping):
        return value
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__}
    raise _unwritable(value, at)


def _key(key: Any, at: str) -> str:
    if isinstance(key, Enum):
        return _key(key.value, at)
    if isinstance(key, str):
        return str(key)
    raise MalformedMessage(f"not JSON: {_place(at)} has a key that is not a text but a {_named(type(key))}")


def _unwritable(value: object, at: str) -> MalformedMessage:
    return MalformedMessage(f"not JSON: {_place(at)} is a {_named(type(value))}")


def _place(at: str) -> str:
    return at.removeprefix(".")[:200] or "it"


def _named(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# --- types


def unwritable_result(function: Any) -> str | None:
    """The name of a type that JSON cannot hold, and that a function says it returns; None: it says nothing of the kind,
    or that cannot be found out."""
    function = function.func if isinstance(function, partial) else function
    if not inspect.isroutine(function):
        function = type(function).__call__
    if hasattr(function, "__wrapped__"):
        return None  # what wraps it may return something else
    try:
        said = inspect.get_annotations(function)["return"]
        names = getattr(function, "__globals__", {})
        said = typing.get_type_hints(types.SimpleNamespace(__annotations__={"return": said}), names)["return"]
        return _unwritable_type(said, set())
    except Exception:  # noqa: BLE001 - names may be known to type checkers only
        return None


def _unwritable_type(said: Any, seen: set[Any]) -> str | None:
    said = getattr(said, "__supertype__", said)  # of a NewType
    said = getattr(said, "__value__", said)  # of an alias
    origin, arguments = typing.get_origin(said), typing.get_args(said)
    if origin is Literal or said is Any:
        return None
    if origin in (typing.Union, types.UnionType):
        return _first_unwritable(arguments, seen)
    kind = origin or said
    if not isinstance(kind, type) or kind in seen:
        return None
    if issubclass(kind, abc.Mapping) and len(arguments) == 2:
        return _unwritable_key(arguments[0]) or _unwritable_type(arguments[1], seen)
    if issubclass(kind, _PROMISES) or not _may_be_written(kind):
        return _named(kind)
    if arguments:
        return _first_unwritable(arguments, seen)
    if dataclasses.is_dataclass(kind) or issubclass(kind, dict | tuple):  # a TypedDict is a dict, a NamedTuple a tuple
        return _first_unwritable(typing.get_type_hints(kind).values(), {*seen, kind})
    return None


def _first_unwritable(kinds: abc.Iterable[Any], seen: set[Any]) -> str | None:
    return next((name for kind in kinds if (name := _unwritable_type(kind, seen)) is not None), None)


def _unwritable_key(kind: Any) -> str | None:
    if not isinstance(kind, type) or kind is Any or kind is object or issubclass(kind, str | Enum):
        return None
    return f"a dict with keys of type {_named(kind)}"


def _may_be_written(kind: type) -> bool:
    """Whether JSON can hold a value of this class, or of one that is derived from it."""
    if issubclass(kind, Rational) and not issubclass(kind, Integral):
        return False
    if kind is object or issubclass(kind, _WRITABLE) or dataclasses.is_dataclass(kind):
        return True
    if any(hasattr(kind, name) for name in ("model_dump_json", "__attrs_attrs__", _ISO)) or _is_uuid(kind):
        return True
    if inspect.isabstract(kind) or getattr(kind, "_is_protocol", False) or kind is abc.Sequence:
        return True
    return any(_may_be_written(derived) for derived in kind.__subclasses__())

"""How templates are written: JSON in which some objects stand for something else. Pure.

    {"$ref": "/steps/reserve/result/id"}       what stands there
    {"$ref": "/input/note", "default": null}   the same, or else this
    {"$concat": ["order ", {"$ref": …}]}       a text, joined
    {"$literal": …}                            this, whatever it holds

No other name may begin with `$`, so a misspelled one is not taken for data. Only a sealed value is data as it is.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from msgspec import Struct

from sagastream.core.pointers import below, kind_of, shown, tokens_of
from sagastream.core.sealed_values import sealed_value
from sagastream.core.strict_json import encode, value_of

#: The roots of references, besides the results of steps.
INPUT: Final = "/input"
SAGA_ID: Final = "/saga/id"
FAILURE: Final = "/failure"
OF_ITEM: Final = ("/item", "/index")
_OF_FAILURE: Final = ("step", "error", "reason")


class Problem(NamedTuple):
    """What is wrong in a template or a condition."""

    path: str  # a JSON Pointer into it: where
    text: str

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.text}" if self.path else self.text


class Reference(Struct, frozen=True, gc=False):
    """A `$ref`."""

    pointer: str
    root: str  # its beginning, which names a source
    step: str | None  # if the source is the result of a step: its id or number, as it is named
    tokens: tuple[str, ...]  # the rest: where in the source
    default: bytes | None  # JSON

    def begin(self, count: int) -> str:
        """The part of the pointer that names the source and so many of the tokens, for a text."""
        parts = self.pointer.split("/")
        return shown("/".join(parts[: len(parts) - len(self.tokens) + count]))


class Concat(Struct, frozen=True):
    """A `$concat`."""

    items: list[Any]  # each a text, a number or one of these operators


class Literal(Struct, frozen=True, gc=False):
    """A `$literal`."""

    data: bytes  # JSON


Operator = Reference | Concat | Literal


def operator(value: dict[str, Any], path: str) -> Operator | Problem | None:
    """What an object stands for, or what is wrong with it. None: it is data. `path`: where it stands."""
    name = next((name for name in value if name.startswith("$")), None)
    if name is None or sealed_value(value) is not None:
        return None
    if (read := _READERS.get(name)) is None:
        hint = 'if this is data, write {"$literal": …} around it'
        return Problem(below(path, name), f"{name[:64]} is not known, only {', '.join(_READERS)} are; {hint}")
    allowed = {"$ref", "default"} if name == "$ref" else {name}
    if (other := next((member for member in value if member not in allowed), None)) is not None:
        return Problem(below(path, other), f"an object with {name} has no member {other[:64]}")
    return read(value[name], value, path)


def operators(value: Any, path: str = "") -> Iterator[tuple[str, Operator | Problem]]:
    """All that stands for something else in a template or a condition, and all that is wrong there, each with its path;
    in the order in which it stands there."""
    if isinstance(value, dict):
        one = operator(value, path)
        if one is not None:
            yield path, one
        if isinstance(one, Concat):
            yield from operators(one.items, below(path, "$concat"))
        elif one is None:
            for name, member in value.items():
                yield from operators(member, below(path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from operators(item, below(path, index))


def joinable(value: Any) -> bool:
    """Whether this can be joined to a text."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _reference(pointer: Any, value: dict[str, Any], path: str) -> Reference | Problem:
    at = below(path, "$ref")
    if not isinstance(pointer, str):
        return Problem(at, f"a reference is a JSON Pointer such as /input/total, and this is {kind_of(pointer)}")
    try:
        tokens = tokens_of(pointer)
    except ValueError as error:
        return Problem(at, f"{shown(pointer)} is not a JSON Pointer: {error}")
    if (count := _root_of(tokens)) is None:
        name = f"{shown(pointer)}: there is no such root" if tokens else "the pointer is empty"
        roots = "/input, /saga/id, /steps/<id or number>/result, /failure/step, /failure/error and /failure/reason"
        return Problem(at, f"{name}; the roots are {roots}")
    default = encode(value["default"]) if "default" in value else None
    root = "/".join(("", *tokens[:count]))
    return Reference(pointer, root, tokens[1] if tokens[0] == "steps" else None, tokens[count:], default)


def _root_of(tokens: tuple[str, ...]) -> int | None:
    """How many of the tokens of a pointer name its source; None: they name none."""
    match tokens:
        case ("input" | "item", *_) | ("index",) | ("failure",):
            return 1
        case ("failure", member, *_) if member in _OF_FAILURE:
            return 1
        case ("saga", "id"):
            return 2
        case ("steps", _, "result", *_):
            return 3
    return None


def _concat(items: Any, _: dict[str, Any], path: str) -> Concat | Problem:
    at = below(path, "$concat")
    if not isinstance(items, list):
        return Problem(at, f"$concat joins a list, and this is {kind_of(items)}")
    for index, item in enumerate(items):
        one = operator(item, below(at, index)) if isinstance(item, dict) else None
        value = item
        if isinstance(one, Literal):
            value = value_of(one.data)
        elif isinstance(one, Reference) and one.default is not None:
            value = value_of(one.default)
        elif one is not None:
            continue
        if not joinable(value):
            return Problem(below(at, index), f"{kind_of(value)} cannot be joined to a text")
    return Concat(items)


def _literal(value: Any, _: dict[str, Any], __: str) -> Literal:
    return Literal(encode(value))


_READERS: Final[dict[str, Callable[[Any, dict[str, Any], str], Operator | Problem]]] = {
    "$ref": _reference,
    "$concat": _concat,
    "$literal": _literal,
}

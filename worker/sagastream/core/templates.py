"""How templates are written: JSON in which some objects stand for something else. Pure.

    {"$ref": "/steps/reserve/result/id"}       what stands there
    {"$ref": "/input/note", "default": null}   the same, or else this
    {"$concat": ["order ", {"$ref": …}]}       a text, joined
    {"$literal": …}                            this, whatever it holds

No other name may begin with `$`, so a misspelled one is not taken for data. Only a sealed value is data as it is.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import orjson
from msgspec import Struct

from sagastream.core.pointers import below, kind_of, named, shown, tokens_of
from sagastream.core.sealed_values import sealed_value
from sagastream.core.strict_json import encode, value_of
from sagastream.errors import CannotBuild

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


def operator(value: dict[str, Any]) -> Operator | Problem | None:
    """What an object stands for, or what is wrong with it, by a path in this object. None: it is data."""
    name = next((name for name in value if name.startswith("$")), None)
    if name is None or sealed_value(value) is not None:
        return None
    if (read := _READERS.get(name)) is None:
        hint = 'if this is data, write {"$literal": …} around it'
        return Problem(below("", name), f"{named(name)} is not known, only {', '.join(_READERS)} are; {hint}")
    allowed = {"$ref", "default"} if name == "$ref" else {name}
    if (other := next((member for member in value if member not in allowed), None)) is not None:
        return Problem(below("", other), f"an object with {name} has no member {named(other)}")
    return read(value)


def operators(value: Any, path: str = "") -> Iterator[tuple[str, Operator | Problem]]:
    """All that stands for something else in a template or a condition, and all that is wrong there, each with its path;
    in the order in which it stands there. `path`: where the value stands."""
    members: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, list):
        members = enumerate(value)
    elif isinstance(value, dict):
        one = operator(value)
        if one is None:
            members = value.items()
        else:
            yield path, Problem(path + one.path, one.text) if isinstance(one, Problem) else one
        if isinstance(one, Concat):
            path, members = f"{path}/$concat", enumerate(one.items)
    for name, member in members:
        if isinstance(member, dict | list):
            yield from operators(member, below(path, name))


def as_text(value: Any) -> str:
    """A text, or a number as JSON writes it."""
    return value if isinstance(value, str) else encode(value).decode()


def joinable(value: Any) -> bool:
    """Whether this can be joined to a text."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _reference(value: dict[str, Any]) -> Reference | Problem:
    pointer = value["$ref"]
    if not isinstance(pointer, str):
        return Problem("/$ref", f"a reference is a JSON Pointer such as /input/total, and this is {kind_of(pointer)}")
    try:
        tokens = tokens_of(pointer)
    except ValueError as error:
        return Problem("/$ref", f"{shown(pointer)} is not a JSON Pointer: {error}")
    if (count := _root_of(tokens)) is None:
        name = f"{shown(pointer)}: there is no such root" if tokens else "the pointer is empty"
        roots = "/input, /saga/id, /steps/<id or number>/result, /failure/step, /failure/error and /failure/reason"
        return Problem("/$ref", f"{name}; the roots are {roots}")
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


def _concat(value: dict[str, Any]) -> Concat | Problem:
    items = value["$concat"]
    if not isinstance(items, list):
        return Problem("/$concat", f"$concat joins a list, and this is {kind_of(items)}")
    for index, item in enumerate(items):
        # One that stands in another is looked at when its turn comes. Else each would be read once a level.
        if isinstance(item, dict) and "$concat" in item:
            continue
        one = operator(item) if isinstance(item, dict) else None
        known = item
        if isinstance(one, Literal):
            known = value_of(one.data)
        elif isinstance(one, Reference) and one.default is not None:
            known = value_of(one.default)
        elif one is not None:
            continue
        if not joinable(known):
            return Problem(f"/$concat/{index}", f"{kind_of(known)} cannot be joined to a text")
    return Concat(items)


def _literal(value: dict[str, Any]) -> Literal:
    return Literal(encode(value["$literal"]))


_READERS: Final[dict[str, Callable[[dict[str, Any]], Operator | Problem]]] = {
    "$ref": _reference,
    "$concat": _concat,
    "$literal": _literal,
}


# --- compiling


class Joined(Struct, frozen=True, gc=False):
    """A compiled `$concat`."""

    parts: tuple[str | Reference, ...]


#: Stands in a written template where something is built. In JSON, this byte never stands as it is.
_GAP_BYTE: Final = b"\0"
_GAP: Final = orjson.Fragment(_GAP_BYTE)
#: A compiled template: texts, and what is built between them.
Template = tuple[bytes | Reference | Joined, ...]


def compiled(template: Any, path: str = "") -> Template:
    """A template, compiled. Raises CannotBuild if something is wrong with it. `path`: where it stands."""
    gaps: list[Reference | Joined | Problem] = []
    texts = encode(_with_gaps(template, gaps)).split(_GAP_BYTE)
    pieces: list[bytes | Reference | Joined] = [texts[0]] if texts[0] else []
    for gap, text in zip(gaps, texts[1:], strict=True):
        if isinstance(gap, Problem):
            found = (one for _, one in operators(template, path))
            raise CannotBuild(str(next(one for one in found if isinstance(one, Problem))))
        pieces += [gap, text] if text else [gap]
    return tuple(pieces)


def _with_gaps(value: Any, gaps: list[Reference | Joined | Problem]) -> Any:
    """A template, ready to be written, with gaps in place of what is built. What belongs into them is added to `gaps`,
    in the order in which they will be written."""
    if isinstance(value, list):
        return [_with_gaps(item, gaps) if isinstance(item, dict | list) else item for item in value]
    if not isinstance(value, dict):
        return value
    one = operator(value)
    if one is None:
        return {
            name: _with_gaps(member, gaps) if isinstance(member, dict | list) else member
            for name, member in value.items()
        }
    if isinstance(one, Literal):
        return orjson.Fragment(one.data)
    gaps.append(_joined(one) if isinstance(one, Concat) else one)
    return _GAP


def _joined(concat: Concat) -> Joined | Problem:
    """A `$concat` with those that stand in it."""
    parts: list[str | Reference] = []
    return _add_parts(concat, parts) or Joined(tuple(parts))


def _add_parts(concat: Concat, parts: list[str | Reference]) -> Problem | None:
    """Add what a `$concat` joins. Returns what is wrong in it."""
    for item in concat.items:
        one = operator(item) if isinstance(item, dict) else None
        if isinstance(one, Problem):
            return one
        if isinstance(one, Concat):
            if (problem := _add_parts(one, parts)) is not None:
                return problem
        elif isinstance(one, Reference):
            parts.append(one)
        else:
            parts.append(as_text(item if one is None else value_of(one.data)))
    return None

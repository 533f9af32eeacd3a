"""What the steps of a saga are given: templates, with what their references find in the saga's data. Pure.

A template is compiled into the pieces of the text that it builds. What a reference finds is put between them as it is,
and nobody looks into it again: so data never becomes a reference.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final

import orjson
from msgspec import Struct

from sagastream.core.pointers import below, follow, kind_of, shown, why_nothing
from sagastream.core.sealed_values import sealed_value
from sagastream.core.strict_json import MAX_PAYLOAD_BYTES, check_payload, encode, value_of
from sagastream.core.templates import (
    FAILURE,
    INPUT,
    OF_ITEM,
    SAGA_ID,
    Concat,
    Literal,
    Problem,
    Reference,
    joinable,
    operator,
    operators,
)
from sagastream.errors import CannotBuild, MalformedMessage

#: The largest text that is built, in bytes: it becomes the params of a command, with other members beside them.
MAX_BUILT_BYTES: Final = MAX_PAYLOAD_BYTES
#: Templates of up to this many bytes are compiled once: the steps of a program are alike, and their data is elsewhere.
CACHED_BYTES: Final = 2048
#: In place of a value: there is none.
_NOTHING: Final = object()


class Failure(Struct, frozen=True, kw_only=True):
    """Why a saga is undone."""

    step: str | int | None  # that failed: its id or number; None: none did, the saga was cancelled
    error: bytes | None = None  # what its service said, JSON; None: it said nothing
    reason: str

    def encoded(self) -> bytes:
        """As JSON. Each member is always there, so that no reference to it needs a default."""
        error = None if self.error is None else orjson.Fragment(self.error)
        return encode({"step": self.step, "error": error, "reason": self.reason})


class Sources(Struct, frozen=True, kw_only=True):
    """What references may find, of one saga at one moment. Each source is parsed once, when it is first needed."""

    saga_id: str
    input: bytes  # JSON
    result_of: Callable[[str], bytes | None]  # id or number of a step -> its result, JSON; None: it has none
    failure: Failure | None = None  # only for compensation_params
    parsed: dict[str, Any] = {}  # by root, filled when needed; nobody changes a value in it


class Known(Enum):
    """What is known, before the saga runs, of a step that a reference names."""

    ANCESTOR = "ancestor"  # it is done before
    MAY_BE_BYPASSED = "may be bypassed"  # it is done before, or has no result because it was bypassed
    OTHER = "other"  # it need not be done before
    ITSELF = "itself"  # the reference is its own


class Roots(Struct, frozen=True, kw_only=True):
    """What the references of one step may name; to check them before the saga runs."""

    steps: Mapping[str, Known]  # each step of the saga, by id and by number
    failure: bool = False  # whether /failure may be named
    own: bool = False  # whether the step's own result may be named
    item: bool = False  # whether /item and /index may be named


class Joined(Struct, frozen=True, gc=False):
    """A compiled `$concat`."""

    parts: tuple[str | Reference, ...]


#: A compiled template: texts, and what is built between them.
Template = tuple[bytes | Reference | Joined, ...]


def has_references(value: Any) -> bool:
    """Whether anything in a value must be built. Otherwise, it builds itself."""
    return next(operators(value), None) is not None


def names(template: Any) -> set[str]:
    """The steps that the references in a template or a condition name, each by id or by number, as it is named."""
    return {one.step for _, one in operators(template) if isinstance(one, Reference) and one.step is not None}


def problems(template: Any, roots: Roots) -> Iterator[Problem]:
    """What is wrong in a template, as far as that shows before the saga runs."""
    for path, one in operators(template):
        if isinstance(one, Problem):
            yield one
        elif isinstance(one, Reference) and (text := why_not(one, roots)) is not None:
            yield Problem(below(path, "$ref"), text)


def why_not(reference: Reference, roots: Roots, *, needs_default: bool = True) -> str | None:
    """Why a step may not have this reference; None: it may. `needs_default`: if it might find nothing."""
    pointer, step = shown(reference.pointer), reference.step
    if reference.root == FAILURE and not roots.failure:
        return f"{pointer}: only compensation_params may name the failure"
    if reference.root in OF_ITEM and not roots.item:
        return f"{pointer}: only a step with each has an item and an index"
    if step is None:
        return None
    known = roots.steps.get(step)
    if known is None:
        return f"{pointer}: there is no step {shown(step)}"
    if known is Known.ITSELF and not roots.own:
        return f"{pointer}: a step has no result before it is done"
    if known is Known.OTHER:
        return f"{pointer}: step {step} may not be done by then; name it in after"
    if known is Known.MAY_BE_BYPASSED and reference.default is None and needs_default:
        return f"{pointer}: step {step} may be bypassed; say a default"
    return None


# --- building


def build(template: bytes, sources: Sources) -> bytes:
    """A template with what its references find. The same arguments give the same bytes.

    Raises CannotBuild: a reference finds nothing and has no default, leads into a sealed value, or finds what cannot be
    joined to a text; what is built is more than a command can hold; or the template has a problem.
    """
    return written(_cached(template) if len(template) <= CACHED_BYTES else compiled(value_of(template)), sources)


def written(template: Template, sources: Sources) -> bytes:
    """The same, of a compiled template. It adds up sizes before it joins anything: a small template may name a large
    value a thousand times."""
    texts, size = [], 0
    for piece in template:
        if isinstance(piece, bytes):
            text = piece
        elif isinstance(piece, Reference):
            text = _text_of(piece, sources)
        else:
            text = _joined(piece, sources)
        size += len(text)
        if size > MAX_BUILT_BYTES:
            raise _too_large(piece)
        texts.append(text)
    built = b"".join(texts)
    try:
        check_payload(built)
    except MalformedMessage as error:
        raise CannotBuild(f"what is built is refused: {error}") from None
    return built


def found(reference: Reference, sources: Sources) -> Any:
    """The value that a reference finds, or else its default; nobody may change it. Raises CannotBuild."""
    value = _found(reference, sources)
    return value_of(_default(reference, sources)) if value is _NOTHING else value


def finds(reference: Reference, sources: Sources) -> bool:
    """Whether anything stands where a reference leads. Raises CannotBuild if it leads into a sealed value."""
    return _found(reference, sources) is not _NOTHING


def _text_of(reference: Reference, sources: Sources) -> bytes:
    """The same value as JSON."""
    if not reference.tokens:
        text = _source(reference, sources)
    else:
        text = None if (value := _found(reference, sources)) is _NOTHING else encode(value)
    return _default(reference, sources) if text is None else text


def _joined(joined: Joined, sources: Sources) -> bytes:
    texts, size = [], 0
    for part in joined.parts:
        text = part if isinstance(part, str) else _joinable_text(part, sources)
        size += len(text)
        if size > MAX_BUILT_BYTES:
            raise _too_large(part)
        texts.append(text)
    return encode("".join(texts))


def _joinable_text(reference: Reference, sources: Sources) -> str:
    value = found(reference, sources)
    if joinable(value):
        return _as_text(value)
    raise CannotBuild(f"{shown(reference.pointer)}: {kind_of(value)} cannot be joined to a text")


def _as_text(value: Any) -> str:
    """A text, or a number as JSON writes it."""
    return value if isinstance(value, str) else encode(value).decode()


def _too_large(piece: object) -> CannotBuild:
    where = f"{shown(piece.pointer)}: " if isinstance(piece, Reference) else ""
    return CannotBuild(f"{where}too large: what is built has more than {MAX_BUILT_BYTES} bytes")


# --- finding


def _found(reference: Reference, sources: Sources) -> Any:
    tokens = reference.tokens
    count, value = follow(_parsed(reference, sources), tokens)
    if count == len(tokens):
        return value
    if sealed_value(value) is not None:
        where = reference.begin(count)
        raise CannotBuild(f"{shown(reference.pointer)}: {where} is sealed, and can be copied only as a whole")
    return _NOTHING


def _parsed(reference: Reference, sources: Sources) -> Any:
    """The whole source of a reference."""
    value = sources.parsed.get(reference.root, _NOTHING)
    if value is _NOTHING and (text := _source(reference, sources)) is not None:
        value = sources.parsed[reference.root] = value_of(text)
    return value


def _source(reference: Reference, sources: Sources) -> bytes | None:
    if reference.step is not None:
        return sources.result_of(reference.step)
    if reference.root == INPUT:
        return sources.input
    if reference.root == SAGA_ID:
        return encode(sources.saga_id)
    return sources.failure.encoded() if reference.root == FAILURE and sources.failure is not None else None


def _default(reference: Reference, sources: Sources) -> bytes:
    """The default of a reference that finds nothing. Raises CannotBuild, which says why, if it has none."""
    if reference.default is not None:
        return reference.default
    source = _parsed(reference, sources)
    if source is not _NOTHING:
        count, value = follow(source, reference.tokens)
        why = f"{reference.begin(count).removeprefix('/')} {why_nothing(value, reference.tokens[count])}"
    elif reference.step is not None:
        why = f"step {shown(reference.step)} has no result"
    else:
        why = f"this saga has no {reference.root.removeprefix('/')} now"
    raise CannotBuild(f"{shown(reference.pointer)}: there is nothing there ({why})")


# --- compiling


@lru_cache(maxsize=512)
def _cached(template: bytes) -> Template:
    return compiled(value_of(template))


def compiled(template: Any, path: str = "") -> Template:
    """A template, compiled. Raises CannotBuild if something is wrong with it. `path`: where it stands."""
    merged: _Pieces = []
    texts: list[bytes] = []
    for piece in _pieces(template, path) or [encode(template)]:
        if isinstance(piece, bytes):
            texts.append(piece)
        else:
            merged += [b"".join(texts), piece] if texts else [piece]
            texts.clear()
    return (*merged, b"".join(texts)) if texts else tuple(merged)


_Pieces = list[bytes | Reference | Joined]


def _pieces(value: Any, path: str) -> _Pieces | None:
    """The pieces of a template; None: it builds itself."""
    if isinstance(value, list):
        items = [_pieces(item, below(path, index)) for index, item in enumerate(value)]
        return _container(b"[", value, [b""] * len(value), items, b"]")
    if not isinstance(value, dict):
        return None
    one = _operator(value, path)
    if one is None:
        members = [_pieces(member, below(path, name)) for name, member in value.items()]
        return _container(b"{", list(value.values()), [encode(name) + b":" for name in value], members, b"}")
    if isinstance(one, Reference):
        return [one]
    if isinstance(one, Literal):
        return [one.data]
    parts = _parts(one, path)
    texts = [part for part in parts if isinstance(part, str)]
    return [encode("".join(texts)) if len(texts) == len(parts) else Joined(tuple(parts))]


def _container(
    opening: bytes, values: list[Any], names: list[bytes], inner: list[_Pieces | None], closing: bytes
) -> _Pieces | None:
    """The pieces of an array or an object."""
    if all(one is None for one in inner):
        return None
    pieces: _Pieces = []
    for value, name, one in zip(values, names, inner, strict=True):
        pieces.append((b"," if pieces else opening) + name)
        pieces += [encode(value)] if one is None else one
    return [*pieces, closing]


def _parts(concat: Concat, path: str) -> list[str | Reference]:
    """What a `$concat` joins, with those that stand in it."""
    parts: list[str | Reference] = []
    for index, item in enumerate(concat.items):
        at = below(below(path, "$concat"), index)
        one = _operator(item, at) if isinstance(item, dict) else None
        if isinstance(one, Reference):
            parts.append(one)
        elif isinstance(one, Concat):
            parts += _parts(one, at)
        else:
            parts.append(_as_text(item if one is None else value_of(one.data)))
    return parts


def _operator(value: dict[str, Any], path: str) -> Reference | Concat | Literal | None:
    one = operator(value, path)
    if isinstance(one, Problem):
        raise CannotBuild(str(one))
    return one

"""What the steps of a saga are given: templates, with what their references find in the saga's data. Pure.

A template is compiled into the pieces of the text that it builds. What a reference finds is put between them as it is,
and nobody looks into it again: so data never becomes a reference.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final

import orjson
from msgspec import Struct

from sagastream.core.pointers import below, follow, kind_of, named, shown, why_nothing
from sagastream.core.sealed_values import sealed_value
from sagastream.core.strict_json import MAX_DEPTH, MAX_PAYLOAD_BYTES, check_payload, collector_paused, encode, value_of
from sagastream.core.templates import (
    FAILURE,
    INPUT,
    OF_ITEM,
    SAGA_ID,
    Joined,
    Operator,
    Problem,
    Reference,
    Template,
    as_text,
    compiled,
    joinable,
    operators,
)
from sagastream.errors import CannotBuild, MalformedMessage

#: The largest text that is built, in bytes: it becomes the params of a command, with other members beside them.
MAX_BUILT_BYTES: Final = MAX_PAYLOAD_BYTES
#: The most bytes that are built for all params of one saga, and the same again for all its compensation_params. The
#: saga's hash keeps them, and a worker may read it for each reply. So a saga stays about as large as its request,
#: however often its steps refer to a large value.
MAX_TOGETHER_BYTES: Final = 4 << 20
#: A JSON text that is no longer is neither too deep, since each level takes two bytes, nor holds too many values.
_SHALLOW_BYTES: Final = 2 * (MAX_DEPTH - 3)
#: The most operators in one template or condition. Each takes a worker some microseconds.
MAX_OPERATORS: Final = 1000
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
    MAY_BE_BYPASSED = "may be bypassed"  # it is before, and may have no result: bypassed, or a wait that went on
    PAUSE = "pause"  # it is before, and never has a result
    OTHER = "other"  # it need not be done before
    ITSELF = "itself"  # the reference is its own


class Roots(Struct, frozen=True, kw_only=True):
    """What the references of one step may name; to check them before the saga runs."""

    steps: Mapping[str, Known]  # each step of the saga, by id and by number
    failure: bool = False  # whether /failure may be named
    own: bool = False  # whether the step's own result may be named
    item: bool = False  # whether /item and /index may be named


def has_references(value: Any) -> bool:
    """Whether anything in a value must be built. Otherwise, it builds itself."""
    return next(operators(value), None) is not None


def names(template: Any) -> set[str]:
    """The steps that the references in a template or a condition name, each by id or by number, as it is named."""
    return {one.step for _, one in operators(template) if isinstance(one, Reference) and one.step is not None}


def problems(template: Any, roots: Roots) -> Iterator[Problem]:
    """What is wrong in a template, as far as that shows before the saga runs."""
    yield from wrong(operators(template), roots)


def wrong(found: Iterable[tuple[str, Operator | Problem]], roots: Roots) -> Iterator[Problem]:
    """The same, of the operators of one or more templates, each with its path."""
    for number, (path, one) in enumerate(found, 1):
        if number > MAX_OPERATORS:
            yield Problem(path, f"too many: at most {MAX_OPERATORS} objects with $ref, $concat or $literal")
            return
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
        return f"{pointer}: there is no step {named(step)}"
    if known is Known.ITSELF and not roots.own:
        return f"{pointer}: a step has no result before it is done"
    if known is Known.OTHER:
        return f"{pointer}: step {step} may not be done by then; name it in after"
    if reference.default is None and needs_default:
        if known is Known.PAUSE:
            return f"{pointer}: step {step} is a pause, which never has a result"
        if known is Known.MAY_BE_BYPASSED:
            return f"{pointer}: step {step} may be bypassed or go on without a result; say a default"
    return None


# --- building


def build(template: bytes, sources: Sources, room: int = MAX_TOGETHER_BYTES) -> bytes:
    """A template with what its references find. The same arguments give the same bytes. `room`: how many bytes may be
    built for the saga besides what was built for it before; of MAX_TOGETHER_BYTES.

    Raises CannotBuild: a reference finds nothing and has no default, leads into a sealed value, or finds what cannot be
    joined to a text; what is built is more than a command can hold, or than there is room for; or the template has a
    problem.
    """
    if len(template) <= CACHED_BYTES:
        return written(_cached(template), sources, room)
    with collector_paused():
        return written(compiled(value_of(template)), sources, room)


@lru_cache(maxsize=512)
def _cached(template: bytes) -> Template:
    return compiled(value_of(template))


def written(template: Template, sources: Sources, room: int = MAX_BUILT_BYTES) -> bytes:
    """The same, of a compiled template. It adds up sizes before it joins anything: a small template may name a large
    value a thousand times."""
    texts, size, most = [], 0, min(room, MAX_BUILT_BYTES)
    for piece in template:
        if isinstance(piece, bytes):
            text = piece
        elif isinstance(piece, Reference):
            text = _text_of(piece, sources)
        else:
            text = _joined(piece, sources)
        size += len(text)
        if size > most:
            raise _too_large(piece, most)
        texts.append(text)
    built = b"".join(texts)
    if size > _SHALLOW_BYTES:
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
        return as_text(value)
    raise CannotBuild(f"{shown(reference.pointer)}: {kind_of(value)} cannot be joined to a text")


def _too_large(piece: object, most: int = MAX_BUILT_BYTES) -> CannotBuild:
    where = f"{shown(piece.pointer)}: " if isinstance(piece, Reference) else ""
    if most == MAX_BUILT_BYTES:
        return CannotBuild(f"{where}too large: what is built has more than {MAX_BUILT_BYTES} bytes")
    together = f"what is built for all steps together has more than {MAX_TOGETHER_BYTES} bytes"
    return CannotBuild(f"{where}too large: {together}")


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

"""A document as the saga_begin that is made of it, to be explored."""

from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.definition import SagaDefinition, parse
from sagastream.core.expansion import expand, sketch
from sagastream.core.messages import Begin
from sagastream.core.pointers import tokens_of
from sagastream.errors import MalformedMessage
from sagastream_bridge.definitions.documents import CannotRead, Document

_SAGA_ID: Final = "explored"
#: How many items each list has if nobody says it.
_ITEMS: Final = 2


class ToExplore(NamedTuple):
    """What is explored, and what was taken for granted."""

    begin: Begin
    note: str | None  # how many items the lists of `each` have; None: there are none


def begin_of(document: Document, items: int | None) -> ToExplore:
    """The saga of a body; or one of a definition, in which each list of `each` has so many items. None: as many as in
    its example. Raises CannotRead."""
    try:
        if not document.is_definition:
            return ToExplore(parse_begin({"saga_id": _SAGA_ID} | document.body), None)
        definition = replace(parse(document.body), attributes={})  # no saga behaves differently because of them
        sketch(definition)
    except MalformedMessage as error:
        raise CannotRead(f"{document.where}: {error} (sagastream lint finds all that is wrong)") from None
    if items is None and definition.example is not None:
        data, have = definition.example, "has the items of the example"
    else:
        count = _ITEMS if items is None else items
        data, have = _input(definition, count), f"has {count} {'item' if count == 1 else 'items'}"
    note = f"each list that a step with `each` names {have}"
    try:
        begin = parse_begin(expand(definition, data) | {"saga_id": _SAGA_ID})
    except MalformedMessage as error:
        hint = f"{note}; say `example` in the definition, or --items"
        raise CannotRead(f"{document.where}: {error} ({hint})") from None
    has_each = any("each" in step for step in definition.steps)
    return ToExplore(begin, f"{note} (see --items)" if has_each else None)


def _input(definition: SagaDefinition, items: int) -> dict[str, Any]:
    """An input in which there are the lists that the steps name, and nothing else: no reference is followed."""
    root: dict[str, Any] = {}
    for step in definition.steps:
        if "each" in step:
            *outer, last = tokens_of(step["each"]["$ref"])
            value: Any = {"input": root}
            for token in outer:
                value = value.setdefault(token, {}) if isinstance(value, dict) else None
            if isinstance(value, dict):
                value[last] = [None] * items
    return root

"""A document as the saga_begin that is made of it, to be explored."""

from typing import Any, Final

from sagastream.core.definition import SagaDefinition, parse
from sagastream.core.expansion import expand
from sagastream.core.messages import Begin
from sagastream.core.parsing import parse_begin
from sagastream.core.pointers import tokens_of
from sagastream.errors import MalformedMessage
from sagastream_bridge.definitions.documents import CannotRead, Document

_SAGA_ID: Final = "explored"


def begin_of(document: Document, items: int) -> Begin:
    """The saga of a body; or one of a definition, in which each list of `each` has so many items. Raises CannotRead."""
    try:
        if not document.is_definition:
            return parse_begin({"saga_id": _SAGA_ID} | document.body)
        definition = parse(document.body)
        return parse_begin(expand(definition, _input(definition, items)) | {"saga_id": _SAGA_ID})
    except MalformedMessage as error:
        raise CannotRead(f"{document.where}: {error} (sagastream lint finds all that is wrong)") from None


def has_each(document: Document) -> bool:
    """Whether it depends on an input how many steps there are."""
    return document.is_definition and any("each" in step for step in document.steps)


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

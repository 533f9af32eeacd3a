"""Checks the input of sagas against the JSON Schema of their definition. Needs the package jsonschema."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import orjson

from sagastream.core.definition import SagaDefinition
from sagastream.core.pointers import below, shown
from sagastream.errors import MalformedMessage, PackageMissing

if TYPE_CHECKING:
    from jsonschema import ValidationError

#: The longest text of the package that is told, in characters: it quotes the value that it refuses.
_TOLD_CHARS: Final = 200
#: Of so many things that are wrong with an input it is told at most.
_MOST_TOLD: Final = 5
_MISSING: Final = "the package {}, which checks that, is missing: pip install jsonschema jsonschema-rs"
_TO_ITSELF: Final = "the definition: input: a $ref leads to itself"


def check_schema(definition: SagaDefinition) -> None:
    """Raises MalformedMessage if what a definition says of its input is not a JSON Schema, and PackageMissing if
    there is no package that can tell."""
    if definition.schema is not None:
        _validator_for(definition)


def check_input(definition: SagaDefinition, data: dict[str, Any], called: str) -> None:
    """Raises MalformedMessage if data are not as a definition says, with the place; and as `check_schema` does.
    `called`: the name of the data in the text."""
    if definition.schema is None:
        return
    validator = _validator_for(definition)
    from sagastream.client.bounded_schema import MAX_WORK, TooMuchWork, Unresolvable, errors

    try:
        found = errors(validator, data)
    except TooMuchWork:
        raise MalformedMessage(
            f"{called}: to check it by the schema of the definition takes more than {MAX_WORK:,} steps: "
            "send less, or make the schema simpler"
        ) from None
    except Unresolvable as unresolvable:
        raise MalformedMessage(f"the definition: input: nothing is at $ref {unresolvable.ref!s:.200}") from None
    except RecursionError:
        raise MalformedMessage(_TO_ITSELF) from None
    if found:
        raise MalformedMessage(_told(found, called))


def _told(found: "Sequence[ValidationError]", called: str) -> str:
    """What is wrong, each with its place unless that is the one before: whoever mends it mends all at once."""
    texts, last = [], None
    for error in found[:_MOST_TOLD]:
        where = called
        for part in error.absolute_path:
            where = below(where, part)
        texts.append(_in_a_line(error.message) if where == last else f"{shown(where)}: {_in_a_line(error.message)}")
        last = where
    more = len(found) - _MOST_TOLD
    return "; ".join(texts) + (f"; and {more} more" if more > 0 else "")


def _validator_for(definition: SagaDefinition) -> Any:
    try:
        return _validator(orjson.dumps(definition.schema))
    except ImportError as error:
        text = f"the definition {definition.name} says what its input must be"
        raise PackageMissing(f"{text}, and {_MISSING.format(error.name)}") from None


@lru_cache(maxsize=128)
def _validator(schema: bytes) -> Any:
    import jsonschema  # noqa: F401 - the error names it if it is missing
    import jsonschema_rs  # noqa: F401

    from sagastream.client.bounded_schema import SchemaError, validator_of

    try:
        return validator_of(orjson.loads(schema))
    except SchemaError as error:
        where = "input"
        for part in error.absolute_path:
            where = below(where, part)
        raise MalformedMessage(
            f"the definition: {shown(where)} is not a JSON Schema: {_in_a_line(error.message)}"
        ) from None
    except RecursionError:
        raise MalformedMessage(_TO_ITSELF) from None


def _in_a_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TOLD_CHARS else f"{line[:_TOLD_CHARS]}…"

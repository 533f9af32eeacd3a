"""Checks the input of sagas against the JSON Schema of their definition. Needs the package jsonschema."""

from functools import lru_cache
from typing import Any, Final

import orjson

from sagastream.core.definition import SagaDefinition
from sagastream.core.pointers import below, shown
from sagastream.errors import MalformedMessage, PackageMissing

#: The longest text of the package that is told, in characters: it quotes the value that it refuses.
_TOLD_CHARS: Final = 200
_MISSING: Final = "the package jsonschema, which checks that, is missing: pip install jsonschema"


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
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(validator.iter_errors(data))
    except Unresolvable as unresolvable:
        raise MalformedMessage(f"the definition: input: nothing is at $ref {unresolvable.ref!s:.200}") from None
    except RecursionError:
        raise MalformedMessage("the definition: input: a $ref leads to itself") from None
    if error is not None:
        where = called
        for part in error.absolute_path:
            where = below(where, part)
        raise MalformedMessage(f"{shown(where)}: {_in_a_line(error.message)}")


def _validator_for(definition: SagaDefinition) -> Any:
    try:
        return _validator(orjson.dumps(definition.schema))
    except ImportError:
        text = f"the definition {definition.name} says what its input must be"
        raise PackageMissing(f"{text}, and {_MISSING}") from None


@lru_cache(maxsize=128)
def _validator(schema: bytes) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    decoded = orjson.loads(schema)
    try:
        Draft202012Validator.check_schema(decoded)
    except SchemaError as error:
        where = "input"
        for part in error.absolute_path:
            where = below(where, part)
        raise MalformedMessage(
            f"the definition: {shown(where)} is not a JSON Schema: {_in_a_line(error.message)}"
        ) from None
    # Nothing is fetched from elsewhere, whatever a schema names.
    return Draft202012Validator(decoded, registry=Registry())


def _in_a_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TOLD_CHARS else f"{line[:_TOLD_CHARS]}…"

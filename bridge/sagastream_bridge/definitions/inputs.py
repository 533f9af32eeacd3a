"""The input of a definition, and of one saga: is the schema right, is an example, can what steps ask be made of it?"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sagastream.client.schema import check_input, check_schema
from sagastream.core import conditions, references
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.definition import parse
from sagastream.core.expansion import expand
from sagastream.core.messages import Begin, is_service
from sagastream.core.pointers import below
from sagastream.core.references import Sources
from sagastream.core.steps import StepKind
from sagastream.core.strict_json import value_of
from sagastream.core.templates import INPUT, SAGA_ID, Concat, Reference, compiled, operators
from sagastream.errors import CannotBuild, MalformedMessage
from sagastream_bridge.definitions.mending import named_pointer
from sagastream_bridge.definitions.problems import Code, Problem

#: The keywords of JSON Schema. Those that begin with `$` are left out.
_KEYWORDS: Final = frozenset(
    {
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "contains",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "default",
        "dependentRequired",
        "dependentSchemas",
        "deprecated",
        "description",
        "else",
        "enum",
        "examples",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "if",
        "items",
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "not",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "properties",
        "propertyNames",
        "readOnly",
        "required",
        "then",
        "title",
        "type",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
        "writeOnly",
    }
)


def in_example(body: Mapping[str, Any], *, begins: bool) -> Iterator[Problem]:
    """What is wrong in the schema, or in an example of an input. `begins`: whether a saga with such an input should
    begin, since nothing is wrong in the steps. Raises PackageMissing if the package is missing that can tell."""
    about = {name: body[name] for name in ("input", "example") if name in body}
    called = body.get("name")
    if not (isinstance(called, str) and is_service(called)):
        called = "any"
    try:
        definition = parse({"name": called, "version": 1, "steps": [{}]} | about)
    except MalformedMessage:
        return  # that is told elsewhere
    try:
        check_schema(definition)
    except MalformedMessage as error:
        text = str(error).removeprefix("the definition: ")
        yield Problem(Code.SCHEMA, named_pointer(body, text), text)
        return
    schema = definition.schema
    if isinstance(schema, dict) and schema and not any(name in _KEYWORDS or name.startswith("$") for name in schema):
        text = 'input: no keyword of JSON Schema is in it, so it allows any input; name members below "properties"'
        yield Problem(Code.SCHEMA, "/input", text)
    also = schema.get("examples") if isinstance(schema, dict) else None
    examples = {f"input/examples/{index}": one for index, one in enumerate(also)} if isinstance(also, list) else {}
    if definition.example is not None:
        examples["example"] = definition.example
    for called, example in examples.items():
        try:
            check_input(definition, example, called)
        except MalformedMessage as error:
            text = str(error).removeprefix("the definition: ")
            code = Code.EXAMPLE if text == str(error) else Code.SCHEMA
            yield Problem(code, named_pointer(body, text), text)
            continue
        try:
            if begins:
                parse_begin(expand(parse(body), example) | {"saga_id": "any"}, called=called)
        except MalformedMessage as error:
            yield Problem(Code.EXAMPLE, f"/{called}", str(error))


class _NotKnown(Exception):
    """It depends on the result of a step."""


def _result_of(_: str) -> None:
    raise _NotKnown


def in_saga(begin: Begin) -> Iterator[Problem]:
    """What cannot be made of the input of one saga, which is known before it begins. What a step asks that might be
    bypassed is only told if it will not be."""
    if begin.input is None:
        return
    sources = Sources(saga_id=begin.saga_id, input=begin.input, result_of=_result_of)
    for at, definition in enumerate(begin.steps):
        shape, step = definition.shape, f"/steps/{at}"
        try:
            if shape.when is not None and not conditions.holds(shape.when, sources):
                continue
        except CannotBuild as error:
            yield Problem(Code.CONDITION, f"{step}/when", f"when: {error}")
            continue
        except _NotKnown:
            continue
        if shape.has_references:
            for path, text in _unbuildable(definition.params, sources):
                yield Problem(Code.REFERENCE, f"{step}/params{path}", text)
        told = shape.compensation_params
        if told is not None and definition.compensation is not None and definition.kind is not StepKind.RETRIABLE:
            for path, text in _unbuildable(told, sources):
                parks = "so its undo would be parked, and no retry would help"
                yield Problem(Code.REFERENCE, f"{step}/compensation_params{path}", f"{text}, {parks}")


def _unbuildable(template: bytes, sources: Sources) -> Iterator[tuple[str, str]]:
    """What cannot be built of a template, whatever the results of steps are: where, and why."""
    found = list(operators(value_of(template)))
    of_input = [(path, one) for path, one in found if isinstance(one, Reference) and one.root in (INPUT, SAGA_ID)]
    texts = set()
    for path, one in of_input:
        if (text := _why_unbuilt(one, sources)) is not None:
            texts.add(text)
            yield below(path, "$ref"), text
    for path, concat in reversed(found):  # what stands in another one comes after it
        if isinstance(concat, Concat) and (text := _why_unbuilt(concat, sources)) not in (None, *texts):
            texts.add(str(text))
            yield below(path, "$concat"), str(text)
    if not texts and len(of_input) == sum(isinstance(one, Reference) for _, one in found):
        try:
            references.build(template, sources)
        except CannotBuild as error:
            yield "", str(error)


def _why_unbuilt(one: Reference | Concat, sources: Sources) -> str | None:
    """Why this cannot be built; None: it can, or that depends on a step."""
    pieces = (one,) if isinstance(one, Reference) else compiled({"$concat": one.items})
    try:
        references.written(pieces, sources)
    except _NotKnown:
        return None
    except CannotBuild as error:
        return str(error)
    return None

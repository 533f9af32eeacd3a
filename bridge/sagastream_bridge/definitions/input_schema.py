"""What steps take from the input of a definition, compared with what its schema says of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sagastream.core.pointers import INDEX, below, follow, named, tokens_of
from sagastream.core.steps import MAX_STEPS
from sagastream_bridge.definitions.outline import numbers_by_name
from sagastream_bridge.definitions.problems import Code, Problem

#: The members in which references stand.
_TEMPLATES: Final = ("params", "compensation_params", "when", "each")
#: In the place of a schema: nothing is said about such a value, or it cannot be told.
_ANYTHING: Final[Mapping[str, Any]] = {}
#: What may say more about members and items than `properties` and `items` do. Of such a schema it is not told what it
#: leaves out.
_MORE: Final = frozenset(
    {"$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties", "prefixItems"}
)
#: What may stand beside a `$ref` and says nothing about members.
_SAYS_NOTHING: Final = frozenset({"$ref", "default", "description", "title", "examples", "deprecated"})
#: Types of values in which nothing stands.
_PLAIN_TYPES: Final = ("string", "number", "integer", "boolean", "null")


def in_schema(body: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """References to what the schema of the input does not name, and lists of which there may be too many items."""
    schema = body.get("input")
    if not isinstance(schema, dict):
        return
    yield from _in_attributes(schema, body.get("attributes"))
    most = 0
    for at, step in enumerate(steps):
        for name in _TEMPLATES:
            for pointer, one in _references(step.get(name), f"/steps/{at}/{name}"):
                text = _why_not(schema, one["$ref"], step.get("each"))
                if text is None and "default" not in one and "when" not in step:
                    text = _too_few(schema, steps, one["$ref"], step.get("each"))
                if text is not None:
                    yield Problem(Code.INPUT, pointer, text)
        most += 1
        if "each" in step and isinstance(step["each"], dict):
            items = _found(schema, str(step["each"].get("$ref")))
            if isinstance(items, dict) and isinstance(kind := items.get("type"), str) and kind != "array":
                text = f"{step['each'].get('$ref')} is not a list, says the schema, but of type {kind}"
                yield Problem(Code.INPUT, f"/steps/{at}/each", text)
            count = items.get("maxItems") if isinstance(items, dict) else None
            most += count - 1 if isinstance(count, int) else 0
    if most > MAX_STEPS:
        text = f"a saga has at most {MAX_STEPS} steps, and with lists as long as the schema allows it would have {most}"
        yield Problem(Code.LIMIT, "/steps", text)


def _in_attributes(schema: Mapping[str, Any], attributes: Any) -> Iterator[Problem]:
    for pointer, one in _references(attributes, "/attributes"):
        if (text := _why_not(schema, one["$ref"], None)) is not None:
            yield Problem(Code.INPUT, pointer, text)


def _references(value: Any, pointer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All references in a template or a condition, with the pointers to what they name."""
    if isinstance(value, dict):
        if "$literal" in value:
            return
        if isinstance(value.get("$ref"), str):
            yield below(pointer, "$ref"), value
            return
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        yield from _references(inner, below(pointer, name))


def _why_not(schema: Mapping[str, Any], reference: str, each: Any) -> str | None:
    """Why a reference into the input finds nothing in any input that the schema describes; None: it may. `each`: what
    the step says of it."""
    found: Mapping[str, Any] | str = _ANYTHING
    if reference.startswith("/input/"):
        found = _found(schema, reference)
    elif reference.startswith("/item/") and isinstance(each, dict):
        item = _found(schema, f"{each.get('$ref')}/0")  # of all items, the schema says the same
        if not isinstance(item, str):
            found = _below(schema, item, reference)
    return found if isinstance(found, str) else None


def _too_few(schema: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], reference: str, each: Any) -> str | None:
    """Why a reference to one result of a step with `each` may find nothing: the list may be too short. None: it cannot,
    or nothing is said of that. `each`: what the step says that has the reference."""
    try:
        tokens = tokens_of(reference)
    except ValueError:
        return None  # that is told elsewhere
    if len(tokens) < 4 or tokens[0] != "steps" or not INDEX.fullmatch(tokens[3]):
        return None
    number = numbers_by_name(steps).get(int(tokens[1]) if tokens[1].isdecimal() else tokens[1], 0)
    of = steps[number - 1].get("each") if number else None
    if not isinstance(of, dict):
        return None
    items = _found(schema, str(of.get("$ref")))
    if isinstance(items, str) or items.get("type") != "array":
        return None
    least = items.get("minItems", 0)
    least = least if isinstance(least, int) else 0
    if each == of:
        least = max(least, 1)  # without an item, there is no step with this reference
    if int(tokens[3]) < least:
        return None
    few = f"{least} {'item' if least == 1 else 'items'}" if least else "no items"
    return f"{reference}: {of['$ref']} may have {few}, says the schema: say a default here, or minItems there"


def _found(schema: Mapping[str, Any], reference: str) -> Mapping[str, Any] | str:
    """What the schema says of the value that a reference into the input finds; or why there is no such value."""
    return _below(schema, schema, reference)


def _below(root: Mapping[str, Any], schema: Mapping[str, Any], reference: str) -> Mapping[str, Any] | str:
    """The same, by the schema of what the first name in the reference stands for. `root`: the whole schema."""
    try:
        first, *tokens = tokens_of(reference)
    except ValueError:
        return _ANYTHING  # that is told elsewhere
    at: Any = schema
    for depth, token in enumerate(tokens):
        at = _resolved(root, at)
        if not isinstance(at, dict) or _MORE & at.keys():
            return _ANYTHING
        place = "/".join([first, *tokens[:depth]])
        properties, kind = at.get("properties"), at.get("type")
        if kind in _PLAIN_TYPES:
            return f"{reference}: there is nothing below {place}, which is of type {kind}, says the schema"
        if kind == "array" and not INDEX.fullmatch(token):
            return f"{reference}: {place} is a list, says the schema, and {named(token)} is not an index"
        if kind == "array" or ("items" in at and INDEX.fullmatch(token) and properties is None):
            at = at.get("items", _ANYTHING)
        elif not isinstance(properties, dict) or token in properties:
            at = properties[token] if isinstance(properties, dict) else _ANYTHING
        elif at.get("additionalProperties") in (None, False):
            return f"{reference}: the schema of {place} has no property {token}, but {', '.join(map(str, properties))}"
        else:
            return _ANYTHING
    at = _resolved(root, at)
    return at if isinstance(at, dict) else _ANYTHING


def _resolved(root: Mapping[str, Any], schema: Any) -> Any:
    """The schema that a `$ref` names in the same schema, as those do that are made of classes."""
    seen: set[str] = set()
    while isinstance(schema, dict) and "$ref" in schema and schema.keys() <= _SAYS_NOTHING:
        name = schema["$ref"]
        if not isinstance(name, str) or not name.startswith("#/") or name in seen:
            return _ANYTHING
        seen.add(name)
        try:
            tokens = tokens_of(name[1:])
        except ValueError:
            return _ANYTHING
        count, schema = follow(root, tokens)
        if count < len(tokens):
            return _ANYTHING
    return schema

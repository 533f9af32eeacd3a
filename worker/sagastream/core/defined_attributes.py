"""The attributes that a definition gives its sagas: templates over the input, read strictly and filled in. Pure.

    {"customer": {"$ref": "/input/customer"}, "kind": "order", "shop": {"$ref": "/input/shop", "default": null}}

What is null is no attribute. So one that not every saga has is a reference with the default null.
"""

from collections.abc import Mapping
from typing import Any, Final

from sagastream.core.attributes import MAX_ATTRIBUTES, Attributes, check_name, check_value
from sagastream.core.pointers import below, shown
from sagastream.core.references import Roots, Sources, problems, written
from sagastream.core.strict_json import value_of
from sagastream.core.templates import INPUT, Concat, Literal, Reference, compiled, operator, operators
from sagastream.errors import CannotBuild, MalformedMessage

#: There is no step that an attribute may name.
_NO_STEPS: Final = Roots(steps={})


def parse_templates(value: Any, called: str) -> dict[str, Any]:
    """The member `attributes` of a definition. Raises MalformedMessage, which says what is wrong and where. `called`:
    the name of the definition in that text."""
    where = f"{called}: attributes"
    if not isinstance(value, dict):
        raise MalformedMessage(f"{where} must be an object of names and values")
    if len(value) > MAX_ATTRIBUTES:
        raise MalformedMessage(f"{where}: {len(value)} are too many, a saga may have {MAX_ATTRIBUTES}")
    for name, template in value.items():
        check_name(name, where)
        _check(template, f"{where}/{name}")
    return dict(value)


def _check(template: Any, where: str) -> None:
    for path, one in operators(template):
        if isinstance(one, Reference) and (one.root != INPUT or not one.tokens):
            at, what = shown(below(path, "$ref")), shown(one.pointer)
            raise MalformedMessage(
                f"{where}{at}: {what}: an attribute is made of members of the input, and nothing else"
            )
    for problem in problems(template, _NO_STEPS):
        raise MalformedMessage(f"{where}{shown(problem.path)}: {problem.text}")
    known: Any = template
    match operator(template) if isinstance(template, dict) else None:
        case Reference(default=bytes(default)):
            known = value_of(default)
        case Literal(data=data):
            known = value_of(data)
        case Reference() | Concat():
            known = None
    if known is not None:
        check_value(known, where)


def filled_in(templates: Mapping[str, Any], data: dict[str, Any]) -> Attributes:
    """The attributes of a saga with this input. Raises MalformedMessage, which says what is wrong and where."""
    sources = Sources(saga_id="", input=b"", result_of=lambda _: None, parsed={INPUT: data})
    found: Attributes = {}
    for name, template in templates.items():
        where = f"attributes/{name}"
        try:
            value = value_of(written(compiled(template), sources))
        except CannotBuild as error:
            raise MalformedMessage(f"{where}: {error}") from None
        if value is not None:
            check_value(value, where)
            found[name] = value
    return found

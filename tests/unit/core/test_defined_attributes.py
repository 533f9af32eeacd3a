"""The attributes that a definition gives its sagas: what they may be, and what they become with an input."""

from typing import Any

import pytest

from sagastream.core.defined_attributes import filled_in, parse_templates
from sagastream.core.definition import parse
from sagastream.core.expansion import expand, sketch
from sagastream.errors import MalformedMessage

CUSTOMER = {"$ref": "/input/customer"}
MADE_OF = "an attribute is made of members of the input, and nothing else"


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (["customer"], "the definition: attributes must be an object of names and values"),
        (
            {f"a{number}": 1 for number in range(9)},
            "the definition: attributes: 9 are too many, a saga may have 8",
        ),
        (
            {"status": 1},
            "the definition: attributes: status is taken, every saga is found by that: choose another name",
        ),
        ({"customer": True}, "the definition: attributes/customer must be a text or a whole number"),
        ({"customer": [CUSTOMER]}, "the definition: attributes/customer must be a text or a whole number"),
        ({"customer": {"id": CUSTOMER}}, "the definition: attributes/customer must be a text or a whole number"),
        ({"customer": {"$literal": 1.5}}, "the definition: attributes/customer must be a text or a whole number"),
        (
            {"customer": CUSTOMER | {"default": "x" * 65}},
            "the definition: attributes/customer has 65 bytes of UTF-8, at most 64 are allowed",
        ),
        (
            {"customer": {"$ref": "/steps/1/result"}},
            f"the definition: attributes/customer/$ref: /steps/1/result: {MADE_OF}",
        ),
        (
            {"customer": {"$concat": ["c", {"$ref": "/saga/id"}]}},
            f"the definition: attributes/customer/$concat/1/$ref: /saga/id: {MADE_OF}",
        ),
        (
            {"customer": {"$ref": "/input"}},
            f"the definition: attributes/customer/$ref: /input: {MADE_OF}",
        ),
        (
            {"customer": {"$concat": 5}},
            "the definition: attributes/customer/$concat: $concat joins a list, and this is a number",
        ),
    ],
)
def test_what_cannot_be_an_attribute_of_any_saga_is_refused(attributes: Any, text: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        parse_templates(attributes, "the definition")
    assert str(refused.value) == text


INPUT = {"customer": "c42", "lines": [{"sku": "abc"}], "total": 5, "note": None, "paid": False, "long": "x" * 65}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("order", "order"),
        (7, 7),
        (CUSTOMER, "c42"),
        ({"$ref": "/input/lines/0/sku"}, "abc"),
        ({"$ref": "/input/total"}, 5),
        ({"$ref": "/input/shop", "default": "web"}, "web"),
        ({"$concat": ["c", {"$ref": "/input/total"}]}, "c5"),
        ({"$literal": "$ref"}, "$ref"),
        ({"$ref": "/input/shop", "default": None}, None),
        ({"$ref": "/input/note"}, None),
        (None, None),
    ],
)
def test_an_attribute_is_made_of_the_input_and_null_is_none(template: Any, value: Any) -> None:
    templates = parse_templates({"it": template}, "the definition")
    assert filled_in(templates, INPUT) == ({} if value is None else {"it": value})


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ({"$ref": "/input/shop"}, "attributes/it: /input/shop: there is nothing there (input has no member shop)"),
        ({"$ref": "/input/lines"}, "attributes/it must be a text or a whole number"),
        ({"$ref": "/input/paid"}, "attributes/it must be a text or a whole number"),
        ({"$ref": "/input/long"}, "attributes/it has 65 bytes of UTF-8, at most 64 are allowed"),
        (
            {"$concat": ["c", {"$ref": "/input/lines"}]},
            "attributes/it: /input/lines: a list cannot be joined to a text",
        ),
    ],
)
def test_what_an_input_does_not_give_is_refused_with_its_place(template: Any, text: str) -> None:
    templates = parse_templates({"it": template}, "the definition")
    with pytest.raises(MalformedMessage) as refused:
        filled_in(templates, INPUT)
    assert str(refused.value) == text


def test_a_saga_of_a_definition_has_its_attributes() -> None:
    step = {"transaction": "Do", "service": "work"}
    definition = parse(
        {"name": "order", "version": 1, "steps": [step], "attributes": {"customer": CUSTOMER, "kind": "order"}}
    )
    sketch(definition)  # of which no input is known
    assert expand(definition, {"customer": 42})["attributes"] == {"customer": 42, "kind": "order"}
    without = parse({"name": "order", "version": 1, "steps": [step], "attributes": {"note": None}})
    assert "attributes" not in expand(without, {})

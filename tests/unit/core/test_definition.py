"""Definitions, as they are read: what is refused, and what their content is told by."""

import json
from hashlib import sha256
from typing import Any

import pytest

from sagastream.core.begin_parsing import MAX_VERSION
from sagastream.core.definition import canonical, parse, read
from sagastream.errors import MalformedMessage

STEP = {"transaction": "ReserveInventory", "service": "inventory"}
EACH = {"id": "pick", "each": {"$ref": "/input/items"}, "transaction": "Pick", "service": "stock"}


def a_definition(*steps: Any, **members: Any) -> dict[str, Any]:
    return {"name": "order", "version": 3, "steps": list(steps or [STEP])} | members


def refusal(body: Any) -> str:
    with pytest.raises(MalformedMessage) as error:
        parse(body)
    return str(error.value)


def test_a_definition_is_read_with_all_that_it_says() -> None:
    body = a_definition(
        {"id": "reserve"} | STEP,
        EACH,
        input={"type": "object", "required": ["items"]},
        example={"items": [{"sku": "a"}]},
        deadline_ms=60_000,
        deadline="hard",
    )
    definition = parse(body)
    assert (definition.name, definition.version) == ("order", 3)
    assert definition.schema == {"type": "object", "required": ["items"]}
    assert definition.example == {"items": [{"sku": "a"}]}
    assert definition.steps == ({"id": "reserve"} | STEP, EACH)
    assert definition.numbers == {"reserve": 1, "pick": 2}
    assert definition.of_each_saga == {"deadline_ms": 60_000, "deadline": "hard"}
    assert read(json.dumps(body, indent=2).encode()) == definition


def test_the_least_that_a_definition_says() -> None:
    definition = parse(a_definition())
    assert (definition.schema, definition.example, definition.of_each_saga) == (None, None, {})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ([], "the definition is not a JSON object"),
        (a_definition(inputs={}), "the definition has an unknown member 'inputs'; is it a misspelling of input?"),
        (a_definition(name="a:b"), "the definition: name must be 1 to 128 characters of A-Z a-z 0-9 . _ -"),
        ({"version": 3, "steps": [STEP]}, "the definition: name is missing"),
        (a_definition(version=0), f"the definition: version must be a whole number from 1 to {MAX_VERSION}"),
        (a_definition(version="3"), f"the definition: version must be a whole number from 1 to {MAX_VERSION}"),
        (a_definition(version=True), f"the definition: version must be a whole number from 1 to {MAX_VERSION}"),
        (
            {"name": "order", "steps": [STEP]},
            f"the definition: version must be a whole number from 1 to {MAX_VERSION}",
        ),
        (
            a_definition(input=[]),
            "the definition: input must be a JSON Schema, which is an object, true or false",
        ),
        (
            a_definition(example=[1]),
            "the definition: example must be an object: what a saga may have as its input",
        ),
        ({"name": "order", "version": 3}, "the definition: steps must be a list of 1 to 100"),
        (a_definition(steps=[]), "the definition: steps must be a list of 1 to 100"),
        (a_definition(steps=[STEP] * 101), "the definition: steps must be a list of 1 to 100"),
        (a_definition(STEP, "next"), "step 2 is not a JSON object"),
        (a_definition(use="shop"), "the definition: use, another definition in this one, is not known to this release"),
        (a_definition({"use": "shop"}), "step 1: use, another definition in this one, is not known to this release"),
        (
            a_definition(STEP, STEP | {"id": "a b"}),
            "step 2: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number",
        ),
        (
            a_definition(STEP | {"id": "pick.0"}),
            "step 1: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number",
        ),
        (
            a_definition(STEP | {"id": "17"}),
            "step 1: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number",
        ),
        (
            a_definition(STEP | {"id": 17}),
            "step 1: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number",
        ),
        (
            a_definition(STEP | {"id": "x\n"}),
            "step 1: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number",
        ),
        (a_definition(STEP | {"id": "a"}, EACH, EACH), "step 3: id is pick, which is the id of step 2, too"),
        (
            a_definition({name: member for name, member in EACH.items() if name != "id"}),
            "step 1: id is missing: a step with each needs one, from which its steps get theirs",
        ),
        (
            a_definition(EACH | {"kind": "pivot"}),
            "step 1: each cannot stand in a pivot: a saga has at most one",
        ),
        (
            a_definition(EACH | {"each": {"$ref": "/input/~2"}}),
            "step 1: each: /input/~2 is not a JSON Pointer: in a name, ~ is written ~0, and / is written ~1",
        ),
        (
            a_definition({"id": "ask", "each": EACH["each"], "wait": "approve", "timeout_ms": 1}),
            "step 1: each cannot stand beside wait: one signal would be for all of its steps",
        ),
        (
            a_definition({"id": "rest", "each": EACH["each"], "wait_ms": 1}),
            "step 1: each cannot stand beside wait_ms: its steps would all be the same pause",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(body: Any, text: str) -> None:
    assert refusal(body) == text


@pytest.mark.parametrize(
    "each",
    [
        None,
        [1, 2],
        "/input/items",
        {"$ref": "/steps/a/result"},
        {"$ref": "/input"},
        {"$ref": "/inputs/items"},
        {"$ref": 3},
        {"$ref": "/input/items", "default": None},
        {"$ref": "/input/items", "default": {}},
        {"$ref": "/input/items", "more": 1},
        {"$literal": [1]},
        {"$concat": ["/input/items"]},
    ],
)
def test_each_is_a_reference_into_the_input_and_nothing_else(each: Any) -> None:
    text = 'step 1: each must be a reference to a list in the input, such as {"$ref": "/input/items"}'
    assert refusal(a_definition(EACH | {"each": each})) == text


def test_text_that_is_not_strict_json_is_refused() -> None:
    for text in (b"", b"{", b'{"name": "a", "name": "b"}', b'{"name": NaN}'):
        with pytest.raises(MalformedMessage):
            read(text)


def test_the_content_is_told_by_its_canonical_form() -> None:
    first = '{"name":"order","version":3,"steps":[{"service":"s","transaction":"T","params":{"b":1,"a":"\\u00e9"}}]}'
    second = '{"version":3, "steps":[{"params":{"a":"é", "b":1}, "transaction":"T", "service":"s"}], "name":"order"}'
    one, other = read(first.encode()), read(second.encode())
    text = '{"name":"order","steps":[{"params":{"a":"é","b":1},"service":"s","transaction":"T"}],"version":3}'
    assert canonical(one.body) == canonical(other.body) == text.encode()
    assert one.sha256 == other.sha256 == sha256(text.encode()).hexdigest()
    assert one.by.body() == {"name": "order", "version": 3, "sha256": one.sha256}


@pytest.mark.parametrize(
    "change",
    [{"version": 4}, {"name": "orders"}, {"example": {}}, {"deadline_ms": 5}, {"steps": [STEP, STEP]}, {"input": True}],
)
def test_other_content_is_told_apart(change: dict[str, Any]) -> None:
    assert parse(a_definition() | change).sha256 != parse(a_definition()).sha256


def test_the_order_of_steps_is_content() -> None:
    other = STEP | {"transaction": "Other"}
    assert parse(a_definition(STEP, other)).sha256 != parse(a_definition(other, STEP)).sha256

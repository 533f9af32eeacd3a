"""Definitions, written in Python: the JSON that they build, what they refuse, and the sagas that they make."""

import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pydantic
import pytest

from sagastream import Definition, concat, default, exists, failure, index, item
from sagastream.client.begun_with import requested, takes_long
from sagastream.client.definition import deployable
from sagastream.core import definition as reading
from sagastream.core.strict_json import encode
from sagastream.errors import MalformedMessage, SettingsError

SCHEMA = {"type": "object", "properties": {"total": {"type": "integer", "minimum": 1}}, "required": ["total"]}


def ref(pointer: str, **more: Any) -> dict[str, Any]:
    return {"$ref": pointer} | more


def an_order(**options: Any) -> Definition:
    return Definition("order", version=3, **options)


def with_a_step(**options: Any) -> Definition:
    order = an_order(**options)
    order.step("Charge", service="till", params={"total": order.input.total})
    return order


def test_it_builds_the_json_of_a_definition_in_a_file() -> None:
    order = an_order(input=SCHEMA, deadline_ms=60_000, deadline="hard", example={"total": 5})
    reserve = order.step("ReserveInventory", service="inventory", params={"sku": order.input.sku}, id="reserve")
    pick = order.step(
        "Pick", service="stock", id="pick", each=order.input.items, params=[item.sku, index], when=item.count > 0
    )
    ask = order.wait("approve", timeout_ms=86_400_000, on_timeout="continue", after=reserve, id="ask")
    rest = order.pause(5_000, after=[pick, "ask"])
    order.step(
        "ChargePayment",
        service="payment",
        params={
            "amount": order.input.total,
            "of": reserve.result.reservation_id,
            "by": default(ask.result.by, "nobody"),
            "for": concat("order ", order.input.id),
        },
        after=[rest],
        compensation="Refund",
        compensation_params={"why": failure.reason},
        retry_on="topped_up",
        retry_within_ms=1_000,
        timeout_ms=10_000,
        attempts=3,
    )
    order.step("Ship", service="shipping", kind="pivot", compensation=None)
    assert order.parsed.body == {
        "name": "order",
        "version": 3,
        "input": SCHEMA,
        "deadline_ms": 60_000,
        "deadline": "hard",
        "example": {"total": 5},
        "steps": [
            {
                "transaction": "ReserveInventory",
                "service": "inventory",
                "params": {"sku": ref("/input/sku")},
                "id": "reserve",
            },
            {
                "transaction": "Pick",
                "service": "stock",
                "params": [ref("/item/sku"), ref("/index")],
                "id": "pick",
                "each": ref("/input/items"),
                "when": {"gt": [ref("/item/count"), 0]},
            },
            {
                "wait": "approve",
                "timeout_ms": 86_400_000,
                "on_timeout": "continue",
                "after": ["reserve"],
                "id": "ask",
            },
            {"wait_ms": 5_000, "after": ["pick", "ask"]},
            {
                "transaction": "ChargePayment",
                "service": "payment",
                "params": {
                    "amount": ref("/input/total"),
                    "of": ref("/steps/reserve/result/reservation_id"),
                    "by": ref("/steps/ask/result/by", default="nobody"),
                    "for": {"$concat": ["order ", ref("/input/id")]},
                },
                "after": [4],
                "compensation": "Refund",
                "compensation_params": {"why": ref("/failure/reason")},
                "retry_on": "topped_up",
                "retry_within_ms": 1_000,
                "timeout_ms": 10_000,
                "attempts": 3,
            },
            {"transaction": "Ship", "service": "shipping", "kind": "pivot", "compensation": None},
        ],
    }
    again = Definition.from_json(encode(order.parsed.body))
    assert again.parsed == order.parsed
    assert again.parsed.sha256 == order.parsed.sha256
    assert list(map(repr, again.steps)) == list(map(repr, order.steps))


def test_it_can_be_read() -> None:
    order = with_a_step()
    order.wait("approve", timeout_ms=1, id="ask")
    order.pause(1)
    assert repr(order) == "<definition order, version 3: 3 steps>"
    assert repr(with_a_step()) == "<definition order, version 3: 1 step>"
    assert list(map(repr, order.steps)) == ["<step 1, Charge>", "<step ask, wait for approve>", "<step 3, pause>"]
    assert [step.name for step in order.steps] == [1, "ask", 3]
    assert (order.name, order.version) == ("order", 3)


def refusal(wrong: Any) -> str:
    with pytest.raises(MalformedMessage) as error:
        wrong()
    return str(error.value)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"name": "a:b"}, "the definition: name must be 1 to 128 characters of A-Z a-z 0-9 . _ -"),
        ({"version": 0}, "the definition: version must be a whole number from 1 to 1000000000"),
        ({"input": [1]}, "the definition: input must be a JSON Schema, which is an object, true or false"),
        (
            {"input": dict},
            "input must be a JSON Schema or a class (a dataclass, an attrs class, a Struct, a model), and dict is none",
        ),
        ({"deadline_ms": 0}, "the definition: deadline_ms must be a whole number from 1 to 31536000000"),
        (
            {"deadline": "hard"},
            "the definition: deadline says how deadline_ms is meant, and deadline_ms is missing",
        ),
        ({"example": [1]}, "example must be an object, which the steps can refer to, not a list"),
        ({"attributes": [1]}, "the definition: attributes must be an object of names and values"),
        (
            {"attributes": {"at": 1}},
            "the definition: attributes: at is taken, every saga is found by that: choose another name",
        ),
    ],
)
def test_what_is_wrong_with_it_is_refused_at_once(members: dict[str, Any], text: str) -> None:
    given: dict[str, Any] = {"name": "order", "version": 3} | members
    assert refusal(lambda: Definition(given.pop("name"), **given)) == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeout": 5}, "step 2 has an unknown member 'timeout'; is it a misspelling of timeout_ms?"),
        ({"attempts": 0}, "step 2: attempts must be a whole number from 1 to 1000"),
        ({"id": "a b"}, "step 2: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number"),
        ({"after": "other"}, "step 2: after/0: 'other' is not the id or number of a step before it in the list"),
        ({"each": ref("/steps/1/result")}, "step 2: each must be a reference to a list in the input, such as "),
        ({"params": item.sku}, "step 2: params/$ref: /item/sku: only a step with each has an item and an index"),
        ({"params": failure}, "step 2: params/$ref: /failure: only compensation_params may name the failure"),
        ({"params": {"$from": 1}}, "step 2: params/$from: $from is not known, only $ref, $concat, $literal are"),
        ({"params": {1}}, "step 2: params: not JSON: it is a set"),
        ({"when": item}, "step 2: when: <reference /item> is a value and not a condition: compare it"),
        ({"when": True, "kind": "pivot"}, "step 2: a pivot cannot have a condition: put it on the steps around it"),
    ],
)
def test_a_wrong_step_is_refused_at_once_and_not_added(options: dict[str, Any], text: str) -> None:
    order = with_a_step()
    before = order.parsed
    assert refusal(lambda: order.step("Ship", service="shipping", **options)).startswith(text)
    assert order.parsed is before
    assert len(order.steps) == 1
    order.step("Ship", service="shipping")


def test_what_belongs_to_another_definition_is_refused() -> None:
    order, other = with_a_step(), Definition("other", version=1)
    step = other.step("A", service="a")
    theirs = "<definition other, version 1: 1 step>"
    for options, text in (
        ({"params": {"a": other.input.x}}, f"step 2: params/a: /input/x is of {theirs}, not of this definition"),
        ({"params": [step.result]}, f"step 2: params/0: /steps/1/result is of {theirs}, not of this definition"),
        ({"when": exists(other.input.x)}, f"step 2: when/exists: /input/x is of {theirs}, not of this definition"),
        ({"after": [step]}, f"step 2: after: <step 1, A> is a step of {theirs}, not of this definition"),
    ):
        given: Any = options
        assert refusal(lambda given=given: order.step("B", service="b", **given)) == text


def test_a_step_is_not_its_result() -> None:
    order = with_a_step()
    (charge,) = order.steps
    text = "step 2: params/of: <step 1, Charge> is not a value: name its result, as in step.result"
    assert refusal(lambda: order.step("B", service="b", params={"of": charge})) == text
    with pytest.raises(AttributeError, match=r"a step has no total; what it returned is at \.result\.total"):
        _ = charge.total


def test_a_step_that_is_not_done_before_cannot_be_referred_to() -> None:
    order = an_order()
    first = order.step("A", service="a", id="a")
    text = refusal(lambda: order.step("B", service="b", after=[], params=first.result.x))
    assert text == "step 2: params/$ref: /steps/a/result/x: step a may not be done by then; name it in after"


def test_without_steps_it_makes_no_sagas() -> None:
    text = "the definition order has no steps yet: add one with .step(…)"
    assert refusal(lambda: an_order().saga(saga_id="order-1")) == text


def test_it_may_have_as_many_steps_as_a_saga() -> None:
    order = an_order()
    for _ in range(100):
        order.step("A", service="a", params=order.input.x)
    assert refusal(lambda: order.pause(5)) == "the definition: steps must be a list of 1 to 100"


# --- the sagas that it makes


def test_a_saga_has_the_steps_the_input_and_the_definition() -> None:
    order = an_order(deadline_ms=5)
    order.step("Pick", service="stock", id="pick", each=order.input.items, params=item)
    assert order.saga({"items": [7, 8]}, saga_id="order-1", start_at_ms=9) == {
        "saga_id": "order-1",
        "input": {"items": [7, 8]},
        "definition": {"name": "order", "version": 3, "sha256": order.parsed.sha256},
        "deadline_ms": 5,
        "start_at_ms": 9,
        "steps": [
            {"transaction": "Pick", "service": "stock", "id": "pick.0", "params": ref("/input/items/0")},
            {"transaction": "Pick", "service": "stock", "id": "pick.1", "params": ref("/input/items/1"), "after": []},
        ],
    }
    assert with_a_step().saga(saga_id="order-1")["input"] == {}


def test_a_saga_has_the_attributes_of_its_definition_and_its_own_which_win() -> None:
    order = an_order(attributes={"kind": "order", "total": ref("/input/total")})
    order.attribute("customer", order.input.customer)
    order.step("Charge", service="till")
    order.attribute("shop", default(order.input.shop, None))
    templates = {
        "kind": "order",
        "total": ref("/input/total"),
        "customer": ref("/input/customer"),
        "shop": ref("/input/shop", default=None),
    }
    assert order.parsed.body["attributes"] == templates
    assert Definition.from_json(order.json()).parsed.sha256 == order.parsed.sha256
    given = {"total": 5, "customer": "c42"}
    assert order.saga(given, saga_id="o-1")["attributes"] == {"kind": "order", "total": 5, "customer": "c42"}
    own = order.saga(given, saga_id="o-1", attributes={"customer": "c1", "basket": 7})
    assert own["attributes"] == {"kind": "order", "total": 5, "customer": "c1", "basket": 7}
    assert "attributes" not in with_a_step().saga({}, saga_id="o-1")
    for wrong, text in (
        (order.input, "the definition: attributes/wrong/$ref: /input: an attribute is made of members of the input, "),
        (an_order().input.total, "attributes/wrong: /input/total is of <definition order, version 3: 0 steps>, not of"),
        (True, "the definition: attributes/wrong must be a text or a whole number"),
    ):
        assert refusal(lambda wrong=wrong: order.attribute("wrong", wrong)).startswith(text)
    assert order.parsed.body["attributes"] == templates


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("order", {"total": 5}), {}),
        (("order", {"total": 5}), {"saga_id": "order-1"}),
        (("order",), {"input": {"total": 5}, "saga_id": "order-1"}),
        ((), {"definition": "order", "input": {}, "saga_id": "order-1"}),
    ],
)
def test_who_begins_by_a_name_is_told_how(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as error:
        requested(*args, **named)
    assert str(error.value) == (
        "steps are a list: begin('order', [step, …]); for a saga of a definition in the store: "
        "begin(client.definition('order'), …, saga_id=…)"
    )


@pytest.mark.parametrize(
    ("args", "named"), [(("order-1", with_a_step()), {}), ((), {"saga_id": "order-1", "steps": with_a_step()})]
)
def test_who_gives_the_id_before_the_definition_is_told_the_order(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^the definition comes first: begin\(definition, input, saga_id=…\)$"):
        requested(*args, **named)


@pytest.mark.parametrize(
    ("method", "args", "named", "text"),
    [
        ("step", ("B",), {"servce": "s"}, "'servce'; is it a misspelling of service?"),
        ("wait", ("go",), {"timeout": 5}, "'timeout'; is it a misspelling of timeout_ms?"),
        ("pause", (), {"waitms": 5}, "'waitms'; is it a misspelling of wait_ms?"),
    ],
)
def test_a_misspelt_option_is_told_by_its_name(
    method: str, args: tuple[str, ...], named: dict[str, Any], text: str
) -> None:
    order = with_a_step()
    assert refusal(lambda: getattr(order, method)(*args, **named)) == f"step 2 has an unknown member {text}"


def test_a_pause_has_no_result() -> None:
    order = with_a_step()
    pause = order.pause(5)
    text = "step 3: params/$ref: /steps/2/result: step 2 is a pause, which never has a result"
    assert refusal(lambda: order.step("B", service="s", params=pause.result)) == text


def test_a_step_can_be_printed_and_makes_no_text() -> None:
    step: Any = with_a_step().steps[0]
    assert str(step) == repr(step)
    with pytest.raises(TypeError, match="has no text before the saga runs"):
        f"{step}"


def test_the_two_ways_to_ask_for_a_saga() -> None:
    order, soon = with_a_step(), 1_800_000_000_007
    for begin in (
        requested(order, {"total": 5}, saga_id="order-1", start_at_ms=soon),
        requested(definition=order, input={"total": 5}, saga_id="order-1", start_at_ms=soon),
    ):
        assert (begin.saga_id, begin.input, begin.start_ms, begin.format) == ("order-1", b'{"total":5}', soon, 2)
        assert begin.definition == order.parsed.by
    steps: Any = [{"transaction": "A", "service": "a", "params": ref("/input/x")}]
    begin = requested("order-2", steps, input={"x": 1}, deadline_ms=5, start_at_ms=soon)
    assert (begin.saga_id, begin.input, begin.start_ms, begin.deadline_ms, begin.definition) == (
        "order-2", b'{"x":1}', soon, 5, None,
    )  # fmt: skip
    assert requested("order-3", steps).format == 1
    with pytest.raises(TypeError, match=r"^a saga needs an id of its own: begin\(order, …, saga_id=…\); "):
        requested(order, {"total": 5})
    with pytest.raises(TypeError, match="deadline_ms"):
        requested(order, {"total": 5}, saga_id="order-1", deadline_ms=5)


@pytest.mark.parametrize(
    ("at", "ms"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=1), 1_000),
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))) + timedelta(microseconds=1), 1),
        (datetime(2026, 11, 30, 8, 0, 0, 1_001, tzinfo=UTC), 1_796_025_600_002),
    ],
)
def test_a_saga_does_not_begin_before_its_time(at: datetime, ms: int) -> None:
    assert with_a_step().saga(saga_id="order-1", start_at=at)["start_at_ms"] == ms


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"start_at": datetime(2026, 11, 30)}, "start_at has no time zone"),  # noqa: DTZ001 - as users write it
        ({"start_at": date(2026, 11, 30)}, "start_at must be a datetime, not datetime.date"),
        ({"start_at": 5}, "start_at must be a datetime, not 5; for milliseconds there is start_at_ms"),
        ({"start_at": datetime(2026, 11, 30, tzinfo=UTC), "start_at_ms": 5}, "give one of them"),
    ],
)
def test_a_time_that_is_none_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError) as error:
        with_a_step().saga(saga_id="order-1", **options)
    assert text in str(error.value)


# --- the input


def test_all_that_is_wrong_with_an_input_is_told_at_once_as_far_as_it_fits() -> None:
    """Otherwise a person mends one thing after the other. The most telling one comes first."""
    names = [f"n{number}" for number in range(8)]
    order = with_a_step(input={"required": names, "properties": {"n0": {"anyOf": [{"type": "null"}, {"minimum": 7}]}}})
    told = refusal(lambda: order.saga({"n0": 5, "n1": 1, "n2": 1}, saga_id="order-1"))
    missing = "; ".join(f"'n{number}' is a required property" for number in (3, 4, 5, 6))
    assert told in (
        f"input: {missing}; 'n7' is a required property; and 1 more",
        f"input/n0: 5 is less than the minimum of 7; input: {missing}; and 1 more",
    )
    assert refusal(lambda: order.saga(dict.fromkeys(names, 5), saga_id="order-1")).startswith("input/n0: 5 is ")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"total": 5}, None),
        ({"total": 0}, "input/total: 0 is less than the minimum of 1"),
        ({"total": "x\ny"}, r"input/total: 'x\ny' is not of type 'integer'"),
        ({}, "input: 'total' is a required property"),
        ([], "input must be an object, which the steps can refer to, not a list"),
        ({"total": 5, "lines": [{"a/b": 1}, {"a/b": ["long" * 100]}]}, "input/lines/1/a~1b: ["),
        ({"total": float("nan")}, "not JSON: it has no NaN and no infinities"),
    ],
)
def test_an_input_is_checked_by_the_schema(data: Any, text: str | None) -> None:
    numbers = {"type": "array", "items": {"additionalProperties": {"type": "integer"}}}
    order = with_a_step(input=SCHEMA | {"properties": SCHEMA["properties"] | {"lines": numbers}})  # type: ignore[operator]
    if text is None:
        assert order.saga(data, saga_id="order-1")["input"] == data
        return
    told = refusal(lambda: order.saga(data, saga_id="order-1"))
    assert told.startswith(text)
    assert len(told) < 250
    assert "\n" not in told


def test_a_schema_that_is_none_is_refused() -> None:
    order = with_a_step(input={"properties": {"total": {"type": "integers"}}})
    text = "the definition: input/properties/total/type is not a JSON Schema: 'integers' is not valid under any of"
    assert refusal(lambda: order.saga({}, saga_id="order-1")).startswith(text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"$ref": "http://localhost:9/schema"}, "the definition: input: nothing is at $ref http://localhost:9/schema"),
        ({"$ref": "#/$defs/x"}, "the definition: input: nothing is at $ref /$defs/x"),
        (
            {"$ref": "#/x/y", "x": {"y": {"allOf": 7}}},
            "the definition: input/x/y is not a JSON Schema: 7 is not of type 'array'",
        ),
        ({"$ref": "#"}, "the definition: input: a $ref leads to itself"),
        (False, "input: False schema does not allow {}"),
    ],
)
def test_a_schema_fetches_nothing_and_goes_round_in_no_circle(schema: Any, text: str) -> None:
    order = with_a_step(input=schema)
    assert refusal(lambda: order.saga({}, saga_id="order-1")) == text


NESTED = 40
DOUBLED = {
    name: {"allOf": [{"$ref": f"#/$defs/{then}"}] * 2}
    for name, then in [(f"d{number}", f"d{number + 1}") for number in range(30)]
} | {"d30": {"type": "object"}}
EVIL = {"$dynamicAnchor": "evil", "pattern": r"^(a|aa)+$"}
TWICE_A_LEVEL = {"allOf": [{"properties": {"in": {"$ref": "#/$defs/node"}}}] * 2}


def nested(depth: int) -> dict[str, Any]:
    return {"in": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (
            {"pattern": "^(?=a)a"},
            "input/properties/m/pattern: the pattern has a look-ahead, a look-behind or a backref",
        ),
        ({"pattern": r"(a)\1"}, "input/properties/m/pattern: the pattern has a look-ahead, a look-behind or a backref"),
        (
            {"pattern": "["},
            "input/properties/m/pattern: the pattern is not a regular expression that JSON Schema knows",
        ),
        (
            {"pattern": "^.{1,255}@.{1,255}$"},
            "input/properties/m/pattern: the pattern is too large: in place of counts like {1,255}, write + or * and a",
        ),
        (
            {"patternProperties": {"a/(?!b)": {}}},
            "input/properties/m/patternProperties/a~1(?!b): the pattern has a look",
        ),
        (
            {"$id": "m", "$defs": DOUBLED, "$ref": "#/$defs/d0"},
            "input/$defs/d22: more than 1,000 schemas apply to one value here, counted with what",
        ),
        (
            {"unevaluatedProperties": False, "items": {"patternProperties": {"a": {}}}},
            "input/properties/m/unevaluatedProperties cannot be checked in bounded time beside input/properties/m/i",
        ),
    ],
)
def test_a_schema_whose_work_has_no_bound_is_refused(schema: Any, text: str) -> None:
    order = with_a_step(input={"properties": {"m": schema}})
    told = refusal(lambda: order.saga({"m": "a"}, saga_id="order-1"))
    assert told.startswith(f"the definition: {text}")
    assert refusal(lambda: deployable(order)) == told


@pytest.mark.parametrize(
    ("schema", "data", "text"),
    [
        # With `re`, this takes some 10 ** 17 steps.
        ({"pattern": r"^([a-zA-Z0-9]+\.?)+@x$"}, "a" * 60 + "!", "input/m: 'aaaaaa"),
        ({"pattern": r"^([a-zA-Z0-9]+\.?)+@x$"}, "a" * 60 + "@x", None),
        (  # jsonschema would take another class for this one
            {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": r"^([a-zA-Z0-9]+\.?)+@x$"},
            "a" * 60 + "!",
            "input/m: 'aaaaaa",
        ),
        ({"$dynamicRef": "#evil"}, "a" * 60 + "!", "input/m: 'aaaaaa"),
        ({"patternProperties": {r"^(a|aa)+$": False}}, {"a" * 60 + "!": 1}, None),
        (
            {"patternProperties": {r"^(a|aa)+$": {}}, "additionalProperties": False},
            {"a" * 60 + "!": 1, "aaa": 2},
            "input/m: Additional properties are not allowed ('aaaaaa",
        ),
        ({"patternProperties": {"^x": {"type": "integer"}}}, {"xa": "1"}, "input/m/xa: '1' is not of type 'integer'"),
        ({"pattern": r"^\d$"}, "\u0663", "input/m: '\u0663' does not match"),
        (
            {"pattern": "a*"},
            "a" * 300_001,
            "input: to check it by the schema of the definition takes more than 300,000",
        ),
        (
            {"$ref": "#/$defs/node"},
            nested(NESTED),
            "input: to check it by the schema of the definition takes more than",
        ),
        ({"uniqueItems": True}, [{"n": number} for number in range(30_000)], None),
        ({"uniqueItems": True}, [{"n": 1}, {"n": 1.0}], "input/m: [{'n': 1}, {'n': 1.0}] has non-unique elements"),
        ({"uniqueItems": True}, [1, True, "1", [1], [True]], None),
        ({"items": {"type": "integer", "minimum": 0}}, list(range(50_000)), None),
        ({"prefixItems": [True], "unevaluatedItems": False}, [1] * 50_000, "input: to check it by the schema of the "),
        ({"prefixItems": [True], "unevaluatedItems": False}, [1, 2], "input/m: Unevaluated items are not allowed (2 "),
    ],
)
@pytest.mark.timeout(30)
def test_the_work_is_bounded_whatever_the_input(schema: Any, data: Any, text: str | None) -> None:
    order = with_a_step(input={"properties": {"m": schema}, "$defs": {"node": TWICE_A_LEVEL, "e": EVIL}})
    if text is None:
        assert order.saga({"m": data}, saga_id="order-1")["input"] == {"m": data}
    else:
        assert refusal(lambda: order.saga({"m": data}, saga_id="order-1")).startswith(text)


def test_only_the_check_by_a_schema_takes_long() -> None:
    assert takes_long(with_a_step(input=SCHEMA), {})
    assert takes_long(definition=with_a_step(input=SCHEMA))
    assert not takes_long(with_a_step(), {})
    assert not takes_long(with_a_step(input=Order), {})
    assert not takes_long("s-1", [])


@pytest.mark.parametrize("missing", ["jsonschema", "jsonschema_rs"])
def test_without_the_package_that_checks_it_one_line_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    order = with_a_step(input={"title": f"of this test alone, without {missing}"})
    with pytest.raises(SettingsError) as error:
        order.saga({}, saga_id="order-1")
    assert str(error.value) == (
        f"the definition order says what its input must be, and the package {missing}, which checks that, is missing: "
        "pip install jsonschema jsonschema-rs"
    )
    assert with_a_step().saga({}, saga_id="order-1")["input"] == {}  # nothing is to be checked


@dataclass
class Line:
    sku: str
    count: int = 1


@dataclass
class Order:
    total: Decimal
    lines: list[Line] = field(default_factory=list)
    on: date | None = None


class LineModel(pydantic.BaseModel):
    sku: str
    count: int = 1


class OrderModel(pydantic.BaseModel):
    total: Decimal = pydantic.Field(alias="Total")
    lines: list[LineModel] = []
    on: date | None = None


@pytest.mark.parametrize("given", [{"total": "5.0", "lines": [{"sku": "a"}]}, Order(Decimal("5.0"), [Line("a")])])
def test_an_input_is_read_as_the_dataclass(given: Any) -> None:
    order = with_a_step(input=Order)
    assert order.saga(given, saga_id="order-1")["input"] == {
        "total": "5.0",
        "lines": [{"sku": "a", "count": 1}],
        "on": None,
    }


@pytest.mark.parametrize(
    "given", [{"Total": "5.0", "lines": [{"sku": "a"}]}, OrderModel(Total=Decimal("5.0"), lines=[LineModel(sku="a")])]
)
def test_an_input_is_read_as_the_model(given: Any) -> None:
    order = an_order(input=OrderModel)
    order.step("Charge", service="till", params={"total": order.input.Total})
    data = order.saga(given, saga_id="order-1")["input"]
    assert data == {"Total": "5.0", "lines": [{"sku": "a", "count": 1}], "on": None}
    # The schema describes what stands in the saga: who begins a saga without Python sends the same.
    in_json = Definition.from_json(encode(order.parsed.body))
    assert in_json.saga(data, saga_id="order-1") == order.saga(given, saga_id="order-1")
    text = "input: 'on' is a required property"
    assert refusal(lambda: in_json.saga({"Total": "5.0", "lines": []}, saga_id="order-1")) == text


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        (Order, {"lines": []}, "input: object missing required field total"),
        (Order, {"total": 1, "lines": [{"sku": "a"}, {"sku": 3}]}, "input/lines/1/sku: expected str, got int"),
        (Order, Order(Decimal(1), [Line("a", "b")]),  # type: ignore[arg-type]
         "input/lines/0/count: expected int, got str"),
        (Order, Order(Decimal("nan")), "not JSON: total is NaN"),
        (Order, [], "input: expected object, got array"),
        (Order, None, "input: object missing required field total"),
        (OrderModel, {"lines": []}, "input/Total: field required"),
        (OrderModel, {"Total": 1, "lines": [{"sku": "a"}, {"sku": 3}]},
         "input/lines/1/sku: input should be a valid string"),
        (OrderModel, {"Total": "x", "lines": 3},
         "input/Total: input should be a valid decimal (and 1 more)"),
        (OrderModel, 5, "input: input should be an object"),
    ],
)  # fmt: skip
def test_an_input_that_the_class_refuses_is_refused_with_its_place(kind: type, given: Any, text: str) -> None:
    assert refusal(lambda: with_a_step(input=kind).saga(given, saga_id="order-1")) == text


def test_the_schema_is_made_from_the_class() -> None:
    schema = with_a_step(input=Order).parsed.schema
    assert schema["$defs"]["Order"]["required"] == ["total", "lines", "on"]
    assert schema["$defs"]["Line"]["properties"]["count"] == {"type": "integer", "default": 1}
    assert with_a_step(input=OrderModel).parsed.schema["required"] == ["Total", "lines", "on"]


def test_an_example_is_read_as_the_class_too() -> None:
    assert with_a_step(input=Order, example=Order(Decimal(1))).parsed.example == {"total": "1", "lines": [], "on": None}
    assert refusal(lambda: with_a_step(input=Order, example={})) == "example: object missing required field total"


def test_without_pydantic_dataclasses_are_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydantic"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert with_a_step(input=Order).saga({"total": "1"}, saga_id="order-1")["input"]["lines"] == []


def test_what_was_read_is_what_a_file_holds() -> None:
    order = with_a_step(input=SCHEMA)
    assert reading.read(reading.canonical(order.parsed.body)).sha256 == order.parsed.sha256

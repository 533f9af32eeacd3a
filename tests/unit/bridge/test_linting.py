"""What is wrong in a definition before a saga runs: all of it at once, with its place."""

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagastream.core.conditions import MAX_COMPARED_BYTES
from sagastream.core.definition import parse
from sagastream.core.expansion import sketch
from sagastream.core.steps import MAX_CARRIED_BYTES
from sagastream.errors import MalformedMessage
from sagastream_bridge.definitions.documents import Document
from sagastream_bridge.definitions.known import Known, Offered, Services
from sagastream_bridge.definitions.linting import lint
from sagastream_bridge.definitions.problems import Code, Problem
from unit.bridge.test_definitions import JOURNEY, run, written

PIVOT: dict[str, Any] = {"kind": "pivot"}


def problems(body: dict[str, Any], services: Services | None = None) -> list[Problem]:
    return lint(Document("test", body), Known(services)).problems


def step(step_id: str, *after: str, **members: Any) -> dict[str, Any]:
    return {"id": step_id, "transaction": "Do", "service": "work", "after": list(after)} | members


def found(*steps: dict[str, Any], services: Services | None = None, **members: Any) -> list[tuple[Code, str]]:
    """The problems of a definition with these steps: what, and where."""
    body = {"name": "order", "version": 1, "steps": list(steps)} | members
    return [(code, pointer) for code, pointer, _ in problems(body, services)]


def text_of(*steps: dict[str, Any], services: Services | None = None, **members: Any) -> str:
    (problem,) = problems({"name": "o", "version": 1, "steps": list(steps)} | members, services)
    return problem.text


# --- each kind of problem


def test_an_input_that_is_too_large_for_so_many_steps_is_told() -> None:
    steps = [step(f"s{number}", when={"exists": {"$ref": "/input/a"}}) for number in range(100)]
    most = MAX_CARRIED_BYTES // 100 - len('{"a":""}')
    assert problems({"saga_id": "s1", "input": {"a": "x" * most}, "steps": steps}) == []
    (problem,) = problems({"saga_id": "s1", "input": {"a": "x" * (most + 1)}, "steps": steps})
    assert (problem.code, problem.pointer) == (Code.LIMIT, "/input")
    assert problem.text.startswith("input: too large: 167773 bytes; each of 100 steps gets it with its command")
    assert found(*steps, example={"a": "x" * most}) == []
    assert found(*steps, example={"a": "x" * (most + 1)}) == [(Code.EXAMPLE, "/example")]
    assert "example: input: too large: " in text_of(*steps, example={"a": "x" * (most + 1)})


def test_an_example_with_which_no_saga_could_begin_is_told() -> None:
    pick = {"id": "pick", "each": {"$ref": "/input/lines"}, "transaction": "Pick", "service": "stock"}
    assert found(pick, example={"lines": [1]}) == []
    assert found(pick, example={"lines": 1}) == [(Code.EXAMPLE, "/example")]
    assert found(pick, example={"lines": [1] * 101}) == [(Code.EXAMPLE, "/example")]
    wrong = pick | {"transaction": 5}
    assert [code for code, _ in found(wrong, example={"lines": 1})] == [Code.MALFORMED]


def test_a_value_that_is_too_large_to_be_compared_is_told_with_its_place() -> None:
    condition = {"in": [{"$ref": "/input/a"}, ["x" * MAX_COMPARED_BYTES]]}
    assert found(step("a", when=condition)) == [(Code.CONDITION, "/steps/0/when/in/1")]


def test_a_step_without_a_name_is_named_once(tmp_path: Path) -> None:
    result = run("lint", written(tmp_path, {"name": "o", "version": 1, "steps": [{"service": "s"}]}))
    assert ": malformed: step 1: transaction is missing\n" in result.stdout


def test_what_is_right_has_no_problems() -> None:
    assert problems(JOURNEY) == []
    plain = {"saga_id": "s1", "steps": [{"transaction": "Do", "service": "work", "params": {"$ref": 1}}]}
    assert problems(plain) == []


@pytest.mark.parametrize(
    ("steps", "code", "pointer"),
    [
        ([step("a", "b"), step("b")], Code.AFTER, "/steps/0/after/0"),
        ([step("a", "a")], Code.AFTER, "/steps/0/after/0"),
        ([step("a"), step("b", after="a")], Code.AFTER, "/steps/1/after"),
        ([step("a"), step("b", "a"), step("c", "a", "b")], Code.AFTER_REDUNDANT, "/steps/2/after/0"),
        ([step("a"), step("b", after=["a", 1])], Code.AFTER_REDUNDANT, "/steps/1/after/1"),
        ([step("a"), step("b"), step("c", "a", **PIVOT)], Code.PIVOT, "/steps/1"),
        ([step("a", **PIVOT), step("b", kind="retriable")], Code.PIVOT, "/steps/1"),
        ([step("a", kind="retriable")], Code.PIVOT, "/steps/0/kind"),
        ([step("a", **PIVOT), step("b", "a")], Code.PIVOT, "/steps/1/kind"),
        ([step("a", **PIVOT), step("b", "a", **PIVOT)], Code.PIVOT, "/steps/1/kind"),
        ([step("a", when=True, **PIVOT)], Code.PIVOT, "/steps/0/when"),
        ([step("a", params={"x": [{"$ref": "/steps/b/result"}]})], Code.REFERENCE, "/steps/0/params/x/0/$ref"),
        ([step("a"), step("b", params={"$ref": "/steps/a/result"})], Code.REFERENCE, "/steps/1/params/$ref"),
        ([step("a", when={"exists": {"$ref": "/input/x"}}), step("b", "a", params={"$ref": "/steps/a/result"})],
         Code.REFERENCE, "/steps/1/params/$ref"),
        ([step("a", params={"$reff": 1})], Code.REFERENCE, "/steps/0/params/$reff"),
        ([step("a", params={"$ref": "/item"})], Code.REFERENCE, "/steps/0/params/$ref"),
        ([step("a", compensation_params={"$ref": "/failures"})], Code.REFERENCE, "/steps/0/compensation_params/$ref"),
        ([step("a", when={"equals": [1, 2]})], Code.CONDITION, "/steps/0/when"),
        ([step("a", kind="pivott")], Code.MALFORMED, "/steps/0/kind"),
        ([step("a", timeout_ms=0)], Code.MALFORMED, "/steps/0/timeout_ms"),
        ([step("a", servce="x")], Code.MALFORMED, "/steps/0/servce"),
        ([step("a"), step("a")], Code.MALFORMED, "/steps/1/id"),
        ([{"id": "a", "service": "work"}], Code.MALFORMED, "/steps/0"),
        ([{"wait": "go"}], Code.MALFORMED, "/steps/0"),
        ([step("a", compensation="Do")], Code.MALFORMED, "/steps/0"),
        ([step("a", retry_on="go")], Code.MALFORMED, "/steps/0/retry_on"),
        ([step("a", each=[1])], Code.MALFORMED, "/steps/0/each"),
        ([step("a", **PIVOT), step("b", "a", kind="retriable", compensation="Undo")],
         Code.NEEDLESS_UNDO, "/steps/1/compensation"),
        ([step("a", compensation=None, compensation_params=1)], Code.NEEDLESS_UNDO, "/steps/0/compensation_params"),
        ([step("a", **PIVOT), step("b", "a", kind="retriable", compensation_attempts=2)],
         Code.NEEDLESS_UNDO, "/steps/1/compensation_attempts"),
    ],
)  # fmt: skip
def test_a_problem_of_a_step(steps: list[dict[str, Any]], code: Code, pointer: str) -> None:
    assert found(*steps) == [(code, pointer)]


def test_more_steps_than_a_saga_may_have() -> None:
    assert found(*[step(f"s{number}") for number in range(101)]) == [(Code.LIMIT, "/steps")]
    schema = {"properties": {"items": {"type": "array", "maxItems": 100}}}
    each = step("all", each={"$ref": "/input/items"})
    assert found(each, step("last"), input=schema) == [(Code.LIMIT, "/steps")]
    assert found(each, input=schema) == []


def test_the_members_of_a_definition() -> None:
    assert found(step("a"), version=0) == [(Code.MALFORMED, "/version")]
    assert found(step("a"), versio=1) == [(Code.MALFORMED, "/versio")]
    assert found(step("a"), deadline="soft") == [(Code.MALFORMED, "/deadline")]


def test_a_deadline_that_cuts_off_a_saga_in_which_nothing_fails() -> None:
    steps = [
        step("a", timeout_ms=1000),
        {"id": "w", "wait": "go", "timeout_ms": 5000},
        step("b", "a", timeout_ms=3000),
        step("p", "w", "b", timeout_ms=10, **PIVOT),
        step("r", "p", kind="retriable", timeout_ms=99_000),
    ]
    assert found(*steps, deadline_ms=6009) == [(Code.DEADLINE, "/deadline_ms")]
    assert found(*steps, deadline_ms=6010) == []
    assert text_of(*steps, deadline_ms=1) == (
        "deadline_ms is 1, and the longest way to the point of no return may take 6010 ms, "
        "even if each command is sent only once"
    )


SERVICES: Services = {
    "work": Offered({"Do": "Undo", "Look": None}, frozenset({"Quiet"}), frozenset({"Other"})),
}  # fmt: skip


@pytest.mark.parametrize(
    ("members", "code", "pointer"),
    [
        ({"service": "wrok"}, Code.UNKNOWN_SERVICE, "/steps/0/service"),
        ({"transaction": "Doo"}, Code.UNKNOWN_COMMAND, "/steps/0/transaction"),
        ({"transaction": "Undo"}, Code.UNKNOWN_COMMAND, "/steps/0/transaction"),
        ({"compensation": "Undoo"}, Code.UNKNOWN_COMPENSATION, "/steps/0/compensation"),
        ({"compensation": "Look"}, Code.UNKNOWN_COMPENSATION, "/steps/0/compensation"),
        ({"transaction": "Quiet"}, Code.NO_UNDO, "/steps/0"),
        ({"transaction": "Look", "compensation_params": 1}, Code.NEEDLESS_UNDO, "/steps/0/compensation_params"),
    ],
)
def test_what_no_service_publishes(members: dict[str, Any], code: Code, pointer: str) -> None:
    assert found(step("a", **members), services=SERVICES) == [(code, pointer)]
    assert found(step("a", **members)) == []  # nobody tells what services publish


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"compensation": "Undo"},
        {"compensation": "Other"},
        {"transaction": "Quiet", "compensation": None},
        {"transaction": "Quiet", "compensation": "Undo"},
        {"transaction": "Quiet", "kind": "pivot"},
        {"transaction": "Look"},
    ],
)
def test_what_services_publish_has_no_problems(members: dict[str, Any]) -> None:
    assert found(step("a", **members), services=SERVICES) == []


SCHEMA: dict[str, Any] = {
    "properties": {
        "sku": {"type": "string"},
        "lines": {"type": "array", "items": {"properties": {"price": {}}}},
        "open": {"properties": {}, "additionalProperties": True},
        "any": {"anyOf": [{"properties": {"a": {}}}], "properties": {"b": {}}},
        "two": {"prefixItems": [{"properties": {"a": {}}}], "items": {"properties": {"b": {}}}},
        "trip": {"$ref": "#/$defs/Trip", "description": "as a class is described"},
        "more": {"$ref": "#/$defs/Trip", "properties": {"more": {}}},
        "loop": {"$ref": "#/$defs/Loop"},
        "lost": {"$ref": "#/$defs/Lost"},
        "away": {"$ref": "https://example.com/trip"},
    },
    "$defs": {
        "Trip": {"type": "object", "properties": {"to": {}, "stops": {"items": {"$ref": "#/$defs/Trip"}}}},
        "Loop": {"$ref": "#/$defs/Loop"},
    },
}


@pytest.mark.parametrize(
    ("reference", "is_known"),
    [
        ("/input", True),
        ("/input/sku", True),
        ("/input/skuu", False),
        ("/input/lines/0/price", True),
        ("/input/lines/0/cost", False),
        ("/input/open/whatever", True),
        ("/input/any/a", True),
        ("/input/two/0/a", True),
        ("/input/trip/stops/0/to", True),
        ("/input/trip/stops/1/too", False),
        ("/input/more/more", True),
        *((f"/input/{name}/anything", True) for name in ("loop", "lost", "away")),
        ("/input/sku/0", False),
        ("/input/lines/price", False),
        ("/input/lines/00", False),
        ("/saga/id", True),
    ],
)
def test_what_the_schema_does_not_know(reference: str, is_known: bool) -> None:
    template = {"a": [{"$ref": reference}], "b": {"$literal": {"$ref": "/input/nothing"}}}
    expected = [] if is_known else [(Code.INPUT, "/steps/0/params/a/0/$ref")]
    assert found(step("a", params=template), input=SCHEMA) == expected
    assert found(step("a", params=template)) == []


@pytest.mark.parametrize(
    ("each", "reference", "text"),
    [
        ("/input/lines", "/item", None),
        ("/input/lines", "/item/price", None),
        ("/input/lines", "/item/cost", "/item/cost: the schema of item has no property cost, but price"),
        ("/input/trip/stops", "/item/stops/0/to", None),
        (
            "/input/trip/stops",
            "/item/stops/0/from",
            "/item/stops/0/from: the schema of item/stops/0 has no property from, but to, stops",
        ),
        ("/input/open/lines", "/item/cost", None),
        ("/input/two", "/item/a", None),
    ],
)
def test_what_the_schema_does_not_know_of_an_item(each: str, reference: str, text: str | None) -> None:
    one = step("a", each={"$ref": each}, when={"exists": {"$ref": reference}})
    if text is None:
        assert found(one, input=SCHEMA) == []
    else:
        assert text_of(one, input=SCHEMA) == text


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("/input/sku/0", "/input/sku/0: there is nothing below input/sku, which is of type string, says the schema"),
        ("/input/lines/price", "/input/lines/price: input/lines is a list, says the schema, and price is not an index"),
    ],
)
def test_what_cannot_be_there_by_the_schema_is_told_with_the_reason(reference: str, text: str) -> None:
    assert text_of(step("a", params={"$ref": reference}), input=SCHEMA) == text


TOO_FEW = "/steps/pick/result/{}/at: /input/lines may have {}, says the schema: say a default here, or minItems there"


@pytest.mark.parametrize(
    ("least", "members", "text"),
    [
        ({}, {"params": {"$ref": "/steps/pick/result/0/at"}}, TOO_FEW.format(0, "no items")),
        ({"minItems": 1}, {"params": {"$ref": "/steps/pick/result/1/at"}}, TOO_FEW.format(1, "1 item")),
        ({"minItems": 1}, {"params": {"$ref": "/steps/pick/result/0/at"}}, None),
        ({}, {"params": {"$ref": "/steps/pick/result/0/at", "default": None}}, None),
        ({}, {"params": {"$ref": "/steps/pick/result"}}, None),
        ({}, {"params": {"$ref": "/steps/pick/result/0/at"}, "when": {"exists": {"$ref": "/input/lines/0"}}}, None),
        ({}, {"params": {"$ref": "/steps/pick/result/0/at"}, "each": {"$ref": "/input/lines"}}, None),
        ({}, {"params": {"$ref": "/steps/pick/result/1/at"}, "each": {"$ref": "/input/lines"}},
         TOO_FEW.format(1, "1 item")),
    ],
)  # fmt: skip
def test_a_list_that_may_have_too_few_items(least: dict[str, int], members: dict[str, Any], text: str | None) -> None:
    schema = {"properties": {"lines": {"type": "array"} | least}}
    steps = [step("pick", each={"$ref": "/input/lines"}), step("last", "pick", **members)]
    if text is None:
        assert found(*steps, input=schema) == []
    else:
        assert text_of(*steps, input=schema) == text
    assert found(*steps) == []  # nothing is known of such a list


def test_each_of_what_is_not_a_list_in_the_schema() -> None:
    assert found(step("a", each={"$ref": "/input/x"}), input={"properties": {"x": {"type": ["array", "null"]}}}) == []
    assert found(step("a", each={"$ref": "/input/sku"}), input=SCHEMA) == [(Code.INPUT, "/steps/0/each")]


def test_a_schema_that_is_none_and_examples_that_it_refuses() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert found(step("a"), input=schema, example={"n": 1}) == []
    assert found(step("a"), input=schema, example={"n": "x"}) == [(Code.EXAMPLE, "/example/n")]
    assert found(step("a"), input=schema | {"examples": [{"n": 1}, {"n": None}]}) == [
        (Code.EXAMPLE, "/input/examples/1/n")
    ]
    schema["properties"]["n"]["type"] = "whole"
    assert found(step("a"), input=schema, example={}) == [(Code.SCHEMA, "/input/properties/n/type")]
    assert found(step("a"), input={"$ref": "#/$defs/x"}, example={}) == [(Code.SCHEMA, "/input")]
    schema["properties"]["n"] = {"pattern": "^(?=x)"}
    assert found(step("a"), input=schema, example={}) == [(Code.SCHEMA, "/input/properties/n/pattern")]
    assert found(step("a"), input=7) == [(Code.MALFORMED, "/input")]


def test_without_the_package_the_schema_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    body = {"name": "o", "version": 1, "steps": [step("a")], "input": {"const": "not asked before"}}
    (why,) = lint(Document("test", body), Known({}, is_in_store=True)).not_checked
    assert why.endswith("pip install jsonschema jsonschema-rs")
    assert why.startswith("the definition o says what its input must be")


NOTHING = "/input/zzz: there is nothing there (input has no member zzz)"


@pytest.mark.parametrize(
    ("members", "code", "path", "text"),
    [
        ({"params": {"$ref": "/input/zzz"}}, Code.REFERENCE, "/params/$ref", NOTHING),
        ({"params": {"a": {"$concat": ["x", {"$ref": "/input/l/2"}]}}}, Code.REFERENCE, "/params/a/$concat/1/$ref",
         "/input/l/2: there is nothing there (input/l has 2 items, and the index 2 is too high)"),
        ({"params": [{"$concat": ["x", {"$concat": [{"$ref": "/input/l"}]}]}]}, Code.REFERENCE,
         "/params/0/$concat/1/$concat", "/input/l: a list cannot be joined to a text"),
        ({"params": [{"$ref": "/input/big"}] * 6}, Code.REFERENCE, "/params",
         "/input/big: too large: what is built has more than 1047552 bytes"),
        ({"compensation": "Undo", "compensation_params": {"$ref": "/input/zzz"}}, Code.REFERENCE,
         "/compensation_params/$ref",
         f"{NOTHING}, so its undo would be parked, and no retry would help"),
        ({"when": {"gt": [{"$ref": "/input/age"}, 10]}}, Code.CONDITION, "/when",
         "when: /gt: a text (/input/age) and a number have no order; only two numbers or two texts have"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_of_the_input_of_one_saga(
    members: dict[str, Any], code: Code, path: str, text: str
) -> None:
    data = {"n": 1, "l": [1, 2], "age": "12", "big": "x" * 200_000}
    body = {"saga_id": "bad", "input": data, "steps": [step("a"), step("b", "a", **members)]}
    assert problems(body) == [Problem(code, f"/steps/1{path}", text)]


@pytest.mark.parametrize(
    "members",
    [
        {"params": {"$ref": "/input/l/1"}},
        {"params": {"$ref": "/input/zzz", "default": 1}},
        {"params": {"$concat": [{"$ref": "/saga/id"}, {"$ref": "/steps/a/result/id"}]}},
        {"params": {"$ref": "/input/zzz"}, "when": {"exists": {"$ref": "/input/zzz"}}},
        {"params": {"$ref": "/input/zzz"}, "when": {"eq": [{"$ref": "/steps/a/result/by"}, "air"]}},
        {"compensation": "Undo", "compensation_params": [{"$ref": "/failure/error/code"}, {"$ref": "/steps/b/result"}]},
    ],
)
def test_what_can_be_made_of_it_or_depends_on_steps(members: dict[str, Any]) -> None:
    body = {"saga_id": "good", "input": {"l": [1, 2]}, "steps": [step("a"), step("b", "a", **members)]}
    assert problems(body) == []


def test_a_pivot_that_is_parked_when_its_signal_is_declined_is_noted() -> None:
    def noted(services: Services | None = None, **members: Any) -> list[str]:
        pay = step("pay", retry_on="topped_up", retry_within_ms=5, **PIVOT) | members
        return lint(Document("test", {"name": "o", "version": 1, "steps": [pay]}), Known(services)).notes

    (note,) = noted(compensation=None)
    assert note == (
        "step 1 (pay): if the signal topped_up is declined or does not come, the saga is parked: "
        "a late delivery might still do the pivot, and nothing undoes it, since compensation is null"
    )
    assert noted(compensation="Refund") == noted() == []
    (note,) = noted({"work": Offered({"Do": None})})
    assert note.endswith("since its service says that Do needs no undo")


def test_a_step_that_needs_what_an_operator_may_skip_is_noted() -> None:
    def noted(reference: dict[str, Any], **wait: Any) -> list[str]:
        sign = {"id": "sign", "wait": "signed", "timeout_ms": 5, "after": ["pay"]} | wait
        last = step("last", "sign", params=reference, kind="retriable")
        body = {"name": "o", "version": 1, "steps": [step("pay", **PIVOT), sign, last]}
        linted = lint(Document("test", body), Known())
        assert linted.problems == []
        return linted.notes

    expected = (
        "step 3 (last): if nobody sends the signal signed, an operator may skip step {}. "
        "Then there is no result of it, this step is parked, and a retry cannot help: say a default"
    )
    assert noted({"$ref": "/steps/sign/result/by"}) == [expected.format("sign")]
    assert noted({"$ref": "/steps/2/result/by"}) == [expected.format("2")]
    assert noted({"$ref": "/steps/sign/result/by", "default": None}) == []
    assert noted({"$ref": "/steps/pay/result/by"}) == []


def test_the_command_prints_notes_and_goes_by_problems(tmp_path: Path) -> None:
    pay = step("pay", retry_on="topped_up", retry_within_ms=5, compensation=None, **PIVOT)
    result = run("lint", written(tmp_path, {"name": "o", "version": 1, "steps": [pay]}))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "\nnote: step 1 (pay): if the signal topped_up is declined" in result.stderr


def test_other_content_under_the_same_version() -> None:
    body = {"name": "o", "version": 3, "steps": [step("a")]}
    other = parse(body | {"steps": [step("b")]})
    same = parse({"steps": [step("a")], "version": 3, "name": "o"})
    document = Document("test", body)
    (problem,) = lint(document, Known({"work": Offered({"Do": None})}, is_in_store=True, deployed=other)).problems
    assert problem == (
        Code.SAME_VERSION, "/version", "version 3 of o is deployed with other content: raise the version"
    )  # fmt: skip
    known = Known({"work": Offered({"Do": None})}, is_in_store=True, deployed=same)
    assert lint(document, known) == ([], [], [])


# --- all at once


ITEM: dict[str, Any] = {"$ref": "/item"}
LINES: dict[str, Any] = {"$ref": "/input/lines"}


@pytest.mark.parametrize(
    ("steps", "code", "pointer", "text"),
    [
        ([step("a"), {"wait_ms": 0}], Code.MALFORMED, "/steps/1/wait_ms",
         "wait_ms must be a whole number from 1 to 31536000000"),
        ([step("a"), {"wait_ms": "5m"}], Code.MALFORMED, "/steps/1/wait_ms",
         "wait_ms must be a whole number from 1 to 31536000000"),
        ([step("a"), {"wait": "", "timeout_ms": 5}], Code.MALFORMED, "/steps/1/wait",
         "wait must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"),
        ([{"wait": "go", "timeout_ms": 5, "kind": "pivot"}], Code.MALFORMED, "/steps/0/kind",
         "a wait cannot have kind, only id, after, when, wait, timeout_ms, on_timeout"),
        ([{"wait_ms": 5, "on_timeout": "fail"}], Code.MALFORMED, "/steps/0/on_timeout",
         "a pause cannot have on_timeout, only id, after, when, wait_ms"),
        ([step("a"), step("b") | {"depends_on": ["a"]}, step("c", "b", **PIVOT)], Code.MALFORMED,
         "/steps/1/depends_on", "has an unknown member 'depends_on'; is it meant as after?"),
        ([step("a", each="lines", params=ITEM)], Code.MALFORMED, "/steps/0/each",
         'each must be a reference to a list in the input, such as {"$ref": "/input/items"}'),
        ([step("a", each=LINES, params=[ITEM], **PIVOT), step("b", "a", kind="retriable")], Code.MALFORMED,
         "/steps/0/each", "each cannot stand in a pivot: a saga has at most one"),
        ([step("a"), step("b", "a.0"), step("c", "a", "b", **PIVOT)], Code.AFTER, "/steps/1/after/0",
         "after/0: 'a.0' is not the id or number of a step before it in the list"),
        ([], Code.MALFORMED, "/steps", "steps must be a list of 1 to 100"),
    ],
)  # fmt: skip
def test_one_mistake_is_told_once_and_with_what_helps(
    steps: list[dict[str, Any]], code: Code, pointer: str, text: str
) -> None:
    written = [{name: one[name] for name in one if name != "after" or "depends_on" not in one} for one in steps]
    assert problems({"name": "o", "version": 1, "steps": written}) == [Problem(code, pointer, text)]


def test_each_in_one_saga_is_told_once() -> None:
    body = {"saga_id": "s1", "input": {"lines": [1]}, "steps": [step("a", each=LINES, params={"of": [ITEM]})]}
    text = "each is only of the steps of a definition: in one saga, write each step"
    assert problems(body) == [Problem(Code.MALFORMED, "/steps/0/each", text)]


@pytest.mark.parametrize("members", [{}, {"input": {}}])
def test_a_misspelled_member_is_told_whatever_the_format(members: dict[str, Any]) -> None:
    body = {"saga_id": "s1", "steps": [{"transaction": "Do", "service": "work", "aftr": []}]} | members
    text = "has an unknown member 'aftr'; is it a misspelling of after?"
    assert problems(body) == [Problem(Code.MALFORMED, "/steps/0/aftr", text)]


def test_what_is_of_one_saga_is_told_in_a_definition() -> None:
    (problem,) = problems({"name": "o", "version": 1, "steps": [step("a")], "start_at_ms": 1_800_000_000_000})
    text = "start_at_ms is of one saga, not of all: say it when you begin one, by --start-at or start_at="
    assert problem == Problem(Code.MALFORMED, "/start_at_ms", text)


def test_all_that_is_wrong_with_attributes_is_told() -> None:
    attributes: dict[str, Any] = {
        "customer": {"$ref": "/steps/a/result"},
        "kind": True,
        "shop": {"$concat": ["s", {"$ref": "/input/shop"}]},
        "total": {"$ref": "/input/total"},
    }
    schema = {"type": "object", "properties": {"shop": {}}, "additionalProperties": False}
    assert set(found(step("a"), input=schema, attributes=attributes, example={"shop": 1})) == {
        (Code.MALFORMED, "/attributes/customer/$ref"),
        (Code.MALFORMED, "/attributes/kind"),
        (Code.INPUT, "/attributes/total/$ref"),
    }
    assert found(step("a"), attributes=[]) == [(Code.MALFORMED, "/attributes")]
    text = text_of(step("a"), attributes={"shop": {"$ref": "/input/shop"}}, example={"shop": [1]})
    assert text == "attributes/shop must be a text or a whole number"
    assert found(step("a"), attributes={"shop": {"$ref": "/input/shop"}}, example={"shop": 1}) == []


def test_a_list_of_members_is_not_taken_for_a_schema() -> None:
    assert found(step("a"), input={"total": "int"}) == [(Code.SCHEMA, "/input")]
    some: list[dict[str, Any]] = [{}, {"title": "Any"}, {"$defs": {}}, {"type": "object", "x-note": 1}]
    for schema in some:
        assert found(step("a"), input=schema) == []


def test_one_problem_does_not_hide_another() -> None:
    steps = [
        step("a", params={"x": {"$ref": "/steps/b/result"}}, timeout_ms=-1, typo=1),
        step("b", "nothing", servce="work"),
        {"transaction": "Do", "service": "work", "kind": "retriable", "when": {"eq": [1]}},
        step("d", "a", "b", **PIVOT),
        7,
    ]
    body = {"name": "o", "version": "1", "steps": steps[:4]}
    codes = [(code, pointer) for code, pointer, _ in problems(body)]
    assert codes == [
        (Code.MALFORMED, "/version"),
        (Code.MALFORMED, "/steps/0/timeout_ms"),
        (Code.MALFORMED, "/steps/0/typo"),
        (Code.REFERENCE, "/steps/0/params/x/$ref"),
        (Code.AFTER, "/steps/1/after/0"),
        (Code.MALFORMED, "/steps/1/servce"),
        (Code.CONDITION, "/steps/2/when/eq"),
        (Code.PIVOT, "/steps/2"),
        (Code.PIVOT, "/steps/2/kind"),
    ]


def test_all_steps_beside_the_pivot_are_named() -> None:
    steps = [step("a"), step("b"), step("c", "b"), step("p", "c", **PIVOT), step("r", kind="retriable")]
    assert found(*steps) == [(Code.PIVOT, "/steps/0"), (Code.PIVOT, "/steps/4")]


_VALUES = st.sampled_from([None, True, 0, -1, "x", "pivot", "a.b c", [], ["later"], [9], {}, {"$ref": "/x"}, {"$x": 1}])
_NAMES = [
    *("id", "after", "when", "each", "wait", "wait_ms", "timeout_ms", "transaction", "service", "params", "kind"),
    *("compensation", "compensation_params", "retry_on", "retry_within_ms", "on_timeout", "attempts", "nonsense"),
    *("name", "version", "input", "steps", "example", "deadline_ms", "deadline", "use", "attributes"),
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-1, 6), st.sampled_from(_NAMES), st.none() | st.tuples(_VALUES)), min_size=1, max_size=6
    )
)
def test_whatever_is_written_is_told_exactly_if_the_core_refuses_it(changes: list[tuple[int, str, Any]]) -> None:
    body = deepcopy(JOURNEY)
    for at, name, value in changes:
        where = body if at < 0 else body["steps"][at] if isinstance(body.get("steps"), list) else {}
        if at < 0 and name == "steps":
            continue  # then there is nothing to look at
        if value is None:
            where.pop(name, None)
        else:
            where[name] = value[0]
    before, refused = deepcopy(body), None
    try:
        sketch(parse(body))
    except MalformedMessage as error:
        refused = str(error)
    told = problems(body)
    assert body == before
    if refused is not None:
        assert [problem for problem in told if problem.text in refused]
    assert (refused is not None) == any(
        problem.code not in NOT_REFUSED or "names no compensation" in problem.text for problem in told
    )


#: What the core takes, though it is wrong.
NOT_REFUSED = {Code.AFTER_REDUNDANT, Code.NEEDLESS_UNDO, Code.DEADLINE, Code.INPUT, Code.SCHEMA, Code.EXAMPLE}


# --- the command

RULE = "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"


def test_the_command_tells_lines_and_columns(tmp_path: Path) -> None:
    body = deepcopy(JOURNEY)
    body["steps"][2]["after"] = ["later", "nothing"]
    body["steps"][5]["compensation"] = "bad name"
    place = written(tmp_path, body)
    result = run("lint", place)
    assert result.exit_code == 1
    lines = Path(place).read_text().splitlines()
    after, compensation = (
        next(n for n, line in enumerate(lines, 1) if text in line) for text in ("nothing", "bad name")
    )
    assert result.stdout.splitlines() == [
        f"{place}:{after - 2}:7: after: step 3 (hotel): after: there is no step nothing before it in the list",
        f"{place}:{compensation}:7: malformed: step 6 (pay): compensation {RULE}",
    ]
    assert result.stderr.splitlines() == [
        f"2 problems in {place}",
        "not checked: what services publish (--services and --store tell it)",
        "not checked: whether its content has changed and its version has not (--store tells it)",
    ]
    (first, _) = [json.loads(line) for line in run("lint", "--json", place).stdout.splitlines()]
    assert first == {
        "source": place, "line": after - 2, "column": 7, "pointer": "/steps/2/after", "step": 3, "name": "hotel",
        "code": "after", "text": "after: there is no step nothing before it in the list",
    }  # fmt: skip


def test_without_problems_the_exit_code_is_0(tmp_path: Path) -> None:
    result = run("lint", written(tmp_path, JOURNEY))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("0 problems in ")


def test_what_is_not_json_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text('{"name": "o",\n  "version" 1}')
    result = run("lint", str(tmp_path / "wrong.json"))
    assert result.exit_code == 2
    assert "line 2 column 13" in result.stderr


def test_services_are_compared(tmp_path: Path) -> None:
    steps = [
        {"transaction": "ReserveInventory", "service": "inventory"},
        {"transaction": "ShipIt", "service": "shipping", "compensation": "x\x1b[0m"},
    ]
    place = written(tmp_path, {"saga_id": "s1", "steps": steps})
    result = run("lint", place, "--services", "sagastream_stubs.inventory:service")
    assert result.exit_code == 1
    assert "unknown-service: step 2 (ShipIt): no service shipping is known: there are inventory" in result.stdout
    assert "\x1b" not in result.stdout
    assert "what services publish" not in result.stderr

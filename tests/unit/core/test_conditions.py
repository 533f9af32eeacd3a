"""Conditions: what holds, what cannot be decided, and what is wrong before the saga runs."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.conditions import MAX_COMPARED_BYTES, MAX_TESTS, holds, problems
from sagastream.core.references import CACHED_BYTES, MAX_OPERATORS, Known, Roots, Sources
from sagastream.core.strict_json import encode
from sagastream.errors import CannotBuild
from support.values import JSON_VALUES
from support.worst import cpu_ms

SEALED = {"$sealed": {"key": "k", "from": "1/result", "data": "eA=="}}
INPUT = {
    "total": 100,
    "same": 100.0,
    "name": "Ann",
    "yes": True,
    "no": False,
    "null": None,
    "items": [1, "a", True, None, {"a": 1}],
    "one": {"a": 1, "b": [2]},
    "other": {"b": [2.0], "a": 1},
    "card": SEALED,
    "deep": [{"card": SEALED}],
    "longest": 2**64 - 1,
}
ROOTS = Roots(
    steps={"1": Known.ANCESTOR, "2": Known.MAY_BE_BYPASSED, "3": Known.ITSELF, "4": Known.OTHER},
)


def sources(of_input: Any = INPUT) -> Sources:
    return Sources(saga_id="saga42", input=encode(of_input), result_of={"1": b'{"id":"r-1"}'}.get)


def at(name: str, **default: Any) -> dict[str, Any]:
    return {"$ref": f"/input/{name}", **default}


def is_so(condition: Any, of_input: Any = INPUT) -> bool:
    return holds(encode(condition), sources(of_input))


def why_not(condition: Any, of_input: Any = INPUT) -> str:
    """The text of the error."""
    with pytest.raises(CannotBuild) as caught:
        is_so(condition, of_input)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told(condition: Any, roots: Roots = ROOTS) -> list[str]:
    return [str(problem) for problem in problems(condition, roots)]


#: Conditions that hold.
SO: list[Any] = [
    True,
    {"eq": [at("total"), 100]},
    {"eq": [at("total"), 100.0]},
    {"eq": [at("total"), at("same")]},
    {"eq": [at("name"), {"$concat": ["A", "nn"]}]},
    {"eq": [{"$concat": [at("name"), "!"]}, "Ann!"]},
    {"eq": [at("null"), None]},
    {"eq": [at("one"), at("other")]},
    {"eq": [[at("total"), {"x": at("yes")}], [100, {"x": True}]]},
    {"eq": [{"$literal": at("total")}, {"$literal": at("total")}]},
    {"eq": [at("nothing", default=5), 5]},
    {"eq": [at("longest"), 2**64 - 1]},
    {"eq": [{"$ref": "/steps/1/result/id"}, "r-1"]},
    {"eq": [{"$ref": "/saga/id"}, "saga42"]},
    {"ne": [at("yes"), 1]},
    {"ne": [at("no"), 0]},
    {"ne": [at("no"), None]},
    {"ne": [at("total"), "100"]},
    {"ne": [[True], [1]]},
    {"ne": [{"a": False}, {"a": 0}]},
    {"ne": [[], {}]},
    {"ne": [[], None]},
    {"ne": [[1], [1, 2]]},
    {"ne": [{"a": 1}, {"a": 1, "b": 1}]},
    {"ne": [{"a": 1}, {"b": 1}]},
    {"ne": [at("longest"), float(2**64)]},
    {"ne": [1, at("deep")]},
    {"ne": [at("one"), at("deep")]},
    {"lt": [at("total"), 100.5]},
    {"le": [at("total"), 100.0]},
    {"gt": [at("total"), -1]},
    {"ge": [at("total"), at("same")]},
    {"lt": ["Ann", "Ben"]},
    {"lt": ["Zoe", "ann"]},
    {"lt": ["", at("name")]},
    {"lt": ["\uffff", "\U00010000"]},
    {"ge": ["a", "a"]},
    {"in": [at("name"), ["Ben", "Ann"]]},
    {"in": [1.0, at("items")]},
    {"in": [{"a": 1.0}, at("items")]},
    {"in": [at("total"), [at("same")]]},
    {"exists": at("null")},
    {"exists": at("items/0")},
    {"exists": {"$ref": "/steps/1/result"}},
    {"exists": at("card")},
    {"exists": at("deep/0/card")},
    {"all": [True, {"eq": [1, 1]}]},
    {"any": [False, {"eq": [1, 1]}]},
    {"not": False},
    {"not": {"not": {"all": [{"any": [False, True]}]}}},
]
#: Conditions that do not hold.
NOT_SO: list[Any] = [
    False,
    {"eq": [at("yes"), 1]},
    {"eq": [at("name"), "ann"]},
    {"eq": ["é", "e\u0301"]},
    {"ne": [at("total"), at("same")]},
    {"lt": [at("total"), 100]},
    {"gt": [at("total"), 100.0]},
    {"le": ["b", "a"]},
    {"in": [1, [True, "1", [1], 1.5]]},
    {"in": [0, []]},
    {"in": [False, at("items")]},
    {"exists": at("nothing")},
    {"exists": at("items/5")},
    {"exists": at("null/a")},
    {"exists": {"$ref": "/steps/2/result"}},
    {"exists": {"$ref": "/steps/2/result/a/b"}},
    {"all": [True, False]},
    {"any": [False, {"eq": [1, 2]}]},
    {"not": True},
]


@pytest.mark.parametrize("condition", SO, ids=json.dumps)
def test_what_holds(condition: Any) -> None:
    assert is_so(condition)
    assert not is_so({"not": condition})
    assert is_so({"all": [{"ne": ["x" * CACHED_BYTES, ""]}, condition]})  # too long to be compiled once
    assert told(condition) == []


@pytest.mark.parametrize("condition", NOT_SO, ids=json.dumps)
def test_what_does_not_hold(condition: Any) -> None:
    assert not is_so(condition)
    assert is_so({"not": condition})


def test_what_is_decided_needs_no_more() -> None:
    fails = {"gt": [at("nothing"), 1]}
    assert is_so({"any": [{"eq": [1, 1]}, fails]})
    assert not is_so({"all": [{"eq": [1, 2]}, fails]})
    guarded = {"all": [{"exists": at("nothing")}, fails]}
    assert not is_so(guarded)
    assert is_so({"not": guarded})
    undecided: list[Any] = [
        {"any": [fails, True]},
        {"all": [fails, False]},
        {"not": fails},
        {"eq": [at("nothing")] * 2},
    ]
    for condition in undecided:
        assert why_not(condition) == "/input/nothing: there is nothing there (input has no member nothing)"


NO_ORDER = "have no order; only two numbers or two texts have"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ({"gt": [at("name"), 5]}, f"/gt: a text (/input/name) and a number {NO_ORDER}"),
        ({"not": {"lt": [5, at("name")]}}, f"/not/lt: a number and a text (/input/name) {NO_ORDER}"),
        (
            {"all": [True, {"le": [at("yes"), at("no")]}]},
            f"/all/1/le: a boolean (/input/yes) and a boolean (/input/no) {NO_ORDER}",
        ),
        ({"any": [False, {"ge": [at("null"), 0]}]}, f"/any/1/ge: null (/input/null) and a number {NO_ORDER}"),
        ({"ge": [at("items"), at("one")]}, f"/ge: a list (/input/items) and an object (/input/one) {NO_ORDER}"),
        ({"in": [1, at("name")]}, "/in: in takes a value and a list, and the second is a text (/input/name)"),
        (
            {"not": {"in": ["a", at("one")]}},
            "/not/in: in takes a value and a list, and the second is an object (/input/one)",
        ),
        ({"eq": [at("card"), 1]}, "/input/card: a sealed value cannot be compared"),
        ({"ne": [[], at("deep")]}, "/input/deep: a sealed value cannot be compared"),
        ({"ne": [at("deep"), []]}, "/input/deep: a sealed value cannot be compared"),
        ({"lt": [1, at("card")]}, "/input/card: a sealed value cannot be compared"),
        ({"in": [at("deep"), []]}, "/input/deep: a sealed value cannot be compared"),
        ({"in": [1, at("deep")]}, "/input/deep: a sealed value cannot be compared"),
        ({"eq": [1, [at("card")]]}, "/eq/1: a sealed value cannot be compared"),
        ({"any": [{"eq": [[], at("nothing", default=[SEALED])]}]}, "/input/nothing: a sealed value cannot be compared"),
        (
            {"exists": at("card/number")},
            "/input/card/number: /input/card is sealed, and can be copied only as a whole",
        ),
        (
            {"eq": [at("deep/0/card/number", default=1), 1]},
            "/input/deep/0/card/number: /input/deep/0/card is sealed, and can be copied only as a whole",
        ),
        ({"eq": [{"$concat": [at("items")]}, ""]}, "/input/items: a list cannot be joined to a text"),
    ],
)
def test_what_cannot_be_decided_is_an_error(condition: Any, text: str) -> None:
    assert why_not(condition) == text
    assert told(condition) == []


THE_OPERATORS = "eq, ne, lt, le, gt, ge, in, exists, all, any, not"
NOT_A_CONDITION = 'a value is not a condition; compare it, as in {"eq": [{"$ref": …}, true]}'
NOT_KNOWN = 'is not known, only $ref, $concat, $literal are; if this is data, write {"$literal": …} around it'


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        (1, "a number is not a condition: write true, false or an operator"),
        ("true", "a text is not a condition: write true, false or an operator"),
        (None, "null is not a condition: write true, false or an operator"),
        ({"not": []}, "/not: a list is not a condition: write true, false or an operator"),
        ({}, "a condition is an object with one operator, and this one has 0 members"),
        ({"eq": [1, 1], "ne": [1, 2]}, "a condition is an object with one operator, and this one has 2 members"),
        (at("yes"), NOT_A_CONDITION),
        ({"all": [at("yes")]}, f"/all/0: {NOT_A_CONDITION}"),
        ({"equals": [1, 1]}, f"there is no operator equals, only {THE_OPERATORS}"),
        ({"EQ": [1, 1]}, f"there is no operator EQ, only {THE_OPERATORS}"),
        ({"eq": 1}, "/eq: eq takes a list of two values"),
        ({"eq": [1]}, "/eq: eq takes a list of two values"),
        ({"any": [True, {"in": [1, 2, 3]}]}, "/any/1/in: in takes a list of two values"),
        ({"all": []}, "/all: all takes a list of at least one condition"),
        ({"any": {"eq": [1, 1]}}, "/any: any takes a list of at least one condition"),
        ({"exists": "/input/a"}, "/exists: exists takes a reference without a default"),
        ({"exists": at("a", default=1)}, "/exists: exists takes a reference without a default"),
        ({"exists": {"$concat": [at("a")]}}, "/exists: exists takes a reference without a default"),
        ({"exists": SEALED}, "/exists: exists takes a reference without a default"),
        ({"exists": {"$ref": "a"}}, "/exists/$ref: a is not a JSON Pointer: it must begin with /"),
        ({"all": [{"exists": {"$ref": "/input", "a": 1}}]}, "/all/0/exists/a: an object with $ref has no member a"),
        ({"not": {"eq": [[{"$x": 1}], 1]}}, f"/not/eq/0/0/$x: $x {NOT_KNOWN}"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_told_with_its_path(condition: Any, problem: str) -> None:
    assert told(condition) == [problem]
    assert why_not(condition) == problem


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ({"in": [1, 2]}, "/in/1: in takes a value and a list, and this is a number"),
        ({"lt": [True, 1]}, "/lt/0: a boolean has no order; only numbers and texts have"),
        ({"lt": [at("a"), [1]]}, "/lt/1: a list has no order; only numbers and texts have"),
        ({"eq": [SEALED, at("a")]}, "/eq/0: a sealed value cannot be compared"),
        ({"in": [1, [SEALED]]}, "/in/1: a sealed value cannot be compared"),
    ],
)
def test_a_value_in_the_condition_that_never_fits_is_told(condition: Any, problem: str) -> None:
    assert told(condition) == [problem]


def test_references_are_checked_wherever_they_stand() -> None:
    steps = [{"$ref": f"/steps/{name}/result"} for name in ("2", "3", "4", "5")]
    assert told({"any": [{"eq": [steps[0], steps[1]]}, {"in": [1, [steps[2]]]}, {"not": {"exists": steps[3]}}]}) == [
        "/any/2/not/exists/$ref: /steps/5/result: there is no step 5",
        "/any/0/eq/0/$ref: /steps/2/result: step 2 may be bypassed or go on without a result; say a default",
        "/any/0/eq/1/$ref: /steps/3/result: a step has no result before it is done",
        "/any/1/in/1/0/$ref: /steps/4/result: step 4 may not be done by then; name it in after",
    ]
    assert told({"exists": steps[0]}) == []
    assert told({"exists": steps[2]}) == [
        "/exists/$ref: /steps/4/result: step 4 may not be done by then; name it in after"
    ]
    assert told({"exists": {"$ref": "/failure/error"}}) != []


def test_a_condition_has_a_limit_of_operators_and_of_references() -> None:
    most: list[Any] = [{"eq": [at("total"), 1]}] * (MAX_TESTS - 1)
    assert told({"any": most}) == []
    assert told({"any": [*most, {"not": True}]}) == ["a condition has at most 100 operators"]
    few: list[Any] = [{"in": [at("total"), [at("total")] * (MAX_OPERATORS // 10 - 1)]}] * 10
    assert told({"any": few}) == []
    assert told({"any": [*few, {"eq": [1, at("name")]}]}) == [
        "/any/10/eq/1: too many: at most 1000 objects with $ref, $concat or $literal"
    ]


TOO_LARGE = f"too large: a condition compares at most {MAX_COMPARED_BYTES} bytes"
#: The text of a list that takes half of what a condition compares.
HALF = MAX_COMPARED_BYTES // 2
#: Two of them, which are equal.
LISTS = {"a": ["x" * (HALF - 4)], "b": ["x" * (HALF - 4)]}
LONGER = LISTS | {"b": ["x" * (HALF - 3)]}


def test_a_condition_compares_lists_and_objects_up_to_a_limit() -> None:
    pair = [at("a"), at("b")]
    assert len(encode(LISTS["a"])) == HALF
    assert is_so({"eq": pair}, LISTS)
    assert why_not({"eq": pair}, LONGER) == f"/input/b: {TOO_LARGE}"
    assert why_not({"in": pair}, LONGER) == f"/input/b: {TOO_LARGE}"
    whole = {"a": ["x" * (2 * HALF - 4)], "o": {"a": "x" * (2 * HALF - 8)}}
    assert not is_so({"in": [1, at("a")]}, whole)
    assert why_not({"eq": [at("a"), []]}, whole) == f"/eq/1: {TOO_LARGE}"
    assert why_not({"ne": [{"x": 1}, at("o")]}, whole) == f"/input/o: {TOO_LARGE}"
    assert why_not({"any": [{"in": [1, []]}, {"in": [1, at("a")]}]}, whole) == f"/input/a: {TOO_LARGE}"


def test_all_that_one_condition_compares_counts_together_as_far_as_it_looks() -> None:
    first: dict[str, Any] = {"in": [1, at("a")]}
    assert not is_so({"any": [first, first]}, LISTS)
    assert why_not({"any": [first, first, {"in": [1, []]}]}, LISTS) == f"/any/2/in/1: {TOO_LARGE}"
    assert is_so({"any": [{"not": first}, first, first]}, LISTS)


def test_what_is_built_to_be_compared_counts_too() -> None:
    text = {"t": "x" * (MAX_COMPARED_BYTES - 2), "a": 1}
    built = {"$concat": [at("t")]}
    assert is_so({"eq": [built, at("t")]}, text)
    assert why_not({"eq": [{"$concat": [at("t"), "y"]}, at("t")]}, text) == f"/eq/0: {TOO_LARGE}"
    assert why_not({"eq": [1, [at("t")]]}, text) == f"/eq/1: {TOO_LARGE}"


def test_a_value_of_any_size_may_be_compared_with_a_text_a_number_or_null() -> None:
    """It need not be looked into; and two texts are compared as they are."""
    large = sources(
        {"a": ["x" * 1000] * 1000, "o": {str(number): number for number in range(50_000)}, "t": "x" * 300_000}
    )
    tests: list[Any] = [
        {"ne": [at("a"), 5]},
        {"ne": [None, at("o")]},
        {"eq": [at("t"), at("t")]},
        {"ne": [at("a"), at("o")]},
    ]
    condition = encode({"all": tests * (MAX_TESTS // 4 - 1)})
    assert holds(condition, large)
    assert cpu_ms(lambda: holds(condition, large)) < 25


def test_what_a_condition_itself_says_is_refused_before_the_saga_runs_if_it_is_too_large_to_compare() -> None:
    fits, too_large = "x" * (MAX_COMPARED_BYTES - 4), "x" * (MAX_COMPARED_BYTES - 3)
    assert told({"in": [at("a"), [fits]]}) == []
    assert told({"any": [{"in": [at("a"), [too_large]]}]}) == [f"/any/0/in/1: {TOO_LARGE}"]


#: Pairs of equal values that are dear to compare. Both together are as large as a condition may compare.
DEAR: dict[str, Any] = {
    "empty lists": [[]] * ((HALF - 1) // 3),
    "objects": [{"a": 1}] * ((HALF - 1) // 8),
    "numbers": [1] * ((HALF - 1) // 2),
    "an object": {f"{number:x}": 1 for number in range((HALF - 1) // 8)},
    "nested": [[[[[[[[1]]]]]]]] * ((HALF - 1) // 16),
}


@pytest.mark.parametrize("name", DEAR)
def test_a_condition_takes_a_worker_a_few_milliseconds_at_most(name: str) -> None:
    one = DEAR[name]
    assert HALF * 0.9 < len(encode(one)) <= HALF
    dear = sources({"a": one, "b": one})
    condition = encode({"any": [{"ne": [at("a"), at("b")]}]})
    assert not holds(condition, dear)  # and the input is parsed
    assert cpu_ms(lambda: holds(condition, dear)) < 25
    many = encode({"any": [{"ne": [at("a"), at("b")]}] * (MAX_TESTS - 1)})
    assert cpu_ms(lambda: refused(many, dear)) < 25


def refused(condition: bytes, one: Sources) -> None:
    with pytest.raises(CannotBuild, match="too large"):
        holds(condition, one)


# --- against the plainest program that does the same


def _as_json(value: Any) -> Any:
    """A value that Python compares as JSON does."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return {name: _as_json(member) for name, member in value.items()} if isinstance(value, dict) else value


SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 0.0, -0.0, 2**53, float(2**53), 2**53 + 1, "", "1", "true"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", "$ref"]), inner, max_size=2),
    max_leaves=5,
)


@given(VALUES | JSON_VALUES, VALUES | JSON_VALUES)
def test_values_are_equal_as_json_values_are(one: Any, other: Any) -> None:
    expected = _as_json(one) == _as_json(other)
    data, pair = {"a": one, "b": other}, [at("a"), at("b")]
    assert is_so({"eq": pair}, data) is expected
    assert is_so({"eq": pair[::-1]}, data) is expected
    assert is_so({"ne": pair}, data) is not expected
    assert is_so({"in": [at("a"), [at("b")]]}, data) is expected
    assert is_so({"eq": [{"$literal": one}, at("a")]}, data)


@given(VALUES, VALUES)
def test_there_is_an_order_of_numbers_and_one_of_texts_and_no_other(one: Any, other: Any) -> None:
    data, pair = {"a": one, "b": other}, [at("a"), at("b")]
    kinds = {type(one), type(other)}
    if kinds <= {int, float} or kinds == {str}:
        assert is_so({"lt": pair}, data) is (one < other)
        assert is_so({"ge": pair}, data) is not (one < other)
        assert is_so({"gt": pair}, data) is is_so({"lt": pair[::-1]}, data)
        assert is_so({"le": pair}, data) is is_so({"ge": pair[::-1]}, data)
        return
    for name in ("lt", "le", "gt", "ge"):
        with pytest.raises(CannotBuild, match="no order"):
            is_so({name: pair}, data)


_TESTS = st.sampled_from(
    [(True, True), (False, False), ({"exists": at("total")}, True), ({"exists": at("no/x")}, False)]
)


def _joined(name: str, some: list[tuple[Any, bool]]) -> tuple[Any, bool]:
    decide = all if name == "all" else any
    return {name: [one for one, _ in some]}, decide(so for _, so in some)


CONDITIONS = st.recursive(
    _TESTS,
    lambda inner: (
        st.builds(lambda one: ({"not": one[0]}, not one[1]), inner)
        | st.builds(_joined, st.sampled_from(["all", "any"]), st.lists(inner, min_size=1, max_size=4))
    ),
    max_leaves=12,
)


@given(CONDITIONS)
def test_conditions_are_joined_as_logic_joins_them(condition: tuple[Any, bool]) -> None:
    written, expected = condition
    assert is_so(written) is expected
    assert told(written) == []


@given(
    st.recursive(
        VALUES | st.builds(at, st.sampled_from(["total", "name", "items", "nothing"])),
        lambda inner: st.dictionaries(
            st.sampled_from(["eq", "lt", "in", "exists", "all", "any", "not", "x", "$concat"]),
            inner | st.lists(inner, min_size=1, max_size=2),
            min_size=1,
            max_size=1,
        ),
        max_leaves=6,
    )
)
def test_whatever_is_wrong_is_told_before_the_saga_runs(condition: Any) -> None:
    if list(problems(condition, ROOTS)):
        return
    why = None
    try:
        is_so(condition)
    except CannotBuild as error:
        why = str(error)
    assert why is None or any(
        text in why for text in ("there is nothing there", NO_ORDER, "cannot be joined", "in takes")
    )

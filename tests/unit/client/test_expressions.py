"""What a definition in Python says of values that nobody knows yet, and what Python must not take it for."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from operator import neg, pos
from typing import Any

import pytest

from sagastream import (
    all_of,
    any_of,
    concat,
    default,
    exists,
    failure,
    index,
    item,
    literal,
    not_,
    one_of,
    saga_id,
)
from sagastream.client.expressions import Reference, condition_of, template_of
from sagastream.core.json_values import plain
from sagastream.errors import MalformedMessage

ORDER = object()
order = Reference("/input", ORDER)


def template(value: Any) -> Any:
    return template_of(value, ORDER, "params")


def condition(value: Any) -> Any:
    return condition_of(value, ORDER, "when")


def ref(pointer: str) -> dict[str, Any]:
    return {"$ref": pointer}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (order, ref("/input")),
        (order.total, ref("/input/total")),
        (order["total"], ref("/input/total")),
        (order.items[0].sku, ref("/input/items/0/sku")),
        (order["a/b"]["c~d"]["_e"]["$f"], ref("/input/a~1b/c~0d/_e/$f")),
        (order.items.index.count, ref("/input/items/index/count")),
        (item, ref("/item")),
        (item.sku, ref("/item/sku")),
        (index, ref("/index")),
        (failure.reason, ref("/failure/reason")),
        (saga_id, ref("/saga/id")),
        (default(order.note, None), ref("/input/note") | {"default": None}),
        (default(order.note, {"$ref": "/x"}), ref("/input/note") | {"default": {"$ref": "/x"}}),
        (concat("order ", order.id, 7), {"$concat": ["order ", ref("/input/id"), 7]}),
        (concat("a", default(order.b, "c"), literal("d")),
         {"$concat": ["a", ref("/input/b") | {"default": "c"}, {"$literal": "d"}]}),
        (literal({"$ref": "/input"}), {"$literal": {"$ref": "/input"}}),
        ({"a": [order.b, (1, order.c)]}, {"a": [ref("/input/b"), [1, ref("/input/c")]]}),
        ({"on": date(2026, 12, 24), "price": Decimal("1.50")}, {"on": "2026-12-24", "price": "1.50"}),
        (None, None),
    ],
)  # fmt: skip
def test_values_become_templates(value: Any, written: Any) -> None:
    assert template(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (order.total == 5, {"eq": [ref("/input/total"), 5]}),
        (order.total != order.paid, {"ne": [ref("/input/total"), ref("/input/paid")]}),
        (order.total < 5, {"lt": [ref("/input/total"), 5]}),
        (order.total <= 5, {"le": [ref("/input/total"), 5]}),
        (order.total > 5, {"gt": [ref("/input/total"), 5]}),
        (order.total >= 5, {"ge": [ref("/input/total"), 5]}),
        (5 < order.total, {"gt": [ref("/input/total"), 5]}),  # noqa: SIM300 - Python turns it round
        (order.note == None, {"eq": [ref("/input/note"), None]}),  # noqa: E711 - a value of JSON
        (exists(order.note), {"exists": ref("/input/note")}),
        (one_of(order.country, ["NG", "JP"]), {"in": [ref("/input/country"), ["NG", "JP"]]}),
        (one_of(5, order.numbers), {"in": [5, ref("/input/numbers")]}),
        (default(order.total, 0) > 5, {"gt": [ref("/input/total") | {"default": 0}, 5]}),
        (concat("a", order.b) == "ab", {"eq": [{"$concat": ["a", ref("/input/b")]}, "ab"]}),
        ((order.a == 1) & (order.b == 2), {"all": [{"eq": [ref("/input/a"), 1]}, {"eq": [ref("/input/b"), 2]}]}),
        ((order.a == 1) | exists(order.b), {"any": [{"eq": [ref("/input/a"), 1]}, {"exists": ref("/input/b")}]}),
        (~exists(order.a), {"not": {"exists": ref("/input/a")}}),
        (exists(order.a) & True, {"all": [{"exists": ref("/input/a")}, True]}),
        (any_of(not_(exists(order.a)), {"exists": ref("/input/b")}),
         {"any": [{"not": {"exists": ref("/input/a")}}, {"exists": ref("/input/b")}]}),
        (True & exists(order.a), {"all": [True, {"exists": ref("/input/a")}]}),
        (False | exists(order.a), {"any": [False, {"exists": ref("/input/a")}]}),
        (False, False),
    ],
)  # fmt: skip
def test_conditions_become_json(value: Any, written: Any) -> None:
    assert condition(value) == written


@pytest.mark.parametrize(
    ("told", "value"),
    [
        ("<reference /input/items/0/sku>", order.items[0].sku),
        ("<default default(/input/a, {'b': 1})>", default(order.a, {"b": 1})),
        ("<concat concat('order ', /input/id)>", concat("order ", order.id)),
        ("<literal literal({'$ref': 1})>", literal({"$ref": 1})),
        ("<condition /input/a > 1>", order.a > 1),
        (
            "<condition ((/input/a > 1) & (~(exists(/input/b)))) | (/item in [1, 2])>",
            ((order.a > 1) & ~exists(order.b)) | one_of(item, [1, 2]),
        ),
    ],
)
def test_they_can_be_read(told: str, value: object) -> None:
    assert repr(value) == told


BEFORE = "before the saga runs"
#: Of which type checkers say nothing, as of a user's code that has no types.
untyped: Any = order
untyped_exists: Any = exists
untyped_default: Any = default


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (lambda: bool(untyped.a), BEFORE),
        (lambda: untyped.a and untyped.b, "write a & b"),
        (lambda: not untyped.a, "~a for"),
        (lambda: 1 if untyped.a > 1 else 2, "when=… of a step for if"),
        (lambda: 0 < untyped.a < 5, "(a < b) & (b < c)"),
        (lambda: untyped.a in [1, 2], BEFORE),
        (lambda: 1 in untyped.a, "one_of(value, list)"),
        (lambda: [*untyped.items], "each=…"),
        (lambda: f"order {untyped.id}", 'concat("order ", …)'),
        (lambda: str(untyped.id), "concat("),
        (lambda: "order " + untyped.id, "concat(a, b)"),
        (lambda: untyped.a + 1, "what must be calculated is a step"),
        (lambda: untyped.a * 2, "what must be calculated is a step"),
        (lambda: untyped.a > 1 & untyped.b, "write brackets"),
        (lambda: (untyped.a == 1) & untyped.b, "write brackets"),
        (lambda: ~untyped.a, "compare it"),
        (lambda: untyped.total(1), "cannot be called"),
        (lambda: untyped.items[-1], "-1 is neither the name of a member nor the index of an item, from 0"),
        (lambda: untyped.items[1.5], "1.5 is neither"),
        (lambda: untyped.items[True], "True is neither"),
        (lambda: {untyped.a: 1}, "unhashable"),
        (lambda: untyped_exists("a"), "exists takes a reference"),
        (lambda: untyped_exists(untyped_default(untyped.a, 1)), "exists takes a reference"),
        (lambda: untyped_default(5, 1), "default takes a reference"),
        (lambda: all_of(untyped.a), "is not a condition"),
        (lambda: not_("a"), "is not a condition"),
    ],
)  # fmt: skip
def test_what_python_would_take_for_something_else_is_refused(misuse: Callable[[], object], text: str) -> None:
    with pytest.raises(TypeError) as error:
        misuse()
    assert text in str(error.value)


def test_nothing_can_be_assigned() -> None:
    with pytest.raises(AttributeError, match="cannot be changed"):
        order.total = 5


def test_what_python_looks_for_is_not_there() -> None:
    assert not hasattr(order, "__len__")
    assert not hasattr(order, "_private")
    with pytest.raises(AttributeError, match=r'write \["_private"\]'):
        _ = order._private


def test_a_copy_is_the_same() -> None:
    held = {"a": order.a}
    assert template(copy.deepcopy(held)) == {"a": ref("/input/a")}
    assert copy.copy(held["a"]) is held["a"]


def test_it_is_not_taken_for_data() -> None:
    with pytest.raises(MalformedMessage, match=r"a is a sagastream\.client\.expressions\.Reference"):
        plain({"a": order.a}, 10)


@dataclass
class Price:
    amount: Any


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [order.b > 1]}, "params/a/0: <condition /input/b > 1> is not a value: conditions stand in when=…"),
        ({"a": {1: 2}}, "params/a: the key 1 is not a text"),
        ({"a/b": {2}}, "params/a~1b: not JSON: it is a set"),
        (literal(order.a), "params: <reference /input/a> stands where only data can stand"),
        (default(order.a, order.b), "params: <reference /input/b> stands where only data can stand"),
        (Price(order.a), "params: not JSON: amount is a sagastream.client.expressions.Reference"),
        ([Reference("/input", "<the other>").x], "params/0: /input/x is of '<the other>', not of this definition"),
    ],
)
def test_what_cannot_be_a_value_is_refused_with_its_place(value: Any, text: str) -> None:
    with pytest.raises(MalformedMessage) as error:
        template(value)
    assert str(error.value) == text


def test_what_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append({"a": ring})
    for value in (ring, literal(ring), concat(ring), default(order.a, ring)):
        with pytest.raises(MalformedMessage, match="nested too deep, or it holds itself"):
            template(value)


def test_a_value_is_no_condition() -> None:
    with pytest.raises(
        MalformedMessage, match=r"^when: <reference /input/a> is a value and not a condition: compare it"
    ):
        condition(order.a)
    with pytest.raises(MalformedMessage, match=r"^when/eq/1: <condition exists\(/input/b\)> is not a value"):
        condition(order.a == exists(order.b))


@pytest.mark.parametrize(
    "calculate", [neg, pos, abs, round, int, float, lambda value: value % 2, lambda value: 2**value]
)
def test_nothing_is_calculated_before_the_saga_runs(calculate: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"has no value before the saga runs: .* what must be calculated is a step"):
        calculate(order.a)

"""Templates: what their references find, what is wrong with them, and that data never becomes a reference."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.references import (
    CACHED_BYTES,
    MAX_BUILT_BYTES,
    MAX_OPERATORS,
    Failure,
    Known,
    Roots,
    Sources,
    build,
    has_references,
    names,
    problems,
)
from sagastream.core.strict_json import MAX_DEPTH, MAX_PAYLOAD_BYTES, MAX_VALUES, decode, encode, encode_payload
from sagastream.errors import CannotBuild
from support.values import JSON_VALUES, nested_value
from support.worst import VALID, cpu_ms

SEALED = {"$sealed": {"key": "k", "from": "1/result", "data": "eA=="}}
INPUT = {
    "total": 99.5,
    "whole": 1.0,
    "most": 2**64 - 1,
    "items": [{"sku": "a"}, {"sku": "b"}],
    "note": "é\u2028\u0000",
    "nothing": None,
    "a/b": {"~": 1},
    "card": SEALED,
}
RESULTS = {"reserve": {"id": "r-1", "days": 3}, "2": {"id": 7}, "card": SEALED, "null": None}
ROOTS = Roots(
    steps={
        "1": Known.ANCESTOR,
        "reserve": Known.ANCESTOR,
        "2": Known.MAY_BE_BYPASSED,
        "3": Known.ITSELF,
        "4": Known.OTHER,
    }
)
UNDO_ROOTS = Roots(steps=ROOTS.steps, failure=True, own=True)


NOT_KNOWN = 'is not known, only $ref, $concat, $literal are; if this is data, write {"$literal": …} around it'
THE_ROOTS = (
    "the roots are /input, /saga/id, /steps/<id or number>/result, /failure/step, /failure/error and /failure/reason"
)
NO_ROOTS = ["/", "/inputs", "/saga", "/saga/id/x", "/saga/ids", "/steps", "/steps/1", "/steps/1/params", "/index/x"]


def sources(
    of_input: Any = INPUT, results: dict[str, Any] = RESULTS, failure: Failure | None = None, saga_id: str = "saga42"
) -> Sources:
    encoded = {step: encode(result) for step, result in results.items()}
    return Sources(saga_id=saga_id, input=encode(of_input), result_of=encoded.get, failure=failure)


def built(template: Any, *args: Any, **kwargs: Any) -> str:
    return build(encode(template), sources(*args, **kwargs)).decode()


def refused(template: bytes, found: Sources) -> str:
    """The text of the error."""
    with pytest.raises(CannotBuild) as caught:
        build(template, found)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def why_not(template: Any, *args: Any, **kwargs: Any) -> str:
    return refused(encode(template), sources(*args, **kwargs))


def ref(pointer: str, **default: Any) -> dict[str, Any]:
    return {"$ref": pointer, **default}


def told(template: Any, roots: Roots = ROOTS) -> list[str]:
    return [str(problem) for problem in problems(template, roots)]


# --- what is built


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (ref("/input/total"), "99.5"),
        (ref("/input/whole"), "1.0"),
        (ref("/input/most"), "18446744073709551615"),
        (ref("/input/nothing"), "null"),
        (ref("/input/nothing", default=1), "null"),
        (ref("/input/items/1/sku"), '"b"'),
        (ref("/input/items"), '[{"sku":"a"},{"sku":"b"}]'),
        (ref("/input/a~1b/~0"), "1"),
        (ref("/input/note"), '"é\u2028\\u0000"'),
        (ref("/input"), encode(INPUT).decode()),
        (ref("/saga/id"), '"saga42"'),
        (ref("/steps/reserve/result/id"), '"r-1"'),
        (ref("/steps/reserve/result"), '{"id":"r-1","days":3}'),
        (ref("/steps/2/result/id"), "7"),
        (ref("/steps/null/result"), "null"),
        (ref("/input/card"), encode(SEALED).decode()),
        (ref("/steps/card/result"), encode(SEALED).decode()),
        (SEALED, encode(SEALED).decode()),
        ({"card": SEALED, "of": ref("/saga/id")}, f'{{"card":{encode(SEALED).decode()},"of":"saga42"}}'),
        (ref("/input/no", default=None), "null"),
        (ref("/input/items/2", default=[1.0]), "[1.0]"),
        (ref("/steps/9/result", default={"$ref": "/input"}), '{"$ref":"/input"}'),
        (ref("/steps/9/result/id", default={"$x": 1}), '{"$x":1}'),
        ({"$literal": {"$ref": "/input/total"}}, '{"$ref":"/input/total"}'),
        ([{"$literal": {"$literal": [{"$x": 1}]}}, 2], '[{"$literal":[{"$x":1}]},2]'),
        ({"a": [ref("/input/total"), {"b": ref("/saga/id")}], "c": None}, '{"a":[99.5,{"b":"saga42"}],"c":null}'),
        ([ref("/input/total"), ref("/input/total")], "[99.5,99.5]"),
        ({"": ref("/input/total"), '\\"\u0000': [ref("/saga/id")]}, '{"":99.5,"\\\\\\"\\u0000":["saga42"]}'),
        ({"default": ref("/saga/id")}, '{"default":"saga42"}'),
        ("\u0000", '"\\u0000"'),
        ([], "[]"),
        (5, "5"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_template_becomes_what_its_references_find(template: Any, text: str) -> None:
    assert built(template) == text
    assert built([template] * 300) == f"[{','.join([text] * 300)}]"  # too long to be compiled once


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["order ", ref("/input/items/0/sku")], "order a"),
        ([1, " ", 1.0, " ", -0.0, " ", 1e300, " ", 2**64 - 1], f"1 1.0 -0.0 {encode(1e300).decode()} {2**64 - 1}"),
        ([ref("/input/total"), "/", ref("/input/whole"), "/", ref("/input/most")], "99.5/1.0/18446744073709551615"),
        (["a", {"$concat": [ref("/saga/id"), {"$concat": ["b"]}]}, "c"], "asaga42bc"),
        ([{"$literal": "$x"}, {"$literal": 5}], "$x5"),
        ([ref("/input/no", default="none"), ref("/input/no", default=0)], "none0"),
        ([ref("/input/note"), '"\\'], 'é\u2028\u0000"\\'),
    ],
)
def test_concat_joins_texts_and_numbers_as_json_writes_them(items: list[Any], text: str) -> None:
    assert json.loads(built({"$concat": items})) == text
    assert json.loads(built([0, {"$concat": items}])) == [0, text]


def test_the_failure_has_all_its_members_whatever_is_known() -> None:
    template = {"step": ref("/failure/step"), "error": ref("/failure/error"), "reason": ref("/failure/reason")}
    failed = Failure(step="reserve", error=b'{"code":1.0}', reason="out of stock")
    assert built(template, failure=failed) == '{"step":"reserve","error":{"code":1.0},"reason":"out of stock"}'
    assert built(ref("/failure"), failure=failed) == built(template, failure=failed)
    assert built(ref("/failure/error/code"), failure=failed) == "1.0"
    cancelled = Failure(step=None, reason="too late")
    assert built(template, failure=cancelled) == '{"step":null,"error":null,"reason":"too late"}'


def test_the_same_arguments_give_the_same_bytes() -> None:
    template = encode({"b": ref("/input/items"), "a": {"$concat": [ref("/input/total")]}})
    assert build(template, sources()) == build(bytes(bytearray(template)), sources())


def test_a_result_is_asked_for_only_if_it_is_named_and_parsed_once() -> None:
    asked: list[str] = []

    def result_of(step: str) -> bytes | None:
        asked.append(step)
        return b'{"a":1,"b":2}'

    one = Sources(saga_id="s", input=b"{}", result_of=result_of)
    build(encode(ref("/input")), one)
    assert asked == []
    for _ in range(2):
        build(encode([ref("/steps/x/result/a"), ref("/steps/x/result/b")]), one)
    assert asked == ["x"]


# --- what cannot be built


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (ref("/input/no"), "/input/no: there is nothing there (input has no member no)"),
        (
            ref("/input/items/2"),
            "/input/items/2: there is nothing there (input/items has 2 items, and the index 2 is too high)",
        ),
        (
            ref("/input/items/-"),
            "/input/items/-: there is nothing there (input/items is a list, and - is not an index)",
        ),
        (ref("/input/total/x"), "/input/total/x: there is nothing there (input/total is a number)"),
        (ref("/input/a~1b/x"), "/input/a~1b/x: there is nothing there (input/a~1b has no member x)"),
        (ref("/input/"), "/input/: there is nothing there (input has no member '')"),
        (ref("/steps/9/result"), "/steps/9/result: there is nothing there (step 9 has no result)"),
        (ref("/steps/9/result/id"), "/steps/9/result/id: there is nothing there (step 9 has no result)"),
        (
            ref("/steps/reserve/result/x/y"),
            "/steps/reserve/result/x/y: there is nothing there (steps/reserve/result has no member x)",
        ),
        (ref("/steps/null/result/x"), "/steps/null/result/x: there is nothing there (steps/null/result is null)"),
        (ref("/failure/step"), "/failure/step: there is nothing there (this saga has no failure now)"),
        (ref("/item"), "/item: there is nothing there (this saga has no item now)"),
        ({"$concat": [ref("/input/no")]}, "/input/no: there is nothing there (input has no member no)"),
        (ref("/input/card/x"), "/input/card/x: /input/card is sealed, and can be copied only as a whole"),
        (ref("/input/card/x", default=1), "/input/card/x: /input/card is sealed, and can be copied only as a whole"),
        (
            ref("/input/card/$sealed/data"),
            "/input/card/$sealed/data: /input/card is sealed, and can be copied only as a whole",
        ),
        (
            ref("/steps/card/result/id"),
            "/steps/card/result/id: /steps/card/result is sealed, and can be copied only as a whole",
        ),
        ({"$concat": [ref("/input/card")]}, "/input/card: a sealed value cannot be joined to a text"),
        ({"$concat": [ref("/input/items")]}, "/input/items: a list cannot be joined to a text"),
        ({"$concat": [ref("/input/nothing")]}, "/input/nothing: null cannot be joined to a text"),
        ({"$concat": [ref("/input")]}, "/input: an object cannot be joined to a text"),
        ({"a": [{"$x": 1}]}, f"/a/0/$x: $x {NOT_KNOWN}"),
        (
            {"$concat": [{"$concat": [{"$ref": 1}]}]},
            "/$concat/0/$concat/0/$ref: a reference is a JSON Pointer such as /input/total, and this is a number",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if not isinstance(value, str) else "",
)
def test_what_cannot_be_built_is_refused_with_where_and_why(template: Any, text: str) -> None:
    assert why_not(template) == text
    if "/$" not in text.partition(": ")[0]:
        assert why_not({"a": ["b", template]}) == text


def test_a_long_pointer_and_a_long_name_are_shortened_in_texts() -> None:
    assert len(why_not(ref("/input/" + "x" * 5000))) < 300
    assert len(told(ref("/" + "x" * 5000))[0]) < 400
    assert len(told({"$" + "x" * 5000: 1})[0]) < 400


def test_a_text_does_not_tell_what_stands_in_the_data() -> None:
    secret = {"a": {"pin": "secret"}, "l": ["secret"], "t": "secret"}
    for pointer in ("/input/a/x", "/input/l/x", "/input/l/7", "/input/t/x"):
        assert "secret" not in why_not(ref(pointer), secret)
    assert "secret" not in why_not({"$concat": [ref("/input/a")]}, secret)


# --- limits


def test_what_is_built_is_at_most_what_a_command_can_hold() -> None:
    assert MAX_BUILT_BYTES == MAX_PAYLOAD_BYTES
    large = {"a": "x" * (MAX_BUILT_BYTES - 2)}
    assert len(built(ref("/input/a"), large)) == MAX_BUILT_BYTES
    too_large = f"too large: what is built has more than {MAX_BUILT_BYTES} bytes"
    assert why_not(ref("/input"), large) == f"/input: {too_large}"
    assert why_not([ref("/saga/id"), ref("/input/a")], large) == f"/input/a: {too_large}"
    assert why_not([ref("/input/a")], large) == f"/input/a: {too_large}"
    less = {"a": "x" * (MAX_BUILT_BYTES - 3)}
    assert why_not([ref("/input/a")], less) == too_large  # its last bracket is too much
    assert why_not({"$concat": [ref("/input/a"), ref("/input/a")]}, large) == f"/input/a: {too_large}"
    escaped = {"a": "\u0001" * (MAX_BUILT_BYTES // 5)}
    assert why_not({"$concat": [ref("/input/a")]}, escaped) == too_large


@pytest.mark.parametrize("size", [1 << 12, 1 << 20])
@pytest.mark.parametrize("template", [[ref("/input/a")] * 1000, {"$concat": [ref("/input/a")] * 1000}], ids=str)
def test_a_large_value_a_thousand_times_is_refused_before_it_is_built(template: Any, size: int) -> None:
    one = sources({"a": "x" * size})
    text = encode(template)
    assert "too large" in why_not(template, {"a": "x" * size})
    if size == 1 << 20:
        assert cpu_ms(lambda: refused(text, one), enough_ms=45) < 50


def test_what_is_built_nests_no_deeper_than_a_payload_may() -> None:
    levels = MAX_DEPTH - 3
    assert built(ref("/input/a"), {"a": nested_value(levels)}) == encode(nested_value(levels)).decode()
    assert f"deeper than {levels}" in why_not([ref("/input/a")], {"a": nested_value(levels)})
    assert f"deeper than {levels}" in why_not([[ref("/input/a")]], {"a": nested_value(levels - 1)})


def test_what_is_built_holds_no_more_values_than_a_payload_may() -> None:
    half = {"a": [1] * (MAX_VALUES // 2)}
    assert "too many values" in why_not([ref("/input/a"), ref("/input/a")], half)


@pytest.mark.parametrize("name", VALID)
def test_a_template_without_references_costs_little_however_it_is_made(name: str) -> None:
    template = json.loads(VALID[name])
    text = encode(template)
    assert cpu_ms(lambda: build(text, sources()), enough_ms=95) < 100
    assert cpu_ms(lambda: list(problems(template, ROOTS)), enough_ms=95) < 100


def test_a_template_has_at_most_a_thousand_references() -> None:
    most: list[Any] = [ref("/saga/id")] * MAX_OPERATORS
    assert told(most) == []
    others: list[Any] = [ref("/saga/id"), {"$concat": []}, {"$literal": 1}]
    for more in others:
        assert told([*most, more]) == ["/1000: too many: at most 1000 objects with $ref, $concat or $literal"]
    text = encode(most)
    assert cpu_ms(lambda: build(text, sources()), enough_ms=45) < 50


def test_a_problem_of_a_long_template_costs_no_more() -> None:
    many = [{"$x": 1}] * 48_000
    text = encode(many)
    assert len(told(many)) == MAX_OPERATORS + 1
    assert cpu_ms(lambda: refused(text, sources()), enough_ms=145) < 150


def test_a_text_joined_of_joined_texts_costs_no_more_than_one_that_is_not() -> None:
    def nested(levels: int) -> Any:
        template: Any = {"$concat": ["ab"] * 90_000}
        for _ in range(levels):
            template = {"$concat": [template, "c"]}
        return template

    deep = nested((MAX_DEPTH - 8) // 2)
    text = encode(deep)
    assert len(json.loads(built(deep))) == 2 * 90_000 + (MAX_DEPTH - 8) // 2
    assert cpu_ms(lambda: list(problems(deep, ROOTS)), enough_ms=45) < 50
    assert cpu_ms(lambda: build(text, sources()), enough_ms=95) < 100


def test_templates_that_are_not_kept_are_built_alike() -> None:
    template = {"a": ref("/input/total"), "pad": "x" * CACHED_BYTES}
    assert len(encode(template)) > CACHED_BYTES
    assert json.loads(built(template)) == {"a": 99.5, "pad": "x" * CACHED_BYTES}


# --- problems


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ({"a": {"$rf": "/input"}}, f"/a/$rf: $rf {NOT_KNOWN}"),
        ({"$": 1}, f"/$: $ {NOT_KNOWN}"),
        ({"b": 1, "$x/y": 1}, f"/$x~1y: '$x/y' {NOT_KNOWN}"),
        ({"$sealed": "k"}, f"/$sealed: $sealed {NOT_KNOWN}"),
        ({**SEALED, "a": 1}, f"/$sealed: $sealed {NOT_KNOWN}"),
        ({"$ref": "/input", "a": 1}, "/a: an object with $ref has no member a"),
        ({"$ref": "/input", "$literal": 1}, "/$literal: an object with $ref has no member $literal"),
        ({"$literal": 1, "default": 1}, "/default: an object with $literal has no member default"),
        ({"$concat": [], "a": 1}, "/a: an object with $concat has no member a"),
        ([{"$ref": 5}], "/0/$ref: a reference is a JSON Pointer such as /input/total, and this is a number"),
        (ref("input/a"), "/$ref: input/a is not a JSON Pointer: it must begin with /"),
        (ref("/input/~"), "/$ref: /input/~ is not a JSON Pointer: in a name, ~ is written ~0, and / is written ~1"),
        (ref(""), f"/$ref: the pointer is empty; {THE_ROOTS}"),
        *[
            (ref(pointer), f"/$ref: {pointer}: there is no such root; {THE_ROOTS}")
            for pointer in (*NO_ROOTS, "/failure/x", "/#", "/result")
        ],
        ({"$concat": "a"}, "/$concat: $concat joins a list, and this is a text"),
        ({"$concat": ["a", None]}, "/$concat/1: null cannot be joined to a text"),
        ({"$concat": [True]}, "/$concat/0: a boolean cannot be joined to a text"),
        ({"$concat": [["a"]]}, "/$concat/0: a list cannot be joined to a text"),
        ({"$concat": [{"a": 1}]}, "/$concat/0: an object cannot be joined to a text"),
        ({"$concat": [SEALED]}, "/$concat/0: a sealed value cannot be joined to a text"),
        ({"$concat": [{"$literal": []}]}, "/$concat/0: a list cannot be joined to a text"),
        ({"$concat": [ref("/input/a", default=False)]}, "/$concat/0: a boolean cannot be joined to a text"),
        ({"$concat": ["a", {"$concat": [1, {"$x": 1}]}]}, f"/$concat/1/$concat/1/$x: $x {NOT_KNOWN}"),
        ({"a/b~": [ref("/steps/9/result")]}, "/a~1b~0/0/$ref: /steps/9/result: there is no step 9"),
        (
            {"$concat": [ref("/steps/4/result")]},
            "/$concat/0/$ref: /steps/4/result: step 4 may not be done by then; name it in after",
        ),
        (ref("/steps/3/result"), "/$ref: /steps/3/result: a step has no result before it is done"),
        (
            ref("/steps/2/result/id"),
            "/$ref: /steps/2/result/id: step 2 may be bypassed or go on without a result; say a default",
        ),
        (ref("/failure/reason"), "/$ref: /failure/reason: only compensation_params may name the failure"),
        (ref("/item/sku"), "/$ref: /item/sku: only a step with each has an item and an index"),
        (ref("/index"), "/$ref: /index: only a step with each has an item and an index"),
    ],
    ids=lambda value: json.dumps(value)[:50] if not isinstance(value, str) else "",
)
def test_a_problem_is_told_with_its_path(template: Any, problem: str) -> None:
    assert told(template) == [problem]


@pytest.mark.parametrize(
    "template",
    [
        SEALED,
        {"a": [SEALED]},
        {"$literal": {"$x": 1}},
        ref("/steps/2/result", default={"$x": 1}),
        ref("/steps/1/result/a/b"),
        ref("/steps/reserve/result"),
        {"$concat": ["a", 1, ref("/saga/id"), {"$literal": "b"}, {"$concat": []}]},
        {"price": "$5", "a$": 1, "default": 1},
    ],
    ids=json.dumps,
)
def test_what_is_right_has_no_problems(template: Any) -> None:
    assert told(template) == []


def test_what_only_some_steps_may_name() -> None:
    undo = [ref("/failure"), ref("/failure/error/code"), ref("/steps/3/result/id")]
    assert told(undo, UNDO_ROOTS) == []
    assert len(told(undo)) == 3
    assert told([ref("/item/sku"), ref("/index")], Roots(steps={}, item=True)) == []


def test_all_problems_are_told_in_order() -> None:
    template = {"a": ref("/input", x=1), "b": [{"$y": 1}, {"$concat": [ref("/steps/9/result"), {"$z": 1}]}]}
    paths = ["/a/x", "/b/0/$y", "/b/1/$concat/0/$ref", "/b/1/$concat/1/$z"]
    assert [problem.path for problem in problems(template, ROOTS)] == paths


def test_the_steps_that_are_named_are_known_and_whether_anything_is_to_be_built() -> None:
    joined = {"$concat": [ref("/steps/7/result", default="no")]}
    template = {"a": [ref("/steps/x/result/steps", default=ref("/steps/no/result")), joined]}
    assert names([template, {"$literal": ref("/steps/no/result")}, ref("/input/steps/no/result")]) == {"x", "7"}
    to_build: list[Any] = [template, {"$literal": 1}, [[{"$concat": []}]], {"$x": 1}]
    assert all(map(has_references, to_build))
    for plain in (None, "$ref", {"a": "$ref"}, ["$ref"], SEALED, {"default": 1}):
        assert not has_references(plain)


# --- data never becomes a reference

#: Data that looks like references, literals, sealed values and pointers.
_NAMES = st.sampled_from(["$ref", "$concat", "$literal", "$sealed", "default", "a", "0", "~", "/", "", "$x"])
_TEXTS = st.sampled_from(
    ["/input", "/input/a", "/saga/id", "/steps/1/result", "$ref", '{"$ref":"/input"}', "a", "\0", '"']
)
STRANGE = st.recursive(
    _TEXTS | st.integers(-9, 9) | st.sampled_from([None, True, 1.0, -0.0, 1e22, 2**64 - 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=10,
)
DATA = JSON_VALUES | STRANGE


@given(DATA, DATA)
def test_data_full_of_references_passes_unchanged(data: Any, other: Any) -> None:
    text, found = encode(data), sources({"a": data, "b": other}, {"1": data})
    copied = {"a": ref("/input/a"), "r": ref("/steps/1/result"), "d": ref("/no", default=data), "l": {"$literal": data}}
    copied["d"] = ref("/input/no", default=data)
    assert build(encode(copied), found) == b'{"a":%b,"r":%b,"d":%b,"l":%b}' % (text, text, text, text)
    once = build(encode(ref("/input")), found)
    assert build(encode({"$literal": json.loads(once)}), found) == once


@given(JSON_VALUES)
def test_a_template_without_references_builds_itself(value: Any) -> None:
    if not has_references(value):
        assert build(encode(value), sources()) == encode(value)
        assert told(value) == []


# --- against the plainest program that does the same


class _Refused(Exception):
    pass


def _plain_find(world: Any, pointer: str) -> Any:
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(world, dict) and name in world:
            world = world[name]
        elif isinstance(world, list) and name in map(str, range(len(world))):
            world = world[int(name)]
        else:
            raise _Refused
    return world


def _plain_build(template: Any, world: Any) -> Any:
    if isinstance(template, list):
        return [_plain_build(item, world) for item in template]
    if not isinstance(template, dict):
        return template
    if "$literal" in template:
        return template["$literal"]
    if "$concat" in template:
        parts = [_plain_build(item, world) for item in template["$concat"]]
        if not all(type(part) in (str, int, float) for part in parts):
            raise _Refused
        return "".join(part if isinstance(part, str) else encode(part).decode() for part in parts)
    if "$ref" not in template:
        return {name: _plain_build(member, world) for name, member in template.items()}
    try:
        return _plain_find(world, template["$ref"])
    except _Refused:
        if "default" not in template:
            raise
        return template["default"]


_POINTERS = st.builds(
    lambda root, tokens: "/".join([root, *tokens]),
    st.sampled_from(["/input", "/steps/1/result", "/steps/x/result"]),
    st.lists(st.sampled_from(["a", "b", "0", "1", "~0", "~1", "", "$ref"]), max_size=3),
) | st.just("/saga/id")
_REFERENCES = st.builds(ref, _POINTERS) | st.builds(
    lambda pointer, default: ref(pointer, default=default), _POINTERS, DATA
)
_JOINED = st.recursive(
    st.text(max_size=3) | st.integers(-9, 9) | st.floats(-9, 9) | st.builds(ref, _POINTERS),
    lambda inner: st.builds(lambda items: {"$concat": items}, st.lists(inner, max_size=3)),
    max_leaves=4,
)
TEMPLATES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | _REFERENCES
    | st.builds(lambda data: {"$literal": data}, DATA)
    | st.builds(lambda items: {"$concat": items}, st.lists(_JOINED, max_size=3)),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "é", "\0", '"']), inner, max_size=4)
    ),
    max_leaves=10,
)  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=3) | STRANGE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "~", "/", "", "$ref"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(TEMPLATES, st.dictionaries(st.sampled_from(["a", "b", "~", "/", "", "$ref"]), _VALUES, max_size=4), _VALUES)
def test_what_is_built_is_what_the_plainest_program_builds(template: Any, of_input: Any, result: Any) -> None:
    world = {"input": of_input, "saga": {"id": "saga42"}, "steps": {"1": {"result": result}}}
    roots = Roots(steps={"1": Known.ANCESTOR, "x": Known.ANCESTOR})
    if list(problems(template, roots)):  # a default that cannot be joined
        assert "cannot be joined" in why_not(template, of_input, {"1": result})
        return
    try:
        expected = encode(_plain_build(template, world))
    except _Refused:
        text = why_not(template, of_input, {"1": result})
        assert "there is nothing there" in text or "cannot be joined" in text
        return
    assert build(encode(template), sources(of_input, {"1": result})) == expected
    decode(expected)


@given(STRANGE)
def test_whatever_is_wrong_is_told_before_the_saga_runs(template: Any) -> None:
    if list(problems(template, ROOTS)):
        why_not(template)
        return
    why = None
    try:
        encode_payload(json.loads(built(template)))
    except CannotBuild as error:
        why = str(error)
    assert why is None or re.search("there is nothing there|cannot be joined|is sealed", why)

"""From a definition and an input to the steps of a saga: `each`, and what refers to it."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.definition import canonical, parse
from sagastream.core.expansion import expand, sketch
from sagastream.core.references import Sources, build
from sagastream.errors import MalformedMessage

Step = dict[str, Any]

PICK: Step = {
    "id": "pick",
    "each": {"$ref": "/input/items"},
    "transaction": "Pick",
    "service": "stock",
    "params": {"sku": {"$ref": "/item/sku"}, "line": {"$ref": "/index"}},
}


def a_step(name: str, **members: Any) -> Step:
    return {"id": name, "transaction": name.title(), "service": "shop"} | members


def expanded(steps: list[Step], data: dict[str, Any], **members: Any) -> dict[str, Any]:
    return expand(parse({"name": "order", "version": 1, "steps": steps} | members), data)


def steps_of(steps: list[Step], items: int) -> list[Step]:
    """The steps of a saga whose input has so many items."""
    found: list[Step] = expanded(steps, {"items": [{"sku": f"s{number}"} for number in range(items)]})["steps"]
    return found


def after(steps: list[Step], items: int) -> list[Any]:
    """What each step comes after, by its own name; None: the one before it."""
    return [(step.get("id", number), step.get("after")) for number, step in enumerate(steps_of(steps, items), 1)]


def refusal(steps: list[Step], data: dict[str, Any]) -> str:
    with pytest.raises(MalformedMessage) as error:
        expanded(steps, data)
    return str(error.value)


def ref(pointer: str, **more: Any) -> dict[str, Any]:
    return {"$ref": pointer} | more


def params(step: Step, *, items: int, name: str = "last") -> Any:
    """The params of a step that comes after `pick`."""
    (found,) = (one for one in steps_of([PICK, step], items) if one["id"] == name)
    return found["params"]


def test_without_each_the_steps_are_those_of_the_definition() -> None:
    steps = [a_step("a", params={"sku": ref("/input/sku")}), a_step("b", after=[]), a_step("c", after=["a", 2])]
    definition = parse({"name": "order", "version": 7, "steps": steps, "deadline_ms": 5, "deadline": "hard"})
    data = {"sku": "abc", "$ref": "/input/x"}
    assert expand(definition, data) == {
        "definition": {"name": "order", "version": 7, "sha256": definition.sha256},
        "input": data,
        "deadline_ms": 5,
        "deadline": "hard",
        "steps": steps,
    }


def test_a_step_with_each_becomes_one_step_an_item() -> None:
    assert steps_of([PICK], 2) == [
        {
            "id": "pick.0",
            "transaction": "Pick",
            "service": "stock",
            "params": {"sku": ref("/input/items/0/sku"), "line": 0},
        },
        {
            "id": "pick.1",
            "transaction": "Pick",
            "service": "stock",
            "params": {"sku": ref("/input/items/1/sku"), "line": 1},
            "after": [],
        },
    ]


def test_its_steps_are_done_at_once_and_what_names_it_comes_after_all_of_them() -> None:
    steps = [a_step("open"), PICK, a_step("pack"), a_step("ask", after=["open"]), a_step("ship", after=["pick", "ask"])]
    assert after(steps, 3) == [
        ("open", None),
        ("pick.0", None),
        ("pick.1", ["open"]),
        ("pick.2", ["open"]),
        ("pack", ["pick.0", "pick.1", "pick.2"]),
        ("ask", ["open"]),
        ("ship", ["pick.0", "pick.1", "pick.2", "ask"]),
    ]


def test_if_there_are_no_items_what_comes_after_it_comes_after_those_before_it() -> None:
    again = PICK | {"id": "again", "after": ["pick", "second"]}
    steps = [a_step("open"), a_step("second", after=[]), PICK | {"after": ["open"]}, again, a_step("ship")]
    assert after(steps, 0) == [("open", None), ("second", []), ("ship", ["open", "second"])]
    assert after([PICK, a_step("ship")], 0) == [("ship", None)]
    assert after([PICK, a_step("ship", after=["pick"]), a_step("last", after=["pick"])], 0) == [
        ("ship", None),
        ("last", []),
    ]


def test_chains_of_empty_steps_take_no_time() -> None:
    many = [PICK | {"id": f"p{number}", "after": list(range(1, number))} for number in range(1, 100)]
    assert after([*many, a_step("last", after=list(range(1, 100)))], 0) == [("last", None)]


def test_steps_without_an_id_keep_being_named_by_their_number() -> None:
    plain = {"transaction": "A", "service": "shop"}
    last = plain | {"after": [1, 3], "params": [ref("/steps/1/result"), ref("/steps/3/result/x")]}
    found = steps_of([plain, PICK, plain, last], 3)
    assert found[4] == plain | {"after": ["pick.0", "pick.1", "pick.2"]}
    assert found[5] == plain | {"after": [1, 5], "params": [ref("/steps/1/result"), ref("/steps/5/result/x")]}


def test_its_number_names_a_step_with_each_as_its_id_does() -> None:
    last = a_step("last", after=[1], params={"first": ref("/steps/1/result/0/x"), "all": ref("/steps/1/result")})
    assert steps_of([PICK, last], 2)[2] == a_step(
        "last",
        after=["pick.0", "pick.1"],
        params={
            "first": ref("/steps/pick.0/result/x"),
            "all": [ref("/steps/pick.0/result"), ref("/steps/pick.1/result")],
        },
    )


def test_a_reference_to_its_result_is_the_list_of_their_results() -> None:
    last = a_step("last", params={"picked": ref("/steps/pick/result", default="none"), "say": {"$concat": ["a", "b"]}})
    assert params(last, items=2) == {
        "picked": [ref("/steps/pick.0/result", default="none"), ref("/steps/pick.1/result", default="none")],
        "say": {"$concat": ["a", "b"]},
    }
    assert params(last, items=0)["picked"] == []


def test_a_reference_to_a_result_that_there_is_not_names_an_item_that_there_is_not() -> None:
    last = a_step("last", params=ref("/steps/pick/result/2/x", default=0))
    assert params(last, items=3) == ref("/steps/pick.2/result/x", default=0)
    assert params(last, items=2) == ref("/input/items/2", default=0)
    sources = Sources(saga_id="s", input=b'{"items":[1,2]}', result_of=lambda _: None)
    assert build(orjson.dumps(params(last, items=2)), sources) == b"0"


def test_in_its_own_templates_its_result_is_that_of_its_item() -> None:
    pick = PICK | {"compensation_params": {"of": ref("/steps/pick/result/id"), "why": ref("/failure/reason")}}
    assert [step["compensation_params"]["of"] for step in steps_of([pick], 2)] == [
        ref("/steps/pick.0/result/id"),
        ref("/steps/pick.1/result/id"),
    ]


def test_conditions_are_about_the_item_too() -> None:
    pick = PICK | {"when": {"all": [{"gt": [ref("/item/count"), 0]}, {"lt": [ref("/index"), 2]}]}}
    assert steps_of([pick], 2)[1]["when"] == {"all": [{"gt": [ref("/input/items/1/count"), 0]}, {"lt": [1, 2]}]}


def test_data_is_left_alone() -> None:
    data = {"$literal": {"$ref": "/item"}}
    pick = PICK | {"params": {"data": data, "or": ref("/item/x", default={"$ref": "/item/y"}), "item": "/item"}}
    assert steps_of([pick], 1)[0]["params"] == {
        "data": data,
        "or": ref("/input/items/0/x", default={"$ref": "/item/y"}),
        "item": "/item",
    }


def test_names_with_slashes_and_tildes_are_written_as_pointers_write_them() -> None:
    pick = PICK | {"each": ref("/input/a~1b"), "params": ref("/item/c~0d")}
    found = expanded([pick], {"a/b": [1]})["steps"]
    assert found[0]["params"] == ref("/input/a~1b/0/c~0d")


def test_items_by_default_are_data() -> None:
    pick = PICK | {"each": ref("/input/items", default=[{"sku": {"$ref": "/input/x"}}, {}])}
    found = expanded([pick | {"params": [ref("/item/sku", default=7), ref("/index")]}], {})["steps"]
    assert [step["params"] for step in found] == [[{"$literal": {"$ref": "/input/x"}}, 0], [{"$literal": 7}, 1]]
    assert expanded([pick, a_step("last")], {"items": []})["steps"] == [a_step("last")]


def test_the_definition_is_not_changed() -> None:
    definition = parse(
        {"name": "order", "version": 1, "steps": [PICK, a_step("last", params=ref("/steps/pick/result"))]}
    )
    before = canonical(definition.body)
    expand(definition, {"items": [{}, {}]})
    assert canonical(definition.body) == before


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"items": {}}, "step 1: each: /input/items is not a list but an object"),
        ({"items": "ab"}, "step 1: each: /input/items is not a list but a text"),
        ({"items": None}, "step 1: each: /input/items is not a list but null"),
        ({}, "step 1: each: there is no /input/items: input has no member items"),
        ({"items": [{}] * 99}, None),
        (
            {"items": [{}] * 100},
            "steps: a saga has 1 to 100, and this one would have 101: 100 of /input/items",
        ),
    ],
)
def test_an_input_that_each_cannot_go_through_is_refused(data: dict[str, Any], text: str | None) -> None:
    steps = [PICK, a_step("last")]
    if text is None:
        assert len(expanded(steps, data)["steps"]) == 100
    else:
        assert refusal(steps, data) == text


def test_a_saga_without_steps_is_refused() -> None:
    text = "steps: a saga has 1 to 100, and this one would have 0: 0 of /input/items"
    assert refusal([PICK], {"items": []}) == text


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (a_step("last", after="pick"), "step 2: after must be a list of ids or numbers of steps before it"),
        (a_step("last", after=[True]), "step 2: after must be a list of ids or numbers of steps before it"),
        (a_step("last", after=["pick.0"]), "step 2: after: there is no step pick.0 before it in the list"),
        (a_step("last", after=["last"]), "step 2: after: there is no step last before it in the list"),
        (a_step("last", after=[2]), "step 2: after: there is no step 2 before it in the list"),
        (a_step("last", after=["1"]), "step 2: after: there is no step 1 before it in the list"),
        (
            a_step("last", params={"a": [ref("/steps/pick.0/result")]}),
            "step 2: params/a/0: there is no step pick.0 in the definition",
        ),
        (
            a_step("last", when={"exists": ref("/steps/3/result")}),
            "step 2: when/exists: there is no step 3 in the definition",
        ),
        (
            a_step("last", params=ref("/steps/pick/result/id")),
            "step 2: params: the result of a step with each is a list, one an item, and 'id' is not an index",
        ),
        (
            a_step("last", params=ref("/steps/pick/result/01")),
            "step 2: params: the result of a step with each is a list, one an item, and '01' is not an index",
        ),
    ],
)
def test_what_refers_to_steps_wrongly_is_refused(step: Step, text: str) -> None:
    assert refusal([PICK, step], {"items": [1, 2]}) == text


def test_a_sketch_has_one_step_for_each_step_of_the_definition() -> None:
    steps = [a_step("open"), PICK, a_step("last", params=[ref("/steps/pick/result/7/x"), ref("/steps/open/result")])]
    found = sketch(parse({"name": "order", "version": 1, "steps": steps})).steps
    assert [step.shape.id for step in found] == ["open", "pick.0", "last"]
    assert orjson.loads(found[2].params) == [ref("/steps/pick.0/result/x"), ref("/steps/open/result")]


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ({"id": "last", "transaction": "A"}, "step 3: service is missing"),
        (a_step("last", times=3), "step 3 has an unknown member 'times'"),
        (
            a_step("last", params=ref("/item")),
            "step 3: params/$ref: /item: only a step with each has an item and an index",
        ),
        (a_step("last", kind="pivot", after=["open"]), "step 2: it might run beside the pivot, step 3"),
        (
            a_step("last", after=["open"], params=[ref("/steps/pick/result")]),
            "step 3: params/0/0/$ref: /steps/pick.0/re",
        ),
        (a_step("last", when={"exists": ref("/inputs")}), "step 3: when/exists/$ref: /inputs: there is no such root"),
    ],
)
def test_a_sketch_is_checked_as_every_saga_is(step: Step, text: str) -> None:
    with pytest.raises(MalformedMessage) as error:
        sketch(parse({"name": "order", "version": 1, "steps": [a_step("open"), PICK, step]}))
    assert str(error.value).startswith(text)


GUARD: Step = {"gt": [ref("/item/count"), 0]}
BY_DEFAULT = ref("/input/items", default=[{"x": None, "y": "a", "z": [1], "t": True}, {}])


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (
            # pick.0 and ship.0 have the same guard, but pick.0 and ship.1 have not.
            [PICK | {"when": GUARD}, PICK | {"id": "ship", "when": GUARD, "params": ref("/steps/pick/result/0")}],
            (
                "step 2: params/$ref: /steps/pick.0/result: step pick.0 may be bypassed or go on without a result; "
                "say a default (if each list has 2 items)"
            ),
        ),
        (
            [PICK | {"when": GUARD}, PICK | {"id": "ship", "when": GUARD, "params": ref("/steps/pick/result/7")}],
            (
                "step 2: params/$ref: /steps/pick.1/result: step pick.1 may be bypassed or go on without a result; "
                "say a default (if each list has 2 items)"
            ),
        ),
        (
            [PICK, a_step("last", when={"lt": [ref("/steps/pick/result"), 3]})],
            "step 2: when/lt/0: a list has no order; only numbers and texts have",
        ),
        (
            [PICK | {"each": BY_DEFAULT, "when": {"gt": [ref("/item/t"), 0]}}],
            "step 1: when/gt/0: a boolean has no order; only numbers and texts have (with the default of each)",
        ),
        (
            [PICK | {"each": BY_DEFAULT, "when": {"in": [1, ref("/item/y")]}}],
            "step 1: when/in/1: in takes a value and a list, and this is a text (with the default of each)",
        ),
        (
            [a_step("open"), PICK | {"each": BY_DEFAULT, "params": {"$concat": ["a", ref("/item/z")]}}, a_step("last")],
            "step 2: params/$concat/1: a list cannot be joined to a text (with the default of each)",
        ),
        (
            [PICK | {"each": ref("/input/items", default=[1] * 100)}, a_step("last")],
            "steps: a saga has 1 to 100, and this one would have 101: 100 of /input/items",
        ),
        (
            [PICK, a_step("last", when={"exists": ref("/steps/pick/result")})],
            (
                "step 2: when/exists: /steps/pick/result is the list of all results, and is always there; ask for one "
                "of them, as in /steps/pick/result/0"
            ),
        ),
        ([PICK | {"when": {"not": {"exists": ref("/index")}}}], "step 1: when/not/exists: /index is always there"),
        (
            [PICK | {"each": BY_DEFAULT, "when": {"exists": ref("/item/x", default=1)}}],
            "step 1: when/exists: exists takes a reference without a default",
        ),
    ],
)
def test_what_some_inputs_would_be_refused_for_is_refused_in_the_definition(steps: list[Step], text: str) -> None:
    with pytest.raises(MalformedMessage) as error:
        sketch(parse({"name": "order", "version": 1, "steps": steps}))
    assert str(error.value) == text


def test_a_definition_that_is_not_ready_may_have_no_step_for_its_default() -> None:
    sketch(parse({"name": "order", "version": 1, "steps": [PICK | {"each": ref("/input/items", default=[])}]}))


def test_whether_a_member_of_an_item_exists_is_known_if_the_item_is_a_default() -> None:
    when = {
        "any": [{"exists": ref("/item/x")}, {"not": {"exists": ref("/item/y/z")}}, {"all": [{"exists": ref("/item")}]}]
    }
    steps = [PICK | {"each": BY_DEFAULT, "when": when, "params": {"exists": ref("/item/x", default=0)}}]
    sketch(parse({"name": "order", "version": 1, "steps": steps}))
    nothing = [{"exists": ref("/input/items/x")}, {"not": {"exists": ref("/input/items/y/z")}}]
    first, second = expanded(steps, {})["steps"]
    assert first["when"] == {"any": [True, nothing[1], {"all": [True]}]}
    assert second["when"] == {"any": [*nothing, {"all": [True]}]}
    assert first["params"] == {"exists": {"$literal": None}}
    given = expanded(steps, {"items": [{}]})["steps"][0]["when"]
    assert given["any"][0] == {"exists": ref("/input/items/0/x")}


def test_what_is_expanded_is_a_saga_that_may_begin() -> None:
    pick = PICK | {"when": {"gt": [ref("/item/count"), 0]}, "compensation_params": ref("/steps/pick/result")}
    last = a_step("last", params={"all": ref("/steps/pick/result", default=None)}, kind="pivot")
    members = expanded([a_step("open"), pick, last], {"items": [{"count": 0}, {"count": 2}]})
    begin = parse_begin(members | {"saga_id": "order-1"})
    assert begin.format == 2
    assert [step.shape.after for step in begin.steps] == [None, None, (1,), (2, 3)]


LISTS = st.lists(st.integers(0, 3), min_size=1, max_size=5)


@given(counts=LISTS, data=st.data())
def test_a_graph_of_lists_orders_the_same_steps_as_the_definition(counts: list[int], data: st.DataObject) -> None:
    """Each step of the definition has a list of its own. Then one made step comes after another if and only if there is
    a way from the one to the other in the definition."""
    direct = [data.draw(st.sets(st.integers(1, number)) if number else st.just(set())) for number in range(len(counts))]
    steps = [
        PICK | {"id": f"p{number}", "each": ref(f"/input/{number}"), "after": sorted(direct[number])}
        for number in range(len(counts))
    ]
    made = expanded([*steps, a_step("end")], {str(number): [{}] * count for number, count in enumerate(counts)})[
        "steps"
    ]
    before: list[set[int]] = []  # in the definition, all those before each, by index
    for ones in direct:
        before.append({one - 1 for one in ones}.union(*(before[one - 1] for one in ones)))
    origin = [int(step["id"][1 : step["id"].index(".")]) for step in made[:-1]]
    places = {step["id"]: place for place, step in enumerate(made)}
    ancestors: list[set[int]] = []
    for place, step in enumerate(made[:-1]):
        named = {places[one] for one in step["after"]} if "after" in step else {place - 1} - {-1}
        ancestors.append(named.union(*(ancestors[one] for one in named)))
        assert ancestors[place] == {one for one, number in enumerate(origin) if number in before[origin[place]]}


ROOTS = ["/input/x", "/saga/id"]
OF_ITEM = ["/item", "/item/x", "/index"]


DEFAULTS = [[], [{"x": 1}], [{"x": "a"}, {}], [{"x": [2]}, {"x": True}, 3]]


def templates(pointers: list[str]) -> st.SearchStrategy[Any]:
    references = st.builds(lambda pointer: ref(pointer, default=0), st.sampled_from(pointers))
    return st.recursive(
        references | st.integers(0, 3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_leaves=4,
    )


def conditions(pointers: list[str]) -> st.SearchStrategy[Any]:
    """Conditions whose references need no default by themselves."""
    values = (
        st.builds(ref, st.sampled_from(pointers)) | templates(pointers) | st.just({"$concat": ["a", ref(pointers[-1])]})
    )
    of_two = st.builds(
        lambda name, one, other: {name: [one, other]}, st.sampled_from(["eq", "lt", "in"]), values, values
    )
    exist = st.builds(lambda pointer: {"exists": ref(pointer)}, st.sampled_from(pointers))
    return st.recursive(
        of_two | exist,
        lambda inner: st.builds(lambda one: {"not": one}, inner) | st.builds(lambda one: {"all": [one, True]}, inner),
        max_leaves=2,
    )


@st.composite
def any_steps(draw: st.DrawFn) -> list[Step]:
    """Three steps. Most of what they refer to may be referred to."""
    steps: list[Step] = []
    pointers = ROOTS
    for number, name in enumerate("abc", 1):
        has_each = draw(st.booleans())
        own = pointers + (OF_ITEM if has_each else [])
        step = a_step(name, params=draw(templates(own)))
        if has_each:
            step["each"] = ref("/input/items")
        if draw(st.booleans()):
            step["after"] = (
                draw(st.lists(st.sampled_from(["a", "b", 1, 2][: 2 * number - 2]), max_size=2)) if steps else []
            )
        if draw(st.booleans()):
            step["when"] = {"eq": [draw(templates(own)), draw(templates(own))]}
        if draw(st.booleans()):
            step["compensation_params"] = draw(templates([*own, "/failure/reason", f"/steps/{name}/result"]))
        steps.append(step)
        results = [f"/steps/{name}/result", f"/steps/{number}/result/1"]
        pointers = [*pointers, *(results if has_each else [f"{results[0]}/x"])]
    return steps


def test_what_a_sketch_takes_is_taken_whatever_the_input() -> None:
    """So a definition that was deployed begins sagas."""
    taken: list[bool] = []

    @given(steps=any_steps(), items=st.lists(st.integers(0, 9), max_size=3))
    def expands(steps: list[Step], items: list[int]) -> None:
        taken.append(is_taken(steps, items))

    expands()
    assert sum(taken) > len(taken) / 4


def test_so_it_is_if_items_have_conditions_or_are_there_by_default() -> None:
    taken: list[bool] = []
    of_results = ["/steps/pick/result", "/steps/pick/result/0", "/steps/pick/result/1"]

    @given(
        whens=st.tuples(conditions(OF_ITEM), conditions(OF_ITEM), conditions(of_results)),
        has_when=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        is_same=st.booleans(),
        result=st.sampled_from(of_results),
        default=st.none() | st.sampled_from(DEFAULTS),
        items=st.none() | st.lists(st.integers(0, 9), max_size=3),
    )
    def expands(
        *,
        whens: tuple[Any, Any, Any],
        has_when: tuple[bool, bool, bool],
        is_same: bool,
        result: str,
        default: list[Any] | None,
        items: list[int] | None,
    ) -> None:
        each = ref("/input/items") if default is None else ref("/input/items", default=default)
        steps = [PICK | {"each": each}, PICK | {"id": "ship", "each": each, "params": ref(result)}, a_step("last")]
        for at, (step, when) in enumerate(zip(steps, whens, strict=True)):
            if has_when[at]:
                step["when"] = whens[0] if is_same and at == 1 else when
        taken.append(is_taken(steps, items))

    expands()
    assert sum(taken) > len(taken) / 8


def is_taken(steps: list[Step], items: list[int] | None) -> bool:
    """Whether a sketch takes a definition, which then begins a saga of these items. None: there is no list."""
    definition = parse({"name": "order", "version": 1, "steps": [*steps, a_step("end")]})
    try:
        sketch(definition)
    except MalformedMessage:
        return False
    each = [step["each"] for step in steps if "each" in step]
    if items is not None or all("default" in one for one in each):
        made = parse_begin(expand(definition, {} if items is None else {"items": items}) | {"saga_id": "s"}).steps
        counts = [len(one["default"] if items is None else items) for one in each]
        assert len(made) == len(steps) - len(each) + sum(counts) + 1
    return True

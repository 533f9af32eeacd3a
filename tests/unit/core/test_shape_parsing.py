"""What is wrong in a begin of a graph is told with its path, and nothing of it begins."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.begin_parsing import MAX_START_MS, parse_begin
from sagastream.core.decision import decide
from sagastream.core.messages import Begin, Code, Unreadable
from sagastream.core.parsing import read_request
from sagastream.core.saga import SagaState
from sagastream.core.steps import GRAPH, MAX_DEADLINE_MS, MAX_STEPS, MAX_WAIT_MS, PLAIN, PLAIN_SHAPE, Shape, StepKind
from sagastream.core.strict_json import MAX_BYTES, decode, encode
from sagastream.core.transitions import Moment
from sagastream.store import saga_hash
from support.values import JSON_VALUES, complaint

A: dict[str, Any] = {"transaction": "A", "service": "s"}
WAIT: dict[str, Any] = {"wait": "go", "timeout_ms": 5}
PIVOT = A | {"kind": "pivot", "compensation": None}
LAST = A | {"kind": "retriable"}
SHA256 = "a" * 64


def do(**members: Any) -> dict[str, Any]:
    return A | members


def ref(pointer: Any, **members: Any) -> dict[str, Any]:
    return {"$ref": pointer} | members


def body_of(*steps: Any, **members: Any) -> dict[str, Any]:
    return {"saga_id": "saga42", "format": GRAPH, "input": {}, "steps": list(steps)} | members


def told(*steps: Any, **members: Any) -> str:
    """What is said of a begin with these steps. It is refused with that over the wire, and its sender is told."""
    body = body_of(*steps, **members)
    text = complaint(lambda value: parse_begin(value, plain=True), decode(encode(body)))
    event = read_request({b"body": encode(body | {"type": "saga_begin"}), b"request_id": b"me-1"})
    assert event == Unreadable(code=Code.MALFORMED, text=text, request_id="me-1")
    decision = decide(None, event, Moment(now_ms=0, published={}))
    assert (decision.state, decision.commands) == (None, ())
    (notice,) = decision.notices
    assert orjson.loads(notice.body) == {"type": "error", "code": Code.MALFORMED, "text": text}
    assert text.isprintable()
    return text


# --- ids and order


BAD_IDS = ("", "a b", "7", "007", "x" * 65, "a.b", "a.1234", ".1", 7, None, True, ["a"], "ä", "a\n")


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_is_a_short_name_and_not_a_number(bad: Any) -> None:
    assert told(do(), do(id=bad)) == "step 2: id must be 1 to 64 characters of A-Z a-z 0-9 _ -, and not a number"


@pytest.mark.parametrize("good", ["a", "x" * 64, "7a", "-", "_", "pick.0", "pick.99", "1.5"])
def test_these_are_ids(good: str) -> None:
    assert parse_begin(body_of(do(id=good))).steps[0].shape.id == good


def test_an_id_is_unique() -> None:
    assert told(do(id="a"), do(id="b"), WAIT | {"id": "a"}) == "step 3: the id a is that of step 1 already"


@pytest.mark.parametrize("bad", [None, "a", 1, {"a": 1}])
def test_what_a_step_comes_after_is_a_list(bad: Any) -> None:
    assert told(do(id="a"), do(after=bad)) == "step 2: after must be a list of ids or numbers of steps before it"


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ([2], "after/0: 2"),
        ([1, 3], "after/1: 3"),
        ([0], "after/0: 0"),
        ([-1], "after/0: -1"),
        (["b"], "after/0: 'b'"),
        (["me"], "after/0: 'me'"),
        (["later"], "after/0: 'later'"),
        (["1"], "after/0: '1'"),
        ([1.0], "after/0: a number"),
        ([True], "after/0: a boolean"),
        ([None], "after/0: null"),
        ([["a"]], "after/0: a list"),
    ],
)
def test_a_step_comes_after_steps_that_stand_before_it_so_there_are_no_cycles(bad: Any, what: str) -> None:
    text = told(do(id="a"), do(id="me", after=bad), do(id="later"))
    assert text == f"step 2: {what} is not the id or number of a step before it in the list"


def test_after_is_read_as_the_numbers_of_the_direct_predecessors() -> None:
    steps = parse_begin(body_of(do(id="a"), do(), do(after=["a", 1, "a"]), do(after=[3]), do(after=[3, "a"]))).steps
    assert [step.shape.after for step in steps] == [None, None, (1,), None, (1, 3)]
    assert parse_begin(body_of(do(after=[]), do(after=[]))).steps[1].shape.after == ()


# --- the pivot


@pytest.mark.parametrize(
    ("steps", "number", "pivot", "side"),
    [
        ([do(), PIVOT | {"after": []}], 1, 2, "before"),
        ([do(), do(after=[]), PIVOT], 1, 3, "before"),
        ([WAIT, PIVOT | {"after": []}], 1, 2, "before"),
        ([do(), do(after=[1]), do(after=[1]), PIVOT], 2, 4, "before"),
        ([PIVOT, LAST | {"after": []}], 2, 1, "after"),
        ([do(), PIVOT, LAST | {"after": [1]}], 3, 2, "after"),
        ([do(), PIVOT, WAIT | {"after": [1]}], 3, 2, "after"),
    ],
)
def test_nothing_runs_beside_the_pivot(steps: list[Any], number: int, pivot: int, side: str) -> None:
    assert told(*steps) == (
        f"step {number}: it might run beside the pivot, step {pivot}, which is the point of no return: "
        f"each step {side} it in the list must come {side} it by `after`, too"
    )


def test_a_pivot_has_no_condition() -> None:
    text = "step 1: a pivot cannot have a condition: put it on the steps around it"
    assert told(PIVOT | {"when": True}) == text


def test_steps_around_the_pivot_may_run_beside_each_other() -> None:
    steps = parse_begin(body_of(do(), do(after=[]), PIVOT | {"after": [1, 2]}, LAST, LAST | {"after": [3]})).steps
    assert [step.shape.after for step in steps] == [None, (), (1, 2), None, (3,)]


# --- conditions

OPERATORS = "eq, ne, lt, le, gt, ge, in, exists, all, any, not"


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (None, "when: null is not a condition: write true, false or an operator"),
        (1, "when: a number is not a condition: write true, false or an operator"),
        ({}, "when: a condition is an object with one operator, and this one has 0 members"),
        ({"eq": [1]}, "when/eq: eq takes a list of two values"),
        ({"not": [True]}, "when/not: a list is not a condition: write true, false or an operator"),
        ({"all": [True, {"exists": 1}]}, "when/all/1/exists: exists takes a reference without a default"),
        ({"lt": [None, 1]}, "when/lt/0: null has no order; only numbers and texts have"),
        ({"equals": [1, 2]}, f"when: there is no operator equals, only {OPERATORS}"),
        (ref("/input/x"), 'when: a value is not a condition; compare it, as in {"eq": [{"$ref": …}, true]}'),
        ({"eq": [1, ref("/steps/9/result")]}, "when/eq/1/$ref: /steps/9/result: there is no step 9"),
        (
            {"exists": ref("/steps/2/result")},
            "when/exists/$ref: /steps/2/result: a step has no result before it is done",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_condition_is_told_with_its_path(bad: Any, text: str) -> None:
    assert told(do(), do(when=bad)) == f"step 2: {text}"
    assert told(do(), WAIT | {"when": bad}) == f"step 2: {text}"


# --- references


ROOTS = (
    "the roots are /input, /saga/id, /steps/<id or number>/result, /failure/step, /failure/error and /failure/reason"
)
UNKNOWN = 'is not known, only $ref, $concat, $literal are; if this is data, write {"$literal": …} around it'


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (ref("/steps/b/result"), "/$ref: /steps/b/result: a step has no result before it is done"),
        (ref("/steps/2/result"), "/$ref: /steps/2/result: a step has no result before it is done"),
        (ref("/steps/c/result"), "/$ref: /steps/c/result: step c may not be done by then; name it in after"),
        (ref("/steps/3/result/id"), "/$ref: /steps/3/result/id: step 3 may not be done by then; name it in after"),
        (ref("/steps/nobody/result"), "/$ref: /steps/nobody/result: there is no step nobody"),
        (ref("/failure/reason"), "/$ref: /failure/reason: only compensation_params may name the failure"),
        (ref("/item"), "/$ref: /item: only a step with each has an item and an index"),
        (ref("/steps/a"), f"/$ref: /steps/a: there is no such root; {ROOTS}"),
        (ref(""), f"/$ref: the pointer is empty; {ROOTS}"),
        (ref("input"), "/$ref: input is not a JSON Pointer: it must begin with /"),
        (ref(7), "/$ref: a reference is a JSON Pointer such as /input/total, and this is a number"),
        (ref("/input", x=1), "/x: an object with $ref has no member x"),
        ({"$reff": "/input"}, f"/$reff: $reff {UNKNOWN}"),
        ({"a": {"$x": 1}}, f"/a/$x: $x {UNKNOWN}"),
        ({"$concat": "x"}, "/$concat: $concat joins a list, and this is a text"),
        ({"$concat": ["a", None]}, "/$concat/1: null cannot be joined to a text"),
        ({"$literal": 1, "b": 2}, "/b: an object with $literal has no member b"),
    ],
)
def test_what_is_wrong_in_a_template_is_told_with_its_path(bad: Any, text: str) -> None:
    assert told(do(id="a"), do(id="b", params={"x": [1, bad]}), do(id="c")) == f"step 2: params/x/1{text}"


def test_a_reference_to_a_step_that_runs_beside_is_refused() -> None:
    text = told(do(id="a"), do(id="b"), do(after=["a"], params=ref("/steps/b/result")))
    assert text == "step 3: params/$ref: /steps/b/result: step b may not be done by then; name it in after"


MAYBE = "may be bypassed or go on without a result; say a default"
CARD = {"eq": [ref("/input/card"), True]}


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (do(id="a", when=CARD), MAYBE),
        (WAIT | {"id": "a", "on_timeout": "continue"}, MAYBE),
        ({"id": "a", "wait_ms": 5}, "is a pause, which never has a result"),
    ],
)
def test_a_reference_to_what_a_step_may_not_have_needs_a_default(first: Any, why: str) -> None:
    text = f"/steps/a/result/id: step a {why}"
    assert told(first, do(params=ref("/steps/a/result/id"))) == f"step 2: params/$ref: {text}"
    assert told(first, do(when={"eq": [ref("/steps/a/result/id"), 1]})) == f"step 2: when/eq/0/$ref: {text}"
    parse_begin(body_of(first, do(params=ref("/steps/a/result/id", default=None))))
    parse_begin(body_of(first, do(when={"exists": ref("/steps/a/result/id")})))


def test_a_step_under_the_same_condition_needs_no_default() -> None:
    parse_begin(body_of(do(id="a", when=CARD), do(when=CARD, params=ref("/steps/a/result/id"))))
    other = {"eq": [ref("/input/card"), False]}
    text = told(do(id="a", when=CARD), do(when=other, params=ref("/steps/a/result/id")))
    assert text == f"step 2: params/$ref: /steps/a/result/id: step a {MAYBE}"


def test_what_a_compensation_is_told_may_name_the_failure_and_its_own_result() -> None:
    good = {
        "why": ref("/failure"),
        "mine": ref("/steps/b/result/id"),
        "a": ref("/steps/a/result"),
        "of": ref("/saga/id"),
    }
    step = parse_begin(body_of(do(id="a"), do(id="b", compensation_params=good))).steps[1]
    assert step.shape.compensation_params == encode(good)
    text = told(do(id="a", compensation_params=ref("/steps/b/result")), do(id="b"))
    assert text == "step 1: compensation_params/$ref: /steps/b/result: step b may not be done by then; name it in after"
    assert told(do(compensation_params={"$x": 1})) == f"step 1: compensation_params/$x: $x {UNKNOWN}"


@pytest.mark.parametrize("member", ["when", "compensation_params"])
def test_what_is_a_template_in_any_case_needs_an_input(member: str) -> None:
    body = {"saga_id": "saga42", "format": GRAPH, "steps": [do(**{member: True})]}
    assert complaint(parse_begin, body) == f"step 1: {member} needs a saga with an input; it may be empty: {{}}"


@given(data=JSON_VALUES)
def test_without_an_input_params_are_data_whatever_they_look_like(data: Any) -> None:
    params = {"a": data, "b": {"$ref": "/steps/9/result"}, "c": {"$unknown": 1}}
    for body in (
        {"saga_id": "saga42", "steps": [do(params=params)]},
        {"saga_id": "saga42", "format": GRAPH, "steps": [do(id="a", params=params)]},
    ):
        (step,) = parse_begin(body).steps
        assert (decode(step.params), step.shape.has_references) == (decode(encode(params)), False)


@given(data=JSON_VALUES)
def test_an_input_is_data_whatever_it_looks_like(data: Any) -> None:
    given_input = {"a": data, "b": {"$ref": "/steps/9/result"}, "c": {"$unknown": 1}}
    begin = parse_begin(body_of(do(), input=given_input))
    assert begin.input is not None
    assert decode(begin.input) == decode(encode(given_input))


# --- waits and pauses


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"wait": "go"}, "step 1: timeout_ms is missing: for how long it waits for go at most"),
        (WAIT | {"wait": "a b"}, "step 1: wait must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"),
        (WAIT | {"wait": 7}, "step 1: wait must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"),
        (WAIT | {"timeout_ms": 0}, f"step 1: timeout_ms must be a whole number from 1 to {MAX_WAIT_MS}"),
        (WAIT | {"timeout_ms": MAX_WAIT_MS + 1}, f"step 1: timeout_ms must be a whole number from 1 to {MAX_WAIT_MS}"),
        (WAIT | {"timeout_ms": True}, f"step 1: timeout_ms must be a whole number from 1 to {MAX_WAIT_MS}"),
        (do(on_timeout="continue"), "step 1: on_timeout is of a wait: leave it out of a step that sends a command"),
        (WAIT | {"on_timeout": "skip"}, "step 1: on_timeout must be one of fail, continue"),
        (WAIT | {"on_timeout": None}, "step 1: on_timeout must be one of fail, continue"),
        ({"wait_ms": 0}, f"step 1: wait_ms must be a whole number from 1 to {MAX_WAIT_MS}"),
        ({"wait_ms": None}, f"step 1: wait_ms must be a whole number from 1 to {MAX_WAIT_MS}"),
        ({"wait_ms": MAX_WAIT_MS + 1}, f"step 1: wait_ms must be a whole number from 1 to {MAX_WAIT_MS}"),
    ],
)
def test_a_wait_and_a_pause_say_how_long(bad: Any, text: str) -> None:
    assert told(bad) == text


ONLY_A_WAIT = ", only id, after, when, wait, timeout_ms, on_timeout"
ONLY_A_PAUSE = ", only id, after, when, wait_ms"
OF_COMMANDS = {
    "transaction": "A",
    "service": "s",
    "params": 1,
    "compensation": None,
    "kind": "pivot",
    "attempts": 1,
    "compensation_attempts": 1,
    "backoff_ms": 1,
    "retry_failed": True,
    "compensation_params": 1,
    "retry_on": "x",
    "retry_within_ms": 1,
}


@pytest.mark.parametrize("member", OF_COMMANDS)
def test_a_wait_and_a_pause_have_nothing_that_only_a_command_has(member: str) -> None:
    more = {member: OF_COMMANDS[member]}
    assert told(WAIT | more) == f"step 1: a wait cannot have {member}{ONLY_A_WAIT}"
    assert told({"wait_ms": 5} | more) == f"step 1: a pause cannot have {member}{ONLY_A_PAUSE}"
    assert told(WAIT | {"aftr": []}) == "step 1 has an unknown member 'aftr'; is it a misspelling of after?"


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (WAIT | {"wait_ms": 5}, f"a wait cannot have wait_ms{ONLY_A_WAIT}"),
        ({"wait_ms": 5, "timeout_ms": 1}, f"a pause cannot have timeout_ms{ONLY_A_PAUSE}"),
        ({"wait_ms": 5, "on_timeout": "fail"}, f"a pause cannot have on_timeout{ONLY_A_PAUSE}"),
    ],
)
def test_a_step_is_a_wait_or_a_pause(bad: Any, text: str) -> None:
    assert told(bad) == f"step 1: {text}"


def test_what_a_wait_and_a_pause_are_read_as() -> None:
    steps = parse_begin(body_of(WAIT | {"id": "w", "on_timeout": "continue"}, {"wait_ms": 7}, PIVOT, WAIT)).steps
    wait, pause, _, last = steps
    assert (wait.transaction, wait.service, wait.params, wait.compensation) == ("go", "", b"null", None)
    assert wait.shape == Shape(id="w", sends=False, wait="go", wait_ms=5, goes_on=True)
    assert (pause.transaction, pause.shape) == ("pause", Shape(sends=False, wait_ms=7))
    # Behind the pivot, what does not come parks.
    assert [step.kind for step in (wait, pause, last)] == [
        StepKind.COMPENSATABLE,
        StepKind.COMPENSATABLE,
        StepKind.RETRIABLE,
    ]


# --- retries that are signalled


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"retry_on": "x"}, "retry_on and retry_within_ms belong together, and one of them is missing"),
        ({"retry_within_ms": 1}, "retry_on and retry_within_ms belong together, and one of them is missing"),
        ({"retry_on": "a b", "retry_within_ms": 1}, "retry_on must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"),
        ({"retry_on": "x", "retry_within_ms": 0}, f"retry_within_ms must be a whole number from 1 to {MAX_WAIT_MS}"),
        (
            {"retry_on": "x", "retry_within_ms": MAX_WAIT_MS + 1},
            f"retry_within_ms must be a whole number from 1 to {MAX_WAIT_MS}",
        ),
    ],
)
def test_a_retry_says_on_what_and_for_how_long(members: dict[str, Any], text: str) -> None:
    assert told(do(**members)) == f"step 1: {text}"


def test_a_step_that_does_not_fail_waits_for_no_retry() -> None:
    text = "step 2: a retriable step has no last failure to wait after: leave retry_on out"
    assert told(PIVOT, LAST | {"retry_on": "x", "retry_within_ms": 1}) == text


# --- the saga


@pytest.mark.parametrize("bad", [None, [], 1, "x", True])
def test_an_input_is_an_object(bad: Any) -> None:
    assert told(do(), input=bad) == "the body: input is not a JSON object"


GOOD = {"name": "order", "version": 3, "sha256": SHA256}


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (None, " is not a JSON object"),
        ({}, ": sha256 must be 64 hexadecimal digits"),
        (GOOD | {"sha256": "A" * 64}, ": sha256 must be 64 hexadecimal digits"),
        (GOOD | {"version": 0}, ": version must be a whole number from 1 to 1000000000"),
        (GOOD | {"version": "1"}, ": version must be a whole number from 1 to 1000000000"),
        (GOOD | {"name": "a b"}, ": name must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"),
        (GOOD | {"x": 1}, " has an unknown member 'x'"),
    ],
)
def test_a_definition_is_told_by_name_version_and_hash(bad: Any, text: str) -> None:
    assert told(do(), definition=bad) == f"the body: definition{text}"


@pytest.mark.parametrize("bad", [0, -1, "x", None, True, 1.5, 253_339_228_800_001])
def test_a_start_is_a_time_in_milliseconds(bad: Any) -> None:
    assert told(do(), start_at_ms=bad) == "the body: start_at_ms must be a whole number from 1 to 253339228800000"


def test_a_start_in_seconds_is_refused_where_a_saga_is_asked_for_and_taken_over_the_wire() -> None:
    seconds = 1_796_057_564
    why = "the body: start_at_ms is before the year 2000: it counts milliseconds since 1970, not seconds"
    assert complaint(parse_begin, body_of(do()) | {"start_at_ms": seconds}) == why
    assert parse_begin(body_of(do()) | {"start_at_ms": 946_684_800_000}).start_ms == 946_684_800_000
    body = body_of(do()) | {"start_at_ms": seconds, "format": 2}
    assert parse_begin(body, plain=True).start_ms == seconds


def test_the_latest_start_and_the_longest_deadline_can_be_written() -> None:
    """Otherwise the worker that takes the request would end, and so would the next one."""
    begin = parse_begin(body_of(do()) | {"start_at_ms": MAX_START_MS, "deadline_ms": MAX_DEADLINE_MS})
    state = decide(None, begin, Moment(now_ms=1, published={})).state
    assert isinstance(state, SagaState)
    words = iter(saga_hash.changed_fields(None, state))
    fields = {str(name).encode(): str(word).encode() for name, word in zip(words, words, strict=True)}
    assert saga_hash.read(begin.saga_id, fields) == replace(state, version=1)


def test_a_saga_has_at_most_100_steps_of_any_sort() -> None:
    parse_begin(body_of(*[WAIT] * MAX_STEPS))
    assert told(*[do(after=[])] * (MAX_STEPS + 1)) == "steps must be a list of 1 to 100"


def test_unknown_members_are_told_with_what_may_be_meant() -> None:
    assert told(do(afters=[])) == "step 1 has an unknown member 'afters'; is it a misspelling of after?"
    assert told(do(), inputs={}) == "the body has an unknown member 'inputs'"


def test_a_begin_that_would_be_too_large_when_it_is_written_again_is_refused() -> None:
    numbers = [1e15] * 3_000  # each is written with more digits than it is read with
    big = {"in": [1, numbers]}
    begin = b'{"saga_id":"s","format":2,"input":{},"steps":[%b]}'
    step = encode(do(when=big)).replace(b"1000000000000000.0", b"1e15")
    body = decode(begin % b",".join([step] * 32))
    assert len(begin % b",".join([step] * 32)) <= MAX_BYTES
    assert complaint(parse_begin, body).startswith("too large: ")


# --- the format


@pytest.mark.parametrize(
    ("steps", "more", "what"),
    [
        ([do(id="a")], {}, "id of step 1"),
        ([do(), do(after=[])], {}, "after of step 2"),
        ([WAIT], {}, "wait of step 1"),
        ([{"wait_ms": 5}], {}, "wait_ms of step 1"),
        ([do(retry_on="x", retry_within_ms=1)], {}, "retry_on of step 1"),
        ([do(id="a", nonsense=1)], {}, "id of step 1"),
        ([do()], {"input": {}}, "input"),
        ([do()], {"definition": GOOD}, "definition"),
        ([do()], {"start_at_ms": 1_000_000_000_000}, "start_at_ms"),
    ],
)
def test_over_the_wire_a_graph_says_its_format_and_elsewhere_it_need_not(
    steps: list[Any], more: dict[str, Any], what: str
) -> None:
    """A release that knows no graphs would run it as a list."""
    body = {"saga_id": "saga42", "steps": steps} | more
    text = f'the body: {what} needs "format": 2'
    assert complaint(lambda value: parse_begin(value, plain=True), body) == text
    assert complaint(parse_begin, body | {"format": PLAIN}) == text
    if "nonsense" not in steps[0]:
        assert parse_begin(body).format == GRAPH


def test_a_plain_begin_stays_plain() -> None:
    begin = parse_begin({"saga_id": "saga42", "steps": [do(), PIVOT]})
    assert begin.format == PLAIN
    assert all(step.shape is PLAIN_SHAPE for step in begin.steps)


IDS = st.sampled_from(["a", "b", "c.1", None])
STEPS = st.lists(
    st.fixed_dictionaries({}, optional={"id": st.sampled_from(["a", "b", "c.1"]), "after": st.lists(st.integers(1, 3))})
    .flatmap(
        lambda members: st.sampled_from(
            [
                do(**members),
                WAIT | members,
                {"wait_ms": 9} | members,
                do(**members, when=CARD, params=[ref("/input/x"), {"$literal": {"$ref": 1}}]),
                do(**members, compensation_params={"a": ref("/failure")}, retry_on="go", retry_within_ms=5),
                WAIT | {"on_timeout": "continue", "when": {"not": CARD}} | members,
            ]
        )
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


@given(steps=STEPS, more=st.sampled_from([{}, {"definition": GOOD}, {"start_at_ms": 5, "deadline_ms": 7}]))
def test_what_is_written_is_read_as_the_same(steps: list[Any], more: dict[str, Any]) -> None:
    for number, step in enumerate(steps, 1):
        step["after"] = [other for other in step.get("after", []) if other < number]
        if any(step.get("id") == other.get("id") for other in steps[: number - 1]):
            step.pop("id", None)
    begin: Begin = parse_begin(decode(encode(body_of(*steps, input={"card": True}, **more))), plain=True)
    assert parse_begin(decode(begin.body()), plain=True) == begin

"""Whether a saga_begin asks for the saga that has its id, and what is said if it does not."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from msgspec.structs import replace

from sagastream.client.answers import conflicting
from sagastream.codecs.keyring import Keyring
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.decision import decide
from sagastream.core.erasure import ERASE, without_data
from sagastream.core.messages import Begin
from sagastream.core.saga import Intervention, SagaState
from sagastream.core.same_saga import conflict, with_params_of
from sagastream.core.sealing import Codec, Place, seal
from sagastream.core.steps import OPTIONS, USUAL_ATTEMPTS, StepDefinition, StepKind
from sagastream.core.strict_json import decode, encode
from sagastream.core.transitions import Moment
from sagastream.store import saga_hash
from support.stories import given_saga
from support.values import JSON_VALUES
from support.worst import VALID, cpu_ms


def a_step(params: Any = None, **options: Any) -> StepDefinition:
    data = params if isinstance(params, bytes) else orjson.dumps(params)
    return StepDefinition(transaction="A", service="s", params=data, **options)


def a_saga(*steps: StepDefinition, **more: Any) -> SagaState:
    return given_saga(*steps, **more).saga


def told(state: SagaState, *steps: StepDefinition, **more: Any) -> str:
    """What is said of a begin with these steps, after the part that is always the same."""
    text = conflict(state, Begin(saga_id="saga42", steps=steps, **more))
    assert text is not None
    return text.removeprefix("another saga has the id saga42: it began ")


def is_same(state: SagaState, *steps: StepDefinition, **more: Any) -> bool:
    return conflict(state, Begin(saga_id="saga42", steps=steps, **more)) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 1, "b": {"c": 2, "d": 3}}', b'{"b":{"d":3,"c":2},"a":1}'),
        (b"1.0", b"1"),
        (b'{"amount":5}', b'{"amount":5.0}'),
        (b"[0,-0.0,1e2]", b"[0.0,0,100]"),
        (b"9007199254740993", b" 9007199254740993 "),
    ],
)
def test_the_same_values_are_the_same_however_they_are_written(one: bytes, other: bytes) -> None:
    assert is_same(a_saga(a_step(one)), a_step(other))
    assert is_same(a_saga(a_step(other)), a_step(one))


def test_a_saga_that_was_erased_is_not_begun_again_even_with_the_same_params() -> None:
    saga = a_saga(a_step(None))
    assert is_same(saga, a_step(None))
    for actor, by in (("me", " by me"), (None, "")):
        done = Intervention(verb=ERASE, reason="asked for", at_ms=86_400_000, actor=actor)
        erased = without_data(saga).with_intervention(done)
        for step in (a_step(None), a_step(5)):
            assert told(erased, step) == f"saga saga42 was erased on 1970-01-02{by}: it cannot be begun again"


@pytest.mark.parametrize(
    ("there", "here", "says"),
    [
        (5, 6, "with 5 as params of step 1; this request has 6"),
        (2**53 + 1, 2.0**53, "with 9007199254740993 as params of step 1; this request has 9007199254740992.0"),
        (1, True, "with 1 as params of step 1; this request has true"),
        (False, 0, "with false as params of step 1; this request has 0"),
        (True, False, "with true as params of step 1; this request has false"),
        (None, 0, "with null as params of step 1; this request has 0"),
        ("1", 1, 'with "1" as params of step 1; this request has 1'),
        ({"a": {"b": [1, 2.5]}}, {"a": {"b": [1, 2]}}, "with 2.5 as params.a.b[1] of step 1; this request has 2"),
        ({"a": 1}, {}, "with 1 as params.a of step 1; this request has none"),
        ({}, {"a": None}, "without params.a of step 1; this request has null"),
        ([], [1], "without params[0] of step 1; this request has 1"),
        ({"a b": 1}, {"a b": 2}, 'with 1 as params["a b"] of step 1; this request has 2'),
        ({"\x1b[31m": 1}, {"\x1b[31m": 2}, 'with 1 as params["\\u001b[31m"] of step 1; this request has 2'),
        ([], {}, "with [] as params of step 1; this request has {}"),
        ("x" * 200, "y", f'with "{"x" * 79}… as params of step 1; this request has "y"'),
    ],
)  # fmt: skip
def test_what_differs_in_params_is_said_with_both_values(there: Any, here: Any, says: str) -> None:
    assert told(a_saga(a_step(there)), a_step(here)).startswith(says)


def test_of_large_params_the_outermost_member_that_differs_is_said() -> None:
    items = [{"n": [number, True]} for number in range(10_000)]
    saga = a_saga(a_step({"items": items, "a": 1}))
    assert is_same(saga, a_step({"a": 1.0, "items": [{"n": [number * 1.0, True]} for number in range(10_000)]}))
    says = told(saga, a_step({"items": [*items[:-1], 5], "a": 1}))
    assert says.startswith('with [{"n": [0, true]}, {"n": [1, true]}')
    assert "as params.items of step 1; this request has [{" in says
    assert told(saga, a_step({"items": items, "a": 2})) == "with 1 as params.a of step 1; this request has 2"
    assert told(saga, a_step({"items": items})) == "with 1 as params.a of step 1; this request has none"
    assert told(saga, a_step(items)).startswith('with {"items": [')
    assert not is_same(saga, a_step({"items": [{"n": [number, 1]} for number in range(10_000)], "a": 1}))
    assert not is_same(a_saga(a_step([True, 1] * 30_000)), a_step([1, True] * 30_000))
    assert not is_same(saga, replace(a_step({"items": items, "a": 1}), timeout_ms=5))


@pytest.mark.parametrize("name", VALID)
def test_a_comparison_of_large_params_costs_little(name: str) -> None:
    there, here = (encode(decode(b"[%b,%d]" % (VALID[name].encode(), number))) for number in (1, 2))
    saga, begin = a_saga(a_step(there)), Begin(saga_id="saga42", steps=(a_step(here),))
    assert conflict(saga, begin) is not None
    assert cpu_ms(lambda: conflict(saga, begin), enough_ms=45) < 50


OTHER_OPTIONS = {
    "compensation": ("U", 'without compensation of step 2; this request has "U"'),
    "kind": (StepKind.PIVOT, 'with "compensatable" as kind of step 2; this request has "pivot"'),
    "timeout_ms": (5000, "with 60000 as timeout_ms of step 2; this request has 5000"),
    "attempts": (1, "with 3 as attempts of step 2; this request has 1"),
    "compensation_attempts": (1, "with 10 as compensation_attempts of step 2; this request has 1"),
    "backoff_ms": (5, "with 1000 as backoff_ms of step 2; this request has 5"),
    "retry_failed": (True, "with false as retry_failed of step 2; this request has true"),
}


def test_these_are_all_options() -> None:
    assert set(OTHER_OPTIONS) == set(OPTIONS)


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_an_option_that_differs_is_said_with_both_values_also_if_one_is_the_default(name: str) -> None:
    value, says = OTHER_OPTIONS[name]
    usual, other = a_step(), a_step(**{name: value})
    assert told(a_saga(a_step(1), usual), a_step(1), other) == says
    assert not is_same(a_saga(a_step(1), other), a_step(1), usual)


def test_default_numbers_of_different_times_are_the_same() -> None:
    """A client that was updated in between sends the begin again, or somebody does by hand."""
    plain = a_step()
    usual = replace(plain, attempts=USUAL_ATTEMPTS, compensation_attempts=USUAL_ATTEMPTS)
    assert is_same(a_saga(plain), usual)
    assert is_same(a_saga(usual), plain)
    assert told(a_saga(usual), replace(plain, attempts=4)) == "with 20 as attempts of step 1; this request has 4"
    assert told(a_saga(plain), replace(usual, attempts=10)) == "with 3 as attempts of step 1; this request has 10"
    assert not is_same(a_saga(plain), replace(usual, backoff_ms=5))


def test_what_else_differs_in_a_step_or_the_saga_is_said() -> None:
    saga = a_saga(a_step(), deadline_ms=5000)
    assert told(saga, replace(a_step(), transaction="B"), deadline_ms=5000) == (
        'with "A" as transaction of step 1; this request has "B"'
    )
    assert told(saga, replace(a_step(), service="t")) == 'with "s" as service of step 1; this request has "t"'
    assert told(saga, a_step(), a_step()) == "with 1 as number of steps; this request has 2"
    assert told(saga, a_step()) == "with 5000 as deadline_ms; this request has none"
    assert told(saga, a_step(), deadline_ms=1) == "with 5000 as deadline_ms; this request has 1"
    assert told(a_saga(a_step()), a_step(), deadline_ms=1) == "without deadline_ms; this request has 1"
    hard = a_saga(a_step(), deadline_ms=5000, hard=True)
    assert told(hard, a_step(), deadline_ms=5000) == 'with "hard" as deadline; this request has none'
    assert is_same(hard, a_step(), deadline_ms=5000, hard_deadline=True)
    assert told(a_saga(a_step(compensation="U")), a_step(compensation=None)) == (
        'with "U" as compensation of step 1; this request has null'
    )


@given(params=JSON_VALUES)
def test_a_saga_is_the_same_when_it_is_asked_for_again_also_as_it_is_stored(params: Any) -> None:
    body = {"saga_id": "saga42", "steps": [{"transaction": "A", "service": "s", "params": params}]}
    begin = parse_begin(body)
    words = saga_hash.changed_fields(None, given_saga(*begin.steps).state)
    fields = {str(name).encode(): str(value).encode() for name, value in zip(words[::2], words[1::2], strict=True)}
    stored = saga_hash.read("saga42", fields)
    assert isinstance(stored, SagaState)
    assert conflict(stored, begin) is None


# --- sealed params


SEALED_A = Keyring({"a": Keyring.new_key()})
SEALED_B = Keyring({"b": Keyring.new_key()})


def sealed_step(codec: Keyring, params: Any, step: int = 1, **options: Any) -> StepDefinition:
    return a_step(seal(codec, orjson.dumps(params), Place("saga42", step, "params")), **options)


def why_not(state: SagaState, *steps: StepDefinition, codec: Codec | None = None) -> str:
    """What a client is told."""
    refused = conflicting(state, Begin(saga_id="saga42", steps=steps), codec)
    assert refused is not None
    return str(refused.error)


def test_of_params_that_were_sealed_with_different_keys_nobody_without_them_says_that_they_differ() -> None:
    state = a_saga(sealed_step(SEALED_A, 1))
    for step, how in ((sealed_step(SEALED_B, 1), "sealed with key b"), (a_step(1), "not sealed")):
        text = conflict(state, Begin(saga_id="saga42", steps=(step,)))
        assert text == (
            "cannot tell whether this is saga saga42 as it began: its params of step 1 are sealed with key a, those of "
            f"this request are {how}; a client that has the keys can tell"
        )
    text = conflict(a_saga(a_step(1)), Begin(saga_id="saga42", steps=(sealed_step(SEALED_A, 1),)))
    assert text is not None
    assert "its params of step 1 are not sealed, those of this request are sealed with key a" in text


def test_of_params_that_were_sealed_with_one_key_it_is_said_that_they_differ() -> None:
    text = conflict(a_saga(sealed_step(SEALED_A, 1)), Begin(saga_id="saga42", steps=(sealed_step(SEALED_A, 2),)))
    assert text is not None
    assert text.startswith("another saga has the id saga42: params of step 1 differ, sealed with key a both times;")


@pytest.mark.parametrize(
    ("codec", "says"),
    [
        (None, "params of step 1 cannot be opened: it is sealed with key a, and this process has no keys"),
        (
            SEALED_B,
            "params of step 1 cannot be opened: it is sealed with key a, which this process does not have; it has b",
        ),
        (
            Keyring({"a": Keyring.new_key()}),
            "params of step 1 cannot be opened: key a does not open it: another key of this id sealed",
        ),
    ],
    ids=["none", "another", "other bytes"],
)
def test_a_client_that_cannot_open_what_a_saga_began_with_says_why(codec: Keyring | None, says: str) -> None:
    asked = a_step(1) if codec is None else sealed_step(codec, 1)
    text = why_not(a_saga(sealed_step(SEALED_A, 1)), asked, codec=codec)
    assert text.startswith(f"cannot tell whether this is saga saga42 as it began: {says}")
    assert "SAGASTREAM_KEYS" in text
    assert "another saga" not in text


def test_a_client_without_keys_cannot_tell_what_is_sealed_in_its_request_only() -> None:
    text = why_not(a_saga(a_step(1)), sealed_step(SEALED_A, 1))
    assert text.startswith(
        "cannot tell whether this is saga saga42 as it began: params of step 1 cannot be opened: it is sealed"
    )


def test_a_client_that_opens_both_says_that_they_differ_and_not_in_what() -> None:
    both = Keyring({"a": Keyring.new_key(), "b": Keyring.new_key()})
    state = a_saga(sealed_step(both, "Ada"))
    text = why_not(state, sealed_step(both, "Bob"), codec=both)
    assert text == "another saga has the id saga42: params of step 1 differ; they are sealed, so they are not told here"
    assert conflicting(state, Begin(saga_id="saga42", steps=(a_step("Ada"),)), both) is None


def test_what_surely_differs_is_said_before_what_cannot_be_told() -> None:
    state = a_saga(sealed_step(SEALED_A, 1), sealed_step(SEALED_A, 2, step=2), a_step(3))
    other = sealed_step(SEALED_B, 1)
    of_options = told(state, other, sealed_step(SEALED_A, 2, step=2), a_step(3, timeout_ms=7))
    assert of_options.startswith("with 60000 as timeout_ms of step 3")
    assert told(state, other, sealed_step(SEALED_A, 2, step=2), a_step(4)).startswith("with 3 as params of step 3")
    assert "params of step 2 differ" in told(state, other, sealed_step(SEALED_A, 5, step=2), a_step(3))


# --- graphs, and sagas of definitions

ORDER = {"name": "order", "version": 3, "sha256": "a" * 64}
GRAPH_STEPS: list[dict[str, Any]] = [
    {"id": "reserve", "transaction": "Reserve", "service": "s", "params": {"sku": {"$ref": "/input/sku"}}},
    {"id": "ask", "wait": "approve", "timeout_ms": 1000, "after": []},
    {
        "transaction": "Charge",
        "service": "s",
        "after": ["reserve", "ask"],
        "when": {"gt": [{"$ref": "/input/total"}, 0]},
        "compensation_params": {"why": {"$ref": "/failure/reason"}},
    },
]


def a_begin(steps: list[dict[str, Any]] | None = None, **members: Any) -> Begin:
    return parse_begin(
        {"saga_id": "saga42", "steps": GRAPH_STEPS if steps is None else steps, "input": {"sku": "a", "total": 5}}
        | members
    )


def begun(begin: Begin) -> SagaState:
    """The saga of this request, as the store has it."""
    state = decide(None, begin, Moment(now_ms=1_000, published={})).state
    assert isinstance(state, SagaState)
    words = map(str, saga_hash.changed_fields(None, state))
    fields = {name.encode(): value.encode() for name, value in zip(words, words, strict=True)}
    stored = saga_hash.read("saga42", fields)
    assert isinstance(stored, SagaState)
    return stored


def differs(there: Begin, here: Begin) -> str:
    text = conflict(begun(there), here)
    assert text is not None
    return text.removeprefix("another saga has the id saga42: it began ")


def but(number: int, **members: Any) -> list[dict[str, Any]]:
    """The steps with other members in one of them."""
    return [step | members if at == number else step for at, step in enumerate(GRAPH_STEPS, 1)]


def test_a_graph_that_is_begun_again_is_the_same() -> None:
    for members in (
        {},
        {"definition": ORDER},
        {"start_at_ms": 1_000_000_005_000, "deadline_ms": 100},
        {"deadline_ms": 100},
    ):
        given: Any = members
        assert conflict(begun(a_begin(**given)), a_begin(**given)) is None
    other = a_begin(input={"total": 5.0, "sku": "a"})
    assert conflict(begun(a_begin()), other) is None


@pytest.mark.parametrize(
    ("there", "here", "text"),
    [
        (a_begin(), a_begin(input={"sku": "a", "total": 6}), "with 5 as input.total; this request has 6"),
        (a_begin(), a_begin(input={"sku": "a", "total": 5, "x": 1}), "without input.x; this request has 1"),
        (a_begin(), a_begin(start_at_ms=1_000_000_000_007), "without start_at_ms; this request has 1000000000007"),
        (
            a_begin(start_at_ms=1_000_000_000_006),
            a_begin(start_at_ms=1_000_000_000_007),
            "with 1000000000006 as start_at_ms; this request has 1000000000007",
        ),
        (a_begin(), a_begin(definition=ORDER), 'without definition; this request has "order"'),
        (a_begin(definition=ORDER), a_begin(), 'with "order" as definition; this request has none'),
        (
            a_begin(definition=ORDER),
            a_begin(definition=ORDER | {"name": "orders"}),
            'with "order" as definition; this request has "orders"',
        ),
        (
            a_begin(),
            a_begin(but(1, params={"sku": {"$ref": "/input/sku", "default": 1}})),
            "without params.sku.default of step 1; this request has 1",
        ),
        (a_begin(), a_begin(but(2, timeout_ms=2_000)), "with 1000 as timeout_ms of step 2; this request has 2000"),
        (a_begin(), a_begin(but(2, wait="sign")), 'with "approve" as wait of step 2; this request has "sign"'),
        (
            a_begin(),
            a_begin(but(2, on_timeout="continue")),
            'without on_timeout of step 2; this request has "continue"',
        ),
        (a_begin(), a_begin(but(3, after=["reserve"])), "with 2 as after[1] of step 3; this request has none"),
        (
            a_begin(),
            a_begin(but(3, when={"gt": [{"$ref": "/input/total"}, 1]})),
            "with 0 as when.gt[1] of step 3; this request has 1",
        ),
        (
            a_begin(),
            a_begin(but(3, compensation_params=None)),
            'with {"why": {"$ref": "/failure/reason"}} as compensation_params of step 3; this request has null',
        ),
        (
            a_begin(),
            a_begin(but(1, retry_on="refilled", retry_within_ms=5)),
            'without retry_on of step 1; this request has "refilled"',
        ),
    ],
)
def test_what_differs_in_a_graph_is_told(there: Begin, here: Begin, text: str) -> None:
    assert differs(there, here) == text


def test_another_version_of_the_same_definition_is_the_same_begin() -> None:
    there = a_begin(definition=ORDER, deadline_ms=100)
    newer = ORDER | {"version": 4, "sha256": "b" * 64}
    assert conflict(begun(there), a_begin([GRAPH_STEPS[0]], definition=newer)) is None
    assert conflict(begun(a_begin([GRAPH_STEPS[0]], definition=newer)), there) is None
    other = a_begin([GRAPH_STEPS[0]], definition=newer, input={"sku": "b", "total": 5})
    assert differs(there, other) == 'with "a" as input.sku; this request has "b"'
    later = a_begin([GRAPH_STEPS[0]], definition=newer, start_at_ms=1_000_000_000_007)
    assert differs(there, later) == "without start_at_ms; this request has 1000000000007"


def test_another_version_of_a_definition_may_give_other_attributes() -> None:
    there = a_begin(definition=ORDER, attributes={"customer": "c1"})
    newer = ORDER | {"version": 4, "sha256": "b" * 64}
    assert conflict(begun(there), a_begin(definition=newer, attributes={"customer": "c1", "shop": 7})) is None
    other = a_begin(definition=ORDER, attributes={"customer": "c2"})
    assert differs(there, other) == 'with "c1" as attributes.customer; this request has "c2"'


def test_the_same_version_with_other_steps_is_another_saga() -> None:
    there = a_begin(definition=ORDER)
    assert conflict(begun(there), a_begin(definition=ORDER | {"sha256": "b" * 64})) is None  # its example, for instance
    other = a_begin(but(1, service="t"), definition=ORDER | {"sha256": "b" * 64})
    assert differs(there, other) == 'with "s" as service of step 1; this request has "t"'


def test_large_inputs_are_compared_by_their_outermost_members() -> None:
    large = {"sku": "a", "total": 5, "lines": [{"n": number} for number in range(20_000)]}
    assert conflict(begun(a_begin(input=large)), a_begin(input=dict(reversed(large.items())))) is None
    text = differs(a_begin(input=large), a_begin(input=large | {"total": 6}))
    assert text == "with 5 as input.total; this request has 6"
    assert "as input.lines" in differs(a_begin(input=large), a_begin(input=large | {"lines": []}))


def sealed_input(codec: Keyring, data: Any) -> bytes:
    return seal(codec, orjson.dumps(data), Place("saga42", 1, "params"))


def test_sealed_inputs_are_not_told() -> None:
    one, other = sealed_input(SEALED_A, {"a": 1}), sealed_input(SEALED_B, {"a": 1})
    there, same, here = (replace(a_begin(), input=data) for data in (one, one, other))
    state = begun(there)
    assert conflict(state, same) is None
    assert conflict(state, here) == (
        "cannot tell whether this is saga saga42 as it began: its inputs are sealed with key a, those of this request "
        "are sealed with key b; a client that has the keys can tell"
    )
    assert conflict(state, here, {}) == (
        "another saga has the id saga42: inputs differ; they are sealed, so they are not told here"
    )
    text = conflict(state, here, {"input": "there is no key b"})
    assert text is not None
    assert "inputs cannot be opened: there is no key b" in text


def test_inputs_that_are_the_same_once_they_are_opened_are_the_same() -> None:
    one, other = sealed_input(SEALED_A, {"a": 1}), sealed_input(SEALED_B, {"a": 1})
    there, here = replace(a_begin(), input=one), replace(a_begin(), input=other)
    opened = [replace(a_begin(), input=data) for data in (b'{"a":1}', b'{"a":1.0}')]
    state = begun(there)
    assert with_params_of(state, here, begun(opened[0]), opened[1]).input == one
    assert with_params_of(state, here, begun(opened[0]), replace(here, input=b'{"a":2}')).input == other
    assert with_params_of(state, here, begun(opened[0]), here).input == other  # which nobody could open

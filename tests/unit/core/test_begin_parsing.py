"""Strict reading of the request to begin a saga."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.core.backoff import step_delay_ms
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Command
from sagastream.core.messages import Begin, is_id
from sagastream.core.parsing import read_request
from sagastream.core.steps import (
    AS_PUBLISHED,
    ATTEMPTS,
    BACKOFF_MS,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_DEADLINE_MS,
    MAX_STEPS,
    MAX_TIMEOUT_MS,
    PERSISTENT_ATTEMPTS,
    TIMEOUT_MS,
    USUAL_ATTEMPTS,
    StepDefinition,
    StepKind,
)
from sagastream.core.strict_json import decode
from sagastream.errors import MalformedMessage
from support.values import BAD_IDS, OTHER_TYPES, complaint, stored

NAME_RULE = "must be 1 to 128 characters of A-Z a-z 0-9 . _ : -"
SERVICE_RULE = "must be 1 to 128 characters of A-Z a-z 0-9 . _ -"


def step_body(**members: Any) -> dict[str, Any]:
    return {"transaction": "ChargePayment", "service": "payment", "params": {"amount": 1}} | members


def begin_body(**members: Any) -> dict[str, Any]:
    return {"type": "saga_begin", "msg_id": 1, "saga_id": "saga42", "steps": [step_body()]} | members


def without(body: dict[str, Any], member: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != member}


def test_a_begin_of_the_protocol_is_understood() -> None:
    text = b"""{"type": "saga_begin", "msg_id": 1, "saga_id": "saga42", "steps": [
        {"transaction": "ReserveInventory", "service": "inventory", "params": {"sku": "abc123", "quantity": 1}},
        {"transaction": "ChargePayment", "service": "payment", "compensation": "RefundPayment"},
        {"transaction": "CreateShipment", "service": "shipping", "params": [1.5, null], "compensation": null}]}"""
    assert parse_begin(decode(text), request_id="me-1", echo=True, plain=True) == Begin(
        saga_id="saga42",
        steps=(
            StepDefinition(
                transaction="ReserveInventory", service="inventory", params=b'{"sku":"abc123","quantity":1}'
            ),
            StepDefinition(
                transaction="ChargePayment", service="payment", params=b"null", compensation="RefundPayment"
            ),
            StepDefinition(transaction="CreateShipment", service="shipping", params=b"[1.5,null]", compensation=None),
        ),
        request_id="me-1",
        echo=True,
    )


def test_type_and_msg_id_need_not_stand_in_a_begin() -> None:
    body = {"saga_id": "saga42", "steps": [step_body()]}
    assert parse_begin(body) == parse_begin(begin_body())


@pytest.mark.parametrize("kind", ["saga_started", "", None, 1, ["saga_begin"]])
def test_a_begin_of_another_type_is_malformed(kind: Any) -> None:
    assert complaint(parse_begin, begin_body(type=kind)) == "type is not saga_begin"


@pytest.mark.parametrize("bad", [*BAD_IDS.values(), *OTHER_TYPES.values()], ids=[*BAD_IDS, *OTHER_TYPES])
def test_a_name_in_a_begin_that_is_none_is_malformed_and_the_place_is_told(bad: Any) -> None:
    assert complaint(parse_begin, begin_body(saga_id=bad)) == f"the body: saga_id {NAME_RULE}"
    for member in ("transaction", "service"):
        steps = [step_body(), step_body(**{member: bad})]
        rule = SERVICE_RULE if member == "service" else NAME_RULE
        assert complaint(parse_begin, begin_body(steps=steps)) == f"step 2: {member} {rule}"
    if bad is not None:  # null says that it needs none
        steps = [step_body(), step_body(), step_body(compensation=bad)]
        assert complaint(parse_begin, begin_body(steps=steps)) == f"step 3: compensation {NAME_RULE}"


@pytest.mark.parametrize("name", ["a", "x" * 128, "A.b_c:d-9", "-", "..", "null"])
def test_names_of_all_the_allowed_characters_and_lengths_are_accepted(name: str) -> None:
    service = name.replace(":", "")
    step = step_body(transaction=name, service=service, compensation="Undo")
    begin = parse_begin(begin_body(saga_id=name, steps=[step]))
    assert (begin.saga_id, begin.steps[0].transaction, begin.steps[0].service) == (name, name, service)
    assert is_id(name)


def test_the_name_of_a_service_has_no_colon_which_ends_it_in_the_names_of_keys() -> None:
    said = complaint(parse_begin, begin_body(steps=[step_body(service="till:eu")]))
    assert said == f"step 1: service {SERVICE_RULE}"


def test_what_is_missing_in_a_begin_is_named_with_its_place() -> None:
    assert complaint(parse_begin, without(begin_body(), "saga_id")) == "the body: saga_id is missing"
    assert complaint(parse_begin, without(begin_body(), "steps")) == "steps must be a list of 1 to 100"
    for member in ("transaction", "service"):
        steps = [without(step_body(), member)]
        assert complaint(parse_begin, begin_body(steps=steps)) == f"step 1: {member} is missing"


@pytest.mark.parametrize("steps", [None, 1, "steps", {}, {"0": step_body()}, [], [step_body()] * (MAX_STEPS + 1)])
def test_steps_that_are_no_list_of_1_to_100_are_malformed(steps: Any) -> None:
    assert complaint(parse_begin, begin_body(steps=steps)) == "steps must be a list of 1 to 100"


def test_a_saga_may_have_100_steps() -> None:
    assert len(parse_begin(begin_body(steps=[step_body()] * MAX_STEPS)).steps) == 100


@pytest.mark.parametrize("step", [None, "ChargePayment", 1, [step_body()]])
def test_a_step_that_is_no_object_is_malformed(step: Any) -> None:
    assert complaint(parse_begin, begin_body(steps=[step_body(), step])) == "step 2 is not a JSON object"


def test_a_member_that_nobody_knows_is_named_with_its_place() -> None:
    assert complaint(parse_begin, begin_body(sagaid="x")) == "the body has an unknown member 'sagaid'"
    steps = [step_body(), step_body(compensate="x")]
    assert complaint(parse_begin, begin_body(steps=steps)) == (
        "step 2 has an unknown member 'compensate'; is it a misspelling of compensation?"
    )


def test_an_unknown_member_cannot_act_on_a_terminal() -> None:
    assert complaint(parse_begin, begin_body(**{"\x1b[2J\u202e": 1})).isprintable()


def test_an_unknown_member_with_a_long_name_is_not_repeated_in_full() -> None:
    assert len(complaint(parse_begin, begin_body(**{"k" * 100_000: 1}))) < 300


def test_a_transaction_cannot_be_its_own_compensation() -> None:
    steps = [step_body(compensation="ChargePayment")]
    assert complaint(parse_begin, begin_body(steps=steps)) == ("step 1: a transaction cannot be its own compensation")


# --- what a step may say besides


LIMITS = {
    "timeout_ms": MAX_TIMEOUT_MS,
    "attempts": MAX_ATTEMPTS,
    "compensation_attempts": MAX_ATTEMPTS,
    "backoff_ms": MAX_BACKOFF_MS,
}


def parsed_step(**members: Any) -> StepDefinition:
    """One step with these members; behind a pivot if it needs one."""
    pivot = [step_body(kind="pivot")] if members.get("kind") == "retriable" else []
    return parse_begin(begin_body(steps=[*pivot, step_body(**members)]), plain=True).steps[-1]


def usual_step(**members: Any) -> StepDefinition:
    """The same, of somebody who begins a saga here."""
    pivot = [step_body(kind="pivot")] if members.get("kind") == "retriable" else []
    return parse_begin(begin_body(steps=[*pivot, step_body(**members)])).steps[-1]


@pytest.mark.parametrize("kind", StepKind)
def test_whoever_begins_a_saga_and_says_no_numbers_gets_the_usual_ones(kind: StepKind) -> None:
    step = usual_step(kind=kind)
    assert step.attempts == USUAL_ATTEMPTS
    # A retriable step is never undone.
    undone = PERSISTENT_ATTEMPTS if kind is StepKind.RETRIABLE else USUAL_ATTEMPTS
    assert step.compensation_attempts == undone
    said = {"attempts": 3, "compensation_attempts": 10}
    assert usual_step(kind=kind, **said) == parsed_step(kind=kind, **said)
    assert usual_step(compensation=None).compensation_attempts == PERSISTENT_ATTEMPTS


def test_the_usual_numbers_are_written_into_the_request_and_into_the_hash() -> None:
    """So they can change, and a saga that has begun keeps its own."""
    begin = parse_begin(begin_body())
    assert {step.attempts for step in begin.steps} == {USUAL_ATTEMPTS}
    assert parse_begin(decode(begin.body()), plain=True) == begin
    assert parse_begin(decode(begin.body())) == begin
    few = parse_begin(begin_body(steps=[step_body(attempts=ATTEMPTS, compensation_attempts=PERSISTENT_ATTEMPTS)]))
    assert read_request(stored(few.fields())) == few


def test_the_usual_attempts_outlast_a_redeploy() -> None:
    """A step that fails at once, and one whose service is away."""

    def waits_s(jitter: float) -> float:
        waits = [step_delay_ms(attempt, first_ms=BACKOFF_MS, jitter=jitter) for attempt in range(1, USUAL_ATTEMPTS)]
        return sum(waits) / 1000

    assert 7 * 60 <= waits_s(0.0) <= waits_s(1.0) <= 14.1 * 60
    away_s = USUAL_ATTEMPTS * TIMEOUT_MS / 1000
    assert 27 * 60 <= away_s + waits_s(0.0) <= away_s + waits_s(1.0) <= 34.1 * 60


def test_a_step_that_says_no_more_than_it_must_has_the_defaults_of_its_format() -> None:
    step = parsed_step()
    assert (step.kind, step.timeout_ms, step.attempts) == (StepKind.COMPENSATABLE, 60_000, 3)
    assert (step.compensation_attempts, step.backoff_ms, step.retry_failed) == (10, 1000, False)
    assert (step.compensation, step.retried) == (AS_PUBLISHED, False)


def test_a_retriable_step_is_tried_more_often_unless_it_says_how_often() -> None:
    assert parsed_step(kind="retriable").attempts == PERSISTENT_ATTEMPTS
    assert parsed_step(kind="pivot").attempts == ATTEMPTS
    assert parsed_step(kind="retriable", attempts=2).attempts == 2


def test_all_that_a_step_says_is_understood() -> None:
    said = {"timeout_ms": 1, "attempts": 2, "compensation_attempts": 3, "backoff_ms": 4, "retry_failed": True}
    step = parsed_step(kind="pivot", compensation="RefundPayment", **said)
    assert step == StepDefinition(
        transaction="ChargePayment",
        service="payment",
        params=b'{"amount":1}',
        compensation="RefundPayment",
        kind=StepKind.PIVOT,
        timeout_ms=1,
        attempts=2,
        compensation_attempts=3,
        backoff_ms=4,
        retry_failed=True,
    )


@pytest.mark.parametrize("member", LIMITS)
def test_a_number_of_a_step_may_be_1_and_as_large_as_its_limit(member: str) -> None:
    for number in (1, LIMITS[member]):
        assert getattr(parsed_step(**{member: number}), member) == number


@pytest.mark.parametrize("bad", [None, True, "1", 0, -1, 1.0, 1.5, [1], 2**64 - 1, "too large"])
@pytest.mark.parametrize("member", LIMITS)
def test_a_number_of_a_step_that_is_none_is_malformed_and_the_place_and_the_limit_are_told(
    member: str, bad: Any
) -> None:
    number = LIMITS[member] + 1 if bad == "too large" else bad
    told = f"step 2: {member} must be a whole number from 1 to {LIMITS[member]}"
    assert complaint(parse_begin, begin_body(steps=[step_body(), step_body(**{member: number})])) == told


@pytest.mark.parametrize("bad", [None, 1, 0, "true", []])
def test_retry_failed_is_true_or_false(bad: Any) -> None:
    told = "step 2: retry_failed must be true or false"
    assert complaint(parse_begin, begin_body(steps=[step_body(), step_body(retry_failed=bad)])) == told
    assert not parsed_step(retry_failed=False).retry_failed


@pytest.mark.parametrize("bad", ["PIVOT", "", "compensable", None, True, 1, ["pivot"], {}])
def test_a_kind_that_there_is_not_is_malformed(bad: Any) -> None:
    told = "step 2: kind must be one of compensatable, pivot, retriable"
    assert complaint(parse_begin, begin_body(steps=[step_body(), step_body(kind=bad)])) == told


def kinds(letters: str) -> list[dict[str, Any]]:
    """Steps of these kinds: c, p, r."""
    names = {"c": "compensatable", "p": "pivot", "r": "retriable"}
    return [step_body(kind=names[letter]) for letter in letters]


@pytest.mark.parametrize("letters", ["c", "p", "cc", "cp", "pr", "cpr", "ccprr", "prrr"])
def test_what_can_be_undone_comes_first_then_the_pivot_then_what_is_retried(letters: str) -> None:
    found = parse_begin(begin_body(steps=kinds(letters)))
    assert "".join(step.kind[0] for step in found.steps) == letters


ONE_PIVOT = "there is at most one pivot: the steps after it must be retriable"
NO_WAY_BACK = "after the pivot comes no way back: the steps after it must be retriable"
NEEDS_PIVOT = "a retriable step needs a pivot before it"


@pytest.mark.parametrize(
    ("letters", "told"),
    [
        ("r", f"step 1: {NEEDS_PIVOT}"),
        ("cr", f"step 2: {NEEDS_PIVOT}"),
        ("rp", f"step 1: {NEEDS_PIVOT}"),
        ("crp", f"step 2: {NEEDS_PIVOT}"),
        ("pp", f"step 2: {ONE_PIVOT}"),
        ("cprp", f"step 4: {ONE_PIVOT}"),
        ("pc", f"step 2: {NO_WAY_BACK}"),
        ("cprc", f"step 4: {NO_WAY_BACK}"),
    ],
)
def test_steps_in_another_order_are_malformed_and_it_is_told_which_and_why(letters: str, told: str) -> None:
    assert complaint(parse_begin, begin_body(steps=kinds(letters))) == told


@given(st.text("cpr", min_size=1, max_size=5))
def test_no_other_order_of_kinds_is_accepted(letters: str) -> None:
    begin = begin_body(steps=kinds(letters))
    if re.fullmatch("c*(pr*)?", letters):
        parse_begin(begin)
    else:
        complaint(parse_begin, begin)


def test_a_retriable_step_names_no_compensation_and_may_say_so() -> None:
    told = "step 2: a retriable step is never undone, and names no compensation"
    steps = [step_body(kind="pivot"), step_body(kind="retriable", compensation="RefundPayment")]
    assert complaint(parse_begin, begin_body(steps=steps)) == told
    assert parsed_step(kind="retriable", compensation=None).compensation is None


def test_a_saga_may_have_a_deadline() -> None:
    assert parse_begin(begin_body()).deadline_ms is None
    for deadline_ms in (1, MAX_DEADLINE_MS):
        assert parse_begin(begin_body(deadline_ms=deadline_ms)).deadline_ms == deadline_ms


@pytest.mark.parametrize("bad", [None, True, "1", 0, -1, 1.5, [1], MAX_DEADLINE_MS + 1])
def test_a_deadline_that_is_none_is_malformed_and_the_limit_is_told(bad: Any) -> None:
    told = f"the body: deadline_ms must be a whole number from 1 to {MAX_DEADLINE_MS}"
    assert complaint(parse_begin, begin_body(deadline_ms=bad)) == told


def test_a_deadline_may_be_hard() -> None:
    assert not parse_begin(begin_body(deadline_ms=5)).hard_deadline
    assert not parse_begin(begin_body(deadline_ms=5, deadline="soft")).hard_deadline
    hard = parse_begin(begin_body(deadline_ms=5, deadline="hard"))
    assert hard.hard_deadline
    assert b',"deadline_ms":5,"deadline":"hard","steps":' in hard.body()


@pytest.mark.parametrize("bad", [None, True, 1, "", "HARD", "hard ", ["hard"], {"hard": 1}])
def test_a_deadline_of_another_kind_is_malformed(bad: Any) -> None:
    told = "the body: deadline must be one of soft, hard"
    assert complaint(parse_begin, begin_body(deadline_ms=5, deadline=bad)) == told


def test_a_kind_of_deadline_without_a_deadline_is_malformed() -> None:
    told = "the body: deadline says how deadline_ms is meant, and deadline_ms is missing"
    assert complaint(parse_begin, begin_body(deadline="hard")) == told


# --- what no message can carry


@pytest.mark.parametrize("params", [math.nan, {"amount": math.inf}, {1, 2}])
def test_params_of_python_code_that_json_cannot_say_are_malformed(params: object) -> None:
    assert complaint(parse_begin, begin_body(steps=[step_body(params=params)]))


def test_no_begin_is_accepted_whose_command_its_service_must_refuse() -> None:
    numbers = b"[" + b",".join([b"1e15"] * 99_000) + b"]"
    step = b'{"transaction":"A","service":"s","params":' + numbers + b"}"
    body = decode(b'{"saga_id":"x","steps":[' + step + b"]}")  # within all limits in the form in which it came
    try:
        begin = parse_begin(body)
    except MalformedMessage:
        return
    decode(Command(service="s", type="A", saga_id="x", step=1, params=begin.steps[0].params, begun_ms=0).body())


def test_the_steps_of_sagas_that_have_their_data_in_an_input_are_read_once() -> None:
    steps = [{"transaction": "A", "service": "s", "params": {"of": {"$ref": "/input/total"}}, "when": {"eq": [1, 1]}}]
    body = {"format": 2, "saga_id": "s1", "input": {"total": 1}, "steps": steps}
    one = parse_begin(body, plain=True)
    other = parse_begin(body | {"saga_id": "s2", "input": {"total": 2}}, plain=True)
    assert one.steps is other.steps
    assert parse_begin(body, plain=False).steps[0].attempts == USUAL_ATTEMPTS  # whoever begins a saga here gets those
    assert parse_begin(body | {"steps": json.loads(json.dumps(steps).replace("1]", "1.0]"))}, plain=True) != one
    for _ in range(2):  # what is wrong is told each time
        with pytest.raises(MalformedMessage, match="step 1: params/of"):
            parse_begin(body | {"steps": [steps[0] | {"params": {"of": {"$ref": "/nowhere"}}}]}, plain=True)

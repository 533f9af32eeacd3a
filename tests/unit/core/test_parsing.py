"""Strict reading of messages, from entries and from decoded bodies."""

import re
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Command, Reply, failed, ok
from sagastream.core.members import type_of
from sagastream.core.messages import (
    MAX_ACTOR_CHARS,
    MAX_REASON_CHARS,
    Begin,
    Code,
    Intervene,
    Newer,
    Signal,
    Unreadable,
    Verb,
)
from sagastream.core.parsing import (
    operator_text,
    parse_intervene,
    parse_reply,
    parse_signal,
    read_command,
    read_reply,
    read_request,
)
from sagastream.core.steps import (
    AS_PUBLISHED,
    ATTEMPTS,
    FORMATS,
    GRAPH,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_DEADLINE_MS,
    MAX_STEPS,
    MAX_TIMEOUT_MS,
    PERSISTENT_ATTEMPTS,
    PLAIN,
    StepDefinition,
    StepKind,
)
from sagastream.core.strict_json import decode, encode, encode_payload
from sagastream.errors import MalformedMessage
from support.values import BAD_IDS, JSON_VALUES, OTHER_TYPES, a_command, complaint, stored
from unit.core.test_begin_parsing import NAME_RULE, SERVICE_RULE, begin_body, step_body, without

IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
SERVICES = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)


STEP_NUMBERS = st.integers(1, MAX_STEPS)


PAYLOADS = JSON_VALUES.map(encode_payload)


def reply_body(**members: Any) -> dict[str, Any]:
    return {"type": "ChargePayment_ok", "saga_id": "saga42", "step": 2} | members


def command_fields(body: object, **fields: bytes) -> Mapping[bytes, bytes]:
    return {b"body": encode(body)} | {name.encode(): value for name, value in fields.items()}


def a_command_of(fields: Mapping[bytes, bytes], sent_ms: int = 0) -> Command:
    command = read_command("payment", fields, sent_ms)
    assert isinstance(command, Command)
    return command


def why_unreadable(fields: Mapping[bytes, bytes]) -> str:
    """The error text for a malformed command."""
    found = read_command("payment", fields, 0)
    assert isinstance(found, Unreadable)
    assert (found.code, found.request_id, found.saga_id) == (Code.MALFORMED, None, None)
    return found.text


@pytest.mark.parametrize("body", [None, True, 1, "saga_begin", [begin_body()]])
def test_a_message_that_is_no_object_is_malformed(body: Any) -> None:
    assert complaint(parse_begin, body) == "the body is not a JSON object"
    assert complaint(parse_reply, body) == "the body is not a JSON object"
    assert why_unreadable(command_fields(body)) == "the body is not a JSON object"


# --- what operators ask for


def asked_body(verb: Verb = Verb.CANCEL, **members: Any) -> dict[str, Any]:
    return {"type": f"saga_{verb}", "saga_id": "saga42", "reason": "ordered twice"} | members


@pytest.mark.parametrize("verb", Verb)
def test_what_an_operator_asks_for_is_understood(verb: Verb) -> None:
    asked = Intervene(verb=verb, saga_id="saga42", reason="ordered twice", request_id="op-1")
    assert parse_intervene(asked_body(verb), request_id="op-1") == asked
    assert parse_intervene(asked_body(verb, msg_id=7)) == replace(asked, request_id=None)
    assert read_request({b"body": encode(asked_body(verb)), b"request_id": b"op-1"}) == asked


def test_there_are_four_things_that_an_operator_may_ask_for() -> None:
    assert list(Verb) == ["cancel", "retry", "skip", "abandon"]


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.strip)


INTERVENES = st.builds(
    Intervene,
    verb=st.sampled_from(Verb),
    saga_id=IDS,
    reason=TEXTS,
    actor=st.none() | TEXTS,
    parked_at=st.sampled_from([None, "1/transaction/3", "100/compensation/0"]),
    step=st.sampled_from([None, 1, 100, "pick.3", "a-b_c"]),
    request_id=st.none() | IDS,
)
STOPS = st.builds(
    Intervene, verb=st.sampled_from([Verb.CANCEL, Verb.ABANDON]), saga_id=IDS, reason=TEXTS, now=st.booleans()
)


@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize(
    "place", [2, None, "", "2", "2/undo/1", "0/transaction/1", "2/transaction/-1", "2/transaction/1 "]
)
def test_where_a_saga_was_seen_parked_is_checked(verb: Verb, place: object) -> None:
    why = "the body: parked_at must be where the saga was seen parked: a step, transaction or compensation, and an att"
    with pytest.raises(MalformedMessage, match=why):
        parse_intervene(asked_body(verb, parked_at=place))


@given(asked=INTERVENES | STOPS)
def test_what_an_operator_asks_for_is_read_back_from_the_fields_of_its_entry(asked: Intervene) -> None:
    assert read_request(stored(asked.fields())) == asked


@pytest.mark.parametrize("bad", [None, 0, 101, -1, 1.0, True, "", "7", "a b", ["a"], {}])
def test_the_step_that_an_operator_means_is_checked(bad: Any) -> None:
    for verb in Verb:
        told = "the body: step must be the number of a step, from 1, or its id"
        assert complaint(parse_intervene, asked_body(verb, step=bad)) == told


def test_what_releases_that_know_no_graphs_would_misunderstand_is_left_to_others() -> None:
    """They would abandon at once what is parked, whatever is out; and say that they know no member step."""
    asked = Intervene(verb=Verb.ABANDON, saga_id="s", reason="why")
    assert "format" not in decode(asked.body())
    assert "format" not in decode(replace(asked, verb=Verb.CANCEL, now=True).body())
    for other in (replace(asked, now=True), replace(asked, step=2), replace(asked, step="b", verb=Verb.RETRY)):
        assert decode(other.body())["format"] == GRAPH


# --- signals

SIGNALS = st.builds(
    Signal, saga_id=IDS, name=IDS, payload=PAYLOADS, actor=st.none() | TEXTS, request_id=st.none() | IDS
) | st.builds(Signal, saga_id=IDS, name=IDS, declined=TEXTS, actor=st.none() | TEXTS, request_id=st.none() | IDS)


def signal_body(**members: Any) -> dict[str, Any]:
    return {"type": "saga_signal", "saga_id": "s", "name": "go", "format": GRAPH} | members


@given(signal=SIGNALS)
def test_a_signal_is_read_back_from_the_fields_of_its_entry(signal: Signal) -> None:
    assert read_request(stored(signal.fields())) == signal


def test_a_signal_says_no_more_than_it_must() -> None:
    assert parse_signal({"saga_id": "s", "name": "go"}) == Signal(saga_id="s", name="go")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (without(signal_body(), "name"), "the body: name is missing"),
        (without(signal_body(), "saga_id"), "the body: saga_id is missing"),
        (signal_body(name="a b"), f"the body: name {NAME_RULE}"),
        (signal_body(decline=""), "decline must be a text of 1 to 500 characters: it stays with the saga"),
        (signal_body(decline=None), "decline must be a text of 1 to 500 characters: it stays with the saga"),
        (signal_body(actor=7), "actor must be a text of 1 to 128 characters: it stays with the saga"),
        (signal_body(by=7), "by must be a text of 1 to 128 characters: it stays with the saga"),
        (signal_body(actor="ada", by="bob"), "the body: actor and by say the same: give one of them"),
        (signal_body(payload=1, decline="no"), "the body: a signal has a payload or is a decline, not both"),
        (signal_body(payloads=1), "the body has an unknown member 'payloads'; is it a misspelling of payload?"),
        (signal_body(format=9), "the body: format 9 is not known to this release, which knows 1, 2"),
    ],
)
def test_what_is_wrong_with_a_signal_is_told(body: Any, text: str) -> None:
    assert complaint(parse_signal, body) == text


def test_who_signals_may_be_called_by_too() -> None:
    assert parse_signal(signal_body(by="ada")) == parse_signal(signal_body(actor="ada"))


@pytest.mark.parametrize("bad", [None, 0, 1, "true", [True]])
def test_now_is_true_or_false_and_only_of_what_stops_a_saga(bad: Any) -> None:
    for verb in (Verb.CANCEL, Verb.ABANDON):
        assert complaint(parse_intervene, asked_body(verb, now=bad)) == "the body: now must be true or false"
    for verb in (Verb.RETRY, Verb.SKIP):
        assert complaint(parse_intervene, asked_body(verb, now=True)) == "the body has an unknown member 'now'"


@pytest.mark.parametrize("bad", ["", " ", "x" * (MAX_ACTOR_CHARS + 1), None, True, 7, ["x"]])
def test_an_actor_that_is_none_or_too_long_is_malformed(bad: Any) -> None:
    told = "actor must be a text of 1 to 128 characters: it stays with the saga"
    assert complaint(parse_intervene, asked_body(actor=bad)) == told


def reason_of(text: Any) -> str:
    return operator_text(text, "reason", MAX_REASON_CHARS)


@pytest.mark.parametrize("reason", ["x", "x" * MAX_REASON_CHARS, " x ", "ü" * MAX_REASON_CHARS])
def test_a_reason_is_kept_as_it_is(reason: str) -> None:
    assert reason_of(reason) == reason
    assert parse_intervene(asked_body(reason=reason)).reason == reason


@pytest.mark.parametrize("bad", ["", " ", "\n\t", "x" * (MAX_REASON_CHARS + 1), None, True, 7, ["x"]])
def test_a_reason_that_is_none_or_too_long_is_malformed(bad: Any) -> None:
    told = "reason must be a text of 1 to 500 characters: it stays with the saga"
    assert complaint(reason_of, bad) == told
    assert complaint(parse_intervene, asked_body(reason=bad)) == told


@pytest.mark.parametrize("bad", ["caf\udce9", "\ud800"])
def test_a_reason_that_no_message_can_carry_is_malformed(bad: str) -> None:
    # This is how Python reads an argument of the shell that is not UTF-8.
    assert complaint(reason_of, bad) == "reason must be a text that UTF-8 can encode"


def test_what_an_operator_leaves_out_or_adds_is_told() -> None:
    assert complaint(parse_intervene, without(asked_body(), "saga_id")) == "the body: saga_id is missing"
    assert complaint(parse_intervene, without(asked_body(), "reason")).startswith("reason must be a text")
    told = "the body has an unknown member 'steps'; is it a misspelling of step?"
    assert complaint(parse_intervene, asked_body(steps=[])) == told
    assert complaint(parse_intervene, asked_body(saga_id="a b")) == f"the body: saga_id {NAME_RULE}"


@pytest.mark.parametrize("verb", Verb)
def test_what_an_operator_asks_for_in_a_malformed_way_says_who_asked(verb: Verb) -> None:
    found = read_request({b"body": encode(asked_body(verb, reason="")), b"request_id": b"op-1"})
    assert isinstance(found, Unreadable)
    assert (found.code, found.request_id, found.saga_id) == (Code.MALFORMED, "op-1", None)


# --- requests, in entries


DEFINITIONS = st.builds(
    StepDefinition,
    transaction=IDS,
    service=SERVICES,
    params=PAYLOADS,
    compensation=st.just(AS_PUBLISHED) | st.none() | IDS.map(lambda name: f"undo{name}"[:128]),
    timeout_ms=st.just(60_000) | st.integers(1, MAX_TIMEOUT_MS),
    attempts=st.sampled_from([ATTEMPTS, PERSISTENT_ATTEMPTS]) | st.integers(1, MAX_ATTEMPTS),
    compensation_attempts=st.sampled_from([ATTEMPTS, PERSISTENT_ATTEMPTS]) | st.integers(1, MAX_ATTEMPTS),
    backoff_ms=st.just(1000) | st.integers(1, MAX_BACKOFF_MS),
    retry_failed=st.booleans(),
).filter(lambda step: step.compensation != step.transaction)


def with_kinds(steps: list[StepDefinition], pivot: int) -> tuple[StepDefinition, ...]:
    """The same steps, but the kinds of some are changed so that a pivot is among them."""
    return tuple(
        step
        if index < pivot
        else replace(step, kind=StepKind.PIVOT)
        if index == pivot
        else replace(step, kind=StepKind.RETRIABLE, compensation=step.compensation and AS_PUBLISHED)
        for index, step in enumerate(steps)
    )


BEGINS = st.builds(
    Begin,
    saga_id=IDS,
    steps=st.builds(with_kinds, st.lists(DEFINITIONS, min_size=1, max_size=4), st.integers(0, 4)),
    deadline_ms=st.integers(1, MAX_DEADLINE_MS),
    hard_deadline=st.booleans(),
) | st.builds(Begin, saga_id=IDS, steps=st.tuples(DEFINITIONS.map(lambda one: replace(one, kind=StepKind.PIVOT))))


@given(begin=BEGINS, request_id=st.none() | IDS, echo=st.booleans())
def test_a_begin_is_read_back_from_the_fields_of_its_entry(begin: Begin, request_id: str | None, echo: bool) -> None:
    asked = replace(begin, request_id=request_id, echo=echo)
    assert read_request(stored(asked.fields())) == asked
    assert parse_begin(decode(asked.body()), plain=True) == begin


def test_the_entry_of_a_begin_holds_no_more_than_there_is_to_say() -> None:
    begin = parse_begin(begin_body())
    assert begin.fields() == {"body": begin.body()}
    asked = replace(begin, request_id="me-1", echo=True)
    assert asked.fields() == {"body": begin.body(), "request_id": "me-1", "trace": 1}


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"[]", b'"x"', b"null", b'{"type":"saga_begin"}', b"\xff"])
def test_a_request_that_is_none_is_malformed_and_says_who_asked(body: bytes) -> None:
    found = read_request({b"body": body, b"request_id": b"me-1"})
    assert isinstance(found, Unreadable)
    assert (found.code, found.request_id, found.saga_id) == (Code.MALFORMED, "me-1", None)
    assert found.text
    assert read_request({b"body": body}) == replace(found, request_id=None)


def test_an_entry_without_a_body_is_malformed() -> None:
    for found in (read_request({}), read_reply({}), read_command("payment", {}, 0)):
        assert isinstance(found, Unreadable)
        assert found.code == Code.MALFORMED
        assert found.text == "the entry has no field body"


def test_an_empty_body_is_said_to_be_empty() -> None:
    for found in (read_request({b"body": b""}), read_reply({b"body": b""}), read_command("payment", {b"body": b""}, 0)):
        assert isinstance(found, Unreadable)
        assert (found.code, found.text) == (Code.MALFORMED, "not JSON: the input is empty")


def test_a_request_of_another_type_is_not_supported() -> None:
    fields = {b"body": b'{"type":"saga_dance"}', b"request_id": b"me-1"}
    assert read_request(fields) == Unreadable(
        code=Code.NOT_SUPPORTED, text="the orchestrator knows no request saga_dance", request_id="me-1"
    )


def test_what_is_wrong_with_a_request_is_told_with_its_place() -> None:
    body = encode(begin_body(steps=[step_body(), step_body(service="a b")]))
    found = read_request({b"body": body, b"request_id": b"me-1"})
    assert found == Unreadable(code=Code.MALFORMED, text=f"step 2: service {SERVICE_RULE}", request_id="me-1")


@pytest.mark.parametrize("request_id", [b"", b"a b", b"\xff", b"x" * 129, b"a\n"])
def test_a_request_id_that_is_none_is_malformed_and_nobody_can_be_told(request_id: bytes) -> None:
    found = read_request({b"body": encode(begin_body()), b"request_id": request_id})
    assert found == Unreadable(code=Code.MALFORMED, text=f"request_id {NAME_RULE}")


COMMANDS = st.builds(
    Command,
    service=st.just("payment"),
    type=IDS,
    saga_id=IDS,
    step=STEP_NUMBERS,
    params=PAYLOADS,
    result=st.none() | PAYLOADS,
    compensating=st.booleans(),
    attempt=st.integers(1, 10**6),
    begun_ms=st.integers(0, 4_000_000_000_000),
    not_after_ms=st.none() | st.integers(0, 4_000_000_000_000),
    retried=st.booleans(),
    undo=st.none() | PAYLOADS,
    input=st.none() | PAYLOADS,
    definition=st.none() | IDS,
)


@given(COMMANDS)
def test_a_command_is_parsed_back_from_the_fields_of_its_entry(command: Command) -> None:
    # The params of a transaction are in its body; there is no result yet, and nothing to tell its undo.
    known = command if command.compensating else replace(command, result=None, undo=None)
    assert a_command_of(stored(command.fields()), sent_ms=9) == known


@pytest.mark.parametrize("field", ["params", "result", "undo", "input"])
@pytest.mark.parametrize("bad", [b"", b"{", b"NaN", b"\xff", b'{"a":1,"a":2}', b"[" * 100_000])
def test_a_compensation_with_a_payload_that_is_no_json_is_unreadable(field: str, bad: bytes) -> None:
    fields = stored(a_command(compensating=True).fields()) | {field.encode(): bad}
    assert why_unreadable(fields)


def test_a_compensation_added_by_hand_has_null_for_params_and_no_result() -> None:
    body = {"type": "RefundPayment", "saga_id": "saga42", "step": 2, "compensating": True}
    command = a_command_of(command_fields(body), sent_ms=9)
    assert (command.params, command.result, command.begun_ms) == (b"null", None, 9)


def test_a_command_added_by_hand_needs_nothing_but_its_body() -> None:
    body = {"type": "ChargePayment", "saga_id": "saga42", "step": 2}
    assert a_command_of(command_fields(body), sent_ms=9) == Command(
        service="payment", type="ChargePayment", saga_id="saga42", step=2, params=b"null", attempt=1, begun_ms=9
    )


def test_a_command_without_a_body_is_malformed() -> None:
    assert why_unreadable({}) == "the entry has no field body"


@pytest.mark.parametrize("bad", [b"", b"one", b"1.5", b"-1", b"\xff", b"\xd9\xa1", b"9" * 16, b"9" * 5000])
@pytest.mark.parametrize("field", ["attempt", "begun_ms", "not_after_ms"])
def test_a_command_with_a_field_that_is_no_whole_number_is_malformed(field: str, bad: bytes) -> None:
    body = {"type": "ChargePayment", "saga_id": "saga42", "step": 2}
    assert why_unreadable(command_fields(body, **{field: bad})) == f"the field {field} must be a whole number"


@pytest.mark.parametrize("bad", [*BAD_IDS.values(), *OTHER_TYPES.values()], ids=[*BAD_IDS, *OTHER_TYPES])
@pytest.mark.parametrize("member", ["type", "saga_id"])
def test_a_command_or_reply_with_a_bad_name_is_malformed(member: str, bad: Any) -> None:
    if not (member == "type" and bad == "x" * 129):  # the type of a reply may be as long as that
        rule = NAME_RULE.replace("128", "135") if member == "type" else NAME_RULE
        assert complaint(parse_reply, reply_body(**{member: bad})) == f"the body: {member} {rule}"
    body = {"type": "ChargePayment", "saga_id": "saga42", "step": 2} | {member: bad}
    assert why_unreadable(command_fields(body)) == f"the body: {member} {NAME_RULE}"


@pytest.mark.parametrize("bad", [None, True, 0, -1, MAX_STEPS + 1, 1.0, 1.5, "1", [1], {}, 2**64 - 1])
def test_a_command_or_reply_with_a_step_that_is_none_is_malformed(bad: Any) -> None:
    told = "step must be a whole number from 1 to 100"
    assert complaint(parse_reply, reply_body(step=bad)) == told
    body = {"type": "ChargePayment", "saga_id": "saga42", "step": bad}
    assert why_unreadable(command_fields(body)) == told


@pytest.mark.parametrize("member", ["type", "saga_id"])
def test_what_is_missing_in_a_command_or_reply_is_named(member: str) -> None:
    assert complaint(parse_reply, without(reply_body(), member)) == f"the body: {member} is missing"
    body = without({"type": "ChargePayment", "saga_id": "saga42", "step": 2}, member)
    assert why_unreadable(command_fields(body)) == f"the body: {member} is missing"


def test_a_step_that_is_missing_is_told() -> None:
    assert complaint(parse_reply, without(reply_body(), "step")) == "step must be a whole number from 1 to 100"


def test_a_body_that_says_it_does_not_compensate_is_a_transaction() -> None:
    body = {"type": "ChargePayment", "saga_id": "saga42", "step": 2, "compensating": False, "params": 1}
    assert not a_command_of(command_fields(body)).compensating


@pytest.mark.parametrize("bad", [1, "true", None, [True]])
def test_a_command_that_says_compensating_in_another_way_is_malformed(bad: Any) -> None:
    body = {"type": "RefundPayment", "saga_id": "saga42", "step": 2, "compensating": bad}
    assert "compensating" in why_unreadable(command_fields(body))


def test_a_reply_may_be_as_long_as_the_longest_name_and_its_ending() -> None:
    assert parse_reply(reply_body(type="x" * 128 + "_failed")).type == failed("x" * 128)
    assert complaint(parse_reply, reply_body(type="x" * 129 + "_failed")).startswith("the body: type must be ")


def test_what_a_service_adds_to_a_reply_is_ignored() -> None:
    assert parse_reply(reply_body(in_reply_to=7, msg_id=3, extra={"a": 1})) == parse_reply(reply_body())


def test_a_reply_with_null_for_its_result_has_one_and_a_reply_without_has_none() -> None:
    assert parse_reply(reply_body(result=None)).result == b"null"
    assert parse_reply(reply_body()).result is None
    assert parse_reply(reply_body(error=None)).error == b"null"
    assert parse_reply(reply_body()).error is None


REPLIES = st.builds(
    Reply,
    type=IDS.map(ok) | IDS.map(failed),
    saga_id=IDS,
    step=STEP_NUMBERS,
    result=st.none() | PAYLOADS,
    error=st.none() | PAYLOADS,
    unknown=st.booleans(),
    attempt=st.none() | st.integers(0, 10**6),
)


@given(REPLIES)
def test_a_reply_is_read_back_from_the_fields_of_its_entry(reply: Reply) -> None:
    assert read_reply(stored(reply.fields())) == reply
    assert parse_reply(decode(reply.body())) == replace(reply, unknown=False, attempt=None)


@pytest.mark.parametrize("bad", [b"", b"one", b"1.5", b"-1", b"\xff", b"9" * 16])
def test_a_reply_to_an_attempt_that_is_no_number_is_malformed(bad: bytes) -> None:
    found = read_reply({b"body": encode(reply_body()), b"attempt": bad})
    assert found == Unreadable(code=Code.MALFORMED, text="the field attempt must be a whole number")


def test_a_reply_that_does_not_say_which_attempt_it_answers_answers_none_in_particular() -> None:
    found = read_reply({b"body": encode(reply_body(attempt=7))})
    assert isinstance(found, Reply)
    assert found.attempt is None


@pytest.mark.parametrize("body", [b"", b"{", b"NaN", b"[]", b'"x"', b"null", b'{"step":1}', b"\xff", b"[" * 100_000])
def test_a_reply_that_is_none_is_malformed_and_nobody_asked(body: bytes) -> None:
    found = read_reply({b"body": body, b"request_id": b"me-1"})
    assert isinstance(found, Unreadable)
    assert (found.code, found.request_id, found.saga_id) == (Code.MALFORMED, None, None)
    assert found.text


def test_no_reply_is_accepted_whose_result_its_compensation_cannot_carry() -> None:
    numbers = b"[" + b",".join([b"1e15"] * 99_000) + b"]"
    reply = read_reply({b"body": b'{"type":"A_ok","saga_id":"x","step":1,"result":' + numbers + b"}"})
    if isinstance(reply, Reply):
        undo = replace(a_command(compensating=True), result=reply.result)
        assert a_command_of(stored(undo.fields())) == undo


def test_a_body_of_another_type_has_one_all_the_same() -> None:
    assert type_of({"type": "saga_dance", "x": 1}) == "saga_dance"
    assert complaint(type_of, {}) == "the body: type is missing"
    assert complaint(type_of, []) == "the body is not a JSON object"


def test_payloads_take_no_more_memory_than_they_need_for_workers_keep_them() -> None:
    def kept() -> list[bytes | None]:
        step = {"transaction": "A", "service": "s", "params": 1}
        begun = [parse_begin({"saga_id": "s1", "steps": [step]}).steps[0].params for _ in range(100)]
        answers = [("A_ok", "result"), ("A_failed", "error")] * 100
        replies = [parse_reply({"type": kind, "saga_id": "s1", "step": 1, said: 1}) for kind, said in answers]
        return [*begun, *(reply.payload for reply in replies)]

    kept()
    tracemalloc.start()
    payloads = kept()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 200 * len(payloads)


# --- formats

NEWER = {"type": "saga_begin", "saga_id": "saga42", "format": 9, "steps": {"a": "graph"}, "input": 1}


def _asked(body: object, **fields: bytes) -> Any:
    return read_request({b"body": encode(body)} | {name.encode(): value for name, value in fields.items()})


def test_this_release_knows_the_plain_format_and_that_of_graphs() -> None:
    assert {PLAIN, GRAPH} == FORMATS == {1, 2}


@pytest.mark.parametrize("kind", ["saga_begin", "saga_retry", "saga_signal"])
def test_a_request_of_a_newer_format_is_told_apart_whatever_else_it_says(kind: str) -> None:
    newer = Newer(format=9, saga_id="saga42", request_id="me-1")
    assert _asked(NEWER | {"type": kind}, request_id=b"me-1", trace=b"1") == newer


@pytest.mark.parametrize("body", [NEWER | {"saga_id": "no id"}, NEWER | {"type": 7}])
def test_a_request_of_a_newer_format_that_names_no_saga_or_type_is_malformed(body: object) -> None:
    found = _asked(body, request_id=b"me-1")
    assert isinstance(found, Unreadable)
    assert (found.code, found.request_id) == (Code.MALFORMED, "me-1")


@pytest.mark.parametrize("number", [0, -1, 1.0, "2", True, None, [2]])
@pytest.mark.parametrize("kind", ["saga_begin", "saga_skip"])
def test_a_format_is_a_whole_number_from_1(kind: str, number: object) -> None:
    found = _asked(NEWER | {"type": kind, "format": number})
    assert found == Unreadable(code=Code.MALFORMED, text="the body: format must be a whole number from 1")


def test_a_request_may_name_the_plain_format() -> None:
    begin = {"type": "saga_begin", "saga_id": "s", "steps": [{"transaction": "A", "service": "b"}]}
    assert _asked(begin | {"format": 1}) == _asked(begin)
    skip = {"type": "saga_skip", "saga_id": "s", "reason": "why"}
    assert _asked(skip | {"format": 1}) == _asked(skip)


@pytest.mark.parametrize(("parse", "kind"), [(parse_begin, "saga_begin"), (parse_intervene, "saga_skip")])
def test_what_is_to_be_carried_out_has_a_format_that_this_release_knows(parse: Any, kind: str) -> None:
    text = "the line: format 9 is not known to this release, which knows 1"
    with pytest.raises(MalformedMessage, match=re.escape(text)):
        parse(NEWER | {"type": kind}, called="the line")

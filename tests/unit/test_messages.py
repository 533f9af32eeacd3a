"""The messages as they are written into entries."""

from dataclasses import replace

import orjson
import pytest

from sagastream.messages import (
    Begin,
    Command,
    Notice,
    Reply,
    StepDefinition,
    error_body,
    failed,
    is_id,
    ok,
    outcome_body,
    reply_to,
)
from sagastream.strict_json import MAX_DEPTH, MAX_PAYLOAD_BYTES, decode, encode_payload
from unit.values import BAD_IDS, OTHER_TYPES, a_command, nested_value


def test_a_payload_at_both_limits_fits_into_every_message() -> None:
    longest = "n" * 128
    deepest = encode_payload(nested_value(MAX_DEPTH - 3))
    largest = encode_payload("x" * (MAX_PAYLOAD_BYTES - 2))
    for payload in (deepest, largest):
        definition = StepDefinition(transaction=longest, service=longest, params=payload, compensation="c" * 128)
        command = Command(service=longest, type=longest, saga_id=longest, step=100, params=payload, begun_ms=0)
        decode(Begin(saga_id=longest, steps=(definition,)).body())
        decode(command.body())
        decode(Reply(type=ok(longest), saga_id=longest, step=100, result=payload).body())
        decode(Reply(type=failed(longest), saga_id=longest, step=100, error=payload).body())


@pytest.mark.parametrize("bad", [*BAD_IDS.values(), *OTHER_TYPES.values()], ids=[*BAD_IDS, *OTHER_TYPES])
def test_what_is_no_id_is_none(bad: object) -> None:
    assert not is_id(bad)


def test_definitions_are_the_same_whatever_the_order_of_keys_and_white_space() -> None:
    one = StepDefinition(transaction="A", service="s", params=b'{"a": 1, "b": {"c": 2, "d": 3}}')
    same = StepDefinition(transaction="A", service="s", params=b'{"b":{"d":3,"c":2},"a":1}')
    assert one.canonical() == same.canonical()


@pytest.mark.parametrize(
    "other",
    [
        StepDefinition(transaction="B", service="s", params=b"[1,2]"),
        StepDefinition(transaction="A", service="t", params=b"[1,2]"),
        StepDefinition(transaction="A", service="s", params=b"[2,1]"),
        StepDefinition(transaction="A", service="s", params=b"[1,2]", compensation=None),
        StepDefinition(transaction="A", service="s", params=b"[1,2]", compensation="U"),
    ],
)
def test_definitions_that_differ_in_anything_that_counts_differ(other: StepDefinition) -> None:
    assert StepDefinition(transaction="A", service="s", params=b"[1,2]").canonical() != other.canonical()


def test_a_command_has_the_body_of_the_protocol() -> None:
    assert a_command().body() == b'{"type":"ChargePayment","saga_id":"saga42","step":2,"params":{"amount":99.99}}'


def test_a_compensation_has_the_body_of_the_protocol() -> None:
    assert a_command(compensating=True).body() == (
        b'{"type":"RefundPayment","saga_id":"saga42","step":2,"compensating":true}'
    )


def test_the_idempotency_key_tells_apart_sagas_steps_and_directions_and_never_attempts() -> None:
    assert a_command(attempt=1).key == a_command(attempt=7).key == "saga42/2/transaction"
    assert a_command(compensating=True).key == "saga42/2/compensation"


def test_the_entry_of_a_transaction_holds_its_params_once() -> None:
    command = a_command(attempt=2)
    assert command.fields() == {"body": command.body(), "attempt": 2, "begun_ms": 1_700_000_000_000}


def test_the_entry_of_a_compensation_holds_the_params_and_the_result_of_its_step() -> None:
    command = a_command(compensating=True)
    assert command.fields() == {
        "body": command.body(),
        "attempt": 1,
        "begun_ms": 1_700_000_000_000,
        "params": b'{"amount":99.99}',
        "result": b'{"payment_id":"p1"}',
    }
    assert "result" not in replace(command, result=None).fields()


def test_a_reply_to_a_command_names_its_saga_and_step() -> None:
    command = a_command()
    assert reply_to(command, ok(command.type), result=b"1") == Reply(
        type="ChargePayment_ok", saga_id="saga42", step=2, result=b"1"
    )
    assert reply_to(command, failed(command.type), error=b'"no"', unknown=True) == Reply(
        type="ChargePayment_failed", saga_id="saga42", step=2, error=b'"no"', unknown=True
    )


def test_replies_have_the_bodies_of_the_protocol() -> None:
    done = Reply(type="ChargePayment_ok", saga_id="saga42", step=2, result=b'{"payment_id":"p1"}')
    not_done = Reply(type="ChargePayment_failed", saga_id="saga42", step=2, error=b'"insufficient_funds"')
    undone = Reply(type="ReleaseReservation_ok", saga_id="saga42", step=1)
    assert done.body() == b'{"type":"ChargePayment_ok","saga_id":"saga42","step":2,"result":{"payment_id":"p1"}}'
    assert not_done.body() == (
        b'{"type":"ChargePayment_failed","saga_id":"saga42","step":2,"error":"insufficient_funds"}'
    )
    assert undone.body() == b'{"type":"ReleaseReservation_ok","saga_id":"saga42","step":1}'


def test_an_unknown_outcome_is_no_part_of_the_body() -> None:
    reply = Reply(type="A_failed", saga_id="x", step=1, unknown=True)
    assert b"unknown" not in reply.body()
    assert reply.fields() == {"body": reply.body(), "unknown": 1}
    assert replace(reply, unknown=False).fields() == {"body": reply.body()}


def test_outcomes_have_the_bodies_of_the_protocol() -> None:
    assert outcome_body("saga42", "COMPLETED", None) == (
        b'{"type":"saga_completed","saga_id":"saga42","status":"COMPLETED"}'
    )
    assert outcome_body("saga42", "ABORTED", "Step 2 failed: insufficient_funds") == (
        b'{"type":"saga_aborted","saga_id":"saga42","status":"ABORTED","reason":"Step 2 failed: insufficient_funds"}'
    )


def test_an_error_has_its_code_and_text() -> None:
    assert orjson.loads(error_body(22, "no")) == {"type": "error", "code": 22, "text": "no"}


def test_a_notice_says_what_there_is_to_say() -> None:
    assert Notice(kind="refused", body=b"{}", request_id="me-1").fields() == {
        "kind": "refused",
        "body": b"{}",
        "request_id": "me-1",
    }
    assert Notice(kind="command", body=b"{}", saga_id="saga42", service="payment").fields() == {
        "kind": "command",
        "body": b"{}",
        "saga_id": "saga42",
        "service": "payment",
    }

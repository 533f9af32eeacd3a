"""The messages as they are written into entries."""

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from sagastream.core.messages import Begin, Command, Intervene, Reply, Verb, failed, is_id, ok, reply_to
from sagastream.core.notices import done_body
from sagastream.core.steps import OPTIONS, PERSISTENT_ATTEMPTS, StepDefinition, StepKind, unlike_defaults
from sagastream.core.strict_json import MAX_DEPTH, MAX_PAYLOAD_BYTES, decode, encode_payload
from support.values import BAD_IDS, OTHER_TYPES, a_command, nested_value


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


def a_step(**options: Any) -> StepDefinition:
    return StepDefinition(transaction="A", service="s", params=b"7", **options)


#: For each option of a step a value that is not the default.
UNUSUAL = {
    "compensation": "U",
    "kind": StepKind.PIVOT,
    "timeout_ms": 1,
    "attempts": 2,
    "compensation_attempts": 3,
    "backoff_ms": 4,
    "retry_failed": True,
}


def test_a_step_says_in_its_body_what_is_not_as_usual_and_no_more() -> None:
    assert UNUSUAL.keys() == OPTIONS.keys()
    said = {"transaction": "A", "service": "s", "params": 7}
    begin = Begin(saga_id="saga42", steps=(a_step(), a_step(**UNUSUAL)))
    assert orjson.loads(begin.body())["steps"] == [said, said | UNUSUAL]
    for name, value in UNUSUAL.items():
        assert unlike_defaults(a_step(**{name: value}).options) == {name: value}


def test_ten_attempts_are_usual_for_a_retriable_step_alone() -> None:
    assert [*unlike_defaults(a_step(kind=StepKind.RETRIABLE, attempts=PERSISTENT_ATTEMPTS).options)] == ["kind"]
    assert [*unlike_defaults(a_step(kind=StepKind.RETRIABLE).options)] == ["kind", "attempts"]
    assert [*unlike_defaults(a_step(attempts=PERSISTENT_ATTEMPTS).options)] == ["attempts"]


@pytest.mark.parametrize("kind", StepKind)
@pytest.mark.parametrize("retry_failed", [False, True])
def test_a_failure_is_tried_again_where_the_step_says_so_or_is_retriable(kind: StepKind, retry_failed: bool) -> None:
    assert a_step(kind=kind, retry_failed=retry_failed).retried == (retry_failed or kind == "retriable")


def test_a_begin_says_its_deadline_before_its_steps() -> None:
    begin = Begin(saga_id="saga42", steps=(a_step(),), deadline_ms=5000)
    assert begin.body() == (
        b'{"type":"saga_begin","saga_id":"saga42","deadline_ms":5000,'
        b'"steps":[{"transaction":"A","service":"s","params":7}]}'
    )
    assert b"deadline_ms" not in replace(begin, deadline_ms=None).body()


@pytest.mark.parametrize("verb", Verb)
def test_what_an_operator_asks_for_has_a_type_of_its_own_and_is_answered_in_kind(verb: Verb) -> None:
    asked = Intervene(verb=verb, saga_id="saga42", reason="ordered twice")
    assert orjson.loads(asked.body()) == {"type": f"saga_{verb}", "saga_id": "saga42", "reason": "ordered twice"}
    assert asked.fields() == {"body": asked.body()}
    assert replace(asked, request_id="op-1").fields() == {"body": asked.body(), "request_id": "op-1"}
    assert orjson.loads(done_body(verb, "saga42")) == {"type": f"saga_{verb}_ok", "saga_id": "saga42"}


def test_a_command_has_the_body_of_the_protocol() -> None:
    assert a_command().body() == b'{"type":"ChargePayment","saga_id":"saga42","step":2,"params":{"amount":99.99}}'


def test_a_compensation_has_the_body_of_the_protocol() -> None:
    assert a_command(compensating=True).body() == (
        b'{"type":"RefundPayment","saga_id":"saga42","step":2,"compensating":true}'
    )


def test_the_idempotency_key_tells_apart_sagas_steps_and_directions_and_never_attempts() -> None:
    assert a_command(attempt=1).key == a_command(attempt=7).key == "saga42/2/transaction"
    assert a_command(compensating=True).key == "saga42/2/compensation"
    assert a_command().transaction_key == a_command(compensating=True).transaction_key == "saga42/2/transaction"


def test_a_command_is_filed_by_its_key_and_name_and_never_by_its_attempt() -> None:
    assert a_command(attempt=1).record == a_command(attempt=7).record == "saga42/2/transaction/ChargePayment"
    assert a_command(compensating=True).record == "saga42/2/compensation/RefundPayment"


def test_a_compensation_and_what_it_undoes_know_the_same_tombstone_which_is_nobodys_record() -> None:
    assert a_command().tombstone == a_command(compensating=True).tombstone == "saga42/2/transaction/(void)"
    assert not is_id(a_command().tombstone.rpartition("/")[2])


def test_the_entry_of_a_transaction_holds_its_params_once() -> None:
    command = a_command(attempt=2)
    assert command.fields() == {"body": command.body(), "attempt": 2, "begun_ms": 1_700_000_000_000}


def test_the_entry_of_a_command_says_until_when_it_may_be_begun_and_whether_its_failure_is_no_last_word() -> None:
    command = replace(a_command(), not_after_ms=1_700_000_060_000, retried=True)
    assert command.fields() == a_command().fields() | {"not_after_ms": 1_700_000_060_000, "retried": 1}
    assert command.body() == a_command().body()


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


def test_a_reply_to_a_command_names_its_saga_step_and_attempt() -> None:
    command = a_command(attempt=3)
    assert reply_to(command, ok(command.type), result=b"1") == Reply(
        type="ChargePayment_ok", saga_id="saga42", step=2, result=b"1", attempt=3
    )
    assert reply_to(command, failed(command.type), error=b'"no"', unknown=True) == Reply(
        type="ChargePayment_failed", saga_id="saga42", step=2, error=b'"no"', unknown=True, attempt=3
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


@pytest.mark.parametrize(("kind", "recorded"), [("A_ok", b"1"), ("A_failed", b'"no"')])
def test_of_a_reply_that_says_both_what_its_type_tells_of_is_recorded(kind: str, recorded: bytes) -> None:
    assert Reply(type=kind, saga_id="s1", step=1, result=b"1", error=b'"no"').payload == recorded


def test_an_unknown_outcome_and_the_attempt_are_no_part_of_the_body() -> None:
    reply = Reply(type="A_failed", saga_id="x", step=1, unknown=True, attempt=3)
    assert reply.body() == b'{"type":"A_failed","saga_id":"x","step":1}'
    assert reply.fields() == {"body": reply.body(), "attempt": 3, "unknown": 1}
    assert replace(reply, unknown=False).fields() == {"body": reply.body(), "attempt": 3}
    assert replace(reply, attempt=None).fields() == {"body": reply.body(), "unknown": 1}


def test_a_begin_names_its_format_where_it_is_not_the_plain_one() -> None:
    begin = Begin(saga_id="s", steps=(StepDefinition(transaction="A", service="b", params=b"1"),))
    assert b"format" not in begin.body()
    assert list(orjson.loads(replace(begin, format=2).body()).items())[:3] == [
        ("type", "saga_begin"),
        ("saga_id", "s"),
        ("format", 2),
    ]

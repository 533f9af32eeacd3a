"""Commands and replies as they are written into entries."""

import pytest
from msgspec.structs import replace

from sagastream.core.commands import Reply, failed, ok, reply_to
from sagastream.core.messages import is_id
from support.values import a_command


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

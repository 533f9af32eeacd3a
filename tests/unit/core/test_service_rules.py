"""What a service does with a command that it may have seen before, or that was undone before it came."""

from itertools import product

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core.messages import Command, Reply, failed, ok, reply_to
from sagastream.core.service_rules import Verdict, gave_up, kind, refusal, stale, verdict
from support.values import GARBLED_RECORDS, a_command

CHARGED = b'ok {"payment_id":"p1"}'
REFUSED = b'failed "insufficient_funds"'
REFUNDED = b"ok "

CHARGE = a_command(attempt=4)
REFUND = a_command(compensating=True, attempt=4)

#: What is recorded of CHARGE, as a reply to the attempt that asks.
DONE = Reply(type="ChargePayment_ok", saga_id="saga42", step=2, result=b'{"payment_id":"p1"}', attempt=4)
NOT_DONE = Reply(type="ChargePayment_failed", saga_id="saga42", step=2, error=b'"insufficient_funds"', attempt=4)
UNDONE = Reply(type="RefundPayment_ok", saga_id="saga42", step=2, attempt=4)
CANCELLED = Reply(
    type="ChargePayment_failed",
    saga_id="saga42",
    step=2,
    error=b'"cancelled: ChargePayment came after its compensation"',
    attempt=4,
)
KILLED = Reply(
    type="ChargePayment_failed",
    saga_id="saga42",
    step=2,
    error=b'"3 processes took ChargePayment and did not live to answer it"',
    unknown=True,
    attempt=4,
)


def judged(
    command: Command = CHARGE,
    record: bytes | None = None,
    *,
    tombstone: bool = False,
    again: bool = False,
) -> Verdict:
    return verdict(command, record=record, tombstone=tombstone, again=again)


# --- commands that are as they should be


@pytest.mark.parametrize("command", [CHARGE, REFUND, replace(CHARGE, retried=True)])
@pytest.mark.parametrize("again", [False, True])
def test_a_command_of_which_nothing_is_known_is_handled(command: Command, again: bool) -> None:
    assert judged(command, again=again) == Verdict()


@pytest.mark.parametrize("again", [False, True])
def test_a_command_that_was_done_is_answered_as_it_was_without_its_handler(again: bool) -> None:
    assert judged(record=CHARGED, again=again) == Verdict(reply=DONE)


def test_the_answer_from_the_record_is_to_the_attempt_that_asks() -> None:
    for attempt in (1, 7):
        assert judged(replace(CHARGE, attempt=attempt), CHARGED) == Verdict(reply=replace(DONE, attempt=attempt))


def test_a_compensation_that_was_done_is_answered_as_it_was() -> None:
    assert judged(REFUND, REFUNDED, tombstone=True, again=True) == Verdict(reply=UNDONE)


# --- commands whose step has failed, or was undone


def test_a_command_that_had_failed_fails_again() -> None:
    assert judged(record=REFUSED) == Verdict(reply=NOT_DONE)


def test_a_command_that_had_failed_and_that_somebody_may_have_been_at_since_is_undone_first() -> None:
    assert judged(record=REFUSED, again=True) == Verdict(reply=NOT_DONE, undo=True)


def test_a_command_that_comes_after_its_compensation_is_refused() -> None:
    assert judged(tombstone=True) == Verdict(reply=CANCELLED)
    assert refusal(CHARGE) == CANCELLED


def test_a_command_that_somebody_may_have_been_at_before_its_compensation_came_is_undone_first() -> None:
    assert judged(tombstone=True, again=True) == Verdict(reply=CANCELLED, undo=True)


def test_a_compensation_is_not_refused_for_the_tombstone_that_it_left_itself() -> None:
    for again in (False, True):
        assert judged(REFUND, tombstone=True, again=again) == Verdict()


@pytest.mark.parametrize("again", [False, True])
def test_a_command_that_was_done_before_its_compensation_came_is_told_as_done(again: bool) -> None:
    # … and delivered again, it may have been done again after that.
    assert judged(record=CHARGED, tombstone=True, again=again) == Verdict(reply=DONE, undo=again)


# --- commands that kill


def test_what_is_said_of_a_command_that_kills_whoever_takes_it_up_leaves_its_outcome_open() -> None:
    assert gave_up(CHARGE, 3) == KILLED


# --- all of that together


RECORDS = [None, CHARGED, REFUSED]
CASES = list(product(RECORDS, [False, True], [False, True], [False, True]))


@pytest.mark.parametrize(("record", "tombstone", "again", "retried"), CASES)
def test_a_transaction_is_handled_only_where_nothing_speaks_against_it(
    record: bytes | None, tombstone: bool, again: bool, retried: bool
) -> None:
    command = replace(CHARGE, retried=retried)
    found = judged(command, record, tombstone=tombstone, again=again)
    refused = record is REFUSED or tombstone
    assert (found.reply is None) == (record is None and not tombstone)
    # Undone is what must not have been done, and may have been: by whoever had it before.
    assert found.undo == (refused and again)
    if found.reply is not None:
        assert (found.reply.saga_id, found.reply.step, found.reply.attempt) == ("saga42", 2, 4)
        assert (found.reply.type == ok(command.type)) == (record is CHARGED)
        assert not found.reply.unknown


@pytest.mark.parametrize(("record", "tombstone", "again", "retried"), CASES)
def test_a_compensation_is_handled_until_it_is_done_and_never_undone(
    record: bytes | None, tombstone: bool, again: bool, retried: bool
) -> None:
    command = replace(REFUND, retried=retried)
    found = judged(command, record, tombstone=tombstone, again=again)
    assert (found.reply is None) == (record is None)
    assert not found.undo


# --- records of every shape


@pytest.mark.parametrize("payload", [None, b"null", b"0", b"[]", b'""', b'{"type":"Other_ok","step":9}'])
def test_an_answer_is_the_same_from_the_record_whatever_its_result_or_error_is(payload: bytes | None) -> None:
    for reply in (
        reply_to(CHARGE, ok(CHARGE.type), result=payload),
        reply_to(CHARGE, failed(CHARGE.type), error=payload),
    ):
        record = f"{kind(CHARGE, reply)} ".encode() + (reply.payload or b"")
        assert judged(record=record) == Verdict(reply=reply)


# --- records that are none


@pytest.mark.parametrize("record", GARBLED_RECORDS)
def test_a_garbled_record_answers_nothing(record: bytes) -> None:
    assert judged(record=record) == Verdict()
    assert judged(record=record, again=True) == Verdict()
    assert judged(record=record, tombstone=True) == Verdict(reply=CANCELLED)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda payload: b"ok " + payload))
def test_whatever_stands_in_a_record_a_verdict_is_found(record: bytes) -> None:
    found = judged(record=record)
    assert found.reply is None or orjson.loads(found.reply.result or b"null") == orjson.loads(record[3:] or b"null")


# --- commands that come too late


@pytest.mark.parametrize("now_ms", [0, 4999, 5000])
def test_a_command_that_is_still_waited_for_is_in_time(now_ms: int) -> None:
    assert stale(replace(CHARGE, not_after_ms=5000), now_ms) is None


@pytest.mark.parametrize("late_ms", [1, 10**12])
def test_a_command_that_nobody_waits_for_any_more_is_not_begun_and_its_outcome_is_left_open(late_ms: int) -> None:
    # Open, since an earlier delivery of it may have been begun in time.
    assert stale(replace(CHARGE, not_after_ms=5000), 5000 + late_ms) == Reply(
        type="ChargePayment_failed",
        saga_id="saga42",
        step=2,
        error=orjson.dumps(f"ChargePayment came {late_ms} ms too late, and was not begun"),
        unknown=True,
        attempt=4,
    )


def test_a_command_that_may_be_done_late_is_never_too_late() -> None:
    assert stale(replace(CHARGE, not_after_ms=None), 10**15) is None
    assert stale(REFUND, 10**15) is None


# --- what is recorded


@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize("command", [CHARGE, REFUND])
def test_that_a_command_was_done_is_recorded(command: Command, retried: bool) -> None:
    assert kind(replace(command, retried=retried), reply_to(command, ok(command.type))) == "ok"


@pytest.mark.parametrize(
    ("retried", "unknown", "what"),
    [
        (False, False, "failed"),
        (False, True, "unknown"),
        (True, False, "unknown"),
        (True, True, "unknown"),
    ],
)
def test_a_failure_is_recorded_where_it_is_the_last_word(retried: bool, unknown: bool, what: str) -> None:
    for command in (CHARGE, REFUND):
        asked = replace(command, retried=retried)
        assert kind(asked, reply_to(asked, failed(command.type), error=b'"no"', unknown=unknown)) == what


def test_the_reply_of_a_command_that_is_named_like_a_failure_is_told_apart() -> None:
    odd = replace(CHARGE, type="Charge_failed")
    assert kind(odd, reply_to(odd, ok(odd.type))) == "ok"
    assert kind(odd, reply_to(odd, failed(odd.type))) == "failed"

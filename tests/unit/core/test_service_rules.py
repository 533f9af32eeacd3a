"""What a service does with a command that it may have seen before, or whose step was undone before the command came."""

from itertools import product
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core import backoff
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.service_actions import (
    HAND_BACK,
    RELEASE,
    RUN,
    Answer,
    Call,
    Count,
    Next,
    Requeue,
    Retry,
    Run,
    SetAside,
    Undo,
)
from sagastream.core.service_rules import (
    MAX_TAKEOVERS,
    MAX_UNDOS,
    NEW_MS,
    TRIES,
    before_call,
    data_away,
    delivered,
    for_twin,
    gave_up,
    in_doubt,
    is_new,
    kind,
    overruled,
    raised,
    refusal,
    replied,
    runs_alone,
    too_late,
    undoing,
    without_handler,
)
from support.values import GARBLED_RECORDS, a_command

CHARGED = b'ok {"payment_id":"p1"}'
REFUSED = b'failed "insufficient_funds"'
REFUNDED = b"ok "

CHARGE = a_command(attempt=4)
REFUND = a_command(compensating=True, attempt=4)

#: The records of CHARGE, as replies to the attempt that asks.
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
) -> Run | Undo | Answer:
    return delivered(command, record=record, tombstone=tombstone, again=again)


def final(reply: Reply) -> Answer:
    """The answer to a command whose handler is not called."""
    return Answer(reply, "final")


def reply_in(step: Run | Undo | Answer) -> Reply | None:
    """The reply that the command gets without its handler; None: the handler is called."""
    match step:
        case Answer(reply=reply) | Undo(refusal=reply):
            return reply
    return None


# --- commands that need no look-up

#: A command that a worker has just sent. At time 100 it saw that nothing was recorded.
NEW = replace(CHARGE, attempt=1, not_after_ms=30_000, unrecorded_ms=100)


@pytest.mark.parametrize("now_ms", [100, 100 + NEW_MS])
def test_a_command_that_a_worker_looked_up_a_moment_ago_is_not_looked_up_again(now_ms: int) -> None:
    assert is_new(NEW, added_ms=100, again=False, now_ms=now_ms)


def test_a_copy_of_its_entry_is_looked_up() -> None:
    assert not is_new(NEW, added_ms=101, again=False, now_ms=101)


@pytest.mark.parametrize(
    ("command", "again", "now_ms"),
    [
        (NEW, True, 100),  # somebody may have begun with it
        (NEW, False, 101 + NEW_MS),
        (NEW, False, 99),  # the clock was set back, or it is another node's
        (replace(NEW, unrecorded_ms=None), False, 100),
        (replace(NEW, attempt=2), False, 100),
        (replace(NEW, not_after_ms=None), False, 100),  # what may begin late, since another attempt was sent
        (replace(NEW, compensating=True), False, 100),  # its look-up leaves a tombstone
    ],
)
def test_any_other_command_is_looked_up(command: Command, again: bool, now_ms: int) -> None:
    assert not is_new(command, added_ms=100, again=again, now_ms=now_ms)


# --- commands that are as they should be


@pytest.mark.parametrize("command", [CHARGE, REFUND, replace(CHARGE, retried=True)])
@pytest.mark.parametrize("again", [False, True])
def test_a_command_of_which_nothing_is_known_is_handled(command: Command, again: bool) -> None:
    assert judged(command, again=again) == RUN


@pytest.mark.parametrize("again", [False, True])
def test_a_command_that_was_done_is_answered_as_it_was_without_its_handler(again: bool) -> None:
    assert judged(record=CHARGED, again=again) == final(DONE)


def test_the_answer_from_the_record_is_to_the_attempt_that_asks() -> None:
    for attempt in (1, 7):
        assert judged(replace(CHARGE, attempt=attempt), CHARGED) == final(replace(DONE, attempt=attempt))


def test_a_compensation_that_was_done_is_answered_as_it_was() -> None:
    assert judged(REFUND, REFUNDED, tombstone=True, again=True) == final(UNDONE)


# --- commands whose step has failed, or was undone


def test_a_command_that_had_failed_fails_again() -> None:
    assert judged(record=REFUSED) == final(NOT_DONE)


def test_a_command_that_had_failed_and_that_somebody_may_have_been_at_since_is_undone_first() -> None:
    assert judged(record=REFUSED, again=True) == Undo(refusal=NOT_DONE)


def test_a_command_that_comes_after_its_compensation_is_refused() -> None:
    assert judged(tombstone=True) == final(CANCELLED)
    assert refusal(CHARGE) == CANCELLED


def test_a_command_that_somebody_may_have_been_at_before_its_compensation_came_is_undone_first() -> None:
    assert judged(tombstone=True, again=True) == Undo(refusal=CANCELLED)


def test_a_compensation_is_not_refused_for_the_tombstone_that_it_left_itself() -> None:
    for again in (False, True):
        assert judged(REFUND, tombstone=True, again=again) == RUN


@pytest.mark.parametrize("again", [False, True])
def test_a_command_that_was_done_before_its_compensation_came_is_told_as_done(again: bool) -> None:
    # … and delivered again, it may have been done again after the undo.
    assert judged(record=CHARGED, tombstone=True, again=again) == (Undo(refusal=DONE) if again else final(DONE))


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
    reply = reply_in(found)
    assert (reply is None) == (record is None and not tombstone)
    # It is undone if it must not have been done, and may have been, by the process that had it before.
    assert isinstance(found, Undo) == (refused and again)
    if reply is not None:
        assert (reply.saga_id, reply.step, reply.attempt) == ("saga42", 2, 4)
        assert (reply.type == ok(command.type)) == (record is CHARGED)
        assert not reply.unknown


@pytest.mark.parametrize(("record", "tombstone", "again", "retried"), CASES)
def test_a_compensation_is_handled_until_it_is_done_and_never_undone(
    record: bytes | None, tombstone: bool, again: bool, retried: bool
) -> None:
    command = replace(REFUND, retried=retried)
    found = judged(command, record, tombstone=tombstone, again=again)
    assert (reply_in(found) is None) == (record is None)
    assert not isinstance(found, Undo)


# --- records of every shape


@pytest.mark.parametrize("payload", [None, b"null", b"0", b"[]", b'""', b'{"type":"Other_ok","step":9}'])
def test_an_answer_is_the_same_from_the_record_whatever_its_result_or_error_is(payload: bytes | None) -> None:
    for reply in (
        reply_to(CHARGE, ok(CHARGE.type), result=payload),
        reply_to(CHARGE, failed(CHARGE.type), error=payload),
    ):
        record = f"{kind(CHARGE, reply)} ".encode() + (reply.payload or b"")
        assert judged(record=record) == final(reply)


# --- records that are none


@pytest.mark.parametrize("record", GARBLED_RECORDS)
def test_a_garbled_record_answers_nothing(record: bytes) -> None:
    assert judged(record=record) == RUN
    assert judged(record=record, again=True) == RUN
    assert judged(record=record, tombstone=True) == final(CANCELLED)


@given(st.binary(max_size=40) | st.binary(max_size=40).map(lambda payload: b"ok " + payload))
def test_whatever_stands_in_a_record_a_verdict_is_found(record: bytes) -> None:
    found = judged(record=record)
    reply = reply_in(found)
    assert reply is None or orjson.loads(reply.result or b"null") == orjson.loads(record[3:] or b"null")


# --- commands that come too late


@pytest.mark.parametrize("now_ms", [0, 4999, 5000])
def test_a_command_that_is_still_waited_for_is_in_time(now_ms: int) -> None:
    assert too_late(replace(CHARGE, not_after_ms=5000), RUN, not_begun=True, now_ms=now_ms) is None


@pytest.mark.parametrize("late_ms", [1, 10**12])
def test_a_command_that_nobody_waits_for_any_more_is_not_begun_and_its_outcome_is_left_open(late_ms: int) -> None:
    # The outcome is open, since an earlier delivery may have begun in time.
    reply = Reply(
        type="ChargePayment_failed",
        saga_id="saga42",
        step=2,
        error=orjson.dumps(f"ChargePayment came {late_ms} ms too late, and was not begun"),
        unknown=True,
        attempt=4,
    )
    command = replace(CHARGE, not_after_ms=5000)
    assert too_late(command, RUN, not_begun=False, now_ms=5000 + late_ms) == Answer(reply, "unknown")
    assert too_late(command, RUN, not_begun=True, now_ms=5000 + late_ms) == Answer(reply, "final")


def test_a_command_that_may_be_done_late_is_never_too_late() -> None:
    assert too_late(replace(CHARGE, not_after_ms=None), RUN, not_begun=True, now_ms=10**15) is None
    assert too_late(REFUND, RUN, not_begun=True, now_ms=10**15) is None


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


# --- before a handler is called


def begun(
    command: Command = CHARGE,
    todo: Run | Undo = RUN,
    *,
    is_first: bool = True,
    again: bool = False,
    taken_over: bool = False,
    now_ms: int = 5000,
    times: int | None = None,
) -> Next:
    return before_call(command, todo, is_first=is_first, again=again, taken_over=taken_over, now_ms=now_ms, times=times)


UNDO = Undo(refusal=CANCELLED, result=b'{"payment_id":"p1"}')
LATE = replace(CHARGE, not_after_ms=5000)


@pytest.mark.parametrize("todo", [RUN, UNDO])
def test_what_comes_for_the_first_time_is_begun_without_being_counted(todo: Run | Undo) -> None:
    assert begun(todo=todo) is todo


@pytest.mark.parametrize(("is_first", "again", "kind_"), [
    (True, False, "final"), (True, True, "unknown"), (False, False, "unknown"), (False, True, "unknown"),
])  # fmt: skip
def test_what_comes_too_late_leaves_a_doubt_only_if_somebody_may_have_begun(
    is_first: bool, again: bool, kind_: Any
) -> None:
    late = begun(LATE, is_first=is_first, again=again, now_ms=5001)
    assert isinstance(late, Answer)
    assert (late.reply.type, late.reply.unknown, late.kind) == (failed(CHARGE.type), True, kind_)
    assert begun(LATE, is_first=is_first, again=again, now_ms=5000) is RUN


def test_an_undo_is_never_too_late() -> None:
    assert begun(LATE, UNDO, now_ms=10**15) is UNDO
    assert too_late(LATE, UNDO, not_begun=True, now_ms=10**15) is None


def test_what_is_too_late_is_not_counted() -> None:
    assert isinstance(begun(LATE, again=True, taken_over=True, now_ms=5001), Answer)


def test_takeovers_are_counted_and_limited() -> None:
    assert begun(again=True, taken_over=True) is Count.TAKEOVERS
    assert begun(again=True, taken_over=True, times=MAX_TAKEOVERS - 1) is RUN
    given_up = Answer(gave_up(CHARGE, MAX_TAKEOVERS), "unknown")
    assert begun(again=True, taken_over=True, times=MAX_TAKEOVERS) == given_up
    # It is not counted again for another call by this process, nor for an entry that comes back to its own reader.
    assert begun(again=True, taken_over=True, is_first=False) is RUN
    assert begun(again=True) is RUN


def test_undos_of_what_comes_again_are_counted_and_limited() -> None:
    assert begun(todo=UNDO, again=True) is Count.UNDOS
    assert begun(todo=UNDO, again=True, times=MAX_UNDOS - 1) is UNDO
    aside = SetAside("ChargePayment may have been done after it was refused, and could not be undone 10 times")
    assert begun(todo=UNDO, again=True, times=MAX_UNDOS) == aside
    assert begun(todo=UNDO, again=True, is_first=False) is UNDO


# --- commands without a handler


@pytest.mark.parametrize(("command", "called"), [(CHARGE, "command"), (REFUND, "compensation")])
def test_a_command_that_the_service_does_not_have_fails(command: Command, called: str) -> None:
    text = f"unknown_command: service payment has no {called} {command.type}"
    command = replace(command, attempt=1)
    failure = reply_to(command, failed(command.type), error=orjson.dumps(text))
    assert without_handler(command, RUN, again=False) == Answer(failure, "failed")
    retried = replace(command, retried=True)
    assert without_handler(retried, RUN, again=False) == Answer(failure, "unknown")


@pytest.mark.parametrize("command", [CHARGE, REFUND])
@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize(("attempt", "again"), [(1, True), (2, False), (2, True)])
def test_a_process_that_does_not_have_a_command_does_not_know_what_another_release_did(
    command: Command, retried: bool, attempt: int, again: bool
) -> None:
    command = replace(command, retried=retried, attempt=attempt)
    answer = without_handler(command, RUN, again=again)
    assert isinstance(answer, Answer)
    assert (answer.kind, answer.reply.unknown) == ("unknown", True)


def test_an_undo_that_the_service_does_not_have_is_a_try_like_any_other() -> None:
    assert without_handler(CHARGE, UNDO, again=False) is RELEASE
    assert without_handler(CHARGE, UNDO, again=True) is Count.UNDOS
    assert without_handler(CHARGE, UNDO, again=True, times=MAX_UNDOS - 1) is RELEASE
    assert isinstance(without_handler(CHARGE, UNDO, again=True, times=MAX_UNDOS), SetAside)


@pytest.mark.parametrize("command", [CHARGE, REFUND])
@pytest.mark.parametrize("todo", [RUN, UNDO])
@pytest.mark.parametrize("again", [False, True])
def test_what_another_release_of_the_service_has_is_handed_back_and_not_counted(
    command: Command, todo: Run | Undo, again: bool
) -> None:
    assert without_handler(command, todo, again=again, published=True, now_ms=10**15) is HAND_BACK
    assert without_handler(LATE, todo, again=again, published=True, now_ms=5000) is HAND_BACK


@pytest.mark.parametrize("again", [False, True])
def test_what_another_release_has_ends_as_every_late_command_once_nobody_waits_for_it(again: bool) -> None:
    late = too_late(LATE, RUN, not_begun=not again, now_ms=5001)
    assert late is not None
    assert without_handler(LATE, RUN, again=again, published=True, now_ms=5001) == late


# --- undoing


def test_a_command_is_undone_by_its_compensation_under_a_key_of_its_own() -> None:
    call = undoing(CHARGE, UNDO, compensation="RefundPayment", entry_id="7-0")
    assert isinstance(call, Call)
    assert (call.command.type, call.command.compensating, call.command.result) == ("RefundPayment", True, UNDO.result)
    assert (call.command.params, call.command.transaction_key) == (CHARGE.params, CHARGE.key)
    assert call.key == "saga42/2/compensation/7-0"


def test_a_command_that_needs_no_undo_is_answered_at_once() -> None:
    assert undoing(CHARGE, UNDO, compensation=None, entry_id="7-0") == final(CANCELLED)


def test_a_command_that_is_overruled_is_undone_with_the_result_that_its_handler_gave() -> None:
    assert overruled(CHARGE, replace(DONE, result=UNDO.result), is_held=True) == UNDO


def test_a_command_that_is_overruled_and_not_held_any_more_is_sent_again_with_the_result() -> None:
    assert overruled(CHARGE, replace(DONE, result=UNDO.result), is_held=False) == Requeue(result=UNDO.result)


def test_a_command_that_was_sent_again_is_undone_with_the_result_that_came_along() -> None:
    again = replace(CHARGE, result=UNDO.result)
    assert delivered(again, record=None, tombstone=True, again=True) == UNDO


# --- what a handler comes to


def test_the_reply_of_a_handler_is_the_answer() -> None:
    assert replied(RUN, CHARGE, DONE) == Answer(DONE, "ok")
    assert replied(RUN, CHARGE, NOT_DONE) == Answer(NOT_DONE, "failed")
    assert replied(RUN, replace(CHARGE, retried=True), NOT_DONE) == Answer(NOT_DONE, "unknown")


def test_a_command_is_refused_once_it_is_undone_and_released_if_it_is_not() -> None:
    assert replied(UNDO, REFUND, UNDONE) == final(CANCELLED)
    assert replied(UNDO, REFUND, reply_to(REFUND, failed(REFUND.type), error=b'"no"')) is RELEASE
    assert in_doubt(UNDO, REFUND, "why") is RELEASE
    assert raised(UNDO, REFUND, "why", tries=TRIES, limit=TRIES) is RELEASE


@pytest.mark.parametrize("todo", [RUN, UNDO])
def test_a_handler_that_raises_is_called_again_after_a_growing_delay(todo: Run | Undo) -> None:
    steps = [raised(todo, CHARGE, "why", tries=tries, limit=3) for tries in (1, 2, 3)]
    assert steps[:2] == [Retry(backoff.delay(1)), Retry(backoff.delay(2))]
    assert not isinstance(steps[2], Retry)


def test_a_handler_that_raises_at_its_last_try_leaves_the_outcome_in_doubt() -> None:
    unknown = reply_to(CHARGE, failed(CHARGE.type), error=b'"why"', unknown=True)
    assert raised(RUN, CHARGE, "why", tries=1, limit=1) == Answer(unknown, "unknown")
    assert in_doubt(RUN, CHARGE, "why") == Answer(unknown, "unknown")


def test_an_outage_is_waited_out_however_often_it_happens() -> None:
    assert [data_away(times) for times in (1, 100)] == [Retry(backoff.delay(1)), Retry(backoff.delay(100))]


@pytest.mark.parametrize(("kind_", "is_last_word"), [
    ("ok", True), ("failed", True), ("unknown", False), ("final", False),
])  # fmt: skip
def test_an_answer_that_is_recorded_is_the_last_word(kind_: Any, is_last_word: bool) -> None:
    assert Answer(DONE, kind_).is_last_word is is_last_word


def test_a_twin_gets_the_same_answer_to_its_own_attempt() -> None:
    twin = replace(CHARGE, attempt=7)
    assert for_twin(Answer(DONE, "ok"), twin) == Answer(replace(DONE, attempt=7), "ok")
    # If the failure of a twin is tried again, it is not recorded.
    assert for_twin(Answer(NOT_DONE, "failed"), replace(twin, retried=True)).kind == "unknown"


def test_a_command_runs_alone_from_the_second_time_that_it_is_taken_over() -> None:
    assert [runs_alone(begun) for begun in range(3)] == [False, True, True]

"""What a saga can do: try again, be undone, be parked and go on; and what always holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core import back, step_state, transitions
from sagastream.core.backoff import LONGEST_MS
from sagastream.core.commands import Command, Reply
from sagastream.core.decision import Event, decide
from sagastream.core.history import history
from sagastream.core.history_events import HistoryKind
from sagastream.core.indexing import index_names, stays_out
from sagastream.core.journal import MAX_JOURNAL_BYTES
from sagastream.core.messages import Begin, Due, Intervene, Verb
from sagastream.core.phases import STEP, Phase
from sagastream.core.saga import SagaState, SagaStatus, protocol_view
from sagastream.core.sending import Published
from sagastream.core.step_state import Step, StepStatus
from sagastream.core.steps import AS_PUBLISHED, PERSISTENT_ATTEMPTS, StepDefinition, StepKind
from sagastream.core.transitions import TRANSITIONS, Decision, Moment
from support.graph_stories import do, given_graph
from support.stories import BEGUN_MS, CHARGE, PUBLISHED, RESERVE, SHIP, Story, given_saga, readable, step

PIVOT = step("ChargePayment", "payment", 7, compensation=None, kind=StepKind.PIVOT, attempts=2)
RETRIABLE = step("CreateShipment", "shipping", 7, kind=StepKind.RETRIABLE, attempts=2)

NO_ANSWER = "no answer within 60000 ms"


# --- attempts


def test_a_command_that_is_not_answered_in_time_is_sent_again_after_a_while_with_the_same_key() -> None:
    story = given_saga(RESERVE)
    (first,) = story.decision.commands
    story.when_due().expect_status("PENDING").expect_sent_again_in(1000)
    story.expect_waits("the time to send ReserveInventory, step 1 again (attempt 2 of 3)").expect_notices()
    story.when_due().expect_sent("inventory", "ReserveInventory", 1, attempt=2)
    story.expect_waits("inventory to answer ReserveInventory, step 1 (attempt 2 of 3)")
    (second,) = story.decision.commands
    assert second.key == first.key
    assert second == replace(first, attempt=2, not_after_ms=story.now_ms + 60_000)


def test_an_answer_is_waited_for_as_long_as_the_step_says() -> None:
    story = given_saga(replace(RESERVE, timeout_ms=250))
    assert story.saga.due_ms == BEGUN_MS + 250
    assert story.decision.commands[0].not_after_ms == BEGUN_MS + 250
    story.when_due().when_due()
    assert story.saga.steps[0].error == b'"no answer within 250 ms"'
    assert story.saga.times_out_ms == story.now_ms + 250


def test_the_delay_between_attempts_doubles_up_to_a_minute() -> None:
    story = given_saga(replace(RESERVE, attempts=9, backoff_ms=2000))
    for attempt, delay_ms in enumerate((2000, 4000, 8000, 16_000, 32_000, LONGEST_MS, LONGEST_MS, LONGEST_MS), 2):
        story.when_due().expect_sent_again_in(delay_ms)
        story.when_due().expect_sent("inventory", "ReserveInventory", 1, attempt=attempt)


@pytest.mark.parametrize(("jitter", "delay_ms"), [(0.0, 500), (0.5, 750), (1.0, 1000)])
def test_chance_takes_off_up_to_the_half_of_a_delay(jitter: float, delay_ms: int) -> None:
    given_saga(RESERVE, jitter=jitter).when_due().expect_sent_again_in(delay_ms)


def test_a_step_that_no_attempt_got_done_has_failed_and_is_compensated_first() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1)
    for attempt in (1, 2):
        story.when_due().expect_sent_again_in(1000 * attempt)
        story.when_due().expect_sent("payment", "ChargePayment", 2, attempt=attempt + 1)
    reason = f"Step 2 failed: {NO_ANSWER} (3 attempts)"
    story.when_due().expect_status("COMPENSATING", reason).expect_steps("COMPLETED", "FAILED")
    story.expect_sent("payment", "RefundPayment", 2)
    given_up = story.saga.steps[1]
    assert (given_up.unknown, given_up.attempt, given_up.answered_ms) == (True, 3, story.now_ms)
    story.when("RefundPayment_ok", 2).expect_sent("inventory", "ReleaseReservation", 1)
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", reason)


def test_a_step_is_not_tried_again_where_one_attempt_is_all_it_has() -> None:
    given_saga(replace(RESERVE, attempts=1)).when_due().expect_sent("inventory", "ReleaseReservation", 1)


def test_each_step_has_attempts_of_its_own() -> None:
    story = given_saga(RESERVE, CHARGE).when_due().when_due().when("ReserveInventory_ok", 1)
    story.expect_sent("payment", "ChargePayment", 2, attempt=1).when_due().expect_sent_again_in(1000)


def test_a_failure_is_tried_again_where_the_step_asks_for_it() -> None:
    story = given_saga(replace(CHARGE, retry_failed=True))
    for attempt in (1, 2):
        assert story.decision.commands[0].retried
        story.when("ChargePayment_failed", 1, error="busy", attempt=attempt).expect_sent_again_in(1000 * attempt)
        story.when_due().expect_sent("payment", "ChargePayment", 1, attempt=attempt + 1)
    # Each answer said that nothing of it remains, so there is nothing to undo.
    story.when("ChargePayment_failed", 1, error="busy", attempt=3)
    story.expect_status("ABORTED", "Step 1 failed: busy (3 attempts)").expect_steps("FAILED")


def test_a_failure_is_not_tried_again_where_the_step_does_not_ask_for_it() -> None:
    story = given_saga(CHARGE)
    assert not story.decision.commands[0].retried
    story.when("ChargePayment_failed", 1, error="busy").expect_status("ABORTED", "Step 1 failed: busy")


def test_the_last_failure_of_a_step_is_its_last_word_whatever_was_unknown_before() -> None:
    # The service records the failure, and undoes what any later delivery does.
    story = given_saga(replace(CHARGE, retry_failed=True, attempts=2)).when_due().when_due()
    story.when("ChargePayment_failed", 1, error="busy", attempt=2)
    story.expect_status("ABORTED", "Step 1 failed: busy (2 attempts)")


def test_a_failure_that_is_tried_again_leaves_a_step_of_unknown_outcome_so() -> None:
    story = given_saga(replace(CHARGE, retry_failed=True)).when_due().when_due()
    story.when("ChargePayment_failed", 1, error="busy", attempt=2).when_due().when_due()
    story.expect_status("COMPENSATING", "Step 1 failed: no answer within 60000 ms (3 attempts)")
    story.expect_sent("payment", "RefundPayment", 1)


def test_a_step_that_is_done_in_the_end_tells_no_error() -> None:
    story = given_saga(RESERVE, CHARGE).when_due().when_due().when("ReserveInventory_ok", 1)
    done = story.saga.steps[0]
    assert (done.error, done.unknown, done.attempt) == (None, False, 2)


# --- attempts of a compensation


def undoing(**options: Any) -> Story:
    """Step 1 is being undone."""
    story = given_saga(replace(RESERVE, **options), CHARGE, request_id="me-1")
    story.when("ReserveInventory_ok", 1, result=1).when("ChargePayment_failed", 2, error="no")
    return story.expect_sent("inventory", "ReleaseReservation", 1)


def test_a_compensation_that_is_not_answered_is_sent_again_after_a_while_with_the_same_key() -> None:
    story = undoing()
    (first,) = story.decision.commands
    story.when_due().expect_status("COMPENSATING", "Step 2 failed: no").expect_sent_again_in(1000)
    story.expect_waits("the time to send ReleaseReservation, step 1 again (attempt 2 of 10)")
    story.when_due().expect_sent("inventory", "ReleaseReservation", 1, attempt=2)
    (second,) = story.decision.commands
    assert second == replace(first, attempt=2)
    assert (second.key, second.result, second.not_after_ms, second.retried) == (first.key, b"1", None, True)
    assert story.saga.compensating_steps == (1,)


@pytest.mark.parametrize("unknown", [False, True])
def test_a_compensation_that_fails_is_sent_again_too(unknown: bool) -> None:
    story = undoing().when("ReleaseReservation_failed", 1, error="closed", unknown=unknown, attempt=1)
    story.expect_status("COMPENSATING", "Step 2 failed: no").expect_sent_again_in(1000)
    story.expect_steps("COMPLETED", "FAILED").when_due()
    story.expect_sent("inventory", "ReleaseReservation", 1, attempt=2)
    assert story.saga.steps[0].compensation_error == b'"closed"'
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Step 2 failed: no")


def test_a_compensation_that_no_attempt_got_done_parks_the_saga() -> None:
    story = undoing()
    for attempt in range(2, PERSISTENT_ATTEMPTS + 1):
        story.when_due().expect_sent_again_in(min(LONGEST_MS, 1000 * 2 ** (attempt - 2)))
        story.when_due().expect_sent("inventory", "ReleaseReservation", 1, attempt=attempt)
    story.when_due().expect_parked(f"ReleaseReservation of step 1 failed 10 times: {NO_ANSWER}")
    story.expect_status("COMPENSATING", "Step 2 failed: no").expect_steps("COMPLETED", "FAILED")
    story.expect_notices("parked - saga_parked")


def test_a_compensation_has_as_many_attempts_as_its_step_says_whatever_the_transaction_has() -> None:
    story = undoing(compensation_attempts=2, attempts=7).when("ReleaseReservation_failed", 1).when_due()
    story.when("ReleaseReservation_failed", 1, error="closed", attempt=2)
    story.expect_parked("ReleaseReservation of step 1 failed 2 times: closed")


# --- kinds of steps


@pytest.mark.parametrize("fails", ["_failed", "unknown", "in silence"])
def test_a_retriable_step_is_tried_again_and_then_parked_on_the_way_forward(fails: str) -> None:
    story = given_saga(PIVOT, RETRIABLE).when("ChargePayment_ok", 1)
    for attempt in (1, 2):
        story.expect_sent("shipping", "CreateShipment", 2, attempt=attempt)
        (command,) = story.decision.commands
        assert (command.not_after_ms, command.retried) == (None, True)  # it may be late, but it must be done
        if fails == "in silence":
            story.when_due()
        else:
            story.when("CreateShipment_failed", 2, error="full", unknown=fails == "unknown", attempt=attempt)
        if attempt == 1:
            story.expect_sent_again_in(1000).when_due()
    why = NO_ANSWER if fails == "in silence" else "full"
    story.expect_parked(f"CreateShipment of step 2 failed 2 times: {why}", status="PENDING")
    story.expect_steps("COMPLETED", "PENDING").when("CreateShipment_ok", 2)
    story.expect_status("COMPLETED").expect_steps("COMPLETED", "COMPLETED")
    assert story.saga.parked is None


def test_a_pivot_that_may_have_been_done_and_that_nothing_undoes_is_parked() -> None:
    story = given_saga(RESERVE, PIVOT, RETRIABLE).when("ReserveInventory_ok", 1).when_due()
    story.expect_sent_again_in(1000).when_due().when_due()
    why = f"ChargePayment of step 2 failed 2 times: {NO_ANSWER}"
    story.expect_parked(f"{why}; it may have been done all the same, and nothing undoes it", status="PENDING")
    story.expect_steps("COMPLETED", "PENDING", "PENDING")


def parked_at_the_pivot() -> Story:
    story = given_saga(RESERVE, replace(PIVOT, attempts=1), RETRIABLE).when("ReserveInventory_ok", 1).when_due()
    assert story.saga.parked is not None
    return story


def test_a_saga_that_is_parked_at_its_pivot_goes_on_when_that_was_done_after_all() -> None:
    parked_at_the_pivot().when("ChargePayment_ok", 2).expect_sent("shipping", "CreateShipment", 3)


def test_a_saga_that_is_parked_at_its_pivot_goes_back_when_that_was_certainly_not_done() -> None:
    story = parked_at_the_pivot().when("ChargePayment_failed", 2, error="no")
    story.expect_status("COMPENSATING", "Step 2 failed: no").expect_sent("inventory", "ReleaseReservation", 1)


def test_a_saga_that_is_parked_at_its_pivot_can_be_cancelled_by_who_has_seen_that() -> None:
    story = parked_at_the_pivot()
    assert story.saga.parked_at == "2/transaction/1"
    story.when_asked(Verb.CANCEL, "the bank says no", parked_at="2/transaction/1")
    story.expect_status("COMPENSATING", "Cancelled: the bank says no").expect_steps("COMPLETED", "FAILED", "PENDING")
    story.expect_sent("inventory", "ReleaseReservation", 1)
    assert not story.saga.steps[1].unknown


def test_a_cancel_that_does_not_say_what_its_sender_saw_does_not_say_that_the_pivot_was_not_done() -> None:
    """It may have been sent while the pivot was out, and be read after the saga was parked."""
    why = "is parked: ChargePayment may have been done, and nothing undoes it. To say that step 2 was not done, "
    parked_at_the_pivot().when_asked(Verb.CANCEL).expect_refused(f"{why}cancel with parked_at 2/transaction/1")


def test_a_cancel_of_a_step_that_may_have_been_done_has_it_undone() -> None:
    story = given_saga(replace(CHARGE, kind=StepKind.RETRIABLE, attempts=1)).when_due()
    assert story.saga.parked is not None
    story.when_asked(Verb.CANCEL).expect_steps("FAILED").expect_sent("payment", "RefundPayment", 1)
    assert story.saga.steps[0].unknown
    # Also if it was only refused: another delivery may still do what would have been tried again.
    story = given_saga(replace(CHARGE, kind=StepKind.RETRIABLE, attempts=1)).when("ChargePayment_failed", 1)
    story.when_asked(Verb.CANCEL).expect_sent("payment", "RefundPayment", 1)


def test_a_pivot_that_can_be_undone_by_now_is_undone_if_the_saga_is_cancelled() -> None:
    story = given_saga(replace(CHARGE, kind=StepKind.PIVOT, attempts=1), published={}).when_due()
    assert story.saga.parked is not None
    story.published = PUBLISHED
    story.when_asked(Verb.CANCEL).expect_sent("payment", "RefundPayment", 1)


@pytest.mark.parametrize("verb", Verb)
def test_what_was_asked_about_one_parked_state_is_not_done_to_another(verb: Verb) -> None:
    # Another step:
    story = parked_going_back().when_asked(Verb.RETRY, request_id="op-0").when("RefundPayment_ok", 2)
    story.when("ReleaseReservation_failed", 1)
    while story.saga.parked is None:
        story.when_due()
    at = story.saga.parked_at
    assert at is not None
    assert at.startswith("1/compensation/")
    told = f"is no longer parked at 2/compensation/2: it is parked at {at}"
    story.when_asked(verb, parked_at="2/compensation/2").expect_refused(told)
    # The same step, tried again:
    story = pivot_in_doubt().when_asked(Verb.RETRY, request_id="op-0")
    story.when_asked(verb, parked_at="1/transaction/2").expect_refused(
        "is no longer parked at 1/transaction/2: it waits for payment to answer ChargePayment, step 1 (attempt 3 of 4)"
    )
    story.when_due().when_due().when_due()
    told = "is no longer parked at 1/transaction/2: it is parked at 1/transaction/4"
    story.when_asked(verb, parked_at="1/transaction/2").expect_refused(told)


@pytest.mark.parametrize("verb", [Verb.RETRY, Verb.SKIP, Verb.ABANDON])
def test_what_was_asked_about_a_parked_state_is_done_as_long_as_it_is_that(verb: Verb) -> None:
    story = parked_going_back()
    at = story.saga.parked_at
    story.when("CreateShipment_failed", 3).expect_duplicate_counted()  # which is no news
    story.when_asked(verb, parked_at=at).expect_done(verb)


@pytest.mark.parametrize("published", [{}, {"payment": {"ChargePayment": None}}])
def test_a_pivot_that_nobody_says_how_to_undo_is_parked_likewise(published: Published) -> None:
    story = given_saga(step("ChargePayment", "payment", kind=StepKind.PIVOT, attempts=1), published=published)
    why = f"ChargePayment of step 1 failed: {NO_ANSWER}"
    story.when_due().expect_parked(f"{why}; it may have been done all the same, and nothing undoes it", "PENDING")


def test_a_pivot_of_unknown_outcome_that_can_be_undone_is_compensated() -> None:
    story = given_saga(RESERVE, replace(CHARGE, kind=StepKind.PIVOT, attempts=1), RETRIABLE)
    story.when("ReserveInventory_ok", 1).when_due().expect_status("COMPENSATING", f"Step 2 failed: {NO_ANSWER}")
    story.expect_sent("payment", "RefundPayment", 2)
    story.when("RefundPayment_ok", 2).expect_sent("inventory", "ReleaseReservation", 1)


def test_a_pivot_that_was_certainly_not_done_is_a_step_like_any_other() -> None:
    story = given_saga(RESERVE, PIVOT, RETRIABLE).when("ReserveInventory_ok", 1)
    story.when("ChargePayment_failed", 2, error="no").expect_status("COMPENSATING", "Step 2 failed: no")
    story.expect_sent("inventory", "ReleaseReservation", 1)


def test_a_pivot_that_was_certainly_not_done_by_any_attempt_is_not_parked() -> None:
    story = given_saga(RESERVE, replace(PIVOT, retry_failed=True), RETRIABLE).when("ReserveInventory_ok", 1)
    story.when("ChargePayment_failed", 2, error="busy").when_due().when("ChargePayment_failed", 2, error="busy")
    story.expect_status("COMPENSATING", "Step 2 failed: busy (2 attempts)")
    story.expect_sent("inventory", "ReleaseReservation", 1)


def test_a_cancel_that_the_pivot_overtakes_comes_too_late_and_that_is_kept() -> None:
    story = given_saga(RESERVE, PIVOT, RETRIABLE).when("ReserveInventory_ok", 1)
    story.when_asked(Verb.CANCEL, "ordered twice").when("ChargePayment_ok", 2)
    story.expect_status("PENDING").expect_sent("shipping", "CreateShipment", 3)
    story.expect_interventions(
        "cancel: ordered twice",
        "too late: step 2, the pivot, was done before this could be: Cancelled: ordered twice",
    )
    story.expect_waits("shipping to answer CreateShipment, step 3")
    story.when("CreateShipment_ok", 3).expect_status("COMPLETED")


def test_a_deadline_that_the_pivot_overtakes_comes_too_late_likewise() -> None:
    story = given_saga(PIVOT, RETRIABLE, deadline_ms=5000).when_due().when("ChargePayment_ok", 1)
    story.expect_status("PENDING").expect_sent("shipping", "CreateShipment", 2)
    story.expect_interventions(
        "too late: step 1, the pivot, was done before this could be: The deadline, 5000 ms after the begin, has passed"
    )
    assert story.saga.due_ms == story.saga.times_out_ms


def test_a_pivot_that_is_to_be_cancelled_and_may_have_been_done_is_parked() -> None:
    story = given_saga(PIVOT, RETRIABLE).when_asked(Verb.CANCEL).when_due()
    why = f"ChargePayment of step 1 failed: {NO_ANSWER}"
    story.expect_parked(f"{why}; it may have been done all the same, and nothing undoes it", "PENDING")


# --- back at once


def out_at_the_second_step(*, attempts: int = 3, **more: Any) -> Story:
    story = given_saga(RESERVE, replace(CHARGE, attempts=attempts), SHIP, **more)
    return story.when("ReserveInventory_ok", 1, result=1)


def test_a_cancel_now_undoes_what_is_out_as_one_that_may_have_been_done() -> None:
    story = out_at_the_second_step().when_asked(Verb.CANCEL, "stuck", now=True).expect_done(Verb.CANCEL)
    story.expect_status("COMPENSATING", "Cancelled: stuck").expect_steps("COMPLETED", "FAILED", "PENDING")
    story.expect_sent("payment", "RefundPayment", 2).expect_interventions("cancel now: stuck")
    assert story.saga.steps[1].unknown
    assert story.saga.steps[1].error == b'"not answered when the saga was cancelled"'
    story.when("ChargePayment_ok", 2, result=7).expect_late(2, 7)
    story.when("RefundPayment_ok", 2).expect_sent("inventory", "ReleaseReservation", 1)
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Cancelled: stuck")
    story.expect_steps("COMPENSATED", "COMPENSATED", "PENDING")


@pytest.mark.parametrize(("kind", "unknown"), [("ok", False), ("failed", False), ("failed", True)])
def test_what_is_answered_after_a_cancel_now_moves_nothing(kind: str, unknown: bool) -> None:
    story = out_at_the_second_step().when_asked(Verb.CANCEL, now=True)
    story.when(f"ChargePayment_{kind}", 2, unknown=unknown, attempt=1).expect_nothing_sent()
    story.expect_status("COMPENSATING", "Cancelled: as agreed").expect_waits("payment to answer RefundPayment, step 2")
    assert story.decision.quarantine is None


def test_a_saga_that_is_being_cancelled_may_be_cancelled_now() -> None:
    story = out_at_the_second_step().when_asked(Verb.CANCEL, "ordered twice", "op-1").expect_nothing_sent()
    story.when_asked(Verb.CANCEL, "it hangs", "op-2", now=True).expect_done(Verb.CANCEL, "op-2")
    story.expect_status("COMPENSATING", "Cancelled: ordered twice; Cancelled: it hangs")
    story.expect_sent("payment", "RefundPayment", 2)
    story.expect_interventions("cancel: ordered twice", "cancel now: it hangs")


def test_a_reason_that_is_given_twice_stands_in_the_saga_once() -> None:
    story = out_at_the_second_step().when_asked(Verb.CANCEL, "wrong name", "op-1")
    story.when_asked(Verb.CANCEL, "wrong name", "op-2", now=True).expect_done(Verb.CANCEL, "op-2")
    story.expect_status("COMPENSATING", "Cancelled: wrong name")
    story.expect_interventions("cancel: wrong name", "cancel now: wrong name")


def test_a_cancel_now_between_two_attempts_is_like_any_other() -> None:
    story = out_at_the_second_step().when_due().expect_sent_again_in(1000).when_asked(Verb.CANCEL, now=True)
    story.expect_status("COMPENSATING", "Cancelled: as agreed").expect_sent("payment", "RefundPayment", 2)


def test_a_pivot_that_is_cancelled_now_and_that_nothing_undoes_is_parked_and_still_answered() -> None:
    why = "Cancelled: as agreed; ChargePayment may have been done, and nothing undoes it"
    story = given_saga(RESERVE, PIVOT, RETRIABLE).when("ReserveInventory_ok", 1)
    story.when_asked(Verb.CANCEL, now=True).expect_parked(why, "PENDING")
    done = story.when("ChargePayment_ok", 2).expect_sent("shipping", "CreateShipment", 3)
    done.when("CreateShipment_ok", 3).expect_status("COMPLETED")
    story = given_saga(RESERVE, PIVOT, RETRIABLE).when("ReserveInventory_ok", 1).when_asked(Verb.CANCEL, now=True)
    story.when("ChargePayment_failed", 2, error="no").expect_status("COMPENSATING", "Step 2 failed: no")


def test_a_pivot_that_is_cancelled_now_and_can_be_undone_is_undone() -> None:
    story = given_saga(RESERVE, replace(CHARGE, kind=StepKind.PIVOT)).when("ReserveInventory_ok", 1)
    story.when_asked(Verb.CANCEL, now=True).expect_sent("payment", "RefundPayment", 2)
    story.when("ChargePayment_ok", 2).expect_late(2).when("RefundPayment_ok", 2)
    story.expect_sent("inventory", "ReleaseReservation", 1)


def test_a_cancel_now_says_nothing_about_a_step_that_is_parked() -> None:
    why = (
        "is parked, so no command is out. To say that step 2 was not done, cancel with parked_at 2/transaction/1, "
        "without now"
    )
    parked_at_the_pivot().when_asked(Verb.CANCEL, now=True).expect_refused(why)
    parked_at_the_pivot().when_asked(Verb.CANCEL, now=True, parked_at="2/transaction/1").expect_refused(why)


def test_a_compensation_that_is_out_is_not_cancelled_by_a_cancel_now_either() -> None:
    story = out_at_the_second_step().when("ChargePayment_failed", 2)
    story.when_asked(Verb.CANCEL, now=True).expect_refused(
        "is being undone already; its compensation cannot be cancelled"
    )
    past = given_saga(PIVOT, RETRIABLE).when("ChargePayment_ok", 1)
    past.when_asked(Verb.CANCEL, now=True).expect_refused("is past its pivot: there is no way back")


def test_the_same_cancel_now_is_done_once() -> None:
    story = out_at_the_second_step().when_asked(Verb.CANCEL, now=True).when_asked(Verb.CANCEL, now=True)
    story.expect_done(Verb.CANCEL).expect_nothing_changed()


def test_a_hard_deadline_undoes_what_is_out_then() -> None:
    why = "The deadline, 5000 ms after the begin, has passed"
    story = out_at_the_second_step(deadline_ms=5000, hard=True).when_due()
    assert story.now_ms == story.saga.begun_ms + 5000
    story.expect_status("COMPENSATING", why).expect_sent("payment", "RefundPayment", 2)
    story.when("ChargePayment_ok", 2).expect_late(2).when("RefundPayment_ok", 2)
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", why)


def test_a_hard_deadline_comes_for_a_saga_that_is_being_cancelled_too() -> None:
    story = out_at_the_second_step(deadline_ms=5000, hard=True).when_asked(Verb.CANCEL, "ordered twice")
    assert story.saga.due_ms == story.saga.deadline_ms
    story.when_due().expect_sent("payment", "RefundPayment", 2)
    story.expect_status("COMPENSATING", "Cancelled: ordered twice; The deadline, 5000 ms after the begin, has passed")


@pytest.mark.parametrize("steps", [(PIVOT, RETRIABLE), (RESERVE, CHARGE)])
def test_a_hard_deadline_interrupts_neither_a_compensation_nor_what_is_past_the_pivot(
    steps: tuple[StepDefinition, ...],
) -> None:
    story = given_saga(*steps, deadline_ms=5000, hard=True)
    story.when(f"{steps[0].transaction}_ok", 1)
    if steps[0] is RESERVE:
        story.when("ChargePayment_failed", 2)
    assert story.saga.due_ms == story.saga.times_out_ms
    story.when_due(after_ms=5000).expect_nothing_changed()


def test_an_operator_may_retry_a_pivot_after_a_hard_deadline_and_its_answer_is_waited_for() -> None:
    story = given_saga(PIVOT, RETRIABLE, deadline_ms=5000, hard=True).when_due()
    story.expect_parked(
        "The deadline, 5000 ms after the begin, has passed; ChargePayment may have been done, and nothing undoes it",
        "PENDING",
    )
    story.when_asked(Verb.RETRY).expect_sent("payment", "ChargePayment", 1, attempt=2)
    story.when_due().expect_nothing_sent().expect_waits(
        "payment to answer ChargePayment, step 1 (attempt 2 of 3), to be cancelled then"
    )
    assert story.saga.due_ms == story.saga.times_out_ms
    story.when("ChargePayment_ok", 1).expect_sent("shipping", "CreateShipment", 2)


# --- what becomes of a parked saga


def parked_going_forward() -> Story:
    """A saga that is parked at its second step of three, past its pivot."""
    last = step("SendMail", "mail", compensation=None, kind=StepKind.RETRIABLE)
    story = given_saga(PIVOT, replace(RETRIABLE, attempts=2), last, request_id="me-1").when("ChargePayment_ok", 1)
    story.when_due().when_due().when_due()
    return story.expect_parked(f"CreateShipment of step 2 failed 2 times: {NO_ANSWER}", status="PENDING")


def parked_going_back() -> Story:
    """A saga that is parked because the second of its three steps cannot be undone."""
    twice = replace(CHARGE, compensation_attempts=2)
    story = given_saga(RESERVE, twice, SHIP, request_id="me-1").when("ReserveInventory_ok", 1)
    story.when("ChargePayment_ok", 2).when("CreateShipment_failed", 3, error="no").when_due().when_due().when_due()
    return story.expect_parked(f"RefundPayment of step 2 failed 2 times: {NO_ANSWER}")


def test_a_retried_saga_tries_its_step_anew_as_often_as_before() -> None:
    story = parked_going_forward().when_asked(Verb.RETRY).expect_done(Verb.RETRY)
    story.expect_sent("shipping", "CreateShipment", 2, attempt=3)
    story.expect_waits("shipping to answer CreateShipment, step 2 (attempt 3 of 4)")
    story.when_due().expect_sent_again_in(1000)  # as after the first attempt
    story.when_due().expect_sent("shipping", "CreateShipment", 2, attempt=4)
    story.when_due().expect_parked(f"CreateShipment of step 2 failed 4 times: {NO_ANSWER}", status="PENDING")
    story.when_asked(Verb.RETRY, request_id="op-2").when("CreateShipment_ok", 2, attempt=5)
    story.expect_sent("mail", "SendMail", 3)


def test_a_retried_saga_tries_its_compensation_anew_as_often_as_before() -> None:
    story = parked_going_back().when_asked(Verb.RETRY).expect_done(Verb.RETRY)
    story.expect_status("COMPENSATING", "Step 3 failed: no")
    story.expect_sent("payment", "RefundPayment", 2, attempt=3)
    story.when("RefundPayment_failed", 2, error="closed").expect_sent_again_in(1000)
    story.when_due().when("RefundPayment_failed", 2, error="closed")
    story.expect_parked("RefundPayment of step 2 failed 4 times: closed")
    story.when_asked(Verb.RETRY, request_id="op-2").when("RefundPayment_ok", 2)
    story.expect_sent("inventory", "ReleaseReservation", 1)
    assert story.saga.compensating_steps == (2, 1)


def test_a_compensation_has_no_more_attempts_for_its_transaction_having_been_retried() -> None:
    pivot = step("ChargePayment", "payment", kind=StepKind.PIVOT, attempts=1, compensation_attempts=2)
    story = given_saga(pivot, published={}).when_due().when_asked(Verb.RETRY)
    story.expect_sent("payment", "ChargePayment", 1, attempt=2)
    story.published = PUBLISHED
    story.when_due().expect_sent("payment", "RefundPayment", 1)
    story.when_due().expect_sent_again_in(1000).when_due().when_due()
    story.expect_parked(f"RefundPayment of step 1 failed 2 times: {NO_ANSWER}")


def test_a_retried_saga_looks_anew_for_what_undoes_its_step() -> None:
    story = given_saga(RESERVE, CHARGE, published={}).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    why = story.saga.parked
    assert why is not None
    story.when_asked(Verb.RETRY, request_id="op-1").expect_done(Verb.RETRY).expect_parked(why)
    assert story.saga.parked_at == "1/compensation/0"  # as always; only graphs count such retries
    story.published = PUBLISHED
    story.when_asked(Verb.RETRY, request_id="op-2").expect_sent("inventory", "ReleaseReservation", 1)
    assert story.saga.compensating_steps == (1,)


def test_a_step_that_is_skipped_counts_as_done_on_the_way_forward() -> None:
    story = parked_going_forward().when_asked(Verb.SKIP, "sent by hand").expect_done(Verb.SKIP)
    story.expect_sent("mail", "SendMail", 3).expect_steps("COMPLETED", "FAILED", "PENDING")
    assert story.saga.steps[1].skipped
    story.when("SendMail_ok", 3).expect_status("COMPLETED")
    assert protocol_view(story.saga)["completed_steps"] == [1, 3]


def test_that_a_skipped_step_was_done_after_all_is_recorded() -> None:
    story = parked_going_forward().when_asked(Verb.SKIP).when("CreateShipment_ok", 2, result=1).expect_late(2, 1)
    story.when("CreateShipment_failed", 2, attempt=1).expect_duplicate_counted()
    assert protocol_view(story.saga)["completed_steps"] == [1, 2]


def test_that_a_skipped_step_was_done_after_all_is_recorded_also_where_it_said_that_it_was_not() -> None:
    story = given_saga(PIVOT, replace(RETRIABLE, attempts=1)).when("ChargePayment_ok", 1)
    story.when("CreateShipment_failed", 2, error="full").when_asked(Verb.SKIP)
    story.when("CreateShipment_ok", 2).expect_late(2)


def test_a_saga_whose_last_step_is_skipped_is_completed() -> None:
    story = given_saga(PIVOT, replace(RETRIABLE, attempts=1), request_id="me-1").when("ChargePayment_ok", 1).when_due()
    story.when_asked(Verb.SKIP).expect_done(Verb.SKIP).expect_status("COMPLETED")
    story.expect_outcome('{"type": "saga_completed", "saga_id": "saga42", "status": "COMPLETED"}', to="me-1")


def test_a_pivot_that_is_skipped_is_behind_the_saga() -> None:
    story = parked_at_the_pivot().when_asked(Verb.SKIP, "seen at the bank").expect_done(Verb.SKIP)
    story.expect_sent("shipping", "CreateShipment", 3)
    story.when_asked(Verb.CANCEL, request_id="op-2")
    story.expect_refused("is past its pivot: there is no way back", to="op-2")


def test_a_compensation_that_is_skipped_is_done_no_more() -> None:
    story = parked_going_back().when_asked(Verb.SKIP, "refunded by hand").expect_done(Verb.SKIP)
    story.expect_sent("inventory", "ReleaseReservation", 1).expect_steps("COMPLETED", "COMPLETED", "FAILED")
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Step 3 failed: no")
    story.expect_steps("COMPENSATED", "COMPLETED", "FAILED")


def test_a_compensation_that_nobody_knows_can_be_skipped() -> None:
    story = given_saga(RESERVE, CHARGE, published={}).when("ReserveInventory_ok", 1)
    story.when("ChargePayment_failed", 2, error="no").when_asked(Verb.SKIP).expect_done(Verb.SKIP)
    story.expect_status("ABORTED", "Step 2 failed: no").expect_steps("COMPLETED", "FAILED")
    assert story.saga.compensating_steps == ()


def test_a_saga_that_is_abandoned_on_the_way_forward_ends_as_it_stands() -> None:
    story = parked_going_forward().when_asked(Verb.ABANDON, "the customer is gone").expect_done(Verb.ABANDON)
    why = "abandoned at step 2: the customer is gone"
    story.expect_status("ABORTED", why).expect_steps("COMPLETED", "FAILED", "PENDING").expect_outcome(
        f'{{"type": "saga_aborted", "saga_id": "saga42", "status": "ABORTED", "reason": "{why}"}}', to="me-1"
    )
    story.expect_waits("nothing, it has ended").expect_interventions("abandon: the customer is gone")


def test_a_saga_that_is_abandoned_on_the_way_back_ends_as_it_stands() -> None:
    story = parked_going_back().when_asked(Verb.ABANDON, "the bank is gone").expect_done(Verb.ABANDON)
    why = "Step 3 failed: no; abandoned at step 2: the bank is gone"
    story.expect_status("ABORTED", why).expect_steps("COMPLETED", "COMPLETED", "FAILED").expect_outcome(
        f'{{"type": "saga_aborted", "saga_id": "saga42", "status": "ABORTED", "reason": "{why}"}}', to="me-1"
    )
    story.when("RefundPayment_ok", 2).expect_undone_late(2).when("RefundPayment_ok", 2).expect_duplicate_counted()


def test_a_retriable_step_that_is_abandoned_may_be_done_yet_and_that_is_noted() -> None:
    """Another delivery of its command may still do it: a failure that is tried again is recorded by no service."""
    story = given_saga(PIVOT, replace(RETRIABLE, attempts=1)).when("ChargePayment_ok", 1)
    story.when("CreateShipment_failed", 2, error="no").when_asked(Verb.ABANDON).expect_steps("COMPLETED", "FAILED")
    assert story.saga.steps[1].unknown
    story.when("CreateShipment_ok", 2, result=7).expect_late(2, 7)


def test_what_is_undone_after_its_undo_was_skipped_is_noted_and_counted() -> None:
    story = parked_going_back().when_asked(Verb.SKIP)
    story.expect_sent("inventory", "ReleaseReservation", 1)
    story.when("RefundPayment_ok", 2).expect_undone_late(2).expect_steps("COMPLETED", "COMPLETED", "FAILED")
    story.when("RefundPayment_ok", 2).expect_duplicate_counted()
    story.when("RefundPayment_failed", 2).expect_duplicate_counted()
    story.when("ReleaseReservation_ok", 1).expect_steps("COMPENSATED", "COMPLETED", "FAILED")
    story.when("RefundPayment_ok", 2).expect_duplicate_counted()


# --- the edges of the state machine

Edge = tuple[SagaStatus | None, str]


class Footprints(dict[Edge, SagaStatus]):
    """TRANSITIONS that remember which edges were taken."""

    def __init__(self) -> None:
        super().__init__(TRANSITIONS)
        self.walked: list[Edge] = []

    def __getitem__(self, edge: Edge) -> SagaStatus:
        self.walked.append(edge)
        return super().__getitem__(edge)


@pytest.fixture
def footprints(monkeypatch: pytest.MonkeyPatch) -> Footprints:
    prints = Footprints()
    monkeypatch.setattr(transitions, "TRANSITIONS", prints)
    return prints


def undone_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps beside each other are undone, the second of which may have been done. A command at a time is sent."""
    monkeypatch.setattr(back, "AT_ONCE_BYTES", 1)
    story = given_graph(do("a", after=[]), do("b", after=[], attempts=1), do("c", after=[]), do("d", after=[1, 2, 3]))
    story.when("A_ok", 1).when("C_ok", 3).when_due().expect_all_sent("UnC 3")
    story.expect_phases("UNDO_BACKING_OFF", "UNDO_BACKING_OFF", "UNDO_OUT", "WAITING")


def test_every_edge_of_the_state_machine_is_walked_by_some_story(
    footprints: Footprints, monkeypatch: pytest.MonkeyPatch
) -> None:
    parked_going_forward().when_asked(Verb.RETRY)
    parked_going_forward().when_asked(Verb.ABANDON)
    parked_going_forward().when_asked(Verb.SKIP).when_due().when_due().when_due().when_due().when_due()
    test_a_saga_whose_last_step_is_skipped_is_completed()
    parked_going_back().when_asked(Verb.ABANDON)
    parked_going_back().when_asked(Verb.SKIP).when("ReleaseReservation_ok", 1)
    given_saga(RESERVE, CHARGE).when_asked(Verb.CANCEL).when("ReserveInventory_ok", 1)
    given_saga(SHIP).when("CreateShipment_ok", 1)
    given_graph(do("a", when=False))
    given_saga(CHARGE).when_due().when_paused("payment").when_due()
    test_a_retried_saga_looks_anew_for_what_undoes_its_step()
    undone_one_after_the_other(monkeypatch)
    assert set(footprints.walked) == set(TRANSITIONS)


StepEdge = tuple[Phase, str]


class StepFootprints(dict[StepEdge, Phase]):
    """STEP, which remembers which of its edges were taken."""

    def __init__(self) -> None:
        super().__init__(STEP)
        self.walked: set[StepEdge] = set()

    def __getitem__(self, edge: StepEdge) -> Phase:
        self.walked.add(edge)
        return super().__getitem__(edge)


def in_doubt(published: Published = PUBLISHED) -> Story:
    """A saga whose only step was not answered, and is being undone if anybody knows how."""
    return given_saga(replace(CHARGE, attempts=1, compensation_attempts=2), published=published).when_due()


def test_every_edge_of_the_machine_of_a_step_is_walked_by_some_story(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = StepFootprints()
    monkeypatch.setattr(step_state, "STEP", prints)
    done: dict[str, Any] = {"result": 7}
    # Forward: answered while the command is out, between two attempts, and while the step is parked.
    given_saga(CHARGE).when("ChargePayment_ok", 1)
    given_saga(CHARGE).when_due().when("ChargePayment_ok", 1)
    given_saga(CHARGE).when_due().when("ChargePayment_failed", 1)
    given_saga(CHARGE).when_due().when_asked(Verb.CANCEL)
    given_saga(replace(PIVOT, retry_failed=True)).when("ChargePayment_failed", 1).when_asked(Verb.CANCEL)
    for verb in Verb:
        pivot_in_doubt().when_asked(verb)
    pivot_in_doubt().when_asked(Verb.CANCEL, parked_at=pivot_in_doubt().saga.parked_at)
    pivot_in_doubt().when("ChargePayment_ok", 1)
    pivot_in_doubt().when_asked(Verb.SKIP).when("ChargePayment_ok", 1, **done)
    # Back: a step that was done, and one of which nobody knows whether it was.
    given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    given_saga(RESERVE, CHARGE, published={}).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    for verb in (Verb.ABANDON, Verb.SKIP):
        parked_going_back().when_asked(verb).when("RefundPayment_ok", 2)
    undone, done_after_all = ("RefundPayment_ok", 1), ("ChargePayment_ok", 1)
    in_doubt(published={})
    in_doubt().when(*done_after_all).when(*undone)
    in_doubt().when(*undone).when(*done_after_all)
    in_doubt().when_due().when(*done_after_all).when(*undone)
    in_doubt().when_due().when_due().when_due().when(*done_after_all).when(*undone)
    in_doubt().when_due().when_due().when_due().when_asked(Verb.RETRY)
    in_doubt().when_due().when_due().when_due().when_asked(Verb.SKIP).when(*done_after_all)
    in_doubt().when_due().when_due().when_due().when_asked(Verb.ABANDON).when(*done_after_all).when(*undone)
    walk_graphs()
    walk_pauses()
    undone_one_after_the_other(monkeypatch)
    assert set(STEP) - prints.walked == set()


def walk_graphs() -> None:
    """The stories of what only happens to a step of a graph."""
    given_graph(do("a", when=False))
    given_graph(do("a", params={"$ref": "/input/x"}))
    # Waits: signalled, over, declined; behind the pivot.
    wait: dict[str, Any] = {"wait": "go", "timeout_ms": 1000}
    pivot, last = do("a", kind="pivot", compensation=None), do("b", kind="retriable", params={"$ref": "/input/x"})
    given_graph(wait).when_signalled("go")
    given_graph(wait).when_due()
    given_graph(pivot, wait).when("A_ok", 1).when_due().when_asked(Verb.RETRY)
    given_graph(pivot, last).when("A_ok", 1)
    # Retries that are signalled: it comes, it does not, it was done after all, the pivot may have been done.
    retry: dict[str, Any] = {"attempts": 1, "retry_on": "go", "retry_within_ms": 1000}
    given_graph(do("a", **retry)).when("A_failed", 1).when_signalled("go")
    given_graph(do("a", **retry)).when("A_failed", 1).when_due()
    given_graph(do("a", **retry)).when_due().when("A_ok", 1)
    given_graph(pivot | retry).when("A_failed", 1).when_due()
    # One undo is parked, one is out, and one will be sent again; of steps that were done, and of others.
    three = [do(name, after=[], **({"compensation_attempts": 1} if name == "c" else {})) for name in "abc"]
    done = given_graph(*three, do("d", after=["a", "b", "c"])).when("A_ok", 1).when("B_ok", 2).when("C_ok", 3)
    for story in (done.when("D_failed", 4), given_graph(*three).when_asked(Verb.CANCEL, request_id="op-0", now=True)):
        story.when("UnA_failed", 1).when("UnC_failed", 3).when_asked(Verb.ABANDON, now=True)


def walk_pauses() -> None:
    """The stories of what is put off while it is paused."""
    given_saga(CHARGE, paused=frozenset({"payment"}))
    given_saga(CHARGE).when_due().when_paused("payment").when_due()
    pivot_in_doubt().when_paused("payment").when_asked(Verb.RETRY)
    retry: dict[str, Any] = {"attempts": 1, "retry_on": "go", "retry_within_ms": 1000}
    given_graph(do("a", **retry)).when("A_failed", 1).when_paused("s").when_signalled("go")
    in_doubt().when_paused("payment").when_due().when_due()
    in_doubt().when_due().when_due().when_due().when_paused("payment").when_asked(Verb.RETRY)


def pivot_in_doubt() -> Story:
    """A saga whose only step, its pivot, was not answered; it is parked."""
    return given_saga(PIVOT).when_due().when_due().when_due()


def test_an_ended_saga_has_no_way_on() -> None:
    assert {status for status, _ in TRANSITIONS} == {None, SagaStatus.PENDING, SagaStatus.COMPENSATING}
    assert set(TRANSITIONS.values()) == set(SagaStatus)


# --- whatever comes


@dataclass(frozen=True, kw_only=True)
class Chance:
    """An event: the reply that is awaited, one like it, any other, one again; the timer, too early or not; a
    saga_begin; an operator's request that fits the state, or any other."""

    kind: str  # ok, failed, unknown, stale, any, again, due, early, begin, help, ask
    pick: int = 0
    reply: Reply | None = None
    verb: Verb = Verb.CANCEL
    now: bool = False  # of a cancel


NAMES = [f"{prefix}{n}" for prefix in ("Do", "Undo", "Other") for n in range(1, 5)]
ANY_REPLIES = st.builds(
    Reply,
    type=st.builds("{}_{}".format, st.sampled_from(NAMES), st.sampled_from(["ok", "failed"])),
    saga_id=st.just("saga42"),
    step=st.integers(1, 5),
    result=st.sampled_from([None, b"1"]),
    error=st.sampled_from([None, b'"no"']),
    unknown=st.booleans(),
    attempt=st.none() | st.integers(0, 4),
)
_CHANCE = (
    st.builds(Chance, kind=st.sampled_from(["ok", "ok", "failed", "unknown", "due", "due", "early", "stale"]))
    | st.builds(Chance, kind=st.just("any"), reply=ANY_REPLIES)
    | st.builds(Chance, kind=st.just("again"), pick=st.integers(0, 30))
    | st.builds(Chance, kind=st.just("begin"), pick=st.integers(0, 2))
    | st.builds(Chance, kind=st.just("ask"), pick=st.integers(0, 4), verb=st.sampled_from(Verb))
    | st.builds(Chance, kind=st.just("ask"), pick=st.integers(5, 9), now=st.sampled_from([True]))
    | st.builds(Chance, kind=st.just("help"), verb=st.sampled_from([Verb.RETRY, Verb.SKIP, Verb.ABANDON]))
)
CHANCES = st.integers(0, 25).flatmap(lambda count: st.lists(_CHANCE, min_size=count, max_size=count + 5))
SERVICES = st.sampled_from(["alpha", "beta"])


@st.composite
def sagas(draw: st.DrawFn) -> tuple[Begin, Published]:
    """A saga of up to four steps of all kinds whose compensations are published, named, declared away or unknown."""
    published: dict[str, dict[str, str | None]] = {"alpha": {}}
    count = draw(st.integers(1, 4))
    pivot = draw(st.none() | st.integers(1, count))
    steps = []
    for n in range(1, count + 1):
        how = draw(st.sampled_from(["named", "published", "published", "needs none", "published none", "unknown"]))
        options: dict[str, Any] = {
            "attempts": draw(st.integers(1, 3)),
            "compensation_attempts": draw(st.integers(1, 2)),
            "retry_failed": draw(st.booleans()),
            "timeout_ms": draw(st.sampled_from([1, 60_000])),
        }
        definition = step(f"Do{n}", draw(SERVICES), n, **options)
        if how in ("published", "published none"):
            undo = f"Undo{n}" if how == "published" else None
            published.setdefault(definition.service, {})[definition.transaction] = undo
        if pivot is not None and n > pivot:
            definition = replace(definition, kind=StepKind.RETRIABLE)
        elif how in ("named", "needs none"):
            definition = replace(definition, compensation=f"Undo{n}" if how == "named" else None)
        if n == pivot:
            definition = replace(definition, kind=StepKind.PIVOT)
        steps.append(definition)
    deadline_ms = draw(st.none() | st.integers(1, 200_000))
    echo = draw(st.booleans())
    hard = deadline_ms is not None and draw(st.booleans())
    begin = Begin(saga_id="saga42", steps=tuple(steps), request_id="me-1", echo=echo, deadline_ms=deadline_ms)
    return replace(begin, hard_deadline=hard), published


class Run:
    """A saga to which all sorts of events happen. After each of them everything that must hold is checked."""

    def __init__(self, begin: Begin, published: Published) -> None:
        self.begin = begin
        self.published = published
        self.prints = Footprints()
        self.now_ms = BEGUN_MS
        self.state: SagaState | None = None
        self.noted: SagaState | None = None  # the same saga, with a journal
        self.last: Command | None = None
        self.replies: list[Reply] = []
        self.outcomes = 0
        self.asked: set[str | None] = set()  # requests that were made and done
        self.abandoned = False
        self.happens(begin)

    @property
    def saga(self) -> SagaState:
        assert self.state is not None
        return self.state

    def comes(self, chance: Chance) -> None:
        self.now_ms += 10
        if chance.kind == "begin":
            first, *rest = self.begin.steps
            other = replace(self.begin, request_id="you-2", steps=(replace(first, params=b'"other"'), *rest))
            self.happens((self.begin, replace(self.begin, request_id="you-1"), other)[chance.pick])
        elif chance.kind == "ask":
            self.asks(chance.verb, f"op-{chance.verb}-{chance.pick}", now=chance.now)
        elif chance.kind == "help" and self.saga.parked is not None:
            self.asks(chance.verb, f"helper-{self.now_ms}")
        elif chance.kind in ("due", "early", "help"):
            due_ms = self.saga.due_ms if self.saga.due_ms is not None else self.now_ms + 100_000
            self.now_ms = max(self.now_ms, (self.now_ms + due_ms) // 2 if chance.kind == "early" else due_ms)
            self.happens(Due(saga_id="saga42"))
        elif chance.kind == "again" and self.replies:
            self.happens(self.replies[chance.pick % len(self.replies)])
        elif chance.reply is not None:
            self.happens(chance.reply)
        else:
            self.answers(chance.kind)

    def asks(self, verb: Verb, request_id: str, *, now: bool = False) -> None:
        self.happens(Intervene(verb=verb, saga_id="saga42", reason="as agreed", now=now, request_id=request_id))

    def answers(self, how: str) -> None:
        """The service answers the last command, or the attempt before it."""
        assert self.last is not None
        done = how not in ("failed", "unknown", "stale")
        payload: dict[str, Any] = {"result": b"7"} if done else {"error": b'"no"'}
        reply = Reply(
            type=f"{self.last.type}_{'ok' if done else 'failed'}",
            saga_id="saga42",
            step=self.last.step,
            unknown=how in ("unknown", "stale"),
            attempt=self.last.attempt - (1 if how == "stale" else 0),
            **payload,
        )
        self.happens(reply)

    def happens(self, event: Event) -> None:
        before = self.state
        walked = len(self.prints.walked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transitions, "TRANSITIONS", self.prints)
            decided = decide(before, event, Moment(now_ms=self.now_ms, published=self.published))
        after = readable(decided.state)
        assert after is not None
        if isinstance(event, Reply):
            self.replies.append(event)
        self._check_edges(before, after, self.prints.walked[walked:])
        self._check_commands(after, decided)
        self._check_notices(before, event, after, decided)
        if before is not None:
            self._check_change(before, event, after, decided)
        self._check_state(after)
        self._check_it_goes_on(after)
        self._check_history(event, after)
        # The quick look of a commit says what the names say.
        usual = stays_out(before, after)
        assert not usual or index_names(before) == index_names(after) == ()
        self.state = after

    def _check_history(self, happened: Event, after: SagaState) -> None:
        """A saga with a journal goes the same way, and its history tells each attempt, once and in order."""
        moment = Moment(now_ms=self.now_ms, published=self.published, journal_bytes=MAX_JOURNAL_BYTES)
        event = replace(happened, process="p-1") if isinstance(happened, Reply) else happened
        noted = self.noted = readable(decide(self.noted, event, moment).state)
        assert noted is not None
        steps = [replace(step, done_by=None, compensation_done_by=None) for step in noted.steps]
        assert replace(noted, steps=tuple(steps), journal=None) == after
        told = history(noted)
        times = [one.at_ms or 0 for one in told]
        assert 0 not in times
        assert times == sorted(times)
        for number, one in enumerate(noted.steps, 1):
            for kind, attempts in (("SENT", one.attempt), ("UNDO_SENT", one.compensation_attempt)):
                sent = [told_one.attempt for told_one in told if (told_one.step, told_one.kind) == (number, kind)]
                assert sent == list(range(1, attempts + 1))
        assert sum(one.kind is HistoryKind.IGNORED for one in told) <= noted.duplicates
        kinds = [one.kind for one in told]
        assert kinds[0] == "BEGUN"
        assert kinds.count(HistoryKind.ENDED) == noted.ended

    def _check_edges(self, before: SagaState | None, after: SagaState, edges: list[Edge]) -> None:
        """The saga went from its old status to its new one along edges of the table."""
        status = before.status if before else None
        for edge in edges:
            assert edge[0] == status
            status = TRANSITIONS[edge]
        assert status == after.status

    def _check_commands(self, after: SagaState, decided: Decision) -> None:
        """At most one command, for the current step, in the direction of the saga, and not too often."""
        assert len(decided.commands) <= 1
        for command in decided.commands:
            self.last = command
            current = after.step
            retriable = current.definition.kind is StepKind.RETRIABLE
            assert command.step == after.current_step
            assert command.service == current.definition.service
            assert command.params == current.definition.params
            assert command.compensating == (after.status is SagaStatus.COMPENSATING)
            assert command.type == (current.compensation if command.compensating else current.definition.transaction)
            assert 1 <= command.attempt == current.current_attempt <= current.attempts
            assert after.times_out_ms == self.now_ms + current.definition.timeout_ms
            assert command.not_after_ms == (None if command.compensating or retriable else after.times_out_ms)
            # If the step may fail, the last failure is final.
            more = current.definition.retry_failed and current.current_attempt < current.attempts
            assert command.retried == (command.compensating or retriable or more)

    def _check_notices(self, before: SagaState | None, event: Event, after: SagaState, decided: Decision) -> None:
        """Who is told what."""
        kinds = [notice.kind for notice in decided.notices]
        assert ("command" in kinds) == (self.begin.echo and len(decided.commands) == 1)
        assert "reply" not in kinds or (self.begin.echo and isinstance(event, Reply) and kinds[0] == "reply")
        if after.parked is not None and (before is None or before.parked != after.parked):
            assert kinds[-1] == "parked"
        if after.ended and before is not None and not before.ended:
            assert kinds[-1] == "outcome"
            assert decided.notices[-1].request_id == "me-1"
            self.outcomes += 1
        elif not after.ended:
            assert "outcome" not in kinds
        if isinstance(event, Intervene):
            assert kinds[0] in ("done", "refused")
            assert decided.notices[0].request_id == event.request_id

    def _check_change(self, before: SagaState, event: Event, after: SagaState, decided: Decision) -> None:
        """What each kind of event may change."""
        same = decided.commands == () and after is before
        if isinstance(event, Begin) or decided.quarantine is not None:
            assert same
        if decided.quarantine is not None:
            assert decided.notices == ()
        if isinstance(event, Due):
            # What is due is done at once; otherwise it would be due again and again.
            assert same == (before.due_ms is None or before.due_ms > self.now_ms)
        if isinstance(event, Intervene):
            if event.request_id in self.asked or decided.notices[0].kind == "refused":
                assert same
            else:
                self._check_intervention(before, event, after)
        if after == replace(before, duplicates=after.duplicates):
            assert decided.commands == ()
            assert "reply" not in [notice.kind for notice in decided.notices]
        elif isinstance(event, Reply) and self.begin.echo:
            assert decided.notices[0].kind == "reply"
        if before.ended:
            assert decided.commands == ()
            changed = [number for number, part in enumerate(after.steps) if part is not before.steps[number]]
            assert replace(after, duplicates=before.duplicates, steps=before.steps) == before
            assert len(changed) <= isinstance(event, Reply)
            for number in changed:  # that it was done, or undone, after all
                earlier, later = before.steps[number], after.steps[number]
                assert (earlier.late_ms, later.late_ms) == (None, self.now_ms) or (
                    earlier.compensation_answered_ms,
                    later.compensation_answered_ms,
                ) == (None, self.now_ms)
        assert set(completed(before)) <= set(completed(after))
        assert after.duplicates - before.duplicates in (0, 1)
        assert after.updated_ms in (before.updated_ms, self.now_ms)

    def _check_intervention(self, before: SagaState, event: Intervene, after: SagaState) -> None:
        """What an operator's request changes, if it is done."""
        self.asked.add(event.request_id)
        self.abandoned |= event.verb is Verb.ABANDON
        (new,) = after.interventions[len(before.interventions) :]
        verb = f"{event.verb} now" if event.now else event.verb
        assert (new.verb, new.reason, new.request_id) == (verb, event.reason, event.request_id)
        if event.now:  # what was out is waited for no more
            assert after.cancelling is None
            assert after.status is not SagaStatus.PENDING or after.parked is not None

    def _check_state(self, state: SagaState) -> None:
        """What holds for every saga."""
        undone = state.compensating_steps
        assert list(undone) == sorted(set(undone), reverse=True)
        for number in undone:
            assert number in completed(state) or state.steps[number - 1].unknown
        for number, part in enumerate(state.steps, 1):
            self._check_step(part, number in undone)
            if part.definition.kind is StepKind.PIVOT and part.status is StepStatus.COMPLETED:
                assert state.status is not SagaStatus.COMPENSATING  # it can no longer be undone
        view = protocol_view(state)
        assert view["compensating_steps"] == list(undone)
        assert view["status"] == state.status
        assert self.outcomes == state.ended
        assert (state.reason is None) == (state.status in (SagaStatus.PENDING, SagaStatus.COMPLETED))
        if state.status is SagaStatus.PENDING:
            for part in state.steps[: state.current_step - 1]:
                assert part.status is StepStatus.COMPLETED or part.skipped
            for part in state.steps[state.current_step :]:
                assert (part.status, part.attempt) == (StepStatus.PENDING, 0)
        elif state.status is SagaStatus.COMPLETED:
            assert all(part.status is StepStatus.COMPLETED or part.skipped for part in state.steps)
            assert undone == ()
        elif state.status is SagaStatus.ABORTED and not self.abandoned:
            assert not any(part.may_have_effect and self._needs_undoing(part.definition) for part in state.steps)

    def _check_step(self, part: Step, undone: bool) -> None:
        """What holds for every step."""
        assert (part.compensation is not None) == (part.compensation_attempt > 0) == undone
        assert (part.attempt > 0) == (part.sent_ms is not None)
        assert (part.status is StepStatus.COMPENSATED) <= undone
        if part.status is StepStatus.PENDING:
            assert part.answered_ms is None
        elif part.answered_ms is None:
            assert part.skipped or self.abandoned
        if part.definition.kind is StepKind.RETRIABLE:
            assert part.status is not StepStatus.FAILED or part.skipped or self.abandoned
            assert not undone

    def _check_it_goes_on(self, state: SagaState) -> None:
        """A live saga waits for exactly one thing, and an ended one for nothing."""
        reasons = (state.parked, state.times_out_ms, state.send_again_ms)
        assert sum(reason is not None for reason in reasons) == (0 if state.ended else 1)
        assert (state.due_ms is None) == (state.ended or state.parked is not None)
        if state.due_ms is not None:
            assert state.due_ms > BEGUN_MS
        if state.cancelling is not None:
            assert (state.status, state.send_again_ms) == (SagaStatus.PENDING, None)
            assert state.parked is None
        if state.times_out_ms is not None:
            assert self.last is not None
            assert self.last.step == state.current_step  # an operator works on it
            assert (self.last.type, self.last.attempt) == (state.step.command, state.step.current_attempt)

    def _needs_undoing(self, definition: StepDefinition) -> bool:
        published: Mapping[str, str | None] = self.published.get(definition.service, {})
        if definition.compensation == AS_PUBLISHED:
            return published.get(definition.transaction, "unknown") is not None
        return definition.compensation is not None


def completed(state: SagaState) -> list[int]:
    view: list[int] = protocol_view(state)["completed_steps"]
    return view


def after_all_that(saga: tuple[Begin, Published], chances: list[Chance]) -> Run:
    run = Run(*saga)
    for chance in chances:
        run.comes(chance)
    return run


@settings(max_examples=300)
@given(saga=sagas(), chances=CHANCES)
def test_whatever_comes_in_whatever_order_a_saga_keeps_its_promises(
    saga: tuple[Begin, Published], chances: list[Chance]
) -> None:
    after_all_that(saga, chances)


@settings(max_examples=300)
@given(saga=sagas(), chances=CHANCES)
def test_a_saga_whose_services_do_all_they_are_asked_in_the_end_ends(
    saga: tuple[Begin, Published], chances: list[Chance]
) -> None:
    run = after_all_that(saga, chances)
    for number in range(5 * len(saga[0].steps)):
        if run.saga.parked is not None:
            # It is skipped only if a person has to do it: services do what they are asked to do.
            nobodys = run.saga.parked.startswith("nobody knows what undoes ")
            run.asks(Verb.SKIP if nobodys else Verb.RETRY, f"last-{number}")
        elif run.saga.send_again_ms is not None:
            run.comes(Chance(kind="due"))
        elif not run.saga.ended:
            run.comes(Chance(kind="ok"))
    assert run.saga.ended


@settings(max_examples=300)
@given(saga=sagas(), chances=CHANCES)
def test_a_saga_whose_services_never_answer_again_ends_or_is_left_to_a_person(
    saga: tuple[Begin, Published], chances: list[Chance]
) -> None:
    run = after_all_that(saga, chances)
    # Each attempt times out, and its timeout is awaited. An operator may have asked for as many again, up to 30 times.
    for _ in range(31 * sum(2 * (one.attempts + one.compensation_attempts) for one in saga[0].steps) + 1):
        if run.saga.due_ms is None:
            break
        run.comes(Chance(kind="due"))
    assert run.saga.ended or run.saga.parked


@settings(max_examples=300)
@given(saga=sagas(), chances=CHANCES)
def test_a_decision_depends_on_nothing_but_what_it_is_given(
    saga: tuple[Begin, Published], chances: list[Chance]
) -> None:
    assert after_all_that(saga, chances).state == after_all_that(saga, chances).state

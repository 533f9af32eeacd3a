"""What a message, an operator's request or the time does to a saga, written as stories."""

import re
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from sagastream.core.back import REASON_CHARS
from sagastream.core.clock import SET_BACK_MS, Jump, Watch
from sagastream.core.commands import Command, Reply
from sagastream.core.decision import Event, decide, may_undo
from sagastream.core.messages import Begin, Code, Due, Intervene, Newer, Unreadable, Verb
from sagastream.core.notices import Notice
from sagastream.core.saga import MAX_INTERVENTIONS, protocol_view
from sagastream.core.same_saga import conflict
from sagastream.core.sending import Published, given_up
from sagastream.core.steps import MAX_TIMEOUT_MS, StepDefinition, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Decision, Moment
from sagastream.errors import CorruptSaga, NewerFormat
from support.graphs import Played
from support.stories import BEGUN_MS, CHARGE, PUBLISHED, RESERVE, SHIP, Story, given_saga, step

# --- the way forward


def test_the_run_of_the_protocol_comes_out_to_the_byte() -> None:
    (
        given_saga(RESERVE, CHARGE, SHIP, request_id="me-1")
        .expect_status("PENDING")
        .expect_command(
            "inventory",
            '{"type": "ReserveInventory", "saga_id": "saga42", "step": 1, "params": {"sku": "abc123", "quantity": 1}}',
        )
        .when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
        .expect_status("PENDING")
        .expect_command(
            "payment",
            '{"type": "ChargePayment", "saga_id": "saga42", "step": 2, "params": {"user_id": "u42", "amount": 99.99}}',
        )
        .when("ChargePayment_failed", 2, error="insufficient_funds")
        .expect_status("COMPENSATING", "Step 2 failed: insufficient_funds")
        .expect_command(
            "inventory", '{"type": "ReleaseReservation", "saga_id": "saga42", "step": 1, "compensating": true}'
        )
        .when("ReleaseReservation_ok", 1)
        .expect_status("ABORTED", "Step 2 failed: insufficient_funds")
        .expect_steps("COMPENSATED", "FAILED", "PENDING")
        .expect_outcome(
            '{"type": "saga_aborted", "saga_id": "saga42", "status": "ABORTED", '
            '"reason": "Step 2 failed: insufficient_funds"}',
            to="me-1",
        )
    )


def test_the_state_of_the_protocols_run_is_the_protocols() -> None:
    story = given_saga(RESERVE, CHARGE, SHIP)
    story.when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
    story.when("ChargePayment_failed", 2, error="insufficient_funds").when("ReleaseReservation_ok", 1)
    assert protocol_view(story.saga) == {
        "saga_id": "saga42",
        "status": "ABORTED",
        "current_step": 1,
        "completed_steps": [1],
        "compensating_steps": [1],
        "steps": [
            {
                "transaction": "ReserveInventory",
                "params": {"sku": "abc123", "quantity": 1},
                "status": "COMPENSATED",
                "result": {"reservation_id": "r1"},
            },
            {"transaction": "ChargePayment", "params": {"user_id": "u42", "amount": 99.99}, "status": "FAILED"},
            {"transaction": "CreateShipment", "params": {"order_id": "o123"}, "status": "PENDING"},
        ],
    }


def test_a_saga_whose_steps_all_complete_is_completed() -> None:
    (
        given_saga(RESERVE, CHARGE, SHIP, request_id="me-1")
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_ok", 2, result={"payment_id": "p1"})
        .expect_sent("shipping", "CreateShipment", 3)
        .expect_notices()
        .when("CreateShipment_ok", 3, result={"shipment_id": "s1"})
        .expect_status("COMPLETED")
        .expect_steps("COMPLETED", "COMPLETED", "COMPLETED")
        .expect_outcome('{"type": "saga_completed", "saga_id": "saga42", "status": "COMPLETED"}', to="me-1")
    )


def test_a_saga_of_one_step_completes_with_it() -> None:
    given_saga(SHIP).expect_sent("shipping", "CreateShipment", 1).when("CreateShipment_ok", 1).expect_status(
        "COMPLETED"
    )


def test_a_step_keeps_when_it_was_sent_and_answered_and_what_was_said() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1, result={"id": 2**64 - 1})
    first, second = story.saga.steps
    assert (first.sent_ms, first.answered_ms, first.result) == (
        BEGUN_MS,
        BEGUN_MS + 1000,
        b'{"id":18446744073709551615}',
    )
    assert (second.sent_ms, second.answered_ms) == (BEGUN_MS + 1000, None)
    assert (story.saga.begun_ms, story.saga.updated_ms) == (BEGUN_MS, BEGUN_MS + 1000)
    story.when("ChargePayment_failed", 2, error={"code": 7})
    assert story.saga.steps[1].error == b'{"code":7}'
    story.when("ReleaseReservation_ok", 1)
    undone = story.saga.steps[0]
    assert (undone.compensation_sent_ms, undone.compensation_answered_ms) == (BEGUN_MS + 2000, BEGUN_MS + 3000)


def test_every_command_says_when_its_saga_began() -> None:
    story = given_saga(RESERVE, CHARGE)
    assert story.decision.commands[0].begun_ms == BEGUN_MS
    story.when("ReserveInventory_ok", 1)
    assert story.decision.commands[0].begun_ms == BEGUN_MS
    story.when("ChargePayment_failed", 2)
    assert story.decision.commands[0].begun_ms == BEGUN_MS


# --- the way back


def test_a_failed_first_step_aborts_at_once() -> None:
    (
        given_saga(CHARGE, SHIP)
        .when("ChargePayment_failed", 1, error="insufficient_funds")
        .expect_status("ABORTED", "Step 1 failed: insufficient_funds")
        .expect_steps("FAILED", "PENDING")
        .expect_outcome(
            '{"type": "saga_aborted", "saga_id": "saga42", "status": "ABORTED", '
            '"reason": "Step 1 failed: insufficient_funds"}'
        )
    )


def test_when_the_last_of_20_steps_fails_the_others_are_undone_in_reverse_order() -> None:
    steps = [step(f"Do{n}", f"service{n % 3}", n, f"Undo{n}") for n in range(1, 21)]
    story = given_saga(*steps, published={})
    for n in range(1, 20):
        story.expect_sent(f"service{n % 3}", f"Do{n}", n).when(f"Do{n}_ok", n, result=n)
    story.expect_sent("service2", "Do20", 20).when("Do20_failed", 20, error="full")
    for n in range(19, 0, -1):
        story.expect_status("COMPENSATING", "Step 20 failed: full").expect_sent(f"service{n % 3}", f"Undo{n}", n)
        story.when(f"Undo{n}_ok", n)
    story.expect_status("ABORTED", "Step 20 failed: full").expect_steps(*["COMPENSATED"] * 19, "FAILED")
    assert story.saga.compensating_steps == tuple(range(19, 0, -1))


def test_a_compensation_is_told_the_params_and_the_result_of_its_step() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
    story.when("ChargePayment_failed", 2)
    assert story.decision.commands == (
        Command(
            service="inventory",
            type="ReleaseReservation",
            saga_id="saga42",
            step=1,
            params=b'{"sku":"abc123","quantity":1}',
            result=b'{"reservation_id":"r1"}',
            compensating=True,
            begun_ms=BEGUN_MS,
            retried=True,
        ),
    )


def test_a_step_that_needs_no_compensation_is_skipped_in_the_undo() -> None:
    (
        given_saga(RESERVE, step("SendMail", "mail", compensation=None), CHARGE)
        .when("ReserveInventory_ok", 1)
        .when("SendMail_ok", 2)
        .when("ChargePayment_failed", 3)
        .expect_sent("inventory", "ReleaseReservation", 1)
        .when("ReleaseReservation_ok", 1)
        .expect_status("ABORTED", "Step 3 failed: no reason given")
        .expect_steps("COMPENSATED", "COMPLETED", "FAILED")
    )


def test_a_saga_with_nothing_but_such_steps_before_the_failed_one_aborts_at_once() -> None:
    story = given_saga(step("SendMail", "mail", compensation=None), CHARGE).when("SendMail_ok", 1)
    story.when("ChargePayment_failed", 2).expect_status("ABORTED", "Step 2 failed: no reason given")
    assert story.saga.compensating_steps == ()


def test_a_service_may_publish_that_a_command_needs_no_compensation() -> None:
    (
        given_saga(step("SendMail", "mail"), CHARGE, published={"mail": {"SendMail": None}})
        .when("SendMail_ok", 1)
        .when("ChargePayment_failed", 2)
        .expect_status("ABORTED", "Step 2 failed: no reason given")
    )


def test_the_compensation_that_a_step_names_counts_more_than_the_published_one() -> None:
    (
        given_saga(step("ReserveInventory", "inventory", compensation="ReleaseLater"), CHARGE)
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_failed", 2)
        .expect_sent("inventory", "ReleaseLater", 1)
        .when("ReleaseLater_ok", 1)
        .expect_status("ABORTED", "Step 2 failed: no reason given")
    )


def test_what_is_published_when_the_step_is_undone_counts() -> None:
    story = given_saga(RESERVE, CHARGE, published={}).when("ReserveInventory_ok", 1)
    story.published = PUBLISHED
    story.when("ChargePayment_failed", 2).expect_sent("inventory", "ReleaseReservation", 1)


def test_a_name_that_is_published_later_does_not_change_what_answers_the_one_that_was_sent() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    story.published = {"inventory": {"ReserveInventory": "Release2"}}
    story.when("Release2_ok", 1).expect_quarantined("step 1 is ReserveInventory; Release2_ok does not answer it")
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Step 2 failed: no reason given")


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        ("out of stock", "out of stock"),
        ("", ""),
        (None, "null"),
        (7, "7"),
        ({"code": 7, "why": "ü"}, '{"code":7,"why":"ü"}'),
        ("x" * REASON_CHARS, "x" * REASON_CHARS),
        ("x" * (REASON_CHARS + 1), "x" * REASON_CHARS + "…"),
        (["y" * 5000], '["' + "y" * (REASON_CHARS - 2) + "…"),
    ],
)
def test_the_reason_quotes_the_error(error: object, quoted: str) -> None:
    given_saga(CHARGE).when("ChargePayment_failed", 1, error=error).expect_status("ABORTED", f"Step 1 failed: {quoted}")


# --- outcomes that nobody knows

ONCE = step("ChargePayment", "payment", 7, attempts=1)  # an attempt that fails is not tried again


def test_a_step_whose_outcome_is_unknown_is_compensated_too_and_first() -> None:
    story = (
        given_saga(RESERVE, ONCE, SHIP)
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_failed", 2, error="TimeoutError: bank", unknown=True)
        .expect_status("COMPENSATING", "Step 2 failed: TimeoutError: bank")
        .expect_steps("COMPLETED", "FAILED", "PENDING")
        .expect_command("payment", '{"type": "RefundPayment", "saga_id": "saga42", "step": 2, "compensating": true}')
        .when("RefundPayment_ok", 2)
        .expect_sent("inventory", "ReleaseReservation", 1)
        .when("ReleaseReservation_ok", 1)
        .expect_status("ABORTED", "Step 2 failed: TimeoutError: bank")
        .expect_steps("COMPENSATED", "COMPENSATED", "PENDING")
    )
    view = protocol_view(story.saga)
    assert (view["completed_steps"], view["compensating_steps"]) == ([1], [2, 1])


def test_a_first_step_whose_outcome_is_unknown_is_compensated_before_the_saga_aborts() -> None:
    (
        given_saga(ONCE)
        .when("ChargePayment_failed", 1, error="?", unknown=True)
        .expect_sent("payment", "RefundPayment", 1)
        .when("RefundPayment_ok", 1)
        .expect_status("ABORTED", "Step 1 failed: ?")
    )


def test_an_unknown_outcome_is_tried_again_as_one_that_nobody_answered() -> None:
    (
        given_saga(RESERVE)
        .when("ReserveInventory_failed", 1, error="TimeoutError: shelf", unknown=True, attempt=1)
        .expect_status("PENDING")
        .expect_sent_again_in(1000)
        .when_due()
        .expect_sent("inventory", "ReserveInventory", 1, attempt=2)
        .when("ReserveInventory_ok", 1, attempt=2)
        .expect_status("COMPLETED")
    )


def test_a_late_ok_is_recorded_and_its_result_told_to_the_next_attempt_of_the_compensation() -> None:
    story = given_saga(RESERVE, ONCE).when("ReserveInventory_ok", 1).when_due()
    story.expect_status("COMPENSATING", "Step 2 failed: no answer within 60000 ms")
    story.expect_told_the_result(None)
    story.when("ChargePayment_ok", 2, result={"payment_id": "p1"}).expect_late(2, {"payment_id": "p1"})
    assert protocol_view(story.saga)["completed_steps"] == [1, 2]
    assert protocol_view(story.saga)["steps"][1]["result"] == {"payment_id": "p1"}
    story.when("RefundPayment_failed", 2).when_due().expect_sent("payment", "RefundPayment", 2, attempt=2)
    story.expect_told_the_result(b'{"payment_id":"p1"}')
    story.when("RefundPayment_ok", 2).when("ReleaseReservation_ok", 1)
    story.expect_status("ABORTED", "Step 2 failed: no answer within 60000 ms")


def test_a_late_ok_never_moves_the_saga_and_its_step_is_compensated_once() -> None:
    story = given_saga(RESERVE, ONCE).when("ReserveInventory_ok", 1).when_due().when("RefundPayment_ok", 2)
    story.expect_sent("inventory", "ReleaseReservation", 1)
    story.when("ChargePayment_ok", 2).expect_late(2).expect_steps("COMPLETED", "COMPENSATED")
    story.when("ChargePayment_ok", 2, result=1).expect_duplicate_counted()
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Step 2 failed: no answer within 60000 ms")
    assert story.saga.compensating_steps == (2, 1)


def test_a_late_ok_of_a_saga_that_has_ended_is_recorded() -> None:
    story = given_saga(ONCE, published={"payment": {"ChargePayment": None}}).when_due()
    story.expect_status("ABORTED", "Step 1 failed: no answer within 60000 ms")
    story.when("ChargePayment_ok", 1, result=1).expect_late(1, 1).expect_steps("FAILED")


def test_a_late_ok_of_an_echoed_saga_is_told() -> None:
    story = given_saga(ONCE, echo=True).when_due().when("ChargePayment_ok", 1)
    story.expect_notices("reply payment ChargePayment_ok").expect_nothing_sent()
    assert story.saga.steps[0].late_ms == story.now_ms


def test_a_late_ok_of_a_step_that_is_known_to_have_had_no_effect_is_set_aside() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    story.when("ChargePayment_ok", 2).expect_quarantined("too late: step 2 is FAILED, the saga COMPENSATING")


# --- parked sagas

NOBODY_KNOWS = (
    "nobody knows what undoes ReserveInventory of step 1: service inventory published no such command, "
    "and the step names no compensation"
)


@pytest.mark.parametrize("published", [{}, {"inventory": {}}, {"inventory": {"Other": "Undo"}}])
def test_a_saga_whose_compensation_nobody_knows_is_parked(published: Published) -> None:
    story = (
        given_saga(RESERVE, CHARGE, published=published, request_id="me-1")
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_failed", 2, error="insufficient_funds")
        .expect_status("COMPENSATING", "Step 2 failed: insufficient_funds")
        .expect_parked(NOBODY_KNOWS)
        .expect_steps("COMPLETED", "FAILED")
        .expect_notices("parked - saga_parked")
    )
    assert story.saga.current_step == 1
    assert story.saga.compensating_steps == ()


def test_a_saga_is_parked_only_when_it_comes_to_the_step_that_nobody_can_undo() -> None:
    (
        given_saga(RESERVE, CHARGE, SHIP, published={"payment": PUBLISHED["payment"]})
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_ok", 2)
        .when("CreateShipment_failed", 3)
        .expect_sent("payment", "RefundPayment", 2)
        .when("RefundPayment_ok", 2)
        .expect_parked(NOBODY_KNOWS)
        .expect_steps("COMPLETED", "COMPENSATED", "FAILED")
    )


#: Its compensation is tried once.
CHARGE_UNDONE_ONCE = replace(CHARGE, compensation_attempts=1)
RESERVE_UNDONE_ONCE = replace(RESERVE, compensation_attempts=1)


def test_a_saga_whose_compensation_fails_for_good_is_parked_and_goes_on_when_it_succeeds_after_all() -> None:
    (
        given_saga(RESERVE, CHARGE_UNDONE_ONCE, SHIP)
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_ok", 2)
        .when("CreateShipment_failed", 3, error="no address")
        .expect_sent("payment", "RefundPayment", 2)
        .when("RefundPayment_failed", 2, error="bank is closed")
        .expect_parked("RefundPayment of step 2 failed: bank is closed")
        .expect_status("COMPENSATING", "Step 3 failed: no address")
        .expect_steps("COMPLETED", "COMPLETED", "FAILED")
        .when("RefundPayment_ok", 2)
        .expect_sent("inventory", "ReleaseReservation", 1)
        .expect_steps("COMPLETED", "COMPENSATED", "FAILED")
        .when("ReleaseReservation_ok", 1)
        .expect_status("ABORTED", "Step 3 failed: no address")
    )


def parked_in_the_undo(reason: object = "bank is closed") -> Story:
    """A saga that is parked because its first step cannot be undone."""
    story = given_saga(RESERVE_UNDONE_ONCE, CHARGE).when("ReserveInventory_ok", 1)
    return story.when("ChargePayment_failed", 2).when("ReleaseReservation_failed", 1, error=reason)


def test_a_saga_that_goes_on_is_parked_no_more() -> None:
    story = parked_in_the_undo().expect_parked("ReleaseReservation of step 1 failed: bank is closed")
    story.when("ReleaseReservation_ok", 1)
    assert story.saga.parked is None


# --- replies that come again


def test_a_reply_that_comes_again_is_counted_and_changes_nothing_else() -> None:
    story = given_saga(RESERVE, CHARGE, SHIP).when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
    story.when("ReserveInventory_ok", 1, result={"reservation_id": "r1"}).expect_duplicate_counted()
    story.when("ReserveInventory_ok", 1, result={"reservation_id": "r2"}).expect_duplicate_counted()
    assert story.saga.duplicates == 2
    story.when("ChargePayment_failed", 2).when("ChargePayment_failed", 2).expect_duplicate_counted()
    story.when("ReserveInventory_ok", 1).expect_duplicate_counted()
    story.when("ReleaseReservation_ok", 1).when("ReleaseReservation_ok", 1).expect_duplicate_counted()
    story.when("ReserveInventory_ok", 1).expect_duplicate_counted()
    story.expect_status("ABORTED", "Step 2 failed: no reason given")


def test_a_reply_that_comes_again_after_the_end_is_counted() -> None:
    story = given_saga(SHIP).when("CreateShipment_ok", 1)
    story.when("CreateShipment_ok", 1).expect_duplicate_counted().expect_status("COMPLETED")


def test_an_unknown_outcome_that_comes_again_after_its_compensation_is_counted() -> None:
    story = given_saga(RESERVE, ONCE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2, unknown=True)
    story.when("ChargePayment_failed", 2, unknown=True).expect_duplicate_counted()
    story.when("RefundPayment_ok", 2).when("ChargePayment_failed", 2, unknown=True).expect_duplicate_counted()
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Step 2 failed: no reason given")
    story.when("ChargePayment_failed", 2, unknown=True).expect_duplicate_counted()


def test_a_failed_compensation_that_is_told_again_while_the_saga_is_parked_is_counted() -> None:
    story, why = parked_in_the_undo(), "ReleaseReservation of step 1 failed: bank is closed"
    story.when("ReleaseReservation_failed", 1, error="another reason").expect_duplicate_counted()
    story.expect_still_parked(why).when("ReleaseReservation_ok", 1)
    story.expect_status("ABORTED", "Step 2 failed: no reason given")


def test_a_failed_attempt_that_is_told_again_before_the_next_one_is_sent_is_counted() -> None:
    story = given_saga(RESERVE).when("ReserveInventory_failed", 1, unknown=True, attempt=1)
    story.when("ReserveInventory_failed", 1, unknown=True, attempt=1).expect_duplicate_counted()


def test_a_saga_that_is_parked_because_nobody_knows_the_compensation_takes_no_answer_to_it() -> None:
    story = given_saga(RESERVE, CHARGE, published={}).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    for kind in ("ReleaseReservation_ok", "ReleaseReservation_failed"):
        story.when(kind, 1).expect_quarantined(f"step 1 is ReserveInventory; {kind} does not answer it")


def test_a_reply_of_an_earlier_step_with_the_same_transaction_is_not_taken_for_one_of_the_current_step() -> None:
    story = given_saga(CHARGE, CHARGE, SHIP).when("ChargePayment_ok", 1, result=1)
    story.when("ChargePayment_ok", 1, result=1).expect_duplicate_counted().expect_steps(
        "COMPLETED", "PENDING", "PENDING"
    )
    story.when("ChargePayment_ok", 2, result=2).when("CreateShipment_failed", 3)
    story.expect_sent("payment", "RefundPayment", 2).when("RefundPayment_ok", 2)
    story.expect_sent("payment", "RefundPayment", 1)
    story.when("RefundPayment_ok", 2).expect_duplicate_counted()
    story.when("RefundPayment_ok", 1).expect_status("ABORTED", "Step 3 failed: no reason given")


# --- replies to attempts that are over


def waiting_for_the_second_attempt(**options: Any) -> Story:
    """Step 2 was not answered in time, and was sent again."""
    story = given_saga(RESERVE, replace(CHARGE, **options)).when("ReserveInventory_ok", 1).when_due().when_due()
    return story.expect_sent("payment", "ChargePayment", 2, attempt=2)


def test_an_unknown_outcome_of_an_earlier_attempt_is_counted_and_the_later_one_is_waited_for() -> None:
    story = waiting_for_the_second_attempt()
    story.when("ChargePayment_failed", 2, error="?", unknown=True, attempt=1).expect_duplicate_counted()
    story.when("ChargePayment_failed", 2, error="?", unknown=True, attempt=3).expect_duplicate_counted()
    story.when("ChargePayment_failed", 2, error="?", unknown=True, attempt=2).expect_sent_again_in(2000)


def test_a_failure_of_an_earlier_attempt_that_is_no_last_word_is_counted() -> None:
    story = waiting_for_the_second_attempt(retry_failed=True)
    story.when("ChargePayment_failed", 2, error="busy", attempt=1).expect_duplicate_counted()
    story.when("ChargePayment_failed", 2, error="busy", attempt=2).expect_sent_again_in(2000)
    story.when("ChargePayment_failed", 2, error="busy", attempt=2).expect_duplicate_counted()
    story.when("ChargePayment_failed", 2, error="busy", attempt=None).expect_duplicate_counted()


@pytest.mark.parametrize("attempt", [1, 2, None])
def test_a_definite_failure_ends_the_step_whichever_attempt_it_answers(attempt: int | None) -> None:
    story = waiting_for_the_second_attempt().when("ChargePayment_failed", 2, error="no", attempt=attempt)
    story.expect_status("COMPENSATING", "Step 2 failed: no (2 attempts)").expect_steps("COMPLETED", "FAILED")
    # Nothing remains of any attempt: the step is not compensated.
    story.expect_sent("inventory", "ReleaseReservation", 1)
    assert not story.saga.steps[1].unknown


def test_a_definite_failure_that_comes_between_two_attempts_ends_the_step() -> None:
    story = given_saga(CHARGE).when_due().expect_sent_again_in(1000).when("ChargePayment_failed", 1, error="no")
    story.expect_status("ABORTED", "Step 1 failed: no").expect_steps("FAILED")


@pytest.mark.parametrize("attempt", [1, 2, None])
def test_that_a_step_was_done_is_news_whichever_attempt_did_it(attempt: int | None) -> None:
    story = waiting_for_the_second_attempt().when("ChargePayment_ok", 2, result=1, attempt=attempt)
    story.expect_status("COMPLETED").expect_steps("COMPLETED", "COMPLETED")
    done = story.saga.steps[1]
    assert (done.result, done.error, done.unknown, done.late_ms) == (b"1", None, False, None)


def test_a_step_that_was_done_between_two_attempts_is_not_sent_again() -> None:
    given_saga(CHARGE, SHIP).when_due().when("ChargePayment_ok", 1).expect_sent("shipping", "CreateShipment", 2)


def test_failures_of_all_attempts_of_a_step_that_was_done_in_the_end_are_counted() -> None:
    story = waiting_for_the_second_attempt().when("ChargePayment_ok", 2, attempt=2)
    story.when("ChargePayment_failed", 2, unknown=True, attempt=1).expect_duplicate_counted()
    # A reply that says that nothing remains contradicts what is known.
    story.when("ChargePayment_failed", 2, attempt=1)
    story.expect_quarantined("too late: step 2 is COMPLETED, the saga COMPLETED")


def test_a_failure_that_was_no_last_word_is_counted_once_the_step_was_done() -> None:
    story = waiting_for_the_second_attempt(retry_failed=True).when("ChargePayment_ok", 2, attempt=2)
    story.when("ChargePayment_failed", 2, error="busy", attempt=1).expect_duplicate_counted()


def undoing_for_the_second_time() -> Story:
    """The compensation of step 1 was not answered in time, and was sent again."""
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    return story.when_due().when_due().expect_sent("inventory", "ReleaseReservation", 1, attempt=2)


def test_a_failure_of_an_earlier_attempt_of_a_compensation_is_counted() -> None:
    story = undoing_for_the_second_time()
    story.when("ReleaseReservation_failed", 1, attempt=1).expect_duplicate_counted()
    story.when("ReleaseReservation_ok", 1, attempt=1).expect_status("ABORTED", "Step 2 failed: no reason given")
    story.when("ReleaseReservation_failed", 1, attempt=2).expect_duplicate_counted()


# --- replies that fit nowhere


def test_a_reply_for_a_saga_that_there_is_not_is_quarantined() -> None:
    reply = Reply(type="ChargePayment_ok", saga_id="saga7", step=1)
    assert decide(None, reply, Moment(now_ms=BEGUN_MS, published=PUBLISHED)) == Decision(
        state=None, quarantine="there is no saga saga7"
    )


def test_a_reply_for_a_step_that_there_is_not_is_quarantined() -> None:
    given_saga(RESERVE, CHARGE).when("ChargePayment_ok", 3).expect_quarantined("the saga has no step 3")


def test_a_reply_for_a_step_that_was_not_sent_is_quarantined() -> None:
    given_saga(RESERVE, CHARGE).when("ChargePayment_ok", 2).expect_quarantined("step 2 was not sent yet")


@pytest.mark.parametrize(
    "kind",
    [
        "ChargePayment_ok",
        "ReserveInventory",
        "ReserveInventory_done",
        "ReserveInventory_ok_ok",
        "reserveinventory_ok",
        "ReleaseReservation_ok",  # no attempt of it was sent
        "_ok",
    ],
)
def test_a_reply_of_a_type_that_does_not_answer_its_step_is_quarantined(kind: str) -> None:
    reason = f"step 1 is ReserveInventory; {kind} does not answer it"
    given_saga(RESERVE, CHARGE).when(kind, 1).expect_quarantined(reason)


def test_a_reply_for_a_step_that_was_answered_otherwise_comes_too_late() -> None:
    story = given_saga(RESERVE, CHARGE, SHIP).when("ReserveInventory_ok", 1)
    story.when("ReserveInventory_failed", 1).expect_quarantined("too late: step 1 is COMPLETED, the saga PENDING")
    story.when("ChargePayment_failed", 2)
    story.when("ChargePayment_ok", 2).expect_quarantined("too late: step 2 is FAILED, the saga COMPENSATING")


@pytest.mark.parametrize("unknown", [False, True])
def test_an_undo_that_failed_is_counted_once_the_step_was_undone(unknown: bool) -> None:
    """Two processes had the command, and the other one has undone it: a second time, the handler may reject it."""
    story = given_saga(RESERVE, CHARGE, SHIP).when("ReserveInventory_ok", 1).when("ChargePayment_ok", 2)
    story.when("CreateShipment_failed", 3).when("RefundPayment_ok", 2)
    story.when("RefundPayment_failed", 2, error="refunded already", unknown=unknown).expect_duplicate_counted()
    story.when("ReleaseReservation_ok", 1)
    story.when("ReleaseReservation_failed", 1, unknown=unknown, attempt=1).expect_duplicate_counted()
    assert story.saga.ended
    story.expect_steps("COMPENSATED", "COMPENSATED", "FAILED")


# --- what operators ask for


def test_a_cancelled_saga_goes_back_when_its_current_step_is_answered() -> None:
    story = given_saga(RESERVE, CHARGE).when_asked(Verb.CANCEL, "ordered twice").expect_done(Verb.CANCEL)
    story.expect_status("PENDING").expect_nothing_sent().expect_notices("done - saga_cancel_ok")
    story.expect_waits("inventory to answer ReserveInventory, step 1, to be cancelled then")
    assert story.saga.due_ms == BEGUN_MS + RESERVE.timeout_ms  # a cancel does not prolong the wait
    story.when("ReserveInventory_ok", 1, result=1).expect_sent("inventory", "ReleaseReservation", 1)
    story.expect_status("COMPENSATING", "Cancelled: ordered twice").expect_steps("COMPLETED", "PENDING")
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Cancelled: ordered twice")
    story.expect_steps("COMPENSATED", "PENDING").expect_interventions("cancel: ordered twice")


def test_a_saga_that_is_cancelled_at_its_last_step_goes_back_too() -> None:
    story = given_saga(RESERVE).when_asked(Verb.CANCEL).when("ReserveInventory_ok", 1)
    story.expect_sent("inventory", "ReleaseReservation", 1)
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Cancelled: as agreed")


def test_a_step_that_fails_while_it_is_to_be_cancelled_is_the_reason() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when_asked(Verb.CANCEL)
    story.when("ChargePayment_failed", 2, error="no").expect_status("COMPENSATING", "Step 2 failed: no")
    assert story.saga.cancelling is None
    story.expect_sent("inventory", "ReleaseReservation", 1)


@pytest.mark.parametrize("answered", [False, True])
def test_a_step_of_unknown_outcome_is_not_tried_again_once_it_is_to_be_cancelled(answered: bool) -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when_asked(Verb.CANCEL)
    if answered:
        story.when("ChargePayment_failed", 2, unknown=True)
    else:
        story.when_due()
    story.expect_status("COMPENSATING", "Cancelled: as agreed").expect_steps("COMPLETED", "FAILED")
    story.expect_sent("payment", "RefundPayment", 2)


def test_a_failure_that_would_be_tried_again_is_not_once_the_saga_is_to_be_cancelled() -> None:
    story = given_saga(RESERVE, replace(CHARGE, retry_failed=True)).when("ReserveInventory_ok", 1)
    story.when_asked(Verb.CANCEL).when("ChargePayment_failed", 2, error="busy")
    # The failure is not final: another delivery may still do it, so the step is undone too.
    story.expect_status("COMPENSATING", "Cancelled: as agreed").expect_sent("payment", "RefundPayment", 2)
    story.when("RefundPayment_ok", 2).expect_sent("inventory", "ReleaseReservation", 1)


def test_the_last_failure_of_a_step_that_is_tried_again_is_a_last_word_also_where_it_is_to_be_cancelled() -> None:
    story = given_saga(RESERVE, replace(CHARGE, retry_failed=True, attempts=1)).when("ReserveInventory_ok", 1)
    story.when_asked(Verb.CANCEL).when("ChargePayment_failed", 2, error="busy")
    story.expect_status("COMPENSATING", "Step 2 failed: busy").expect_sent("inventory", "ReleaseReservation", 1)


def test_a_saga_that_is_between_two_attempts_is_cancelled_at_once() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when_due().expect_sent_again_in(1000)
    story.when_asked(Verb.CANCEL).expect_done(Verb.CANCEL)
    story.expect_status("COMPENSATING", "Cancelled: as agreed").expect_steps("COMPLETED", "FAILED")
    story.expect_sent("payment", "RefundPayment", 2)  # the first attempt may have had its effect


def test_what_was_to_be_tried_again_may_be_done_yet_and_is_undone_when_it_is_cancelled_between_two_attempts() -> None:
    story = given_saga(replace(CHARGE, retry_failed=True), request_id="me-1").when("ChargePayment_failed", 1)
    story.when_asked(Verb.CANCEL).expect_done(Verb.CANCEL).expect_sent("payment", "RefundPayment", 1)
    story.when("RefundPayment_ok", 1).expect_status("ABORTED", "Cancelled: as agreed")
    story.expect_notices("outcome - saga_aborted")


def test_a_cancel_is_refused_where_there_is_nothing_to_cancel() -> None:
    cancelled = given_saga(RESERVE, CHARGE).when_asked(Verb.CANCEL, request_id="op-0")
    cancelled.when_asked(Verb.CANCEL).expect_refused("is being cancelled already")
    undone = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    undone.when_asked(Verb.CANCEL).expect_refused("is being undone already; its compensation cannot be cancelled")
    parked_in_the_undo().when_asked(Verb.CANCEL).expect_refused(
        "is being undone already; its compensation cannot be cancelled"
    )
    past = given_saga(replace(CHARGE, kind=StepKind.PIVOT), replace(SHIP, kind=StepKind.RETRIABLE))
    past.when("ChargePayment_ok", 1).when_asked(Verb.CANCEL).expect_refused("is past its pivot: there is no way back")


@pytest.mark.parametrize("verb", Verb)
def test_nothing_can_be_asked_of_a_saga_that_has_ended(verb: Verb) -> None:
    done = given_saga(SHIP).when("CreateShipment_ok", 1)
    done.when_asked(verb).expect_refused("has ended, COMPLETED").expect_interventions()
    failed = given_saga(SHIP).when("CreateShipment_failed", 1)
    failed.when_asked(verb).expect_refused("has ended, ABORTED").expect_interventions()


@pytest.mark.parametrize("verb", [Verb.RETRY, Verb.SKIP, Verb.ABANDON])
def test_only_a_parked_saga_can_be_retried_skipped_or_abandoned(verb: Verb) -> None:
    story = given_saga(RESERVE, CHARGE)
    story.when_asked(verb).expect_refused("is not parked, it waits for inventory to answer ReserveInventory, step 1")
    story.when_due().when_asked(verb)
    story.expect_refused("is not parked, it waits for the time to send ReserveInventory, step 1 again (attempt 2 of 3)")
    story.when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2).when_asked(verb)
    story.expect_refused("is not parked, it waits for inventory to answer ReleaseReservation, step 1")
    story.expect_interventions()


@pytest.mark.parametrize("verb", Verb)
def test_what_is_asked_of_a_saga_that_there_is_not_is_refused(verb: Verb) -> None:
    asked = Intervene(verb=verb, saga_id="saga7", reason="as agreed", request_id="op-1")
    body = encode({"type": "error", "code": Code.NO_SUCH_SAGA, "text": "there is no saga saga7"})
    told = Notice(kind="refused", saga_id="saga7", request_id="op-1", body=body)
    moment = Moment(now_ms=BEGUN_MS, published=PUBLISHED)
    assert decide(None, asked, moment) == Decision(state=None, notices=(told,))
    nameless = decide(None, replace(asked, request_id=None), moment)
    assert nameless == Decision(state=None, quarantine="there is no saga saga7")


@pytest.mark.parametrize("verb", Verb)
def test_what_is_asked_of_a_saga_that_cannot_be_read_is_refused(verb: Verb) -> None:
    damaged = CorruptSaga("damaged")
    asked = Intervene(verb=verb, saga_id="saga42", reason="as agreed", request_id="op-1")
    decided = decide(damaged, asked, Moment(now_ms=BEGUN_MS, published=PUBLISHED))
    told = Notice(
        kind="refused",
        saga_id="saga42",
        request_id="op-1",
        body=encode({"type": "error", "code": 13, "text": "damaged"}),
    )
    assert decided == Decision(state=damaged, notices=(told,))
    assert decided.state is damaged


def test_what_is_refused_and_named_nobody_is_quarantined() -> None:
    story = given_saga(SHIP).when_asked(Verb.RETRY, request_id=None)
    story.expect_quarantined("saga saga42 is not parked, it waits for shipping to answer CreateShipment, step 1")


def test_what_is_done_and_named_nobody_is_told_nobody_and_kept() -> None:
    story = given_saga(SHIP).when_asked(Verb.CANCEL, request_id=None).expect_notices()
    assert story.decision.quarantine is None
    story.expect_interventions("cancel: as agreed").expect_waits(
        "shipping to answer CreateShipment, step 1, to be cancelled then"
    )


def test_a_request_is_done_once_however_often_it_arrives() -> None:
    story = given_saga(RESERVE, CHARGE)
    for _ in range(2):
        story.when_asked(Verb.CANCEL, request_id="op-1").expect_done(Verb.CANCEL)
    story.expect_nothing_changed().expect_interventions("cancel: as agreed")
    story = parked_in_the_undo().when_asked(Verb.RETRY, request_id="op-1")
    story.expect_sent("inventory", "ReleaseReservation", 1, attempt=2)
    story.when_asked(Verb.RETRY, request_id="op-1").expect_done(Verb.RETRY).expect_nothing_changed()
    story.when("ReleaseReservation_failed", 1).when_asked(Verb.RETRY, request_id="op-1")
    story.expect_done(Verb.RETRY).expect_nothing_changed()  # parked again, and it waits for nothing
    story.when_asked(Verb.RETRY, request_id="op-2").expect_sent("inventory", "ReleaseReservation", 1, attempt=3)
    story.expect_interventions("retry: as agreed", "retry: as agreed")


def test_a_request_that_arrives_again_after_the_end_was_done_all_the_same() -> None:
    story = parked_in_the_undo().when_asked(Verb.ABANDON).expect_done(Verb.ABANDON)
    story.when_asked(Verb.ABANDON).expect_done(Verb.ABANDON).expect_nothing_changed()
    story.expect_notices("done - saga_abandon_ok")


def test_every_intervention_is_kept_with_its_reason_and_its_time() -> None:
    story = parked_in_the_undo().when_asked(Verb.RETRY, "the bank is open", request_id="op-1")
    story.when("ReleaseReservation_failed", 1).when_asked(Verb.SKIP, "refunded by hand", request_id="op-2")
    story.expect_interventions("retry: the bank is open", "skip: refunded by hand")
    assert [(done.at_ms, done.request_id) for done in story.saga.interventions] == [
        (story.now_ms - 2000, "op-1"),
        (story.now_ms, "op-2"),
    ]


def test_the_newest_interventions_are_kept_where_there_are_very_many() -> None:
    story = parked_in_the_undo()
    for n in range(MAX_INTERVENTIONS + 5):
        story.when_asked(Verb.RETRY, f"{n}", request_id=f"op-{n}").when("ReleaseReservation_failed", 1)
    story.expect_interventions(*(f"retry: {n}" for n in range(5, MAX_INTERVENTIONS + 5)))


# --- time


def test_a_saga_that_is_looked_at_too_early_does_not_change() -> None:
    story = given_saga(RESERVE, deadline_ms=90_000).when_due(after_ms=59_999).expect_nothing_changed().expect_notices()
    story.when_due(after_ms=1).expect_sent_again_in(1000)
    story.when_due(after_ms=999).expect_nothing_changed().expect_notices()
    story.when_due(after_ms=1).expect_sent("inventory", "ReserveInventory", 1, attempt=2)
    story.when_due(after_ms=0).expect_nothing_changed().expect_notices()


@pytest.mark.parametrize("story", [given_saga(SHIP).when("CreateShipment_ok", 1), parked_in_the_undo()])
def test_a_saga_that_has_ended_or_is_parked_is_never_due(story: Story) -> None:
    assert story.saga.due_ms is None
    story.when_due(after_ms=10 * MAX_TIMEOUT_MS).expect_nothing_changed().expect_notices()


@pytest.mark.parametrize("state", [None, CorruptSaga("damaged")])
def test_what_is_no_saga_or_cannot_be_read_is_not_changed_by_time(state: CorruptSaga | None) -> None:
    decided = decide(state, Due(saga_id="saga42"), Moment(now_ms=BEGUN_MS, published=PUBLISHED))
    assert decided == Decision(state=state)
    assert decided.state is state


def test_a_deadline_cancels_the_saga_when_its_current_step_is_answered() -> None:
    story = given_saga(RESERVE, CHARGE, deadline_ms=5000).when_due()
    assert story.now_ms == BEGUN_MS + 5000
    story.expect_status("PENDING").expect_nothing_sent()
    story.expect_waits("inventory to answer ReserveInventory, step 1, to be cancelled then")
    why = "The deadline, 5000 ms after the begin, has passed"
    story.when("ReserveInventory_ok", 1).expect_status("COMPENSATING", why)
    story.expect_sent("inventory", "ReleaseReservation", 1)
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", why).expect_interventions()


def test_a_deadline_that_passes_between_two_attempts_cancels_the_saga_at_once() -> None:
    story = given_saga(RESERVE, deadline_ms=60_500).when_due().expect_sent_again_in(1000).when_due()
    assert story.now_ms == BEGUN_MS + 60_500
    story.expect_status("COMPENSATING", "The deadline, 60500 ms after the begin, has passed")
    story.expect_sent("inventory", "ReleaseReservation", 1)


def test_a_deadline_and_a_timeout_that_come_together_are_seen_to_one_after_the_other() -> None:
    story = given_saga(RESERVE, deadline_ms=RESERVE.timeout_ms).when_due().expect_nothing_sent()
    assert story.saga.due_ms == story.now_ms
    story.when_due().expect_status("COMPENSATING", "The deadline, 60000 ms after the begin, has passed")
    story.expect_sent("inventory", "ReleaseReservation", 1)


def test_a_deadline_never_interrupts_a_compensation() -> None:
    story = given_saga(RESERVE, CHARGE, deadline_ms=30_000).when("ReserveInventory_ok", 1)
    story.when("ChargePayment_failed", 2, error="no").expect_sent("inventory", "ReleaseReservation", 1)
    assert story.saga.due_ms == story.saga.times_out_ms == story.now_ms + RESERVE.timeout_ms
    story.when_due(after_ms=40_000).expect_nothing_changed()
    story.when_due().expect_status("COMPENSATING", "Step 2 failed: no").expect_sent_again_in(1000)


def test_a_deadline_is_ignored_past_the_pivot() -> None:
    story = given_saga(
        replace(CHARGE, kind=StepKind.PIVOT), replace(SHIP, kind=StepKind.RETRIABLE), deadline_ms=30_000
    ).when("ChargePayment_ok", 1)
    assert story.saga.due_ms == story.saga.times_out_ms
    story.when_due(after_ms=40_000).expect_nothing_changed()
    story.when_due().expect_status("PENDING").expect_sent_again_in(1000)
    story.when("CreateShipment_ok", 2).expect_status("COMPLETED")


def test_a_saga_that_is_being_cancelled_has_no_deadline_any_more() -> None:
    story = given_saga(RESERVE, deadline_ms=30_000).when_asked(Verb.CANCEL)
    assert story.saga.due_ms == story.saga.times_out_ms
    story.when_due(after_ms=40_000).expect_nothing_changed()
    story.when("ReserveInventory_ok", 1).expect_status("COMPENSATING", "Cancelled: as agreed")


# --- a clock that was set back

HOUR_MS = 3600 * 1000


def test_what_a_saga_waits_for_is_not_put_off_by_a_clock_that_is_set_back() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1)
    begun_ms = story.saga.begun_ms
    story.when_due(after_ms=-HOUR_MS).expect_nothing_sent().expect_notices()
    assert story.saga.times_out_ms == story.now_ms + CHARGE.timeout_ms
    assert (story.saga.updated_ms, story.saga.begun_ms) == (story.now_ms, begun_ms)
    assert (story.saga.steps[1].sent_ms, story.saga.set_back_ms) == (story.now_ms, HOUR_MS)
    story.when_due(after_ms=0).expect_nothing_changed()
    story.when_due().expect_sent_again_in(1000)
    story.when_due(after_ms=-2 * HOUR_MS).expect_sent_again_in(1000)
    assert story.saga.set_back_ms == 3 * HOUR_MS


def test_an_undo_that_waits_is_not_put_off_either() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    story.when_due(after_ms=-HOUR_MS).expect_status("COMPENSATING", "Step 2 failed: no reason given")
    assert story.saga.times_out_ms == story.now_ms + RESERVE.timeout_ms
    assert story.saga.steps[0].compensation_sent_ms == story.now_ms


def test_a_saga_that_changed_a_moment_after_now_was_not_set_back() -> None:
    """Another worker decided on it by a later time."""
    given_saga(RESERVE).when_due(after_ms=-SET_BACK_MS).expect_nothing_changed()


@pytest.mark.parametrize("story", [given_saga(SHIP).when("CreateShipment_ok", 1), parked_in_the_undo()])
def test_a_clock_that_is_set_back_changes_nothing_in_a_saga_that_waits_for_no_time(story: Story) -> None:
    story.when_due(after_ms=-HOUR_MS).expect_nothing_changed()


@pytest.mark.parametrize("hard", [False, True])
def test_a_deadline_comes_as_long_after_the_begin_as_was_asked_whatever_the_clock_does(hard: bool) -> None:
    story = given_saga(RESERVE, CHARGE, request_id="me-1", deadline_ms=5000, hard=hard)
    story.when_due(after_ms=-HOUR_MS)
    assert story.saga.due_ms == story.now_ms + 5000
    story.when_due()
    why = "The deadline, 5000 ms after the begin, has passed"
    if not hard:
        story.expect_waits("inventory to answer ReserveInventory, step 1, to be cancelled then")
        story.when("ReserveInventory_ok", 1)
    story.expect_status("COMPENSATING", why).expect_sent("inventory", "ReleaseReservation", 1)
    # It is still the saga that was asked for.
    begin = Begin(saga_id="saga42", steps=(RESERVE, CHARGE), deadline_ms=5000, hard_deadline=hard)
    assert conflict(story.saga, begin) is None


def test_what_an_operator_sends_after_a_hard_deadline_is_waited_for_after_the_clock_was_set_back_too() -> None:
    pivot = replace(CHARGE, kind=StepKind.PIVOT, compensation=None)
    story = given_saga(pivot, deadline_ms=5000, hard=True).when_due(after_ms=-HOUR_MS).when_due()
    assert story.saga.parked is not None
    story.when_asked(Verb.RETRY).when_due().expect_waits(
        "payment to answer ChargePayment, step 1 (attempt 2 of 4), to be cancelled then"
    )


# --- a clock that went forward


def test_what_was_taken_as_set_back_is_taken_back_when_the_clock_is_set_right() -> None:
    story = given_saga(RESERVE, CHARGE, deadline_ms=1_800_000, hard=True)
    asked_for_ms, times_out_ms = story.saga.due_ms, story.saga.times_out_ms
    story.when_due(after_ms=-HOUR_MS)
    story.watch = Watch(since_ms=1, jumps=(Jump(until_ms=story.now_ms + 10, by_ms=HOUR_MS),))
    story.when_due(after_ms=HOUR_MS).expect_nothing_sent().expect_status("PENDING")
    assert (story.saga.deadline_now_ms, story.saga.due_ms) == (story.saga.deadline_ms, asked_for_ms)
    assert story.saga.times_out_ms == times_out_ms
    assert (story.saga.set_back_ms, story.saga.set_forward_ms) == (HOUR_MS, HOUR_MS)
    story.when_due(after_ms=0).expect_nothing_changed()  # it is told of the same jump again, by another worker


def test_whatever_changes_a_saga_is_told_first_what_the_clock_did() -> None:
    """Nothing would show afterwards that the saga had last changed before."""
    story = given_saga(RESERVE, CHARGE, deadline_ms=1_800_000)
    story.now_ms -= HOUR_MS
    story.when("ReserveInventory_ok", 1).expect_sent("payment", "ChargePayment", 2)
    assert story.saga.deadline_now_ms == story.now_ms + 1_800_000
    story.watch = Watch(since_ms=1, jumps=(Jump(until_ms=story.now_ms, by_ms=HOUR_MS),))
    story.now_ms += HOUR_MS
    story.when_asked(Verb.CANCEL)
    assert story.saga.set_forward_ms == HOUR_MS


def test_a_worker_that_hears_later_of_a_jump_changes_a_saga_as_before_it() -> None:
    story = given_saga(RESERVE, CHARGE, deadline_ms=1_800_000, hard=True)
    story.watch = Watch(since_ms=1, jumps=(Jump(until_ms=story.now_ms - 2_500, by_ms=HOUR_MS),))
    story.when_due(after_ms=HOUR_MS).expect_nothing_sent().expect_status("PENDING")
    assert story.saga.deadline_now_ms == story.now_ms + 1_800_000


def test_a_clock_that_jumps_forward_and_is_set_right_leaves_the_deadline_that_was_asked_for() -> None:
    story = given_saga(RESERVE, CHARGE, deadline_ms=1_800_000, hard=True)
    story.watch = Watch(since_ms=1, jumps=(Jump(until_ms=story.now_ms, by_ms=HOUR_MS),))
    story.when_due(after_ms=HOUR_MS).expect_nothing_sent().expect_status("PENDING")
    assert story.saga.deadline_now_ms == story.now_ms + 1_800_000
    story.when("ReserveInventory_ok", 1).expect_sent("payment", "ChargePayment", 2)
    story.watch = Watch(since_ms=1)
    story.when_due(after_ms=-HOUR_MS).expect_nothing_sent()
    assert story.saga.deadline_now_ms == story.saga.deadline_ms
    assert story.saga.times_out_ms == story.now_ms + CHARGE.timeout_ms


def test_a_worker_that_was_not_there_lets_a_saga_wait_for_longer_rather_than_for_less() -> None:
    story = given_saga(RESERVE, CHARGE, deadline_ms=1_800_000, hard=True)
    story.when_due(after_ms=-HOUR_MS)
    story.now_ms += HOUR_MS
    story.watch = Watch(since_ms=story.now_ms)
    story.when_due(after_ms=0).expect_nothing_sent().expect_status("PENDING")
    assert story.saga.deadline_now_ms == story.saga.deadline_ms
    story.now_ms += 10 * HOUR_MS
    story.watch = Watch(since_ms=story.now_ms)  # one more of them
    story.when_due(after_ms=0).expect_status("COMPENSATING", "The deadline, 1800000 ms after the begin, has passed")


def test_a_worker_that_was_not_there_cuts_no_wait_if_no_clock_was_set() -> None:
    story = given_saga(RESERVE)
    story.watch = Watch(since_ms=story.now_ms + 1000)
    story.when_due().expect_sent_again_in(1000)


def test_a_command_is_looked_for_from_the_time_on_at_which_it_was_sent_by_the_clock_of_then() -> None:
    story = given_saga(RESERVE)
    sent_ms = story.now_ms
    story.watch = Watch(since_ms=1, jumps=(Jump(until_ms=story.now_ms, by_ms=HOUR_MS),))
    story.when_due(after_ms=HOUR_MS)
    [one] = given_up(story.saga, story.saga.with_step(1, story.saga.step.moved("given up", unknown=True)))
    assert one.sent_ms == sent_ms


# --- what a decision may need to know


@pytest.mark.parametrize(
    ("event", "may"),
    [
        (Reply(type="ReserveInventory_ok", saga_id="saga42", step=1), False),
        (Reply(type="ReserveInventory_failed", saga_id="saga42", step=1), True),
        (Due(saga_id="saga42"), True),
        (Intervene(verb=Verb.CANCEL, saga_id="saga42", reason="x"), True),
        (Begin(saga_id="saga42", steps=(RESERVE,)), False),
        (Unreadable(code=Code.MALFORMED, text="x"), False),
    ],
)
def test_what_services_publish_is_asked_for_where_it_may_be_needed(event: Event, may: bool) -> None:
    assert may_undo(given_saga(RESERVE, CHARGE).saga, event) is may


def test_the_answer_of_a_step_may_lead_to_an_undo_while_the_saga_goes_back_or_is_to() -> None:
    done = Reply(type="ReserveInventory_ok", saga_id="saga42", step=1)
    assert may_undo(given_saga(RESERVE, CHARGE).when_asked(Verb.CANCEL).saga, done)
    assert may_undo(parked_in_the_undo().saga, done)


@pytest.mark.parametrize(
    ("second", "may"),
    [
        ({"params": {"of": 1}}, False),
        ({"params": {"of": {"$ref": "/steps/1/result"}}}, True),
        ({"when": {"eq": [{"$ref": "/input/on"}, True]}}, True),
    ],
)
def test_what_a_service_publishes_is_read_if_a_step_may_fail_before_it_is_sent(second: Any, may: bool) -> None:
    played = Played({"transaction": "A", "service": "s"}, {"transaction": "B", "service": "s", **second})
    assert played.state is not None
    assert may_undo(played.state, Reply(type="A_ok", saga_id="trip-1", step=1)) is may


# --- saga_begin again


def test_a_begin_of_a_live_saga_with_the_same_body_changes_nothing() -> None:
    story = given_saga(RESERVE, CHARGE, request_id="me-1").when("ReserveInventory_ok", 1)
    story.when_begun(RESERVE, CHARGE, request_id="you-1").expect_nothing_changed().expect_notices()
    assert story.decision.quarantine is None


def test_a_begin_of_an_ended_saga_with_the_same_body_is_told_the_outcome() -> None:
    story = given_saga(SHIP, request_id="me-1").when("CreateShipment_ok", 1)
    story.when_begun(SHIP, request_id="you-1").expect_nothing_changed().expect_outcome(
        '{"type": "saga_completed", "saga_id": "saga42", "status": "COMPLETED"}', to="you-1"
    )


def test_a_begin_is_the_same_whatever_the_order_of_the_keys_in_its_params() -> None:
    story = given_saga(RESERVE, request_id="me-1")
    turned = step("ReserveInventory", "inventory", {"quantity": 1, "sku": "abc123"})
    story.when_begun(turned, request_id="you-1").expect_nothing_changed().expect_notices()


def test_a_begin_that_is_delivered_again_changes_nothing_and_tells_nobody() -> None:
    story = given_saga(SHIP, request_id="me-1")
    story.when_begun(SHIP, request_id="me-1").expect_nothing_changed().expect_notices()
    story.when("CreateShipment_ok", 1)
    story.when_begun(SHIP, request_id="me-1").expect_nothing_changed().expect_notices()


@pytest.mark.parametrize(
    "steps",
    [
        (CHARGE,),
        (RESERVE, SHIP),
        (CHARGE, RESERVE),
        (RESERVE, CHARGE, SHIP),
        (step("ReserveInventory", "inventory", {"sku": "abc123", "quantity": 2}), CHARGE),
        (step("ReserveInventory", "stock", {"sku": "abc123", "quantity": 1}), CHARGE),
        (replace(RESERVE, compensation=None), CHARGE),
        (replace(RESERVE, timeout_ms=1), CHARGE),
        (RESERVE, replace(CHARGE, kind=StepKind.PIVOT)),
        (RESERVE, replace(CHARGE, attempts=4)),
        (RESERVE, replace(CHARGE, compensation_attempts=4)),
        (RESERVE, replace(CHARGE, backoff_ms=4)),
        (RESERVE, replace(CHARGE, retry_failed=True)),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_a_begin_with_another_body_is_refused_and_nothing_changed(
    steps: tuple[StepDefinition, ...], ended: bool
) -> None:
    story = given_saga(RESERVE, CHARGE, request_id="me-1")
    if ended:
        story.when("ReserveInventory_failed", 1)
    story.when_begun(*steps, request_id="you-1").expect_nothing_changed()
    assert story.decision.quarantine is None
    (told,) = story.decision.notices
    assert (told.kind, told.saga_id, told.request_id) == ("refused", "saga42", "you-1")
    text = conflict(story.saga, Begin(saga_id="saga42", steps=steps))
    assert text is not None
    assert orjson.loads(told.body) == {"type": "error", "code": 22, "text": text}
    assert re.fullmatch(r"another saga has the id saga42: it began with(out)? .*; this request has .*", text)


def test_a_begin_with_another_deadline_is_refused() -> None:
    story = given_saga(RESERVE, request_id="me-1", deadline_ms=5000)
    story.when_begun(RESERVE, request_id="you-1", deadline_ms=5000).expect_nothing_changed().expect_notices()
    for deadline_ms in (None, 5001):
        story.when_begun(RESERVE, request_id="you-1", deadline_ms=deadline_ms)
        story.expect_nothing_changed().expect_notices("refused - error")


def test_a_begin_with_another_body_that_names_no_asker_is_quarantined() -> None:
    story = given_saga(RESERVE, CHARGE).when_begun(CHARGE, request_id=None)
    story.expect_quarantined("another saga has the id saga42: it began with 2 as number of steps; this request has 1")


def test_the_text_of_a_conflict_is_the_one_that_a_refusal_gives() -> None:
    story = given_saga(RESERVE, CHARGE).when_begun(CHARGE, request_id="you-1")
    text = conflict(story.saga, Begin(saga_id="saga42", steps=(CHARGE,)))
    assert orjson.loads(story.decision.notices[0].body)["text"] == text


# --- entries that are not messages, and sagas that cannot be read


@pytest.mark.parametrize("code", [Code.MALFORMED, Code.NOT_SUPPORTED])
def test_what_is_unreadable_is_refused_to_whoever_asked(code: Code) -> None:
    decided = decide(
        None, Unreadable(code=code, text="why", request_id="me-1"), Moment(now_ms=BEGUN_MS, published=PUBLISHED)
    )
    body = encode({"type": "error", "code": code, "text": "why"})
    assert decided == Decision(state=None, notices=(Notice(kind="refused", request_id="me-1", body=body),))


def test_what_is_unreadable_and_of_nobody_is_quarantined() -> None:
    decided = decide(None, Unreadable(code=Code.MALFORMED, text="why"), Moment(now_ms=BEGUN_MS, published=PUBLISHED))
    assert decided == Decision(state=None, quarantine="why")


def test_a_begin_of_a_saga_that_cannot_be_read_is_refused_and_it_is_not_touched() -> None:
    damaged = CorruptSaga("the hash of saga saga42 is damaged")
    decided = decide(
        damaged,
        Begin(saga_id="saga42", steps=(SHIP,), request_id="me-1"),
        Moment(now_ms=BEGUN_MS, published=PUBLISHED),
    )
    body = encode({"type": "error", "code": Code.CRASH, "text": "the hash of saga saga42 is damaged"})
    told = Notice(kind="refused", saga_id="saga42", request_id="me-1", body=body)
    assert decided == Decision(state=damaged, notices=(told,))
    assert decided.state is damaged


@pytest.mark.parametrize(
    "event",
    [
        Begin(saga_id="saga42", steps=(SHIP,)),
        Reply(type="CreateShipment_ok", saga_id="saga42", step=1),
        Intervene(verb=Verb.CANCEL, saga_id="saga42", reason="as agreed"),
    ],
)
def test_what_comes_for_a_saga_that_cannot_be_read_and_of_nobody_is_quarantined(event: Event) -> None:
    damaged = CorruptSaga("damaged")
    assert decide(damaged, event, Moment(now_ms=BEGUN_MS, published=PUBLISHED)) == Decision(
        state=damaged, quarantine="damaged"
    )


# --- echo


def test_an_echoed_saga_tells_of_every_reply_command_and_outcome_in_order() -> None:
    (
        given_saga(RESERVE, CHARGE, echo=True)
        .expect_notices("command inventory ReserveInventory")
        .when("ReserveInventory_ok", 1, result=1)
        .expect_notices("reply inventory ReserveInventory_ok", "command payment ChargePayment")
        .when("ChargePayment_failed", 2)
        .expect_notices("reply payment ChargePayment_failed", "command inventory ReleaseReservation")
        .when("ReleaseReservation_failed", 1)
        .expect_notices("reply inventory ReleaseReservation_failed")
        .when_due()
        .expect_notices("command inventory ReleaseReservation")
        .when("ReleaseReservation_ok", 1)
        .expect_notices("reply inventory ReleaseReservation_ok", "outcome - saga_aborted")
        .when("ReleaseReservation_ok", 1)
        .expect_notices()
    )


def test_an_echoed_saga_tells_the_very_bodies() -> None:
    story = given_saga(RESERVE, CHARGE, echo=True).when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
    assert [notice.body for notice in story.decision.notices] == [
        b'{"type":"ReserveInventory_ok","saga_id":"saga42","step":1,"result":{"reservation_id":"r1"}}',
        story.decision.commands[0].body(),
    ]
    assert {notice.saga_id for notice in story.decision.notices} == {"saga42"}


def test_a_saga_that_is_not_echoed_tells_its_outcome_alone() -> None:
    story = given_saga(RESERVE, CHARGE).expect_notices().when("ReserveInventory_ok", 1).expect_notices()
    story.when("ChargePayment_failed", 2).expect_notices()
    story.when("ReleaseReservation_ok", 1).expect_notices("outcome - saga_aborted")


def test_a_result_is_passed_on_to_the_byte() -> None:
    result: Any = {"n": [2**53 + 1, 1.5, None, "ü"], "a": {}}
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1, result=result)
    story.when("ChargePayment_failed", 2)
    assert story.decision.commands[0].result == orjson.dumps(result)


# --- what is for a newer release


@pytest.mark.parametrize("state", [None, given_saga(RESERVE).saga, CorruptSaga("damaged")])
def test_a_request_of_a_newer_format_is_left_to_a_newer_release(state: Any) -> None:
    newer = Newer(format=9, saga_id="saga42", request_id="me-1")
    assert decide(state, newer, Moment(now_ms=BEGUN_MS, published={})) == Decision(state=state, left=9)


@pytest.mark.parametrize(
    "event",
    [
        Begin(saga_id="saga42", steps=(RESERVE,), request_id="me-1"),
        Intervene(verb=Verb.ABANDON, saga_id="saga42", reason="why", request_id="op-1"),
        Reply(type="ReserveInventory_ok", saga_id="saga42", step=1),
        Due(saga_id="saga42"),
        Newer(format=9, saga_id="saga42"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_whatever_comes_for_a_saga_of_a_newer_format_is_left_to_a_newer_release(event: Event) -> None:
    state = NewerFormat("saga42", 9)
    assert decide(state, event, Moment(now_ms=BEGUN_MS, published={})) == Decision(state=state, left=9)


CLOSED = Moment(now_ms=BEGUN_MS, published={}, closed={9: "worker w-1 does not know format 9"})


def test_no_saga_begins_in_a_format_that_is_closed_and_whoever_asked_is_told_why() -> None:
    begin = Begin(saga_id="saga42", steps=(RESERVE,), request_id="me-1", format=9)
    decision = decide(None, begin, CLOSED)
    assert (decision.state, decision.commands, decision.quarantine) == (None, (), None)
    [notice] = decision.notices
    assert (notice.kind, notice.saga_id, notice.request_id) == ("refused", "saga42", "me-1")
    assert orjson.loads(notice.body) == {"type": "error", "code": 22, "text": "worker w-1 does not know format 9"}


def test_a_begin_of_a_closed_format_that_nobody_waits_for_is_set_aside_with_the_reason() -> None:
    decision = decide(None, Begin(saga_id="saga42", steps=(RESERVE,), format=9), CLOSED)
    assert (decision.state, decision.quarantine) == (None, "worker w-1 does not know format 9")


def test_sagas_of_other_formats_begin_meanwhile() -> None:
    assert decide(None, Begin(saga_id="saga42", steps=(RESERVE,)), CLOSED).state is not None


def test_a_saga_that_has_begun_before_its_format_was_closed_is_begun_again_as_ever() -> None:
    begin = Begin(saga_id="saga42", steps=(RESERVE,), request_id="me-1", format=9)
    state = decide(None, begin, Moment(now_ms=BEGUN_MS, published={})).state
    assert decide(state, replace(begin, request_id="again"), CLOSED) == Decision(state=state)


def test_a_saga_has_the_format_of_its_begin() -> None:
    begin = Begin(saga_id="saga42", steps=(RESERVE,), format=2)
    state: Any = decide(None, begin, Moment(now_ms=BEGUN_MS, published={})).state
    assert state.format == 2
    assert conflict(state, begin) is None
    told = "another saga has the id saga42: it began with 2 as format; this request has 1"
    assert conflict(state, replace(begin, format=1)) == told

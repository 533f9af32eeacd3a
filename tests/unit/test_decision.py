"""What a message does to a saga, told as stories; and what holds whatever comes, in whatever order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream import moves
from sagastream.decision import Event, conflict, decide
from sagastream.errors import CorruptSaga
from sagastream.messages import AS_PUBLISHED, Begin, Code, Command, Notice, Reply, StepDefinition, Unreadable
from sagastream.moves import REASON_CHARS, TRANSITIONS, Decision, Found, Moment, Published
from sagastream.saga import SagaState, SagaStatus, StepStatus, protocol_view
from sagastream.strict_json import encode

BEGUN_MS: Final = 1_700_000_000_000


def step(
    transaction: str, service: str, params: object = None, compensation: str | None = AS_PUBLISHED
) -> StepDefinition:
    return StepDefinition(transaction=transaction, service=service, params=encode(params), compensation=compensation)


RESERVE = step("ReserveInventory", "inventory", {"sku": "abc123", "quantity": 1})
CHARGE = step("ChargePayment", "payment", {"user_id": "u42", "amount": 99.99})
SHIP = step("CreateShipment", "shipping", {"order_id": "o123"})

PUBLISHED: Final[Published] = {
    "inventory": {"ReserveInventory": "ReleaseReservation"},
    "payment": {"ChargePayment": "RefundPayment"},
    "shipping": {"CreateShipment": "CancelShipment"},
}


class Story:
    """A saga, and what happens to it: `when` something comes, `expect` what it leads to."""

    def __init__(self, steps: tuple[StepDefinition, ...], published: Published, request_id: str | None, trace: bool):
        self.published = published
        self.now_ms = BEGUN_MS - 1000
        self.state: SagaState | None = None
        self.decision = Decision(state=None)
        self.when_begun(*steps, request_id=request_id, trace=trace)

    @property
    def saga(self) -> SagaState:
        assert self.state is not None
        return self.state

    def when_begun(self, *steps: StepDefinition, request_id: str | None, trace: bool = False) -> Self:
        return self._when(Begin(saga_id="saga42", steps=steps, request_id=request_id, trace=trace))

    def when(self, kind: str, number: int, *, unknown: bool = False, **payload: object) -> Self:
        """A reply comes; `payload`: its result or error."""
        members: dict[str, Any] = {name: encode(value) for name, value in payload.items()}
        return self._when(Reply(type=kind, saga_id="saga42", step=number, unknown=unknown, **members))

    def expect_command(self, service: str, body: str) -> Self:
        """Exactly one command, with this body: given as the protocol writes it, compared byte for byte."""
        assert [(c.service, c.body()) for c in self.decision.commands] == [(service, orjson.dumps(orjson.loads(body)))]
        return self

    def expect_sent(self, service: str, kind: str, number: int) -> Self:
        """Exactly one command."""
        assert [(c.service, c.type, c.step) for c in self.decision.commands] == [(service, kind, number)]
        return self

    def expect_nothing_sent(self) -> Self:
        assert self.decision.commands == ()
        return self

    def expect_status(self, status: str, reason: str | None = None) -> Self:
        assert (self.saga.status, self.saga.reason) == (status, reason)
        return self

    def expect_steps(self, *statuses: str) -> Self:
        assert tuple(step.status for step in self.saga.steps) == statuses
        return self

    def expect_outcome(self, body: str, to: str | None = None) -> Self:
        """The outcome is told, addressed to the request `to`."""
        told = Notice(kind="outcome", saga_id="saga42", request_id=to, body=orjson.dumps(orjson.loads(body)))
        assert self.decision.notices[-1:] == (told,)
        assert self.decision.commands == ()
        return self

    def expect_notices(self, *told: str) -> Self:
        """Exactly these, in this order: kind, service and type."""
        notices = self.decision.notices
        assert tuple(f"{n.kind} {n.service or '-'} {orjson.loads(n.body)['type']}" for n in notices) == told
        return self

    def expect_parked(self, reason: str) -> Self:
        assert (self.saga.status, self.saga.parked) == ("COMPENSATING", reason)
        assert self.saga.waiting_for == "a person, it is parked"
        return self.expect_nothing_sent()

    def expect_nothing_changed(self) -> Self:
        """Neither the saga nor anything outside it."""
        assert self.state is self.before
        return self.expect_nothing_sent()

    def expect_quarantined(self, reason: str) -> Self:
        assert self.decision.quarantine == reason
        assert self.decision.notices == ()
        return self.expect_nothing_changed()

    def expect_duplicate_counted(self) -> Self:
        """And nothing else changed."""
        assert self.before is not None
        assert self.decision == Decision(state=replace(self.before, duplicates=self.before.duplicates + 1))
        return self

    def _when(self, event: Begin | Reply) -> Self:
        self.before = self.state
        self.now_ms += 1000
        self.decision = decide(self.state, event, Moment(now_ms=self.now_ms, published=self.published))
        self.state = readable(self.decision.state)
        return self


def readable(state: Found) -> SagaState | None:
    """The state, of a saga whose hash can be read."""
    assert not isinstance(state, CorruptSaga)
    return state


def given_saga(
    *steps: StepDefinition, published: Published = PUBLISHED, request_id: str | None = None, trace: bool = False
) -> Story:
    """A saga of these steps has just begun."""
    return Story(steps, published, request_id, trace)


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


def test_a_step_whose_outcome_is_unknown_is_compensated_too_and_first() -> None:
    story = (
        given_saga(RESERVE, CHARGE, SHIP)
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
        given_saga(CHARGE)
        .when("ChargePayment_failed", 1, error="?", unknown=True)
        .expect_sent("payment", "RefundPayment", 1)
        .when("RefundPayment_ok", 1)
        .expect_status("ABORTED", "Step 1 failed: ?")
    )


def test_a_late_ok_of_a_step_whose_outcome_was_unknown_is_set_aside_and_it_is_compensated_once() -> None:
    (
        given_saga(RESERVE, CHARGE)
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_failed", 2, unknown=True)
        .when("ChargePayment_ok", 2, result={"payment_id": "p1"})
        .expect_quarantined("too late: step 2 is FAILED, the saga COMPENSATING")
        .when("RefundPayment_ok", 2)
        .expect_sent("inventory", "ReleaseReservation", 1)
        .when("ChargePayment_ok", 2)
        .expect_quarantined("too late: step 2 is COMPENSATED, the saga COMPENSATING")
        .when("ReleaseReservation_ok", 1)
        .when("ChargePayment_ok", 2)
        .expect_quarantined("too late: step 2 is COMPENSATED, the saga ABORTED")
    )


# --- parked sagas

NOBODY_KNOWS = (
    "nobody knows what undoes ReserveInventory of step 1: service inventory published no such command, "
    "and the step names no compensation"
)


@pytest.mark.parametrize("published", [{}, {"inventory": {}}, {"inventory": {"Other": "Undo"}}])
def test_a_saga_whose_compensation_nobody_knows_is_parked(published: Published) -> None:
    story = (
        given_saga(RESERVE, CHARGE, published=published)
        .when("ReserveInventory_ok", 1)
        .when("ChargePayment_failed", 2, error="insufficient_funds")
        .expect_status("COMPENSATING", "Step 2 failed: insufficient_funds")
        .expect_parked(NOBODY_KNOWS)
        .expect_steps("COMPLETED", "FAILED")
        .expect_notices()
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


def test_a_saga_whose_compensation_fails_is_parked_and_goes_on_when_it_succeeds_after_all() -> None:
    (
        given_saga(RESERVE, CHARGE, SHIP)
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


def test_a_saga_that_goes_on_is_parked_no_more() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    story.when("ReleaseReservation_failed", 1).expect_parked("ReleaseReservation of step 1 failed: no reason given")
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
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2, unknown=True)
    story.when("ChargePayment_failed", 2, unknown=True).expect_duplicate_counted()
    story.when("RefundPayment_ok", 2).when("ChargePayment_failed", 2, unknown=True).expect_duplicate_counted()
    story.when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Step 2 failed: no reason given")
    story.when("ChargePayment_failed", 2, unknown=True).expect_duplicate_counted()


def test_a_failed_compensation_that_is_told_again_while_the_saga_is_parked_is_counted() -> None:
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    story.when("ReleaseReservation_failed", 1, error="bank is closed")
    why = "ReleaseReservation of step 1 failed: bank is closed"
    story.expect_parked(why).when("ReleaseReservation_failed", 1, error="another reason").expect_duplicate_counted()
    story.expect_parked(why).when("ReleaseReservation_ok", 1).expect_status("ABORTED", "Step 2 failed: no reason given")


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
        "ReleaseReservation_ok",  # nobody was asked to
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
    story.when("ReleaseReservation_ok", 1)
    story.when("ReleaseReservation_failed", 1).expect_quarantined("too late: step 1 is COMPENSATED, the saga ABORTED")


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
    assert orjson.loads(told.body) == {
        "type": "error",
        "code": 22,
        "text": "another saga has the id saga42: it began with other steps",
    }


def test_a_begin_with_another_body_that_names_no_asker_is_quarantined() -> None:
    story = given_saga(RESERVE, CHARGE).when_begun(CHARGE, request_id=None)
    story.expect_quarantined("another saga has the id saga42: it began with other steps")


def test_the_text_of_a_conflict_is_the_one_that_a_refusal_gives() -> None:
    story = given_saga(RESERVE, CHARGE).when_begun(CHARGE, request_id="you-1")
    assert orjson.loads(story.decision.notices[0].body)["text"] == conflict("saga42")


# --- entries that are no messages, and sagas that cannot be read


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
    "event", [Begin(saga_id="saga42", steps=(SHIP,)), Reply(type="CreateShipment_ok", saga_id="saga42", step=1)]
)
def test_what_comes_for_a_saga_that_cannot_be_read_and_of_nobody_is_quarantined(event: Event) -> None:
    damaged = CorruptSaga("damaged")
    assert decide(damaged, event, Moment(now_ms=BEGUN_MS, published=PUBLISHED)) == Decision(
        state=damaged, quarantine="damaged"
    )


# --- trace


def test_a_traced_saga_tells_of_every_reply_command_and_outcome_in_order() -> None:
    (
        given_saga(RESERVE, CHARGE, trace=True)
        .expect_notices("command inventory ReserveInventory")
        .when("ReserveInventory_ok", 1, result=1)
        .expect_notices("reply inventory ReserveInventory_ok", "command payment ChargePayment")
        .when("ChargePayment_failed", 2)
        .expect_notices("reply payment ChargePayment_failed", "command inventory ReleaseReservation")
        .when("ReleaseReservation_failed", 1)
        .expect_notices("reply inventory ReleaseReservation_failed")
        .when("ReleaseReservation_ok", 1)
        .expect_notices("reply inventory ReleaseReservation_ok", "outcome - saga_aborted")
        .when("ReleaseReservation_ok", 1)
        .expect_notices()
    )


def test_a_traced_saga_tells_the_very_bodies() -> None:
    story = given_saga(RESERVE, CHARGE, trace=True).when("ReserveInventory_ok", 1, result={"reservation_id": "r1"})
    assert [notice.body for notice in story.decision.notices] == [
        b'{"type":"ReserveInventory_ok","saga_id":"saga42","step":1,"result":{"reservation_id":"r1"}}',
        story.decision.commands[0].body(),
    ]
    assert {notice.saga_id for notice in story.decision.notices} == {"saga42"}


def test_a_saga_that_is_not_traced_tells_its_outcome_alone() -> None:
    story = given_saga(RESERVE, CHARGE).expect_notices().when("ReserveInventory_ok", 1).expect_notices()
    story.when("ChargePayment_failed", 2).expect_notices()
    story.when("ReleaseReservation_ok", 1).expect_notices("outcome - saga_aborted")


# --- the edges of the state machine

Edge = tuple[SagaStatus | None, str]


class Footprints(dict[Edge, SagaStatus]):
    """TRANSITIONS that remember which of its edges were walked."""

    def __init__(self) -> None:
        super().__init__(TRANSITIONS)
        self.walked: list[Edge] = []

    def __getitem__(self, edge: Edge) -> SagaStatus:
        self.walked.append(edge)
        return super().__getitem__(edge)


@pytest.fixture
def footprints(monkeypatch: pytest.MonkeyPatch) -> Footprints:
    prints = Footprints()
    monkeypatch.setattr(moves, "TRANSITIONS", prints)
    return prints


def test_every_edge_of_the_state_machine_is_walked_by_some_story(footprints: Footprints) -> None:
    given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_ok", 2)
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1).when("ChargePayment_failed", 2)
    story.when("ReleaseReservation_failed", 1).when("ReleaseReservation_ok", 1)
    assert set(footprints.walked) == set(TRANSITIONS)


def test_an_ended_saga_has_no_way_on() -> None:
    assert {status for status, _ in TRANSITIONS} == {None, SagaStatus.PENDING, SagaStatus.COMPENSATING}
    assert set(TRANSITIONS.values()) == set(SagaStatus)


# --- whatever comes


@dataclass(frozen=True, kw_only=True)
class Chance:
    """Something that comes: the reply that is waited for, one like it, any other, one again, or a saga_begin."""

    kind: str  # ok, failed, unknown, any, again, begin
    pick: int = 0
    reply: Reply | None = None


NAMES = [f"{prefix}{n}" for prefix in ("Do", "Undo", "Other") for n in range(1, 5)]
ANY_REPLIES = st.builds(
    Reply,
    type=st.builds("{}_{}".format, st.sampled_from(NAMES), st.sampled_from(["ok", "failed"])),
    saga_id=st.just("saga42"),
    step=st.integers(1, 5),
    result=st.sampled_from([None, b"1"]),
    error=st.sampled_from([None, b'"no"']),
    unknown=st.booleans(),
)
CHANCES = st.lists(
    st.builds(Chance, kind=st.just("ok"))
    | st.builds(Chance, kind=st.just("ok"))
    | st.builds(Chance, kind=st.sampled_from(["failed", "unknown"]))
    | st.builds(Chance, kind=st.just("any"), reply=ANY_REPLIES)
    | st.builds(Chance, kind=st.just("again"), pick=st.integers(0, 30))
    | st.builds(Chance, kind=st.just("begin"), pick=st.integers(0, 2)),
    max_size=30,
)
SERVICES = st.sampled_from(["alpha", "beta"])


@st.composite
def sagas(draw: st.DrawFn) -> tuple[Begin, Published]:
    """A saga of up to four steps whose compensations are published, named, declared away or unknown."""
    published: dict[str, dict[str, str | None]] = {"alpha": {}}
    steps = []
    for n in range(1, draw(st.integers(1, 4)) + 1):
        how = draw(st.sampled_from(["named", "published", "published", "needs none", "published none", "unknown"]))
        definition = step(f"Do{n}", draw(SERVICES), n)
        if how in ("published", "published none"):
            undo = f"Undo{n}" if how == "published" else None
            published.setdefault(definition.service, {})[definition.transaction] = undo
        if how in ("named", "needs none"):
            definition = replace(definition, compensation=f"Undo{n}" if how == "named" else None)
        steps.append(definition)
    trace = draw(st.booleans())
    return Begin(saga_id="saga42", steps=tuple(steps), request_id="me-1", trace=trace), published


class Run:
    """A saga that all sorts of things happen to; after each of them all that must hold is checked."""

    def __init__(self, begin: Begin, published: Published) -> None:
        self.begin = begin
        self.published = published
        self.prints = Footprints()
        self.state: SagaState | None = None
        self.last: Command | None = None
        self.replies: list[Reply] = []
        self.completed: list[int] = []
        self.outcomes = 0
        self.happens(begin)

    def comes(self, chance: Chance) -> None:
        assert self.last is not None
        if chance.kind == "begin":
            first, *rest = self.begin.steps
            other = (replace(first, params=b'"other"'), *rest)
            self.happens(
                (
                    self.begin,
                    replace(self.begin, request_id="you-1"),
                    replace(self.begin, request_id="you-2", steps=other),
                )[chance.pick]
            )
        elif chance.kind == "again" and self.replies:
            self.happens(self.replies[chance.pick % len(self.replies)])
        elif chance.reply is not None:
            self.happens(chance.reply)
        else:
            number, done = self.last.step, chance.kind not in ("failed", "unknown")
            kind = f"{self.last.type}_{'ok' if done else 'failed'}"
            payload: dict[str, Any] = {"result": b"7"} if done else {"error": b'"no"'}
            self.happens(Reply(type=kind, saga_id="saga42", step=number, unknown=chance.kind == "unknown", **payload))

    def happens(self, event: Begin | Reply) -> None:
        before = self.state
        walked = len(self.prints.walked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moves, "TRANSITIONS", self.prints)
            decided = decide(before, event, Moment(now_ms=BEGUN_MS + walked, published=self.published))
        after = readable(decided.state)
        assert after is not None
        if isinstance(event, Reply):
            self.replies.append(event)
        self._check_edges(before, after, self.prints.walked[walked:])
        self._check_commands(after, decided)
        self._check_change(before, event, after, decided)
        self._check_state(after)
        self.state = after

    def _check_edges(self, before: SagaState | None, after: SagaState, edges: list[Edge]) -> None:
        """The saga came from its status before to the one after along edges that follow on each other."""
        status = before.status if before else None
        for edge in edges:
            assert edge[0] == status
            status = TRANSITIONS[edge]
        assert status == after.status

    def _check_commands(self, after: SagaState, decided: Decision) -> None:
        """At most one command, for the current step, in the direction in which the saga goes."""
        assert len(decided.commands) <= 1
        for command in decided.commands:
            self.last = command
            current = after.step
            assert command.step == after.current_step
            assert command.service == current.definition.service
            assert command.params == current.definition.params
            assert command.compensating == (after.status is SagaStatus.COMPENSATING)
            assert command.type == (current.compensation if command.compensating else current.definition.transaction)
            assert not after.parked

    def _check_change(
        self, before: SagaState | None, event: Begin | Reply, after: SagaState, decided: Decision
    ) -> None:
        """What a message may change, and whom it may be told."""
        kinds = [notice.kind for notice in decided.notices]
        if before is None:
            assert len(decided.commands) == 1
            return
        if isinstance(event, Begin):
            assert after is before
        if decided.quarantine is not None:
            assert after is before
            assert not kinds
        if before.ended or after == replace(before, duplicates=after.duplicates):
            assert replace(after, duplicates=before.duplicates) == before
            assert decided.commands == ()
            assert "command" not in kinds
            assert "reply" not in kinds
        elif self.begin.trace:
            assert kinds[0] == "reply"
            assert ("command" in kinds) == (len(decided.commands) == 1)
        if after.ended and not before.ended:
            assert kinds[-1] == "outcome"
            assert decided.notices[-1].request_id == "me-1"
            self.outcomes += 1
        elif not before.ended:
            assert "outcome" not in kinds
        if before.status is SagaStatus.PENDING and len(completed(after)) > len(completed(before)):
            self.completed.append(before.current_step)

    def _check_state(self, state: SagaState) -> None:
        """What holds of any saga."""
        undone = state.compensating_steps
        assert list(undone) == sorted(set(undone), reverse=True)
        for number in undone:
            assert number in self.completed or state.steps[number - 1].unknown
        assert self.completed == list(range(1, len(self.completed) + 1))
        for number, part in enumerate(state.steps, 1):
            assert (part.compensation is not None) == (number in undone)
            assert (part.status is StepStatus.COMPENSATED) <= (number in undone)
            assert (part.status is StepStatus.PENDING) == (part.answered_ms is None)
        view = protocol_view(state)
        assert view["completed_steps"] == self.completed
        assert view["compensating_steps"] == list(undone)
        assert view["status"] == state.status
        assert self.outcomes == state.ended
        assert (state.reason is None) == (state.status in (SagaStatus.PENDING, SagaStatus.COMPLETED))
        if state.status is SagaStatus.PENDING:
            assert state.current_step == len(self.completed) + 1
        elif state.status is SagaStatus.COMPLETED:
            assert len(self.completed) == len(state.steps)
            assert undone == ()
        elif state.status is SagaStatus.ABORTED:
            assert not any(part.may_have_effect and self._needs_undoing(part.definition) for part in state.steps)
            assert state.parked is None
        if not state.ended and not state.parked:
            assert self.last is not None
            assert self.last.step == state.current_step  # somebody is at work on it

    def _needs_undoing(self, definition: StepDefinition) -> bool:
        published: Mapping[str, str | None] = self.published.get(definition.service, {})
        if definition.compensation == AS_PUBLISHED:
            return published.get(definition.transaction, "unknown") is not None
        return definition.compensation is not None


def completed(state: SagaState) -> list[int]:
    view: list[int] = protocol_view(state)["completed_steps"]
    return view


@given(saga=sagas(), chances=CHANCES)
def test_whatever_comes_in_whatever_order_a_saga_keeps_its_promises(
    saga: tuple[Begin, Published], chances: list[Chance]
) -> None:
    run = Run(*saga)
    for chance in chances:
        run.comes(chance)


@given(saga=sagas(), chances=CHANCES)
def test_a_saga_whose_services_do_all_they_are_asked_in_the_end_ends_or_is_parked(
    saga: tuple[Begin, Published], chances: list[Chance]
) -> None:
    run = Run(*saga)
    for chance in chances:
        run.comes(chance)
    for _ in range(2 * len(saga[0].steps)):
        run.comes(Chance(kind="ok"))
    assert run.state is not None
    assert run.state.ended or (run.state.parked or "").startswith("nobody knows what undoes ")


@given(saga=sagas(), chances=CHANCES)
def test_a_decision_depends_on_nothing_but_what_it_is_given(
    saga: tuple[Begin, Published], chances: list[Chance]
) -> None:
    runs = Run(*saga), Run(*saga)
    for chance in chances:
        for run in runs:
            run.comes(chance)
    assert runs[0].state == runs[1].state


def test_a_result_is_passed_on_to_the_byte() -> None:
    result: Any = {"n": [2**53 + 1, 1.5, None, "ü"], "a": {}}
    story = given_saga(RESERVE, CHARGE).when("ReserveInventory_ok", 1, result=result)
    story.when("ChargePayment_failed", 2)
    assert story.decision.commands[0].result == orjson.dumps(result)

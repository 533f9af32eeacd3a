"""What is paused is not sent: its step is held. What is out goes on."""

from typing import Any

import pytest

from sagastream.core.clock import Jump, Watch
from sagastream.core.indexing import held_names
from sagastream.core.messages import Verb
from sagastream.core.pauses import NOTHING_PAUSED, is_paused
from sagastream.core.step_state import HELD_MS
from sagastream.core.steps import StepKind
from sagastream.store import saga_hash
from support.graph_stories import do, given_graph
from support.stories import CHARGE, RESERVE, SHIP, Story, given_saga, step

PAYMENT = frozenset({"payment"})
HELD = "payment to be resumed, to send ChargePayment, step 1"


def held() -> Story:
    """A saga whose first step is held."""
    return given_saga(CHARGE, SHIP, paused=PAYMENT)


@pytest.mark.parametrize(
    ("paused", "is_it"),
    [
        (NOTHING_PAUSED, False),
        ({"payment"}, True),
        ({"payment/ChargePayment"}, True),
        ({"payment/RefundPayment"}, False),
        ({"inventory", "paymen", "payment2", "inventory/ChargePayment"}, False),
    ],
)
def test_a_command_is_paused_with_its_service_or_alone(paused: Any, is_it: bool) -> None:
    assert is_paused("payment", "ChargePayment", frozenset(paused)) is is_it


def test_the_first_step_is_held_if_its_service_is_paused() -> None:
    story = held().expect_nothing_sent().expect_status("PENDING").expect_steps("PENDING", "PENDING").expect_waits(HELD)
    step = story.saga.step
    assert (step.is_held, step.attempt, step.send_again_ms, step.times_out_ms) == (True, 0, None, None)
    assert held_names(story.saga) == ["held=payment"]


def test_it_is_sent_once_nothing_is_paused_any_more() -> None:
    story = held().when_resumed().expect_sent("payment", "ChargePayment", 1)
    assert held_names(story.saga) == []
    story.when("ChargePayment_ok", 1).expect_sent("shipping", "CreateShipment", 2)


def test_a_look_at_a_saga_that_stays_held_changes_nothing() -> None:
    story = held()
    before = story.saga
    story.when_due(after_ms=1000).expect_nothing_sent()
    assert story.saga is before
    story.when_paused("payment/ChargePayment").when_due(after_ms=1000)
    assert story.saga is before


def test_what_is_out_is_finished_and_the_next_step_is_held() -> None:
    story = given_saga(RESERVE, CHARGE).when_paused("inventory", "payment")
    story.when("ReserveInventory_ok", 1).expect_nothing_sent().expect_steps("COMPLETED", "PENDING")
    assert story.saga.current_step == 2
    story.when_resumed().expect_sent("payment", "ChargePayment", 2)


def test_another_command_of_the_service_is_sent() -> None:
    given_saga(CHARGE).when_paused("payment/RefundPayment")
    given_saga(CHARGE, paused=frozenset({"payment/RefundPayment"})).expect_sent("payment", "ChargePayment", 1)


def test_a_next_attempt_is_held_when_its_time_has_come_and_no_attempt_is_lost() -> None:
    story = given_saga(CHARGE).when_due().when_paused("payment").when_due().expect_nothing_sent()
    assert (story.saga.step.is_held, story.saga.step.attempt) == (True, 1)
    story.when_resumed().expect_sent("payment", "ChargePayment", 1, attempt=2)


def test_an_earlier_attempt_may_still_be_answered_while_the_next_one_is_held() -> None:
    story = given_saga(CHARGE, SHIP).when_due().when_paused("payment").when_due()
    story.when("ChargePayment_ok", 1).expect_sent("shipping", "CreateShipment", 2)


def test_what_was_never_sent_cannot_be_answered() -> None:
    story = held().when("ChargePayment_ok", 1).expect_nothing_sent()
    assert story.decision.quarantine == "step 1 was not sent yet"


def test_a_saga_that_is_cancelled_while_its_first_step_is_held_ends_at_once_without_an_undo() -> None:
    story = held().when_asked(Verb.CANCEL).expect_status("ABORTED", "Cancelled: as agreed").expect_nothing_sent()
    story.expect_steps("FAILED", "PENDING")


def test_a_deadline_comes_while_a_step_is_held() -> None:
    story = given_saga(RESERVE, CHARGE, deadline_ms=60_000).when_paused("payment").when("ReserveInventory_ok", 1)
    story.when_due().expect_sent("inventory", "ReleaseReservation", 1)


def test_the_undo_of_a_paused_service_waits_and_the_others_wait_for_it() -> None:
    story = given_saga(RESERVE, CHARGE, SHIP).when("ReserveInventory_ok", 1).when("ChargePayment_ok", 2)
    story.when_paused("payment").when("CreateShipment_failed", 3, error="no").expect_nothing_sent()
    story.expect_status("COMPENSATING", "Step 3 failed: no")
    story.expect_waits("payment to be resumed, to send RefundPayment, step 2")
    assert (story.saga.step.is_held, story.saga.step.compensation) == (True, "RefundPayment")
    story.when_resumed().expect_sent("payment", "RefundPayment", 2)
    story.when("RefundPayment_ok", 2).expect_sent("inventory", "ReleaseReservation", 1)


def test_a_command_may_be_paused_and_what_undoes_it_not() -> None:
    story = given_saga(CHARGE, SHIP).when_paused("payment/ChargePayment").when("ChargePayment_ok", 1)
    story.when("CreateShipment_failed", 2).expect_sent("payment", "RefundPayment", 1)


def test_the_next_attempt_of_an_undo_is_held() -> None:
    story = given_saga(CHARGE, SHIP).when("ChargePayment_ok", 1).when("CreateShipment_failed", 2)
    story.when("RefundPayment_failed", 1).when_paused("payment").when_due().expect_nothing_sent()
    assert story.saga.step.is_held
    story.when_resumed().expect_sent("payment", "RefundPayment", 1, attempt=2)


def test_an_operators_retry_is_held_and_gets_all_its_attempts_afterwards() -> None:
    parked = given_saga(step("Charge", "payment", compensation=None, kind=StepKind.RETRIABLE, attempts=1)).when(
        "Charge_failed", 1
    )
    before = parked.saga
    parked.when_paused("payment").when_asked(Verb.RETRY).expect_nothing_sent()
    resumed = parked.saga.step
    assert before.parked is not None
    assert (resumed.parked, resumed.is_held, resumed.tried_before) == (None, True, 1)
    parked.when_resumed().expect_sent("payment", "Charge", 1, attempt=2)


def test_of_a_graph_only_the_steps_of_the_paused_service_are_held() -> None:
    story = given_graph(do("a"), do("b", after=["a"]), do("c", after=["a"], service="t"), do("d", after=["b", "c"]))
    story.when_paused("s").when("A_ok", 1).expect_all_sent("C 3").expect_phases(
        "COMPLETED", "BACKING_OFF", "OUT", "WAITING"
    )
    story.when("C_ok", 3).expect_nothing_sent().expect_waits("s to be resumed, to send B, step 2 (b)")
    story.when_resumed().expect_all_sent("B 2").when("B_ok", 2).expect_all_sent("D 4")


def test_all_steps_that_are_held_are_due_once_they_are_resumed() -> None:
    story = given_graph(do("a", after=[]), do("b", after=[]), paused=frozenset({"s"})).expect_nothing_sent()
    story.when_resumed().expect_all_sent("A 1")
    story.when_due().expect_all_sent("B 2")


def test_what_a_held_step_was_to_send_is_made_once() -> None:
    story = given_graph(do("a", params={"n": {"$ref": "/input/n"}}), input={"n": 7}, paused=frozenset({"s"}))
    assert story.saga.step.params == b'{"n":7}'
    story.when_resumed().expect_params(b'{"n":7}')


def test_a_signal_that_sends_a_step_again_is_taken_while_the_step_is_paused() -> None:
    retry: dict[str, Any] = {"attempts": 1, "retry_on": "go", "retry_within_ms": 1000}
    story = (
        given_graph(do("a", **retry)).when("A_failed", 1).when_paused("s").when_signalled("go").expect_nothing_sent()
    )
    assert story.saga.step.is_held
    story.when_resumed().expect_all_sent("A 1")


def test_a_signal_for_a_retry_is_refused_before_the_step_was_ever_sent() -> None:
    retry: dict[str, Any] = {"attempts": 1, "retry_on": "go", "retry_within_ms": 1000}
    story = given_graph(do("a", **retry), paused=frozenset({"s"})).when_signalled("go")
    assert [notice.kind for notice in story.decision.notices] == ["refused"]


def test_a_saga_goes_back_while_a_step_is_held_that_may_have_been_done() -> None:
    story = given_saga(CHARGE).when_due().when_paused("payment").when_due().when_asked(Verb.CANCEL)
    story.expect_nothing_sent().expect_waits("payment to be resumed, to send RefundPayment, step 1")
    story.when_resumed().expect_sent("payment", "RefundPayment", 1)


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_set_leaves_what_is_held(hours: int) -> None:
    story = held()
    if hours > 0:
        story.watch = Watch(jumps=(Jump(story.now_ms + 500, hours * 3_600_000),))
    story.when_due(after_ms=hours * 3_600_000)
    assert story.saga.step.due_ms == HELD_MS
    story.when_resumed().expect_sent("payment", "ChargePayment", 1)


def test_a_worker_that_knows_no_pauses_reads_that_a_held_step_is_sent_in_the_year_5000() -> None:
    words = iter(saga_hash.changed_fields(None, held().saga))
    fields = dict(zip(words, words, strict=True))
    assert (fields["status"], fields["send_again_at"]) == ("PENDING", "5000-01-01T00:00:00.000Z")
    assert fields.get("times_out_at", "") == ""
